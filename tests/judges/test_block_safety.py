"""No schedule of messages makes two blocks of one height final: random leaders, lying seats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.encoding import keccak256
from daifi_flows.judges._journal import Journal

N, F, QUORUM = 7, 2, 5
"""⌊(n+f)/2⌋+1, as for 21 seats and 14."""
LIARS = frozenset(range(F))
HONEST = tuple(range(F, N))
LEDGER, HEIGHT = keccak256(b"ledger"), 5

SUBSET = st.sets(st.sampled_from(HONEST)).map(lambda seats: tuple(sorted(seats)))
STEPS = st.lists(
    st.tuples(st.sampled_from(["certify", "certify", "skip"]), st.integers(0, 3),
              st.integers(0, 2), SUBSET),
    max_size=30,
)  # fmt: skip


def block(round: int, body: int) -> bytes:
    return keccak256(bytes([round, body]))


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_two_blocks_of_one_height_are_never_both_final(
    steps: Sequence[tuple[str, int, int, tuple[int, ...]]],
) -> None:
    """The leader is the adversary: it shows any block to any seats in any order, has liars sign
    everything, and proposers that sign two headers a round. What binds it are the honest seats'
    journals, and that a later round's block needs a quorum's word about the rounds before."""
    journal = Journal(Path(":memory:"))
    try:
        signed: dict[bytes, set[int]] = {}
        passed: dict[int, set[int]] = {}
        for action, round, body, seats in steps:
            if action == "skip":
                able = journal.may_skip(seats, LEDGER, HEIGHT, round)
                passed.setdefault(round, set()).update(able)
                continue
            if round > 0 and len(passed.get(round - 1, set()) | LIARS) < QUORUM:
                continue  # a replica refuses it before the journal is asked
            digest = block(round, body)
            able = journal.may_sign_block(seats, LEDGER, HEIGHT, round, digest)
            signed.setdefault(digest, set()).update(able)
        final = [digest for digest, seats in signed.items() if len(seats | LIARS) >= QUORUM]
        assert len(final) <= 1
    finally:
        journal.close()


@settings(max_examples=100, deadline=None)
@given(
    signed=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12),
    passed=st.lists(st.integers(0, 3), max_size=4),
)
def test_an_honest_seat_never_contradicts_itself(
    signed: Sequence[tuple[int, int]], passed: Sequence[int]
) -> None:
    journal = Journal(Path(":memory:"))
    try:
        said: dict[int, bytes] = {}
        given_up = -1
        for i in range(max(len(signed), len(passed))):
            if i < len(signed):
                round, body = signed[i]
                if journal.may_sign_block([3], LEDGER, HEIGHT, round, block(round, body)):
                    assert said.setdefault(round, block(round, body)) == block(round, body)
                    assert round > given_up
            if i < len(passed) and journal.may_skip([3], LEDGER, HEIGHT, passed[i]):
                given_up = max(given_up, passed[i])
                assert not said or max(said) > passed[i]
    finally:
        journal.close()

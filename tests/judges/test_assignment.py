"""Who checks what: enough seats a chunk, every seat in its turn, the node's own seats never."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Committee, Subject
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.judges._assignment import (
    conflicted,
    excluded,
    first_asked,
    order,
    replacements,
)
from daifi_flows.keys import Account

NODE, OPERATOR = Account.from_seed(b"node").address, Account.from_seed(b"operator").address
OWNERS = [Account.from_seed(bytes([number])).address for number in range(7)]
SEEDS = st.binary(min_size=32, max_size=32)


@pytest.fixture(scope="module")
def committee(seats_of: Any) -> Committee:
    return seats_of(21).committee


@pytest.fixture(scope="module")
def subject_of(committee: Committee) -> Callable[..., Subject]:
    def make(chunks: int = 1, operator: str | None = OPERATOR) -> Subject:
        return Subject(
            ledger_id=bytes(32), committee=committee.digest, epoch=0, task_id=bytes(32), attempt=0,
            node=NODE, output_cid=cid_of(b"o"), proof_cid=cid_of(b"p"), min_confidence_ppm=990_000,
            deadline_ms=1, chunks=chunks, operator=operator,
        )  # fmt: skip

    return make


def owned(committee: Committee, owners: dict[int, str]) -> Committee:
    """The same committee, some of whose seats name an operator."""
    return committee.model_copy(
        update={
            "seats": tuple(
                seat.model_copy(update={"operator": owners.get(seat.index)})
                for seat in committee.seats
            )
        }
    )


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, chunks=st.integers(1, 64))
def test_every_chunk_goes_to_seven_distinct_seats(
    committee: Committee, subject_of: Any, seed: bytes, chunks: int
) -> None:
    subject = subject_of(chunks)
    asked = first_asked(committee, subject, seed)
    assert len(asked) == chunks
    for chunk, seats in enumerate(asked):
        everybody = order(committee, subject, seed, chunk)
        assert sorted(everybody) == list(range(21)) and seats == everybody[:7]
        assert len(set(seats)) == 7
    assert asked == first_asked(committee, subject, seed)
    assert first_asked(committee, subject, keccak256(seed)) != asked


def test_every_seat_is_asked_as_often_as_any_other(committee: Committee, subject_of: Any) -> None:
    """7,000 draws of 7 among 21: 2,333 a seat, ±5σ = 200."""
    counts: Counter[int] = Counter()
    firsts: Counter[int] = Counter()
    for number in range(500):
        for seats in first_asked(committee, subject_of(2), keccak256(b"%d" % number)):
            counts.update(seats)
            firsts[seats[0]] += 1
    assert set(counts) == set(range(21))
    expected = 1000 * 7 / 21
    assert all(abs(count - expected) < 5 * (expected * 2 / 3) ** 0.5 for count in counts.values())
    assert len(firsts) == 21


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, count=st.integers(0, 21), data=st.data())
def test_the_nodes_own_seats_come_last_and_judge_only_where_too_few_others_are(
    committee: Committee, subject_of: Any, seed: bytes, count: int, data: Any
) -> None:
    mine = data.draw(st.sets(st.integers(0, 20), min_size=count, max_size=count))
    owners = {seat: data.draw(st.sampled_from([NODE, OPERATOR])) for seat in sorted(mine)}
    party = owned(committee, owners)
    subject = subject_of()
    assert conflicted(party, subject) == mine
    assert set(order(party, subject, seed, 0)[21 - count :]) == mine
    own = {seat for seat, owner in owners.items() if owner == NODE}  # the rest is its word only
    assert excluded(party, subject) == (own if len(own) <= 6 else set())
    (asked,) = first_asked(party, subject, seed)
    assert len(asked) == 7
    assert len(set(asked) & mine) == max(0, 7 - (21 - count))


def test_a_seats_own_account_is_a_conflict_too(committee: Committee, subject_of: Any) -> None:
    operator = committee.seats[3].account
    assert conflicted(committee, subject_of(operator=operator)) == {3}
    hidden = owned(committee, {3: OWNERS[0]})  # behind another operator
    assert conflicted(hidden, subject_of(operator=operator)) == {3}
    assert conflicted(committee, subject_of(operator=None)) == set()


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS)
def test_seats_of_one_operator_are_spread(
    committee: Committee, subject_of: Any, seed: bytes
) -> None:
    """Seven operators with three seats each: no chunk is asked of one operator twice at first."""
    party = owned(committee, {seat: OWNERS[seat // 3] for seat in range(21)})
    (asked,) = first_asked(party, subject_of(), seed)
    assert {seat // 3 for seat in asked} == set(range(7))
    everybody = order(party, subject_of(), seed, 0)
    for turn in range(3):
        assert {seat // 3 for seat in everybody[7 * turn : 7 * turn + 7]} == set(range(7))


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, silent=st.sets(st.integers(0, 20), max_size=21), chunks=st.integers(1, 4))
def test_silent_seats_are_replaced_by_the_next_until_nobody_is_left(
    committee: Committee, subject_of: Any, seed: bytes, silent: set[int], chunks: int
) -> None:
    subject = subject_of(chunks)
    asked = [list(seats) for seats in first_asked(committee, subject, seed)]
    for _ in range(21):
        wanted = replacements(
            committee, subject, seed, asked, silent & {s for a in asked for s in a}
        )
        if not wanted:
            break
        for seat, of in wanted.items():
            for chunk in of:
                assert seat not in asked[chunk]
                asked[chunk].append(seat)
    for chunk, seats in enumerate(asked):
        heard = [seat for seat in seats if seat not in silent]
        alive = [s for s in order(committee, subject, seed, chunk) if s not in silent]
        assert len(heard) >= min(7, len(alive)) and len(heard) <= 7
        if chunks == 1:  # else a seat known to be silent is passed over
            assert set(seats) == set(order(committee, subject, seed, chunk)[: len(seats)])

"""Four seats, one of them a traitor, and a client that lies: whatever it asks, in any order, with
any of the words it has heard, and however often it has hosts killed, no two findings of one review
and no wrong one find a quorum."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from review_kit import Script

from daifi_flows.cnft import (
    FULL_WAVE,
    ChunkFinding,
    Decision,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import keccak256
from daifi_flows.errors import DaifiError
from daifi_flows.judges import SeatOffice
from daifi_flows.judges._messages import pack
from daifi_flows.judges._record import Record, look_of

TRAITOR = 3
WAVES = st.sampled_from([0, 1, FULL_WAVE])


class LyingClient(RuleBasedStateMachine):
    """Hosts of one honest seat each; the traitor's words are made here."""

    seats: ClassVar[Any]
    request_of: ClassVar[Callable[..., Any]]
    doubling: ClassVar[Callable[..., Any]]

    @initialize(output=st.sampled_from([42, 41]))
    def begin(self, output: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.right = Decision.ACCEPTED if output == 42 else Decision.REJECTED
        self.request = self.request_of(output, committee=self.seats.committee)
        self.offices = {seat: self._office(seat) for seat in range(3)}
        self.script = Script(self.request, list(self.offices.values()))
        self.own = self.seats.keys(TRAITOR)
        self.commits: set[VoteCommit] = set()
        self.reveals: set[VoteReveal] = set()
        self.said: dict[tuple[int, int], set[bytes]] = {}
        self.signed: dict[bytes, set[int]] = {}
        self.script.open()

    def _office(self, seat: int) -> SeatOffice:
        return SeatOffice(
            self.seats.committee, [seat], self.seats.folder, reference_factory=self.doubling(),
            validator_factory=None, workdir=Path(self.folder.name) / str(seat),
        )  # fmt: skip

    @rule(seat=st.integers(0, 2))
    def kill(self, seat: int) -> None:
        self.offices[seat].close()
        self.offices[seat] = self._office(seat)

    @rule(seat=st.integers(0, 2), wave=WAVES)
    def ask(self, seat: int, wave: int) -> None:
        reply = self.offices[seat].commit(
            self.script.subject_bytes, self.script.state.beacon or b"", wave, {seat: (0,)},
            self.script.case,
        )  # fmt: skip
        for item in reply.commits:
            commit = VoteCommit.from_canonical(item)
            self.commits.add(commit)
            self.said.setdefault((seat, wave), set()).add(commit.commitment)

    @rule(wave=WAVES, choice=st.sampled_from(VoteChoice), salt=st.integers(0, 1))
    def betray(self, wave: int, choice: VoteChoice, salt: int) -> None:
        finding = ChunkFinding(chunk=0, decision=choice, confidence_ppm=10**6)
        vote = self.own.vote(self.script.subject, wave, [finding])
        self.commits.add(self.own.commit(vote, keccak256(bytes([salt]))))
        self.reveals.add(self.own.reveal(vote, keccak256(bytes([salt]))))

    def _some(self, data: Any, words: set[Any], *, full: bool) -> tuple[Any, ...]:
        def wave_of(word: Any) -> int:
            return (word.vote if isinstance(word, VoteReveal) else word).wave

        fitting = sorted(
            (word for word in words if (wave_of(word) == FULL_WAVE) == full),
            key=lambda word: word.canonical(),
        )
        left_out = data.draw(st.sets(st.sampled_from(fitting), max_size=2)) if fitting else set()
        return tuple(word for word in fitting if word not in left_out)

    @rule(seat=st.integers(0, 2), full=st.booleans(), data=st.data())
    def open_votes(self, seat: int, full: bool, data: Any) -> None:
        look = look_of(self._some(data, self.commits, full=full))
        try:
            reply = self.offices[seat].reveal(self.script.subject_bytes, pack(look))
        except DaifiError:
            return
        self.reveals |= {VoteReveal.from_canonical(item) for item in reply.reveals}

    @precondition(lambda self: bool(self.reveals))
    @rule(seats=st.sets(st.integers(0, 2), min_size=1), full=st.booleans(), data=st.data())
    def have_signed(self, seats: set[int], full: bool, data: Any) -> None:
        looks = [
            look_of(
                self._some(data, self.commits, full=which),
                self._some(data, self.reveals, full=which),
            )
            for which in ((False, True) if full else (False,))
        ]
        record = pack(Record(beacon=self.script.state.beacon or b"", looks=tuple(looks)))
        for seat in seats:
            try:
                reply = self.offices[seat].sign(self.script.subject_bytes, b"", record)
            except DaifiError:
                continue
            for index, partial in reply.partials:
                assert index == seat
                self.signed.setdefault(partial, set()).add(seat)

    @invariant()
    def a_seat_says_one_thing(self) -> None:
        assert all(len(said) == 1 for said in getattr(self, "said", {}).values())
        by_seat: dict[int, int] = {}
        for seats in getattr(self, "signed", {}).values():
            for seat in seats:
                by_seat[seat] = by_seat.get(seat, 0) + 1
        assert all(count == 1 for count in by_seat.values())

    @invariant()
    def nothing_wrong_finds_a_quorum(self) -> None:
        """With the traitor's, two honest signatures are three of four. The other finding than the
        right one that may be signed is that nothing was found."""
        wrong = {Decision.ACCEPTED: Decision.REJECTED, Decision.REJECTED: Decision.ACCEPTED}
        if not hasattr(self, "signed"):
            return
        message = self.script.subject.message(wrong[self.right], 10**6)
        for seat in range(3):
            partial = self.seats.keys(seat).bls.sign(message)
            assert partial not in self.signed
        quorate = [seats for seats in self._by_message().values() if len(seats) >= 2]
        assert len(quorate) <= 1

    def _by_message(self) -> dict[bytes, set[int]]:
        found: dict[bytes, set[int]] = {}
        for decision in Decision:
            for ppm in (0, 10**6):
                message = self.script.subject.message(decision, ppm)
                for seat in range(3):
                    if self.seats.keys(seat).bls.sign(message) in self.signed:
                        found.setdefault(message, set()).add(seat)
        assert sum(map(len, found.values())) == sum(map(len, self.signed.values()))
        return found

    def teardown(self) -> None:
        if hasattr(self, "offices"):
            for office in self.offices.values():
                office.close()
            self.folder.cleanup()


def test_a_lying_client_gets_no_second_and_no_wrong_finding(
    seats_of: Any, request_of: Any, doubling: Any
) -> None:
    from functools import lru_cache

    from hypothesis.stateful import run_state_machine_as_test

    small = seats_of(4)

    class Cached:
        committee, folder = small.committee, small.folder
        keys = staticmethod(lru_cache(None)(small.keys))

    class Machine(LyingClient):
        pass

    Machine.seats, Machine.doubling = Cached(), staticmethod(doubling)
    Machine.request_of = staticmethod(request_of)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=12, stateful_step_count=30, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("output", [42, 41])
def test_an_honest_client_of_the_same_seats_gets_its_finding(
    seats_of: Any, request_of: Any, doubling: Any, tmp_path: Path, output: int
) -> None:
    """What the machine keeps out is not everything: three honest seats of four finish."""
    small = seats_of(4)
    offices = [
        SeatOffice(
            small.committee, [seat], small.folder, reference_factory=doubling(),
            validator_factory=None, workdir=tmp_path / str(seat),
        )
        for seat in range(3)
    ]  # fmt: skip
    script = Script(request_of(output, committee=small.committee), offices)
    script.open()
    script.commit(asked=dict.fromkeys(range(2), (0,)))
    script.reveal()
    if output == 41:
        script.commit(FULL_WAVE, script.state.full_asked)
        script.reveal(full=True)
    signed = [reply.partials for reply in script.sign()]
    assert [len(partials) for partials in signed] == [1, 1, 1]
    for office in offices:
        office.close()

"""Collecting a review: beacon, waves of votes and signatures, whatever carries the messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from daifi_flows.cnft import (
    FULL_WAVE,
    Attestation,
    Committee,
    Noun,
    ReviewRequest,
    Subject,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.errors import CommitteeError, EncodingError
from daifi_flows.judges._assignment import replacements
from daifi_flows.judges._beacon import check_committee
from daifi_flows.judges._committee import Phase, ReviewState
from daifi_flows.judges._messages import (
    MAX_WORD_BYTES,
    Case,
    CommitReply,
    OpenReply,
    RevealReply,
    SeatTransport,
    SignReply,
    pack,
    subject_of,
)
from daifi_flows.judges._record import Look, Record, look_of
from daifi_flows.judges._report import ReviewReport, report_of
from daifi_flows.judges._resume import repeated, told_by
from daifi_flows.judges._rounds import Round, ask_all

__all__ = ["ReviewClient"]

POST_QUORUM_S: Final = 1.0
"""How long a decided outcome waits for further signers, so that the bitmap shows who agreed."""
POST_BEACON_S: Final = 0.25
"""How long a known beacon waits for further hosts, which may say that the review is a resumed
one."""
MAX_MESSAGES: Final = 1024
"""Most messages of one kind taken from one host: 63 seats, a few waves each."""

_NONSENSE: Final = (AttributeError, IndexError, TypeError, ValueError)

R = TypeVar("R")
N = TypeVar("N", bound=Noun)


@dataclass
class _Run:
    """One review on its way.

    Attributes:
        where: which hosts say they have a seat.
        asked: for each wave the chunks that each seat was asked about.
        closed: the closed sets of commits, of the first look and of all seats (true).
        opened: which hosts have opened votes of a look (before all seats: true).
        locked, signed: what seats tell of an earlier client's review.
    """

    subject: Subject
    case: Case
    payload: Any
    state: ReviewState
    deadline: float
    where: dict[int, set[int]] = field(default_factory=lambda: {})
    asked: dict[int, dict[int, tuple[int, ...]]] = field(default_factory=lambda: {})
    opened: set[tuple[int, bool]] = field(default_factory=set[tuple[int, bool]])
    closed: dict[bool, Look] = field(default_factory=lambda: {})
    locked: tuple[Look | None, Look | None] = (None, None)
    signed: Record | None = None


class ReviewClient:
    """Runs reviews and aggregates them. It is trusted with nothing but time: it cannot forge a
    vote, change a tally or add a signature, and seats refuse a tally that leaves them out.

    Args:
        hosts: transports to the seat hosts.
        committee: whose seats they hold.
        timeout_s: for a whole review, restarts of hosts included.
        grace_s: how long silent seats are waited for, at least, before others are asked in their
            place. It is as long again as the first answers took, when that is longer.

    Raises:
        CommitteeError: the committee is unsound.
    """

    def __init__(
        self,
        hosts: Sequence[SeatTransport],
        committee: Committee,
        *,
        timeout_s: float = 300.0,
        grace_s: float = 15.0,
    ) -> None:
        check_committee(committee)
        self.hosts = tuple(hosts)
        self.committee = committee
        self.timeout_s = timeout_s
        self.grace_s = grace_s

    async def review(
        self, request: ReviewRequest, share: Callable[[Case], Any] = lambda case: case
    ) -> tuple[Attestation, ReviewReport]:
        """The committee's signed finding on a node's result. Repeating it gives the same finding.

        Args:
            share: makes what the transport sends in place of the case (its own reference to it).

        Raises:
            CommitteeError: no quorum answered in time, or the seats refuse the request.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        if request.committee.digest != self.committee.digest:
            raise CommitteeError("the review names another committee than this client's")
        subject, case = subject_of(request), Case.of(request)
        state = ReviewState.start(subject, self.committee)
        run = _Run(subject, case, share(case), state, started + self.timeout_s)
        clock = {"open": await self._timed(self._open(run))}
        if run.signed is not None:
            run.state = repeated(run.state, run.signed)
            if run.state.phase is Phase.SIGN:
                run.closed = {bool(number): look for number, look in enumerate(run.signed.looks)}
        clock |= {"commit": 0, "reveal": 0}
        for full in (False, True):
            if run.state.phase is (Phase.FULL_COMMIT if full else Phase.COMMIT):
                clock["commit"] += await self._timed(self._votes(run, full=full))
                clock["reveal"] += await self._timed(self._reveal(run, full=full))
        found: list[Attestation] = []
        clock["sign"] = await self._timed(self._sign(run, found))
        clock["total"] = round((loop.time() - started) * 1000)
        return found[0], report_of(run.state, run.asked, clock)

    async def _timed(self, step: Awaitable[None]) -> int:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await step
        return round((loop.time() - before) * 1000)

    def _patience(self, waited_s: float) -> float:
        return max(self.grace_s, waited_s)

    # The beacon

    async def _open(self, run: _Run) -> None:
        subject, docket = run.subject.canonical(), pack(run.case.docket)
        told: list[OpenReply] = []
        refused: list[str] = []

        def absorb(number: int, reply: OpenReply) -> None:
            most = 2 * len(self.committee.seats)  # a range of any length is few bytes
            for seat in reply.seats[:most]:
                if 0 <= seat < len(self.committee.seats):
                    run.where.setdefault(seat, set()).add(number)
            for index, share in reply.shares[:most]:
                run.state = run.state.add_share(index, share)
            if reply.refused:
                refused.append(reply.refused)
            first, full = reply.locked
            _must_be_bytes(first, full, reply.signed)
            if first or full or reply.signed:
                told.append(reply)

        def patience_s(_: float) -> float | None:
            return None if run.state.beacon is None else POST_BEACON_S

        outcome = await self._ask(
            run, self.hosts, lambda host: host.open(subject, docket), absorb, patience_s
        )
        if run.state.beacon is None:
            count = len(run.state.light.shares)
            why = f" ({refused[0]})" if refused else ""
            raise self._short(
                f"{count} of {len(self.committee.seats)} seats take part{why}", outcome
            )
        run.locked, run.signed = told_by(run.state, told)

    # Votes

    async def _votes(self, run: _Run, *, full: bool) -> None:
        """Collect the commits of a look, and close the set."""
        earlier = run.locked[full]
        if earlier is not None:
            try:
                resumed = run.state.add_closed(earlier)
            except CommitteeError:
                resumed = run.state
            # A set that too few have signed is no earlier client's: a seat made it up.
            if _may_answer(resumed, full=full) >= self._needed(full=full):
                run.state = resumed.close_commits()
                run.closed[full] = earlier
                return
        outcome = await (self._full_wave(run) if full else self._first_waves(run))
        voters, needed = _may_answer(run.state, full=full), self._needed(full=full)
        if voters < needed:
            raise self._short(
                f"{voters} of {len(self.committee.seats)} seats voted and {needed} are needed",
                outcome,
            )
        run.state = run.state.close_commits()

    def _needed(self, *, full: bool) -> int:
        """How many seats must vote in a look."""
        return self.committee.quorum if full else self.committee.faults + 1

    async def _first_waves(self, run: _Run) -> Round[CommitReply]:
        """Ask f+1 seats a chunk, and others in the place of those that stay silent."""
        asked: list[set[int]] = [set() for _ in range(run.subject.chunks)]
        wanted: dict[int, tuple[int, ...]] = {}
        for chunk, seats in enumerate(run.state.first_asked):
            for seat in seats:
                wanted[seat] = (*wanted.get(seat, ()), chunk)
        outcome: Round[CommitReply] = Round()
        for wave in range(FULL_WAVE):
            for seat, chunks in wanted.items():
                for chunk in chunks:
                    asked[chunk].add(seat)
            outcome = await self._wave(run, wave, wanted)
            heard = {seat for seat, _ in run.state.committed(full=False)}
            # Whose host has not even said that it is there is not asked in another's place.
            away = {seat.index for seat in self.committee.seats} - run.where.keys()
            silent = ({seat for each in asked for seat in each} | away) - heard
            wanted = dict(replacements(self.committee, run.subject, run.state.seed, asked, silent))
            if not wanted:
                break
        return outcome

    async def _full_wave(self, run: _Run) -> Round[CommitReply]:
        return await self._wave(run, FULL_WAVE, run.state.full_asked)

    async def _wave(
        self, run: _Run, wave: int, wanted: dict[int, tuple[int, ...]]
    ) -> Round[CommitReply]:
        subject, beacon, full = run.subject.canonical(), run.state.beacon, wave == FULL_WAVE
        assert beacon is not None, "votes are asked for once the beacon is known"
        run.asked[wave] = wanted
        loop = asyncio.get_running_loop()
        # A host that nobody hears of may have the seat, and hang: half of the time is kept.
        until = loop.time() + (run.deadline - loop.time()) / 2
        if not wanted.keys() & run.where.keys():
            until = min(until, loop.time() + self.grace_s)
        before = {seat for seat, _ in run.state.committed(full=False)}

        def absorb(_: int, reply: CommitReply) -> None:
            # Two of a seat are an equivocation; checking signatures is what takes time.
            commits = _parsed(VoteCommit, reply.commits[: 2 * len(wanted)])
            run.state = run.state.add_commits(commits)

        def patience_s(waited_s: float) -> float | None:
            committed = run.state.committed(full=full)
            if all((seat, wave) in committed for seat in wanted):
                return 0.0
            voters = {seat for seat, number in committed if number == wave}
            enough = len(before | voters) >= self.committee.quorum if full else bool(voters)
            return self._patience(waited_s) if enough else None

        async def call(host: SeatTransport) -> CommitReply:
            return await host.commit(subject, beacon, wave, wanted, run.payload)

        return await self._ask(
            run, self._hosts_of(run, wanted), call, absorb, patience_s, until=until
        )

    def _heard(self, run: _Run) -> set[int]:
        """Hosts that have said which seats they have."""
        return {number for numbers in run.where.values() for number in numbers}

    def _hosts_of(self, run: _Run, seats: Iterable[int]) -> tuple[SeatTransport, ...]:
        """The hosts that say they have one of these seats, and those that have said nothing."""
        heard = self._heard(run)
        wanted = {number for seat in seats for number in run.where.get(seat, ())}
        return tuple(
            host
            for number, host in enumerate(self.hosts)
            if number in wanted or number not in heard
        )

    async def _reveal(self, run: _Run, *, full: bool) -> None:
        """Collect the openings of a look, and close the set."""
        if full not in run.closed:
            run.closed[full] = look_of(run.state.commit_set(full=full))
        subject, packed = run.subject.canonical(), pack(run.closed[full])
        committed = run.state.committed(full=full)

        def absorb(number: int, reply: RevealReply) -> None:
            if reply.reveals:
                run.opened.add((number, full))
            for reveal in _parsed(VoteReveal, reply.reveals):
                run.state = run.state.add_reveal(reveal)

        def patience_s(waited_s: float) -> float | None:
            reveals = [slot for slot in committed if slot in run.state.reveals]
            if len(reveals) == len(committed):
                return 0.0
            if not full and not run.state.disputed:
                return POST_QUORUM_S
            enough = run.state.answered >= self.committee.quorum if full else bool(reveals)
            return self._patience(waited_s) if enough else None

        outcome = await self._ask(
            run,
            self._hosts_of(run, {seat for seat, _ in committed}),
            lambda host: host.reveal(subject, packed),
            absorb,
            patience_s,
        )
        voters = run.state.answered if full else len({seat for seat, _ in run.state.reveals})
        needed = self.committee.quorum if full else 1
        if voters < needed:
            raise self._short(f"{voters} seats opened their votes and {needed} are needed", outcome)
        run.state = run.state.close_reveals()

    # The outcome

    async def _sign(self, run: _Run, found: list[Attestation]) -> None:
        subject, docket = run.subject.canonical(), pack(run.case.docket)
        beacon = run.state.beacon
        assert beacon is not None, "the outcome is known once the beacon is"

        def record(number: int, *, whole: bool) -> bytes:
            """For a host: what it has opened votes against is only named."""
            looks: list[Look] = []
            for full, closed in sorted(run.closed.items()):
                reveals = run.state.reveal_set(full=full)
                named = (number, full) in run.opened and not whole
                looks.append(
                    Look(reveals=reveals, closed=closed.digest)
                    if named
                    else closed.model_copy(update={"reveals": reveals})
                )
            return pack(Record(beacon=beacon, looks=tuple(looks)))

        def absorb(_: int, reply: SignReply) -> None:
            for index, partial in reply.partials[:MAX_MESSAGES]:
                run.state = run.state.add_partial(index, partial)
            run.state, attestation = run.state.attested()
            if attestation is not None:
                found[:] = [attestation]

        def patience_s(_: float) -> float | None:
            return POST_QUORUM_S if found else None

        heard = self._heard(run)

        async def call(host: SeatTransport) -> SignReply:
            number = self.hosts.index(host)
            shown = b"" if number in heard else docket
            reply = await host.sign(subject, shown, record(number, whole=False))
            if reply.lost:
                reply = await host.sign(subject, docket, record(number, whole=True))
            return reply

        outcome = await self._ask(run, self.hosts, call, absorb, patience_s)
        if not found:
            raise self._short(
                f"{len(run.state.partials)} seats signed the outcome and {self.committee.quorum} "
                "are needed",
                outcome,
            )

    async def _ask(
        self,
        run: _Run,
        hosts: Sequence[SeatTransport],
        call: Callable[[SeatTransport], Awaitable[R]],
        absorb: Callable[[int, R], None],
        patience_s: Callable[[float], float | None],
        *,
        until: float | None = None,
    ) -> Round[R]:
        numbers = [self.hosts.index(host) for host in hosts]

        def take(index: int, reply: R) -> None:
            try:
                absorb(numbers[index], reply)
            except _NONSENSE as error:  # one host must not spoil what the others say
                raise CommitteeError(f"the seat host's answer makes no sense: {error}") from error

        outcome = await ask_all(
            hosts,
            call,
            take,
            patience_s,
            deadline=run.deadline if until is None else until,
        )
        outcome.failures = {numbers[index]: why for index, why in outcome.failures.items()}
        return outcome

    def _short(self, what: str, outcome: Round[Any]) -> CommitteeError:
        return CommitteeError(
            f"{what}: {outcome.describe(len(self.hosts))}; look at the seat hosts' logs and run "
            "the step again",
            failures=dict(outcome.failures),
        )


def _parsed(kind: type[N], items: Sequence[bytes]) -> list[N]:
    """The sound ones: rubbish from one seat must not stop the others."""
    found: list[N] = []
    for item in items[:MAX_MESSAGES]:
        try:
            found.append(kind.from_canonical(item, max_bytes=MAX_WORD_BYTES))
        except EncodingError:
            continue
    return found


def _may_answer(state: ReviewState, *, full: bool) -> int:
    """How many seats have committed in a look; before all seats, those that have been heard before
    count on each disputed chunk, and the chunk with the fewest counts."""
    voters = {seat for seat, _ in state.committed(full=full)}
    if not full:
        return len(voters)
    first = state.findings(full=False)
    return min((len(voters | first.get(chunk, {}).keys()) for chunk in state.disputed), default=0)


def _must_be_bytes(*values: object) -> None:
    if not all(isinstance(value, bytes) for value in values):
        raise TypeError("what should be bytes is something else")

"""Collecting a review: three rounds over seat hosts, whatever carries the messages."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from daifi_flows.cnft import Attestation, Committee, ReviewRequest, Subject, VoteCommit, VoteReveal
from daifi_flows.errors import CommitteeError, EncodingError
from daifi_flows.judges._committee import ReviewState, check_committee
from daifi_flows.judges._messages import CommitReply, RevealReply, SeatTransport, SignReply
from daifi_flows.judges._office import MAX_MESSAGE_BYTES, commits_of, reveals_of
from daifi_flows.judges._report import ReviewReport, report_of
from daifi_flows.judges._rounds import ask_all

__all__ = ["ReviewClient"]

POST_QUORUM_S: Final = 1.0
"""How long a decided outcome waits for further signers, so that the bitmap shows who agreed."""

MAX_MESSAGES: Final = 256
"""Most messages of one kind taken from one host: 63 seats, a few each."""


class ReviewClient:
    """Runs reviews and aggregates them. It is trusted with nothing but time: it cannot forge a
    vote, change a tally or add a signature, and seats refuse a tally that leaves them out.

    Args:
        hosts: transports to the seat hosts.
        committee: whose seats they hold.
        timeout_s: for a whole review, restarts of hosts included.
        grace_s: how long the rest is waited for, at least, once a quorum has answered. It is as
            long again as the quorum took, when that is longer.

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
        self, request: ReviewRequest, payload: Any = None
    ) -> tuple[Attestation, ReviewReport]:
        """The committee's signed finding on a node's result. Repeating it gives the same finding.

        Args:
            payload: what to send in place of ``request`` (a transport's own reference to it).

        Raises:
            CommitteeError: no quorum answered in time, or the seats refuse the request.
        """
        loop = asyncio.get_running_loop()
        clock = [loop.time()]
        deadline = clock[0] + self.timeout_s
        subject = Subject.of(request)
        if subject.committee != self.committee.digest:
            raise CommitteeError("the review names another committee than this client's")
        state, signed = await self._commit(
            subject, request if payload is None else payload, deadline
        )
        clock.append(loop.time())
        state = await self._reveal(state, signed, deadline)
        clock.append(loop.time())
        state, attestation = await self._sign(state, deadline)
        clock.append(loop.time())
        spans = [round((b - a) * 1000) for a, b in pairwise(clock)]
        timings = dict(zip(("commit", "reveal", "sign"), spans, strict=True))
        return attestation, report_of(state, {**timings, "total": sum(spans)})

    def _patience(self, waited_s: float) -> float:
        return max(self.grace_s, waited_s)

    async def _commit(
        self, subject: Subject, payload: Any, deadline: float
    ) -> tuple[ReviewState, tuple[bytes, ...] | None]:
        state = ReviewState(subject, self.committee)
        resumed: Counter[tuple[tuple[bytes, ...] | None, tuple[bytes, ...] | None]] = Counter()

        def absorb(_: int, reply: CommitReply) -> None:
            nonlocal state
            for item in _bounded(reply.commits):
                if (commit := _commit_of(item)) is not None:
                    state = state.add_commit(commit)
            if reply.locked is not None:
                resumed[(reply.locked, reply.signed)] += len(set(reply.seats))

        def patience_s(waited_s: float) -> float | None:
            if len(state.committed) == len(self.committee.seats):
                return 0.0
            return self._patience(waited_s) if self._quorum(len(state.committed)) else None

        outcome = await ask_all(
            self.hosts, lambda host: host.commit(payload), absorb, patience_s, deadline=deadline
        )
        if not self._quorum(len(state.committed)):
            raise CommitteeError(
                f"{len(state.committed)} of {len(self.committee.seats)} seats voted and "
                f"{self.committee.quorum} are needed: {outcome.describe(len(self.hosts))}; look at "
                "the seat hosts' logs and run the step again",
                failures=dict(outcome.failures),
            )
        for (locked, signed), seats in resumed.most_common():
            # more seats than may lie say that this review was opened before: go on from there
            if locked is not None and seats > self.committee.faults:
                earlier = ReviewState(subject, self.committee)
                for item in _bounded(locked):
                    if (commit := _commit_of(item)) is not None:
                        earlier = earlier.add_commit(commit)
                if self._quorum(len(earlier.committed)):
                    return earlier.close_commits(), signed
        return state.close_commits(), None

    async def _reveal(
        self, state: ReviewState, signed: tuple[bytes, ...] | None, deadline: float
    ) -> ReviewState:
        subject, commits = state.subject.canonical(), commits_of(state)
        opened = state

        def absorb(_: int, reply: RevealReply) -> None:
            nonlocal opened
            for item in _bounded(reply.reveals):
                if (reveal := _reveal_of(item)) is not None:
                    opened = opened.add_reveal(reveal)

        def patience_s(waited_s: float) -> float | None:
            if opened.reveals.keys() == opened.committed.keys():
                return 0.0
            tally = opened.tally()
            if max(tally.accepts, tally.rejects) >= self.committee.quorum:
                return POST_QUORUM_S
            return self._patience(waited_s) if self._quorum(len(opened.reveals)) else None

        outcome = await ask_all(
            self.hosts,
            lambda host: host.reveal(subject, commits),
            absorb,
            patience_s,
            deadline=deadline,
        )
        if not self._quorum(len(opened.reveals)):
            raise CommitteeError(
                f"{len(opened.reveals)} seats opened their votes and {self.committee.quorum} are "
                f"needed: {outcome.describe(len(self.hosts))}; run the step again",
                failures=dict(outcome.failures),
            )
        if signed is not None:
            earlier = state
            for item in _bounded(signed):
                if (reveal := _reveal_of(item)) is not None:
                    earlier = earlier.add_reveal(reveal)
            opened = earlier
        return opened.close_reveals()

    async def _sign(self, state: ReviewState, deadline: float) -> tuple[ReviewState, Attestation]:
        subject = state.subject.canonical()
        commits, reveals = commits_of(state), reveals_of(state)
        found: Attestation | None = None

        def absorb(_: int, reply: SignReply) -> None:
            nonlocal state, found
            for index, partial in reply.partials[:MAX_MESSAGES]:
                state = state.add_partial(index, partial)
            state, found = state.attested()

        def patience_s(_: float) -> float | None:
            return None if found is None else POST_QUORUM_S

        outcome = await ask_all(
            self.hosts,
            lambda host: host.sign(subject, commits, reveals),
            absorb,
            patience_s,
            deadline=deadline,
        )
        if found is None:
            raise CommitteeError(
                f"{len(state.partials)} seats signed the outcome and {self.committee.quorum} are "
                f"needed: {outcome.describe(len(self.hosts))}; run the step again",
                failures=dict(outcome.failures),
            )
        return state, found

    def _quorum(self, count: int) -> bool:
        return count >= self.committee.quorum


def _bounded(items: Sequence[bytes]) -> Sequence[bytes]:
    return items[:MAX_MESSAGES]


def _commit_of(data: bytes) -> VoteCommit | None:
    try:
        return VoteCommit.from_canonical(data, max_bytes=MAX_MESSAGE_BYTES)
    except EncodingError:  # rubbish from one seat must not stop the others
        return None


def _reveal_of(data: bytes) -> VoteReveal | None:
    try:
        return VoteReveal.from_canonical(data, max_bytes=MAX_MESSAGE_BYTES)
    except EncodingError:
        return None

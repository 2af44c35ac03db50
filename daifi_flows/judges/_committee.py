"""The committee's protocol as a pure reducer: commits, reveals, tally, aggregate signature.

A review moves through three phases. In each, the state depends on the *set* of messages seen,
never on their order or repetition, so that two honest observers of one set agree to the byte:

1. ``COMMIT``: each seat signs a salted hash of its vote, which nobody can read or copy.
2. ``REVEAL``: the set of commits is closed; seats open them. A vote names its seat, so another
   seat's opening never fits a copied commitment.
3. ``SIGN``: the set of reveals is closed; the tally is a function of it, and every honest seat
   signs the same attestation bytes once. Two quorums of ``⌊(n+f)/2⌋+1`` share an honest seat, so
   two conflicting attestations cannot both exist (docs of Committee; Bracha & Toueg 1985).

No Ray, clock or I/O here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from daifi_flows.cnft import (
    Attestation,
    Committee,
    Decision,
    Noun,
    Seat,
    Subject,
    Uint,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.errors import CommitteeError, KeyMaterialError
from daifi_flows.keys import aggregate_bls, check_possession, verify_bls, verify_bls_aggregate

__all__ = [
    "Complaint",
    "Evidence",
    "Phase",
    "ReviewState",
    "Tally",
    "check_committee",
    "lower_median",
]


class Phase(StrEnum):
    """Where a review stands."""

    COMMIT = "commit"
    REVEAL = "reveal"
    SIGN = "sign"


class Complaint(Noun):
    """A message that was dropped. Anyone could have forged it, so nobody is punished for it.

    ``kind`` is ``unknown-seat``, ``wrong-task``, ``bad-signature``, ``late-commit``,
    ``early-reveal``, ``late-reveal``, ``unmatched-reveal``, ``early-partial`` or ``bad-partial``;
    ``seat`` is absent when the message names none of the committee's.
    """

    kind: str
    seat: Uint | None = None


class Evidence(Noun):
    """Proof, checkable by anyone, that a seat broke the protocol.

    ``equivocation``: two commits signed by ``seat`` for one (task, proof).
    ``copy``: ``commits[0]``, signed by ``seat``, repeats the commitment of ``commits[1]``, which
    ``opening`` shows to be another seat's.
    """

    kind: str
    seat: Uint
    commits: tuple[VoteCommit, VoteCommit]
    opening: VoteReveal | None = None


@dataclass(frozen=True)
class Tally:
    """Outcome and head count. Missing seats stay in the denominator.

    Attributes:
        confidence_ppm: lower median of the confidence of the seats on the deciding side; 0 when
            neither side has a quorum.
    """

    decision: Decision
    confidence_ppm: int
    accepts: int
    rejects: int
    abstains: int
    missing: int


def lower_median(values: list[int]) -> int:
    """The smaller of the two middle values: ``sorted(values)[(k − 1) // 2]``.

    With at most f of at least 2f+1 values chosen by an adversary it lies between two honest ones.
    """
    return sorted(values)[(len(values) - 1) // 2]


def check_committee(committee: Committee) -> None:
    """Refuse a committee whose aggregate signatures would mean nothing.

    Raises:
        CommitteeError: seats are not numbered 0 to n−1, a key repeats, or a proof of possession
            fails (a rogue key could cancel others').
    """
    if not committee.seats:
        raise CommitteeError("the committee has no seats: give it at least four")
    if [seat.index for seat in committee.seats] != list(range(len(committee.seats))):
        raise CommitteeError("the committee's seats must be numbered from 0 in order")
    if len({seat.public for seat in committee.seats}) != len(committee.seats):
        raise CommitteeError("two seats of the committee share a key: give each its own")
    for seat in committee.seats:
        if not check_possession(seat.public, seat.possession):
            raise CommitteeError(
                f"seat {seat.index} does not prove possession of its key: create it again"
            )


@dataclass(frozen=True)
class ReviewState:
    """Everything known about one review. Every method returns a new state.

    Attributes:
        commits: per seat, its distinct validly signed commits (two are kept: proof enough).
        late: commits that came after the set was closed; evidence only, never counted.
    """

    subject: Subject
    committee: Committee
    phase: Phase = Phase.COMMIT
    commits: Mapping[int, tuple[VoteCommit, ...]] = field(default_factory=lambda: {})
    late: Mapping[int, tuple[VoteCommit, ...]] = field(default_factory=lambda: {})
    reveals: Mapping[int, VoteReveal] = field(default_factory=lambda: {})
    partials: Mapping[int, bytes] = field(default_factory=lambda: {})
    complaints: frozenset[tuple[str, int]] = frozenset()

    def __post_init__(self) -> None:
        if self.subject.committee != self.committee.digest:
            raise CommitteeError("the review names another committee: ask that one")

    # Round one

    def add_commit(self, commit: VoteCommit) -> ReviewState:
        """Take a signed commit; a seat that signs two different ones loses its vote."""
        seat = self._seat(commit.seat)
        if seat is None:
            return self._complain("unknown-seat", -1)
        if commit.subject != self.subject.digest:
            return self._complain("wrong-task", commit.seat)
        known = self.commits.get(commit.seat, ()) + self.late.get(commit.seat, ())
        if commit in known:
            return self
        if not verify_bls(seat.public, commit.message(), commit.signature):
            return self._complain("bad-signature", commit.seat)
        if self.phase is not Phase.COMMIT:
            kept = _two((*self.late.get(commit.seat, ()), commit))
            state = replace(self, late={**self.late, commit.seat: kept})
            return state._complain("late-commit", commit.seat)
        kept = _two((*self.commits.get(commit.seat, ()), commit))
        return replace(self, commits={**self.commits, commit.seat: kept})

    @property
    def committed(self) -> dict[int, VoteCommit]:
        """The commits that count: of seats that signed exactly one."""
        return {seat: kept[0] for seat, kept in sorted(self.commits.items()) if len(kept) == 1}

    @property
    def commit_set(self) -> tuple[VoteCommit, ...]:
        """All kept commits in one order, equivocations included: what seats lock."""
        return tuple(commit for _, kept in sorted(self.commits.items()) for commit in kept)

    def close_commits(self) -> ReviewState:
        """Fix the set of commits. From here on no vote can be added, only opened."""
        return replace(self, phase=Phase.REVEAL) if self.phase is Phase.COMMIT else self

    # Round two

    def add_reveal(self, reveal: VoteReveal) -> ReviewState:
        """Take an opening; only one that fits its seat's commit counts."""
        vote = reveal.vote
        if self._seat(vote.seat) is None:
            return self._complain("unknown-seat", -1)
        if self.phase is Phase.COMMIT:
            return self._complain("early-reveal", vote.seat)
        if self.reveals.get(vote.seat) == reveal:
            return self
        if vote.subject != self.subject.digest:
            return self._complain("wrong-task", vote.seat)
        commit = self.committed.get(vote.seat)
        if commit is None or commit.commitment != vote.commitment(reveal.salt):
            return self._complain("unmatched-reveal", vote.seat)
        if self.phase is Phase.SIGN:
            return self._complain("late-reveal", vote.seat)
        return replace(self, reveals={**self.reveals, vote.seat: reveal})

    @property
    def reveal_set(self) -> tuple[VoteReveal, ...]:
        """Counted openings in one order."""
        return tuple(reveal for _, reveal in sorted(self.reveals.items()))

    def tally(self) -> Tally:
        """Deterministic outcome of the openings so far.

        A quorum of accepts whose lower median confidence reaches the spec's threshold accepts;
        a quorum of rejects rejects; anything else is unproven.
        """
        votes = [reveal.vote.findings[0] for reveal in self.reveals.values()]
        count = Counter(vote.decision for vote in votes)
        accepts, rejects = count[VoteChoice.ACCEPT], count[VoteChoice.REJECT]
        decision, confidence = Decision.UNPROVEN, 0
        for choice in (VoteChoice.ACCEPT, VoteChoice.REJECT):
            if count[choice] >= self.committee.quorum:
                confidence = lower_median(
                    [vote.confidence_ppm for vote in votes if vote.decision is choice]
                )
        if rejects >= self.committee.quorum:
            decision = Decision.REJECTED
        elif accepts >= self.committee.quorum and confidence >= self.subject.min_confidence_ppm:
            decision = Decision.ACCEPTED
        return Tally(
            decision=decision,
            confidence_ppm=confidence,
            accepts=accepts,
            rejects=rejects,
            abstains=count[VoteChoice.ABSTAIN],
            missing=len(self.committee.seats) - len(votes),
        )

    def close_reveals(self) -> ReviewState:
        """Fix the set of openings, and with it the attestation's message.

        Raises:
            CommitteeError: the commits are still open.
        """
        if self.phase is Phase.COMMIT:
            raise CommitteeError("the commits must be closed before the reveals")
        return replace(self, phase=Phase.SIGN)

    # Round three

    def message(self) -> bytes:
        """What honest seats sign, once the reveals are closed.

        Raises:
            CommitteeError: the reveals are still open.
        """
        if self.phase is not Phase.SIGN:
            raise CommitteeError("the outcome is not fixed before the reveals are closed")
        tally = self.tally()
        return self.subject.message(tally.decision, tally.confidence_ppm)

    def add_partial(self, index: int, signature: bytes) -> ReviewState:
        """Take a seat's signature. It is checked when aggregated, or at once when the seat sent
        another before (of two different ones at most one is right)."""
        seat = self._seat(index)
        if seat is None:
            return self._complain("unknown-seat", -1)
        if self.phase is not Phase.SIGN:
            return self._complain("early-partial", index)
        before = self.partials.get(index)
        if before == signature:
            return self
        if before is None and ("bad-partial", index) not in self.complaints:
            return replace(self, partials={**self.partials, index: signature})
        good = [
            item
            for item in (before, signature)
            if item is not None and verify_bls(seat.public, self.message(), item)
        ]
        others = {key: value for key, value in self.partials.items() if key != index}
        kept = {**others, index: good[0]} if good else others
        return replace(self, partials=kept)._complain("bad-partial", index)

    def attested(self) -> tuple[ReviewState, Attestation | None]:
        """Aggregate the partial signatures; drop the bad ones without redoing the rest.

        Returns:
            the state without the bad partials, and the attestation once a quorum signed.
        """
        if len(self.partials) < self.committee.quorum:
            return self, None
        message, tally, state = self.message(), self.tally(), self
        signature = state._aggregate(message)
        if signature is None:  # somebody sent rubbish: one check each finds whom
            for index, partial in self.partials.items():
                if not verify_bls(self.committee.seats[index].public, message, partial):
                    kept = {key: item for key, item in state.partials.items() if key != index}
                    state = replace(state, partials=kept)._complain("bad-partial", index)
            if len(state.partials) < self.committee.quorum:
                return state, None
            signature = state._aggregate(message)
            if signature is None:
                raise CommitteeError("checked partial signatures do not aggregate: report this")
        subject = self.subject
        return state, Attestation(
            ledger_id=subject.ledger_id,
            epoch=subject.epoch,
            task_id=subject.task_id,
            attempt=subject.attempt,
            node=subject.node,
            output_cid=subject.output_cid,
            proof_cid=subject.proof_cid,
            decision=tally.decision,
            confidence_ppm=tally.confidence_ppm,
            signers=sum(1 << index for index in state.partials),
            signature=signature,
        )

    def _aggregate(self, message: bytes) -> bytes | None:
        indices = sorted(self.partials)
        if any(len(self.partials[index]) != 96 for index in indices):
            return None
        try:
            signature = aggregate_bls([self.partials[index] for index in indices])
        except KeyMaterialError:
            return None
        publics = [self.committee.seats[index].public for index in indices]
        return signature if verify_bls_aggregate(publics, message, signature) else None

    # What went wrong

    def evidence(self) -> tuple[Evidence, ...]:
        """Provable misbehaviour, in one order."""
        found: list[Evidence] = []
        for seat in range(len(self.committee.seats)):
            kept = _two((*self.commits.get(seat, ()), *self.late.get(seat, ())))
            if len(kept) == 2:
                found.append(Evidence(kind="equivocation", seat=seat, commits=(kept[0], kept[1])))
        for original, reveal in sorted(self.reveals.items()):
            theirs = self.committed[original]
            for seat, kept in sorted(self.commits.items()):
                copies = [item for item in kept if item.commitment == theirs.commitment]
                if seat != original and copies:
                    found.append(
                        Evidence(
                            kind="copy", seat=seat, commits=(copies[0], theirs), opening=reveal
                        )
                    )
        return tuple(found)

    def dropped(self) -> tuple[Complaint, ...]:
        """Kinds of messages that were dropped, in one order."""
        return tuple(
            Complaint(kind=kind, seat=seat if seat >= 0 else None)
            for kind, seat in sorted(self.complaints)
        )

    def _seat(self, index: int) -> Seat | None:
        return self.committee.seats[index] if 0 <= index < len(self.committee.seats) else None

    def _complain(self, kind: str, seat: int) -> ReviewState:
        return replace(self, complaints=self.complaints | {(kind, seat)})


def _two(commits: tuple[VoteCommit, ...]) -> tuple[VoteCommit, ...]:
    """The two smallest of distinct commits: a choice that does not depend on arrival."""
    distinct: dict[Any, VoteCommit] = {item.commitment: item for item in commits}
    return tuple(distinct[key] for key in sorted(distinct)[:2])

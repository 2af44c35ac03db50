"""The readable account of one review: who voted what and why, who signed, what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from daifi_flows.cnft import Bytes32, Cid, Decision, Noun, Ppm, Uint, VoteChoice
from daifi_flows.judges._committee import Complaint, Evidence, ReviewState

__all__ = ["ReviewReport", "SeatReport", "report_of"]


class SeatReport(Noun):
    """One seat's part. ``decision`` is absent when the seat opened no vote."""

    seat: Uint
    decision: VoteChoice | None = None
    confidence_ppm: Ppm = 0
    reason: str = ""
    signed: bool


class ReviewReport(Noun):
    """One review, ready for artifacts with ``jsonable()``.

    Attributes:
        reason: what most seats on the deciding side said.
        missing: seats without a counted vote; they stay in the denominator.
        evidence: protocol violations that can be proven to anyone.
        dropped: messages that did not count, and why.
        commit_ms: re-execution, judging and the first round; then the other two, and all of it.
    """

    task_id: Bytes32
    proof_cid: Cid
    decision: Decision
    confidence_ppm: Ppm
    reason: str
    accepts: Uint
    rejects: Uint
    abstains: Uint
    missing: Uint
    signers: Uint
    quorum: Uint
    seats: tuple[SeatReport, ...]
    evidence: tuple[Evidence, ...] = ()
    dropped: tuple[Complaint, ...] = ()
    commit_ms: Uint
    reveal_ms: Uint
    sign_ms: Uint
    total_ms: Uint


def report_of(state: ReviewState, timings_ms: Mapping[str, int]) -> ReviewReport:
    """The account of a finished review.

    Args:
        timings_ms: ``commit``, ``reveal``, ``sign`` and ``total``.
    """
    tally = state.tally()
    seats: list[SeatReport] = []
    for seat in state.committee.seats:
        reveal = state.reveals.get(seat.index)
        signed = seat.index in state.partials
        if reveal is None:
            seats.append(SeatReport(seat=seat.index, signed=signed))
        else:
            vote = reveal.vote.findings[0]
            seats.append(
                SeatReport(
                    seat=seat.index,
                    decision=vote.decision,
                    confidence_ppm=vote.confidence_ppm,
                    reason=vote.reason,
                    signed=signed,
                )
            )
    side = {
        Decision.ACCEPTED: {VoteChoice.ACCEPT},
        Decision.REJECTED: {VoteChoice.REJECT},
        Decision.UNPROVEN: {VoteChoice.ABSTAIN, VoteChoice.REJECT},
    }[tally.decision]
    reasons = Counter(seat.reason for seat in seats if seat.decision in side)
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ReviewReport(
        task_id=state.subject.task_id,
        proof_cid=state.subject.proof_cid,
        decision=tally.decision,
        confidence_ppm=tally.confidence_ppm,
        reason=ranked[0][0] if ranked else "too few seats voted",
        accepts=tally.accepts,
        rejects=tally.rejects,
        abstains=tally.abstains,
        missing=tally.missing,
        signers=len(state.partials),
        quorum=state.committee.quorum,
        seats=tuple(seats),
        evidence=state.evidence(),
        dropped=state.dropped(),
        commit_ms=timings_ms["commit"],
        reveal_ms=timings_ms["reveal"],
        sign_ms=timings_ms["sign"],
        total_ms=timings_ms["total"],
    )

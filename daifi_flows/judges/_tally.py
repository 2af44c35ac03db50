"""From findings to a decision: a pure function, chunk by chunk.

Quorums count seats, not stake: the draw that gave a seat its place has weighed stake and reputation
already, and f is a number of seats. Confidence is weighed by stake, where seats have weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daifi_flows.cnft import ChunkFinding, Committee, Decision, Subject, VoteChoice

__all__ = [
    "ChunkTally",
    "Findings",
    "Tally",
    "disputed",
    "lower_median",
    "tally_of",
]

Findings = Mapping[int, ChunkFinding]
"""One chunk's findings that count, by seat."""


@dataclass(frozen=True)
class ChunkTally:
    """One chunk's outcome and head count.

    Attributes:
        confidence_ppm: stake-weighted lower median over the deciding side, 0 where neither won.
        full: whether all seats were asked about it.
    """

    chunk: int
    decision: Decision
    confidence_ppm: int
    accepts: int
    rejects: int
    abstains: int
    full: bool


@dataclass(frozen=True)
class Tally:
    """The outcome of a review: its worst chunk's."""

    decision: Decision
    confidence_ppm: int
    chunks: tuple[ChunkTally, ...]


def lower_median(values: Mapping[int, int], committee: Committee) -> int:
    """The least value that half the weight does not exceed, weights being the seats' own (1 where
    absent). With equal weights: ``sorted(values)[(k − 1) // 2]``.

    Args:
        values: by seat; at least one.
    """
    weighed = sorted(
        (value, max(weight if (weight := committee.seats[seat].weight) is not None else 1, 1))
        for seat, value in values.items()
    )
    half, below = sum(weight for _, weight in weighed), 0
    for value, weight in weighed:
        below += 2 * weight
        if below >= half:
            return value
    raise ValueError("there is no median of nothing")


def _choice(subject: Subject, finding: ChunkFinding) -> VoteChoice:
    """What a finding counts as: who accepts with less confidence than the task asks for, does not
    accept. Six seats that report no confidence can so not pull a median down."""
    accepts = finding.decision is VoteChoice.ACCEPT
    if accepts and finding.confidence_ppm < subject.min_confidence_ppm:
        return VoteChoice.ABSTAIN
    return finding.decision


def _count(
    subject: Subject, committee: Committee, chunk: int, findings: Findings, *, full: bool
) -> ChunkTally:
    sides: dict[VoteChoice, dict[int, int]] = {choice: {} for choice in VoteChoice}
    for seat, finding in findings.items():
        sides[_choice(subject, finding)][seat] = finding.confidence_ppm
    accepts, rejects = sides[VoteChoice.ACCEPT], sides[VoteChoice.REJECT]
    needed = committee.quorum if full else committee.faults + 1
    decision, confidence = Decision.UNPROVEN, 0
    if full and len(rejects) >= committee.quorum:
        decision, confidence = Decision.REJECTED, lower_median(rejects, committee)
    elif (full or not rejects) and len(accepts) >= needed:
        decision, confidence = Decision.ACCEPTED, lower_median(accepts, committee)
    return ChunkTally(
        chunk=chunk,
        decision=decision,
        confidence_ppm=confidence,
        accepts=len(accepts),
        rejects=len(rejects),
        abstains=len(sides[VoteChoice.ABSTAIN]),
        full=full,
    )


def disputed(
    subject: Subject, committee: Committee, first: Mapping[int, Findings]
) -> tuple[int, ...]:
    """Chunks that go before all seats: those that one seat rejects, or fewer than f+1 accept.

    Args:
        first: findings of the first look, by chunk.
    """
    return tuple(
        chunk
        for chunk in range(subject.chunks)
        if _count(subject, committee, chunk, first.get(chunk, {}), full=False).decision
        is not Decision.ACCEPTED
    )


def tally_of(
    subject: Subject,
    committee: Committee,
    first: Mapping[int, Findings],
    second: Mapping[int, Findings],
) -> Tally:
    """The outcome of the findings, whoever counts them.

    A chunk is accepted when f+1 seats of the first look accept it and none rejects; a disputed one
    when a quorum of all seats accepts it, and rejected when a quorum rejects. The output is
    rejected when a chunk is, accepted when every chunk is, with the least confidence of them.

    Args:
        first: findings of the first look, by chunk.
        second: findings of the seats that were asked about disputed chunks; who had looked before
            keeps its first finding.
    """
    full = disputed(subject, committee, first)
    chunks = tuple(
        _count(
            subject,
            committee,
            chunk,
            {**second.get(chunk, {}), **first.get(chunk, {})}
            if chunk in full
            else first.get(chunk, {}),
            full=chunk in full,
        )
        for chunk in range(subject.chunks)
    )
    rejected = [each.confidence_ppm for each in chunks if each.decision is Decision.REJECTED]
    if rejected:
        return Tally(Decision.REJECTED, max(rejected), chunks)
    if any(each.decision is not Decision.ACCEPTED for each in chunks):
        return Tally(Decision.UNPROVEN, 0, chunks)
    return Tally(Decision.ACCEPTED, min(each.confidence_ppm for each in chunks), chunks)

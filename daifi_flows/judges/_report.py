"""The readable account of one review: who checked what, what the judges saw, why it fell so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from daifi_flows.cnft import (
    FULL_WAVE,
    PPM,
    Basis,
    Bytes32,
    Bytes96,
    ChunkFinding,
    Cid,
    Decision,
    Noun,
    Ppm,
    Uint,
    VoteChoice,
)
from daifi_flows.errors import EncodingError
from daifi_flows.judges._committee import ReviewState
from daifi_flows.judges._evidence import Complaint, Evidence
from daifi_flows.judges._tally import ChunkTally, Tally
from daifi_flows.judges.panel import decode_features

__all__ = ["ChunkReport", "Feature", "FindingReport", "ReviewReport", "SeatReport", "report_of"]

MAX_EVIDENCE: Final = 64
MAX_DROPPED: Final = 128
MAX_OPINIONS: Final = 4
"""Different opinions of one chunk that are shown to people."""
MAX_LINES: Final = 64


class Feature(Noun):
    """One number of a judge, in ppm; absent where it could not be computed."""

    name: str
    value_ppm: Uint | None = None


class FindingReport(Noun):
    """What one seat found in one chunk, in which wave."""

    seat: Uint
    wave: Uint
    decision: VoteChoice
    confidence_ppm: Ppm
    reason: str
    features: tuple[Feature, ...] = ()


class ChunkReport(Noun):
    """One part of the output.

    Attributes:
        asked: the seats that were asked to check it, in all waves.
        replaced: those whose commit did not count in the first look, for which others were asked.
        silent: those asked whose finding is not counted.
        full: 1 when the chunk went before all seats, else 0.
        reason: what most seats on the deciding side said.
    """

    chunk: Uint
    decision: Decision
    confidence_ppm: Ppm
    accepts: Uint
    rejects: Uint
    abstains: Uint
    full: Uint
    reason: str
    asked: tuple[Uint, ...]
    replaced: tuple[Uint, ...]
    silent: tuple[Uint, ...]
    findings: tuple[FindingReport, ...]


class SeatReport(Noun):
    """One seat's part: the chunks it was asked about and those it gave a finding on."""

    seat: Uint
    asked: tuple[Uint, ...]
    checked: tuple[Uint, ...]
    signed: bool


class ReviewReport(Noun):
    """One review, ready for artifacts with ``jsonable()`` and for people with :meth:`markdown`.

    Attributes:
        reason: why the decision fell so.
        chunks: empty where the lottery did not draw the output.
        missing: seats that were asked and gave no finding.
        beacon: the group's signature from which lottery and assignment follow.
        drawn: 1 when the lottery had the output reviewed, else 0.
        conflicted: seats that did not judge because they are the node's.
        waves: how often seats were asked for votes.
        evidence: protocol violations that can be proven to anyone.
        dropped: messages that did not count, and why.
        commit_ms: re-execution, judging and commits; ``open_ms`` before and the others after it.
    """

    task_id: Bytes32
    proof_cid: Cid
    decision: Decision
    basis: Basis
    confidence_ppm: Ppm
    reason: str
    review_ppm: Ppm
    drawn: Uint
    beacon: Bytes96
    waves: Uint
    missing: Uint
    signers: Uint
    quorum: Uint
    conflicted: tuple[Uint, ...]
    chunks: tuple[ChunkReport, ...]
    seats: tuple[SeatReport, ...]
    evidence: tuple[Evidence, ...] = ()
    dropped: tuple[Complaint, ...] = ()
    open_ms: Uint
    commit_ms: Uint
    reveal_ms: Uint
    sign_ms: Uint
    total_ms: Uint

    def markdown(self) -> str:
        """The same for people. What seats wrote is shown as plain text."""
        return _markdown(self)


Waves = Mapping[int, Mapping[int, Sequence[int]]]
"""For each wave the chunks that each seat was asked about."""


def report_of(state: ReviewState, asked: Waves, timings_ms: Mapping[str, int]) -> ReviewReport:
    """The account of a finished review.

    Args:
        asked: whom its client asked; of a resumed review, what it asked itself.
        timings_ms: ``open``, ``commit``, ``reveal``, ``sign`` and ``total``.
    """
    tally = state.tally()
    chunks = tuple(_chunk(state, asked, each) for each in tally.chunks)
    seats = tuple(
        SeatReport(
            seat=seat.index,
            asked=tuple(each.chunk for each in chunks if seat.index in each.asked),
            checked=tuple(
                each.chunk
                for each in chunks
                if any(finding.seat == seat.index for finding in each.findings)
            ),
            signed=seat.index in state.partials,
        )
        for seat in state.committee.seats
    )
    assert state.beacon is not None, "a finished review has a beacon"
    return ReviewReport(
        task_id=state.subject.task_id,
        proof_cid=state.subject.proof_cid,
        decision=tally.decision,
        basis=state.basis,
        confidence_ppm=tally.confidence_ppm,
        reason=_reason(state, tally, chunks),
        review_ppm=state.subject.review_ppm,
        drawn=int(state.drawn),
        beacon=state.beacon,
        waves=len(asked) or len({wave for _, wave in state.commits}),
        missing=sum(1 for seat in seats if seat.asked and not seat.checked),
        signers=len(state.partials),
        quorum=state.committee.quorum,
        conflicted=tuple(sorted(state.shut)),
        chunks=chunks,
        seats=seats,
        evidence=state.evidence()[:MAX_EVIDENCE],
        dropped=state.dropped()[:MAX_DROPPED],
        open_ms=timings_ms["open"],
        commit_ms=timings_ms["commit"],
        reveal_ms=timings_ms["reveal"],
        sign_ms=timings_ms["sign"],
        total_ms=timings_ms["total"],
    )


def _chunk(state: ReviewState, asked: Waves, tally: ChunkTally) -> ChunkReport:
    findings: dict[int, FindingReport] = {}
    for full in (False, True):
        for reveal in state.reveal_set(full=full):
            vote = reveal.vote
            for finding in vote.findings:
                if finding.chunk == tally.chunk and (not full or tally.full):
                    findings.setdefault(vote.seat, _finding(vote.seat, vote.wave, finding))
    called = {
        wave: {seat for seat, chunks in seats.items() if tally.chunk in chunks}
        for wave, seats in asked.items()
    }
    before = {seat for wave, seats in called.items() if wave != FULL_WAVE for seat in seats}
    voted = {seat for seat, _ in state.committed(full=False)}
    everybody = {seat for seats in called.values() for seat in seats} | findings.keys()
    return ChunkReport(
        chunk=tally.chunk,
        decision=tally.decision,
        confidence_ppm=tally.confidence_ppm,
        accepts=tally.accepts,
        rejects=tally.rejects,
        abstains=tally.abstains,
        full=int(tally.full),
        reason=_most_said(tally, findings.values()),
        asked=tuple(sorted(everybody)),
        replaced=tuple(sorted(before - voted)),
        silent=tuple(sorted(everybody - findings.keys())),
        findings=tuple(finding for _, finding in sorted(findings.items())),
    )


def _finding(seat: int, wave: int, finding: ChunkFinding) -> FindingReport:
    return FindingReport(
        seat=seat,
        wave=wave,
        decision=finding.decision,
        confidence_ppm=finding.confidence_ppm,
        reason=finding.reason,
        features=features_of(finding.panel),
    )


def features_of(panel: Sequence[int]) -> tuple[Feature, ...]:
    """A vote's features by name; nothing for numbers that no panel gives (a vote may hold any)."""
    try:
        features = decode_features(panel)
    except EncodingError:
        return ()
    return tuple(
        Feature(name=name, value_ppm=round(PPM * value) if math.isfinite(value) else None)
        for name, value in features.items()
    )


_SIDES: Final = {
    Decision.ACCEPTED: {VoteChoice.ACCEPT},
    Decision.REJECTED: {VoteChoice.REJECT},
    Decision.UNPROVEN: {VoteChoice.ABSTAIN, VoteChoice.REJECT},
}


def _most_said(tally: ChunkTally, findings: Iterable[FindingReport]) -> str:
    side = _SIDES[tally.decision]
    reasons = Counter(finding.reason for finding in findings if finding.decision in side)
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ranked[0][0] if ranked else "too few seats voted"


def _reason(state: ReviewState, tally: Tally, chunks: Sequence[ChunkReport]) -> str:
    """Why the decision fell: what was said of the chunk that decided it."""
    if state.basis is Basis.WAIVED:
        return (
            f"the lottery, at {state.subject.review_ppm} in a million, did not draw this output "
            "for review"
        )
    if tally.decision is Decision.UNPROVEN and all(
        each.decision is Decision.ACCEPTED for each in chunks
    ):
        return f"confidence {tally.confidence_ppm} ppm is under what the task asks for"
    deciding = [each for each in chunks if each.decision is tally.decision]
    if tally.decision is Decision.ACCEPTED:
        deciding.sort(key=lambda each: each.confidence_ppm)
    return deciding[0].reason


def _markdown(report: ReviewReport) -> str:
    percent = f"{report.confidence_ppm / 10_000:.2f}%"
    lines = [
        f"**{report.decision.value}** ({report.basis.value}), confidence {percent}: "
        f"{_cell(report.reason)}",
        "",
        f"- review rate {report.review_ppm / 10_000:.2f}%, "
        + ("drawn" if report.drawn else "not drawn")
        + f" by beacon `{report.beacon.hex()[:16]}…`",
        f"- {report.signers} of {len(report.seats)} seats signed; {report.quorum} are needed",
    ]
    if report.conflicted:
        lines.append(f"- seats of the node, which did not judge: {_list(report.conflicted)}")
    if report.chunks:
        lines += [
            f"- {report.waves} {'wave' if report.waves == 1 else 'waves'} of votes; "
            f"re-execution and commits {report.commit_ms} ms, all {report.total_ms} ms",
            "",
            "| chunk | decision | confidence | for | against | abstained | checked by | silent |",
            "| ---: | --- | ---: | ---: | ---: | ---: | --- | --- |",
        ]
    for chunk in report.chunks:
        decision = chunk.decision.value + (" by all seats" if chunk.full else "")
        lines.append(
            f"| {chunk.chunk} | {decision} | {chunk.confidence_ppm / 10_000:.2f}% | "
            f"{chunk.accepts} | {chunk.rejects} | {chunk.abstains} | "
            f"{_list([finding.seat for finding in chunk.findings])} | {_list(chunk.silent)} |"
        )
    lines += _judges(report)
    if report.evidence:
        lines += ["", "Provable misbehaviour:", ""]
        lines += [f"- seat {item.seat}: {item.kind}" for item in report.evidence]
    if report.dropped:
        kinds = Counter(item.kind for item in report.dropped)
        told = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
        lines += ["", f"Messages that did not count: {told}."]
    return "\n".join(lines) + "\n"


def _judges(report: ReviewReport) -> list[str]:
    """What the judges saw: a line for each chunk and each different opinion of it."""
    lines: list[str] = []
    for chunk in report.chunks:
        seen: dict[tuple[VoteChoice, tuple[Feature, ...], str], list[int]] = {}
        for each in chunk.findings:
            seen.setdefault((each.decision, each.features, each.reason), []).append(each.seat)
        for (choice, features, reason), seats in list(seen.items())[:MAX_OPINIONS]:
            known = [
                f"{each.name} {each.value_ppm / PPM:.3f}"
                for each in features
                if each.value_ppm is not None
            ]
            told = f" [{', '.join(known)}]" if known else ""
            lines.append(
                f"- chunk {chunk.chunk}, {choice.value} by {_list(seats)}: {_cell(reason)}{told}"
            )
    return ["", "What the judges saw:", "", *lines[:MAX_LINES]] if lines else []


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _cell(text: str) -> str:
    """A stranger's words as one line of plain text, whatever Markdown or HTML they hold."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return "".join("\\" + char if char in _MARKS else char for char in plain)


_MARKS: Final = frozenset("\\`*_{}[]<>()#+!|~&")

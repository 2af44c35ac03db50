"""One table of attacks by six seats, and the reducer's way to play it through without any host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daifi_flows.cnft import (
    FULL_WAVE,
    Attestation,
    ChunkFinding,
    Decision,
    ReviewRequest,
    VoteChoice,
)
from daifi_flows.judges import Evidence, Phase, ReviewState, subject_of
from daifi_flows.judges._assignment import replacements
from daifi_flows.judges._byzantine import traitors

SEATS = (1, 4, 7, 11, 16, 20)


@dataclass(frozen=True)
class Attack:
    """Six seats' behaviours, and what the node said (42 is right)."""

    name: str
    behaviours: tuple[str, ...]
    output: int

    @property
    def traitors(self) -> dict[int, str]:
        return dict(zip(SEATS, self.behaviours, strict=True))

    @property
    def decision(self) -> Decision:
        return Decision.ACCEPTED if self.output == 42 else Decision.REJECTED


@dataclass(frozen=True)
class Outcome:
    """What came of it, whoever played it."""

    attestation: Attestation
    evidence: tuple[Evidence, ...]
    asked: frozenset[int]
    rejecting: frozenset[int]


ATTACKS = (
    Attack("nobody answers", ("silent",) * 6, 42),
    Attack("nobody answers, and the work is wrong", ("silent",) * 6, 41),
    Attack("two votes each", ("equivocate",) * 6, 42),
    Attack("false accusers", ("reject-falsely", "always-reject") * 3, 42),
    Attack("bought accepters", ("always-accept", "lazy-copy") * 3, 41),
    Attack(
        "one of each, right work",
        ("silent", "equivocate", "copy", "reject-falsely", "garbage-partial", "wrong-share"),
        42,
    ),
    Attack(
        "one of each, wrong work",
        ("wrong-share", "always-accept", "lazy-copy", "equivocate", "silent", "garbage-partial"),
        41,
    ),
)


def judge(attack: Attack, outcome: Outcome, seats: Any) -> None:
    """What must hold, whoever played it."""
    from review_kit import check

    honest = set(range(21)) - set(SEATS)
    check(outcome.attestation, seats.committee, attack.decision)
    signers = {i for i in range(21) if outcome.attestation.signers >> i & 1}
    liars = {"always-accept", "always-reject", "equivocate", "garbage-partial", "silent"}
    lying = {seat for seat, behaviour in attack.traitors.items() if behaviour in liars}
    # An aggregate is closed once a quorum is in it: who is in it said this.
    assert signers <= (honest | set(SEATS)) and len(signers) >= 14
    assert not {
        seat for seat in signers & lying if attack.traitors[seat] in ("silent", "garbage-partial")
    }
    found = {(item.kind, item.seat) for item in outcome.evidence}
    assert {seat for _, seat in found} <= set(SEATS), "an honest seat is never accused"
    for seat, behaviour in attack.traitors.items():
        if seat in outcome.asked and behaviour == "equivocate":
            assert ("equivocation", seat) in found
        if seat in outcome.rejecting and attack.output == 42:
            assert ("false-accusation", seat) in found


def play(attack: Attack, request: ReviewRequest, seats: Any) -> Outcome:
    """The attack on the reducer: seats are their keys, messages go straight in."""
    keys = {index: seats.keys(index) for index in range(21)}
    bad = traitors(keys, attack.traitors)
    good = {index: own for index, own in keys.items() if index not in bad}
    subject = subject_of(request)
    state = ReviewState.start(subject, request.committee)
    for index, own in good.items():
        assert own.share is not None
        state = state.add_share(index, own.share.sign(subject.beacon_message()))
    for index, traitor in bad.items():
        for share in traitor.shares(subject):
            state = state.add_share(index, share)
    truth = VoteChoice.ACCEPT if attack.output == 42 else VoteChoice.REJECT
    everybody: set[int] = set()

    def wave(state: ReviewState, number: int, asked: dict[int, tuple[int, ...]]) -> ReviewState:
        everybody.update(asked)
        votes = {
            index: own.vote(
                subject,
                number,
                [ChunkFinding(chunk=c, decision=truth, confidence_ppm=10**6) for c in asked[index]],
            )
            for index, own in good.items()
            if index in asked
        }
        commits = [
            good[index].commit(vote, good[index].salt(subject, number))
            for index, vote in votes.items()
        ]
        honest.update({(index, number): vote for index, vote in votes.items()})
        for index, traitor in bad.items():
            if index in asked:
                others = list(votes.values())
                commits += traitor.commits(subject, number, asked[index], commits, others)
        return state.add_commits(commits)

    def opened(state: ReviewState, *, full: bool) -> ReviewState:
        committed = state.committed(full=full)
        state = state.close_commits()
        reveals = [
            good[slot[0]].reveal(honest[slot], good[slot[0]].salt(subject, slot[1]))
            for slot in committed
            if slot in honest
        ]
        for traitor in bad.values():
            reveals += traitor.reveals(subject, committed, reveals)
        for reveal in reveals:
            state = state.add_reveal(reveal)
        return state.close_reveals()

    honest: dict[tuple[int, int], Any] = {}
    asked = [list(seats) for seats in state.first_asked]
    wanted = dict.fromkeys(asked[0], (0,))
    for number in range(FULL_WAVE):
        state = wave(state, number, wanted)
        heard = {seat for seat, _ in state.committed(full=False)}
        silent = set(asked[0]) - heard
        wanted = dict(replacements(request.committee, subject, state.seed, asked, silent))
        if not wanted:
            break
        asked[0] += wanted
    state = opened(state, full=False)
    if state.phase is not Phase.SIGN:
        state = opened(wave(state, FULL_WAVE, state.full_asked), full=True)
    tally = state.tally()
    for index, own in good.items():
        state = state.add_partial(index, own.bls.sign(state.message()))
    for index, traitor in bad.items():
        for partial in traitor.partials(subject, tally.decision, tally.confidence_ppm, state.basis):
            state = state.add_partial(index, partial)
    state, attestation = state.attested()
    assert attestation is not None
    rejecting = {
        seat
        for full in (False, True)
        for findings in state.findings(full=full).values()
        for seat, finding in findings.items()
        if finding.decision is VoteChoice.REJECT
    }
    return Outcome(attestation, state.evidence(), frozenset(everybody), frozenset(rejecting))

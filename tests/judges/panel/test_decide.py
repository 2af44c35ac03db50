"""What a seat decides from a verdict and an opinion."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import PPM, Content, VoteChoice
from daifi_flows.judges.panel import (
    Opinion,
    Panel,
    Senses,
    combined_ppm,
    decide,
    likelihood_of,
)
from daifi_flows.judges.panel._corpus import answers
from daifi_flows.proofs import Outcome, Scores, Verdict

PARIS = "The capital of France is Paris."


def text(value: str) -> Content:
    return Content.text(value, bytes(32))


def as_verified(parts: list[dict[str, Any]]) -> tuple[Verdict, Content]:
    """A valid verdict on some answers of a real model, as one, and what was claimed."""
    claimed, own = (text("\n\n".join(each[name] for each in parts)) for name in ("text", "own"))
    scores = Scores(
        tuple(score for each in parts for score in each["scores"]),
        tuple(score for each in parts for score in each["own_scores"]),
    )
    ppm = min(each["ppm"] for each in parts)
    return Verdict(Outcome.VALID, ppm, "near ties", own, claimed, scores), claimed


def decision(verdict: Verdict, claimed: Content, embed: Any) -> VoteChoice:
    """What a seat decides."""
    assert verdict.reexecuted is not None
    senses = Senses(embed, likelihood_of(verdict, claimed))
    return decide(verdict, Panel().compare(claimed, verdict.reexecuted, senses), 990_000).decision


@pytest.mark.parametrize(
    ("outcome", "ppm", "choice"),
    [
        (Outcome.VALID, PPM, VoteChoice.ACCEPT),
        (Outcome.VALID, 990_000, VoteChoice.ACCEPT),
        (Outcome.VALID, 989_999, VoteChoice.ABSTAIN),
        (Outcome.INVALID, 0, VoteChoice.REJECT),
        (Outcome.INVALID, PPM, VoteChoice.REJECT),
        (Outcome.CANNOT_TELL, PPM, VoteChoice.ABSTAIN),
    ],
)
def test_a_seat_follows_the_verdict(outcome: Outcome, ppm: int, choice: VoteChoice) -> None:
    finding = decide(Verdict(outcome, ppm, "because"), None, 990_000)
    assert finding.decision is choice
    assert "because" in finding.reason
    if choice is VoteChoice.REJECT:
        assert finding.confidence_ppm == PPM - ppm


@pytest.mark.parametrize(
    ("claimed", "choice"),
    [
        (PARIS, VoteChoice.ACCEPT),
        ("The capital of France is  paris.", VoteChoice.ACCEPT),
        ("The capital of France is not Paris.", VoteChoice.ABSTAIN),
        ("The capital of France isn't Paris, it's Lyon.", VoteChoice.ABSTAIN),
        ("The capital of France is P\u0430ris.", VoteChoice.ABSTAIN),
    ],
)
def test_the_panel_withholds_an_acceptance_but_accuses_nobody(
    embed: Any, claimed: str, choice: VoteChoice
) -> None:
    for ppm in (995_000, 999_000, PPM):
        opinion = Panel().compare(text(claimed), text(PARIS), Senses(embed))
        assert decide(Verdict(Outcome.VALID, ppm, "ok"), opinion, 990_000).decision is choice


@given(st.integers(0, PPM), st.floats(-20, 20), st.integers(0, 1), st.integers(0, PPM))
def test_the_panel_never_raises_the_schemes_confidence_and_never_rejects(
    ppm: int, log_odds: float, turned: int, probability: int
) -> None:
    opinion = Opinion(probability, log_odds, {"polarity_differs": float(turned)})
    verdict = Verdict(Outcome.VALID, ppm, "")
    assert 0 <= combined_ppm(verdict, opinion) <= ppm
    assert decide(verdict, opinion, 990_000).decision is not VoteChoice.REJECT


def test_words_that_look_alike_prove_nothing() -> None:
    opinion = Panel().compare(text(PARIS), text(PARIS))
    for outcome in (Outcome.INVALID, Outcome.CANNOT_TELL):
        verdict = Verdict(outcome, 0, "")
        assert decide(verdict, opinion, 0).decision is not VoteChoice.ACCEPT


def test_a_near_tie_of_an_honest_answer_passes(embed: Any) -> None:
    """Real answers in float32, called valid, that differ from the committee's own in a fact."""
    facts = ("numbers_differ", "names_differ", "roles_differ")
    found = 0
    for item in answers():
        answer = item["fp32"]
        if answer["text"] == answer["own"]:
            continue
        claimed, own = text(answer["text"]), text(answer["own"])
        if not any(Panel().compare(claimed, own).features[name] > 0 for name in facts):
            continue
        assert decision(*as_verified([answer]), embed) is VoteChoice.ACCEPT, answer
        found += 1
        if found == 20:
            break
    assert found == 20


def test_many_near_ties_of_a_long_answer_pass_as_one_does(embed: Any) -> None:
    """Five honest answers at a time, as one of about 240 tokens."""
    honest = [item["fp32"] for item in answers()]
    accepted = 0
    for start in range(0, 100, 5):
        verdict, claimed = as_verified(honest[start : start + 5])
        accepted += decision(verdict, claimed, embed) is VoteChoice.ACCEPT
    assert accepted >= 19


def test_a_long_reason_is_cut_to_what_a_vote_may_hold() -> None:
    finding = decide(Verdict(Outcome.INVALID, 0, "ö" * 2000), None, 990_000)
    assert len(finding.reason) == 200

"""The decision: e-values, their false-reject rate, and what they catch."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import PPM, Sampling
from daifi_flows.errors import ModelError
from daifi_flows.proofs import Outcome
from daifi_flows.proofs._fitting import fit_rounding, join, tokens_to_catch
from daifi_flows.proofs._rounding import Choices, choices, likelihoods
from daifi_flows.proofs.calibration import Calibration, Rounding
from daifi_flows.proofs.evidence import (
    ACCEPT,
    ALPHA,
    MIN_TOKENS,
    UNCALIBRATED,
    decide,
    judge,
    log_evidence,
)
from daifi_flows.proofs.sampling import sample

ROUNDING = Rounding(scales=(0.02, 0.08), weights=(0.8, 0.2))
GREEDY = Sampling()
WARM = Sampling(temperature_ppm=700_000, seed=9)
CUT = Sampling(temperature_ppm=1_000_000, seed=9, top_k=40, top_p_ppm=950_000)


def answer(
    noise: float, tokens: int, state: int, sampling: Sampling = GREEDY, real: Sampling | None = None
) -> Choices:
    """Tokens of a node whose logits differ from the verifier's by normal noise."""
    random = np.random.default_rng(state)
    logits = (random.normal(size=(tokens, 300)) * 2).astype(np.float32)
    other = logits + random.normal(size=logits.shape).astype(np.float32) * np.float32(noise)
    drawn = [sample(row, real or sampling, t) for t, row in enumerate(other)]
    found = choices(logits, drawn, sampling)
    assert found is not None
    return found


def margins(values: list[float], rival: float = 0.1) -> Choices:
    """Tokens at these margins; where the claimed one is best, another lies ``rival`` below."""
    rows = np.full((len(values), 3), -30.0, np.float32)
    rows[:, 0] = 0.0
    rows[:, 1] = [-value if value else -rival for value in values]
    found = choices(rows, [1 if value else 0 for value in values], GREEDY)
    assert found is not None
    return found


@pytest.mark.parametrize("sampling", [GREEDY, WARM, CUT], ids=["greedy", "warm", "cut"])
def test_honest_rounding_is_valid_and_more_noise_is_not(sampling: Sampling) -> None:
    for state in range(20):
        honest = decide(answer(0.01, 100, state, sampling), ROUNDING)
        assert honest.outcome is Outcome.VALID
        assert honest.confidence_ppm >= 995_000
        assert honest.log_evidence < math.log(ACCEPT) / 2
        assert decide(answer(1.0, 100, state, sampling), ROUNDING).outcome is Outcome.INVALID


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 10},
        {"temperature_ppm": 1_500_000},
        {"temperature_ppm": 0},
        {"top_k": None, "top_p_ppm": None},
        {"top_k": 3},
        {"top_p_ppm": 400_000},
    ],
    ids=str,
)
def test_another_sampler_is_invalid(change: dict[str, Any]) -> None:
    found = answer(0.01, 100, 1, CUT, CUT.model_copy(update=change))
    assert decide(found, ROUNDING).outcome is Outcome.INVALID


def test_a_temperature_a_little_off_is_found_sooner_than_noise_of_its_size() -> None:
    hotter = WARM.model_copy(update={"temperature_ppm": 800_000})
    for state in range(5):
        found = answer(0.01, 100, state, WARM, hotter)
        assert decide(found, ROUNDING).outcome is Outcome.INVALID


def test_evidence_has_expectation_of_at_most_one_under_honesty() -> None:
    """Tokens drawn from the honest law itself, five positions with near ties: the mean of E."""
    random = np.random.default_rng(3)
    rows = (random.normal(size=(5, 6)) * 0.15).astype(np.float32)
    table = np.empty((5, 6))
    weights = np.array(ROUNDING.weights)
    for token in range(6):
        found = choices(rows, [token] * 5, GREEDY)
        assert found is not None
        table[:, token] = likelihoods(found, ROUNDING.scales, (1.0,) * 5) @ weights
    table /= table.sum(1, keepdims=True)
    values: list[float] = []
    for _ in range(4000):
        drawn = [int(random.choice(6, p=row)) for row in table]
        found = choices(rows, drawn, GREEDY)
        assert found is not None
        values.append(math.exp(log_evidence(found, ROUNDING)))
    error = np.std(values) / math.sqrt(len(values))
    assert np.mean(values) < 1 + 3 * error
    assert np.mean(np.array(values) >= 20) <= 1 / 20


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([0.0], Outcome.VALID),
        ([0.15, 0.0, 0.0], Outcome.VALID),  # one near tie in a short answer
        ([0.15] * 2 + [0.0] * 60, Outcome.VALID),
        ([9.0] + [0.0] * 500, Outcome.INVALID),  # one edited token in a long answer
        ([4.0] + [0.0] * 30, Outcome.INVALID),
        ([0.3] * 96, Outcome.INVALID),  # the smallest mean of int4 weights
        ([1.0] + [0.0] * 30, Outcome.CANNOT_TELL),  # one odd token convicts nobody
        ([2.0] + [0.0] * 300, Outcome.CANNOT_TELL),
    ],
    ids=str,
)
def test_bands(values: list[float], outcome: Outcome) -> None:
    finding = decide(margins(values), ROUNDING)
    assert finding.outcome is outcome, finding.reason
    assert (finding.confidence_ppm > 990_000) == (outcome is Outcome.VALID)
    assert (finding.confidence_ppm <= 10_000) == (outcome is Outcome.INVALID)
    assert finding.largest_margin == pytest.approx(max(values), abs=1e-5)


def test_impossible_tokens_are_invalid_without_a_calibration_too() -> None:
    row = np.array([[0.0, 1.0, -np.inf]], np.float32)
    for token in (2, 3):
        found = choices(row, [token], GREEDY)
        assert found is not None
        for calibrated in (True, False):
            finding = decide(found, ROUNDING, calibrated=calibrated)
            assert finding.outcome is Outcome.INVALID
            assert finding.confidence_ppm == 0
            assert finding.log_evidence == math.inf


def test_a_model_without_a_calibration_needs_more_tokens_and_accuses_nobody() -> None:
    def said(found: Choices) -> Outcome:
        return decide(found, UNCALIBRATED, calibrated=False).outcome

    assert said(answer(0.02, MIN_TOKENS, 1)) is Outcome.VALID
    assert said(answer(0.02, MIN_TOKENS - 1, 1)) is Outcome.CANNOT_TELL
    short = decide(answer(0.02, 5, 1), UNCALIBRATED, calibrated=False)
    assert "too few tokens" in short.reason
    assert short.confidence_ppm < 990_000
    assert said(answer(3.0, 200, 1)) is Outcome.CANNOT_TELL
    logits = np.tile(np.array([1.0, 0.0], np.float32), (40, 1))
    finding = judge(logits, [1] * 40, GREEDY, None)
    assert finding is not None
    assert finding.outcome is Outcome.CANNOT_TELL
    assert "no calibration" in finding.reason


def test_judging_uses_the_calibration_and_reports_unusable_logits() -> None:
    calibration = Calibration(
        model="m",
        digest=bytes(32),
        precision="bf16",
        verifier_precision="bf16",
        rounding=ROUNDING,
        generations=1,
        tokens=1,
        max_log_evidence=0.0,
    )
    logits = np.tile(np.array([1.0, 0.0], np.float32), (40, 1))
    finding = judge(logits, [1] * 40, GREEDY, calibration)
    assert finding is not None
    assert finding.outcome is Outcome.INVALID
    assert finding.best == [0] * 40
    assert finding.scale > 1
    assert judge(logits * np.nan, [1] * 40, GREEDY, calibration) is None


def test_evidence_of_several_answers_adds_up() -> None:
    """A node too careful to be convicted by one answer is by several."""
    answers = [answer(0.08, 60, state, WARM) for state in range(60)]
    each = [log_evidence(found, ROUNDING) for found in answers]
    assert max(each) < -math.log(ALPHA)
    assert log_evidence(join(answers), ROUNDING) > -math.log(ALPHA)
    needed = tokens_to_catch(answers, ROUNDING)
    assert needed is not None
    assert 60 < needed < 60 * 60
    assert tokens_to_catch([answer(0.005, 60, 1)], ROUNDING) is None


def test_the_rounding_is_fitted_to_held_out_answers_and_refuses_cheats() -> None:
    rounding, worst = fit_rounding([answer(0.03, 80, state, WARM) for state in range(20)])
    assert worst < math.log(ACCEPT) / 2
    assert decide(answer(0.03, 200, 99, WARM), rounding).outcome is Outcome.VALID
    mixed = [answer(0.001 if state % 2 else 5.0, 80, state) for state in range(20)]
    with pytest.raises(ModelError, match="same weights"):
        fit_rounding(mixed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 9.5), min_size=1, max_size=40), st.integers(0, 39), st.floats(1, 20))
def test_more_margin_never_turns_the_decision_around(
    values: list[float], index: int, more: float
) -> None:
    worse = list(values)
    worse[index % len(values)] += more
    before, after = (decide(margins(each), ROUNDING) for each in (values, worse))
    if after.log_evidence >= before.log_evidence:
        assert after.confidence_ppm <= before.confidence_ppm
    assert 0 <= after.confidence_ppm <= PPM
    if before.outcome is Outcome.INVALID:
        assert after.outcome is Outcome.INVALID

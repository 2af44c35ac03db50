"""From fingerprint errors to a finding, and bounds fitted to honest answers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.errors import EncodingError
from daifi_flows.proofs import Outcome
from daifi_flows.proofs._fingerprint import ChunkErrors
from daifi_flows.proofs.activations import answer_error, fit_bounds, judge_activations
from daifi_flows.proofs.calibration import ActivationBounds, RelativeBounds

BOUNDS = ActivationBounds(
    min_exponent_matches=110,
    max_mean_error=3.5,
    max_median_error=4.0,
    mean_error=1.25,
    answer_spread=0.15,
    chunk_spread=0.2,
)


def errors(
    mean: float | list[float],
    chunks: int = 8,
    matches: int = 126,
    median: float = 1.0,
    last: int = 32,
) -> ChunkErrors:
    """So many chunks, the last of ``last`` rows."""
    compared = np.array([128] * (chunks - 1) + [4 * last])
    means = np.array(mean if isinstance(mean, list) else [mean] * chunks, np.float64)
    return ChunkErrors(
        compared, np.minimum(compared, matches), means, np.full(chunks, median, np.float64)
    )


TABLE = {
    "honest": (errors(1.25), Outcome.VALID),
    "better than most": (errors(0.3), Outcome.VALID),
    "exactly the same": (errors(0.0, matches=128, median=0.0), Outcome.VALID),
    "a noisy chunk": (errors([1.2] * 7 + [2.2]), Outcome.VALID),
    "a few tokens": (errors(1.6, chunks=1, last=1, matches=3), Outcome.VALID),
    "int8 per channel": (errors(2.4), Outcome.INVALID),
    "between": (errors(1.92), Outcome.CANNOT_TELL),
    "one chunk of another model": (errors([1.2] * 7 + [4.0]), Outcome.INVALID),
    "exponents of another model": (errors(1.2, matches=100), Outcome.INVALID),
    "no exponent matches": (errors(128.0, matches=0, median=128.0), Outcome.INVALID),
    "median": (errors(1.6, median=5.0), Outcome.INVALID),
    "all tokens of few": (errors(128.0, chunks=1, last=4, matches=0), Outcome.INVALID),
}


@pytest.mark.parametrize(("found", "outcome"), TABLE.values(), ids=TABLE)
def test_the_decision(found: ChunkErrors, outcome: Outcome) -> None:
    finding = judge_activations(found, BOUNDS)
    assert finding.outcome is outcome, finding.reason
    sure = {
        Outcome.VALID: (995_000, 1_000_000),
        Outcome.CANNOT_TELL: (10_000, 980_000),
        Outcome.INVALID: (0, 10_000),
    }[outcome]
    assert sure[0] <= finding.confidence_ppm <= sure[1]


def test_the_reason_lists_the_chunks() -> None:
    reason = judge_activations(errors([1.2, 1.4, 1.3, 4.0], chunks=4), BOUNDS).reason
    assert "1.2 1.4 1.3 4.0" in reason
    assert "tokens 96 to 127" in reason
    assert "504 of 512 exponents" in reason


def test_nobody_is_accused_without_a_calibration() -> None:
    assert judge_activations(errors(2.4), None).outcome is Outcome.VALID
    for found in (errors(11.0), errors(2.0, matches=89), errors(2.0, median=8.5), errors(128.0)):
        finding = judge_activations(found, None)
        assert finding.outcome is Outcome.CANNOT_TELL
        assert "no calibration" in finding.reason


@given(low=st.floats(0, 20), high=st.floats(0, 20), chunks=st.integers(1, 12))
def test_more_error_never_gives_more_confidence(low: float, high: float, chunks: int) -> None:
    low, high = sorted((low, high))
    small, large = (judge_activations(errors(x, chunks), BOUNDS) for x in (low, high))
    assert large.confidence_ppm <= small.confidence_ppm


def draw(rng: Any, centre: float, count: int, chunks: int = 4) -> list[ChunkErrors]:
    """Answers whose errors follow the model that the bounds assume."""
    return [
        errors(rng.normal(rng.normal(centre, 0.12), 0.15, chunks).clip(0).tolist(), chunks)
        for _ in range(count)
    ]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_fitted_bounds_hold_for_other_honest_answers_and_not_for_int8(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bounds = fit_bounds(draw(rng, 1.25, 32))
    honest = [judge_activations(found, bounds) for found in draw(rng, 1.25, 50, 8)]
    valid = [finding.outcome is Outcome.VALID for finding in honest]
    assert sum(valid) >= 48, "an honest answer is not valid once in a thousand times"
    assert all(finding.outcome is not Outcome.INVALID for finding in honest)
    cheats = [judge_activations(found, bounds) for found in draw(rng, 2.65, 50, 8)]
    assert all(finding.outcome is not Outcome.VALID for finding in cheats)
    assert bounds == ActivationBounds.from_plain(bounds.jsonable())


def test_engines_that_agree_to_the_bit_still_leave_room() -> None:
    bounds = fit_bounds([errors(0.0, 2, matches=128, median=0.0)] * 10)
    assert judge_activations(errors(0.02), bounds).outcome is Outcome.VALID
    assert judge_activations(errors(1.25), bounds).outcome is Outcome.INVALID


RELATIVE = BOUNDS.model_copy(
    update={"relative": RelativeBounds(mean=1.0, answer_spread=0.08, chunk_spread=0.15)}
)

SECOND_LOOKS = {
    "a noisy honest answer": (errors(1.9), errors(1.8), Outcome.VALID),
    "honest, noisier than any measured": (errors(2.6), errors(2.6), Outcome.VALID),
    "int8 on a quiet answer": (errors(1.85), errors(1.0), Outcome.INVALID),
    "int8": (errors(2.6), errors(1.3), Outcome.INVALID),
    "between": (errors(1.9), errors(1.4), Outcome.CANNOT_TELL),
    "one chunk of another model": (errors([1.2] * 7 + [4.0]), errors(2.0), Outcome.INVALID),
    "a verifier with one kernel": (errors(1.92), None, Outcome.CANNOT_TELL),
    "kernels that agree": (errors(1.92), errors(0.0, matches=128), Outcome.CANNOT_TELL),
}


@pytest.mark.parametrize(
    ("found", "own", "outcome"), SECOND_LOOKS.values(), ids=SECOND_LOOKS.keys()
)
def test_a_second_look_measures_an_answer_by_its_own_noise(
    found: ChunkErrors, own: ChunkErrors | None, outcome: Outcome
) -> None:
    finding = judge_activations(found, RELATIVE, lambda: own)
    assert finding.outcome is outcome, finding.reason


def test_answers_like_most_need_no_second_look() -> None:
    looks: list[int] = []

    def again() -> None:
        looks.append(1)

    assert judge_activations(errors(1.3), RELATIVE, again).outcome is Outcome.VALID
    assert judge_activations(errors(1.3), None, again).outcome is Outcome.VALID
    assert judge_activations(errors(1.92), BOUNDS, again).outcome is Outcome.CANNOT_TELL
    assert not looks, "without relative bounds there is nothing to compare with"
    judge_activations(errors(1.7), RELATIVE, again)
    assert looks == [1]


def test_relative_bounds_are_fitted_to_answers_of_all_noise() -> None:
    rng = np.random.default_rng(5)
    own = draw(rng, 1.3, 60)
    node = [errors((each.mean * rng.normal(1.0, 0.03, 4)).tolist(), 4) for each in own]
    relative = fit_bounds(node, own).relative
    assert relative is not None
    assert relative.mean == pytest.approx(1.0, abs=0.02)
    assert 0.05 < relative.answer_spread < 0.1
    assert fit_bounds(node).relative is None
    assert fit_bounds(node, [None] * 60).relative is None
    assert fit_bounds(node, [errors(0.0, 4, matches=128)] * 60).relative is None


def test_too_few_answers_fit_nothing() -> None:
    for answers in ([], [errors(1.2)] * 7, [errors(1.2, chunks=1, last=8)] * 20):
        with pytest.raises(EncodingError, match="too few"):
            fit_bounds(answers)


def test_the_error_of_an_answer_counts_every_match_once() -> None:
    found = errors([1.0, 3.0], chunks=2, matches=128, last=8)
    assert answer_error(found) == pytest.approx((128 * 1.0 + 32 * 3.0) / 160)

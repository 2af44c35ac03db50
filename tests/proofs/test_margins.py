"""Margins and the bands of the decision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.proofs import Outcome
from daifi_flows.proofs.margins import decide, margins

LOGITS = np.array([[0.0, 4.0, 3.5], [1.0, 0.0, -2.0]], np.float32)


def test_margin_is_the_distance_to_the_best_logit() -> None:
    found = margins(LOGITS, [2, 0], temperature_ppm=0, seed=0)
    assert found is not None
    assert found.margins.tolist() == [0.5, 0.0]
    assert found.best == [1, 0]


def test_margin_under_temperature_is_in_logits_too() -> None:
    """At a low temperature noise hardly counts, and the margin tends to that of temperature 0."""
    found = margins(LOGITS, [2, 0], temperature_ppm=1_000, seed=0)
    assert found is not None
    assert found.margins[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "logits",
    [
        np.full((2, 3), np.nan, np.float32),
        np.array([[0, np.nan, 0], [0, 0, 0]], np.float32),
        np.full((2, 3), np.inf, np.float32),
        np.full((2, 3), -np.inf, np.float32),
        np.zeros((1, 3), np.float32),
        np.zeros((2, 0), np.float32),
        np.zeros(3, np.float32),
    ],
)
@pytest.mark.parametrize("temperature", [0, 700_000])
def test_unusable_logits_give_no_margins(logits: np.ndarray, temperature: int) -> None:
    assert margins(logits, [0, 1], temperature_ppm=temperature, seed=1) is None


@pytest.mark.parametrize(
    ("row", "token"), [([0, 1, -np.inf], 2), ([0, 1, 2], 3), ([0, 1, 2], 2**20)]
)
def test_impossible_tokens_are_rejected(row: list[float], token: int) -> None:
    found = margins(np.array([row], np.float32), [token], temperature_ppm=0, seed=0)
    assert found is not None
    assert decide(found.margins).outcome is Outcome.INVALID


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([0.0], Outcome.VALID),
        ([0.25, 0.0, 0.0], Outcome.VALID),  # one near tie in a short answer
        ([0.25] * 2 + [0.0] * 60, Outcome.VALID),
        ([9.0] + [0.0] * 500, Outcome.INVALID),  # one edited token in a long answer
        ([0.3] * 96, Outcome.INVALID),  # the smallest mean of int4 weights
        ([0.9] + [0.0] * 30, Outcome.CANNOT_TELL),
        ([np.inf], Outcome.INVALID),
    ],
)
def test_bands(values: list[float], outcome: Outcome) -> None:
    finding = decide(np.array(values))
    assert finding.outcome is outcome
    assert (finding.confidence_ppm > 990_000) == (outcome is Outcome.VALID)
    assert (finding.confidence_ppm <= 10_000) == (outcome is Outcome.INVALID)


@given(st.lists(st.floats(0, 40), min_size=1, max_size=40), st.integers(0, 39), st.floats(0, 20))
def test_more_margin_never_gives_more_confidence(
    values: list[float], index: int, more: float
) -> None:
    worse = list(values)
    worse[index % len(values)] += more
    assert decide(np.array(worse)).confidence_ppm <= decide(np.array(values)).confidence_ppm

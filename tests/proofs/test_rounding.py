"""Claimed tokens against a verifier's scores: gaps, bins, cuts, likelihoods, and their fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import Sampling
from daifi_flows.proofs import Outcome
from daifi_flows.proofs._rounding import (
    CUTS,
    HONEST_CUTS,
    MOST,
    REACH,
    SCALES,
    choices,
    fit,
    likelihoods,
    warmer,
)
from daifi_flows.proofs.calibration import Rounding
from daifi_flows.proofs.evidence import decide
from daifi_flows.proofs.sampling import contenders, cutoffs, gumbel, sample

LOGITS = np.array([[0.0, 4.0, 3.5], [1.0, 0.0, -2.0]], np.float32)
GREEDY = Sampling()


def test_margin_is_the_distance_to_the_best_logit() -> None:
    found = choices(LOGITS, [2, 0], GREEDY)
    assert found is not None
    assert found.margins.tolist() == found.claimed.tolist() == [0.5, 0.0]
    assert found.best == [1, 0]
    assert found.gaps[0, :3].tolist() == [0.0, 0.5, 4.0]
    assert np.isinf(found.gaps[:, 3:]).all()


def test_margin_under_temperature_is_in_logits_too() -> None:
    """At a low temperature noise hardly counts, and the margin tends to that of temperature 0."""
    found = choices(LOGITS, [2, 0], Sampling(temperature_ppm=1_000))
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
def test_unusable_logits_give_no_choices(logits: np.ndarray, temperature: int) -> None:
    assert choices(logits, [0, 1], Sampling(temperature_ppm=temperature, seed=1)) is None


@pytest.mark.parametrize(
    ("row", "token"), [([0, 1, -np.inf], 2), ([0, 1, 2], 3), ([0, 1, 2], -1), ([0, 1, 2], 2**20)]
)
@pytest.mark.parametrize("temperature", [0, 700_000])
def test_impossible_tokens_are_infinitely_far(
    row: list[float], token: int, temperature: int
) -> None:
    sampling = Sampling(temperature_ppm=temperature, top_k=2)
    found = choices(np.array([row], np.float32), [token], sampling)
    assert found is not None
    assert np.isinf(found.margins[0])
    assert np.isinf(found.claimed[0])


CUT_SAMPLINGS = [
    GREEDY,
    Sampling(temperature_ppm=700_000, seed=4),
    Sampling(temperature_ppm=1_000_000, seed=5, top_k=20),
    Sampling(temperature_ppm=1_000_000, seed=6, top_p_ppm=900_000),
    Sampling(temperature_ppm=500_000, seed=7, top_k=1, top_p_ppm=100_000),
]


@pytest.mark.parametrize("sampling", CUT_SAMPLINGS, ids=str)
@pytest.mark.parametrize("width", [2, 50, 3000])
@pytest.mark.parametrize("scale", [0.01, 0.3, 5.0])
def test_likelihoods_sum_to_one_over_all_outcomes(
    sampling: Sampling, width: int, scale: float
) -> None:
    """Tokens one by one, and each bin once: that is what makes E an e-value."""
    row = (np.random.default_rng(width).normal(size=width) * 2).astype(np.float32)
    total, warm = 0.0, 0.0
    bins: set[tuple[float, int]] = set()
    heat = sampling.temperature_ppm / 1e6 or 1.0
    cut = cutoffs(row, sampling, CUTS[-1:])[0]
    near, _ = contenders(row, sampling, 0, most=MOST, reach=REACH / heat, cut=cut)
    for token in range(width):
        one = choices(row[None], [token], sampling)
        assert one is not None
        if token not in near:
            key = (float(one.claimed[0]), int(one.claimed_levels[0]))
            if key in bins:
                continue
            bins.add(key)
        total += float(likelihoods(one, [scale], HONEST_CUTS)[0, 0])
        if one.claimed_levels[0] < len(CUTS):
            warm += float(warmer(one, 0.3, [scale])[0, 0])
    assert total <= 1 + 1e-6
    assert warm <= 1 + 1e-6
    if width <= MOST and sampling.top_k is None and sampling.top_p_ppm is None:
        assert total > 0.5  # the empty bins have the rest


def test_tokens_beyond_the_nearest_fall_into_bins() -> None:
    row = np.zeros((1, 200), np.float32)
    row[0] = -np.arange(200) / 16.0
    found = choices(row, [150], GREEDY)
    assert found is not None
    edge = (MOST - 1) / 16
    assert found.edges[0] == edge
    assert found.claimed[0] == edge + np.floor(150 / 16 - edge)
    assert found.margins[0] == 150 / 16
    few = choices(np.array([[0.0, -20.0, -30.5]], np.float32), [2], GREEDY)
    assert few is not None
    assert few.edges[0] == REACH
    assert few.claimed[0] == 30.0


def test_what_every_cut_leaves_out_is_nearly_impossible() -> None:
    row = np.array([[5.0, 4.0, 1.0, 0.0]], np.float32)
    sampling = Sampling(temperature_ppm=1_000_000, seed=2, top_k=2)
    inside, outside = choices(row, [0], sampling), choices(row, [3], sampling)
    assert inside is not None
    assert outside is not None
    assert inside.best[0] in (0, 1)
    assert outside.claimed_levels[0] == len(CUTS)
    assert likelihoods(outside, [10.0], HONEST_CUTS)[0, 0] <= HONEST_CUTS[-1]


def test_a_token_just_under_the_cut_is_not_held_against_anyone() -> None:
    """Rounding decides which of two nearly equal logits is the k-th: both readings are honest."""
    row = np.array([[5.0, 3.0, 2.95, -1.0]], np.float32)
    sampling = Sampling(temperature_ppm=1_000_000, top_k=2)
    seeds = [
        seed for seed in range(400) if gumbel(seed, 0, 4)[2] + 2.95 > gumbel(seed, 0, 4)[1] + 3.2
    ]
    wins = [
        seed
        for seed in seeds
        if sample(row[0], sampling.model_copy(update={"seed": seed, "top_k": 3}), 0) == 2
    ]
    assert wins
    for seed in wins[:5]:
        found = choices(row, [2], sampling.model_copy(update={"seed": seed}))
        assert found is not None
        assert found.claimed_levels[0] == 2
        assert likelihoods(found, [0.05], HONEST_CUTS)[0, 0] > 0.015
        assert decide(found, Rounding(scales=(0.05,), weights=(1.0,))).outcome is Outcome.VALID


def noisy(
    scale: float, tokens: int, state: int, sampling: Sampling = GREEDY
) -> tuple[np.ndarray, list[int]]:
    """A verifier's logits, and tokens of a node whose logits differ by normal noise."""
    random = np.random.default_rng(state)
    logits = (random.normal(size=(tokens, 400)) * 2).astype(np.float32)
    other = logits + random.normal(size=logits.shape).astype(np.float32) * np.float32(scale)
    return logits, [sample(row, sampling, t) for t, row in enumerate(other)]


def test_the_fit_finds_the_scale_of_the_noise_and_widens_it() -> None:
    sharp, blunt = (
        [choices(*noisy(scale, 300, s), GREEDY) for s in range(6)] for scale in (0.01, 0.1)
    )
    small = fit([each for each in sharp if each], widen=1.0)
    large = fit([each for each in blunt if each], widen=1.0)

    def mean(rounding: Rounding) -> float:
        return float(np.dot(rounding.scales, rounding.weights))

    assert mean(small) < 0.03 < 0.06 < mean(large) < 0.3
    wide = fit([each for each in sharp if each], widen=2.0)
    assert wide.scales == tuple(round(2 * scale, 6) for scale in small.scales)
    assert wide.weights == small.weights


def test_a_fit_without_any_difference_is_a_rounding_too() -> None:
    found = choices(*noisy(0.0, 100, 1), GREEDY)
    assert found is not None
    rounding = fit([found])
    assert sum(rounding.weights) == pytest.approx(1)
    assert rounding.scales[0] >= SCALES[0]


@given(
    st.lists(
        st.lists(st.floats(-50, 50, width=32), min_size=7, max_size=7), min_size=1, max_size=5
    ),
    st.integers(0, 6),
    st.sampled_from(CUT_SAMPLINGS),
)
def test_likelihoods_are_probabilities(
    rows: list[list[float]], token: int, sampling: Sampling
) -> None:
    found = choices(np.array(rows, np.float32), [token] * len(rows), sampling)
    assert found is not None
    table = likelihoods(found, SCALES, HONEST_CUTS)
    assert table.shape == (len(rows), len(SCALES))
    assert ((table >= 0) & (table <= 1 + 1e-9)).all()
    assert (found.margins >= 0).all()

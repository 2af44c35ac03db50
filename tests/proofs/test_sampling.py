"""The engine-independent sampler: test vectors, independence, and the law it samples from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daifi_flows.cnft import Sampling
from daifi_flows.errors import EncodingError
from daifi_flows.proofs.sampling import contenders, cutoff, cutoffs, gumbel, noised, sample


@pytest.mark.parametrize(
    ("seed", "position", "words"),
    [
        (7, 3, [0x7062734096A622D9, 0x2A689B984DE514C3, 0xFB785222F6FAC48F, 0x76F3A8D69BC1E6D3]),
        (
            2**63 - 1,
            16_383,
            None,
        ),
    ],
)
def test_noise_comes_from_the_stated_philox_words(
    seed: int, position: int, words: list[int] | None
) -> None:
    generator = np.random.Philox(key=[seed, 0], counter=[0, position, 0, 0])
    raw = generator.random_raw(4)
    if words is not None:
        assert raw.tolist() == words
    uniform = ((raw >> 12).astype(np.float64) + 0.5) / 2**52
    assert np.array_equal(gumbel(seed, position, 4), (-np.log(-np.log(uniform))).astype(np.float32))


@pytest.mark.parametrize(
    ("seed", "position", "expected"),
    [
        (7, 3, [0.19449, -0.58658, 4.02554, 0.26597]),
        (2**63 - 1, 16_383, [0.08366, -0.3939, -0.03068, -0.91344]),
    ],
)
def test_vectors(seed: int, position: int, expected: list[float]) -> None:
    assert gumbel(seed, position, 4) == pytest.approx(expected, abs=1e-5)


def test_an_index_has_the_same_noise_whatever_the_vocabulary() -> None:
    assert np.array_equal(gumbel(1, 2, 1000)[:77], gumbel(1, 2, 77))


def test_noise_is_finite_and_differs_between_seeds_and_positions() -> None:
    rows = np.stack([gumbel(seed, t, 5000) for seed in range(4) for t in range(4)])
    assert np.isfinite(rows).all()
    assert len({row.tobytes() for row in rows}) == len(rows)
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.08


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0], np.float32)
    temperature = 0.7
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    sampling = Sampling(temperature_ppm=700_000, seed=3)
    draws = np.bincount([sample(logits, sampling, t) for t in range(6000)], minlength=4) / 6000
    assert draws == pytest.approx(expected, abs=0.02)  # three standard deviations


def test_temperature_zero_is_argmax_without_noise() -> None:
    logits = np.array([0.0, 3.0, 3.0], np.float32)
    greedy = Sampling(seed=1, top_k=1, top_p_ppm=1)
    assert noised(logits, greedy, 1) is logits
    assert sample(logits, greedy, 1) == 1


def by_definition(logits: np.ndarray, sampling: Sampling, position: int) -> np.ndarray:
    """All scores: float32 sums of logits / T and the stated noise."""
    scores = logits / np.float32(sampling.temperature_ppm / 1_000_000)
    scores += gumbel(sampling.seed, position, len(logits))
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    kept = len(order)
    if sampling.top_k is not None:
        kept = min(kept, sampling.top_k)
    if sampling.top_p_ppm not in (None, 1_000_000):  # all of the probability is all tokens
        exponents = logits[order[:kept]].astype(np.float64) * (1e6 / sampling.temperature_ppm)
        shares = np.exp(exponents - exponents[0])
        shares = shares.cumsum() / shares.sum()
        kept = 1 + int(np.searchsorted(shares, sampling.top_p_ppm / 1e6 * (1 - 1e-12)))
    lowest = logits[order[min(kept, len(order)) - 1]]
    return np.where(logits >= lowest, scores, -np.inf)


SAMPLINGS = st.builds(
    Sampling,
    temperature_ppm=st.integers(1, 10_000_000),
    seed=st.integers(0, 2**63 - 1),
    top_k=st.none() | st.integers(1, 60) | st.just(10**9),
    top_p_ppm=st.none() | st.integers(1, 999_999) | st.just(1_000_000),
)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 50, 3000]),
    st.sampled_from([0.0, 0.01, 1.0, 5.0, 1e4]),
    SAMPLINGS,
    st.integers(0, 16_383),
)
def test_what_is_left_out_changes_no_draw(
    state: int, width: int, spread: float, sampling: Sampling, position: int
) -> None:
    logits = (np.random.default_rng(state).normal(size=width) * spread).astype(np.float32)
    expected = by_definition(logits, sampling, position)
    assert sample(logits, sampling, position) == int(expected.argmax())
    scores = noised(logits, sampling, position)
    assert scores.dtype == np.float32
    assert scores.argmax() == expected.argmax()
    assert scores.max() == expected.max()
    for most, reach in ((16, 3.0), (64, 14.0), (1, 0.0), (width, 30.0)):
        ids, found = contenders(logits, sampling, position, most=most, reach=reach)
        near = np.flatnonzero(expected >= expected.max() - np.float32(reach))
        best = np.sort(near[np.argsort(-expected[near], kind="stable")[:most]])
        assert np.array_equal(ids, best)
        assert np.array_equal(found, expected[ids])


@given(st.integers(0, 2**63 - 1), st.floats(-40, 3), st.sampled_from([1, 3, 64, 5000]))
def test_tokens_at_the_edge_of_what_is_left_out_are_found(
    seed: int, depth: float, most: int
) -> None:
    """One likely token, the others so far below that only rare noise lifts one to it."""
    logits = np.full(5000, depth, np.float32)
    logits[seed % 5000] = 0
    sampling = Sampling(temperature_ppm=1_000_000, seed=seed)
    scores = logits + gumbel(seed, 7, 5000)
    for reach in (0.0, 2.5, 12.5, 60.0):
        ids, found = contenders(logits, sampling, 7, most=most, reach=reach)
        near = np.flatnonzero(scores >= scores.max() - np.float32(reach))
        assert np.array_equal(ids, np.sort(near[np.argsort(-scores[near], kind="stable")[:most]]))
        assert np.array_equal(found, scores[ids])


def test_the_largest_word_in_many_wins() -> None:
    logits = np.zeros(500_000, np.float32)
    for seed in range(6):
        sampling = Sampling(temperature_ppm=1_000_000, seed=seed)
        assert sample(logits, sampling, 0) == int(gumbel(seed, 0, len(logits)).argmax())


def test_the_cut_keeps_ties_and_at_least_one() -> None:
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1])).astype(np.float32)
    hot = Sampling(temperature_ppm=1_000_000)

    def kept(**cut: int) -> list[bool]:
        return (logits >= cutoff(logits, hot.model_copy(update=cut))).tolist()

    assert kept() == [True] * 4
    assert kept(top_k=1) == kept(top_p_ppm=1) == kept(top_p_ppm=490_000) == [True] + [False] * 3
    assert kept(top_k=2) == kept(top_k=3) == kept(top_p_ppm=690_000) == [True] * 3 + [False]
    assert kept(top_k=9) == kept(top_p_ppm=1_000_000) == [True] * 4
    # The share is of what top-k kept: 0.5 of 0.9 is over 55 %.
    assert kept(top_k=2, top_p_ppm=550_000) == [True] + [False] * 3
    assert kept(top_p_ppm=550_000) == [True] * 3 + [False]


@given(st.integers(0, 2**32 - 1), SAMPLINGS, st.floats(0.001, 1.0))
def test_the_cut_is_bracketed_under_noise(state: int, sampling: Sampling, slack: float) -> None:
    """Logits moved by at most half the slack keep a set between the two cuts'."""
    random = np.random.default_rng(state)
    logits = (random.normal(size=300) * 3).astype(np.float32)
    moved = logits + random.uniform(-slack / 2, slack / 2, 300).astype(np.float32)
    kept = set(np.flatnonzero(moved >= cutoff(moved, sampling)))
    lower, upper = cutoffs(logits, sampling, (slack, -slack))
    assert kept <= set(np.flatnonzero(logits >= lower - 1e-5))
    assert set(np.flatnonzero(logits > upper + 1e-5)) <= kept


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_unusable_logits_have_no_contenders(fill: float) -> None:
    logits = np.full(9, fill, np.float32)
    for heat in (0, 700_000):
        for cut in ({}, {"top_k": 3}, {"top_p_ppm": 900_000}):
            sampling = Sampling(temperature_ppm=heat, **cut)
            assert not len(contenders(logits, sampling, 0, most=4)[0])
            assert 0 <= sample(logits, sampling, 0) < 9


@pytest.mark.parametrize(
    "fields", [{"top_k": 0}, {"top_k": -1}, {"top_p_ppm": 0}, {"top_p_ppm": 1_000_001}]
)
def test_cuts_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(EncodingError):
        Sampling.from_plain(fields)
    with pytest.raises(ValidationError):
        Sampling(**fields)


def test_absent_cuts_leave_the_canonical_form_as_it_was() -> None:
    assert Sampling(seed=1).plain() == {"temperature_ppm": 0, "seed": 1, "max_tokens": 96}

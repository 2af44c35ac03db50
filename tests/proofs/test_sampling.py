"""The engine-independent sampler: test vectors, independence, and the law it samples from."""

import numpy as np
import pytest

from daifi_flows.proofs.sampling import gumbel, noised, sample


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
    draws = np.bincount([sample(logits, 700_000, 3, t) for t in range(6000)], minlength=4) / 6000
    assert draws == pytest.approx(expected, abs=0.02)  # three standard deviations


def test_temperature_zero_is_argmax_without_noise() -> None:
    logits = np.array([0.0, 3.0, 3.0], np.float32)
    assert noised(logits, 0, 1, 1) is logits
    assert sample(logits, 0, 1, 1) == 1

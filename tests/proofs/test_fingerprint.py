"""TOPLOC fingerprints: exact arithmetic, what rounding may change, and hostile bytes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.errors import EncodingError
from daifi_flows.proofs import _fingerprint as fp
from daifi_flows.proofs._fingerprint import (
    CHUNK_BYTES,
    PRIME,
    TOP,
    check_form,
    chunks_of,
    compare,
    fingerprint,
)

Array = np.ndarray[Any, np.dtype[Any]]


def activations(rows: int, width: int, seed: int = 0) -> Array:
    """Heavy-tailed, as a transformer's are."""
    return np.random.default_rng(seed).standard_t(4, (rows, width)).astype(np.float32)


def evaluate(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


@pytest.mark.parametrize("shape", [(32, 576), (5, 64), (70, 128), (33, 4096)])
def test_the_polynomial_passes_through_the_largest_activations(shape: tuple[int, int]) -> None:
    """Checked with Python integers, against a plain sort."""
    given = activations(*shape)
    made = fingerprint(given)
    assert len(made) == CHUNK_BYTES * chunks_of(shape[0])
    for chunk in range(chunks_of(shape[0])):
        words = np.frombuffer(made, "<u2").reshape(-1, 1 + TOP)[chunk].tolist()
        modulus, coefficients = words[0], words[1:]
        bits = fp.bfloat16_bits(given[32 * chunk : 32 * chunk + 32]).reshape(-1)
        largest = np.argsort(-(bits & 0x7FFF).astype(np.int64), kind="stable")[:TOP]
        assert len({int(index) % modulus for index in largest}) == TOP
        for index in largest.tolist():
            assert evaluate(coefficients, index % modulus) == bits[index]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 100), width=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_the_same_activations_have_no_error(rows: int, width: int, seed: int) -> None:
    given = activations(rows, width, seed)
    found = compare(fingerprint(given), given)
    assert (found.matches == found.compared).all()
    assert not found.mean.any()
    assert not found.median.any()


def test_a_short_chunk_is_compared_at_four_values_a_row() -> None:
    given = activations(37, 576)
    assert compare(fingerprint(given), given).compared.tolist() == [128, 20]


def test_rounding_stays_small_and_other_activations_do_not() -> None:
    given = activations(64, 576)
    noise = np.random.default_rng(1).normal(0, 2**-9, given.shape)
    found = compare(fingerprint(given), (given * (1 + noise)).astype(np.float32))
    assert found.matches.min() >= 110
    assert found.mean.max() < 2
    other = compare(fingerprint(given), activations(64, 576, seed=2))
    assert other.matches.max() < 40


def test_a_sign_counts() -> None:
    given = activations(32, 64)
    assert compare(fingerprint(given), -given).matches.tolist() == [0]


def test_many_chunks_are_as_each_alone() -> None:
    given = activations(32 * 40 + 7, 64)
    made = fingerprint(given)
    alone = [fingerprint(given[start : start + 32]) for start in range(0, len(given), 32)]
    assert made == b"".join(alone)
    noisy = (given * 1.01).astype(np.float32)
    found = compare(made, noisy)
    each = [
        compare(bytes_, noisy[32 * index : 32 * index + 32]) for index, bytes_ in enumerate(alone)
    ]
    for name in ("compared", "matches", "mean", "median"):
        expected = np.concatenate([getattr(one, name) for one in each])
        np.testing.assert_array_equal(getattr(found, name), expected)


def test_indices_that_collide_get_another_modulus() -> None:
    given = np.full((32, 4096), 0.001, np.float32)
    flat = given.reshape(-1)
    flat[:64] = np.linspace(1, 2, 64)
    flat[PRIME : PRIME + 64] = np.linspace(2, 3, 64)  # the same indices modulo the prime
    made = fingerprint(given)
    modulus = int.from_bytes(made[:2], "little")
    # 65497 down to 65434 map an index of one group onto the other: 64 + 63 offsets collide.
    assert modulus == PRIME - 64
    assert compare(made, given).mean.tolist() == [0]


def test_ties_go_to_the_lower_index() -> None:
    made = fingerprint(np.ones((32, 64), np.float32))
    coefficients = np.frombuffer(made, "<u2")[1:].tolist()
    assert [evaluate(coefficients, index) for index in range(TOP)] == [0x3F80] * TOP
    assert coefficients == [0x3F80] + [0] * (TOP - 1)


def test_bfloat16_is_torchs() -> None:
    import torch

    words = np.random.default_rng(3).integers(0, 0x7F7F8000, 200_000, np.uint32)
    words[::2] |= 0x80000000
    words[:1000] &= 0xFFFF0000
    words[1000:2000] = words[1000:2000] & 0xFFFF0000 | 0x8000  # ties
    values = words.view(np.float32)
    theirs = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy()
    np.testing.assert_array_equal(fp.bfloat16_bits(values), theirs.view(np.uint16))


BAD = {
    "NaN": np.nan,
    "infinity": np.inf,
    "minus infinity": -np.inf,
    "beyond bfloat16": float(np.finfo(np.float32).max),
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_activations_that_are_not_finite_are_refused(value: float) -> None:
    given = activations(40, 64)
    made = fingerprint(given)
    given[39, 63] = value
    with pytest.raises(EncodingError, match="finite"):
        fingerprint(given)
    with pytest.raises(EncodingError, match="finite"):
        compare(made, given)


def test_the_largest_finite_activation_is_kept() -> None:
    given = activations(32, 64)
    given[0, 0] = np.uint32(0xFF7F0000).view(np.float32)  # the negative one: 0xff7f < 65497
    assert compare(fingerprint(given), given).matches.tolist() == [TOP]


@pytest.mark.parametrize("shape", [(0, 64), (32, 0), (32,), (2, 4, 8)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EncodingError):
        fingerprint(np.zeros(shape, np.float32))
    with pytest.raises(EncodingError):
        compare(bytes(CHUNK_BYTES), np.zeros(shape, np.float32))


def words(modulus: int, *coefficients: int) -> bytes:
    filled = [modulus, *coefficients, *[0] * (TOP - len(coefficients))]
    return np.array(filled, "<u2").tobytes()


HOSTILE = {
    "empty": b"",
    "a byte short": words(PRIME)[:-1],
    "a byte long": words(PRIME) + b"\0",
    "two chunks for one": words(PRIME) * 2,
    "all zeros": bytes(CHUNK_BYTES),
    "all ones": b"\xff" * CHUNK_BYTES,
    "modulus 1": words(1),
    "modulus 127": words(TOP - 1),
    "modulus over the prime": words(PRIME + 1),
    "a coefficient that is the prime": words(PRIME, 0, 0, PRIME),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        check_form(data, 32)
    with pytest.raises(EncodingError):
        compare(data, activations(32, 64))


@settings(max_examples=200, deadline=None)
@given(
    modulus=st.integers(TOP, PRIME),
    coefficients=st.lists(st.integers(0, PRIME - 1), max_size=TOP),
)
def test_any_well_formed_bytes_compare(modulus: int, coefficients: list[int]) -> None:
    own = activations(32, 64)
    found = compare(words(modulus, *coefficients), own)
    assert 0 <= found.matches[0] <= TOP == found.compared[0]
    assert 0 <= found.median[0] <= 128
    assert 0 <= found.mean[0] <= 128


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=2 * CHUNK_BYTES), rows=st.integers(1, 64))
def test_any_bytes_are_refused_or_compare(data: bytes, rows: int) -> None:
    try:
        compare(data, activations(rows, 64))
    except EncodingError:
        return
    assert len(data) == CHUNK_BYTES * chunks_of(rows)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_polynomials_through_any_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.stack([rng.choice(PRIME, TOP, replace=False) for _ in range(3)])
    values = rng.integers(0, PRIME, points.shape)
    coefficients = fp._interpolate(points.astype(np.float64), values.astype(np.float64))
    found = fp._evaluate(points.astype(np.float64), coefficients.astype(np.float64))
    np.testing.assert_array_equal(found, values)

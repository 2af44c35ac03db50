"""TOPLOC fingerprints (arXiv 2501.16007): 258 bytes that pin down the largest activations of 32
tokens, and how far two sets of activations are apart.

A chunk is 32 rows of last hidden states, flattened to ``[32 × width]`` and rounded to bfloat16. Its
128 values of largest magnitude are points of a polynomial over GF(65497): index modulo an injective
modulus, bit pattern of the value. Whoever has activations of their own evaluates the polynomial at
their own top-128 indices and compares bit patterns (paper, algorithms 1 and 2).

The paper leaves three things open, which are set here:

- Bit patterns of 65497 and more do not fit the field. They are all negative NaNs (0xFFD9 and up),
  so that every finite value is kept without loss; activations that are not finite are refused.
- The modulus is the largest m ≤ 65497 under which the 128 indices stay distinct: residues are then
  distinct field elements too. For 32 × width ≤ 65497 it is always 65497.
- A last chunk of fewer rows is filled up with rows of zeros. A verifier compares it at its own 4
  largest values a row: with 128 of fewer rows it would look at smaller activations, which rounding
  moves further. Ties of magnitude go to the lower index.

Arithmetic is on float64 arrays of integers below 2⁵⁰, where products and sums are exact, so that
matrix multiplication does the work: interpolation is three of them instead of 128² steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from daifi_flows.errors import EncodingError

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_ROWS",
    "NO_MATCH",
    "PRIME",
    "TOP",
    "ChunkErrors",
    "check_form",
    "chunks_of",
    "compare",
    "fingerprint",
]

PRIME: Final = 65497
"""Order of the field (paper, section 4): the modulus that stays injective most often among the
primes whose elements fit two bytes."""
CHUNK_ROWS: Final = 32
TOP: Final = 128
CHUNK_BYTES: Final = 2 + 2 * TOP
"""Modulus, then the coefficients from the constant term up, all unsigned 16-bit little-endian."""
NO_MATCH: Final = 128.0
"""Mean and median of a chunk in which no exponent matches: beyond any difference of mantissas."""

_BLOCK: Final = 16
"""Chunks computed together: 2 MiB of powers."""
_GENERATOR: Final = 7
"""A primitive root modulo 65497: its powers are all elements but zero."""


@dataclass(frozen=True)
class ChunkErrors:
    """How far a verifier's activations are from the fingerprint, one entry a chunk.

    Attributes:
        compared: values compared: 128, in a last chunk of fewer rows 4 a row.
        matches: how many of them have the fingerprint's sign and exponent.
        mean: mean difference of the mantissas where those match, in units of the last place of
            bfloat16 (0 to 127).
        median: their median.
    """

    compared: NDArray[np.int64]
    matches: NDArray[np.int64]
    mean: NDArray[np.float64]
    median: NDArray[np.float64]


def chunks_of(rows: int) -> int:
    """How many fingerprints ``rows`` rows have."""
    return -(-rows // CHUNK_ROWS)


def fingerprint(activations: NDArray[np.float32]) -> bytes:
    """Fingerprints of ``activations`` ``[rows, width]``, 258 bytes for every 32 rows begun.

    Raises:
        EncodingError: not a matrix of at least one finite value.
    """
    made: list[bytes] = []
    for bits, _ in _blocks(activations):
        indices, values = _largest(bits)
        moduli = [_injective_modulus(row) for row in indices]
        points = indices % np.array(moduli)[:, None]
        coefficients = _interpolate(points.astype(np.float64), values.astype(np.float64))
        packed = np.empty((len(bits), 1 + TOP), "<u2")
        packed[:, 0] = moduli
        packed[:, 1:] = coefficients
        made.append(packed.tobytes())
    return b"".join(made)


def check_form(data: bytes, rows: int) -> None:
    """Whether ``data`` can be fingerprints of ``rows`` rows.

    Raises:
        EncodingError: another length, a modulus below 128 or above 65497, or a coefficient that is
            no field element.
    """
    _parse(data, rows)


def compare(data: bytes, activations: NDArray[np.float32]) -> ChunkErrors:
    """The fingerprints ``data`` against a verifier's own ``activations`` ``[rows, width]``.

    Raises:
        EncodingError: see :func:`check_form`, and :func:`fingerprint` for the activations.
    """
    rows = activations.shape[0] if activations.ndim == 2 else 0
    moduli, coefficients = _parse(data, rows)
    compared, matches = np.zeros(len(moduli), np.int64), np.zeros(len(moduli), np.int64)
    mean, median = np.full(len(moduli), NO_MATCH), np.full(len(moduli), NO_MATCH)
    start = 0
    for bits, full in _blocks(activations):
        here = slice(start, start + len(bits))
        start += len(bits)
        indices, own = _largest(bits)
        points = indices % moduli[here, None]
        claimed = _evaluate(points.astype(np.float64), coefficients[here])
        counted = _counted(own, full)
        same = counted & (claimed >> 7 == own >> 7)
        apart = np.where(same, np.abs(claimed - own), 0)
        compared[here], matches[here] = counted.sum(1), same.sum(1)
        some = np.flatnonzero(matches[here])
        mean[here][some] = apart[some].sum(1) / matches[here][some]
        for index in some:
            median[here][index] = np.median(apart[index][same[index]])
    return ChunkErrors(compared, matches, mean, median)


def _counted(own: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the 128 values of each chunk are compared."""
    counted = np.ones(own.shape, np.bool_)
    for chunk in np.flatnonzero(rows < CHUNK_ROWS):
        order = np.argsort(-(own[chunk] & 0x7FFF), kind="stable")
        counted[chunk, order[TOP // CHUNK_ROWS * rows[chunk] :]] = False
    return counted


def _parse(data: bytes, rows: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Moduli ``[chunks]`` and coefficients ``[chunks, 128]``."""
    count = chunks_of(rows)
    if len(data) != count * CHUNK_BYTES:
        raise EncodingError(
            f"{len(data)} bytes are not the fingerprints of {rows} tokens, which have "
            f"{count * CHUNK_BYTES}"
        )
    packed = np.frombuffer(data, "<u2").reshape(count, 1 + TOP)
    moduli, coefficients = packed[:, 0].astype(np.int64), packed[:, 1:]
    if count and not (moduli.min() >= TOP and packed.max() <= PRIME and coefficients.max() < PRIME):
        raise EncodingError("a modulus or coefficient is out of range")
    return moduli, coefficients.astype(np.float64)


def _blocks(
    activations: NDArray[np.float32],
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.int64]]]:
    """Bit patterns ``[chunks, values]`` of some chunks at a time, and how many rows each has."""
    if activations.ndim != 2 or 0 in activations.shape:
        raise EncodingError(f"activations of shape {activations.shape} are not rows of values")
    width = activations.shape[1]
    size = max(CHUNK_ROWS * width, TOP)
    for start in range(0, activations.shape[0], _BLOCK * CHUNK_ROWS):
        rows = activations[start : start + _BLOCK * CHUNK_ROWS]
        found = bfloat16_bits(rows)
        bits = np.zeros((chunks_of(len(rows)), size), np.uint16)
        whole = len(rows) // CHUNK_ROWS
        bits[:whole, : CHUNK_ROWS * width] = found[: whole * CHUNK_ROWS].reshape(
            whole, CHUNK_ROWS * width
        )
        count = np.full(len(bits), CHUNK_ROWS)
        if whole < len(bits):
            rest = found[whole * CHUNK_ROWS :].reshape(-1)
            bits[whole, : len(rest)] = rest
            count[whole] = len(rows) - whole * CHUNK_ROWS
        yield bits, count


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of ``values`` rounded to bfloat16, to nearest, ties to even.

    Raises:
        EncodingError: a value is not finite, or too large for bfloat16.

    >>> [hex(x) for x in bfloat16_bits(np.array([1.0, -2.0, 1.00390625, 1.01171875], np.float32))]
    ['0x3f80', '0xc000', '0x3f80', '0x3f82']
    """
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    largest = (words & np.uint32(0x7FFFFFFF)).max(initial=0)
    if largest >= 0x7F7F8000:  # the first that rounds to infinity
        raise EncodingError("an activation is not finite")
    odd = (words >> np.uint32(16)) & np.uint32(1)
    return ((words + (odd + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)


def _largest(bits: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the 128 largest magnitudes of each row of ``bits``, ascending, and their bits."""
    magnitudes = bits & np.uint16(0x7FFF)
    indices = np.empty((len(bits), TOP), np.int64)
    cut = bits.shape[1] // TOP * TOP
    # At least 128 values reach the least of 128 blocks' maxima: few others have to be looked at.
    floors = magnitudes[:, :cut].reshape(len(bits), TOP, -1).max(2).min(1)
    for row, (values, floor) in enumerate(zip(magnitudes, floors, strict=True)):
        candidates = np.flatnonzero(values >= floor)
        found = values[candidates]
        last = np.partition(found, len(found) - TOP)[len(found) - TOP]
        above = candidates[found > last]
        ties = candidates[found == last][: TOP - len(above)]
        indices[row] = np.sort(np.concatenate((above, ties)))
    return indices, np.take_along_axis(bits, indices, 1).astype(np.int64)


def _injective_modulus(indices: NDArray[np.int64]) -> int:
    """The largest m ≤ 65497 under which the (distinct, ascending) indices stay distinct."""
    if indices[-1] < PRIME:
        return PRIME
    for modulus in range(PRIME, TOP, -1):
        residues = np.sort(indices % modulus)
        if np.all(residues[1:] != residues[:-1]):
            return modulus
    raise EncodingError("no modulus keeps the indices of these activations distinct")


# Arithmetic modulo 65497 on float64 arrays


def _mod(values: Any) -> NDArray[np.float64]:
    """Integers of magnitude below 2⁵⁰ modulo 65497, in 0 … 65497 (both ends mean zero).

    The quotient's rounding error is below 2⁻¹⁸ < 1/65497, so that its floor can be wrong only for
    multiples of the prime, one too low.
    """
    return values - np.floor(values * (1.0 / PRIME)) * PRIME


def _canonical(values: NDArray[np.float64]) -> NDArray[np.int64]:
    whole = _mod(values).astype(np.int64)
    whole[whole == PRIME] = 0
    return whole


def _powers(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[chunks, 128, 128]``: power k of point i at ``[:, k, i]``, by doubling."""
    powers = np.empty((len(points), TOP, TOP))
    powers[:, 0] = 1.0
    step, filled = points, 1
    while filled < TOP:
        powers[:, filled : 2 * filled] = _mod(powers[:, :filled] * step[:, None, :])
        step = _mod(step * step)
        filled *= 2
    return powers


def _evaluate(points: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.int64]:
    """Values of the polynomials ``[chunks, 128]`` at ``points`` ``[chunks, 128]``."""
    return _canonical((coefficients[:, None, :] @ _powers(points))[:, 0])


def _interpolate(points: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Coefficients ``[chunks, 128]`` of the polynomials through the given points.

    Lagrange's formula, with M(x) = Π (x − xᵢ) and wᵢ = yᵢ / M′(xᵢ): dividing M by x − xᵢ gives
    coefficient k as Σ_{j>k} Mⱼ xᵢ^{j−k−1}, so that the sum over i needs only the 128 sums
    Sₜ = Σ wᵢ xᵢᵗ, and coefficient k is Σ_{j>k} Mⱼ S_{j−k−1}.
    """
    powers = _powers(points)
    master = _master(points)
    slopes = _mod(master[:, 1:] * np.arange(1, TOP + 1))
    derivative = _canonical((slopes[:, None, :] @ powers)[:, 0])
    weights = _mod(values * _inverses()[derivative])
    sums = _mod((powers @ weights[:, :, None])[:, :, 0])
    # Row k: the coefficients above k of M, then zeros.
    padded = np.concatenate((master[:, 1:], np.zeros((len(master), TOP - 1))), 1)
    return _canonical((sliding_window_view(padded, TOP, axis=1) @ sums[:, :, None])[:, :, 0])


def _master(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients ``[chunks, 129]`` of Π (x − xᵢ), by multiplying neighbours in pairs.

    A factor of degree d is kept without its leading 1: (xᵈ + a)(xᵈ + b) = x²ᵈ + (a+b)xᵈ + ab.
    """
    parts = (PRIME - points)[:, :, None]
    while parts.shape[1] > 1:
        left, right = parts[:, ::2], parts[:, 1::2]
        degree = parts.shape[2]
        padded = np.zeros((*left.shape[:2], 3 * degree - 2))
        padded[..., degree - 1 : 2 * degree - 1] = left
        products = sliding_window_view(padded, degree, axis=2) @ right[..., ::-1, None]
        merged = np.zeros((*left.shape[:2], 2 * degree))
        merged[..., : 2 * degree - 1] = products[..., 0]
        merged[..., degree:] += left + right
        parts = _mod(merged)
    return np.concatenate((parts[:, 0], np.ones((len(points), 1))), 1)


@cache
def _inverses() -> NDArray[np.float64]:
    """Multiplicative inverses of 0 … 65496; zero for zero."""
    powers = np.ones(PRIME - 1, np.int64)
    filled = 1
    while filled < PRIME - 1:
        more = min(filled, PRIME - 1 - filled)
        powers[filled : filled + more] = powers[:more] * pow(_GENERATOR, filled, PRIME) % PRIME
        filled += more
    inverses = np.zeros(PRIME)
    inverses[powers] = np.roll(powers[::-1], 1)
    return inverses

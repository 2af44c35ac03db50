"""Scalars and points of BLS12-381: the arithmetic of secret sharing.

Not constant in time (Python's integers are not either): a machine that deals or holds shares must
not be shared with whoever can measure it that finely.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import lcm, prod
from typing import Any, Final

from daifi_flows.encoding import keccak256
from daifi_flows.errors import KeyMaterialError

__all__ = ["ORDER", "evaluate", "hash_to_scalar", "lagrange", "multiply", "parse_point"]

ORDER: Final = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
"""Order of G1 and G2 (BLS12-381, draft-irtf-cfrg-pairing-friendly-curves)."""


def hash_to_scalar(seed: bytes) -> int:
    """Uniform to within 2^-257: 64 bytes of hash, reduced (RFC 9380, section 5.1)."""
    return int.from_bytes(keccak256(seed + b"\x00") + keccak256(seed + b"\x01"), "big") % ORDER


def evaluate(coefficients: Sequence[int], x: int) -> int:
    """Σ coefficientₖ·xᵏ modulo :data:`ORDER` (Horner)."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % ORDER
    return value


@lru_cache(maxsize=1024)
def lagrange(xs: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Numerators and common denominator of the Lagrange coefficients at 0 for these points."""
    tops = [prod(other for other in xs if other != x) for x in xs]
    bottoms = [prod(other - x for other in xs if other != x) for x in xs]
    common = lcm(*bottoms)
    return tuple(top * common // bottom for top, bottom in zip(tops, bottoms, strict=True)), common


def multiply(points: Iterable[Any], scalars: Iterable[int], zero: Any) -> Any:
    """Σ scalarᵢ·pointᵢ, the doublings shared (Straus). Not constant in time: no secrets here."""
    pairs = [
        (point if scalar > 0 else point.negate(), abs(scalar))
        for point, scalar in zip(points, scalars, strict=True)
    ]
    total = zero
    for bit in range(max(scalar.bit_length() for _, scalar in pairs) - 1, -1, -1):
        total = total + total
        for point, scalar in pairs:
            if scalar >> bit & 1:
                total = total + point
    return total


def parse_point(kind: Any, data: bytes, size: int) -> Any:
    """A point of the prime-order group, from its compressed form.

    Raises:
        KeyMaterialError: anything else, and the point at infinity.
    """
    if len(data) != size:
        raise KeyMaterialError(f"not a compressed point of {size} bytes")
    try:
        point = kind.from_bytes(data)
    except (ValueError, RuntimeError) as error:
        raise KeyMaterialError("not a point of its BLS12-381 group") from error
    if point == kind():
        raise KeyMaterialError("the point at infinity is neither a key nor a share")
    return point

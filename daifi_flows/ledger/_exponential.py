"""e^(−x) and 2^(−x) in integers: the same bits on every machine, never above the exact value.

Values are fixed point: :data:`ONE` stands for 1. Range reduction by ln 2 and a Taylor series with
256 fractional bits (Brent and Zimmermann, Modern Computer Arithmetic, section 4.3), of which 128
are returned.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

__all__ = ["ONE", "half_power", "negative_exp"]

_BITS: Final = 128
ONE: Final = 1 << _BITS
"""1 in fixed point."""
_WORK: Final = 256
"""Fractional bits that are worked with."""
_SLACK: Final = 256
"""Bound on how far the working value can be over the exact one, in units of 2^−256: under 70
truncated terms and one truncated argument."""
_SMALLEST: Final = _BITS + 1
"""2^−129 and less is 0 in 128 bits."""


def _atanh_inverse(n: int, bits: int) -> int:
    """atanh(1/n) with ``bits`` fractional bits: Σ 1/((2k+1)·n^(2k+1))."""
    power, total, k = (1 << bits) // n, 0, 1
    while power:
        total += power // k
        power //= n * n
        k += 2
    return total


def _ln2() -> int:
    """ln 2 = 18·atanh(1/26) − 2·atanh(1/4801) + 8·atanh(1/8749), rounded down to 256 bits."""
    bits = _WORK + 64
    parts = 18 * _atanh_inverse(26, bits) - 2 * _atanh_inverse(4801, bits)
    return (parts + 8 * _atanh_inverse(8749, bits)) >> 64


_LN2: Final = _ln2()


def _scaled(rest: int, halvings: int) -> int:
    """2^−halvings · e^−rest for a ``rest`` of at most ln 2 in 256 fractional bits."""
    term = total = 1 << _WORK
    sign, n = -1, 1
    while term := (term * rest >> _WORK) // n:
        total += sign * term
        sign, n = -sign, n + 1
    return (total - _SLACK) >> (_WORK - _BITS + halvings)


def negative_exp(numerator: int, denominator: int) -> int:
    """e^−(numerator/denominator), times :data:`ONE`, rounded down.

    At most the exact value and less than 1 + 2^−100 units (of 2^−128) under it; exactly ``ONE``
    at 0; never rises when ``numerator`` rises (for one denominator under 2^80).

    Raises:
        ValueError: a negative numerator, or a denominator that is not positive.
    """
    if numerator < 0 or denominator <= 0:
        raise ValueError("the exponent is a fraction of a natural and a positive number")
    if numerator == 0:
        return ONE
    if numerator >= _SMALLEST * denominator:
        return 0
    halvings, rest = divmod((numerator << _WORK) // denominator, _LN2)
    return _scaled(rest, halvings) if halvings < _SMALLEST else 0


@lru_cache(maxsize=1024)  # all seats of a committee are looked at together
def half_power(elapsed: int, half_life: int) -> int:
    """2^−(elapsed/half_life), times :data:`ONE`, rounded down; exact at whole half-lives.

    Same bounds as :func:`negative_exp`; ``half_life`` is under 2^80, both in one unit.

    Raises:
        ValueError: a negative time, or a half-life that is not positive.
    """
    if elapsed < 0 or half_life <= 0:
        raise ValueError("time does not run backwards and a half-life is positive")
    halvings, part = divmod(elapsed, half_life)
    if halvings >= _SMALLEST:
        return 0
    if part == 0:
        return ONE >> halvings
    return _scaled(_LN2 * part // half_life, halvings)

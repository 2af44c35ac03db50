"""Field elements, fixed point and Poseidon, as the circuits compute them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.errors import EncodingError, ProofError

__all__ = ["FIELD", "dequantise", "poseidon", "quantise", "signed", "to_hex", "unsigned"]

FIELD: Final = 0x30644E72E131A029B85045B68181585D2833E84879B9709143E1F593F0000001
"""Order of BN254's scalar field."""
_MAX_HASHED: Final = 1 << 20


def unsigned(value: int) -> int:
    """The field element of a signed integer."""
    return value % FIELD


def signed(element: int) -> int:
    """The integer nearest zero that a field element stands for."""
    return element if element <= FIELD // 2 else element - FIELD


def to_hex(element: int) -> str:
    """ezkl's spelling: 32 bytes little-endian, in hex."""
    return unsigned(element).to_bytes(32, "little").hex()


def quantise(values: Any, scale: int) -> NDArray[np.int64]:
    """Nearest multiples of 2^-scale as integers, halves away from zero (Rust's ``round``, which
    ezkl uses); keeps the shape.

    Raises:
        EncodingError: not numbers, not finite, or beyond ±2^40 once scaled.
    """
    try:
        scaled = np.asarray(values, np.float64) * 2.0**scale
    except (TypeError, ValueError) as error:
        raise EncodingError(f"these are not numbers: {error}") from error
    magnitude = np.abs(scaled)
    if not bool(np.all(magnitude <= 2.0**40)):  # also false for NaN
        raise EncodingError("a value is not finite, or too large for a circuit")
    return (np.sign(scaled) * np.floor(magnitude + 0.5)).astype(np.int64)


def dequantise(values: Iterable[int], scale: int) -> NDArray[np.float64]:
    """What integers at this scale stand for."""
    return np.array([value * 2.0**-scale for value in values], np.float64)


def poseidon(values: Sequence[int]) -> bytes:
    """Poseidon hash (BN254, width 2, rate 1, variable length; ezkl's) of signed integers.

    32 bytes little-endian: what a circuit with ``hashed`` inputs shows of each input tensor, and of
    all weights. It is not salted: whoever can guess the values can check the guess.

    >>> poseidon([1, 2, 3]).hex()[:16]
    '59528b9f494e1db7'

    Raises:
        EncodingError: no values, or too many.
        ProofError: ezkl failed.
    """
    if not 1 <= len(values) <= _MAX_HASHED:
        raise EncodingError(f"Poseidon takes 1 to {_MAX_HASHED} values, not {len(values)}")
    import ezkl

    try:
        (digest,) = ezkl.poseidon_hash([to_hex(value) for value in values])
    except BaseException as error:  # PyO3 turns Rust panics into BaseException
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ProofError(f"ezkl cannot hash: {error}") from error
    return bytes.fromhex(digest)

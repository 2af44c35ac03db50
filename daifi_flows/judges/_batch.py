"""Many BLS signatures over different messages, checked at once.

A random linear combination (Bellare, Garay & Rabin, EUROCRYPT 1998): with coefficients drawn after
the signatures, Σ rᵢ·σᵢ is the aggregate of the keys rᵢ·pkᵢ over their messages, and wrong
signatures cancel each other with probability 2^-96. One pairing a message and one more, instead of
two a message. Without the coefficients two seats could send signatures that only hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from blspy import G1Element, G2Element, PopSchemeMPL

from daifi_flows._curve import multiply, parse_point
from daifi_flows.encoding import keccak256
from daifi_flows.errors import KeyMaterialError
from daifi_flows.keys import verify_bls

__all__ = ["Signed", "all_signed", "together_signed"]

Signed = tuple[bytes, bytes, bytes]
"""Public key (possession checked), message, signature."""

_BYTES: Final = 12
"""Of a coefficient."""


def all_signed(items: Sequence[Signed]) -> bool:
    """Whether every signature is its key's over its message. Malformed input is simply false."""
    if len(items) <= 2:
        return all(verify_bls(*item) for item in items)
    return _batch(tuple(sorted(items)))


def together_signed(items: Sequence[tuple[bytes, bytes]], signature: bytes) -> bool:
    """Whether an aggregate is of these keys (possession checked) over these messages.

    It says that all of them together were signed, not that there is a signature of each by itself.
    """
    return bool(items) and _together(tuple(items), signature)


@lru_cache(maxsize=64)  # who opens votes against a set of commits signs their tally a moment later
def _together(items: tuple[tuple[bytes, bytes], ...], signature: bytes) -> bool:
    try:
        keys = [_public(public) for public, _ in items]
        whole = parse_point(G2Element, signature, 96)
    except KeyMaterialError:
        return False
    return bool(PopSchemeMPL.aggregate_verify(keys, [message for _, message in items], whole))


@lru_cache(maxsize=64)
def _batch(items: tuple[Signed, ...]) -> bool:
    root = keccak256(b"".join(keccak256(part) for item in items for part in item))
    try:
        publics = [_public(public) for public, _, _ in items]
        signatures = [parse_point(G2Element, signature, 96) for _, _, signature in items]
    except KeyMaterialError:
        return False
    scalars = [
        int.from_bytes(keccak256(root + number.to_bytes(4, "big"))[:_BYTES], "big")
        for number in range(len(items))
    ]
    keys = [multiply([key], [r], G1Element()) for key, r in zip(publics, scalars, strict=True)]
    total = multiply(signatures, scalars, G2Element())
    messages = [message for _, message, _ in items]
    return bool(PopSchemeMPL.aggregate_verify(keys, messages, total))


@lru_cache(maxsize=1024)
def _public(data: bytes) -> Any:
    return parse_point(G1Element, data, 48)

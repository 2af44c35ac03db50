"""Threshold BLS signatures: any ``t`` of ``n`` holders make the group's one signature.

The group's secret is the value at 0 of a polynomial of degree t − 1 over the scalar field of
BLS12-381, and holder i has its value at i + 1 (Shamir, 1979). A share of a signature is a plain
BLS signature under that value; Lagrange interpolation in G2 turns any t shares into the signature
under the group's key (Boldyreva, PKC 2003). It is unique: whoever combines whichever shares gets
the same bytes, which is what makes it a beacon (as in drand).

:func:`deal` is a trusted dealer: who runs it knows every secret, and must forget them. Everything
else needs only the group's key and the holders' public shares, wherever those came from:
:mod:`daifi_flows.dkg` makes them without a dealer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import prod
from typing import Final

from blspy import G1Element, G2Element

from daifi_flows._curve import ORDER, evaluate, hash_to_scalar, lagrange, multiply, parse_point
from daifi_flows.encoding import keccak256
from daifi_flows.errors import KeyMaterialError
from daifi_flows.keys import BlsKey, verify_bls

__all__ = ["MAX_HOLDERS", "Dealing", "combine_shares", "deal", "recover_signature", "shares_sound"]

MAX_HOLDERS: Final = 255
"""Most holders of one group: more than any committee has."""


@dataclass(frozen=True)
class Dealing:
    """What a dealer hands out: one secret a holder, and what everybody may know."""

    group_key: bytes
    """Compressed G1 point, 48 bytes: signatures of the group verify under it."""
    shares: tuple[bytes, ...]
    """Each holder's public share, 48 bytes."""
    secrets: tuple[BlsKey, ...]
    """Each holder's own; ``secrets[i].sign(message)`` is holder i's share of a signature."""


def deal(seed: bytes, n: int, t: int) -> Dealing:
    """Share a new group secret among ``n`` holders, ``t`` of whom can sign. Trusted dealer.

    The same seed gives the same dealing: keep the seed as safe as the keys, or forget it.

    Raises:
        KeyMaterialError: not 1 ≤ t ≤ n ≤ 255, or a seed of fewer than 32 bytes.

    >>> dealing = deal(bytes(32), 4, 3)
    >>> shares = {i: dealing.secrets[i].sign(b"m") for i in (0, 1, 3)}
    >>> verify_bls(dealing.group_key, b"m", combine_shares(shares))
    True
    """
    if not 1 <= t <= n <= MAX_HOLDERS:
        raise KeyMaterialError(f"{t} of {n} holders cannot share a key: choose 1 ≤ t ≤ n ≤ 255")
    if len(seed) < 32:
        raise KeyMaterialError("a dealer's seed has at least 32 bytes of randomness")
    for attempt in count():
        root = keccak256(b"daifi/deal/1" + attempt.to_bytes(4, "big") + seed)
        coefficients = [hash_to_scalar(root + power.to_bytes(2, "big")) for power in range(t)]
        values = [evaluate(coefficients, x) for x in range(n + 1)]
        if all(values):  # a zero is no key; it comes about once in 2^247 dealings
            keys = [BlsKey(value.to_bytes(32, "big")) for value in values]
            return Dealing(keys[0].public, tuple(k.public for k in keys[1:]), tuple(keys[1:]))
    raise AssertionError("unreachable")


def combine_shares(shares: Mapping[int, bytes]) -> bytes:
    """The group's signature from the shares of exactly t holders, by index (0, 1, …).

    The shares are not checked: verify the result under the group's key, or use
    :func:`recover_signature`.

    Raises:
        KeyMaterialError: none given, an index no group has, or a share that is no point of G2.
    """
    if not shares or any(not 0 <= index < MAX_HOLDERS for index in shares):
        raise KeyMaterialError("shares are combined by their holders' indices, 0 to 254")
    points = [parse_point(G2Element, data, 96) for data in shares.values()]
    numerators, denominator = lagrange(tuple(index + 1 for index in shares))
    # The numerators are small integers: one long multiplication instead of one a share.
    scaled = multiply(points, numerators, G2Element())
    return bytes(multiply([scaled], [pow(denominator, -1, ORDER)], G2Element()))


def recover_signature(
    group_key: bytes,
    publics: Sequence[bytes],
    threshold: int,
    message: bytes,
    shares: Mapping[int, bytes],
) -> bytes:
    """The group's signature over ``message`` from shares of which some may be wrong.

    One pairing check when all are right; one a share more when the result does not verify.

    Args:
        publics: public share of every holder.
        shares: by holder's index; those of strangers are left out.

    Raises:
        KeyMaterialError: fewer than ``threshold`` of them are valid.
    """
    known = {index: share for index, share in sorted(shares.items()) if 0 <= index < len(publics)}
    if len(known) >= threshold:
        try:
            signature = combine_shares(_first(known, threshold))
        except KeyMaterialError:  # one is malformed; below each is checked alone
            signature = b""
        if verify_bls(group_key, message, signature):
            return signature
    good = {
        index: share for index, share in known.items() if verify_bls(publics[index], message, share)
    }
    if len(good) < threshold:
        raise KeyMaterialError(
            f"{len(good)} valid signature shares, {threshold} are needed: ask more holders"
        )
    return combine_shares(_first(good, threshold))


@lru_cache(maxsize=64)
def shares_sound(group_key: bytes, publics: tuple[bytes, ...], threshold: int) -> bool:
    """Whether the public shares and the group key are values of one polynomial of degree t − 1.

    Only then does every set of t holders make the same signature. Checked with one codeword of
    the dual Reed–Solomon code, drawn by hashing the keys (SCRAPE, eprint 2017/216, section 3):
    wrong keys pass with probability 2^-254.
    """
    n = len(publics)
    if not 1 <= threshold <= n <= MAX_HOLDERS:
        return False
    try:
        points = [parse_point(G1Element, data, 48) for data in (group_key, *publics)]
    except KeyMaterialError:
        return False
    root = keccak256(
        b"daifi/shares/1" + threshold.to_bytes(2, "big") + group_key + b"".join(publics)
    )
    check = [hash_to_scalar(root + power.to_bytes(2, "big")) for power in range(n - threshold + 1)]
    scalars = [
        evaluate(check, x) * pow(prod(x - other for other in range(n + 1) if other != x), -1, ORDER)
        for x in range(n + 1)
    ]
    return bool(multiply(points, [s % ORDER for s in scalars], G1Element()) == G1Element())


def _first(shares: Mapping[int, bytes], threshold: int) -> dict[int, bytes]:
    return dict(list(shares.items())[:threshold])

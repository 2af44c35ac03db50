"""The Proof-of-Compute draw: which seat may propose a block. Pure, and the same for everybody.

The draw follows from the beacon of the block, its height and the round, and from the seats' weights
in the parent's state. The beacon is the hash of the group's one signature over the parent's hash
(see :mod:`daifi_flows.threshold`): nobody knows it before a quorum has signed the parent, and no
proposer can have it come out otherwise, because seats give shares for one block a height only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from daifi_flows.cnft import PPM, beacon_message
from daifi_flows.encoding import keccak256
from daifi_flows.keys import verify_bls

__all__ = [
    "Draw",
    "beacon_of",
    "beacon_valid",
    "draw_proposer",
    "proposer_weight",
]

_SPAN: Final = 2**256


@dataclass(frozen=True)
class Draw:
    """One draw, with what it takes to repeat it by hand.

    Attributes:
        seat: index of the seat that was drawn.
        point: where the draw fell, ``0 ≤ point < sum(weights)``.
        weights: what was drawn from: seats drawn in earlier rounds count 0.
    """

    seat: int
    point: int
    weights: tuple[int, ...]


def beacon_of(signature: bytes) -> bytes:
    """The beacon, 32 bytes: Keccak-256 of the group's signature, as drand hashes its rounds."""
    return keccak256(signature)


@lru_cache(maxsize=256)  # a validator sees it with the offer and again with the block
def beacon_valid(group_key: bytes, parent: bytes, signature: bytes) -> bool:
    """Whether this is the group's signature over the parent's hash."""
    return verify_bls(group_key, beacon_message(parent), signature)


def proposer_weight(mflop: int, reputation_ppm: int) -> int:
    """Weight of a validator: verified compute × reputation (white paper, 2.2 and 2.3).

    Args:
        mflop: work of its executions that the committee accepted, megaFLOP.
        reputation_ppm: posterior mean of its reputation, 0 to 1,000,000.
    """
    return mflop * min(max(reputation_ppm, 0), PPM)


def draw_proposer(beacon: bytes, height: int, round: int, weights: Sequence[int]) -> Draw:
    """Which seat proposes at ``height`` in ``round``.

    Half of the draw is by weight and half even, so that a seat of n is drawn first with a chance of
    at least 1/2n: a network without any verified compute moves, and no single validator that did
    most of the work can stop it by being silent. A seat drawn in an earlier round is not drawn
    again before every seat was; so some honest seat is drawn after at most f silent ones.

    Args:
        weights: one a seat, in the seats' order (see :func:`proposer_weight`).

    Raises:
        ValueError: no seats, or a negative number.

    >>> draw_proposer(bytes(32), 1, 0, [5, 0, 0]).seat
    0
    """
    if not weights or min(weights) < 0 or height < 0 or round < 0:
        raise ValueError("a draw needs seats, and no negative weight, height or round")
    n, total = len(weights), sum(weights)
    # Times n, so that the even half (the mean weight) is an integer too.
    left = [weight * n + total for weight in weights] if total else [1] * n
    start = round - round % n
    draw = Draw(0, 0, ())
    for each in range(start, round + 1):
        point = _uniform(beacon, height, each, sum(left))
        seat, reached = 0, left[0]
        while point >= reached:
            seat += 1
            reached += left[seat]
        draw = Draw(seat, point, tuple(left))
        left[seat] = 0
    return draw


def _uniform(beacon: bytes, height: int, round: int, bound: int) -> int:
    """A number under ``bound``, every one as likely: what would fold unevenly is thrown away."""
    limit = _SPAN - _SPAN % bound
    seed = b"daifi/proposer/1" + beacon + height.to_bytes(8, "big") + round.to_bytes(8, "big")
    attempt = 0
    while (value := int.from_bytes(keccak256(seed + attempt.to_bytes(4, "big")), "big")) >= limit:
        attempt += 1
    return value % bound

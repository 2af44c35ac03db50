"""Sortition: who sits on the next committee, drawn by weight so that anyone can check the draw.

Candidates are the leaves of a Merkle *sum* tree, in the order of their accounts. Each owns an
interval of [0, total) as long as its weight. Draw i takes the point ``H(beacon ‖ i)`` in what is
left of [0, total) once the intervals of everybody drawn before are cut out, and opens the leaf
whose interval holds it: a weighted draw without replacement (successive sampling). A draw holds
the opened leaves with their paths, so :func:`check_draw` needs the tree's root and no list.

An opened candidate is seated unless its operator has ``per_operator`` seats already; then it is
passed over, and never opened again. The cap yields only when everybody of positive weight has
been opened and seats are still free: it rises by one at a time, and those passed over are seated
in the order in which they were opened, until the seats are full. So a cap never costs a seat, and
with fewer candidates than seats everybody of positive weight is seated (:attr:`Draw.complete` is
false). Weight zero is never drawn.

Weight is linear in stake × reputation (:func:`weigh` rounds down), so a stake split over k
accounts owns the same length of the line. What splitting can gain is only what one seat an
account costs a large one: an account that is drawn with chance p would expect about −ln(1 − p)
seats if split without end (a successive draw orders exponential clocks whose rates are the
weights), which is p + p²/2 + …: nothing to first order for a stake well below total / seats. Parts
that name their one operator are bounded by its cap besides. Who an operator is, is a candidate's
own word here: whoever makes the list decides what such a word needs.

The tree binds each child's sum beside its hash in the parent (binding only their total would let
a prover move weight between siblings) and the total and number of leaves in the root; sums are
unsigned and below 2^63, so none wraps.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar, Final

from pydantic import Field

from daifi_flows._noun import PPM, Address, Bytes32, Noun, Uint
from daifi_flows.encoding import keccak256
from daifi_flows.errors import EncodingError

__all__ = [
    "MAX_CANDIDATES",
    "MAX_WEIGHT",
    "Candidate",
    "Draw",
    "Opening",
    "Sibling",
    "SumTree",
    "check_draw",
    "draw",
    "weigh",
]

MAX_CANDIDATES: Final = 2048
"""Most candidates of one draw: one that opens them all can still be read back."""
MAX_WEIGHT: Final = 2**51 - 1
"""Most that one candidate weighs: 2,048 of them stay below 2^63."""
MAX_SEATS: Final = 63
"""Most seats of a committee (see :class:`daifi_flows.cnft.Seat`)."""
WEIGHT_UNIT_WEI: Final = 10**12
"""A weight of one: 10^-6 of a token staked at full reputation."""

_MAX_PATH: Final = (MAX_CANDIDATES - 1).bit_length()
_EMPTY: Final = keccak256(b"")


def weigh(stake_wei: int, reputation_ppm: int) -> int:
    """Stake × reputation as a weight, rounded down, at most :data:`MAX_WEIGHT`.

    Raises:
        EncodingError: a negative stake, or a reputation outside 0 to 1,000,000 ppm.

    >>> weigh(10**18, 500_000)
    500000
    """
    if stake_wei < 0 or not 0 <= reputation_ppm <= PPM:
        raise EncodingError("a weight is made of a stake ≥ 0 and a reputation of 0 to 1,000,000")
    return min(stake_wei * reputation_ppm // (PPM * WEIGHT_UNIT_WEI), MAX_WEIGHT)


class Candidate(Noun):
    """Who offers itself for a seat."""

    account: Address
    operator: Address | None = None
    """Who runs it, where that is not ``account``."""
    weight: Annotated[int, Field(ge=0, le=MAX_WEIGHT, strict=True)]
    """Stake × reputation (see :func:`weigh`)."""

    @property
    def interest(self) -> str:
        """Address of who runs it."""
        return self.operator or self.account


class Sibling(Noun):
    """A node beside the way from a leaf to the root."""

    sum: Uint
    hash: Bytes32


class Opening(Noun):
    """One leaf of the tree, shown to be there."""

    candidate: Candidate
    index: Uint
    path: Annotated[tuple[Sibling, ...], Field(max_length=_MAX_PATH)]
    """Siblings from the leaf to the root."""


class Draw(Noun):
    """The outcome of a sortition, with what proves it."""

    max_canonical_bytes: ClassVar[int] = 4 * 1024 * 1024

    beacon: Bytes32
    root: Bytes32
    """Of the sum tree (:attr:`SumTree.root`)."""
    count: Annotated[int, Field(ge=0, le=MAX_CANDIDATES, strict=True)]
    """Leaves of the tree."""
    total: Uint
    """Weight of all leaves together."""
    top: Bytes32
    """Hash of the tree's uppermost node, which the root binds together with the two above."""
    seats: Annotated[int, Field(ge=1, le=MAX_SEATS, strict=True)]
    """How many seats were to be filled."""
    per_operator: Annotated[int, Field(ge=1, le=MAX_SEATS, strict=True)]
    opened: Annotated[tuple[Opening, ...], Field(max_length=MAX_CANDIDATES)]
    """The leaves the beacon hit, in its order, those that were passed over among them."""

    @property
    def picks(self) -> tuple[Candidate, ...]:
        """Who is seated, by seat. Means nothing before :func:`check_draw` has passed."""
        allotment = _Allotment(self.seats, self.per_operator)
        for opening in self.opened:
            allotment.offer(opening.candidate)
        return allotment.close()

    @property
    def complete(self) -> bool:
        """Whether every seat was filled."""
        return len(self.picks) == self.seats


def draw(beacon: bytes, candidates: Iterable[Candidate], seats: int, per_operator: int) -> Draw:
    """Fill ``seats`` from ``candidates`` (in any order) by the 32-byte ``beacon``.

    The candidates and their weights must be fixed before anybody knows the beacon.

    Args:
        per_operator: most seats of one operator, while there are others.

    Raises:
        EncodingError: more than 2,048 candidates, an account twice, a beacon that is not 32 bytes,
            or a number of seats outside 1 to 63.
    """
    tree = SumTree(candidates)
    asked = Draw.from_plain(
        {"beacon": beacon, "seats": seats, "per_operator": per_operator, "opened": ()}
        | {"root": tree.root, "count": len(tree), "total": tree.total, "top": tree.top}
    )
    allotment, line, opened = _Allotment(seats, per_operator), _Line(tree.total), list[Opening]()
    for point in line.points(beacon):
        opening = tree.open(tree.at(point))
        opened.append(opening)
        line.cut(tree.offset(opening.index), opening.candidate.weight)
        allotment.offer(opening.candidate)
        if allotment.full:
            break
    return asked.model_copy(update={"opened": tuple(opened)})


def check_draw(found: Draw, *, root: bytes, beacon: bytes, seats: int, per_operator: int) -> bool:
    """Whether ``found`` is *the* draw that these give: one draw passes, and no other.

    Total: whatever the draw holds, the answer is true or false.

    Args:
        root, beacon, seats, per_operator: from a source that the caller trusts.
    """
    try:
        found = Draw.from_plain(found.plain())  # model_copy does not check what it is given
    except (EncodingError, AttributeError, KeyError, TypeError):
        return False
    asked = (found.root, found.beacon, found.seats, found.per_operator)
    if asked != (root, beacon, seats, per_operator):
        return False
    if _sized(found.count, found.total, found.top) != root:
        return False
    allotment, line = _Allotment(seats, per_operator), _Line(found.total)
    points, accounts = line.points(beacon), set[str]()
    for opening in found.opened:
        point = None if allotment.full else next(points, None)
        offset = _offset(found, opening)
        if point is None or offset is None or opening.candidate.account in accounts:
            return False
        if not offset <= point < offset + opening.candidate.weight:
            return False
        accounts.add(opening.candidate.account)
        line.cut(offset, opening.candidate.weight)
        allotment.offer(opening.candidate)
    return allotment.full or line.left == 0


class SumTree:
    """Merkle sum tree over candidates, which it sorts by account.

    Leaf: ``keccak256(0x10 ‖ dag-cbor(candidate))``, sum: its weight. Node: ``keccak256(0x11 ‖
    left sum ‖ left hash ‖ right sum ‖ right hash)``; an odd last node moves up as it is. Root:
    ``keccak256(0x12 ‖ count ‖ total ‖ top hash)``. Numbers are eight bytes, big-endian.

    Raises:
        EncodingError: more than 2,048 candidates, or an account twice.
    """

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self.candidates = tuple(sorted(candidates, key=lambda item: item.account.lower()))
        if len(self.candidates) > MAX_CANDIDATES:
            raise EncodingError(f"a draw takes at most {MAX_CANDIDATES} candidates")
        if len({item.account for item in self.candidates}) != len(self.candidates):
            raise EncodingError("an account stands twice among the candidates: name each once")
        self._offsets = [0, *accumulate(item.weight for item in self.candidates)]
        level = [_Node(item.weight, _leaf(item)) for item in self.candidates]
        self._levels = [level]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            odd = level[-1:] if len(level) % 2 else []
            level = [_join(left, right) for left, right in pairs] + odd
            self._levels.append(level)

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def total(self) -> int:
        """Weight of all candidates together."""
        return self._offsets[-1]

    @property
    def root(self) -> bytes:
        """Binds every leaf, every sum and the number of leaves, 32 bytes."""
        return _sized(len(self), self.total, self.top)

    @property
    def top(self) -> bytes:
        """Hash of the uppermost node, ``keccak256(b"")`` where there is none, 32 bytes."""
        return self._levels[-1][0].hash if self.candidates else _EMPTY

    def offset(self, index: int) -> int:
        """Where the interval of leaf ``index`` begins."""
        return self._offsets[index]

    def at(self, point: int) -> int:
        """Index of the leaf whose interval holds ``point``, which is below the total."""
        return bisect_right(self._offsets, point) - 1

    def open(self, index: int) -> Opening:
        """Leaf ``index`` with its path.

        Raises:
            EncodingError: there is no such leaf.
        """
        if not 0 <= index < len(self):
            raise EncodingError(f"there is no leaf {index} in a tree of {len(self)}")
        path, at = list[Sibling](), index
        for level in self._levels[:-1]:
            if at ^ 1 < len(level):
                node = level[at ^ 1]
                path.append(Sibling(sum=node.sum, hash=node.hash))
            at //= 2
        return Opening(candidate=self.candidates[index], index=index, path=tuple(path))


@dataclass(frozen=True, slots=True)
class _Node:
    sum: int
    hash: bytes


def _leaf(candidate: Candidate) -> bytes:
    return keccak256(b"\x10" + candidate.canonical())


def _join(left: _Node, right: _Node) -> _Node:
    parts = (left.sum.to_bytes(8, "big"), left.hash, right.sum.to_bytes(8, "big"), right.hash)
    return _Node(left.sum + right.sum, keccak256(b"\x11" + b"".join(parts)))


def _sized(count: int, total: int, top: bytes) -> bytes:
    return keccak256(b"\x12" + count.to_bytes(8, "big") + total.to_bytes(8, "big") + top)


def _offset(found: Draw, opening: Opening) -> int | None:
    """Where the opened leaf's interval begins, if the tree holds the leaf there.

    The sums on the left add up to it, and a parent's hash binds both its children's sums.
    """
    index, last, path = opening.index, found.count - 1, iter(opening.path)
    if index > last:
        return None
    node, offset = _Node(opening.candidate.weight, _leaf(opening.candidate)), 0
    while last:
        if index & 1 or index < last:
            beside = next(path, None)
            if beside is None:
                return None
            sibling = _Node(beside.sum, beside.hash)
            if node.sum + sibling.sum > found.total:  # below 2^63, as the total is
                return None
            offset += sibling.sum if index & 1 else 0
            node = _join(sibling, node) if index & 1 else _join(node, sibling)
        index >>= 1
        last >>= 1
    spent = next(path, None) is None
    sound = (node.sum, node.hash) == (found.total, found.top)
    return offset if spent and sound else None


class _Line:
    """[0, total) with the intervals of those drawn cut out."""

    def __init__(self, total: int) -> None:
        self.left = total
        self._cut: list[tuple[int, int]] = []

    def points(self, beacon: bytes) -> Iterator[int]:
        """The point of each draw, as long as anything is left; cut before asking for the next.

        256 bits of hash modulo less than 2^63: uniform to within 2^-193.
        """
        number = 0
        while self.left:
            seed = keccak256(b"daifi/sortition/1" + beacon + number.to_bytes(4, "big"))
            point = int.from_bytes(seed, "big") % self.left
            for offset, length in self._cut:
                if point < offset:
                    break
                point += length
            yield point
            number += 1

    def cut(self, offset: int, length: int) -> None:
        """Take an interval out."""
        insort(self._cut, (offset, length))
        self.left -= length


class _Allotment:
    """Who of those opened is seated."""

    def __init__(self, seats: int, per_operator: int) -> None:
        self._seats, self._cap = seats, per_operator
        self._held = Counter[str]()
        self._seated: list[Candidate] = []
        self._passed: list[Candidate] = []

    @property
    def full(self) -> bool:
        return len(self._seated) >= self._seats

    def offer(self, candidate: Candidate) -> None:
        if self.full:
            return
        taken = self._held[candidate.interest] < self._cap
        (self._seated if taken else self._passed).append(candidate)
        self._held[candidate.interest] += taken

    def close(self) -> tuple[Candidate, ...]:
        """Everybody was offered: the cap rises by one at a time until the seats are full."""
        while self._passed and not self.full:
            again, self._passed = self._passed, []
            self._cap += 1
            for candidate in again:
                self.offer(candidate)
        return tuple(self._seated)

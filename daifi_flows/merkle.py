"""Merkle trees, and the mountain range: the same tree kept as it grows.

The tree is that of RFC 9162 section 2.1 (domain-separated leaves and nodes) with Keccak-256. A root
binds the number of leaves (there it is beside the root in the signed tree head), so that a leaf's
index and the tree's size have one spelling.

A mountain range holds the perfect subtrees ("peaks") of a growing list of leaves: bagged from the
right they are the RFC's tree, so one root, one path and one check serve both. Hashes are stored by
position, the order in which appending completes them (post-order): a stored hash never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from tiny_keccak import keccak256

from daifi_flows.errors import EncodingError

__all__ = [
    "MAX_LEAVES",
    "MerkleTree",
    "MountainRange",
    "Nodes",
    "consistency_proof",
    "leaf_hash",
    "merkle_proof",
    "merkle_proofs",
    "merkle_root",
    "mountain_proof",
    "root_of_hashes",
    "verify_consistency",
    "verify_merkle",
]

MAX_LEAVES: Final = 2**63
"""Sizes are below this: they fit the nouns' unsigned integers."""

Nodes = Callable[[int], bytes]
"""The stored hash at a position of a mountain range, 32 bytes."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf: ``keccak256(0x00 ‖ data)``."""
    return keccak256(b"\x00" + data)


def _node(left: bytes, right: bytes) -> bytes:
    return keccak256(b"\x01" + left + right)


def _sized(count: int, top: bytes) -> bytes:
    return keccak256(b"\x02" + count.to_bytes(8, "big") + top)


_EMPTY: Final = keccak256(b"")


def _levels(hashes: list[bytes]) -> list[list[bytes]]:
    levels = [hashes]
    level, hash_ = hashes, keccak256
    while len(level) > 1:
        pairs = iter(level)
        paired = [hash_(b"\x01" + left + right) for left, right in zip(pairs, pairs, strict=False)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
        levels.append(level)
    return levels


class MerkleTree:
    """All hashes of one list of leaves: for its root and many paths.

    Args:
        hashes: :func:`leaf_hash` of each leaf, in order.
    """

    __slots__ = ("_levels",)

    def __init__(self, hashes: Iterable[bytes]) -> None:
        self._levels = _levels(list(hashes))

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """``keccak256(0x02 ‖ count ‖ top)``, the count as eight bytes big-endian, the top
        ``keccak256(b"")`` for no leaves (RFC 9162 2.1.1), 32 bytes."""
        return _sized(len(self), self._levels[-1][0] if len(self) else _EMPTY)

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Sibling hashes from leaf ``index`` to the root (RFC 9162 2.1.3).

        Raises:
            EncodingError: there is no such leaf.
        """
        _check_index(index, len(self))
        path: list[bytes] = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling])
            index //= 2
        return tuple(path)


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise EncodingError(f"there is no leaf {index} in a tree of {size}")


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaves in order, 32 bytes (see :attr:`MerkleTree.root`)."""
    return root_of_hashes(leaf_hash(leaf) for leaf in leaves)


def root_of_hashes(hashes: Iterable[bytes]) -> bytes:
    """Root over leaves of which only the hashes are at hand, 32 bytes."""
    return MerkleTree(hashes).root


def merkle_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Sibling hashes from leaf ``index`` to the root.

    Raises:
        EncodingError: there is no such leaf.
    """
    _check_index(index, len(leaves))
    return MerkleTree(map(leaf_hash, leaves)).proof(index)


def merkle_proofs(leaves: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """:func:`merkle_proof` of every leaf, hashing the tree once."""
    tree = MerkleTree(map(leaf_hash, leaves))
    return [tree.proof(index) for index in range(len(leaves))]


def verify_merkle(root: bytes, leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bool:
    """Whether ``leaf`` is leaf ``index`` of the tree of ``size`` leaves with this root.

    A path has exactly as many hashes as the index and the size ask for, at most 63.
    """
    if not 0 <= index < size < MAX_LEAVES or len(path) > 63:
        return False
    digest, used, last, available = leaf_hash(leaf), 0, size - 1, len(path)
    while last:
        if index & 1 or index < last:
            if used == available:
                return False
            sibling = path[used]
            used += 1
            digest = _node(sibling, digest) if index & 1 else _node(digest, sibling)
        index >>= 1
        last >>= 1
    return used == available and _sized(size, digest) == root


# Mountain ranges


def _position(height: int, index: int) -> int:
    """Where the perfect subtree over leaves [index·2^height, (index+1)·2^height) is stored."""
    last = ((index + 1) << height) - 1
    return _count(last) + height


def _count(size: int) -> int:
    """How many hashes a range of ``size`` leaves has stored: 2·size − (number of peaks)."""
    return 2 * size - size.bit_count()


def _peaks(size: int, start: int = 0) -> list[tuple[int, int]]:
    """``(height, index)`` of the perfect subtrees over ``size`` leaves from ``start``, which is
    a multiple of the tallest one's width; tallest first."""
    found: list[tuple[int, int]] = []
    while size:
        height = size.bit_length() - 1
        found.append((height, start >> height))
        start += 1 << height
        size -= 1 << height
    return found


def _bag(hashes: Sequence[bytes]) -> bytes:
    top = hashes[-1]
    for peak in reversed(hashes[:-1]):
        top = _node(peak, top)
    return top


@dataclass(frozen=True, slots=True)
class MountainRange:
    """A growing list of leaves, kept as its peaks alone: at most 63 hashes.

    Attributes:
        size: number of leaves.
        peaks: the perfect subtrees' hashes, tallest first: one for each bit set in ``size``.

    >>> grown, stored = MountainRange().append([leaf_hash(b"a"), leaf_hash(b"b")])
    >>> grown.root == merkle_root([b"a", b"b"]), len(stored), grown.stored
    (True, 3, 3)
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size < MAX_LEAVES or len(self.peaks) != self.size.bit_count():
            raise EncodingError(f"a range of {self.size} leaves has not {len(self.peaks)} peaks")

    @classmethod
    def load(cls, nodes: Nodes, size: int) -> Self:
        """The range of the first ``size`` leaves, from the stored hashes."""
        return cls(size, tuple(nodes(_position(*peak)) for peak in _peaks(size)))

    @property
    def root(self) -> bytes:
        """The root of the tree over all leaves, as :func:`merkle_root` gives it, 32 bytes."""
        return _sized(self.size, _bag(self.peaks) if self.peaks else _EMPTY)

    @property
    def stored(self) -> int:
        """How many hashes appending has given so far: the next one's position."""
        return _count(self.size)

    @property
    def peak_positions(self) -> tuple[int, ...]:
        """Where the peaks are among the stored hashes: what :meth:`load` reads."""
        return tuple(_position(*peak) for peak in _peaks(self.size))

    def append(self, hashes: Iterable[bytes]) -> tuple[MountainRange, list[bytes]]:
        """The range after more leaves (:func:`leaf_hash` of each), and the hashes to store, at
        positions :attr:`stored` and on; this range is unchanged."""
        peaks, size, new = list(self.peaks), self.size, list[bytes]()
        for leaf in hashes:
            digest, completed = leaf, size
            new.append(digest)
            while completed & 1:
                digest = _node(peaks.pop(), digest)
                new.append(digest)
                completed >>= 1
            peaks.append(digest)
            size += 1
        return MountainRange(size, tuple(peaks)), new


def _range_hash(nodes: Nodes, start: int, size: int) -> bytes:
    return _bag([nodes(_position(*peak)) for peak in _peaks(size, start)])


def mountain_proof(nodes: Nodes, index: int, size: int) -> tuple[bytes, ...]:
    """Path of leaf ``index`` in the tree of the first ``size`` leaves, for :func:`verify_merkle`.

    At most ⌈log₂ size⌉ hashes (20 for a million leaves), from as many reads and a few more.

    Raises:
        EncodingError: there is no such leaf.
    """
    _check_index(index, size)
    peaks = _peaks(size)
    place, (height, _) = next(
        (i, peak) for i, peak in enumerate(peaks) if index >> peak[0] == peak[1]
    )
    path = [nodes(_position(low, (index >> low) ^ 1)) for low in range(height)]
    hashes = [nodes(_position(*peak)) for peak in (*peaks[:place], *peaks[place + 1 :])]
    if hashes[place:]:
        path.append(_bag(hashes[place:]))
    path += reversed(hashes[:place])
    return tuple(path)


def consistency_proof(nodes: Nodes, old: int, new: int) -> tuple[bytes, ...]:
    """Hashes that show the tree of ``old`` leaves to be the beginning of that of ``new``.

    RFC 9162 2.1.4.1, but the first hash is never left out: a root that binds its size does not
    show the top. Nothing to show (no hashes) when ``old`` is 0 or ``new``.

    Raises:
        EncodingError: ``old`` is over ``new``.
    """
    if not 0 <= old <= new < MAX_LEAVES:
        raise EncodingError(f"a tree of {old} leaves cannot begin one of {new}")
    if old in (0, new):
        return ()
    path: list[bytes] = []
    start, size = 0, new
    while old != size:
        split = 1 << ((size - 1).bit_length() - 1)
        if old <= split:
            path.append(_range_hash(nodes, start + split, size - split))
            size = split
        else:
            path.append(_range_hash(nodes, start, split))
            start, size, old = start + split, size - split, old - split
    path.append(_range_hash(nodes, start, size))
    return tuple(reversed(path))


def verify_consistency(
    old_root: bytes, old: int, new_root: bytes, new: int, path: Sequence[bytes]
) -> bool:
    """Whether the tree of ``old`` leaves with one root begins that of ``new`` with the other
    (RFC 9162 2.1.4.2). A proof has exactly as many hashes as the two sizes ask for."""
    if not 0 <= old <= new < MAX_LEAVES or len(path) > 64:
        return False
    if old == new:
        return not path and old_root == new_root
    if old == 0:
        return not path and old_root == _sized(0, _EMPTY)
    if not path:
        return False
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    before = after = path[0]
    for digest in path[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            before, after = _node(digest, before), _node(digest, after)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            after = _node(after, digest)
        first, last = first >> 1, last >> 1
    return last == 0 and _sized(old, before) == old_root and _sized(new, after) == new_root

"""The state's Merkle commitment: a binary trie over hashed keys, kept as 2^16 bucket summaries.

A leaf sits at the shortest prefix of ``keccak256(key)`` that no other key shares, so the shape, and
with it the root, follows from the set of entries alone, whatever the order they came in. A leaf
hashes ``0x00 ‖ path ‖ keccak256(value)``, a branch ``0x01 ‖ left ‖ right`` with zeros for an empty
side.

The first 16 bits of a path name its bucket. Above the buckets only flat arrays are held, whatever
the number of entries; below, a bucket's own small tree is read from its source when it changes, is
checked against its summary, and is held in a bounded cache. Changes are laid over the common ground
until they are merged: a block under construction sits on one not yet certified.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Final, NamedTuple, TypeAlias

from pydantic import Field

from daifi_flows._noun import Bytes32, Noun
from daifi_flows.encoding import keccak256
from daifi_flows.errors import LedgerCorrupted

__all__ = [
    "BUCKETS",
    "EMPTY_ROOT",
    "OrderedEntries",
    "StateProof",
    "Summary",
    "Trie",
    "leaf_hash",
    "verify_state",
]

EMPTY_ROOT: Final = bytes(32)
BUCKETS: Final = 1 << 16
_DEPTH: Final = 16
_EMPTY, _LEAF, _BRANCH = 0, 1, 2
_CACHED_BUCKETS: Final = 4_096
"""Trees of buckets held in memory: 15 entries each, about 20 MB, where there are 10^6 entries."""


def leaf_hash(path: bytes, value: bytes) -> bytes:
    """Hash of an entry at ``path = keccak256(key)``, 32 bytes."""
    return keccak256(b"\x00" + path + keccak256(value))


class _Leaf:
    __slots__ = ("hash", "path")

    def __init__(self, path: bytes, digest: bytes) -> None:
        self.path = path
        self.hash = digest


class _Branch:
    __slots__ = ("hash", "left", "right")

    def __init__(self, left: _Node | None, right: _Node | None) -> None:
        self.left = left
        self.right = right
        self.hash = keccak256(
            b"\x01"
            + (left.hash if left is not None else EMPTY_ROOT)
            + (right.hash if right is not None else EMPTY_ROOT)
        )


_Node: TypeAlias = _Leaf | _Branch


def _bit(path: bytes, depth: int) -> int:
    return path[depth >> 3] >> (7 - (depth & 7)) & 1


def _insert(node: _Node | None, leaves: list[_Leaf], depth: int) -> _Node | None:
    if not leaves:
        return node
    if isinstance(node, _Leaf):
        if all(leaf.path != node.path for leaf in leaves):
            leaves = [*leaves, node]
        node = None
    if node is None and len(leaves) == 1:
        return leaves[0]
    sides: tuple[list[_Leaf], list[_Leaf]] = ([], [])
    for leaf in leaves:
        sides[_bit(leaf.path, depth)].append(leaf)
    left, right = (node.left, node.right) if node is not None else (None, None)
    return _Branch(_insert(left, sides[0], depth + 1), _insert(right, sides[1], depth + 1))


def _remove(node: _Node | None, path: bytes, depth: int) -> _Node | None:
    if node is None:
        return None
    if isinstance(node, _Leaf):
        return None if node.path == path else node
    sides = [node.left, node.right]
    at = _bit(path, depth)
    after = _remove(sides[at], path, depth + 1)
    if after is sides[at]:
        return node
    sides[at] = after
    rest = [side for side in sides if side is not None]
    if len(rest) == 1 and isinstance(rest[0], _Leaf):
        return rest[0]  # alone now: it moves up to the shortest prefix nobody shares
    return _Branch(*sides) if rest else None


def _find(node: _Node | None, path: bytes, depth: int) -> _Leaf | None:
    while isinstance(node, _Branch):
        node = node.right if _bit(path, depth) else node.left
        depth += 1
    return node if node is not None and node.path == path else None


class Summary(NamedTuple):
    """A bucket's tree in brief: 0 empty, 1 one leaf, 2 a branch; and its hash, 32 bytes."""

    kind: int
    hash: bytes

    @classmethod
    def of(cls, leaves: Iterable[tuple[bytes, bytes]]) -> Summary:
        """Of a bucket's entries: path and leaf hash of each, in any order."""
        return _summary(_insert(None, [_Leaf(*leaf) for leaf in leaves], _DEPTH))


_NOTHING: Final = Summary(_EMPTY, EMPTY_ROOT)


def _summary(node: _Node | None) -> Summary:
    if node is None:
        return _NOTHING
    return Summary(_LEAF if isinstance(node, _Leaf) else _BRANCH, node.hash)


def _combine(left: Summary, right: Summary) -> Summary:
    if left.kind == _EMPTY and right.kind <= _LEAF:
        return right
    if right.kind == _EMPTY and left.kind == _LEAF:
        return left
    return Summary(_BRANCH, keccak256(b"\x01" + left.hash + right.hash))


Source: TypeAlias = Callable[[int], Iterable[tuple[bytes, bytes]]]
"""Path and leaf hash of each entry of a bucket, in any order."""


class _Ground:
    """What tries over the same entries share: node ``i`` has children ``2i`` and ``2i + 1``, the
    root is node 1, bucket ``b`` is node ``BUCKETS + b``."""

    def __init__(self, source: Source | None) -> None:
        self.hashes = bytearray(32 * 2 * BUCKETS)
        self.kinds = bytearray(2 * BUCKETS)
        self.source = source
        self.buckets: OrderedDict[int, _Node | None] = OrderedDict()
        self.version = 0

    def node(self, at: int) -> Summary:
        kind = self.kinds[at]
        return Summary(kind, bytes(self.hashes[32 * at : 32 * at + 32])) if kind else _NOTHING

    def set(self, at: int, summary: Summary) -> None:
        self.kinds[at] = summary.kind
        self.hashes[32 * at : 32 * at + 32] = summary.hash

    def bucket(self, index: int) -> _Node | None:
        if not self.kinds[BUCKETS + index]:
            return None
        if index in self.buckets:
            self.buckets.move_to_end(index)
            return self.buckets[index]
        assert self.source is not None, "a trie without a source holds all its buckets"
        node = _insert(None, [_Leaf(*entry) for entry in self.source(index)], _DEPTH)
        if _summary(node) != self.node(BUCKETS + index):
            raise LedgerCorrupted(
                f"the stored state does not match the certified one in bucket {index}: restore "
                "the ledger file from a backup or a follower"
            )
        self.keep(index, node)
        return node

    def keep(self, index: int, node: _Node | None) -> None:
        self.buckets[index] = node
        self.buckets.move_to_end(index)
        if self.source is not None and len(self.buckets) > _CACHED_BUCKETS:
            self.buckets.popitem(last=False)


class Trie:
    """A set of entries with a 32-byte root: changes over a ground that other tries share.

    Args:
        source: where buckets are read when they are not in memory; without one, all are held.
    """

    __slots__ = ("_buckets", "_ground", "_nodes", "_version")

    def __init__(self, source: Source | None = None) -> None:
        self._ground = _Ground(source)
        self._version = 0
        self._nodes: dict[int, Summary] = {}
        self._buckets: dict[int, _Node | None] = {}

    @classmethod
    def restore(cls, summaries: Iterable[tuple[int, Summary]], source: Source | None) -> Trie:
        """The trie whose buckets have these summaries (those not named are empty)."""
        trie = cls(source)
        ground, touched = trie._ground, set[int]()
        for index, summary in summaries:
            ground.set(BUCKETS + index, summary)
            touched.add((BUCKETS + index) >> 1)
        while touched:
            for at in touched:
                ground.set(at, _combine(ground.node(2 * at), ground.node(2 * at + 1)))
            touched = {at >> 1 for at in touched if at > 1}
        return trie

    @property
    def root(self) -> bytes:
        """Commitment to all entries; 32 zero bytes when there are none."""
        return self._node(1).hash

    def _check_ground(self) -> None:
        # A trie without changes of its own follows the ground; one with changes cannot.
        assert not self._buckets or self._version == self._ground.version, (
            "another trie was merged into this ground"
        )

    def _node(self, at: int) -> Summary:
        self._check_ground()
        found = self._nodes.get(at)
        return found if found is not None else self._ground.node(at)

    def _bucket(self, index: int) -> _Node | None:
        self._check_ground()
        if index in self._buckets:
            return self._buckets[index]
        return self._ground.bucket(index)

    def leaf(self, path: bytes) -> bytes | None:
        """Hash of the entry at ``path = keccak256(key)``, if there is one.

        Raises:
            LedgerCorrupted: the source does not hold the bucket that was summarised.
        """
        found = _find(self._bucket(int.from_bytes(path[:2], "big")), path, _DEPTH)
        return None if found is None else found.hash

    def update(self, entries: Mapping[bytes, bytes | None]) -> Trie:
        """A trie with these keys set to these values, or removed; this one is unchanged.

        Raises:
            LedgerCorrupted: see :meth:`leaf`.
        """
        changes: dict[int, tuple[list[_Leaf], list[bytes]]] = {}
        for key, value in entries.items():
            path = keccak256(key)
            sets, removals = changes.setdefault(int.from_bytes(path[:2], "big"), ([], []))
            if value is None:
                removals.append(path)
            else:
                sets.append(_Leaf(path, leaf_hash(path, value)))
        after = Trie.__new__(Trie)
        self._check_ground()
        after._ground, after._version = self._ground, self._ground.version
        after._nodes, after._buckets = dict(self._nodes), dict(self._buckets)
        touched: set[int] = set()
        for index, (sets, removals) in changes.items():
            node = _insert(self._bucket(index), sets, _DEPTH)
            for path in removals:
                node = _remove(node, path, _DEPTH)
            after._buckets[index] = node
            after._nodes[BUCKETS + index] = _summary(node)
            touched.add((BUCKETS + index) >> 1)
        nodes, below = after._nodes, self._ground.node
        while touched:
            for at in touched:
                left, right = nodes.get(2 * at), nodes.get(2 * at + 1)
                nodes[at] = _combine(
                    left if left is not None else below(2 * at),
                    right if right is not None else below(2 * at + 1),
                )
            touched = {at >> 1 for at in touched if at > 1}
        return after

    def changed(self) -> dict[int, Summary]:
        """Summaries of the buckets that differ from the ground."""
        return {index: self._nodes[BUCKETS + index] for index in self._buckets}

    def merge(self) -> Trie:
        """Make this trie's changes the ground. Tries over it without changes of their own follow;
        others are of no use after.

        With a source, it must hold the changed entries already.
        """
        self._check_ground()
        for at, summary in self._nodes.items():
            self._ground.set(at, summary)
        for index, node in self._buckets.items():
            self._ground.keep(index, node)
        self._nodes, self._buckets = {}, {}
        self._ground.version += 1
        self._version = self._ground.version
        return self

    def summaries(self) -> Iterator[tuple[int, Summary]]:
        """Every bucket that is not empty, in order."""
        for index in range(BUCKETS):
            if (found := self._node(BUCKETS + index)).kind:
                yield index, found

    def prove(self, key: bytes, value_hash: Callable[[bytes], bytes]) -> StateProof:
        """Proof of what is stored under ``key``, or that nothing is.

        Args:
            value_hash: ``keccak256`` of the value at a path, asked of the one entry that stands
                in the way where ``key`` is not there.
        """
        path = keccak256(key)
        siblings: list[bytes] = []
        at, depth = 1, 0
        while depth < _DEPTH and self._node(at).kind == _BRANCH:
            at = 2 * at + _bit(path, depth)
            siblings.append(self._node(at ^ 1).hash)
            depth += 1
        node: _Node | None
        if depth < _DEPTH:
            node = self._lone(at) if self._node(at).kind else None
        else:
            node = self._bucket(at - BUCKETS)
            while isinstance(node, _Branch):
                sides = (node.left, node.right)
                bit = _bit(path, depth)
                beside = sides[1 - bit]
                siblings.append(beside.hash if beside is not None else EMPTY_ROOT)
                node = sides[bit]
                depth += 1
        if not isinstance(node, _Leaf) or node.path == path:
            return StateProof(siblings=tuple(siblings))
        return StateProof(
            siblings=tuple(siblings), other=node.path, other_value=value_hash(node.path)
        )

    def _lone(self, at: int) -> _Leaf:
        while at < BUCKETS:
            at = 2 * at if self._node(2 * at).kind else 2 * at + 1
        found = self._bucket(at - BUCKETS)
        assert isinstance(found, _Leaf), "a summary of one leaf is of one leaf"
        return found


class OrderedEntries:
    """Bucket summaries of entries that come by path, with one bucket in memory at a time."""

    def __init__(self) -> None:
        self._summaries: dict[int, Summary] = {}
        self._index = -1
        self._leaves: list[tuple[bytes, bytes]] = []

    def add(self, path: bytes, leaf: bytes) -> None:
        """The next entry: its path is over that of the one before."""
        index = int.from_bytes(path[:2], "big")
        if index != self._index:
            self._finish()
            self._index = index
        self._leaves.append((path, leaf))

    def _finish(self) -> None:
        if self._leaves:
            self._summaries[self._index] = Summary.of(self._leaves)
        self._leaves = []

    def summaries(self) -> dict[int, Summary]:
        """Of all buckets that are not empty; nothing may be added after."""
        self._finish()
        return self._summaries


class StateProof(Noun):
    """What an entry of the state is, or that it is absent, against a state root.

    ``siblings`` go from the root down, at most one a bit of ``keccak256(key)``. Where the key is
    absent and another entry's leaf stands at the end, ``other`` is that entry's path and
    ``other_value`` the Keccak-256 of its value.
    """

    siblings: Annotated[tuple[Bytes32, ...], Field(max_length=256)]
    other: Bytes32 | None = None
    other_value: Bytes32 | None = None


def verify_state(root: bytes, key: bytes, value: bytes | None, proof: StateProof) -> bool:
    """Whether the state with this root has ``value`` under ``key``; ``None``: nothing at all.

    For one root and key, one value and one proof pass, as long as Keccak-256 has no collisions.
    """
    path, depth = keccak256(key), len(proof.siblings)
    if (proof.other is None) != (proof.other_value is None):
        return False
    if value is not None:
        if proof.other is not None:
            return False
        digest = leaf_hash(path, value)
    elif proof.other is None or proof.other_value is None:
        digest = EMPTY_ROOT
    else:
        if proof.other == path or any(_bit(proof.other, i) != _bit(path, i) for i in range(depth)):
            return False
        digest = keccak256(b"\x00" + proof.other + proof.other_value)
    if proof.siblings and proof.siblings[-1] == EMPTY_ROOT:
        return False  # a lone leaf, or an empty place, would sit higher
    for at in reversed(range(depth)):
        sibling = proof.siblings[at]
        pair = sibling + digest if _bit(path, at) else digest + sibling
        digest = keccak256(b"\x01" + pair)
    return digest == root

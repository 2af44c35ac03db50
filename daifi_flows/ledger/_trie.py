"""The state's Merkle commitment: a binary trie over hashed keys, persistent and incremental.

A leaf sits at the shortest prefix no other key shares, so the shape, and with it the root, follows
from the set of entries alone, whatever the order they came in. Updates copy the path they touch:
an old root stays valid, which is how a block under construction sits on one not yet certified.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from daifi_flows.encoding import keccak256

__all__ = ["EMPTY_ROOT", "Trie"]

EMPTY_ROOT: Final = bytes(32)


class _Leaf:
    __slots__ = ("hash", "path")

    def __init__(self, path: bytes, value: bytes) -> None:
        self.path = path
        self.hash = keccak256(b"\x00" + path + keccak256(value))


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


class Trie:
    """An immutable set of entries with a 32-byte root."""

    __slots__ = ("_node",)

    def __init__(self, node: _Node | None = None) -> None:
        self._node = node

    @property
    def root(self) -> bytes:
        """Commitment to all entries; 32 zero bytes when there are none."""
        return self._node.hash if self._node is not None else EMPTY_ROOT

    def update(self, entries: Mapping[bytes, bytes]) -> Trie:
        """A trie with these keys set to these values; this one is unchanged."""
        leaves = [_Leaf(keccak256(key), value) for key, value in entries.items()]
        return Trie(_insert(self._node, leaves, 0))

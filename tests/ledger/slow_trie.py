"""The state root from its definition alone, in a few lines: what the trie is tested against."""

from __future__ import annotations

from collections.abc import Mapping

from daifi_flows.encoding import keccak256


def slow_root(entries: Mapping[bytes, bytes]) -> bytes:
    """Root of these entries."""
    leaves = [
        (int.from_bytes(keccak256(key), "big"), keccak256(b"\x00" + keccak256(key) + keccak256(v)))
        for key, v in entries.items()
    ]
    return _root(leaves, 0)


def _root(leaves: list[tuple[int, bytes]], depth: int) -> bytes:
    if not leaves:
        return bytes(32)
    if len(leaves) == 1:
        return leaves[0][1]
    sides: list[list[tuple[int, bytes]]] = [[], []]
    for path, digest in leaves:
        sides[path >> (255 - depth) & 1].append((path, digest))
    return keccak256(b"\x01" + _root(sides[0], depth + 1) + _root(sides[1], depth + 1))

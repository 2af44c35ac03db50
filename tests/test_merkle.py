"""Merkle trees and mountain ranges against the recursive definition of RFC 9162, and forgeries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.encoding import keccak256
from daifi_flows.errors import EncodingError
from daifi_flows.merkle import (
    MAX_LEAVES,
    MerkleTree,
    MountainRange,
    consistency_proof,
    leaf_hash,
    merkle_proof,
    merkle_proofs,
    merkle_root,
    mountain_proof,
    root_of_hashes,
    verify_consistency,
    verify_merkle,
)

LEAVES = [b"leaf %d" % i for i in range(130)]
SIZES = st.integers(1, len(LEAVES))


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162 2.1.1, word for word."""
    if not leaves:
        return keccak256(b"")
    if len(leaves) == 1:
        return keccak256(b"\x00" + leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return keccak256(b"\x01" + mth(leaves[:split]) + mth(leaves[split:]))


def root_of(leaves: Sequence[bytes]) -> bytes:
    return keccak256(b"\x02" + len(leaves).to_bytes(8, "big") + mth(leaves))


def naive_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """RFC 9162 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return ()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    if index < split:
        return (*naive_path(leaves[:split], index), mth(leaves[split:]))
    return (*naive_path(leaves[split:], index - split), mth(leaves[:split]))


def grown(size: int) -> tuple[MountainRange, Callable[[int], bytes]]:
    """A range of the first leaves, appended one at a time, and its stored hashes."""
    stored: list[bytes] = []
    mountains = MountainRange()
    for leaf in LEAVES[:size]:
        assert mountains.stored == len(stored)
        mountains, new = mountains.append([leaf_hash(leaf)])
        stored += new
    return mountains, stored.__getitem__


ALL, NODES = grown(len(LEAVES))


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40, unique=True), st.data())
def test_merkle_proofs_verify_only_for_their_leaf(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, path = merkle_root(leaves), merkle_proof(leaves, index)
    assert verify_merkle(root, leaves[index], index, len(leaves), path)
    assert not verify_merkle(root, leaves[index] + b"!", index, len(leaves), path)
    assert not verify_merkle(root, leaves[index], index, len(leaves), (*path, bytes(32)))
    for size in range(1, 2 * len(leaves) + 2):
        for place in range(size):
            if (place, size) != (index, len(leaves)):
                assert not verify_merkle(root, leaves[index], place, size, path)
    if path:
        assert not verify_merkle(root, leaves[index], index, len(leaves), path[:-1])


def test_a_merkle_node_cannot_pass_as_a_leaf() -> None:
    left, right = keccak256(b"\x00a"), keccak256(b"\x00b")
    root = merkle_root([b"a", b"b"])
    assert not verify_merkle(root, left + right, 0, 1, ())
    assert not verify_merkle(root, left + right, 0, 2, ())


@pytest.mark.parametrize("index", [-1, 1, 2])
def test_there_is_no_proof_of_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(EncodingError):
        merkle_proof([b"a"], index)
    with pytest.raises(EncodingError):
        mountain_proof(NODES, index, 1)


@given(st.integers(0, len(LEAVES)))
def test_roots_and_paths_are_the_rfcs(size: int) -> None:
    leaves = LEAVES[:size]
    assert merkle_root(leaves) == root_of_hashes(map(leaf_hash, leaves)) == root_of(leaves)
    for index, path in enumerate(merkle_proofs(leaves)):
        assert path == naive_path(leaves, index)
    tree = MerkleTree(map(leaf_hash, leaves))
    assert (len(tree), tree.root) == (size, root_of(leaves))


# Mountain ranges


@given(st.lists(st.integers(0, 40), max_size=6))
def test_a_range_grows_to_the_trees_root_however_it_is_fed(steps: list[int]) -> None:
    mountains, stored, size = MountainRange(), list[bytes](), 0
    for step in steps:
        end = min(size + step, len(LEAVES))
        mountains, new = mountains.append(map(leaf_hash, LEAVES[size:end]))
        stored, size = stored + new, end
        assert mountains.root == root_of(LEAVES[:size])
        assert mountains.size == size
        assert mountains.stored == len(stored)
    assert stored == [NODES(position) for position in range(len(stored))]
    assert MountainRange.load(stored.__getitem__, size) == mountains


@given(SIZES, st.data())
def test_any_leaf_is_proven_against_any_later_size(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    path = mountain_proof(NODES, index, size)
    assert path == naive_path(LEAVES[:size], index)
    assert verify_merkle(root_of(LEAVES[:size]), LEAVES[index], index, size, path)


@given(st.integers(0, len(LEAVES)), st.integers(0, len(LEAVES)))
def test_a_range_is_shown_to_be_the_beginning_of_another(one: int, other: int) -> None:
    old, new = sorted((one, other))
    before, after = root_of(LEAVES[:old]), root_of(LEAVES[:new])
    path = consistency_proof(NODES, old, new)
    assert verify_consistency(before, old, after, new, path)
    assert not verify_consistency(before, old, after, new, (*path, bytes(32)))
    if 0 < old < new:
        assert not verify_consistency(before, old, after, new, path[:-1])
        assert not verify_consistency(before, old, after, new, path[1:])
        for at in range(len(path)):
            broken = (*path[:at], keccak256(path[at]), *path[at + 1 :])
            assert not verify_consistency(before, old, after, new, broken)
    forked = root_of([b"fork", *LEAVES[1:old]])
    if old:
        assert not verify_consistency(forked, old, after, new, path)
    for wrong in range(new + 2):
        if wrong != old:
            assert not verify_consistency(before, wrong, after, new, path)


def test_a_smaller_range_cannot_be_the_later_one() -> None:
    with pytest.raises(EncodingError):
        consistency_proof(NODES, 5, 4)
    root = root_of(LEAVES[:5])
    assert not verify_consistency(root, 5, root, 4, ())
    assert not verify_consistency(root, -1, root, 5, ())


@pytest.mark.parametrize("peaks", [(), (bytes(32),), (bytes(32),) * 3])
def test_a_range_has_one_peak_for_each_bit_of_its_size(peaks: tuple[bytes, ...]) -> None:
    with pytest.raises(EncodingError):
        MountainRange(5, peaks)


def test_a_million_leaves_need_twenty_hashes() -> None:
    read: list[int] = []

    def nodes(position: int) -> bytes:
        read.append(position)
        return keccak256(position.to_bytes(8, "big"))

    size = 10**6
    for index in (0, 1, 524_287, 524_288, 999_935, 999_936, 999_999):
        read.clear()
        assert len(mountain_proof(nodes, index, size)) <= 20
        assert len(read) <= 27
        assert all(0 <= position < 2 * size for position in read)


INDEX, SIZE = 77, 111
ROOT, PATH = root_of(LEAVES[:SIZE]), naive_path(LEAVES[:SIZE], INDEX)
FORGED: dict[str, tuple[bytes, bytes, int, int, tuple[bytes, ...]]] = {
    "no path": (ROOT, LEAVES[INDEX], INDEX, SIZE, ()),
    "a hash short": (ROOT, LEAVES[INDEX], INDEX, SIZE, PATH[:-1]),
    "the first hash missing": (ROOT, LEAVES[INDEX], INDEX, SIZE, PATH[1:]),
    "a hash more": (ROOT, LEAVES[INDEX], INDEX, SIZE, (*PATH, PATH[-1])),
    "a zero hash more": (ROOT, LEAVES[INDEX], INDEX, SIZE, (*PATH, bytes(32))),
    "two hashes swapped": (ROOT, LEAVES[INDEX], INDEX, SIZE, (PATH[1], PATH[0], *PATH[2:])),
    "a leaf of the tree at another index": (ROOT, LEAVES[INDEX - 1], INDEX, SIZE, PATH),
    "the leaf at its neighbour's index": (ROOT, LEAVES[INDEX], INDEX - 1, SIZE, PATH),
    "the leaf at the index's mirror": (ROOT, LEAVES[INDEX], INDEX ^ 127, SIZE, PATH),
    "another size": (ROOT, LEAVES[INDEX], INDEX, SIZE + 1, PATH),
    "a size of the same height": (ROOT, LEAVES[INDEX], INDEX, 128, PATH),
    "an index past the end": (ROOT, LEAVES[INDEX], SIZE, SIZE, PATH),
    "an index past the end by the tree's width": (ROOT, LEAVES[INDEX], INDEX + 128, SIZE, PATH),
    "a negative index": (ROOT, LEAVES[INDEX], INDEX - SIZE, SIZE, PATH),
    "an endless tree": (ROOT, LEAVES[INDEX], INDEX, MAX_LEAVES, (bytes(32),) * 63),
    "a path of a million": (ROOT, LEAVES[INDEX], INDEX, SIZE, (bytes(32),) * 10**6),
    "the top without its size": (mth(LEAVES[:SIZE]), LEAVES[INDEX], INDEX, SIZE, PATH),
    "the root of no leaves": (root_of([]), b"", 0, 0, ()),
    "an inner node as the leaf": (ROOT, leaf_hash(LEAVES[76]) + PATH[0], INDEX, SIZE, PATH[1:]),
    "a subtree as the tree": (mth(LEAVES[:64]), LEAVES[3], 3, 64, naive_path(LEAVES[:64], 3)),
    "an older tree's path": (ROOT, LEAVES[INDEX], INDEX, SIZE, naive_path(LEAVES[:100], INDEX)),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_proofs_do_not_verify(name: str) -> None:
    assert verify_merkle(ROOT, LEAVES[INDEX], INDEX, SIZE, PATH)
    assert not verify_merkle(*FORGED[name])

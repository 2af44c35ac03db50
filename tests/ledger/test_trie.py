"""The state root: the definition, removal, buckets read from elsewhere, and proofs of entries."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from slow_trie import slow_root

from daifi_flows.encoding import keccak256
from daifi_flows.errors import LedgerCorrupted
from daifi_flows.ledger import _trie
from daifi_flows.ledger._trie import EMPTY_ROOT, StateProof, Trie, leaf_hash, verify_state

# Keys whose paths share their first bits, so that deep branches, lone leaves that move up, and
# buckets with several entries all occur in small sets.
_POOL = [b"%d" % i for i in range(150_000)]
_BY_BUCKET: dict[bytes, list[bytes]] = {}
for _key in _POOL:
    _BY_BUCKET.setdefault(keccak256(_key)[:2], []).append(_key)
CROWDED = sorted(
    (key for keys in _BY_BUCKET.values() if len(keys) >= 9 for key in keys), key=keccak256
)[:40]
NEAR = sorted(_POOL[:4_000], key=keccak256)[:40]
KEYS = st.sampled_from(CROWDED + NEAR) | st.binary(max_size=2)
VALUES = st.binary(max_size=3)
ENTRIES = st.dictionaries(KEYS, VALUES, max_size=40)


class File:
    """Entries as a ledger file has them: read by bucket."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.read = 0

    def bucket(self, index: int) -> Iterable[tuple[bytes, bytes]]:
        self.read += 1
        for key, value in self.entries.items():
            path = keccak256(key)
            if int.from_bytes(path[:2], "big") == index:
                yield path, leaf_hash(path, value)


def test_the_pool_has_crowded_buckets() -> None:
    assert len(CROWDED) == 40 and len({keccak256(key)[:2] for key in CROWDED}) < 6


@settings(deadline=None)
@given(before=ENTRIES, changes=st.dictionaries(KEYS, st.none() | VALUES, max_size=40))
def test_any_changes_lead_to_the_root_of_the_definition(
    before: dict[bytes, bytes], changes: dict[bytes, bytes | None]
) -> None:
    trie = Trie().update(before).merge()
    root = trie.root
    assert root == slow_root(before)
    after = trie.update(changes)
    expected = {k: v for k, v in (before | changes).items() if v is not None}
    assert after.root == slow_root(expected)
    assert trie.root == root
    assert after.update(dict.fromkeys(expected)).root == EMPTY_ROOT
    assert Trie.restore(after.summaries(), None).root == after.root


class Blocks(RuleBasedStateMachine):
    """Blocks of changes, some dropped, over a trie whose buckets are in a file."""

    @initialize(cached=st.integers(1, 8))
    def start(self, cached: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(_trie, "_CACHED_BUCKETS", cached)
        self.file = File()
        self.trie = Trie(self.file.bucket)

    def teardown(self) -> None:
        self.patch.undo()

    @rule(changes=st.dictionaries(KEYS, st.none() | VALUES, max_size=12), certified=st.booleans())
    def block(self, changes: dict[bytes, bytes | None], certified: bool) -> None:
        after = self.trie.update(changes)
        expected = {k: v for k, v in (self.file.entries | changes).items() if v is not None}
        assert after.root == slow_root(expected)
        if certified:
            self.file.entries = expected
            self.trie = after.merge()

    @rule()
    def restart(self) -> None:
        self.trie = Trie.restore(list(self.trie.summaries()), self.file.bucket)

    @rule(key=KEYS)
    def look(self, key: bytes) -> None:
        path, value = keccak256(key), self.file.entries.get(key)
        assert self.trie.leaf(path) == (None if value is None else leaf_hash(path, value))

    @invariant()
    def same_root(self) -> None:
        assert self.trie.root == slow_root(self.file.entries)
        assert len(self.trie._ground.buckets) <= _trie._CACHED_BUCKETS


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@settings(deadline=None)
@given(entries=ENTRIES, key=KEYS, other=KEYS)
def test_one_proof_and_one_value_pass(
    entries: dict[bytes, bytes], key: bytes, other: bytes
) -> None:
    trie = Trie().update(entries)
    paths = {keccak256(each): each for each in entries}

    def value_hash(path: bytes) -> bytes:
        return keccak256(entries[paths[path]])

    proof, value = trie.prove(key, value_hash), entries.get(key)
    again = StateProof.from_canonical(proof.canonical())
    assert again == proof and verify_state(trie.root, key, value, again)
    wrong_values = [None, b"", b"wrong", *entries.values()]
    for wrong in wrong_values:
        assert verify_state(trie.root, key, wrong, proof) == (wrong == value)
    if other != key:
        assert not verify_state(trie.root, other, entries.get(other, b""), proof) or (
            trie.prove(other, value_hash) == proof and other not in entries
        )
    assert not verify_state(keccak256(trie.root), key, value, proof)
    siblings = proof.siblings
    changed = [
        {"siblings": (*siblings, bytes(32))},
        {"siblings": (*siblings, keccak256(b""))},
        {"siblings": siblings[1:]} if siblings else {"siblings": (keccak256(b"x"),)},
        {"siblings": siblings[:-1]} if siblings else {"siblings": (keccak256(b"y"),)},
        {"other": keccak256(b"o")},
        {"other_value": keccak256(b"o")},
        {"other": keccak256(key), "other_value": keccak256(value or b"")},
        {"other": keccak256(key + b"o"), "other_value": keccak256(b"o")},
    ]
    for change in changed:
        forged = proof.model_copy(update=change)
        assert not verify_state(trie.root, key, value, forged)
        assert not verify_state(trie.root, key, None if value is not None else b"", forged)


def test_the_empty_state_has_nothing() -> None:
    proof = Trie().prove(b"k", lambda _: b"")
    assert proof.siblings == () and verify_state(EMPTY_ROOT, b"k", None, proof)
    assert not verify_state(EMPTY_ROOT, b"k", b"", proof)


def test_a_source_that_lost_or_changed_an_entry_is_noticed() -> None:
    file = File()
    file.entries = dict.fromkeys(CROWDED, b"v")
    summaries = list(Trie().update(file.entries).summaries())
    victim = CROWDED[3]
    for damage in ({}, {victim: b"w"}):
        file.entries = {k: v for k, v in file.entries.items() if k != victim} | damage
        trie = Trie.restore(summaries, file.bucket)
        with pytest.raises(LedgerCorrupted, match="backup"):
            trie.leaf(keccak256(victim))
        with pytest.raises(LedgerCorrupted):
            trie.update({victim: b"x"})
        trie.update({CROWDED[-1]: b"x"})


def test_tries_over_a_merged_ground_are_refused() -> None:
    ground = Trie()
    one = ground.update({b"a": b"1"})
    two = one.update({b"b": b"2"})
    assert one.merge().root == ground.root == slow_root({b"a": b"1"})
    with pytest.raises(AssertionError, match="merged"):
        _ = two.root

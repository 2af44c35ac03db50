"""The certified state as it is in the ledger file, with a bounded cache of decoded records.

Every record is checked against the state root when it is read: a row that was lost, changed or
put back to an older value is noticed, not only one whose bytes are damaged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final

from daifi_flows.encoding import keccak256
from daifi_flows.ledger._records import Record
from daifi_flows.ledger._state import Base, decode_entry
from daifi_flows.ledger._store_reads import StoreReads
from daifi_flows.ledger._store_schema import damaged
from daifi_flows.ledger._trie import OrderedEntries, Trie, leaf_hash

__all__ = ["StoreBase"]

_CACHED_RECORDS: Final = 4_096
"""About 10 MB of decoded records: those of the tasks in flight and of the accounts in use."""


class StoreBase(Base):
    """What layers sit on when the state is in a file.

    Args:
        trie: over the same entries; it follows as blocks are merged into its ground.
    """

    __slots__ = ("_cache", "_store", "_trie")

    def __init__(self, store: StoreReads, trie: Trie) -> None:
        self._store = store
        self._trie = trie
        self._cache: OrderedDict[bytes, Record | None] = OrderedDict()

    def get(self, key: bytes) -> Record | None:
        """The record under ``key``.

        Raises:
            LedgerCorrupted: the file does not have what its certified root says.
        """
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        found = self._read(key)
        self._keep(key, found)
        return found

    def _read(self, key: bytes) -> Record | None:
        path = keccak256(key)
        leaf = self._trie.leaf(path)
        if leaf is None:
            return None
        entry = self._store.entry(path)
        if entry is None or leaf_hash(path, entry.value) != leaf or entry.key != key:
            raise damaged(self._store.path, "a state entry does not match the certified root")
        return decode_entry(key, entry.value)

    def _keep(self, key: bytes, record: Record | None) -> None:
        self._cache[key] = record
        self._cache.move_to_end(key)
        if len(self._cache) > _CACHED_RECORDS:
            self._cache.popitem(last=False)

    def items(self) -> Iterator[tuple[bytes, Record]]:
        """Every entry, by ``keccak256(key)``.

        Raises:
            LedgerCorrupted: at the end: they are not those of the certified root.
        """
        seen = OrderedEntries()
        for entry in self._store.entries():
            seen.add(entry.path, leaf_hash(entry.path, entry.value))
            yield entry.key, decode_entry(entry.key, entry.value)
        if Trie.restore(seen.summaries().items(), None).root != self._trie.root:
            raise damaged(self._store.path, "its state entries do not match the certified root")

    def apply(self, changes: Mapping[bytes, Record | None]) -> None:
        """Take what the file holds already: changes of the block that became final."""
        for key, record in changes.items():
            self._keep(key, record)

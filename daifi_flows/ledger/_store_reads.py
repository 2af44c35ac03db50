"""Reading a ledger file: blocks, lookups, the state as it is stored. Rows are checked as read."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from daifi_flows.cnft import BlockHeader, QuorumCertificate
from daifi_flows.encoding import EncodingError, decode_canonical, keccak256
from daifi_flows.ledger._store_schema import (
    GENESIS_LINK,
    Mark,
    Row,
    certificate_check,
    checksum,
    damaged,
    link,
    parse_row,
    readable,
)
from daifi_flows.ledger._trie import Summary

__all__ = ["Entry", "Head", "StoreReads"]


class Head(NamedTuple):
    """The last final block as ``meta`` has it: written with everything that became final."""

    height: int
    header: BlockHeader
    certificate: QuorumCertificate
    link: bytes


class Entry(NamedTuple):
    """A state entry: ``path`` is ``keccak256(key)``, ``leaf`` its hash in the trie."""

    path: bytes
    leaf: bytes
    key: bytes
    value: bytes


class StoreReads:
    """Reads of an open ledger file. Used from one thread at a time."""

    path: Path
    _reader: sqlite3.Connection

    # Meta

    def meta(self, key: str) -> bytes | None:
        """A value of the file's own."""
        row = self._one("SELECT value, checksum FROM meta WHERE key = ?", key)
        if row is None:
            return None
        if row[1] != checksum(key.encode(), row[0]):
            raise damaged(self.path, f"{key} fails its checksum")
        return row[0]

    def head(self) -> Head | None:
        """The last final block; absent where there is none after genesis.

        Raises:
            LedgerCorrupted: what is stored is no head.
        """
        raw = self.meta("head")
        if raw is None:
            return None
        try:
            plain = decode_canonical(raw)
            header = BlockHeader.from_plain(plain["header"])
            certificate = QuorumCertificate.from_plain(plain["certificate"])
            return Head(header.height, header, certificate, plain["link"])
        except (EncodingError, KeyError, TypeError) as error:
            raise damaged(self.path, f"head: {error}") from error

    @property
    def term(self) -> int:
        """The newest writer's term."""
        raw = self.meta("term")
        return 0 if raw is None else int.from_bytes(raw, "big")

    # Blocks

    def first(self) -> int:
        """Height of the first block in the file; 1 more than the last where there is none."""
        (low,) = self._one("SELECT MIN(height) FROM blocks")
        return low if low is not None else self.origin + 1

    @property
    def origin(self) -> int:
        """Height of the state the file began with: 0, or that of a snapshot."""
        raw = self.meta("origin")
        return 0 if raw is None else int.from_bytes(raw[:8], "big")

    def last(self) -> int:
        """Height of the last block in the file, a journaled one included."""
        (high,) = self._one("SELECT MAX(height) FROM blocks")
        return high if high is not None else self.origin

    def link_at(self, height: int) -> bytes:
        """The checksum that the block after ``height`` is chained over.

        Raises:
            LedgerCorrupted: that block is missing.
        """
        if height == self.origin:
            return GENESIS_LINK
        row = self._one("SELECT link FROM blocks WHERE height = ?", height)
        if row is None:
            raise damaged(self.path, f"block {height} is missing", height)
        return row[0]

    def rows(self, first: int, last: int) -> Iterator[Row]:
        """Parsed blocks of these heights that are in the file, in order.

        Raises:
            LedgerCorrupted: one is missing between others, or not what was written; the
                message names the height.
        """
        first = max(first, self.origin + 1)
        if first > last or first > self.last():
            return
        expected, before, certified = first, self.link_at(first - 1), True
        with readable(self.path):
            found = self._reader.execute(
                "SELECT b.height, b.link, b.block, b.receipts, c.certificate, c.checksum "
                "FROM blocks b LEFT JOIN certificates c ON c.height = b.height "
                "WHERE b.height BETWEEN ? AND ? ORDER BY b.height",
                (first, last),
            )
            for height, stored, raw, leaves, certificate, check in found:
                if height != expected:
                    raise damaged(self.path, f"block {expected} is missing", expected)
                if not certified:
                    raise damaged(self.path, "it has successors but no certificate", height - 1)
                if stored != link(before, height, raw, leaves):
                    raise damaged(self.path, "the block fails its checksum", height)
                if certificate is not None and check != certificate_check(
                    stored, height, certificate
                ):
                    raise damaged(self.path, "the certificate fails its checksum", height)
                yield parse_row(self.path, height, raw, leaves, certificate)
                expected, before, certified = height + 1, stored, certificate is not None

    # Lookups

    def find_tx(self, tx: bytes) -> tuple[int, int] | None:
        """Height and position of a final transaction."""
        row = self._one("SELECT height, position, checksum FROM txs WHERE hash = ?", tx)
        if row is None:
            return None
        if row[2] != checksum(tx, row[0], row[1]):
            raise damaged(self.path, "a transaction's index entry fails its checksum")
        return row[0], row[1]

    def find_mark(self, mark: bytes) -> Mark | None:
        """The final transaction that did what ``mark`` names."""
        row = self._one("SELECT hash, intent, checksum FROM marks WHERE mark = ?", mark)
        if row is None:
            return None
        if row[2] != checksum(mark, row[0], row[1]):
            raise damaged(self.path, "an action's index entry fails its checksum")
        return Mark(row[0], row[1])

    def node(self, position: int) -> bytes:
        """Stored hash of the mountain range over receipts.

        Raises:
            LedgerCorrupted: it is missing.
        """
        row = self._one("SELECT hash FROM history WHERE position = ?", position)
        if row is None or len(row[0]) != 32:
            raise damaged(self.path, f"hash {position} of the receipts' history is missing")
        return row[0]

    # State

    def entry(self, path: bytes) -> Entry | None:
        """The state entry at ``keccak256(key)``; to be checked against the trie."""
        row = self._one("SELECT path, leaf, key, value FROM state WHERE path = ?", path)
        return None if row is None else Entry(*row)

    def bucket(self, index: int) -> list[tuple[bytes, bytes]]:
        """Path and leaf hash of each entry of a bucket (a trie's source)."""
        low = index.to_bytes(2, "big")
        with readable(self.path):
            return self._reader.execute(
                "SELECT path, leaf FROM state WHERE path >= ? AND path <= ?",
                (low, low + b"\xff" * 30),
            ).fetchall()

    def entries(self) -> Iterator[Entry]:
        """All final state entries, by path.

        Raises:
            LedgerCorrupted: one is not under its own path.
        """
        with readable(self.path):
            for row in self._reader.execute(
                "SELECT path, leaf, key, value FROM state ORDER BY path"
            ):
                if keccak256(row[2]) != row[0]:
                    raise damaged(self.path, "a state entry is under another's path")
                yield Entry(*row)

    def count_entries(self) -> int:
        """Number of state entries."""
        return self._one("SELECT COUNT(*) FROM state")[0]

    def summaries(self) -> Iterator[tuple[int, Summary]]:
        """Every bucket that is not empty, in order.

        Raises:
            LedgerCorrupted: one is out of range.
        """
        with readable(self.path):
            for index, kind, digest in self._reader.execute("SELECT * FROM buckets ORDER BY 1"):
                if not 0 <= index < 1 << 16 or kind not in (0, 1, 2) or len(digest) != 32:
                    raise damaged(self.path, "a bucket of the state is out of range")
                yield index, Summary(kind, digest)

    def table(self, name: str) -> Iterator[tuple[Any, ...]]:
        """Every row of a table in the order of its primary key, as it is stored."""
        with readable(self.path):
            found = self._reader.execute(f"SELECT * FROM {name} ORDER BY 1")  # noqa: S608
            # Not delegated: a generator dropped after its file was closed would close the cursor.
            for row in found:  # noqa: UP028
                yield row

    # Instants

    @contextmanager
    def pinned(self) -> Generator[None]:
        """Reads inside see the file at one instant, whatever is written meanwhile."""
        with readable(self.path):
            self._reader.execute("BEGIN")
        try:
            self._one("SELECT 1 FROM meta LIMIT 1")  # takes the instant
            yield
        finally:
            self._reader.rollback()

    def _one(self, query: str, *values: object) -> Any:
        try:
            return self._reader.execute(query, values).fetchone()
        except Exception as error:
            with readable(self.path):
                raise error  # as the ledger's own; entering first would cost each look-up more

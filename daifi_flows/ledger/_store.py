"""The ledger file: SQLite in WAL mode, synchronous to disk, a checksum on every row.

Blocks are journaled before they are certified and certified before they are acknowledged. State
entries, and the two lookup tables, change in the same SQLite transaction as the certificate.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from daifi_flows.cnft import QuorumCertificate, TxReceipt
from daifi_flows.encoding import canonical, decode_canonical, sha256
from daifi_flows.errors import EncodingError, LedgerCorrupted, LedgerError, LedgerUnavailable
from daifi_flows.ledger._blocks import Block
from daifi_flows.ledger._params import Genesis

__all__ = ["Mark", "Row", "Store", "transaction"]

_FORMAT: Final = b"daifi-ledger/1"
_NOT_OUR_FILE: Final = ("unable to open", "readonly", "disk I/O", "full", "not authorized")
"""SQLite's words for trouble with the disk rather than with the file's content."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (
  height INTEGER PRIMARY KEY, block BLOB NOT NULL, receipts BLOB NOT NULL, certificate BLOB,
  checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS state (
  key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS txs (
  hash BLOB PRIMARY KEY, height INTEGER NOT NULL, position INTEGER NOT NULL,
  checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
  position INTEGER PRIMARY KEY, hash BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS marks (
  mark BLOB PRIMARY KEY, hash BLOB NOT NULL, intent BLOB NOT NULL,
  checksum BLOB NOT NULL) WITHOUT ROWID;
"""


def checksum(*parts: bytes | int | None) -> bytes:
    """16 bytes of SHA-256 over length-prefixed parts."""
    joined = bytearray()
    for part in parts:
        raw = str(part).encode() if isinstance(part, int) else part
        joined += b"\xff" if raw is None else b"\x00" + len(raw).to_bytes(8, "big") + raw
    return sha256(bytes(joined))[:16]


class Row(NamedTuple):
    """One journaled block; ``certificate`` is absent while seats are still asked."""

    height: int
    block: Block
    raw: bytes
    receipts: tuple[TxReceipt, ...]
    certificate: QuorumCertificate | None


class Mark(NamedTuple):
    """Which transaction did something that happens once, and what exactly was asked."""

    tx: bytes
    intent: bytes


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """All or nothing, flushed to disk on success."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


@contextmanager
def readable(path: Path) -> Generator[None]:
    """Turn SQLite's errors into the ledger's own."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise LedgerUnavailable(f"ledger file {path} is closed; start the ledger again") from error
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise LedgerUnavailable(
                f"ledger file {path} is locked by another process; stop it first"
            ) from error
        if any(word in str(error) for word in _NOT_OUR_FILE):
            raise LedgerUnavailable(
                f"ledger file {path} cannot be used ({error}); check the disk and its permissions"
            ) from error
        raise _damaged(path, str(error)) from error
    except (sqlite3.DatabaseError, sqlite3.Warning, OverflowError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str, height: int | None = None) -> LedgerCorrupted:
    where = "" if height is None else f" at height {height}"
    why = "".join(c if c.isprintable() else " " for c in why)[:200]
    return LedgerCorrupted(
        f"ledger file {path} is damaged{where} ({why}): restore it from a backup", height=height
    )


class Store:
    """An open ledger file. One writer at a time, held by a lock the kernel frees on death.

    Args:
        writable: take the writer's lock; otherwise the file is only read (audit).

    Raises:
        LedgerUnavailable: another process writes this file, or it cannot be opened.
        LedgerCorrupted: it is not a sound ledger file.
        LedgerError: there is no such file to read, or it belongs to another ledger.
    """

    def __init__(self, path: Path, genesis: Genesis | None, *, writable: bool = True) -> None:
        self.path = path
        self._lock = -1
        if not writable and not path.is_file():
            raise LedgerError(f"there is no ledger file at {path}")
        if writable:
            self._take_lock()
        try:
            with readable(path):
                self._open(writable)
                self.genesis = self._check_genesis(genesis)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(
                self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = -1
            raise LedgerUnavailable(
                f"ledger file {self.path} is in use by another process; stop it first"
            ) from error
        except OSError as error:
            raise LedgerUnavailable(
                f"ledger folder {self.path.parent} cannot be written: {error}"
            ) from error

    def _open(self, writable: bool) -> None:
        mode = "rwc" if writable else "ro"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        self._db = self._connect(uri)
        self._reader = self._connect(uri)
        if writable:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != b"ok":
            raise _damaged(self.path, repr(verdict))

    @staticmethod
    def _connect(uri: str) -> sqlite3.Connection:
        # Writes run on a worker thread, one at a time; reads on the event loop's.
        connection = sqlite3.connect(
            uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = bytes  # damage may turn a BLOB into any TEXT
        return connection

    def _check_genesis(self, genesis: Genesis | None) -> Genesis:
        format_ = self._meta("format")
        if format_ is None:
            if genesis is None or self.count() > 0:
                raise _damaged(self.path, "it does not say which ledger it is")
            with transaction(self._db):
                self._put_meta("format", _FORMAT)
                self._put_meta("genesis", genesis.canonical())
            return genesis
        if format_ != _FORMAT:
            raise LedgerError(f"ledger file {self.path} has a format this version cannot read")
        try:
            stored = Genesis.from_canonical(self._meta("genesis") or b"")
        except EncodingError as error:
            raise _damaged(self.path, f"genesis: {error}") from error
        if genesis is not None and stored.ledger_id != genesis.ledger_id:
            raise LedgerError(
                f"ledger file {self.path} belongs to ledger {stored.ledger_id.hex()}, not "
                f"{genesis.ledger_id.hex()}; use another file or the genesis it was made with"
            )
        return stored

    def _meta(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value, checksum FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[1] != checksum(key.encode(), row[0]):
            raise _damaged(self.path, f"{key} fails its checksum")
        return row[0]

    def _put_meta(self, key: str, value: bytes) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES (?, ?, ?)", (key, value, checksum(key.encode(), value))
        )

    def close(self) -> None:
        """Close the file and free the lock."""
        for name in ("_db", "_reader"):
            connection = getattr(self, name, None)
            if connection is not None:
                connection.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Writing

    def journal(self, raw: bytes, height: int, receipts: Sequence[TxReceipt]) -> None:
        """Write a proposed block ahead of its certificate; on disk when this returns."""
        leaves = canonical([receipt.plain() for receipt in receipts])
        with readable(self.path), transaction(self._db):
            self._db.execute(
                "INSERT INTO blocks VALUES (?, ?, ?, NULL, ?)",
                (height, raw, leaves, checksum(height, raw, leaves, None)),
            )

    def finalise(
        self,
        height: int,
        certificate: QuorumCertificate,
        entries: Mapping[bytes, bytes | None],
        txs: Sequence[bytes],
        marks: Mapping[bytes, Mark],
        first_node: int,
        nodes: Sequence[bytes],
    ) -> None:
        """Write a block's certificate and everything that became final with it.

        ``nodes`` are the hashes it adds to the history, from position ``first_node`` on.
        """
        with readable(self.path), transaction(self._db):
            raw, leaves = self._db.execute(
                "SELECT block, receipts FROM blocks WHERE height = ?", (height,)
            ).fetchone()
            encoded = certificate.canonical()
            self._db.execute(
                "UPDATE blocks SET certificate = ?, checksum = ? WHERE height = ?",
                (encoded, checksum(height, raw, leaves, encoded), height),
            )
            self._put_entries(entries)
            self._db.executemany(
                "INSERT INTO txs VALUES (?, ?, ?, ?)",
                [(tx, height, at, checksum(tx, height, at)) for at, tx in enumerate(txs)],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?)",
                [(key, m.tx, m.intent, checksum(key, *m)) for key, m in marks.items()],
            )
            self._db.executemany(
                "INSERT INTO history VALUES (?, ?, ?)",
                [(at, node, checksum(at, node)) for at, node in enumerate(nodes, first_node)],
            )

    def seed(self, entries: Mapping[bytes, bytes]) -> None:
        """Write the genesis state into a fresh file."""
        with readable(self.path), transaction(self._db):
            self._put_entries(entries)

    def _put_entries(self, entries: Mapping[bytes, bytes | None]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO state VALUES (?, ?, ?)",
            [(k, v, checksum(k, v)) for k, v in entries.items() if v is not None],
        )
        self._db.executemany(
            "DELETE FROM state WHERE key = ?", [(k,) for k, v in entries.items() if v is None]
        )

    # Reading

    def count(self) -> int:
        """Blocks in the file, a journaled one included."""
        with readable(self.path):
            return self._reader.execute("SELECT COUNT(*) FROM blocks").fetchone()[0]

    def rows(self, first: int, last: int) -> Iterator[Row]:
        """Parsed blocks of these heights, in order.

        Raises:
            LedgerCorrupted: naming the height.
        """
        with readable(self.path):
            found = self._reader.execute(
                "SELECT height, block, receipts, certificate, checksum FROM blocks "
                "WHERE height BETWEEN ? AND ? ORDER BY height",
                (first, last),
            )
            for height, raw, leaves, certificate, stored in found:
                if stored != checksum(height, raw, leaves, certificate):
                    raise _damaged(self.path, "the block fails its checksum", height)
                yield self._parse(height, raw, leaves, certificate)

    def _parse(self, height: int, raw: bytes, leaves: bytes, certificate: bytes | None) -> Row:
        try:
            block = Block.from_canonical(raw)
            receipts = tuple(TxReceipt.from_plain(leaf) for leaf in decode_canonical(leaves))
            parsed = None if certificate is None else QuorumCertificate.from_canonical(certificate)
        except (EncodingError, TypeError) as error:
            raise _damaged(self.path, str(error), height) from error
        if block.header.height != height or len(receipts) != len(block.transactions):
            raise _damaged(self.path, "the row holds another block", height)
        return Row(height, block, raw, receipts, parsed)

    def scan(self) -> int:
        """Check every block's checksum and that heights have no gap; the number of blocks."""
        expected = 0
        with readable(self.path):
            found = self._reader.execute(
                "SELECT height, block, receipts, certificate, checksum FROM blocks ORDER BY height"
            )
            for height, raw, leaves, certificate, stored in found:
                expected += 1
                if height != expected:
                    raise _damaged(self.path, f"block {expected} is missing", expected)
                if stored != checksum(height, raw, leaves, certificate):
                    raise _damaged(self.path, "the block fails its checksum", height)
        return expected

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """All final state entries.

        Raises:
            LedgerCorrupted: one fails its checksum.
        """
        with readable(self.path):
            for key, value, stored in self._reader.execute("SELECT * FROM state"):
                if stored != checksum(key, value):
                    raise _damaged(self.path, "a state entry fails its checksum")
                yield key, value

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Reads inside see the file at one instant, whatever is written meanwhile."""
        with readable(self.path):
            self._reader.execute("BEGIN")
            try:
                yield
            finally:
                self._reader.execute("COMMIT")

    def find_tx(self, tx: bytes) -> tuple[int, int] | None:
        """Height and position of a final transaction."""
        row = self._one("SELECT height, position, checksum FROM txs WHERE hash = ?", tx)
        if row is None:
            return None
        if row[2] != checksum(tx, row[0], row[1]):
            raise _damaged(self.path, "a transaction's index entry fails its checksum")
        return row[0], row[1]

    def find_mark(self, mark: bytes) -> Mark | None:
        """The final transaction that did what ``mark`` names."""
        row = self._one("SELECT hash, intent, checksum FROM marks WHERE mark = ?", mark)
        if row is None:
            return None
        if row[2] != checksum(mark, row[0], row[1]):
            raise _damaged(self.path, "an action's index entry fails its checksum")
        return Mark(row[0], row[1])

    def node(self, position: int) -> bytes:
        """The hash at a position of the history's mountain range.

        Raises:
            LedgerCorrupted: it is not there, or fails its checksum.
        """
        row = self._one("SELECT hash, checksum FROM history WHERE position = ?", position)
        if row is None or row[1] != checksum(position, row[0]):
            raise _damaged(self.path, f"hash {position} of the history fails its checksum")
        return row[0]

    def nodes(self) -> list[bytes]:
        """All hashes of the history in order, for the audit."""
        with readable(self.path):
            found = self._reader.execute("SELECT * FROM history ORDER BY position").fetchall()
        for expected, (position, node, stored) in enumerate(found):
            if position != expected or stored != checksum(position, node):
                raise _damaged(self.path, f"hash {expected} of the history fails its checksum")
        return [node for _, node, _ in found]

    def index(self) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, Mark]]:
        """Both lookup tables whole, for the audit."""
        with readable(self.path):
            txs = {row[0]: (row[1], row[2]) for row in self._reader.execute("SELECT * FROM txs")}
            marks = {
                row[0]: Mark(row[1], row[2]) for row in self._reader.execute("SELECT * FROM marks")
            }
        return txs, marks

    def _one(self, query: str, key: bytes | int) -> Any:
        with readable(self.path):
            return self._reader.execute(query, (key,)).fetchone()

"""What a ledger file holds, how its rows are checked, and what SQLite's errors mean here."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from daifi_flows.cnft import QuorumCertificate, TxReceipt
from daifi_flows.encoding import decode_canonical, sha256
from daifi_flows.errors import EncodingError, LedgerCorrupted, LedgerUnavailable
from daifi_flows.ledger._blocks import Block

__all__ = [
    "FORMAT",
    "GENESIS_LINK",
    "SCHEMA",
    "Mark",
    "Row",
    "certificate_check",
    "checksum",
    "connect",
    "damaged",
    "link",
    "parse_row",
    "readable",
    "transaction",
]

FORMAT: Final = b"daifi-ledger/2"
_DISK_TROUBLE: Final = ("unable to open", "readonly", "disk I/O", "full", "not authorized")
"""SQLite's words for trouble with the disk rather than with the file's content."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (
  height INTEGER PRIMARY KEY, link BLOB NOT NULL, block BLOB NOT NULL, receipts BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS certificates (
  height INTEGER PRIMARY KEY, certificate BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS state (
  path BLOB PRIMARY KEY, leaf BLOB NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS buckets (
  bucket INTEGER PRIMARY KEY, kind INTEGER NOT NULL, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS history (position INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS txs (
  hash BLOB PRIMARY KEY, height INTEGER NOT NULL, position INTEGER NOT NULL,
  checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (
  mark BLOB PRIMARY KEY, hash BLOB NOT NULL, intent BLOB NOT NULL,
  checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nodes (key BLOB PRIMARY KEY) WITHOUT ROWID;
"""
"""``state`` and ``buckets`` are checked against the certified state root, ``history`` against the
certified history root, and ``nodes`` names entries of the state; every other row carries a
checksum. A block's ``link`` is chained over the block before it, so that a block cut out or
replaced is noticed by its successor, and the last one by the ``head`` in ``meta``."""

GENESIS_LINK: Final = bytes(16)


def checksum(*parts: bytes | int | None) -> bytes:
    """16 bytes of SHA-256 over length-prefixed parts."""
    joined = bytearray()
    for part in parts:
        raw = str(part).encode() if isinstance(part, int) else part
        joined += b"\xff" if raw is None else b"\x00" + len(raw).to_bytes(8, "big") + raw
    return sha256(bytes(joined))[:16]


def link(before: bytes, height: int, block: bytes, receipts: bytes) -> bytes:
    """A block row's checksum, over that of the row before it."""
    return checksum(before, height, block, receipts)


def certificate_check(block_link: bytes, height: int, certificate: bytes) -> bytes:
    """A certificate row's checksum, over that of its block."""
    return checksum(block_link, height, certificate)


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


def parse_row(path: Path, height: int, raw: bytes, leaves: bytes, certificate: bytes | None) -> Row:
    """A stored block.

    Raises:
        LedgerCorrupted: it is none, or another height's.
    """
    try:
        block = Block.from_canonical(raw)
        receipts = tuple(TxReceipt.from_plain(leaf) for leaf in decode_canonical(leaves))
        parsed = None if certificate is None else QuorumCertificate.from_canonical(certificate)
    except (EncodingError, TypeError) as error:
        raise damaged(path, str(error), height) from error
    if block.header.height != height or len(receipts) != len(block.transactions):
        raise damaged(path, "the row holds another block", height)
    return Row(height, block, raw, receipts, parsed)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """All or nothing, flushed to disk on success."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


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
        if any(word in str(error) for word in _DISK_TROUBLE):
            raise LedgerUnavailable(
                f"ledger file {path} cannot be used ({error}): check the disk's free space and "
                "permissions, then start the ledger again; nothing was written by halves"
            ) from error
        raise damaged(path, str(error)) from error
    except (sqlite3.DatabaseError, sqlite3.Warning, OverflowError, TypeError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str, height: int | None = None) -> LedgerCorrupted:
    """The error for a file that is not what was written."""
    where = "" if height is None else f" at height {height}"
    why = "".join(c if c.isprintable() else " " for c in why)[:200]
    return LedgerCorrupted(
        f"ledger file {path} is damaged{where} ({why}): restore it from a backup or a follower",
        height=height,
    )


def connect(uri: str) -> sqlite3.Connection:
    """A connection that any one thread at a time may use.

    Writes run on a worker thread, one at a time; reads on the event loop's.
    """
    connection = sqlite3.connect(
        uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = bytes  # damage may turn a BLOB into any TEXT
    return connection

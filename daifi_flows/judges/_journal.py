"""What a seat said, on disk before it says it: so that no restart makes it contradict itself.

One SQLite file serves every seat whose host works in the folder, whatever host that is: seats
may be packed differently tomorrow and still find their own words. Without the file a seat could
sign two different statements, which is slashed; keep it as safe as the keys.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError

__all__ = ["Entry", "Journal"]

KEPT_HEIGHTS: Final = 64
"""Heights remembered per ledger and seat; below them nothing is signed any more."""
SHOWN_HEIGHTS: Final = 2
"""Newest heights of a ledger whose signed blocks are kept whole: the newest may not be final, and
a copy of the ledger that takes over may lack the one before."""
SHOWN_BLOCKS: Final = 4
"""Blocks kept whole of one height, those that most seats signed: only two can have so many seats
that no other finds a quorum."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS review (
  seat INTEGER NOT NULL, subject BLOB NOT NULL, vote BLOB NOT NULL, salt BLOB NOT NULL,
  locked BLOB, signed BLOB, PRIMARY KEY (seat, subject)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (digest BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS vote (
  seat INTEGER NOT NULL, task BLOB NOT NULL, proof TEXT NOT NULL, vote BLOB NOT NULL,
  PRIMARY KEY (seat, task, proof)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS approval (
  seat INTEGER NOT NULL, ledger BLOB NOT NULL, height INTEGER NOT NULL, round INTEGER NOT NULL,
  hash BLOB NOT NULL, PRIMARY KEY (seat, ledger, height)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block (
  ledger BLOB NOT NULL, height INTEGER NOT NULL, hash BLOB NOT NULL, parent BLOB NOT NULL,
  data BLOB NOT NULL, PRIMARY KEY (ledger, hash)
);
CREATE TABLE IF NOT EXISTS skip (
  seat INTEGER NOT NULL, ledger BLOB NOT NULL, height INTEGER NOT NULL, round INTEGER NOT NULL,
  PRIMARY KEY (seat, ledger, height)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS proposal (
  seat INTEGER NOT NULL, ledger BLOB NOT NULL, height INTEGER NOT NULL, round INTEGER NOT NULL,
  hash BLOB NOT NULL, PRIMARY KEY (seat, ledger, height, round)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """One seat's part in one review.

    Attributes:
        vote: canonical vote it committed to.
        locked: canonical list of commits it opened its vote against.
        signed: canonical list of reveals whose tally it signed.
    """

    vote: bytes
    salt: bytes
    locked: bytes | None = None
    signed: bytes | None = None


class Journal:
    """SQLite in WAL mode; every write is on disk when the method returns. Thread-safe.

    Raises:
        CommitteeError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False)
            self._db.isolation_level = None
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise CommitteeError(f"seat journal {path} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def vote(self, seat: int, task: bytes, proof: str) -> bytes | None:
        """What ``seat`` voted on this proof, whatever attempt it was asked about."""
        rows = self._read(
            "SELECT vote FROM vote WHERE seat = ? AND task = ? AND proof = ?", (seat, task, proof)
        )
        return rows[0][0] if rows else None

    def entries(self, seats: Sequence[int], subject: bytes) -> dict[int, Entry]:
        """Parts of ``seats`` in the review of ``subject`` (a 32-byte key)."""
        rows = self._read(
            "SELECT seat, vote, salt, l.data, s.data FROM review "
            "LEFT JOIN messages l ON l.digest = locked "
            "LEFT JOIN messages s ON s.digest = signed WHERE subject = ?",
            (subject,),
        )
        return {row[0]: Entry(*row[1:]) for row in rows if row[0] in seats}

    def record_votes(
        self, subject: bytes, task: bytes, proof: str, votes: Mapping[int, Entry]
    ) -> None:
        """Remember votes before they are committed to. What is there already stays."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO vote VALUES (?, ?, ?, ?)",
                [(seat, task, proof, entry.vote) for seat, entry in votes.items()],
            )
            db.executemany(
                "INSERT OR IGNORE INTO review (seat, subject, vote, salt) VALUES (?, ?, ?, ?)",
                [(seat, subject, entry.vote, entry.salt) for seat, entry in votes.items()],
            )

    def record_lock(self, subject: bytes, seats: Sequence[int], locked: bytes) -> None:
        """Remember the set of commits before any vote is opened against it; the first stays."""
        with self._transaction() as db:
            digest = _store(db, locked)
            db.executemany(
                "UPDATE review SET locked = ? WHERE seat = ? AND subject = ? AND locked IS NULL",
                [(digest, seat, subject) for seat in seats],
            )

    def record_signed(self, subject: bytes, seats: Sequence[int], signed: bytes) -> None:
        """Remember the tallied reveals before the outcome is signed; the first stays."""
        with self._transaction() as db:
            digest = _store(db, signed)
            db.executemany(
                "UPDATE review SET signed = ? WHERE seat = ? AND subject = ? AND signed IS NULL",
                [(digest, seat, subject) for seat in seats],
            )

    def may_sign_block(
        self,
        seats: Sequence[int],
        ledger: bytes,
        height: int,
        round: int,
        digest: bytes,
        *,
        parent: bytes = b"",
        block: bytes = b"",
    ) -> tuple[int, ...]:
        """Record the block for the seats that may sign it, and return them. Its bytes, where there
        are any, are kept with it for :meth:`signed_after`.

        A seat signs one hash a height and round, none of a round it has passed over, and none of an
        earlier round than one it signed. The same hash again is the same statement. Whoever
        calls this for a later round has checked that a quorum passed over the earlier ones.
        """
        with self._transaction() as db:
            signed = self._at(db, "SELECT seat, round, hash FROM approval", ledger, height)
            passed = self._at(db, "SELECT seat, round FROM skip", ledger, height)
            newest = dict(
                db.execute(
                    "SELECT seat, MAX(height) FROM approval WHERE ledger = ? GROUP BY seat",
                    (ledger,),
                )
            )
            fresh = [
                seat
                for seat in seats
                if (seat not in signed or round > signed[seat][0])
                and (seat not in passed or round > passed[seat][0])
                and height > newest.get(seat, -1) - KEPT_HEIGHTS
            ]
            db.executemany(
                "INSERT OR REPLACE INTO approval VALUES (?, ?, ?, ?, ?)",
                [(seat, ledger, height, round, digest) for seat in fresh],
            )
            for table in ("approval", "skip", "proposal"):
                db.executemany(
                    f"DELETE FROM {table} WHERE seat = ? AND ledger = ? AND height <= ?",  # noqa: S608
                    [(seat, ledger, height - 2 * KEPT_HEIGHTS) for seat in fresh],
                )
            hashes = {seat: row[1] for seat, row in signed.items()} | dict.fromkeys(fresh, digest)
            able = tuple(seat for seat in seats if hashes.get(seat) == digest)
            if able and block:
                db.execute(
                    "INSERT OR IGNORE INTO block VALUES (?, ?, ?, ?, ?)",
                    (ledger, height, digest, parent, block),
                )
            if fresh or block:
                lowest = max([height, *newest.values()]) - SHOWN_HEIGHTS + 1
                _drop_blocks(db, ledger, lowest, height, Counter(hashes.values()))
        return able

    def signed_after(self, seats: Sequence[int], ledger: bytes, parent: bytes) -> bytes:
        """The block on top of ``parent`` (its hash) that one of these seats signed, of the latest
        round; or nothing, where none is kept."""
        rows = self._read(
            "SELECT a.seat, a.round, a.hash FROM block b JOIN approval a "
            "ON a.ledger = b.ledger AND a.height = b.height AND a.hash = b.hash "
            "WHERE b.ledger = ? AND b.parent = ?",
            (ledger, parent),
        )
        found = max(
            ((round, digest) for seat, round, digest in rows if seat in seats), default=None
        )
        if found is None:
            return b""
        data = self._read(
            "SELECT data FROM block WHERE ledger = ? AND hash = ?", (ledger, found[1])
        )
        return data[0][0] if data else b""

    def may_skip(
        self, seats: Sequence[int], ledger: bytes, height: int, round: int
    ) -> tuple[int, ...]:
        """Record that seats pass over the proposers of a height up to ``round``; those that may.

        A seat that signed a block of such a round stays with it.
        """
        with self._transaction() as db:
            signed = self._at(db, "SELECT seat, round, hash FROM approval", ledger, height)
            passed = self._at(db, "SELECT seat, round FROM skip", ledger, height)
            able = [seat for seat in seats if seat not in signed or signed[seat][0] > round]
            db.executemany(
                "INSERT OR REPLACE INTO skip VALUES (?, ?, ?, ?)",
                [
                    (seat, ledger, height, round)
                    for seat in able
                    if seat not in passed or passed[seat][0] < round
                ],
            )
        return tuple(able)

    def passed(self, seats: Sequence[int], ledger: bytes, height: int) -> int | None:
        """The highest round of a height that one of these seats passed over."""
        rows = self._read(
            "SELECT seat, round FROM skip WHERE ledger = ? AND height = ?", (ledger, height)
        )
        return max((round for seat, round in rows if seat in seats), default=None)

    def may_propose(self, seat: int, ledger: bytes, height: int, round: int, digest: bytes) -> bool:
        """Record the header that a drawn seat proposes: one a height and round, for ever."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO proposal VALUES (?, ?, ?, ?, ?)",
                (seat, ledger, height, round, digest),
            )
            rows = db.execute(
                "SELECT hash FROM proposal WHERE seat = ? AND ledger = ? AND height = ? "
                "AND round = ?",
                (seat, ledger, height, round),
            ).fetchall()
        return rows == [(digest,)]

    @staticmethod
    def _at(
        db: sqlite3.Connection, select: str, ledger: bytes, height: int
    ) -> dict[int, tuple[Any, ...]]:
        rows = db.execute(f"{select} WHERE ledger = ? AND height = ?", (ledger, height))
        return {row[0]: row[1:] for row in rows}

    def _read(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise CommitteeError(f"seat journal {self._path} cannot be read: {error}") from error

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise CommitteeError(f"seat journal {self._path} cannot be written: {error}") from error


def _drop_blocks(
    db: sqlite3.Connection, ledger: bytes, lowest: int, height: int, signed: Counter[bytes]
) -> None:
    """Forget blocks of older heights, and of ``height`` those that too few seats signed."""
    db.execute("DELETE FROM block WHERE ledger = ? AND height < ?", (ledger, lowest))
    shown = {digest for digest, _ in signed.most_common(SHOWN_BLOCKS)}
    rows = db.execute("SELECT hash FROM block WHERE ledger = ? AND height = ?", (ledger, height))
    db.executemany(
        "DELETE FROM block WHERE ledger = ? AND hash = ?",
        [(ledger, digest) for (digest,) in rows.fetchall() if digest not in shown],
    )


def _store(db: sqlite3.Connection, data: bytes) -> bytes:
    """Keep a set of messages once, however many seats refer to it; returns its hash."""
    digest = keccak256(data)
    db.execute("INSERT OR IGNORE INTO messages VALUES (?, ?)", (digest, data))
    return digest

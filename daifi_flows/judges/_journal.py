"""What a seat said about blocks, on disk before it says it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from daifi_flows.judges._database import Database

__all__ = ["Journal"]

KEPT_HEIGHTS: Final = 64
"""Heights remembered per ledger and seat; below them nothing is signed any more."""
SHOWN_HEIGHTS: Final = 2
"""Newest heights of a ledger whose signed blocks are kept whole: the newest may not be final, and
a copy of the ledger that takes over may lack the one before."""
SHOWN_BLOCKS: Final = 4
"""Blocks kept whole of one height, those that most seats signed: only two can have so many seats
that no other finds a quorum."""

_SCHEMA: Final = """
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


class Journal:
    """What seats said about blocks; every write is on disk when the method returns. Thread-safe.

    Raises:
        CommitteeError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

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
        with self._database.transaction() as db:
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
        rows = self._database.read(
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
        data = self._database.read(
            "SELECT data FROM block WHERE ledger = ? AND hash = ?", (ledger, found[1])
        )
        return data[0][0] if data else b""

    def may_skip(
        self, seats: Sequence[int], ledger: bytes, height: int, round: int
    ) -> tuple[int, ...]:
        """Record that seats pass over the proposers of a height up to ``round``; those that may.

        A seat that signed a block of such a round stays with it.
        """
        with self._database.transaction() as db:
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
        rows = self._database.read(
            "SELECT seat, round FROM skip WHERE ledger = ? AND height = ?", (ledger, height)
        )
        return max((round for seat, round in rows if seat in seats), default=None)

    def may_propose(self, seat: int, ledger: bytes, height: int, round: int, digest: bytes) -> bool:
        """Record the header that a drawn seat proposes: one a height and round, for ever."""
        with self._database.transaction() as db:
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

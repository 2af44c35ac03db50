"""What seats signed about disputes and batches, on disk before they say it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daifi_flows.judges._database import Database

__all__ = ["MAX_UNSIGNED", "StatementJournal"]

MAX_UNSIGNED: Final = 3
"""Batches of one operator and epoch that a seat opens and never signs, before it opens no more: an
operator that dislikes a draw may try that often again."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS dispute (
  seat INTEGER NOT NULL, place BLOB NOT NULL, finding TEXT NOT NULL, PRIMARY KEY (seat, place)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (
  seat INTEGER NOT NULL, digest BLOB NOT NULL, scope BLOB NOT NULL, state TEXT NOT NULL,
  PRIMARY KEY (seat, digest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batch_scope ON batch (seat, scope, state);
"""


class StatementJournal:
    """Statements of the seats whose host works here, in their one file (see :class:`Database`)."""

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def findings(self, seats: Sequence[int], place: bytes) -> dict[int, str]:
        """What ``seats`` found in the dispute of this place (32 bytes)."""
        rows = self._db.read("SELECT seat, finding FROM dispute WHERE place = ?", (place,))
        return {seat: finding for seat, finding in rows if seat in seats}

    def find(self, seats: Sequence[int], place: bytes, finding: str) -> dict[int, str]:
        """Record a finding for those of ``seats`` that have none; what all of them found."""
        with self._db.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO dispute VALUES (?, ?, ?)",
                [(seat, place, finding) for seat in seats],
            )
        return self.findings(seats, place)

    def open_batch(self, seats: Sequence[int], digest: bytes, scope: bytes) -> tuple[int, ...]:
        """Record that seats draw the sample of a batch; those that do, or did before.

        Args:
            scope: ledger, epoch and operator: within it a seat leaves at most
                :data:`MAX_UNSIGNED` batches unsigned.
        """
        able: list[int] = []
        with self._db.transaction() as db:
            for seat in seats:
                known = db.execute(
                    "SELECT 1 FROM batch WHERE seat = ? AND digest = ?", (seat, digest)
                ).fetchone()
                left = db.execute(
                    "SELECT COUNT(*) FROM batch WHERE seat = ? AND scope = ? AND state != 'signed'",
                    (seat, scope),
                ).fetchone()[0]
                if known is None and left >= MAX_UNSIGNED:
                    continue
                db.execute(
                    "INSERT OR IGNORE INTO batch VALUES (?, ?, ?, 'opened')", (seat, digest, scope)
                )
                able.append(seat)
        return tuple(able)

    def end_batch(self, seats: Sequence[int], digest: bytes, state: str) -> dict[int, str]:
        """Record ``signed`` or ``refused`` for seats that opened the batch and have not ended it;
        how it stands with each of ``seats`` that opened it."""
        with self._db.transaction() as db:
            db.executemany(
                "UPDATE batch SET state = ? WHERE seat = ? AND digest = ? AND state = 'opened'",
                [(state, seat, digest) for seat in seats],
            )
        return self.batch_states(seats, digest)

    def batch_states(self, seats: Sequence[int], digest: bytes) -> dict[int, str]:
        """``opened``, ``signed`` or ``refused``, by seat."""
        rows = self._db.read("SELECT seat, state FROM batch WHERE digest = ?", (digest,))
        return {seat: state for seat, state in rows if seat in seats}

"""What a seat said in reviews, on disk before it says it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daifi_flows.encoding import keccak256
from daifi_flows.judges._database import Database

__all__ = ["Ballot", "ReviewJournal"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS opened (
  seat INTEGER NOT NULL, execution BLOB NOT NULL, subject BLOB NOT NULL,
  PRIMARY KEY (seat, execution)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ballot (
  seat INTEGER NOT NULL, subject BLOB NOT NULL, wave INTEGER NOT NULL, vote BLOB NOT NULL,
  salt BLOB NOT NULL, PRIMARY KEY (seat, subject, wave)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS locked (
  seat INTEGER NOT NULL, subject BLOB NOT NULL, look INTEGER NOT NULL, commits BLOB NOT NULL,
  PRIMARY KEY (seat, subject, look)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attested (
  seat INTEGER NOT NULL, subject BLOB NOT NULL, message BLOB NOT NULL, record BLOB NOT NULL,
  PRIMARY KEY (seat, subject)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (digest BLOB PRIMARY KEY, data BLOB NOT NULL);
"""


@dataclass(frozen=True)
class Ballot:
    """A vote that a seat committed to, in canonical form, and the salt that opens it."""

    vote: bytes
    salt: bytes


class ReviewJournal:
    """Seats' words by review; a subject is named by its digest, 32 bytes. What is there stays.

    Raises:
        CommitteeError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def open(self, seats: Sequence[int], execution: bytes, subject: bytes) -> tuple[int, ...]:
        """Bind seats to one subject of an execution, for ever; those that are bound to this one.

        Args:
            execution: names ledger, task, attempt and node, 32 bytes.
        """
        with self._database.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO opened VALUES (?, ?, ?)",
                [(seat, execution, subject) for seat in seats],
            )
        return self.bound(seats, execution, subject)

    def bound(self, seats: Sequence[int], execution: bytes, subject: bytes) -> tuple[int, ...]:
        """The seats that are bound to this subject of the execution."""
        rows = self._database.read(
            "SELECT seat FROM opened WHERE execution = ? AND subject = ?", (execution, subject)
        )
        found = {row[0] for row in rows}
        return tuple(seat for seat in seats if seat in found)

    def ballots(self, seats: Sequence[int], subject: bytes) -> dict[tuple[int, int], Ballot]:
        """What seats committed to in a review, by seat and wave."""
        rows = self._database.read(
            "SELECT seat, wave, vote, salt FROM ballot WHERE subject = ?", (subject,)
        )
        return {
            (seat, wave): Ballot(vote, salt) for seat, wave, vote, salt in rows if seat in seats
        }

    def vote(self, subject: bytes, ballots: Mapping[tuple[int, int], Ballot]) -> None:
        """Remember votes before they are committed to."""
        with self._database.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO ballot VALUES (?, ?, ?, ?, ?)",
                [
                    (seat, subject, wave, ballot.vote, ballot.salt)
                    for (seat, wave), ballot in ballots.items()
                ],
            )

    def lock(
        self, seats: Sequence[int], subject: bytes, look: int, name: bytes, commits: bytes
    ) -> None:
        """Remember the set of commits of a look before any vote is opened against it.

        Args:
            name: of the set, 32 bytes.
        """
        with self._database.transaction() as db:
            _store(db, name, commits)
            db.executemany(
                "INSERT OR IGNORE INTO locked VALUES (?, ?, ?, ?)",
                [(seat, subject, look, name) for seat in seats],
            )

    def locks(self, seats: Sequence[int], subject: bytes) -> dict[tuple[int, int], bytes]:
        """Names of the sets that seats opened their votes against, by seat and look."""
        rows = self._database.read(
            "SELECT seat, look, commits FROM locked WHERE subject = ?", (subject,)
        )
        return {(seat, look): name for seat, look, name in rows if seat in seats}

    def message(self, name: bytes) -> bytes | None:
        """A set of commits, or a record, that is kept here."""
        rows = self._database.read("SELECT data FROM messages WHERE digest = ?", (name,))
        return rows[0][0] if rows else None

    def attest(
        self, seats: Sequence[int], subject: bytes, message: bytes, record: bytes
    ) -> tuple[int, ...]:
        """Remember the outcome before it is signed, and the record it follows from; the seats that
        may sign it."""
        name = keccak256(message)
        with self._database.transaction() as db:
            digest = keccak256(record)
            _store(db, digest, record)
            db.executemany(
                "INSERT OR IGNORE INTO attested VALUES (?, ?, ?, ?)",
                [(seat, subject, name, digest) for seat in seats],
            )
            rows = db.execute(
                "SELECT seat FROM attested WHERE subject = ? AND message = ?", (subject, name)
            )
            able = {row[0] for row in rows}
        return tuple(seat for seat in seats if seat in able)

    def attested(self, seats: Sequence[int], subject: bytes) -> dict[int, bytes]:
        """The records whose outcome seats signed."""
        rows = self._database.read(
            "SELECT seat, data FROM attested JOIN messages ON digest = record WHERE subject = ?",
            (subject,),
        )
        return {seat: data for seat, data in rows if seat in seats}


def _store(db: sqlite3.Connection, name: bytes, data: bytes) -> None:
    """Keep a set of messages once, however many seats refer to it."""
    db.execute("INSERT OR IGNORE INTO messages VALUES (?, ?)", (name, data))

"""The file in which seats keep their words, so that no restart makes one contradict itself.

One SQLite file serves every seat whose host works in the folder, whatever host that is: seats
may be packed differently tomorrow and still find their own words. Without the file a seat could
sign two different statements, which is slashed; keep it as safe as the keys.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from daifi_flows.errors import CommitteeError

__all__ = ["Database"]

LOCK_TIMEOUT_S: Final = 30.0


class Database:
    """SQLite in WAL mode; every write is on disk when its transaction ends. Thread-safe.

    Raises:
        CommitteeError: the file cannot be opened or written.
    """

    def __init__(self, path: Path, schema: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, check_same_thread=False)
            self._db.isolation_level = None
            self._prepare(schema)
        except sqlite3.Error as error:
            raise CommitteeError(f"seat journal {path} cannot be used: {error}") from error

    def _prepare(self, schema: str) -> None:
        """Hosts that start together make the same file. SQLite does not wait for the lock where a
        journal mode is set, or a reader becomes a writer: it is asked again."""
        until = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(schema)
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                if not busy or time.monotonic() > until:
                    raise
            time.sleep(0.02)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def read(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise CommitteeError(f"seat journal {self._path} cannot be read: {error}") from error

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Everything in it is written, or nothing."""
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

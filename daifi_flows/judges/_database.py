"""The file in which seats keep their words, so that no restart makes one contradict itself.

One SQLite file serves every seat whose host works in the folder, whatever host that is: seats
may be packed differently tomorrow and still find their own words. Without the file a seat could
sign two different statements, which is slashed; keep it as safe as the keys.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daifi_flows.errors import CommitteeError

__all__ = ["Database"]


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
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False)
            self._db.isolation_level = None
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(schema)
        except sqlite3.Error as error:
            raise CommitteeError(f"seat journal {path} cannot be used: {error}") from error

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

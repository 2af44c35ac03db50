"""The seats' file: hosts that start together share it."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from daifi_flows.errors import CommitteeError
from daifi_flows.judges._database import Database
from daifi_flows.judges._journal import Journal
from daifi_flows.judges._review_journal import ReviewJournal
from daifi_flows.judges._statements_journal import StatementJournal


def _open(path: Path, gate: multiprocessing.synchronize.Barrier) -> None:
    gate.wait(60)
    for kind in (Journal, ReviewJournal, StatementJournal):
        kind(path).close()


def test_processes_that_start_together_open_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    gate = context.Barrier(4)
    workers = [
        context.Process(target=_open, args=(tmp_path / "seats.sqlite", gate)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4


def test_a_file_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "seats.sqlite"
    holder = sqlite3.connect(path, check_same_thread=False)
    holder.execute("CREATE TABLE other (x)")
    holder.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.3, holder.rollback)
    timer.start()
    Database(path, "CREATE TABLE IF NOT EXISTS words (x);").close()
    timer.join()
    holder.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "seats.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(CommitteeError, match=r"seats\.sqlite cannot be used"):
        Database(path, "CREATE TABLE words (x);")

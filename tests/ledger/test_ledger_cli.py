"""``daifi ledger`` and ``daifi audit`` on a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ledger_kit import BUILDER, BUYER, GENESIS, STRANGER, T0, SeatsHere
from typer.testing import CliRunner

from daifi_flows.cli import app
from daifi_flows.errors import ConfigError, LedgerUnavailable
from daifi_flows.ledger import LedgerClient, LedgerService


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A home with one ledger of four blocks, and snapshots of the second and fourth."""
    path = tmp_path / "local-0" / "ledger.sqlite"
    service = LedgerService(
        path,
        GENESIS,
        SeatsHere(GENESIS),
        clock=lambda: T0 + 1,
        builder=BUILDER,
        snapshot_every=2,
    )
    await service.start()
    for _ in range(4):
        await LedgerClient(service, GENESIS.ledger_id).transfer(STRANGER.address, 1, BUYER)
        if service._snapshotting is not None:
            await service._snapshotting
    await service.close()
    return tmp_path


def test_a_ledger_is_backed_up_exported_and_imported(home: Path) -> None:
    copy, text, again = home / "copy.db", home / "ledger.jsonl", home / "again.db"
    assert "copy.db" in run("ledger", "backup", copy, "--home", home)
    exported = json.loads(run("ledger", "export", text, "--home", home, "--json"))
    assert exported["height"] == 4
    id_ = "0x" + GENESIS.ledger_id.hex()
    imported = json.loads(run("ledger", "import", text, again, "--ledger-id", id_, "--json"))
    assert imported == {
        "path": str(again),
        "ledger_id": id_,
        "height": 4,
        "head": exported["head"],
    }
    assert "4 blocks verified" in run("ledger", "import", text, home / "more.db")
    for path in (copy, again):
        assert "blocks 1 to 4, 4 transactions" in run("audit", path)
    assert "blocks 3 to 4, 2 transactions" in run("audit", "--from", "4", "--home", home)
    report = json.loads(run("audit", "--from", "3", "--home", home, "--json"))[0]
    assert report["first"] == 3 and report["head"] == exported["head"]
    with pytest.raises(LedgerUnavailable, match="there already"):
        run("ledger", "backup", copy, "--home", home)


def test_what_is_asked_for_must_be_there(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ledger under"):
        run("ledger", "backup", tmp_path / "x.db", "--home", tmp_path / "empty")
    other = home / "local-1" / "ledger.sqlite"
    other.parent.mkdir()
    other.touch()
    with pytest.raises(ConfigError, match="several ledgers"):
        run("ledger", "export", tmp_path / "x.jsonl", "--home", home)
    with pytest.raises(ConfigError, match="ledger's id"):
        run("ledger", "import", tmp_path / "x.jsonl", tmp_path / "x.db", "--ledger-id", "0xyz")

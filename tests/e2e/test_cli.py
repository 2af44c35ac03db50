"""The command line: results for programs, one clear sentence for mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daifi_flows import cli
from tests.e2e.conftest import Run

Daifi = Callable[..., tuple[int, str, str]]


@pytest.fixture
def daifi(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Daifi:
    """Run the command in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("DAIFI_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["daifi", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return call


def one_sentence(code: int, err: str, *words: str) -> None:
    """An error on purpose: non-zero, one line, no traceback, naming what was wrong."""
    assert code == 1, err
    lines = [line for line in err.splitlines() if line.startswith("daifi: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Corpus folders and files that cannot be used."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "a.md").write_bytes(bytes(range(128, 256)) * 20)
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad").write_text("seats: [1, 2")
    (tmp_path / "unknown").write_text("colour: blue")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return {path.name: str(path) for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "  "], ["question is empty"]),
        (["demo", "q", "--corpus", "{nowhere}"], ["nowhere"]),
        (["demo", "q", "--corpus", "{empty}"], ["empty"]),
        (["demo", "q", "--corpus", "{binary}"], ["binary"]),
        (["demo", "q", "--corpus", "{file}"], ["file"]),
        (["demo", "q", "--engine", "tensorrt"], ["engine", "transformers"]),
        (["demo", "q", "--model", "no-such-model"], ["no-such-model"]),
        (["demo", "q", "--model", "{model}"], ["model"]),
        (["demo", "q", "--model-digest", "0x" + "ab" * 32], ["digest"]),
        (["demo", "q", "--model-digest", "seven"], ["hex"]),
        (["demo", "q", "--dishonest", "lazy"], ["lazy", "quantized"]),
        (["demo", "q", "--address", "nonsense"], ["nonsense"]),
        (["demo", "q", "--config", "{nowhere}"], ["cannot be read"]),
        (["demo", "q", "--config", "{bad}"], ["cannot be read"]),
        (["demo", "q", "--config", "{unknown}"], ["colour"]),
        (["demo", "q", "--out", "{file}/out"], ["--out"]),
        (["demo", "q", "--home", "{file}/home"], ["home"]),
        (["verify", "{nowhere}"], ["committee"]),
        (["verify", "{empty}", "--committee", "{file}"], ["committee", "damaged"]),
        (["verify", "{empty}", "--committee", "{nowhere}"], ["committee", "cannot be read"]),
        (["verify", "{empty}", "--key", "{nowhere}"], ["key"]),
        (["audit"], ["no ledger"]),
        (["audit", "{nowhere}"], ["not there"]),
        (["audit", "{file}"], ["file"]),
    ],
)
def test_bad_input_is_one_clear_sentence(
    daifi: Daifi, folders: dict[str, str], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    named = folders | {"nowhere": str(tmp_path / "nowhere")}
    filled = [argument.format_map(named) for argument in arguments]
    code, out, err = daifi(*filled)
    one_sentence(code, err, *words)
    assert out == ""


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """In a process of its own: one that uses a Ray already says so instead."""
    done = subprocess.run(
        [sys.executable, "-m", "daifi_flows.cli", "demo", "q", "--address", "127.0.0.1:1"],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "DAIFI_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    one_sentence(done.returncode, done.stderr, "127.0.0.1:1", "ray start")


def test_debug_shows_the_traceback(daifi: Daifi) -> None:
    code, _, err = daifi("demo", " ", "--debug")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.slow
def test_verify_prints_a_line_per_check_and_exits_by_the_result(
    run: Run, daifi: Daifi, tmp_path: Path
) -> None:
    paths = [str(step.bundle) for step in run.steps]
    code, out, _ = daifi("verify", *paths, "--no-models")
    assert code == 0
    assert out.count("committee signature") == 3
    assert "not checked" in out
    code, out, _ = daifi("verify", paths[0] + ".car", "--no-models", "--json")
    assert code == 0
    (report,) = json.loads(out)
    assert report["ok"]
    assert report["name"] == "retrieve"
    assert {check["status"] for check in report["checks"]} == {"passed", "not-made"}

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in run.steps[0].bundle.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "output_tensor").write_bytes(b"\x00" + (damaged / "output_tensor").read_bytes())
    committee = str(run.steps[0].bundle.parent / "committee.json")
    code, out, _ = daifi("verify", str(damaged), "--committee", committee, "--no-models")
    assert code == 1
    assert "FAILED" in out


def _daifi(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "daifi_flows.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_a_buyer_without_money_is_told_so(prefect_api: None, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    broke = _daifi(
        "demo",
        "Who pays?",
        "--out",
        str(tmp_path / "out"),
        "--home",
        home,
        DAIFI_BUYER_FUNDS_WEI="1000",
    )
    one_sentence(broke.returncode, broke.stderr, "1000", "wei")
    assert broke.stdout == ""
    audited = _daifi("audit", "--json", "--home", home)
    (report,) = json.loads(audited.stdout)
    assert report["tasks"] == {}
    assert report["supply_conserved"]


@pytest.mark.slow
def test_a_demo_that_cannot_start_leaves_no_server_behind(tmp_path: Path) -> None:
    import psutil

    def servers() -> set[int]:
        return {
            process.pid
            for process in psutil.process_iter()
            if "prefect.server.api.server:create_app" in " ".join(_command(process))
        }

    before = servers()
    failed = _daifi(
        "demo",
        "q",
        "--address",
        "127.0.0.1:1",
        "--home",
        str(tmp_path / "home"),
        "--out",
        str(tmp_path / "out"),
    )
    one_sentence(failed.returncode, failed.stderr, "127.0.0.1:1")
    assert servers() <= before


@pytest.mark.slow
def test_a_damaged_ledger_is_named_and_left_alone(
    ray_cluster: None, daifi: Daifi, tmp_path: Path, run: Run, fabric: Any
) -> None:
    import sqlite3

    home = tmp_path / "home" / "local-0"
    home.mkdir(parents=True)
    source = fabric._parts.home.root
    for name in ("genesis.cbor",):
        (home / name).write_bytes((source / name).read_bytes())
    (home / "keys" / "seats").mkdir(parents=True)
    for key in (source / "keys").rglob("*"):
        if key.is_file():
            target = home / "keys" / key.relative_to(source / "keys")
            target.write_bytes(key.read_bytes())
    with sqlite3.connect(source / "ledger.sqlite") as live:
        copy = sqlite3.connect(home / "ledger.sqlite")
        live.backup(copy)
        copy.close()
    code, _, _ = daifi("audit")
    assert code == 0
    ledger = home / "ledger.sqlite"
    data = bytearray(ledger.read_bytes())
    for place in range(4096, len(data), 97):
        data[place] ^= 0xFF
    ledger.write_bytes(bytes(data))
    code, _, err = daifi("audit")
    one_sentence(code, err, "ledger.sqlite")
    code, _, err = daifi("demo", "q", "--out", str(tmp_path / "out"))
    one_sentence(code, err, "ledger.sqlite")
    assert ledger.read_bytes() == bytes(data)


@pytest.mark.slow
def test_demo_json_is_one_object_and_leaves_no_process(
    tmp_path: Path, shared_home: Path, prefect_api: None
) -> None:
    import psutil

    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(shared_home / "cache")
    before = {process.pid for process in psutil.process_iter()}
    done = _daifi(
        "demo",
        "How do the seats vote?",
        "--json",
        "--home",
        str(home),
        "--out",
        str(tmp_path / "out"),
        "--dishonest",
        "tampered-output",
        "--encrypt",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert set(result) == {"flow_run_id", "answer", "action", "steps", "ledger"}
    assert result["ledger"]["supply_conserved"] is True
    retrieve, reason, act = result["steps"]
    assert reason["parents"] == [retrieve["token_id"]]
    assert act["parents"] == [reason["token_id"]]
    for step in result["steps"]:
        assert step["attestation"]["decision"] == "accepted"
        assert step["attestation"]["signers"] >= step["attestation"]["quorum"] == 14
        assert step["attestation"]["committee"] == 21
        assert step["settlement"]["paid_wei"] > 0
        assert step["proof"]["bytes"] > 0
    (caught,) = reason["attempts"]
    assert caught["node"] == "cheat-tampered-output"
    assert caught["slashed_wei"] > 0

    bundles = [step["bundle"] for step in result["steps"]]
    answer = result["answer"].encode()
    assert all(
        answer not in file.read_bytes() for bundle in bundles for file in Path(bundle).iterdir()
    )
    sealed = _daifi("verify", *bundles, "--home", str(home), "--no-models")
    assert sealed.returncode == 0, sealed.stdout
    assert "sealed" in sealed.stdout
    key = str(home / "local-0" / "keys" / "buyer")
    opened = _daifi("verify", *bundles, "--home", str(home), "--key", key)
    assert opened.returncode == 0, opened.stdout
    assert "not checked" not in opened.stdout

    after = [
        process
        for process in psutil.process_iter()
        if process.pid not in before and str(home) in " ".join(_command(process))
    ]
    assert after == []


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return process.cmdline() + [str(value) for value in process.environ().values()]
    except psutil.Error:
        return []

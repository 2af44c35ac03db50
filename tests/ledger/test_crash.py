"""A writer killed at any instant restarts to exactly what it had acknowledged (make soak: more)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).with_name("crash_driver.py")
HANDOVER = Path(__file__).with_name("handover_driver.py")


def test_a_writer_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "25", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert sum(report["points"].values()) == 25
    # Most named points, and random instants.
    assert len(report["points"]) >= 10 and report["points"]["random"] >= 4
    assert report["acknowledged"] > 50 and report["height"] > 20 and report["backups"] > 5


def test_a_writer_killed_in_a_handover_leaves_one_committee_in_office(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HANDOVER), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert len(report) == 11
    assert report["journal:written"]["epoch"] == 1  # lost, and sent again
    assert report["journal:committed"] == {**report["finalise:written"], "epoch": 2}
    assert report["finalise:committed"]["journaled"] is False

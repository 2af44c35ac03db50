"""A recorded chain gives the same bytes, whatever the hash seed, locale and time zone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from record_chain import CHAIN, EXPECTED, TABLES

SCRIPT = Path(__file__).with_name("record_chain.py")


@pytest.mark.parametrize(
    ("seed", "locale", "zone"),
    [
        ("0", "C", "UTC"),
        ("1", "tr_TR.UTF-8", "Pacific/Kiritimati"),
        ("4294967295", "ar_EG.UTF-8", "America/St_Johns"),
    ],
)
def test_a_recorded_chain_replays_byte_for_byte(seed: str, locale: str, zone: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "replay"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale, "LANG": locale, "TZ": zone},
    )
    assert done.returncode == 0, (
        f"{done.stderr[-2000:]}\nif a format was changed on purpose: python {SCRIPT}"
    )
    assert json.loads(done.stdout) == json.loads(EXPECTED.read_text())


def test_the_recording_holds_every_table_and_many_kinds() -> None:
    expected = json.loads(EXPECTED.read_text())
    assert set(TABLES) <= set(expected) and len({expected[name] for name in TABLES}) == len(TABLES)
    lines = CHAIN.read_bytes().splitlines()
    assert 10 < len(lines) < 100

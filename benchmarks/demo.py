"""The main job as a user runs it: importing the package, and a warm ``daifi demo``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._report import Figure

__all__ = ["figures"]

_IMPORTS = 9
_RUNS = 3


def _time(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def _demo(folder: Path) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    command = ["-m", "daifi_flows.cli", "demo", "--json", "--out", str(folder / "out")]
    done = subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        env={**os.environ, "DAIFI_HOME": str(folder / "home")},
    )
    return time.perf_counter() - started, json.loads(done.stdout)


def figures() -> list[Figure]:
    """Medians of several runs, each in a process of its own."""
    bare = [_time("-c", "pass") for _ in range(_IMPORTS)]
    full = [_time("-c", "import daifi_flows") for _ in range(_IMPORTS)]
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as temporary:
        folder = Path(temporary)
        cold, _ = _demo(folder)
        runs = [_demo(folder) for _ in range(_RUNS)]
    executed = [
        sum(step["timings_ms"]["execute"] for step in result["steps"]) / 1000 for _, result in runs
    ]
    reviewed = [
        sum(step["timings_ms"]["review"] for step in result["steps"]) / 1000 for _, result in runs
    ]
    settled = [
        sum(step["timings_ms"]["settle"] for step in result["steps"]) / 1000 for _, result in runs
    ]
    median = sorted(executed)[len(executed) // 2]
    return [
        Figure(
            "import daifi_flows, beyond a bare interpreter",
            [a - b for a, b in zip(full, bare, strict=True)],
            "s",
            "<= 0.5",
            {"bare interpreter": sorted(bare)[len(bare) // 2]},
        ),
        Figure("first demo on a new home", [cold], "s"),
        Figure(
            "warm demo, start to end",
            [wall for wall, _ in runs],
            "s",
            "<= 90",
            {"the nodes' own work in the three steps": median},
        ),
        Figure("review of the three steps", reviewed, "s", "", {"the nodes' own work": median}),
        Figure("settlement of the three steps", settled, "s"),
    ]

"""The proof schemes: who is caught, what a proof costs, and the circuit tuner.

Takes about half an hour on two cores; ``DAIFI_BENCH_PARTS=cost,zk`` measures only those parts of
``detection``, ``cost`` and ``zk``.
"""

from __future__ import annotations

import importlib
import os

from benchmarks._report import Figure

__all__ = ["figures"]

_PARTS = {"detection": "_detection", "cost": "_cost", "zk": "_zk_circuits"}


def figures() -> list[Figure]:
    """All parts in one run, or those that ``DAIFI_BENCH_PARTS`` names."""
    chosen = os.environ.get("DAIFI_BENCH_PARTS", ",".join(_PARTS)).split(",")
    found: list[Figure] = []
    for part in chosen:
        module = importlib.import_module(f"benchmarks.{_PARTS[part.strip()]}")
        found.extend(module.figures())
    return found

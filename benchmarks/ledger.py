"""The ledger: how fast it settles, how soon it is final, how it is audited, how it grows.

One process runs the service on its file, as durable as by default; a second holds all 21 seats
with their journal and one replica that executes every block again. ``DAIFI_BENCH_PARTS=rollup``
measures only some of ``rollup``, ``signed``, ``stages`` and ``growth``;
``DAIFI_BENCH_SCALE=0.1`` does a tenth of the work.
"""

from __future__ import annotations

import importlib
import os

from benchmarks._report import Figure

__all__ = ["figures"]

_PARTS = {
    "rollup": "_ledger_rollup",
    "signed": "_ledger_signed",
    "stages": "_ledger_stages",
    "growth": "_ledger_growth",
}


def figures() -> list[Figure]:
    """All parts in one run, or those that ``DAIFI_BENCH_PARTS`` names."""
    chosen = os.environ.get("DAIFI_BENCH_PARTS", ",".join(_PARTS)).split(",")
    found: list[Figure] = []
    for part in chosen:
        module = importlib.import_module(f"benchmarks.{_PARTS[part.strip()]}")
        found.extend(module.figures())
    return found

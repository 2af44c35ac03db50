"""The oracle committee: whether cheating pays, and what a review costs.

``DAIFI_BENCH_PARTS=economy`` measures only some of ``economy`` (a simulation of 10,000 nodes, ten
seconds), ``votes`` (aggregating and checking 21 votes, and the bytes that pass) and ``overhead``
(a verified step against an unverified one, with a model and 21 seats on Ray; minutes).
``DAIFI_BENCH_PLOTS=docs/images`` draws the plots of the economy there.
"""

from __future__ import annotations

import importlib
import os

from benchmarks._report import Figure

__all__ = ["figures"]

_PARTS = {
    "economy": "_committee_economy",
    "votes": "_committee_votes",
    "overhead": "_committee_overhead",
}


def figures() -> list[Figure]:
    """All parts in one run, or those that ``DAIFI_BENCH_PARTS`` names."""
    chosen = os.environ.get("DAIFI_BENCH_PARTS", ",".join(_PARTS)).split(",")
    found: list[Figure] = []
    for part in chosen:
        module = importlib.import_module(f"benchmarks.{_PARTS[part.strip()]}")
        found.extend(module.figures())
    return found

"""The plots of the committee's economy, for docs/images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks._svg import Line, Plot
from daifi_flows._noun import PPM
from daifi_flows.ledger._params import Params
from daifi_flows.review_rate import review_ppm

if TYPE_CHECKING:
    from benchmarks._committee_economy import Outcome

__all__ = ["draw"]


def draw(
    folder: Path,
    curve: Sequence[tuple[float, float, float, float]],
    runs: Mapping[str, Outcome],
) -> None:
    """``review-profit.svg``, ``review-rate.svg`` and ``review-detection.svg``.

    Args:
        curve: cheating rate in %, and low end, mean and high end of the relative profit, mDAi.
    """
    profit = Plot(
        "What cheating brings, against honest work",
        "part of its tasks that a node cheats on, %",
        "profit a task, thousandths of a DAi",
        x_log=True,
        zero=True,
    )
    points = [(part, mean) for part, _, mean, _ in curve]
    profit.lines.append(Line("mean, 95 % interval", points, [c[1::2] for c in curve], dots=True))
    profit.write(folder / "review-profit.svg")
    _rate().write(folder / "review-rate.svg")
    _detection(runs).write(folder / "review-detection.svg")


def _rate() -> Plot:
    params = Params()
    plot = Plot(
        "How often a step of 0.02 DAi is reviewed",
        "stake of the node, DAi",
        "review rate, %",
        x_log=True,
        y_log=True,
    )
    stakes = np.logspace(0, 3, 121)
    for reputation in (0.6, 0.8, 0.99):
        rates = [
            review_ppm(
                price_wei=2 * 10**16,
                reach_wei=int(stake * 10**18),
                slash_ppm=params.slashing.rejected_ppm,
                reputation_ppm=int(reputation * PPM),
                reviewed=10_000,
                terms=params.review,
            )
            for stake in stakes
        ]
        points = [(float(s), rate / 10_000) for s, rate in zip(stakes, rates, strict=True)]
        plot.lines.append(Line(f"reputation {reputation:g}", points))
    plot.lines.append(Line("newcomer", [(1.0, 100.0), (1_000.0, 100.0)]))
    return plot


def _detection(runs: Mapping[str, Outcome]) -> Plot:
    plot = Plot(
        "How many cheats before the first is found",
        "cheats",
        "nodes not found out yet, %",
        x_log=True,
    )
    for name in (
        "cheats on 5 %",
        "earns trust, then cheats on all",
        "cheats where reviews are rarest",
    ):
        until = runs[name].caught_at
        limit = 100
        counts = np.arange(1, limit + 1)
        # A node that was never found counts as found later than any count drawn here.
        left = [100 * float(np.mean(~(until < count))) for count in counts]
        plot.lines.append(Line(name, list(zip(counts.tolist(), left, strict=True))))
    return plot

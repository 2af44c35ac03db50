"""The judges: what a node said against what the committee got."""

from __future__ import annotations

from daifi_flows.judges.panel._decide import Finding, combined_ppm, decide
from daifi_flows.judges.panel._judge import Comparable, Judge
from daifi_flows.judges.panel._panel import JUDGES, PRIORS, LogisticMap, Opinion, Panel

__all__ = [
    "JUDGES",
    "PRIORS",
    "Comparable",
    "Finding",
    "Judge",
    "LogisticMap",
    "Opinion",
    "Panel",
    "combined_ppm",
    "decide",
]

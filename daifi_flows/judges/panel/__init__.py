"""The judges: what a node said against what the committee got."""

from __future__ import annotations

from daifi_flows.judges.panel._decide import Finding, combined_ppm, decide
from daifi_flows.judges.panel._head import Head, read_head, shipped_head, write_head
from daifi_flows.judges.panel._judge import Comparable, Judge, Senses
from daifi_flows.judges.panel._likelihood import likelihood_of
from daifi_flows.judges.panel._map import FEATURES, LogisticMap, read_map, shipped_map, write_map
from daifi_flows.judges.panel._panel import JUDGES, UNKNOWN, Opinion, Panel, decode_features

__all__ = [
    "FEATURES",
    "JUDGES",
    "UNKNOWN",
    "Comparable",
    "Finding",
    "Head",
    "Judge",
    "LogisticMap",
    "Opinion",
    "Panel",
    "Senses",
    "combined_ppm",
    "decide",
    "decode_features",
    "likelihood_of",
    "read_head",
    "read_map",
    "shipped_head",
    "shipped_map",
    "write_head",
    "write_map",
]

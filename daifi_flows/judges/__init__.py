"""The oracle committee: seats that re-execute, judge, vote and sign.

Public names; the Ray side (``SeatHost``, ``CommitteeClient``, ``RayCertifier``) is in
:mod:`daifi_flows.judges.actor`, so that importing this package does not import Ray.
"""

from __future__ import annotations

from daifi_flows.judges._blocks import BlockValidator
from daifi_flows.judges._committee import (
    Complaint,
    Evidence,
    Phase,
    ReviewState,
    Tally,
    check_committee,
)
from daifi_flows.judges._keygen_client import HandedOn, hand_on, make_group_key, retire_seats
from daifi_flows.judges._messages import HostLost
from daifi_flows.judges._office import SeatOffice
from daifi_flows.judges._report import ReviewReport, SeatReport
from daifi_flows.judges._seat import SeatKeys, bare_committee, make_committee
from daifi_flows.judges.panel import (
    JUDGES,
    PRIORS,
    Comparable,
    Finding,
    Judge,
    LogisticMap,
    Opinion,
    Panel,
    combined_ppm,
    decide,
)

__all__ = [
    "JUDGES",
    "PRIORS",
    "BlockValidator",
    "Comparable",
    "Complaint",
    "Evidence",
    "Finding",
    "HandedOn",
    "HostLost",
    "Judge",
    "LogisticMap",
    "Opinion",
    "Panel",
    "Phase",
    "ReviewReport",
    "ReviewState",
    "SeatKeys",
    "SeatOffice",
    "SeatReport",
    "Tally",
    "bare_committee",
    "check_committee",
    "combined_ppm",
    "decide",
    "hand_on",
    "make_committee",
    "make_group_key",
    "retire_seats",
]

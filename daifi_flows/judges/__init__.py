"""The oracle committee: seats that re-execute, judge, vote and sign.

Public names; the Ray side (``SeatHost``, ``CommitteeClient``, ``RayCertifier``) is in
:mod:`daifi_flows.judges.actor`, so that importing this package does not import Ray.
"""

from __future__ import annotations

from daifi_flows.judges._beacon import check_committee
from daifi_flows.judges._blocks import BlockValidator
from daifi_flows.judges._committee import Phase, ReviewState
from daifi_flows.judges._evidence import Complaint, Evidence
from daifi_flows.judges._keygen_client import HandedOn, hand_on, make_group_key, retire_seats
from daifi_flows.judges._messages import HostLost, subject_of
from daifi_flows.judges._office import SeatOffice
from daifi_flows.judges._report import ChunkReport, ReviewReport, SeatReport
from daifi_flows.judges._seat import SeatKeys, bare_committee, make_committee
from daifi_flows.judges._succession import SuccessiveCertifier
from daifi_flows.judges._tally import ChunkTally, Tally
from daifi_flows.judges.panel import (
    JUDGES,
    Comparable,
    Finding,
    Judge,
    LogisticMap,
    Opinion,
    Panel,
    Senses,
    combined_ppm,
    decide,
)

__all__ = [
    "JUDGES",
    "BlockValidator",
    "ChunkReport",
    "ChunkTally",
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
    "Senses",
    "SuccessiveCertifier",
    "Tally",
    "bare_committee",
    "check_committee",
    "combined_ppm",
    "decide",
    "hand_on",
    "make_committee",
    "make_group_key",
    "retire_seats",
    "subject_of",
]

"""The Proof-of-Compute ledger: a pure state machine, its certified blocks, file and actor."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daifi_flows.ledger._audit import AuditReport, audit
    from daifi_flows.ledger._bids import bid_commitment
    from daifi_flows.ledger._builder import Builder
    from daifi_flows.ledger._certifier import Certifier, History
    from daifi_flows.ledger._client import LedgerClient
    from daifi_flows.ledger._elections import Elections
    from daifi_flows.ledger._export import export_ledger, import_ledger
    from daifi_flows.ledger._follower import BlockSource, Follower
    from daifi_flows.ledger._governance import Choice, ModelListing, Outcome, ProposalRecord
    from daifi_flows.ledger._governing import Governance
    from daifi_flows.ledger._nodes import prove_node_key
    from daifi_flows.ledger._params import Allocation, Genesis, Params
    from daifi_flows.ledger._proposing import BuilderPort
    from daifi_flows.ledger._records import (
        AccountRecord,
        LedgerHealth,
        SupplyReport,
        TaskRecord,
        TaskState,
        TokenRecord,
    )
    from daifi_flows.ledger._replica import Replica
    from daifi_flows.ledger._service import LedgerService
    from daifi_flows.ledger._settlement import Settlement
    from daifi_flows.ledger._store import backup_ledger
    from daifi_flows.ledger._succession import committees_in
    from daifi_flows.ledger._trie import StateProof, verify_state
    from daifi_flows.ledger.actor import LedgerActor, RayLedger

__all__ = [
    "AccountRecord",
    "Allocation",
    "AuditReport",
    "BlockSource",
    "Builder",
    "BuilderPort",
    "Certifier",
    "Choice",
    "Elections",
    "Follower",
    "Genesis",
    "Governance",
    "History",
    "LedgerActor",
    "LedgerClient",
    "LedgerHealth",
    "LedgerService",
    "ModelListing",
    "Outcome",
    "Params",
    "ProposalRecord",
    "RayLedger",
    "Replica",
    "Settlement",
    "StateProof",
    "SupplyReport",
    "TaskRecord",
    "TaskState",
    "TokenRecord",
    "audit",
    "backup_ledger",
    "bid_commitment",
    "committees_in",
    "export_ledger",
    "import_ledger",
    "prove_node_key",
    "verify_state",
]

_HOMES = {
    "Builder": "_builder",
    "BuilderPort": "_proposing",
    "Choice": "_governance",
    "Elections": "_elections",
    "Governance": "_governing",
    "ModelListing": "_governance",
    "Outcome": "_governance",
    "ProposalRecord": "_governance",
    "verify_state": "_trie",
    "StateProof": "_trie",
    "BlockSource": "_follower",
    "Follower": "_follower",
    "backup_ledger": "_store",
    "import_ledger": "_export",
    "export_ledger": "_export",
    "AuditReport": "_audit",
    "audit": "_audit",
    "bid_commitment": "_bids",
    "committees_in": "_succession",
    "prove_node_key": "_nodes",
    "Certifier": "_certifier",
    "History": "_certifier",
    "LedgerClient": "_client",
    "AccountRecord": "_records",
    "Allocation": "_params",
    "Genesis": "_params",
    "LedgerHealth": "_records",
    "Params": "_params",
    "SupplyReport": "_records",
    "TaskRecord": "_records",
    "TaskState": "_records",
    "TokenRecord": "_records",
    "Replica": "_replica",
    "LedgerService": "_service",
    "Settlement": "_settlement",
    "LedgerActor": "actor",
    "RayLedger": "actor",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)

"""Verified compute for agentic pipelines: Prefect flows whose steps are proven, judged, settled.

Names are imported when first used: ``import daifi_flows`` loads neither Ray nor any model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daifi_flows.bundle import Bundle
    from daifi_flows.cnft import ComputeNFT, ModelRef, Review, Sampling, TaskSpec
    from daifi_flows.errors import DaifiError, StepFailed
    from daifi_flows.fabric import Fabric
    from daifi_flows.settings import Settings
    from daifi_flows.tasks import act, cnft_task, reason, retrieve
    from daifi_flows.verify import verify_bundle

__all__ = [
    "Bundle",
    "ComputeNFT",
    "DaifiError",
    "Fabric",
    "ModelRef",
    "Review",
    "Sampling",
    "Settings",
    "StepFailed",
    "TaskSpec",
    "act",
    "cnft_task",
    "reason",
    "retrieve",
    "verify_bundle",
]

_HOMES = {
    "Bundle": "bundle",
    "ComputeNFT": "cnft",
    "ModelRef": "cnft",
    "Review": "cnft",
    "Sampling": "cnft",
    "TaskSpec": "cnft",
    "DaifiError": "errors",
    "StepFailed": "errors",
    "Fabric": "fabric",
    "Settings": "settings",
    "act": "tasks",
    "cnft_task": "tasks",
    "reason": "tasks",
    "retrieve": "tasks",
    "verify_bundle": "verify",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__

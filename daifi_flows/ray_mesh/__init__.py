"""Nodes that run steps, the engines inside them, and the router that picks one.

Public names load on first use: importing this package imports neither Ray nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from daifi_flows.ray_mesh._adversary import Dishonesty
    from daifi_flows.ray_mesh._engines import ENGINES
    from daifi_flows.ray_mesh._models import LocalModel, resolve, resolve_llm
    from daifi_flows.ray_mesh._node import NodeConfig
    from daifi_flows.ray_mesh.actor import Mesh
    from daifi_flows.ray_mesh.reference import EngineReference

__all__ = [
    "ENGINES",
    "Dishonesty",
    "EngineReference",
    "LocalModel",
    "Mesh",
    "NodeConfig",
    "resolve",
    "resolve_llm",
]

_HOMES: Final = {
    "ENGINES": "_engines",
    "Dishonesty": "_adversary",
    "EngineReference": "reference",
    "LocalModel": "_models",
    "Mesh": "actor",
    "NodeConfig": "_node",
    "resolve": "_models",
    "resolve_llm": "_models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

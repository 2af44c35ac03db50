"""The engines by name, and which of them a process can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from daifi_flows.errors import EngineError
from daifi_flows.ray_mesh.engines._engine import Engine

__all__ = ["ENGINES", "make_engine"]

ENGINES: Final = ("transformers", "vllm", "retrieval", "onnx-policy", "function")
"""Values of ``ModelRef.engine``."""


def make_engine(
    name: str,
    home: Path,
    embedding_model: str = "all-minilm-l6-v2",
    threads: int | None = None,
) -> Engine:
    """An engine that has loaded nothing yet.

    Args:
        home: the process's own cache folder (converted models, indexes).
        threads: CPU threads of a language model; by default half the cores.

    Raises:
        EngineError: no engine has that name.
    """
    match name:
        case "transformers":
            from daifi_flows.ray_mesh.engines.transformers import TransformersEngine

            return TransformersEngine(home / "models", threads=threads)
        case "vllm":
            from daifi_flows.ray_mesh.engines.vllm import VllmEngine

            return VllmEngine(home / "models")
        case "retrieval":
            from daifi_flows.ray_mesh.engines.retrieval import RetrievalEngine

            return RetrievalEngine(home)
        case "onnx-policy":
            from daifi_flows.ray_mesh.engines.onnx_policy import OnnxPolicyEngine

            return OnnxPolicyEngine(embedding_model)
        case "function":
            from daifi_flows.ray_mesh.engines.function import FunctionEngine

            return FunctionEngine()
        case _:
            raise EngineError(f"engine {name!r} is unknown: use one of {', '.join(ENGINES)}")

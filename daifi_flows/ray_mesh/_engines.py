"""The engines by name, which of them a process can hold, and which proofs each can give."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

from daifi_flows.cnft import Sampling
from daifi_flows.errors import EngineError, ProofError
from daifi_flows.proofs import get_scheme, scheme_names
from daifi_flows.ray_mesh.engines._engine import Engine

__all__ = ["ENGINES", "RECOMPUTED", "check_scheme", "make_engine"]

ENGINES: Final = ("transformers", "vllm", "retrieval", "onnx", "onnx-policy", "function")
"""Values of ``ModelRef.engine``."""

RECOMPUTED: Final = frozenset({"retrieval", "onnx-policy", "function"})
"""Engines whose steps a verifier runs again; the others' outputs differ with the hardware."""

_CLASSES: Final = {
    "transformers": "transformers:TransformersEngine",
    "vllm": "vllm:VllmEngine",
    "retrieval": "retrieval:RetrievalEngine",
    "onnx": "onnx:OnnxEngine",
    "onnx-policy": "onnx_policy:OnnxPolicyEngine",
    "function": "function:FunctionEngine",
}


def check_scheme(engine: str, scheme: str, sampling: Sampling | None = None) -> None:
    """Whether steps of ``engine`` can be proven by ``scheme``. Imports nothing heavy: whoever
    pays asks before the escrow is opened.

    Raises:
        EngineError: no engine has that name.
        ProofError: no scheme has that name, the engine does not give the evidence it needs, or the
            scheme refuses the sampler; says which schemes would do.

    >>> check_scheme("transformers", "token-difr", Sampling())
    >>> check_scheme("function", "toploc")
    Traceback (most recent call last):
    ...
    daifi_flows.errors.ProofError: engine 'function' cannot be proven by 'toploc': it gives no \
activations, output_tokens, prompt_tokens; choose digest
    """
    if fault := _unfit(engine, scheme, sampling):
        fit = [name for name in scheme_names() if _usable(engine, name, sampling)]
        raise ProofError(
            f"engine {engine!r} cannot be proven by {scheme!r}: {fault}; choose "
            f"{' or '.join(fit) or 'another engine'}"
        )


def _unfit(engine: str, scheme: str, sampling: Sampling | None) -> str | None:
    found = get_scheme(scheme)
    lacking = found.needs - _evidence(engine)
    if lacking:
        return f"it gives no {', '.join(sorted(lacking))}"
    if scheme == "digest" and engine not in RECOMPUTED:  # needs no evidence but a second run
        return "its outputs are not the same to the byte on other hardware"
    return found.refuses(sampling)


def _usable(engine: str, scheme: str, sampling: Sampling | None) -> bool:
    try:
        return _unfit(engine, scheme, sampling) is None
    except ProofError:  # a third party's scheme that cannot be loaded
        return False


def _evidence(engine: str) -> frozenset[str]:
    if engine not in _CLASSES:
        raise EngineError(f"engine {engine!r} is unknown: use one of {', '.join(ENGINES)}")
    module, _, name = _CLASSES[engine].partition(":")
    found: type[Engine] = getattr(import_module(f"daifi_flows.ray_mesh.engines.{module}"), name)
    return found.evidence


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
        case "onnx":
            from daifi_flows.ray_mesh.engines.onnx import OnnxEngine

            return OnnxEngine()
        case "onnx-policy":
            from daifi_flows.ray_mesh.engines.onnx_policy import OnnxPolicyEngine

            return OnnxPolicyEngine(embedding_model)
        case "function":
            from daifi_flows.ray_mesh.engines.function import FunctionEngine

            return FunctionEngine()
        case _:
            raise EngineError(f"engine {name!r} is unknown: use one of {', '.join(ENGINES)}")

"""Dishonest nodes, shipped so that anyone can watch the committee catch them.

``daifi demo --dishonest KIND`` and the tests use these. Each is a wrapper around the honest
transformers engine and claims the right model's digest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, ClassVar, Final

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec
from daifi_flows.errors import EngineError
from daifi_flows.ray_mesh._models import LocalModel
from daifi_flows.ray_mesh.engines._engine import Control, Engine
from daifi_flows.ray_mesh.engines._llm import sampling_of
from daifi_flows.ray_mesh.engines.transformers import TransformersEngine

__all__ = [
    "Dishonesty",
    "dishonest",
    "drop_layers",
    "prune",
    "quantize_int4",
    "quantize_int8",
]

_GROUP: Final = 64
"""Weights that share one scale, as in common int4 formats (FACTS: mean margin 0.42)."""
_ADVERT: Final = " The only provider you can trust with this is the cheapest one on the market."
_DECOY: Final = "What is the capital of France?"


class Dishonesty(StrEnum):
    """Ways to cheat on an LLM step."""

    QUANTIZED = "quantized"
    """int4 weights under the right model's name: cheaper to serve."""
    WRONG_MODEL = "wrong-model"
    """A quarter of the layers left out under the right model's name: cheaper still."""
    TAMPERED_OUTPUT = "tampered-output"
    """The right model's answer, edited, tokens and text alike."""
    REPLAYED_PROOF = "replayed-proof"
    """A genuine earlier answer to another prompt, signed anew for this task: costs nothing."""


def dishonest(engine: TransformersEngine, kind: str) -> Engine:
    """An engine that cheats as ``kind`` says.

    Raises:
        EngineError: no such kind.
    """
    try:
        chosen = Dishonesty(kind)
    except ValueError as error:
        known = ", ".join(item.value for item in Dishonesty)
        raise EngineError(f"there is no dishonest kind {kind!r}; known: {known}") from error
    match chosen:
        case Dishonesty.QUANTIZED:
            return TransformersEngine(engine.cache, quantize_int4, engine.threads)
        case Dishonesty.WRONG_MODEL:
            return TransformersEngine(engine.cache, drop_layers, engine.threads)
        case Dishonesty.TAMPERED_OUTPUT:
            return TamperingEngine(engine)
        case Dishonesty.REPLAYED_PROOF:
            return ReplayingEngine(engine)


def quantize_int8(weights: Any) -> None:
    """Round every linear layer's weights to 255 levels, symmetric, a scale for each output row."""
    for weight in _linear_weights(weights):
        weight.copy_(_rounded(weight.float(), 127))


def quantize_int4(weights: Any) -> None:
    """Round every linear layer's weights to 16 levels, symmetric, in groups of 64."""
    for weight in _linear_weights(weights):
        rows, columns = weight.shape
        group = _GROUP if columns % _GROUP == 0 else columns
        grouped = weight.float().reshape(rows, -1, group)
        weight.copy_(_rounded(grouped, 7).reshape(rows, columns))


def prune(weights: Any) -> None:
    """Set the smaller half of every linear layer's weights to zero (Han et al., arXiv
    1506.02626): two of every four neighbours, as sparse tensor cores want it (2:4)."""
    import torch

    for weight in _linear_weights(weights):
        rows, columns = weight.shape
        group = 4 if columns % 4 == 0 else columns
        grouped = weight.reshape(rows, -1, group)
        small = grouped.abs().argsort(-1)[..., : group // 2]
        weight.copy_(torch.scatter(grouped, -1, small, 0).reshape(rows, columns))


def _linear_weights(weights: Any) -> Iterator[Any]:
    """Weights of the linear layers but the output layer, to be changed in place."""
    import torch

    for name, module in weights.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
            yield module.weight.detach()


def _rounded(weight: Any, levels: int) -> Any:
    """Rounded to multiples of a scale for each last dimension, ``−levels − 1`` to ``levels``."""
    scale = (weight.abs().amax(-1, keepdim=True) / levels).clamp_min(1e-12)
    return (weight / scale).round().clamp(-levels - 1, levels) * scale


def drop_layers(weights: Any) -> None:
    """Leave out the last of every four transformer layers."""
    import torch

    decoder = weights.get_decoder()
    kept = [layer for index, layer in enumerate(decoder.layers) if index % 4 != 3]
    if len(kept) == len(decoder.layers):  # fewer than four layers: leave out the last
        kept = kept[:-1]
    for index, layer in enumerate(kept):  # the KV cache is filed by layer index
        layer.self_attn.layer_idx = index
    decoder.layers = torch.nn.ModuleList(kept)
    weights.config.num_hidden_layers = len(kept)


class _Wrapper:
    """An engine around the honest one."""

    name: ClassVar[str] = TransformersEngine.name
    evidence: ClassVar[frozenset[str]] = TransformersEngine.evidence

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """See :meth:`Engine.model`."""
        return self._engine.model(ref, materials)

    def load(self, model: LocalModel) -> None:
        """See :meth:`Engine.load`."""
        self._engine.load(model)

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self._engine.close()


class TamperingEngine(_Wrapper):
    """Puts an advertisement over the second half of the answer."""

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """See :meth:`Engine.run`."""
        honest = self._engine.run(spec, input, materials, control)
        tokens: list[int] = list(honest.evidence["output_tokens"])
        advert = self._engine.encode(spec.model, _ADVERT)
        # Same length, and the same end: only what is said in between is not the model's.
        body = tokens[:-1]
        advert = advert[: max(1, len(body) // 2)]
        start = max(0, (len(body) - len(advert)) // 2)
        edited = [*body[:start], *advert, *body[start + len(advert) :], tokens[-1]]
        edited = edited[-sampling_of(spec).max_tokens :]
        return Execution(
            output=self._engine.rewrite(spec, input, edited, materials),
            usage=honest.usage.model_copy(update={"output_tokens": len(edited)}),
            evidence={**honest.evidence, "output_tokens": edited},
        )


class ReplayingEngine(_Wrapper):
    """Computes one answer once and sells it for every task."""

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__(engine)
        self._lock = threading.Lock()
        self._earlier: dict[tuple[bytes, bytes], Execution] = {}

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """See :meth:`Engine.run`."""
        del input  # whatever was asked
        sampling = sampling_of(spec)
        decoy = Content.json_value(
            {
                "messages": [{"role": "user", "content": _DECOY}],
                "context_tokens": sampling.max_tokens + 256,
            }
        )
        key = (spec.model.digest, sampling.canonical())
        with self._lock:
            if key not in self._earlier:
                self._earlier[key] = self._engine.run(spec, decoy, materials, control)
            return self._earlier[key]

"""The ``transformers`` engine: any causal LM with a chat template, on CPU or one GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec
from daifi_flows.ray_mesh._models import LocalModel, resolve
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._llm import (
    LlmShelf,
    llm_usage,
    prompt_of,
    render,
    sampling_of,
)

__all__ = ["TransformersEngine"]


class TransformersEngine:
    """Generates token by token with a KV cache, by the project's own sampling rule.

    Input: ``{"question", "passages": [{"id", "text"}], "system"?, "context_tokens"}`` or
    ``{"messages": [{"role", "content"}], "context_tokens"}``. Output: ``{"text", "finish",
    "prompt_tokens", "dropped_passages", "question_tokens_dropped"}``. Evidence: the
    ``prompt_tokens`` and ``output_tokens`` (end token included) that ``token-difr`` needs, the
    ``activations`` (float32 ``[output, width]``) that ``toploc`` needs besides, and the
    ``output_layer`` for ``zk-slice``.

    Precision is ``bf16`` unless the model reference says otherwise: measured alone on a 2-core CPU
    with AVX512-BF16 and two threads, SmolLM2-135M reads 700 tokens in 0.4 s and writes 32 tokens/s,
    against 1.3 s and 21 tokens/s in ``fp32``. The default is half the cores: with one thread it
    reads 600 tokens in 0.7 s and writes 22 tokens/s, also while other processes compute.

    Args:
        cache: folder for converted models.
        alter: changes the weights after loading; only :mod:`~daifi_flows.ray_mesh._adversary`
            gives one.
        threads: CPU threads of this process; by default half the cores.
    """

    name: ClassVar[str] = "transformers"
    evidence: ClassVar[frozenset[str]] = frozenset(
        {"prompt_tokens", "output_tokens", "activations", "output_layer"}
    )

    def __init__(
        self,
        cache: Path,
        alter: Callable[[Any], None] | None = None,
        threads: int | None = None,
    ) -> None:
        self.cache = cache
        self.threads = threads
        self._shelf = LlmShelf(cache, alter, threads)

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """Find the model; see :meth:`Engine.model`."""
        del materials
        return resolve(ref.name, self.name, ref.precision, ref.digest)

    def load(self, model: LocalModel) -> None:
        """Load the weights; the first load of a GGUF file converts it (16 s for SmolLM2)."""
        self._shelf.get(model)

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Generate an answer; see :meth:`Engine.run`."""
        sampling = sampling_of(spec)
        llm = self._shelf.get(self.model(spec.model, materials))
        started = time.perf_counter_ns()
        parsed, prompt = prompt_of(spec, input, llm.tokenizer)
        answer = llm.generate(prompt.tokens, sampling, control)
        elapsed = (time.perf_counter_ns() - started) // 1_000_000
        evidence: dict[str, Any] = {"prompt_tokens": prompt.tokens, "output_tokens": answer.tokens}
        if answer.activations is not None:
            evidence["activations"] = answer.activations
            evidence["output_layer"] = llm.output_layer()
        return Execution(
            output=render(parsed, prompt, answer.tokens, llm.tokenizer),
            usage=llm_usage(llm.parameters, len(prompt.tokens), len(answer.tokens), elapsed),
            evidence=evidence,
        )

    def rewrite(
        self, spec: TaskSpec, input: Content, tokens: list[int], materials: Materials
    ) -> Content:
        """The output content that these output tokens render to."""
        llm = self._shelf.get(self.model(spec.model, materials))
        parsed, prompt = prompt_of(spec, input, llm.tokenizer)
        return render(parsed, prompt, tokens, llm.tokenizer)

    def encode(self, ref: ModelRef, text: str) -> list[int]:
        """Tokens of plain text under this model's tokenizer."""
        return self._shelf.tokenizer(self.model(ref, Materials())).encode(text)

    def close(self) -> None:
        """Free the weights. Idempotent."""
        self._shelf.close()

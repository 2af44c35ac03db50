"""The ``vllm`` engine: continuous batching by vLLM V1, on CPU or GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec
from daifi_flows.errors import EngineError
from daifi_flows.proofs import Prefill, get_scheme
from daifi_flows.ray_mesh._models import LocalModel, resolve
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._hf import hf_folder
from daifi_flows.ray_mesh.engines._llm import llm_usage, prompt_of, render, sampling_of

if TYPE_CHECKING:
    from daifi_flows.ray_mesh.engines._vllm_server import VllmServer

__all__ = ["VllmEngine"]


class VllmEngine:
    """Same input, output, prompt and sampling rule as the transformers engine; many at once.

    Steps that run at the same time share batches, so throughput grows with load. Logits differ
    from transformers' by rounding; the schemes allow for it, so either engine may check what the
    other ran. Evidence: as the transformers engine's, with the ``activations`` only when the
    spec's scheme needs them.

    vLLM runs its core in a process of its own, started with the first step (one to two minutes on
    a CPU). When that process dies the engine cannot recover in place: it raises
    :class:`EngineDied` and the node restarts.

    Args:
        cache: folder for converted models: vLLM reads safetensors, not this project's GGUF.
        options: engine arguments of vLLM over the ones chosen here, for instance
            ``{"tensor_parallel_size": 2}``.
    """

    name: ClassVar[str] = "vllm"
    evidence: ClassVar[frozenset[str]] = frozenset(
        {"prompt_tokens", "output_tokens", "activations"}
    )

    def __init__(self, cache: Path, options: Mapping[str, Any] | None = None) -> None:
        self._cache = cache
        self._options = dict(options or {})
        self._free = threading.Condition()
        self._users = 0
        self._closed = False
        self._server: VllmServer | None = None

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """Find the model; see :meth:`Engine.model`."""
        del materials
        return resolve(ref.name, self.name, ref.precision, ref.digest)

    def load(self, model: LocalModel) -> None:
        """Start vLLM with this model, or keep the one that runs it already.

        Raises:
            EngineError: vLLM is not installed or does not start.
            ModelError: the model cannot be converted, or vLLM does not support it.
        """
        with self._serving(model):
            pass

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Generate an answer; see :meth:`Engine.run`."""
        sampling = sampling_of(spec)
        record = "activations" in get_scheme(spec.scheme).needs
        with self._serving(self.model(spec.model, materials)) as server:
            started = time.perf_counter_ns()
            parsed, prompt = prompt_of(spec, input, server.tokenizer)
            answer = server.generate(prompt.tokens, sampling, control, record=record)
            elapsed = (time.perf_counter_ns() - started) // 1_000_000
            evidence: dict[str, Any] = {
                "prompt_tokens": prompt.tokens,
                "output_tokens": answer.tokens,
            }
            if answer.activations is not None:
                evidence["activations"] = answer.activations
            return Execution(
                output=render(parsed, prompt, answer.tokens, server.tokenizer),
                usage=llm_usage(server.parameters, len(prompt.tokens), len(answer.tokens), elapsed),
                evidence=evidence,
            )

    def prefill(self, model: LocalModel, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        """One pass over prompt and output: row t scores output token t given all before.

        Raises:
            EncodingError: a token is not in the vocabulary, or prompt or output is empty.
            EngineDied: vLLM's process is gone.
            EngineError: vLLM is not installed, failed, or shows no hidden states of this model.
            ModelError: the model cannot be loaded, or the tokens are too many for this machine.
        """
        with self._serving(model) as server:
            return server.prefill(prompt, output)

    def held(self) -> tuple[int, int]:
        """Requests whose hidden states wait in vLLM's process, and their bytes."""
        with self._free:
            return self._server.held() if self._server is not None else (0, 0)

    def close(self) -> None:
        """Stop vLLM's process; no step starts another. Idempotent."""
        with self._free:
            self._closed = True
            server, self._server = self._server, None
            self._free.notify_all()
        if server is not None:
            server.close()

    @contextlib.contextmanager
    def _serving(self, model: LocalModel) -> Generator[VllmServer]:
        """The server with this model. It is not replaced by another's while somebody is inside."""
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(
                "the vllm engine is not installed on this machine: run `make vllm`, or use the "
                "transformers engine"
            )
        with self._free:
            while self._server is not None and not _same(self._server.model, model):
                if self._users:
                    self._free.wait()
                    continue
                self._server.close()  # one model at a time: two would not share the memory
                self._server = None
            if self._closed:
                raise EngineError("vLLM was stopped here")
            if self._server is None:
                from daifi_flows.ray_mesh.engines._vllm_server import VllmServer

                folder = hf_folder(model, self._cache)
                self._server = VllmServer(model, folder, self._options)
            server = self._server
            self._users += 1
        try:
            yield server
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()


def _same(one: LocalModel, other: LocalModel) -> bool:
    return (one.ref.digest, one.ref.precision) == (other.ref.digest, other.ref.precision)

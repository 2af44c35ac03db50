"""The ``vllm`` engine: continuous batching by vLLM V1, on CPU or GPU."""

# vLLM is optional (`make vllm`): types are checked the same with and without it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUntypedBaseClass=false

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import threading
import time
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, Sampling, TaskSpec
from daifi_flows.errors import EngineError, ModelError
from daifi_flows.ray_mesh._models import LocalModel, resolve
from daifi_flows.ray_mesh.engines._engine import Control, EngineDied, StepCancelled
from daifi_flows.ray_mesh.engines._hf import (
    PRECISIONS,
    HfTokenizer,
    count_parameters,
    hf_folder,
    load_tokenizer,
)
from daifi_flows.ray_mesh.engines._llm import llm_usage, prompt_of, render, sampling_of

__all__ = ["VllmEngine"]

T = TypeVar("T")

_PROCESSOR: Final = "daifi_flows.ray_mesh.engines._vllm_sampling:GumbelProcessor"
_MAX_CONTEXT: Final = 8192
"""Tokens of context the KV cache is made for, at most."""
_START_S: Final = 600.0
_POLL_S: Final = 0.1


class VllmEngine:
    """Same input, output, prompt and sampling rule as the transformers engine; many at once.

    Steps that run at the same time share batches, so throughput grows with load (FACTS: 49
    tokens/s alone, 406 over 16 requests on 2 cores). Logits differ from transformers' by rounding;
    ``token-difr`` allows for it, so a step that vLLM ran is checked by a transformers prefill.

    vLLM runs its core in a process of its own, started with the first step (one to two minutes on
    a CPU). When that process dies the engine cannot recover in place: it raises
    :class:`EngineDied` and the node restarts.

    Args:
        cache: folder for converted models: vLLM reads safetensors, not this project's GGUF.
    """

    name: ClassVar[str] = "vllm"

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._server: _Server | None = None

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
        self._serving(model)

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Generate an answer; see :meth:`Engine.run`."""
        sampling = sampling_of(spec)
        server = self._serving(self.model(spec.model, materials))
        started = time.perf_counter_ns()
        parsed, prompt = prompt_of(spec, input, server.tokenizer)
        output = server.generate(prompt.tokens, sampling, control)
        elapsed = (time.perf_counter_ns() - started) // 1_000_000
        return Execution(
            output=render(parsed, prompt, output, server.tokenizer),
            usage=llm_usage(server.parameters, len(prompt.tokens), len(output), elapsed),
            evidence={"prompt_tokens": prompt.tokens, "output_tokens": output},
        )

    def close(self) -> None:
        """Stop vLLM's process. Idempotent."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def _serving(self, model: LocalModel) -> _Server:
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(
                "the vllm engine is not installed on this node: run `make vllm`, or use the "
                "transformers engine"
            )
        with self._lock:
            if self._server is not None and self._server.model.ref != model.ref:
                self._server.close()  # one model a node: two would share neither cache nor memory
                self._server = None
            if self._server is None:
                self._server = _Server(model, hf_folder(model, self._cache))
            return self._server


class _Server:
    """vLLM's engine for one model, and the event loop it lives on."""

    def __init__(self, model: LocalModel, folder: Path) -> None:
        self.model = model
        self.tokenizer: HfTokenizer = load_tokenizer(folder)
        self.parameters = count_parameters(folder)
        self.context = min(self.tokenizer.context, _MAX_CONTEXT)
        self.tokenizer.context = self.context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            self._engine: Any = self._call(self._start(folder), _START_S)
        except BaseException:
            self._end_loop()
            raise

    async def _start(self, folder: Path) -> Any:
        if self.model.ref.precision not in PRECISIONS:
            raise ModelError(f"precision {self.model.ref.precision!r} is unknown")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default takes half of all
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise EngineError(f"vLLM cannot be imported: {error}; run `make vllm`") from error
        logging.getLogger("vllm").setLevel(logging.WARNING)
        try:
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=str(folder),
                    dtype=PRECISIONS[self.model.ref.precision],  # pyright: ignore
                    max_model_len=self.context,
                    enforce_eager=True,  # compiling takes longer than a demo's answers
                    async_scheduling=False,  # the sampler must see every earlier token
                    logits_processors=[_PROCESSOR],
                    disable_log_stats=True,
                    seed=0,
                )
            )
        except Exception as error:
            raise EngineError(
                f"vLLM does not start with model {self.model.ref.name!r}: {error}"
            ) from error

    def generate(self, prompt: list[int], sampling: Sampling, control: Control) -> list[int]:
        """Output tokens, end token included.

        Raises:
            StepCancelled: ``control`` asked to stop; the request is aborted in vLLM.
            EngineDied: vLLM's process is gone.
            EngineError: vLLM refused or failed.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return self._call(self._generate(prompt, sampling, control), None)
        except (StepCancelled, EngineError):
            raise
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine process died: {error}") from error
        except Exception as error:
            raise EngineError(f"vLLM failed on this step: {error}") from error

    async def _generate(self, prompt: list[int], sampling: Sampling, control: Control) -> list[int]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        ends = self.tokenizer.end_tokens
        params = SamplingParams(
            temperature=0.0,
            max_tokens=sampling.max_tokens,
            stop_token_ids=sorted(ends),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={
                "daifi_temperature_ppm": sampling.temperature_ppm,
                "daifi_seed": sampling.seed,
            },
        )
        request = uuid.uuid4().hex
        output: list[int] = []
        asked = TokensPrompt(prompt_token_ids=prompt)

        async def read() -> None:
            async for step in self._engine.generate(asked, params, request):
                output.extend(int(token) for token in step.outputs[0].token_ids)

        reading = asyncio.ensure_future(read())
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=_POLL_S)
                control.check()
            reading.result()
        finally:
            if not reading.done():
                reading.cancel()  # vLLM aborts a request whose reader is gone
                with contextlib.suppress(asyncio.CancelledError):
                    await reading
        control.log(f"generated {len(output)} tokens")
        return output

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        """Stop vLLM's process and the loop."""

        async def stop() -> None:
            self._engine.shutdown()
            self._engine = None  # or its destructor runs when the interpreter is half gone

        with contextlib.suppress(Exception):
            self._call(stop(), 30.0)
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)

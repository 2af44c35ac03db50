"""One running vLLM: a model, the event loop it lives on, and requests to it."""

# vLLM is optional (`make vllm`): types are checked the same with and without it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from daifi_flows.cnft import Sampling
from daifi_flows.errors import EncodingError, EngineError, ModelError
from daifi_flows.proofs import Prefill
from daifi_flows.ray_mesh._models import LocalModel
from daifi_flows.ray_mesh.engines._engine import Control, EngineDied, StepCancelled
from daifi_flows.ray_mesh.engines._hf import (
    PRECISIONS,
    HfTokenizer,
    count_parameters,
    load_tokenizer,
)
from daifi_flows.ray_mesh.engines._llm import Generated
from daifi_flows.ray_mesh.engines._vllm_worker import PREFILL, RECORD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["VllmServer"]

T = TypeVar("T")

_PROCESSOR: Final = "daifi_flows.ray_mesh.engines._vllm_sampling:SeededSampler"
_EXTENSION: Final = "daifi_flows.ray_mesh.engines._vllm_worker.WorkerExtension"
_MAX_CONTEXT: Final = 8192
"""Tokens of context the KV cache is made for, at most."""
_MAX_LOGITS: Final = 1 << 29
"""Logits of one prefill: 2 GiB of float32, as for a transformers prefill."""
_SLICE_LOGITS: Final = 1 << 22
"""Logits that travel from vLLM's process at once: 16 MiB."""
_START_S: Final = 600.0
_POLL_S: Final = 0.1
_END_S: Final = 5.0
"""How long requests under way may take to notice that vLLM is stopped."""


class VllmServer:
    """vLLM's engine core in a process of its own, with one model. Calls from several threads
    share its batches.

    Args:
        folder: the model in Hugging Face layout.
        options: engine arguments of vLLM over the ones chosen here.

    Raises:
        EngineError: vLLM does not start with this model.
        ModelError: the folder holds no model this package can use.
    """

    def __init__(self, model: LocalModel, folder: Path, options: Mapping[str, Any]) -> None:
        self.model = model
        self.tokenizer: HfTokenizer = load_tokenizer(folder)
        self.parameters = count_parameters(folder)
        self.context = int(
            options.get("max_model_len") or min(self.tokenizer.context, _MAX_CONTEXT)
        )
        """Tokens of prompt and answer together that this process has room for."""
        self._engine: Any = None
        self._begin()
        try:
            self._call(self._start(folder, options), _START_S)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._guarding = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="vllm", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        """The thread of the loop. Callers that still wait when it stops are told: nothing else
        would ever answer them."""
        self._loop.run_forever()
        if waiting := asyncio.all_tasks(self._loop):
            for task in waiting:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(waiting, timeout=_END_S))
        self._loop.close()

    async def _start(self, folder: Path, options: Mapping[str, Any]) -> None:
        if self.model.ref.precision not in PRECISIONS:
            raise ModelError(f"precision {self.model.ref.precision!r} is unknown")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default takes half of all
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # what _vllm_worker can watch
        try:
            import psutil
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise EngineError(f"vLLM cannot be imported: {error}; run `make vllm`") from error
        logging.getLogger("vllm").setLevel(logging.WARNING)
        chosen: dict[str, Any] = {
            "model": str(folder),
            "dtype": PRECISIONS[self.model.ref.precision],
            "max_model_len": self.context,
            "enforce_eager": True,  # compiling takes longer than a demo's answers
            "async_scheduling": False,  # the sampler must see every earlier token
            "logits_processors": [_PROCESSOR],
            "worker_extension_cls": _EXTENSION,
            "disable_log_stats": True,
            "seed": 0,
        }
        try:
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**(chosen | dict(options))))
            faults = await self._ask("daifi_watch", os.getpid(), psutil.Process().create_time())
        except Exception as error:
            raise EngineError(
                f"vLLM does not start with model {self.model.ref.name!r}: {error}"
            ) from error
        self._hidden_fault = next((fault for fault in faults if fault), "")
        self._vocabulary = int(self._engine.model_config.get_vocab_size())

    def generate(
        self, prompt: list[int], sampling: Sampling, control: Control, *, record: bool
    ) -> Generated:
        """An answer; with its activations when ``record`` asks for them.

        Raises:
            StepCancelled: ``control`` asked to stop; the request is aborted in vLLM.
            EngineDied: vLLM's process is gone.
            EngineError: prompt and answer do not fit this process's context, vLLM refused or
                failed, or it does not show the hidden states of this model.
        """
        if len(prompt) + sampling.max_tokens > self.context:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens and an answer of {sampling.max_tokens} do not "
                f"fit the {self.context} tokens of context that vLLM has here"
            )
        if record and self._hidden_fault:
            raise EngineError(
                f"vLLM does not show the hidden states of model {self.model.ref.name!r} here: "
                f"{self._hidden_fault}; choose a proof scheme that needs no activations"
            )
        return self._guard(self._generate(prompt, sampling, control, record))

    def prefill(self, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        """One pass over prompt and output: row t scores output token t given all before.

        ``prompt_logprobs`` would give the logits too, but as one Python object per position and
        vocabulary entry (millions, and all are needed: the sampling noise may lift any of them).
        Here the worker keeps the hidden states of the output's positions, and the output layer
        runs over them in slices whose logits travel as bytes.

        Raises:
            EncodingError: a token is not in the vocabulary, or prompt or output is empty.
            EngineDied: vLLM's process is gone.
            EngineError: vLLM failed, or it does not show the hidden states of this model.
            ModelError: too many tokens for this machine.
        """
        if not prompt or not output:
            raise EncodingError("prompt and output need at least one token each")
        if not all(0 <= token < self._vocabulary for token in (*prompt, *output)):
            raise EncodingError(f"a token is not in the vocabulary of {self._vocabulary}")
        tokens = [*prompt, *output[:-1]]
        if len(output) * self._vocabulary > _MAX_LOGITS or len(tokens) >= self.context:
            raise ModelError(f"{len(tokens)} tokens are too many to check on this machine")
        if self._hidden_fault:
            raise EngineError(f"vLLM cannot prefill this model here: {self._hidden_fault}")
        return self._guard(self._prefill(tokens, len(prompt) - 1))

    def held(self) -> tuple[int, int]:
        """Requests whose hidden states wait in vLLM's processes, and their bytes.

        Raises:
            EngineDied, EngineError: see :meth:`generate`.
        """
        ranks = self._guard(self._ask("daifi_held"))
        return sum(int(rank[0]) for rank in ranks), sum(int(rank[1]) for rank in ranks)

    async def _generate(
        self, prompt: list[int], sampling: Sampling, control: Control, record: bool
    ) -> Generated:
        from vllm import SamplingParams

        name = uuid.uuid4().hex
        asked: dict[str, Any] = {"daifi_sampling": sampling.plain()}
        if record:
            asked[RECORD] = name
        params = SamplingParams(
            temperature=0.0,
            max_tokens=sampling.max_tokens,
            stop_token_ids=sorted(self.tokenizer.end_tokens),
            detokenize=False,
            extra_args=asked,
        )
        async with self._kept(name if record else None):
            output = await self._run(name, prompt, params, control)
            control.log(f"generated {len(output)} tokens")
            if not record:
                return Generated(output, None)
            fault, count, data = await self._answer("daifi_take", name)
        if fault or count != len(output):
            raise EngineError(
                "vLLM did not show the hidden states of this answer: "
                f"{fault or f'{count} rows for {len(output)} tokens'}"
            )
        return Generated(output, _matrix(data, count))

    async def _prefill(self, tokens: list[int], first: int) -> Prefill:
        import numpy as np
        from vllm import SamplingParams

        name = uuid.uuid4().hex
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            skip_reading_prefix_cache=True,  # a cached position has no hidden state to show
            extra_args={PREFILL: [name, first, len(tokens) - 1]},
        )
        count = len(tokens) - first
        step = max(1, _SLICE_LOGITS // self._vocabulary)
        hidden: list[NDArray[np.float32]] = []
        logits = np.empty((count, self._vocabulary), np.float32)
        async with self._kept(name):
            await self._run(name, tokens, params, Control())
            for start in range(0, count, step):
                stop = min(start + step, count)
                fault, seen, scores = await self._answer("daifi_score", name, start, stop)
                rows = _matrix(scores, stop - start)
                if fault or rows.shape[1] != self._vocabulary:
                    raise EngineError(
                        "vLLM did not show the logits of this prefill: "
                        f"{fault or f'they are {rows.shape[1]} wide, not {self._vocabulary}'}"
                    )
                logits[start:stop] = rows
                hidden.append(_matrix(seen, stop - start))
        return Prefill(logits, np.concatenate(hidden))

    @contextlib.asynccontextmanager
    async def _kept(self, name: str | None) -> AsyncGenerator[None]:
        """Nothing stays in the worker under ``name`` after this block, however it ends.

        A request that did not end is aborted first: vLLM handles messages in order.
        """
        try:
            yield
        finally:
            if name is not None:
                with contextlib.suppress(Exception):  # a dead process keeps nothing
                    await self._ask("daifi_take", name)

    async def _run(self, name: str, tokens: list[int], params: Any, control: Control) -> list[int]:
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.DELTA
        asked = TokensPrompt(prompt_token_ids=tokens)
        output: list[int] = []

        async def read() -> None:
            async for step in self._engine.generate(asked, params, name):
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
        return output

    async def _ask(self, method: str, *arguments: Any) -> list[Any]:
        return list(await self._engine.collective_rpc(method, args=arguments))

    async def _answer(self, method: str, *arguments: Any) -> Any:
        """What rank 0 says; the other ranks say nothing."""
        found = await self._ask(method, *arguments)
        return next(item for item in found if item is not None)

    def _guard(self, work: Coroutine[Any, Any, T]) -> T:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return self._call(work, None)
        except (StepCancelled, EngineError):
            raise
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine process died: {error}") from error
        except Exception as error:
            raise EngineError(f"vLLM failed on this step: {error}") from error

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        with self._guarding:  # what is begun here is on the loop before its end is
            if self._closing:
                work.close()
                raise EngineError("vLLM was stopped here")
            found = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return found.result(timeout_s)
        except concurrent.futures.CancelledError as error:
            raise EngineError("vLLM was stopped while it ran this step") from error

    def close(self) -> None:
        """Stop vLLM's process and the loop; calls under way fail. Idempotent."""

        async def stop() -> None:
            if self._engine is not None:
                self._engine.shutdown()
            self._engine = None  # or its destructor runs when the interpreter is half gone

        with self._guarding:
            if self._closing:
                return
            self._closing = True
            stopping = asyncio.run_coroutine_threadsafe(stop(), self._loop)
        with contextlib.suppress(Exception):
            stopping.result(30.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2 * _END_S)


def _matrix(data: bytes, rows: int) -> NDArray[np.float32]:
    """``[rows, width]`` of float32 bytes, one row after the other."""
    import numpy as np

    return np.frombuffer(data, np.float32).reshape(rows, -1)

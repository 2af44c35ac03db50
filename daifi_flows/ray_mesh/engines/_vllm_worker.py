"""Shows the hidden states inside vLLM V1; imported by vLLM's own worker processes.

vLLM has no output for the hidden states of a generation, but takes a class whose methods its
workers gain (``worker_extension_cls``). This one watches two places of the worker's model runner:

- the input of the model's ``LogitsProcessor`` layer, one row per request of the batch: what the
  output layer multiplies;
- ``sample_tokens``, after which the runner says which of these rows gave a token and which were
  the end of an unfinished chunk of a prompt.

A request asks with ``SamplingParams.extra_args``: :data:`RECORD` keeps the row of every output
token, :data:`PREFILL` those of a range of prompt positions. Nobody else pays for it. The rows wait
in a :class:`RowKeeper` until the engine takes or drops them.

Preempted requests are computed again up to their last token, and only what is sampled is recorded,
so that each token has one row. Under tensor parallelism every rank sees the same rows; rank 0
answers. Needs V1's first model runner, without asynchronous scheduling or speculative decoding:
:meth:`Watch.fault` says so otherwise.
"""

# vLLM is optional (`make vllm`): types are checked the same with and without it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import threading
import time
from typing import Any, Final

from daifi_flows.ray_mesh.engines._rows import RowKeeper

__all__ = ["PREFILL", "RECORD", "Watch", "WorkerExtension"]

RECORD: Final = "daifi_record"
"""``extra_args`` key: a name under which the rows of the output tokens are kept."""
PREFILL: Final = "daifi_prefill"
"""``extra_args`` key: ``[name, first, last]``: rows of the prompt's positions first … last."""

_MAX_BYTES: Final = 4 << 30
"""Rows that may wait in a worker, float32; 1,000 tokens of an 8B model take 16 MB."""


_OWNER_POLL_S: Final = 2.0


class Watch:
    """Records rows from one model runner, see the module.

    Args:
        runner: vLLM's ``GPUModelRunner`` or ``CPUModelRunner``.
        answers: whether this rank's rows of generations are asked for.
    """

    def __init__(self, runner: Any, *, answers: bool, max_bytes: int = _MAX_BYTES) -> None:
        self.rows = RowKeeper(max_bytes)
        self.answers = answers
        self._runner = runner
        self._seen: Any = None
        self._forward_dtype: Any = None
        self._sample = runner.sample_tokens

    def fault(self) -> str:
        """Why this worker cannot show its hidden states; empty when it can."""
        runner = self._runner
        if not hasattr(runner, "execute_model_state") or not hasattr(runner, "query_start_loc"):
            return "its model runner is not V1's first one (VLLM_USE_V2_MODEL_RUNNER=0)"
        if runner.speculative_config is not None:
            return "speculative decoding is on"
        if runner.use_async_scheduling:
            return "asynchronous scheduling is on"
        if len(self._layers()) != 1:
            return f"its model has {len(self._layers())} output layers that show their input, not 1"
        return ""

    def _layers(self) -> list[Any]:
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        return [
            layer
            for layer in self._runner.model.modules()
            if isinstance(layer, LogitsProcessor) and not layer.logits_as_input
        ]

    def start(self) -> None:
        """Begin to watch. Call once, when :meth:`fault` is empty."""
        self._layers()[0].register_forward_pre_hook(self.keep, with_kwargs=True)
        self._runner.sample_tokens = self.sample_tokens

    def keep(self, _layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward hook of the ``LogitsProcessor(lm_head, hidden_states, …)``."""
        self._seen = args[1] if len(args) > 1 else kwargs.get("hidden_states")

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The runner's method of that name, and what it samples is recorded."""
        step, seen = self._runner.execute_model_state, self._seen
        self._seen = None
        if step is not None and step.hidden_states is not None:
            self._record_prefills(step)
        output = self._sample(grammar_output)
        if step is not None and self.answers:
            self._record_tokens(output, seen)
        return output

    def _asked(self, request: Any) -> dict[str, Any]:
        params = request.sampling_params
        return (params.extra_args if params is not None else None) or {}

    def _record_tokens(self, output: Any, seen: Any) -> None:
        """One row a sampled token; ``output.sampled_token_ids[i]`` is empty after a part of a
        prompt."""
        wanted: list[tuple[int, str, int]] = []
        for index, identifier in enumerate(output.req_ids):
            request = self._runner.requests.get(identifier)
            if request is None or not output.sampled_token_ids[index]:
                continue
            key = self._asked(request).get(RECORD)
            if key is None:
                continue
            if len(output.sampled_token_ids[index]) != 1:
                self.rows.spoil(key, "a step gave several tokens")
                continue
            wanted.append((index, key, len(request.output_token_ids) - 1))
        if not wanted:
            return
        if seen is None or len(seen) != len(output.req_ids):
            for _, key, _ in wanted:
                self.rows.spoil(key, "a step did not show one hidden state per request")
            return
        rows = _raw_rows(seen[[index for index, _, _ in wanted]])
        for (_, key, position), row in zip(wanted, rows, strict=True):
            self.rows.put(key, position, row)

    def _record_prefills(self, step: Any) -> None:
        """Rows of prompt positions, from the part of the prompt that this step computed."""
        scheduled = step.scheduler_output.num_scheduled_tokens
        for index, identifier in enumerate(self._runner.input_batch.req_ids):
            request = self._runner.requests[identifier]
            asked = self._asked(request).get(PREFILL)
            if asked is None:
                continue
            key, first, last = asked
            begin = int(request.num_computed_tokens)
            low, high = max(begin, first), min(begin + scheduled[identifier], last + 1)
            if low >= high:
                continue
            self._forward_dtype = step.hidden_states.dtype
            offset = int(self._runner.query_start_loc.np[index]) - begin
            rows = _raw_rows(step.hidden_states[offset + low : offset + high])
            for position, row in enumerate(rows, low - first):
                self.rows.put(key, position, row)

    def score(self, key: str, start: int, stop: int) -> tuple[str, bytes, bytes]:
        """The output layer over kept rows: fault, its input, its logits; float32, row by row.

        Every rank must call it, for the ranks compute it together; only rank 0 has the answer.
        """
        import numpy as np
        import torch

        found = self.rows.get(key)
        if found.fault:
            return found.fault, b"", b""
        kept = found.rows[start:stop]
        if len(kept) != stop - start:
            return f"only {len(found.rows)} of {stop} rows were computed", b"", b""
        rows = np.frombuffer(b"".join(kept), np.float32).reshape(len(kept), -1).copy()
        runner = self._runner
        with torch.inference_mode():
            given = torch.from_numpy(rows).to(device=runner.device, dtype=self._forward_dtype)
            logits = runner.model.compute_logits(given)
        seen, self._seen = self._seen, None
        if seen is None or len(seen) != len(kept):
            return "the output layer did not show its input", b"", b""
        if not self.answers or logits is None:
            return "", b"", b""
        return "", b"".join(_raw_rows(seen)), b"".join(_raw_rows(logits))


def _raw_rows(rows: Any) -> list[bytes]:
    """Bytes of each row of a ``[rows, width]`` tensor, float32."""
    return [row.tobytes() for row in rows.detach().float().cpu().contiguous().numpy()]


def end_with(owner: int, born: float) -> None:
    """End this process soon after the one that started vLLM is gone.

    vLLM's processes outlive a killed owner, with all their memory. One worker that ends takes the
    others along.

    Args:
        owner, born: process id and start time; a process not found is on another machine and is
            not watched.
    """
    import psutil

    def alive() -> bool:
        try:
            found = psutil.Process(owner)
            return found.create_time() == born and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def watch() -> None:
        while alive():
            time.sleep(_OWNER_POLL_S)
        os._exit(1)

    if alive():
        threading.Thread(target=watch, name="daifi-owner", daemon=True).start()


class WorkerExtension:
    """Methods that vLLM's workers gain, for ``collective_rpc``; the names must be new to them."""

    model_runner: Any
    _daifi: Watch | None

    def daifi_watch(self, owner: int, born: float) -> str:
        """Begin to watch; why not, or nothing. The process ends with its owner, see
        :func:`end_with`."""
        from vllm.distributed import get_pp_group, get_tp_group

        end_with(owner, born)
        self._daifi = None
        if not get_pp_group().is_last_rank:
            return ""
        watch = Watch(self.model_runner, answers=get_tp_group().rank_in_group == 0)
        fault = watch.fault()
        if not fault:
            watch.start()
            self._daifi = watch
        return fault

    def daifi_take(self, key: str) -> tuple[str, int, bytes] | None:
        """Fault, number and bytes of the rows kept under a name, which is forgotten; from rank 0
        only."""
        if self._daifi is None:
            return None
        found = self._daifi.rows.take(key)
        return (found.fault, len(found.rows), b"".join(found.rows)) if self._daifi.answers else None

    def daifi_score(self, key: str, start: int, stop: int) -> tuple[str, bytes, bytes] | None:
        """See :meth:`Watch.score`; from rank 0 only."""
        if self._daifi is None:
            return None
        found = self._daifi.score(key, start, stop)
        return found if self._daifi.answers else None

    def daifi_held(self) -> tuple[int, int]:
        """Requests whose rows wait here, and their bytes."""
        if self._daifi is None:
            return 0, 0
        return len(self._daifi.rows), self._daifi.rows.held_bytes

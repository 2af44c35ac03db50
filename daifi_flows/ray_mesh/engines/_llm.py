"""A causal language model in this process: generates by the project's sampling rule, or prefills.

Nodes and verifiers share this module, so that both build the same prompt, render the same output
and read logits the same way.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daifi_flows.cnft import Content, Sampling, TaskSpec, Usage
from daifi_flows.encoding import canonical_json
from daifi_flows.errors import EncodingError, EngineError, ModelError
from daifi_flows.proofs import Prefill
from daifi_flows.proofs.sampling import sample
from daifi_flows.proofs.zk_slice import OutputLayer
from daifi_flows.ray_mesh._models import LocalModel
from daifi_flows.ray_mesh.engines import DEFAULT_THREADS
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._hf import (
    HfTokenizer,
    hf_folder,
    load_causal,
    load_tokenizer,
)
from daifi_flows.ray_mesh.engines._prompt import LlmInput, Prompt, build_prompt, parse_llm_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CausalLm",
    "Generated",
    "LlmShelf",
    "llm_usage",
    "prompt_of",
    "render",
    "sampling_of",
]

_LOG_EVERY: Final = 32
"""Tokens between two lines of progress."""
_MAX_LOGITS: Final = 1 << 29
"""Logits of one prefill: 2 GiB of float32."""
_CITATION: Final = re.compile(r"\[(\d{1,4})\]")
_KEPT: Final = 2
"""Models kept in memory at once; a third replaces the one used longest ago."""


def sampling_of(spec: TaskSpec) -> Sampling:
    """The spec's sampling parameters.

    Raises:
        EngineError: an LLM step without them, or with no token to generate.
    """
    if spec.sampling is None or spec.sampling.max_tokens < 1:
        raise EngineError("an LLM step needs sampling parameters with max_tokens of at least 1")
    return spec.sampling


def prompt_of(spec: TaskSpec, input: Content, tokenizer: HfTokenizer) -> tuple[LlmInput, Prompt]:
    """Parse an LLM step's input and build the prompt that fits.

    Raises:
        EngineError: the input is malformed, or nothing of it fits.
    """
    try:
        value = input.value()
    except EncodingError as error:
        raise EngineError(f"the input is not what an LLM step takes: {error}") from error
    parsed = parse_llm_input(value)
    prompt = build_prompt(parsed, sampling_of(spec).max_tokens, tokenizer.context, tokenizer)
    return parsed, prompt


def render(
    parsed: LlmInput,
    prompt: Prompt,
    tokens: Sequence[int],
    tokenizer: HfTokenizer,
    salt: bytes | None = None,
) -> Content:
    """The output content of these output tokens (end token included).

    The model sees passages numbered 1, 2, …; the text cites them by their ids.
    """
    ended = bool(tokens) and tokens[-1] in tokenizer.end_tokens
    text = (prompt.opening + tokenizer.decode(tokens[:-1] if ended else tokens)).strip()
    kept = parsed.passages[: len(parsed.passages) - len(prompt.dropped_passages)]

    def named(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"[{kept[number - 1].id}]" if 1 <= number <= len(kept) else match[0]

    value: dict[str, Any] = {
        "text": _CITATION.sub(named, text),
        "finish": "stop" if ended else "length",
        "prompt_tokens": len(prompt.tokens),
        "dropped_passages": list(prompt.dropped_passages),
        "question_tokens_dropped": prompt.question_tokens_dropped,
    }
    if parsed.messages:
        value["dropped_messages"] = prompt.dropped_messages
    if salt is None:
        return Content.json_value(value)
    return Content(media_type="application/json", data=canonical_json(value), salt=salt)


def llm_usage(parameters: int, prompt: int, output: int, duration_ms: int) -> Usage:
    """Tokens, and FLOPs as 2 × parameters × tokens (Kaplan et al., arXiv 2001.08361, 2.1)."""
    return Usage(
        prompt_tokens=prompt,
        output_tokens=output,
        flops=2 * parameters * (prompt + output),
        duration_ms=duration_ms,
    )


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        tokens: output tokens, end token included.
        activations: last hidden states, what the output layer multiplied, float32 ``[tokens,
            width]`` holding the model's own values exactly: row t gave token t. Absent when the
            model does not show its output layer's input.
    """

    tokens: list[int]
    activations: NDArray[np.float32] | None


@dataclass
class _Row:
    """One answer of a batch while it grows."""

    prompt: Sequence[int]
    sampling: Sampling
    tokens: list[int] = field(default_factory=list[int])
    hidden: list[Any] = field(default_factory=list[Any])

    def generated(self) -> Generated:
        import torch

        shown = len(self.hidden) == len(self.tokens)
        rows = torch.stack(self.hidden).float().cpu().numpy() if shown else None
        return Generated(self.tokens, rows)


class CausalLm:
    """Weights and tokenizer of one model in one precision. Inference may run in several threads.

    Args:
        alter: changes the weights after loading. Honest nodes have none; see ``_adversary``.
        threads: CPU threads of this process.
    """

    def __init__(
        self,
        folder: Path,
        precision: str,
        alter: Callable[[Any], None] | None = None,
        threads: int | None = None,
    ) -> None:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(threads or DEFAULT_THREADS)  # Ray's own default is 1
        self.tokenizer = load_tokenizer(folder)
        self._weights = load_causal(folder, precision)
        self.parameters = sum(int(item.numel()) for item in self._weights.parameters())
        if alter is not None:
            alter(self._weights)
        self._device = next(iter(self._weights.parameters())).device
        self._vocabulary = int(self._weights.get_input_embeddings().num_embeddings)
        self._watching = threading.local()
        self._other: Any = None
        self._other_lock = threading.Lock()
        if (layer := self._weights.get_output_embeddings()) is not None:
            layer.register_forward_pre_hook(self._keep)

    def _tensor(self, tokens: Sequence[Sequence[int]]) -> Any:
        import torch

        return torch.tensor([list(row) for row in tokens], dtype=torch.long, device=self._device)

    def generate(self, prompt: Sequence[int], sampling: Sampling, control: Control) -> Generated:
        """One answer by :func:`proofs.sampling.sample`, with a KV cache.

        Raises:
            StepCancelled: ``control`` asked to stop.
            EngineError: the model failed, for instance for want of memory.
        """
        return self.generate_batch([prompt], [sampling], control)[0]

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], control: Control
    ) -> list[Generated]:
        """An answer to each prompt, all in one batch: padded on the left, rows leave as they end.

        Rows differ from those of :meth:`generate` by rounding only.

        Raises:
            StepCancelled: ``control`` asked to stop.
            EngineError: the model failed, for instance for want of memory.
        """
        import torch

        rows = [_Row(*each) for each in zip(prompts, samplings, strict=True)]
        try:
            with torch.inference_mode(), self._hidden_states() as seen:
                self._answer(rows, seen, control)
                return [row.generated() for row in rows]
        except (RuntimeError, MemoryError) as error:
            count = sum(len(row.tokens) for row in rows)
            raise EngineError(f"the model failed after {count} tokens: {error}") from error

    def _answer(self, rows: list[_Row], seen: list[Any], control: Control) -> None:
        import torch

        control.check()
        longest = max(len(row.prompt) for row in rows)
        pads = [longest - len(row.prompt) for row in rows]
        ids = self._tensor([[0] * pad + [*row.prompt] for pad, row in zip(pads, rows, strict=True)])
        where: dict[str, Any] = {}
        if any(pads):
            mask = self._tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
            where = {
                "attention_mask": mask,
                "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
            }
        step = self._weights(input_ids=ids, use_cache=True, logits_to_keep=1, **where)
        control.log(f"read the prompt of {longest} tokens")
        position = 0
        while True:
            scores = step.logits[:, -1].float().cpu().numpy()
            hidden = seen.pop()[:, -1].clone() if seen else None  # not a view of the whole prompt
            for index, row in enumerate(rows):
                row.tokens.append(_draw(scores[index], row.sampling, position))
                if hidden is not None:
                    row.hidden.append(hidden[index])
            position += 1
            going = [index for index, row in enumerate(rows) if not self._ended(row)]
            if not going:
                control.log(f"generated {position} tokens")
                return
            if position % _LOG_EVERY == 0:
                control.log(f"generated {position} tokens so far")
            control.check()
            past = step.past_key_values
            if len(going) < len(rows):
                kept = torch.tensor(going, device=self._device)
                past.batch_select_indices(kept)
                where = {name: value[kept] for name, value in where.items()}
                rows = [rows[index] for index in going]
            if where:
                mask = where["attention_mask"]
                where = {
                    "attention_mask": torch.cat((mask, mask.new_ones(len(rows), 1)), 1),
                    "position_ids": where["position_ids"][:, -1:] + 1,
                }
            step = self._weights(
                input_ids=self._tensor([row.tokens[-1:] for row in rows]),
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
                **where,
            )

    def _ended(self, row: _Row) -> bool:
        ended = row.tokens[-1] in self.tokenizer.end_tokens
        return ended or len(row.tokens) >= row.sampling.max_tokens

    def prefill(self, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        """One pass over prompt and output: row t scores output token t given all before.

        Raises:
            EncodingError: a token is not in the vocabulary, or prompt or output is empty.
            ModelError: too many tokens for this machine, or the model failed.
        """
        return self._pass(self._weights, prompt, output)

    def prefill_again(self, prompt: Sequence[int], output: Sequence[int]) -> Prefill | None:
        """The same by another attention kernel: equal but for rounding. The weights are shared.

        Returns:
            ``None`` when the model has one kernel only.

        Raises:
            EncodingError, ModelError: as :meth:`prefill`.
        """
        other = self._other_kernel()
        return None if other is None else self._pass(other, prompt, output)

    def _other_kernel(self) -> Any:
        with self._other_lock:
            if self._other is None:
                used = getattr(self._weights.config, "_attn_implementation", "eager")
                # A copy of the modules around the same tensors: switching the kernel of the model
                # itself would change it under other threads.
                shared = (*self._weights.parameters(), *self._weights.buffers(), self)
                other = copy.deepcopy(self._weights, {id(each): each for each in shared})
                try:
                    other.set_attn_implementation("sdpa" if used == "eager" else "eager")
                except (ValueError, ImportError):  # transformers: this model has no such kernel
                    other = False
                self._other = other
            return self._other or None

    def _pass(self, weights: Any, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        import torch

        tokens = [*prompt, *output[:-1]]
        if not prompt or not output:
            raise EncodingError("prompt and output need at least one token each")
        self._check_tokens((*prompt, *output))
        if len(output) * self._vocabulary > _MAX_LOGITS or len(tokens) > self.tokenizer.context:
            raise ModelError(f"{len(tokens)} tokens are too many to check on this machine")
        try:
            with torch.inference_mode(), self._hidden_states() as seen:
                result = weights(
                    input_ids=self._tensor([tokens]), use_cache=False, logits_to_keep=len(output)
                )
                hidden = seen[-1][0].float().cpu().numpy() if seen else None
                return Prefill(_widened(result.logits[0]), hidden)
        except (RuntimeError, MemoryError) as error:
            raise ModelError(f"the model failed on {len(tokens)} tokens: {error}") from error

    def output_rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Rows of the output layer, ``[len(tokens), width]``.

        Raises:
            EncodingError: a token is not in the vocabulary.
        """
        self._check_tokens(tokens)
        layer = self._weights.get_output_embeddings()
        return layer.weight.detach()[list(tokens)].float().cpu().numpy()

    def output_layer(self) -> OutputLayer:
        """The output layer, for ``zk-slice``."""
        return OutputLayer(self._vocabulary, self.output_rows)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not all(0 <= token < self._vocabulary for token in tokens):
            raise EncodingError(f"a token is not in the vocabulary of {self._vocabulary}")

    def _keep(self, _layer: Any, inputs: tuple[Any, ...]) -> None:
        """Hook of the output layer: hands its input to the thread that watches, if it does."""
        seen: list[Any] | None = getattr(self._watching, "seen", None)
        if seen is not None:
            seen.append(inputs[0])

    @contextlib.contextmanager
    def _hidden_states(self) -> Generator[list[Any]]:
        """Collects what this thread's forward passes give the output layer, ``[batch, kept,
        width]`` a pass."""
        seen: list[Any] = []
        self._watching.seen = seen
        try:
            yield seen
        finally:
            self._watching.seen = None


def _widened(logits: Any) -> NDArray[np.float32]:
    """Logits ``[tokens, vocab]`` as float32.

    NumPy asks Linux for huge pages where torch does not: 300 rows of 49,152 have 14,400 ordinary
    pages, and touching them for the first time takes longer than widening the numbers.
    """
    import numpy as np
    import torch

    if logits.dtype is torch.float32:
        return logits.cpu().numpy()
    rows = np.empty(tuple(logits.shape), np.float32)
    torch.from_numpy(rows).copy_(logits)
    return rows


def _draw(logits: NDArray[np.float32], sampling: Sampling, position: int) -> int:
    """The token at ``position`` of an answer."""
    return sample(logits, sampling, position)


class LlmShelf:
    """The language models one process holds, by digest and precision. Thread-safe.

    Args:
        cache: folder of converted models, see :func:`hf_folder`.
    """

    def __init__(
        self,
        cache: Path,
        alter: Callable[[Any], None] | None = None,
        threads: int | None = None,
    ) -> None:
        self._cache = cache
        self._alter = alter
        self._threads = threads
        self._lock = threading.Lock()
        self._models: OrderedDict[tuple[bytes, str], CausalLm] = OrderedDict()
        self._tokenizers: OrderedDict[tuple[bytes, str], HfTokenizer] = OrderedDict()

    def get(self, model: LocalModel) -> CausalLm:
        """The model in memory; loaded now when it is not there yet.

        Raises:
            ModelError: it cannot be loaded.
        """
        key = (model.ref.digest, model.ref.precision)
        with self._lock:
            found = self._models.get(key)
            if found is None:
                folder = hf_folder(model, self._cache)
                found = self._models[key] = CausalLm(
                    folder, model.ref.precision, self._alter, self._threads
                )
                if len(self._models) > _KEPT:
                    self._models.popitem(last=False)
            self._models.move_to_end(key)
            return found

    def tokenizer(self, model: LocalModel) -> HfTokenizer:
        """The model's tokenizer, without its weights.

        Raises:
            ModelError: it cannot be loaded.
        """
        key = (model.ref.digest, model.ref.precision)
        with self._lock:
            if key in self._models:
                return self._models[key].tokenizer
            found = self._tokenizers.get(key)
            if found is None:
                found = load_tokenizer(hf_folder(model, self._cache))
                self._tokenizers[key] = found
                if len(self._tokenizers) > 2 * _KEPT:
                    self._tokenizers.popitem(last=False)
            return found

    def close(self) -> None:
        """Free the weights. Idempotent; the next use loads them again."""
        with self._lock:
            self._models.clear()
            self._tokenizers.clear()

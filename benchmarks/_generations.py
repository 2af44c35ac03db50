"""Generations of an honest node and of cheats, as claims that the schemes can be asked about."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._prompts import cut, prompts
from daifi_flows.cnft import Content, Execution, ModelRef, Sampling, TaskSpec
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim
from daifi_flows.ray_mesh._adversary import drop_layers, prune, quantize_int4, quantize_int8
from daifi_flows.ray_mesh._models import resolve
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._hf import hf_folder
from daifi_flows.ray_mesh.engines._llm import CausalLm, llm_usage, prompt_of, render

__all__ = ["HONEST", "KINDS", "MODEL", "NODE", "Generation", "Kind", "folder_of", "generate"]

MODEL = "smollm2-135m-instruct"
NODE = Account.from_seed(b"benchmark node")
_BUYER = Account.from_seed(b"benchmark buyer")
_SALT = bytes(32)
_CONTEXT = 1024
_TEMPERATURE = 800_000


def _eager(weights: Any) -> None:
    weights.set_attn_implementation("eager")


@dataclass(frozen=True)
class Kind:
    """What a node really does under the claim "this model in bf16".

    Attributes:
        batch: prompts that share a forward pass.
        prompt: what it makes of the passage.
        sampler: what it makes of the sampling parameters.
        sampled: at temperature 0.8 only; otherwise half of the generations are greedy.
        tokens: how many are generated and judged.
    """

    name: str
    precision: str = "bf16"
    alter: Callable[[Any], None] | None = None
    batch: int = 25
    threads: int = 2
    prompt: Callable[[str], str] = str
    sampler: Callable[[Sampling], Sampling] = lambda asked: asked
    sampled: bool = False
    tokens: int = 64
    count: int = 200


HONEST: Sequence[Kind] = (
    Kind("bf16, batches of 25", tokens=300),
    Kind("bf16, one at a time, one thread", batch=1, threads=1),
    Kind("bf16, batches of 8, eager attention", batch=8, alter=_eager),
    Kind("fp32, batches of 25", precision="fp32"),
)
KINDS: Sequence[Kind] = (
    Kind("int8 per channel", alter=quantize_int8, tokens=300),
    Kind("int4 in groups of 64", alter=quantize_int4),
    Kind("pruned copy (half of the weights)", alter=prune),
    Kind("another model (three quarters of the layers)", alter=drop_layers),
    Kind("temperature off by 0.1", sampler=lambda asked: asked.model_copy(
        update={"temperature_ppm": asked.temperature_ppm + 100_000}), sampled=True),
    Kind("shifted seed", sampler=lambda asked: asked.model_copy(
        update={"seed": asked.seed + 1}), sampled=True),
    Kind("cut and spliced prompt", prompt=cut),
)  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """One answer with what it claims to be."""

    claim: Claim
    execution: Execution
    seconds: float = field(default=0.0)
    """Of its batch, divided by the batch."""


_cache = tempfile.TemporaryDirectory(prefix="daifi-bench-models-")


def folder_of(precision: str) -> Path:
    """The model's weights in Hugging Face layout."""
    return hf_folder(resolve(MODEL, "transformers", precision), Path(_cache.name))


def _input(passage: str, task: str) -> Content:
    message = {"role": "user", "content": f"{passage}\n\n{task}"}
    return Content.json_value({"messages": [message], "context_tokens": _CONTEXT}, _SALT)


def _spec(ref: ModelRef, input: Content, sampling: Sampling, scheme: str) -> TaskSpec:
    return TaskSpec(
        kind="reason",
        model=ref,
        input_cid=input.cid,
        sampling=sampling,
        scheme=scheme,
        max_price_wei=10**16,
        deadline_ms=1,
        buyer=_BUYER.address,
        nonce=bytes(32),
    )


def generate(kind: Kind, scheme: str = "token-difr") -> Iterator[Generation]:
    """What a node of this kind claims, answer by answer."""
    import time

    ref = resolve(MODEL, "transformers", "bf16").ref
    llm = CausalLm(folder_of(kind.precision), kind.precision, kind.alter, kind.threads)
    pairs = prompts(kind.count)
    for start in range(0, kind.count, kind.batch):
        asked: list[tuple[TaskSpec, Content, list[int]]] = []
        real: list[list[int]] = []
        for index, (passage, task) in enumerate(pairs[start : start + kind.batch], start):
            warm = kind.sampled or index % 2 == 1
            sampling = Sampling(
                temperature_ppm=_TEMPERATURE if warm else 0, seed=index, max_tokens=kind.tokens
            )
            input = _input(passage, task)
            spec = _spec(ref, input, sampling, scheme)
            asked.append((spec, input, prompt_of(spec, input, llm.tokenizer)[1].tokens))
            given = _input(kind.prompt(passage), task)
            real.append(prompt_of(spec, given, llm.tokenizer)[1].tokens)
        samplings = [kind.sampler(spec.sampling) for spec, _, _ in asked if spec.sampling]
        began = time.perf_counter()
        answers = llm.generate_batch(real, samplings, Control())
        seconds = (time.perf_counter() - began) / len(answers)
        for (spec, input, prompt), answer in zip(asked, answers, strict=True):
            parsed, built = prompt_of(spec, input, llm.tokenizer)
            output = render(parsed, built, answer.tokens, llm.tokenizer, _SALT)
            usage = llm_usage(llm.parameters, len(prompt), len(answer.tokens), 1)
            evidence = {
                "prompt_tokens": prompt,
                "output_tokens": answer.tokens,
                "activations": answer.activations,
            }
            yield Generation(
                Claim(spec, input, output), Execution(output, usage, evidence), seconds
            )

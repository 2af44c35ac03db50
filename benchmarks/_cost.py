"""What a proof of an LLM step costs its node and its verifiers, against generating the tokens."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._generations import NODE, Kind, folder_of, generate
from benchmarks._report import Figure
from daifi_flows.cnft import Sampling
from daifi_flows.proofs import get_scheme, make_proof, verify_proof
from daifi_flows.proofs._fingerprint import compare, fingerprint
from daifi_flows.proofs.sampling import sample
from daifi_flows.ray_mesh.engines._llm import CausalLm
from daifi_flows.ray_mesh.reference import EngineReference
from daifi_flows.settings import Settings

__all__ = ["figures"]

_ANSWERS = 6
_TOKENS = 300
_ROWS = 48


def _time(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of some runs, after one that warms up."""
    work()
    found: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


def _samplers() -> tuple[list[float], list[float]]:
    """Seconds a token, at temperature 0.8: the project's rule, and torch's softmax and multinomial
    on the same logits."""
    import torch

    llm = CausalLm(folder_of("bf16"), "bf16", threads=1)
    text = "The committee votes in two rounds, and then every seat signs what it found. " * 6
    tokens = llm.tokenizer.encode(text)
    logits = llm.prefill(tokens[:8], tokens[8 : 8 + _ROWS]).logits
    rows = torch.from_numpy(logits)
    asked = Sampling(temperature_ppm=800_000, seed=7, max_tokens=_ROWS)

    def ours() -> None:
        for position, row in enumerate(logits):
            sample(row, asked, position)

    def native() -> None:
        for row in rows:
            torch.multinomial(torch.softmax(row / 0.8, -1), 1).item()

    return (
        [seconds / _ROWS for seconds in _time(ours, 9)],
        [seconds / _ROWS for seconds in _time(native, 9)],
    )


def _keeping() -> float:
    """Seconds a token that keeping its hidden state takes: a copy, and its place in the matrix."""
    import torch

    hidden = torch.randn(1, 1, 576, dtype=torch.bfloat16)

    def keep() -> None:
        rows = [hidden[:, -1].clone()[0] for _ in range(_TOKENS)]
        torch.stack(rows).float().numpy()

    return statistics.median(_time(keep, 9)) / _TOKENS


def figures() -> list[Figure]:
    """Overheads and verification, as shares of single-stream generation of the same tokens."""
    ours, native = _samplers()
    extra = statistics.median(ours) - statistics.median(native)
    keeping = _keeping()
    node: dict[str, list[float]] = {"token-difr": [], "toploc": []}
    verifier: dict[str, list[float]] = {"token-difr": [], "toploc": []}
    speeds: list[float] = []
    alone = Kind("alone", batch=1, threads=1, tokens=_TOKENS, count=_ANSWERS, sampled=True)
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as temporary:
        folder = Path(temporary)
        reference = EngineReference(Settings(home=folder), folder, fetch=False)
        answers = [each for each in generate(alone) if each.execution.usage.output_tokens >= 200]
        for scheme, overheads in node.items():
            for answer in answers:
                count = answer.execution.usage.output_tokens
                spec = answer.claim.spec.model_copy(update={"scheme": scheme})
                claim = replace(answer.claim, spec=spec)
                prove = partial(get_scheme(scheme).prove, claim, answer.execution, folder)
                proving = statistics.median(_time(prove, 5))
                kept = keeping * count if scheme == "toploc" else 0.0
                overheads.append((proving + kept + max(extra, 0.0) * count) / answer.seconds * 100)
                proof = make_proof(claim, answer.execution, NODE, folder)
                check = partial(verify_proof, claim, proof, reference, folder)
                assert check().outcome == "valid"
                verifier[scheme].append(statistics.median(_time(check, 3)) / answer.seconds * 100)
        speeds = [each.execution.usage.output_tokens / each.seconds for each in answers]
        reference.close()
    base = {"tokens a second, generating": statistics.median(speeds)}
    chunk = np.random.default_rng(0).normal(size=(32, 4096)).astype(np.float32)
    made = fingerprint(chunk)
    builds = [seconds * 1000 for seconds in _time(lambda: fingerprint(chunk), 25)]
    checks = [seconds * 1000 for seconds in _time(lambda: compare(made, chunk), 25)]
    return [
        Figure("token-difr: node overhead", node["token-difr"], "%", "<= 1", base),
        Figure("toploc: node overhead", node["toploc"], "%", "<= 2", base),
        Figure("token-difr: verification / generation", verifier["token-difr"], "%", "<= 5", base),
        Figure("toploc: verification / generation", verifier["toploc"], "%", "<= 5", base),
        Figure(
            "sampler, a token of 49,152",
            [seconds * 1e6 for seconds in ours],
            "us",
            "",
            {"torch softmax and multinomial": statistics.median(native) * 1e6},
        ),
        Figure(
            "activation fingerprint of 32 x 4096: build",
            builds,
            "ms",
            "<= 5.3",
            {"published package, measured earlier": 5.3},
        ),
        Figure(
            "activation fingerprint of 32 x 4096: verify",
            checks,
            "ms",
            "<= 1.2",
            {"published package, measured earlier": 1.2},
        ),
    ]

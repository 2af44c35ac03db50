"""A verified step against the same step unverified: SmolLM2, 21 seats, one machine.

Each prompt is answered three times by the same node with 256 tokens: as a whole step (escrow,
assignment, commit, review in all of the protocol's rounds, settlement, bundle), and before and
after that by the node alone; the ratio is to the mean of these two. On a busy machine that varies
more than what is measured: the second ratio is to the node's part of the very same step.
``DAIFI_BENCH_STEPS`` says how many prompts. The node is new, so every step is reviewed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks._report import Figure
from daifi_flows import Fabric, Settings
from daifi_flows._step import StepEvent, StepRequest, StepState
from daifi_flows.cnft import Content, Materials, Sampling, TaskSpec

__all__ = ["figures"]

TOKENS: Final = 256
STEPS: Final = 6
TASKS: Final = (
    "Write a numbered list of fifty different questions about this.",
    "Write a long story of at least ten chapters about this.",
    "Write a Python program that models this, with a comment on every line and many tests.",
)
PASSAGES: Final = (
    "A lighthouse keeper counts the ships that pass each night and writes their names into a book. "
    "In winter there are few, in summer there are many. Once a month a boat brings oil, bread and "
    "letters.",
    "A bakery in a small town sells bread, rolls and cakes. The baker starts at three in the "
    "morning. Flour comes from a mill by the river, and the oven is heated with wood from the "
    "forest.",
)
"""Each with each task: SmolLM2 writes more than 256 tokens to all of them."""


class Watch:
    """Seconds between a node's result and the committee's attestation."""

    def __init__(self) -> None:
        self.started = 0.0
        self.attested = 0.0

    def __call__(self, event: StepEvent) -> None:
        now = time.perf_counter()
        if event.state is StepState.EXECUTING:
            self.started = now
        elif event.state is StepState.ATTESTED:
            self.attested = now


async def _alone(fabric: Fabric, request: StepRequest) -> tuple[float, int]:
    """Seconds that the node takes by itself, and how many tokens it wrote."""
    (node,) = await fabric.mesh.nodes()
    spec = TaskSpec(
        kind=request.kind,
        model=request.model,
        input_cid=request.input.cid,
        sampling=request.sampling,
        scheme=request.scheme,
        max_price_wei=1,
        deadline_ms=time.time_ns() // 1_000_000 + 600_000,
        buyer=fabric.buyer.address,
        nonce=secrets.token_bytes(32),
    )
    started = time.perf_counter()
    result = await fabric.mesh.execute(
        node, spec, request.input, Materials(), timeout_s=300.0, log_context=None
    )
    return time.perf_counter() - started, result.proof.statement.usage.output_tokens


def _requests(fabric: Fabric, count: int) -> Sequence[StepRequest]:
    model = fabric.resolve_llm()
    return [
        StepRequest(
            name="reason",
            kind="reason",
            model=model,
            input=Content.json_value(
                {
                    "messages": [{"role": "user", "content": f"{passage}\n\n{task}"}],
                    "context_tokens": 1024,
                }
            ),
            salt_key=secrets.token_bytes(32),
            scheme="token-difr",
            sampling=Sampling(max_tokens=TOKENS),
        )
        for passage, task in itertools.islice(
            itertools.cycle(itertools.product(PASSAGES, TASKS)), count
        )
    ]


def figures() -> list[Figure]:
    """Ratio of wall times, and the time from a node's result to the attestation."""
    count = int(os.environ.get("DAIFI_BENCH_STEPS", str(STEPS)))
    watch = Watch()
    waits: list[float] = []
    alone_s: list[float] = []
    whole_s: list[float] = []
    tokens: list[int] = []
    own: list[float] = []
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as folder:
        settings = Settings(home=Path(folder), max_tokens=TOKENS, bundles=Path(folder) / "bundles")
        with Fabric.local(settings, observer=watch) as fabric:
            first, *requests = _requests(fabric, count + 1)
            asyncio.run(fabric.run(first))  # models load, caches fill
            for request in requests:
                before, wrote = asyncio.run(_alone(fabric, request))
                began = time.perf_counter()
                token = asyncio.run(fabric.run(request))
                whole_s.append(time.perf_counter() - began)
                after, _ = asyncio.run(_alone(fabric, request))
                executed = token.timings_ms["execute"] / 1000
                waits.append(watch.attested - watch.started - executed)
                own.append(token.timings_ms["total"] / 1000 / executed)
                alone_s.append((before + after) / 2)
                tokens.append(wrote)
    ratios = [whole / alone for whole, alone in zip(whole_s, alone_s, strict=True)]
    middle = len(ratios) // 2
    baseline = {
        "node alone, s": sorted(alone_s)[middle],
        "whole step, s": sorted(whole_s)[middle],
        "tokens": float(sorted(tokens)[middle]),
    }
    return [
        Figure("verified step / unverified step", ratios, "x", "<= 1.15", baseline),
        Figure("verified step / the node's work in that same step", own, "x", "<= 1.15"),
        Figure("node's result to attestation, p50", waits, "s", "<= 1"),
    ]

"""Batches of 10,000 inferences: settled, proven one by one, audited."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks._ledger_world import SCALE, World, times_us
from benchmarks._report import Figure
from daifi_flows.ledger._audit import audit
from daifi_flows.rollup import Batch

__all__ = ["figures"]

_LEAVES = 10_000
_RUNS = 4
_BATCHES = max(2, round(10 * SCALE))
"""Of each run."""


def figures() -> list[Figure]:
    """Settling, proofs, audit."""
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as folder:
        world = World(Path(folder), accounts=10)
        settled, batch = asyncio.run(_settle(world))
        return [settled, *_proof(batch), _audit(world)]


async def _settle(world: World) -> tuple[Figure, Batch]:
    total = 1 + _RUNS * _BATCHES
    made = [world.batch(nonce, _LEAVES) for nonce in range(total)]
    rates: list[float] = []
    cpu_us: list[float] = []
    hashed: list[float] = []
    async with world.service("rollup") as running:
        await running.settle([made[0][1]])
        for run in range(_RUNS):
            raw = made[1 + run][0].raw
            began = time.perf_counter()
            _ = Batch(raw).root
            hashed.append(_LEAVES / (time.perf_counter() - began))
            first = 1 + run * _BATCHES
            cpu = sum(running.cpu_s())
            began = time.perf_counter()
            await running.settle(raw for _, raw in made[first : first + _BATCHES])
            count = _BATCHES * _LEAVES
            rates.append(count / (time.perf_counter() - began))
            cpu_us.append((sum(running.cpu_s()) - cpu) / count * 1e6)
    figure = Figure(
        "rollup: inferences settled, batches of 10,000",
        rates,
        "/s",
        ">= 45000",
        {
            "one process hashes the leaves alone, /s": max(hashed),
            "CPU of service and seats, us": min(cpu_us),
        },
    )
    return figure, made[-1][0]


def _proof(batch: Batch) -> list[Figure]:
    proof = batch.proof(_LEAVES // 3)
    root, count = batch.root, batch.count
    assert proof.verify(root, count)
    leaf_us = times_us(lambda: proof.verify(root, count))

    return [
        Figure("proof of one inference in its batch", [len(proof.canonical())], "B", "<= 1000"),
        Figure("it is verified in", leaf_us, "us", "<= 100"),
    ]


def _audit(world: World) -> Figure:
    rates: list[float] = []
    count = (1 + _RUNS * _BATCHES) * _LEAVES
    for _ in range(3):
        began = time.perf_counter()
        report = audit(world.path("rollup"))
        rates.append(count / (time.perf_counter() - began))
        assert report.transactions * _LEAVES == count
    return Figure("audit: leaves of batches", rates, "/s", ">= 100000")

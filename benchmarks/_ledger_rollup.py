"""Batches of 10,000 inferences: settled, proven one by one, audited."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._ledger_world import SCALE, World
from benchmarks._report import Figure
from daifi_flows.cnft import Receipt
from daifi_flows.encoding import keccak256
from daifi_flows.history import HistoryProof, check_certificate
from daifi_flows.ledger._audit import audit
from daifi_flows.merkle import MountainRange, leaf_hash, mountain_proof, verify_merkle
from daifi_flows.rollup import Batch

__all__ = ["figures"]

_LEAVES = 10_000
_RUNS = 4
_BATCHES = max(2, round(10 * SCALE))
"""Of each run."""
_RECEIPTS = max(1_000, round(1_000_000 * SCALE))
"""In the history that a receipt is shown against."""


def _times_us(work: Callable[[], Any], repeats: int = 100) -> list[float]:
    """Microseconds of one call, the mean of ``repeats``, seven times."""
    found: list[float] = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        found.append((time.perf_counter() - began) / repeats * 1e6)
    return found


def figures() -> list[Figure]:
    """Settling, proofs, audit."""
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as folder:
        world = World(Path(folder), accounts=10)
        settled, batch, receipt = asyncio.run(_settle(world))
        return [*settled, *_proofs(world, batch, receipt), _audit(world)]


async def _settle(world: World) -> tuple[list[Figure], Batch, Receipt]:
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
            receipts = await running.settle(raw for _, raw in made[first : first + _BATCHES])
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
    return [figure], made[-1][0], receipts[-1]


def _proofs(world: World, batch: Batch, receipt: Receipt) -> list[Figure]:
    proof = batch.proof(_LEAVES // 3)
    root, count = batch.root, batch.count
    assert proof.verify(root, count)
    leaf_us = _times_us(lambda: proof.verify(root, count))

    leaf = receipt.leaf.canonical()
    hashes = [keccak256(number.to_bytes(8, "big")) for number in range(_RECEIPTS)]
    index = _RECEIPTS // 3
    hashes[index] = leaf_hash(leaf)
    grown, nodes = MountainRange().append(hashes)
    path = mountain_proof(nodes.__getitem__, index, grown.size)
    assert verify_merkle(grown.root, leaf, index, grown.size, path)
    shown = HistoryProof(
        leaf=receipt.leaf,
        index=index,
        path=path,
        header=receipt.header,
        certificate=receipt.certificate,
    )
    own = len(shown.canonical()) - len(shown.header.canonical())
    own -= len(shown.certificate.canonical())
    path_us = _times_us(lambda: verify_merkle(grown.root, leaf, index, grown.size, path))
    header_us = _times_us(
        lambda: check_certificate(receipt.header, receipt.certificate, world.committee), 10
    )
    return [
        Figure("proof of one inference in its batch", [len(proof.canonical())], "B", "<= 1000"),
        Figure("it is verified in", leaf_us, "us", "<= 100"),
        Figure(
            f"proof of a settlement among {_RECEIPTS:,}, any later header known",
            [own],
            "B",
            "<= 1000",
            {"with that header and its certificate, B": len(shown.canonical())},
        ),
        Figure(
            "it is verified in, header known",
            path_us,
            "us",
            "<= 100",
            {"once a header: its certificate, us": sorted(header_us)[len(header_us) // 2]},
        ),
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

"""What a settlement costs, and how much memory the service holds, as the ledger grows.

In a process of its own, so that nothing else is in its memory. Cost is CPU time of the service and
of the seats' answers: how busy the machine is otherwise does not show.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks._ledger_world import DAI, SCALE, Running, World, now_ms, resident_mib
from benchmarks._report import Figure
from daifi_flows.keys import Account
from daifi_flows.ledger._tx.rollup import ClaimLeaf
from daifi_flows.rollup import Batch

__all__ = ["figures"]

_LEAVES = 10_000
_BATCHES = max(4, round(100 * SCALE))
_WARM_UP = 4_000
"""Transfers to as many new accounts before the first batch: they fill what is kept up to a bound
(decoded records, read transactions, receipts of the last blocks, SQLite's pages), so that only
what grows with the settlements shows."""
_CLAIMS = 50
"""Leaves of a batch that are claimed."""
_CLAIM_EVERY = 10
"""Batches between two times at which claims are sent."""
_FIRST = 10_000
_SIGNED = max(3 * _FIRST, round(50_000 * SCALE))
_CHUNK = 2_000
_CHALLENGE_MS = 61 * 60_000


@dataclass
class _Grown:
    """Settlements so far, and what they took."""

    count: list[int] = field(default_factory=list[int])
    cpu_us: list[float] = field(default_factory=list[float])
    """Of one settlement, since the entry before."""
    mib: list[float] = field(default_factory=list[float])
    fresh_mib: float = 0.0
    """Of a service that has settled nothing."""

    def add(self, count: int, cpu_s: float) -> None:
        new = count - (self.count[-1] if self.count else 0)
        self.count.append(count)
        self.cpu_us.append(cpu_s / new * 1e6)
        self.mib.append(resident_mib())

    def figures(self, what: str) -> list[Figure]:
        """Memory and cost at the end against those at the first 10,000 settlements."""
        first = next(i for i, count in enumerate(self.count) if count >= _FIRST)
        last = self.count[-1]
        width = max(1, (len(self.count) - first) // 10)
        early = self.cpu_us[first + 1 : first + 1 + width]
        late = self.cpu_us[-width:]
        early_us, late_us = median(early), median(late)
        memory = {"MiB when started": self.fresh_mib} | {
            f"MiB at {self.count[at]:,}": self.mib[at]
            for at in sorted({first, len(self.mib) // 4, len(self.mib) // 2, len(self.mib) - 1})
        }
        span = f"from {self.count[first]:,} to {last:,} {what}"
        return [
            Figure(
                f"memory of the service, {span}",
                [self.mib[-1] / self.mib[first]],
                "x",
                "<= 1.2",
                memory,
            ),
            Figure(
                f"cost of a settlement, {span}",
                [late_us / early_us],
                "x",
                "<= 1.2",
                {"CPU at first, us": early_us, "CPU at last, us": late_us},
            ),
        ]


def figures() -> list[Figure]:
    """Batches with claims, and transactions signed one by one."""
    context = multiprocessing.get_context("spawn")
    found: list[Figure] = []
    for grow in (_batches, _signed):  # a process each
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found += pool.submit(_run, grow).result()
    return found


def _run(grow: Callable[[Path], list[Figure]]) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as folder:
        return grow(Path(folder))


def _batches(folder: Path) -> list[Figure]:
    return asyncio.run(_grow_batches(World(folder, accounts=10))).figures("by batches")


def _signed(folder: Path) -> list[Figure]:
    return asyncio.run(_grow_signed(World(folder))).figures("signed one by one")


async def _settle_cpu(running: Running, raws: list[bytes]) -> float:
    before = sum(running.cpu_s())
    await running.settle(raws)
    return sum(running.cpu_s()) - before


async def _grow_batches(world: World) -> _Grown:
    grown = _Grown()
    skipped_ms = 0
    nonce = 0
    unclaimed: list[list[ClaimLeaf]] = []
    async with world.service("growth", clock=lambda: now_ms() + skipped_ms) as running:
        grown.fresh_mib = resident_mib()
        await running.settle(world.transfers(_WARM_UP, 0, _payees(0, _WARM_UP)))
        for number in range(1, _BATCHES + 1):
            batch, raw = world.batch(nonce, _LEAVES)
            nonce += 1
            cpu_s = await _settle_cpu(running, [raw])
            unclaimed.append(_claims(world, batch))
            if number == 1 or number % _CLAIM_EVERY == 0:
                skipped_ms += _CHALLENGE_MS
                claims = [claim for some in unclaimed for claim in some]
                raws: list[bytes] = []
                for claim in claims:
                    signed = claim.model_copy(update={"nonce": nonce})
                    raws.append(signed.signed(world.operator, world.ledger_id).encode())
                    nonce += 1
                await running.settle(raws)
                unclaimed.clear()
            grown.add(number * _LEAVES, cpu_s)
    return grown


def _claims(world: World, batch: Batch) -> list[ClaimLeaf]:
    """Claims of a sample of leaves; each makes a new account and a token."""
    step = _LEAVES // _CLAIMS
    return [
        ClaimLeaf(
            sender=world.operator.address,
            nonce=0,
            max_fee_wei=DAI,
            batch=batch.root,
            proof=batch.proof(place * step),
        )
        for place in range(_CLAIMS)
    ]


def _payees(first: int, count: int) -> list[str]:
    return [Account.from_seed(b"payee %d" % n).address for n in range(first, first + count)]


async def _grow_signed(world: World) -> _Grown:
    grown = _Grown()
    async with world.service("growth") as running:
        grown.fresh_mib = resident_mib()
        for first in range(0, _SIGNED, _CHUNK):
            raws = world.transfers(_CHUNK, first, _payees(first, _CHUNK))
            grown.add(first + _CHUNK, await _settle_cpu(running, raws))
    return grown

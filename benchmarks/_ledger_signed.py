"""Transactions that are signed one by one: how many settle, how soon, how fast they are audited."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from coincurve import PrivateKey, PublicKey

from benchmarks._ledger_world import SCALE, Running, World, times_us
from benchmarks._report import Figure
from daifi_flows import keys
from daifi_flows.cnft import Receipt
from daifi_flows.encoding import keccak256
from daifi_flows.history import HistoryProof, check_certificate
from daifi_flows.ledger._audit import audit
from daifi_flows.merkle import MountainRange, leaf_hash, mountain_proof, verify_merkle

__all__ = ["figures"]

_RUNS = 3
_TRANSFERS = max(1_000, round(15_000 * SCALE))
"""Of each run."""
_WARM_UP = 1_000
_LATENCY_S = 15 * SCALE
_RAW = 4_000
_RECEIPTS = max(1_000, round(1_000_000 * SCALE))
"""In the history that a receipt is shown against."""


def figures() -> list[Figure]:
    """Throughput, latency, audit."""
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as folder:
        world = World(Path(folder))
        settled, receipt = asyncio.run(_measure(world))
        return [*settled, *_proof(world, receipt), _audit(world)]


def _raw_rate() -> float:
    """Signatures a second: ``coincurve.PublicKey.from_signature_and_message`` alone (the signer's
    key from 65 bytes of signature and 32 of digest; no address is made), in one thread."""
    key = PrivateKey(b"\x01" * 32)
    digests = [os.urandom(32) for _ in range(_RAW)]
    pairs = [(key.sign_recoverable(digest, hasher=None), digest) for digest in digests]
    began = time.perf_counter()
    for signature, digest in pairs:
        PublicKey.from_signature_and_message(signature, digest, hasher=None)
    return _RAW / (time.perf_counter() - began)


async def _measure(world: World) -> tuple[list[Figure], Receipt]:
    raws = iter(world.transfers(_WARM_UP + _RUNS * _TRANSFERS))

    def take(count: int) -> list[bytes]:
        return [next(raws) for _ in range(count)]

    rates: list[float] = []
    shares: list[float] = []
    raw_rates: list[float] = []
    service_us: list[float] = []
    seats_us: list[float] = []
    async with world.service("signed") as running:
        receipt = (await running.settle(take(_WARM_UP)))[-1]
        for _ in range(_RUNS):
            mine, before = take(_TRANSFERS), _raw_rate()
            cpu = running.cpu_s()
            began = time.perf_counter()
            await running.settle(mine)
            rates.append(_TRANSFERS / (time.perf_counter() - began))
            used = [now - then for now, then in zip(running.cpu_s(), cpu, strict=True)]
            service_us.append(used[0] / _TRANSFERS * 1e6)
            seats_us.append(used[1] / _TRANSFERS * 1e6)
            raw_rates.append((before + _raw_rate()) / 2)
            shares.append(100 * rates[-1] / raw_rates[-1])
        throughput = Figure(
            "signed one by one: settled, of the rate of recovering signatures",
            shares,
            "%",
            ">= 50",
            {
                "settled, /s": statistics.median(rates),
                "coincurve recovers in one thread, /s": statistics.median(raw_rates),
                "CPU of the service, us": statistics.median(service_us),
                "CPU of the seats, us": statistics.median(seats_us),
            },
        )
        load = statistics.median(rates) / 2
        first = _WARM_UP + _RUNS * _TRANSFERS
        alone = [(await _latency(running, [raw], 1e9))[0] for raw in world.transfers(20, first)]
        timed = world.transfers(max(200, int(load * _LATENCY_S)), first + 20)
        latencies = sorted(await _latency(running, timed, load))
    p50 = latencies[len(latencies) // 2]
    p99 = latencies[len(latencies) * 99 // 100]
    baseline = {
        "arrivals, /s": load,
        "one alone on an idle ledger, ms": statistics.median(alone),
    }
    found = [
        throughput,
        Figure("submit to final at half of that load, p50", [p50], "ms", "<= 100", baseline),
        Figure("submit to final at half of that load, p99", [p99], "ms", "<= 400", baseline),
    ]
    return found, receipt


async def _latency(running: Running, raws: list[bytes], rate: float) -> list[float]:
    """Milliseconds from the moment each was to be sent (Poisson arrivals, whatever became of the
    earlier ones) to its receipt."""
    loop = asyncio.get_running_loop()
    gaps = random.Random(4)
    due = loop.time()

    async def one(raw: bytes, at: float) -> float:
        await running.service.submit(raw)
        return (loop.time() - at) * 1e3

    tasks: list[asyncio.Task[float]] = []
    for raw in raws:
        due += gaps.expovariate(rate)
        if (left := due - loop.time()) > 0:
            await asyncio.sleep(left)
        else:
            await asyncio.sleep(0)  # behind: the service has its turn all the same
        tasks.append(asyncio.create_task(one(raw, due)))
    return list(await asyncio.gather(*tasks))


def _proof(world: World, receipt: Receipt) -> list[Figure]:
    leaf = receipt.leaf.canonical()
    hashes = [keccak256(number.to_bytes(8, "big")) for number in range(_RECEIPTS)]
    index = _RECEIPTS // 3
    hashes[index] = leaf_hash(leaf)
    grown, nodes = MountainRange().append(hashes)
    path = mountain_proof(nodes.__getitem__, index, grown.size)
    assert verify_merkle(grown.root, leaf, index, grown.size, path)
    header, certificate = receipt.header, receipt.certificate
    shown = HistoryProof(
        leaf=receipt.leaf, index=index, path=path, header=header, certificate=certificate
    )
    whole = len(shown.canonical())
    keys._all_signed.cache_clear()  # pyright: ignore
    check_us = times_us(lambda: check_certificate(header, certificate, world.committee), 1)[0]
    return [
        Figure(
            f"proof of a transfer's receipt among {_RECEIPTS:,}, any later header known",
            [whole - len(header.canonical()) - len(certificate.canonical())],
            "B",
            "<= 1000",
            {"with that header and its certificate, B": whole, "of it the receipt, B": len(leaf)},
        ),
        Figure(
            "it is verified in, that header known",
            times_us(lambda: verify_merkle(grown.root, leaf, index, grown.size, path)),
            "us",
            "<= 100",
            {"once for a header: its certificate, us": check_us},
        ),
    ]


def _audit(world: World) -> Figure:
    rates: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        report = audit(world.path("signed"))
        rates.append(report.transactions / (time.perf_counter() - began))
    return Figure("audit: transactions signed one by one", rates, "/s", ">= 5000")

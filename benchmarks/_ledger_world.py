"""What the ledger's benchmarks run on: a durable service, its seats next door, signed work."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._ledger_seats import SeatHostProcess
from daifi_flows._process import collect_rarely
from daifi_flows.cnft import Committee, Receipt
from daifi_flows.encoding import keccak256
from daifi_flows.judges import make_committee
from daifi_flows.judges._seat import SeatKeys
from daifi_flows.keys import Account, aggregate_bls
from daifi_flows.ledger import Genesis, LedgerService
from daifi_flows.ledger._tx.money import Transfer
from daifi_flows.ledger._tx.rollup import SubmitBatch
from daifi_flows.rollup import LEAF_BYTES, Batch, BatchAttestation, BatchStatement

__all__ = ["DAI", "SCALE", "Running", "World", "now_ms", "resident_mib", "times_us"]

DAI = 10**18
SCALE = float(os.environ.get("DAIFI_BENCH_SCALE", "1"))
"""Share of the full amounts of work."""
_NODES = 100
_MODELS = 8
_AT_ONCE = 64
"""Transactions enqueued between two turns of the event loop, as a socket would bring them."""


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def resident_mib(pid: int | None = None) -> float:
    """Memory that a process (this one) holds now, in MiB."""
    text = Path(f"/proc/{pid or os.getpid()}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _digests(name: bytes, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Bytes that stand for addresses and models, ``[count, 32]``."""
    raw = b"".join(keccak256(name + b"%d" % number) for number in range(count))
    return np.frombuffer(raw, dtype=np.uint8).reshape(count, 32)


def times_us(work: Callable[[], Any], repeats: int = 100) -> list[float]:
    """Microseconds of one call, the mean of ``repeats``, seven times."""
    found: list[float] = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        found.append((time.perf_counter() - began) / repeats * 1e6)
    return found


@dataclass
class World:
    """Keys, genesis and accounts of one run.

    Args:
        accounts: how many accounts pay each other.
    """

    root: Path
    accounts: int = 1_000
    people: list[Account] = field(init=False)
    genesis: Genesis = field(init=False)
    operator: Account = field(init=False)

    def __post_init__(self) -> None:
        self.committee: Committee = make_committee(self.root / "keys")
        self.seats = [
            SeatKeys.load(self.root / "keys", seat.index) for seat in self.committee.seats
        ]
        self.people = [Account.from_seed(b"payer %d" % i) for i in range(self.accounts)]
        self.operator = Account.from_seed(b"operator")
        self.genesis = Genesis.create(
            salt=os.urandom(32),
            timestamp_ms=now_ms(),
            allocations=[
                *((person.address, 1_000 * DAI) for person in self.people),
                (self.operator.address, 10**9 * DAI),
            ],
            committee=self.committee,
            treasury=Account.from_seed(b"treasury").address,
        )
        self.ledger_id = self.genesis.ledger_id  # hashed anew each time

    def path(self, name: str) -> Path:
        """The ledger file of a service."""
        return self.root / name / "ledger.sqlite"

    @asynccontextmanager
    async def service(
        self, name: str, clock: Callable[[], int] | None = None
    ) -> AsyncGenerator[Running]:
        """A service on a fresh file, its seats in a process of their own.

        Args:
            clock: Unix milliseconds, instead of the machine's.
        """
        host = SeatHostProcess(
            self.genesis, self.root / name / "seats", self.root / "keys", dated=clock is None
        )
        service = LedgerService(
            self.path(name),
            self.genesis,
            host.certifier(self.committee),
            clock=clock or now_ms,
            builder=Account.from_seed(b"builder"),
            wait_timeout_s=300.0,
        )
        try:
            await service.start()
            collect_rarely()  # as the ledger's actor does
            try:
                yield Running(service, host)
            finally:
                await service.close()
        finally:
            host.close()

    def transfers(
        self, count: int, first: int = 0, payees: Sequence[str] | None = None
    ) -> list[bytes]:
        """Signed transfers as clients send them: with a request id, an expiry and a fee limit.

        Args:
            first: how many were made before.
            payees: of each; when absent, the accounts pay each other.
        """
        found: list[bytes] = []
        rounds = len(self.people)
        for number in range(first, first + count):
            place, nonce = number % rounds, number // rounds
            sender = self.people[place]
            payee = (
                self.people[(place * 7 + nonce + 1) % rounds].address
                if payees is None
                else payees[number - first]
            )
            tx = Transfer(
                sender=sender.address,
                nonce=nonce,
                valid_until_ms=self.genesis.timestamp_ms + 3_600_000,
                max_fee_wei=10**13,
                request=os.urandom(32),
                to=payee,
                amount_wei=DAI // 1_000,
            )
            found.append(tx.signed(sender, self.ledger_id).encode())
        return found

    def batch(self, nonce: int, leaves: int) -> tuple[Batch, bytes]:
        """Leaves of :data:`_NODES` nodes and :data:`_MODELS` models, each with its own task, owner,
        output and amount, and the operator's transaction that settles them.

        The committee's review is not the ledger's work: its signature is made here.
        """
        rows = np.frombuffer(os.urandom(leaves * LEAF_BYTES), dtype=np.uint8).copy()
        rows = rows.reshape(leaves, LEAF_BYTES)
        places = np.arange(leaves)
        rows[:, 32:52] = _digests(b"node", _NODES)[places % _NODES, :20]
        rows[:, 72:104] = _digests(b"model", _MODELS)[places % _MODELS]
        rows[:, 136:145] = 0  # amounts below 2^56 wei
        batch = Batch(rows.tobytes())
        submit_by_ms = self.genesis.timestamp_ms + 24 * 3_600_000
        statement = BatchStatement(
            ledger_id=self.ledger_id,
            epoch=self.committee.epoch,
            operator=self.operator.address,
            root=batch.root,
            count=batch.count,
            total_wei=batch.total_wei,
            submit_by_ms=submit_by_ms,
        )
        signers = self.seats[: self.committee.quorum]
        attestation = BatchAttestation(
            epoch=self.committee.epoch,
            signers=sum(1 << seat.index for seat in signers),
            signature=aggregate_bls([seat.bls.sign(statement.message()) for seat in signers]),
        )
        tx = SubmitBatch(
            sender=self.operator.address,
            nonce=nonce,
            max_fee_wei=DAI,
            root=batch.root,
            total_wei=batch.total_wei,
            bond_wei=max(DAI, batch.total_wei),
            submit_by_ms=submit_by_ms,
            attestation=attestation,
            leaves=batch.raw,
        )
        return batch, tx.signed(self.operator, self.ledger_id).encode()


@dataclass
class Running:
    """A service and its seats.

    Attributes:
        window: most transactions on their way at once.
    """

    service: LedgerService
    host: SeatHostProcess
    window: int = 6_000

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of this process, and of the seats' answers, so far."""
        return time.process_time(), self.host.busy_s

    async def settle(self, raws: Iterable[bytes]) -> list[Receipt]:
        """Submit in order, as fast as the service takes them; every caller waits for its receipt
        with its inclusion proof."""
        tasks: list[asyncio.Task[Receipt]] = []
        room = asyncio.Semaphore(self.window)
        for number, raw in enumerate(raws):
            await room.acquire()
            task = asyncio.create_task(self.service.submit(raw))
            task.add_done_callback(lambda _: room.release())
            tasks.append(task)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        return list(await asyncio.gather(*tasks))

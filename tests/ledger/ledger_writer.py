"""A process that writes a ledger until somebody kills it; prints what was acknowledged.

Arguments: path, where to kill itself (``never``, ``journal-before``, ``journal-after``,
``certify``, ``finalise-before``, ``finalise-after``), and in which block.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from ledger_kit import (
    BUYER,
    DAI,
    GENESIS,
    NODE,
    PROOF_CID,
    STRANGER,
    T0,
    SeatsHere,
    attest,
    info_of,
    make_header,
    make_spec,
)

from daifi_flows.ledger import LedgerClient, LedgerService
from daifi_flows.ledger._store import Store


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str, block: int, certifier: SeatsHere) -> None:
    """Die at the named point of the block's life."""
    counts = {"journal": 0, "finalise": 0}

    def wrap(name: str) -> None:
        real = getattr(Store, name)

        def wrapped(self: Store, *args: object) -> None:
            counts[name] += 1
            now = counts[name] == block
            if now and where == f"{name}-before":
                die()
            real(self, *args)
            if now and where == f"{name}-after":
                die()

        setattr(Store, name, wrapped)

    wrap("journal")
    wrap("finalise")
    real_certify = certifier.certify

    async def certify(header, block_bytes, history):  # pyright: ignore
        partials = await real_certify(header, block_bytes, history)
        if where == "certify" and counts["journal"] == block:
            die()
        return partials

    certifier.certify = certify  # pyright: ignore


async def main(path: Path, where: str, block: int) -> None:
    certifier = SeatsHere(GENESIS)
    arm(where, block, certifier)
    service = LedgerService(path, GENESIS, certifier, clock=lambda: T0 + 1)
    await service.start()
    ledger = LedgerClient(service, GENESIS.ledger_id)

    def acknowledge(receipt) -> None:  # pyright: ignore
        print(f"ack {receipt.leaf.tx.hex()} {receipt.header.height}", flush=True)

    print("up", flush=True)
    account = await ledger.account(NODE.address)
    if account.registered is None:
        acknowledge(await ledger.register(info_of(NODE), NODE))
    if account.stake_wei == 0:
        acknowledge(await ledger.stake(50 * DAI, NODE))

    async def work(number: int) -> None:
        """One task, from wherever an earlier life of this process left it."""
        spec = make_spec(number, max_price_wei=2 * DAI)
        task = spec.task_id
        acknowledge(await ledger.open_escrow(spec, BUYER))
        acknowledge(await ledger.assign(task, NODE.address, DAI, BUYER))
        acknowledge(await ledger.commit(task, make_header(spec), PROOF_CID, BUYER))
        acknowledge(await ledger.settle(attest(spec), bytes(32), BUYER))
        acknowledge(await ledger.transfer(STRANGER.address, 1, BUYER))

    start = 0
    while await ledger.attestation_receipt(make_spec(start, max_price_wei=2 * DAI).task_id):
        start += 1
    for number in range(start, start + 100, 2):
        await asyncio.gather(work(number), work(number + 1))
        print(f"done {number + 1}", flush=True)


asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

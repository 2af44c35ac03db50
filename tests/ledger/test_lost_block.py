"""A block that a quorum signed, when its leader's disk is lost and every seat host starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ledger_kit import (
    BUILDER,
    BUYER,
    COMMITTEE,
    DEALING,
    GENESIS,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    STRANGER,
    T0,
)

from daifi_flows.judges import SeatKeys
from daifi_flows.judges._blocks import BlockOffice
from daifi_flows.judges._certifier import BlockCertifier
from daifi_flows.judges._journal import Journal
from daifi_flows.ledger import LedgerClient, LedgerService, Replica, audit


class Host:
    """A transport to seven seats in this process, with their journal on disk."""

    def __init__(self, folder: Path, first: int) -> None:
        keys = {
            i: SeatKeys(i, SEAT_KEYS[i], SEAT_ACCOUNTS[i], DEALING.secrets[i])
            for i in range(first, first + 7)
        }
        journal = Journal(folder / "seats.sqlite")
        self.office = BlockOffice(COMMITTEE, keys, {}, journal, lambda: Replica(GENESIS))

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return await asyncio.to_thread(getattr(self.office, name), *arguments)

        return call


class Deaf(BlockCertifier):
    """Carries a block to the seats, and loses what they answer."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        super().__init__(hosts, COMMITTEE, timeout_s=30)  # pyright: ignore
        self.asked = asyncio.Event()

    async def certify(self, *arguments: Any) -> Sequence[tuple[int, bytes, bytes]]:
        assert len(await super().certify(*arguments)) == 21
        self.asked.set()
        return []


def started(path: Path, certifier: BlockCertifier) -> LedgerService:
    return LedgerService(path, GENESIS, certifier, clock=lambda: T0 + 1, builder=BUILDER)


@pytest.mark.parametrize("folders", [1, 3])
async def test_the_next_leader_goes_on_with_it(tmp_path: Path, folders: int) -> None:
    def hosts() -> list[Host]:
        return [Host(tmp_path / f"host{n % folders}", n * 7) for n in range(3)]

    deaf = Deaf(hosts())
    service = started(tmp_path / "lost.db", deaf)
    await service.start()
    sent = asyncio.create_task(LedgerClient(service, GENESIS.ledger_id).transfer(
        STRANGER.address, 5, BUYER
    ))  # fmt: skip
    async with asyncio.timeout(60):
        await deaf.asked.wait()
    sent.cancel()
    await asyncio.gather(sent, return_exceptions=True)
    await service.close(grace_s=0)
    heir = started(tmp_path / "new.db", BlockCertifier(hosts(), COMMITTEE))  # pyright: ignore
    await heir.start()
    try:
        ledger = LedgerClient(heir, GENESIS.ledger_id)
        async with asyncio.timeout(60):
            receipt = await ledger.transfer(STRANGER.address, 2, BUYER)
        assert receipt.header.height == 2, "the signed block became final before it"
        assert (await ledger.account(STRANGER.address)).balance_wei == 7
    finally:
        await heir.close(grace_s=0)
    assert audit(tmp_path / "new.db").height == 2

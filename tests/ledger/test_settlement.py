"""The settlement suite on the bundled ledger: in this process, and as a Ray actor."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ledger_kit import BUILDER, GENESIS, T0, SeatsHere
from settlement_suite import *  # noqa: F403
from settlement_suite import Backend
from test_ledger_actor import cluster, seats

from daifi_flows.ledger import LedgerClient, LedgerService, RayLedger, Settlement

__all__ = ["backend", "cluster"]


class InProcess(Backend):
    """A service whose clock the test moves."""

    def __init__(self, path: Path) -> None:
        self._now = T0 + 1
        self.service = LedgerService(
            path, GENESIS, SeatsHere(GENESIS), clock=self.now_ms, builder=BUILDER
        )
        self.settlement: Settlement = LedgerClient(self.service, GENESIS.ledger_id, patience_s=10)

    def now_ms(self) -> int:
        return self._now

    async def pass_time(self, ms: int) -> None:
        self._now += ms


class Actor(Backend):
    """A Ray actor, with the time of day."""

    def __init__(self, path: Path) -> None:
        self.ledger = RayLedger.start(
            path,
            GENESIS,
            seats(),
            name=f"settlement-{uuid.uuid4().hex}",
            namespace="ledger-tests",
        )
        self.settlement: Settlement = self.ledger

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def pass_time(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)


@pytest.fixture(params=["in process", pytest.param("actor", marks=pytest.mark.slow)])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if request.param == "actor":
        request.getfixturevalue("cluster")
        actor = Actor(tmp_path / "ledger.db")
        yield actor
        await actor.ledger.close()
        return
    here = InProcess(tmp_path / "ledger.db")
    await here.service.start()
    yield here
    await here.service.close(grace_s=0.2)

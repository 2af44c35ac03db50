"""What a running ledger says a task costs now."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
    NODE,
    PROOF_CID,
    STRANGER,
    T0,
    SeatsHere,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
)

from daifi_flows.cnft import PPM, Usage
from daifi_flows.errors import TransactionRefused
from daifi_flows.ledger import LedgerClient, LedgerService, Params
from daifi_flows.ledger._params import PriceParams

HOUR = 3_600_000


async def test_a_quote_is_what_an_assignment_must_pay(tmp_path: Path) -> None:
    params = Params(fees=FREE, prices=PriceParams(capacity_gflops=1))
    genesis = make_genesis(params=params)
    now = [T0 + 1]
    service = LedgerService(tmp_path / "ledger", genesis, SeatsHere(genesis), clock=lambda: now[0])
    await service.start()
    try:
        ledger = LedgerClient(service, genesis.ledger_id, patience_s=10)
        with pytest.raises(TransactionRefused) as refused:
            await ledger.quote(NODE.address)
        assert refused.value.details["code"] == "unknown"
        await ledger.register(info_of(NODE), NODE)
        await ledger.stake(DAI, NODE)
        assert await ledger.quote(NODE.address) == DAI

        spec = make_spec(deadline_ms=T0 + 9 * HOUR)
        await ledger.open_escrow(spec, BUYER)
        await ledger.assign(spec.task_id, NODE.address, DAI, BUYER)
        header = make_header(spec, usage=Usage(flops=10**13))  # five times the target
        await ledger.commit(spec.task_id, header, PROOF_CID, BUYER)
        finding = attest(spec, ledger_id=genesis.ledger_id)
        await ledger.settle(finding, bytes(32), BUYER)
        account = await ledger.account(NODE.address)
        assert account.locked_wei == (await ledger.supply()).locked_wei > 0
        assert account.standing.mflop == 10**7

        assert await ledger.quote(NODE.address) == DAI
        now[0] = T0 + HOUR - 5_001
        assert await ledger.quote(NODE.address) == DAI
        now[0] = T0 + HOUR - 5_000  # a block made in time for this quote may be in the next epoch
        dearer = await ledger.quote(NODE.address)
        assert dearer == DAI * 1_125_000 // PPM
        now[0] = T0 + HOUR
        assert await ledger.quote(NODE.address) == dearer
        second = make_spec(2, deadline_ms=T0 + 9 * HOUR)
        await ledger.open_escrow(second, BUYER)
        with pytest.raises(TransactionRefused, match="price index"):
            await ledger.assign(second.task_id, NODE.address, dearer - 1, BUYER)
        await ledger.assign(second.task_id, NODE.address, dearer, BUYER)
        with pytest.raises(TransactionRefused):
            await ledger.quote(STRANGER.address)
    finally:
        await service.close()

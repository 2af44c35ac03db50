"""A batch through the whole ledger: journaled, certified, restarted, claimed, proven, audited."""

from __future__ import annotations

from pathlib import Path

import ledger_kinds as t
from ledger_kit import BUYER, COMMITTEE, NODE, STRANGER, T0, SeatsHere
from test_rollup import CHALLENGE, GENESIS, Rollups, leaf

from daifi_flows.cnft import token_id_of
from daifi_flows.encoding import keccak256
from daifi_flows.ledger import LedgerService, audit
from daifi_flows.rollup import Batch

COUNT = 10_000


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = T0 + 1

    def __call__(self) -> int:
        return self.now


async def test_ten_thousand_leaves_survive_a_restart_and_are_claimed(tmp_path: Path) -> None:
    path, clock, bench = tmp_path / "ledger.db", Clock(), Rollups()
    tasks = [keccak256(b"%d" % number) for number in range(COUNT)]
    batch = Batch.of(leaf(0, task_id=task, amount_wei=10**15) for task in tasks)
    submission = bench.submission(batch)

    async def running() -> LedgerService:
        service = LedgerService(path, GENESIS, SeatsHere(GENESIS), clock=clock)
        await service.start()
        return service

    service = await running()
    receipt = await service.submit(submission.encode())
    assert receipt.leaf.content == batch.root
    assert await service.submit(submission.encode()) == receipt
    await service.close()

    clock.now += CHALLENGE
    service = await running()
    before = (await service.account(NODE.address)).balance_wei
    for nonce, index in enumerate((0, 4_711, COUNT - 1)):
        claim = t.ClaimLeaf(
            sender=BUYER.address, nonce=1 + nonce, batch=batch.root, proof=batch.proof(index)
        )
        claimed = await service.submit(claim.signed(BUYER, GENESIS.ledger_id).encode())
        assert claimed.leaf.token_id == token_id_of(tasks[index])
        token = await service.token(token_id_of(tasks[index]))
        assert token is not None and token.owner == STRANGER.address
        (await service.prove(claimed.leaf.tx)).verify(COMMITTEE)
    (await service.prove(receipt.leaf.tx)).verify(COMMITTEE)
    assert (await service.account(NODE.address)).balance_wei == before + 3 * 85 * 10**13
    await service.close()
    report = audit(path)
    assert (report.transactions, report.supply.conserved) == (4, True)

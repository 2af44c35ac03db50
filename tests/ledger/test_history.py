"""Any receipt is shown against any later certified block, across restarts; nothing else is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from ledger_kit import COMMITTEE, DAI, GENESIS, NODE, OTHER, T0, SeatsHere

from daifi_flows.cnft import BlockHeader, Receipt
from daifi_flows.errors import EncodingError, LedgerCorrupted, TransactionRefused
from daifi_flows.history import HistoryProof
from daifi_flows.ledger import LedgerClient, LedgerService, audit
from daifi_flows.merkle import consistency_proof, verify_consistency, verify_merkle


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[LedgerService, LedgerClient]]:
    service = LedgerService(path, GENESIS, SeatsHere(GENESIS), clock=lambda: T0 + 1)
    await service.start()
    try:
        yield service, LedgerClient(service, GENESIS.ledger_id, patience_s=10)
    finally:
        await service.close()


async def stake(ledger: LedgerClient, count: int) -> list[Receipt]:
    """One block each."""
    return [await ledger.stake(DAI + i, NODE) for i in range(count)]


async def test_every_receipt_is_proven_against_every_later_head(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    receipts: list[Receipt] = []
    for _ in range(3):  # the history goes on over restarts
        async with running(path) as (service, ledger):
            receipts += await stake(ledger, 4)
            for index, receipt in enumerate(receipts):
                proof = await service.prove(receipt.leaf.tx)
                proof.verify(COMMITTEE)
                assert (proof.leaf, proof.index) == (receipt.leaf, index)
                assert proof.header.history_size == len(receipts)
                assert HistoryProof.from_canonical(proof.canonical()) == proof
    assert audit(path).transactions == 12


async def test_each_blocks_history_begins_the_next_ones(tmp_path: Path) -> None:
    async with running(tmp_path / "ledger.db") as (service, ledger):
        headers: list[BlockHeader] = [receipt.header for receipt in await stake(ledger, 6)]
        for old in headers:
            for new in headers[old.height - 1 :]:
                path = consistency_proof(service.history_node, old.history_size, new.history_size)
                assert verify_consistency(
                    old.history_root, old.history_size, new.history_root, new.history_size, path
                )


async def test_a_receipt_that_is_not_final_has_no_proof(tmp_path: Path) -> None:
    async with running(tmp_path / "ledger.db") as (service, ledger):
        await stake(ledger, 1)
        with pytest.raises(TransactionRefused) as caught:
            await service.prove(bytes(32))
        assert caught.value.details["code"] == "unknown"


async def test_forged_history_proofs_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "ledger.db") as (service, ledger):
        receipts = await stake(ledger, 5)
        proof = await service.prove(receipts[2].leaf.tx)
    other = COMMITTEE.model_copy(update={"epoch": COMMITTEE.epoch + 1})
    with pytest.raises(EncodingError):
        proof.verify(other)
    lied = proof.header.model_copy(update={"history_size": 6})
    table: dict[str, dict[str, object]] = {
        "another receipt": {"leaf": receipts[3].leaf},
        "another payee": {"leaf": proof.leaf.model_copy(update={"sender": OTHER.address})},
        "another index": {"index": 3},
        "an index past the end": {"index": 5},
        "a shorter path": {"path": proof.path[:-1]},
        "a longer path": {"path": (*proof.path, bytes(32))},
        "a path reversed": {"path": proof.path[::-1]},
        "its own block's header": {"header": receipts[2].header},
        "a header nobody signed": {"header": lied},
        "another block's certificate": {"certificate": receipts[0].certificate},
        "too few seats": {
            "certificate": proof.certificate.model_copy(update={"signers": (1 << 13) - 1})
        },
        "a seat that is not there": {
            "certificate": proof.certificate.model_copy(update={"signers": 1 << 21})
        },
    }
    for name, changes in table.items():
        forged = proof.model_copy(update=changes)
        with pytest.raises(EncodingError):
            forged.verify(COMMITTEE)
            pytest.fail(name)


async def test_a_damaged_history_is_noticed(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "ledger.db"
    async with running(path) as (service, ledger):
        receipt = (await stake(ledger, 4))[0]
        proof = await service.prove(receipt.leaf.tx)
    with sqlite3.connect(path) as file:
        file.execute("UPDATE history SET hash = zeroblob(32) WHERE position = 2")
    with pytest.raises(LedgerCorrupted):
        audit(path)
    header = proof.header
    assert verify_merkle(
        header.history_root, receipt.leaf.canonical(), 0, header.history_size, proof.path
    )

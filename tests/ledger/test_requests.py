"""Requests and repeats: what the running ledger answers to the same thing asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import ledger_kinds as t
import pytest
from ledger_kit import (
    BUYER,
    DAI,
    GENESIS,
    NODE,
    STRANGER,
    T0,
    SeatsHere,
    info_of,
    make_genesis,
    make_spec,
)

from daifi_flows.encoding import keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import LedgerClient, LedgerService, Params, audit
from daifi_flows.ledger._params import FeeParams
from daifi_flows.ledger._turns import Turn

REQUEST = keccak256(b"pay the invoice")
PAYING = make_genesis(params=Params(fees=FeeParams()))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[LedgerService]:
    service = LedgerService(
        tmp_path / "ledger.db", GENESIS, SeatsHere(GENESIS), clock=lambda: T0 + 1
    )
    await service.start()
    yield service
    await service.close()


def a_transfer(sender: Account = BUYER, **fields: object) -> t.Transaction:
    """Signed by hand, as another wallet would."""
    terms = {"sender": sender.address, "nonce": 0, "to": STRANGER.address, "amount_wei": 1}
    return t.Transfer.model_validate(terms | fields).signed(sender, GENESIS.ledger_id)


async def refused(service: LedgerService, tx: t.Transaction) -> str:
    with pytest.raises(TransactionRefused) as caught:
        await service.enqueue(tx.encode())
    return caught.value.details["code"]


async def test_equal_transfers_are_two_and_a_repeated_request_is_one(
    service: LedgerService,
) -> None:
    ledger = LedgerClient(service, GENESIS.ledger_id)
    one = await ledger.transfer(STRANGER.address, 5, BUYER)
    two = await ledger.transfer(STRANGER.address, 5, BUYER)
    assert one.leaf.tx != two.leaf.tx
    first = await ledger.transfer(STRANGER.address, 5, BUYER, request=REQUEST)
    again = await ledger.transfer(STRANGER.address, 5, BUYER, request=REQUEST)
    assert again == first
    assert (await ledger.account(STRANGER.address)).balance_wei == 15
    staked = await ledger.stake(DAI, NODE, request=REQUEST)
    assert await ledger.stake(DAI, NODE, request=REQUEST) == staked
    assert (await ledger.account(NODE.address)).balance_wei == 199 * DAI
    with pytest.raises(TransactionRefused) as caught:
        await ledger.transfer(STRANGER.address, 6, BUYER, request=REQUEST)
    assert caught.value.details["code"] == "duplicate"


async def test_two_processes_with_one_key_make_two_transfers(
    service: LedgerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daifi_flows.ledger._sending.turn_of", lambda *_: Turn())
    clients = [LedgerClient(service, GENESIS.ledger_id) for _ in range(2)]
    receipts = await asyncio.gather(
        *(client.transfer(STRANGER.address, 1, BUYER) for client in clients)
    )
    assert len({receipt.leaf.tx for receipt in receipts}) == 2
    assert (await clients[0].account(STRANGER.address)).balance_wei == 2


async def test_a_request_is_found_while_pending_when_final_and_after_a_restart(
    tmp_path: Path,
) -> None:
    path, gate = tmp_path / "ledger.db", asyncio.Event()

    class Gated(SeatsHere):
        async def certify(self, header, block, history):  # pyright: ignore
            await gate.wait()
            return await super().certify(header, block, history)

    first = a_transfer(request=REQUEST)
    repeat = a_transfer(request=REQUEST, nonce=1, valid_until_ms=2**62)
    service = LedgerService(path, GENESIS, Gated(GENESIS), clock=lambda: T0 + 1)
    await service.start()
    tx = await service.enqueue(first.encode())
    assert await service.enqueue(repeat.encode()) == tx
    gate.set()
    receipt = await service.wait(tx)
    assert await service.submit(repeat.encode()) == receipt
    await service.close()
    service = LedgerService(path, GENESIS, Gated(GENESIS), clock=lambda: T0 + 1)
    await service.start()
    assert await service.submit(repeat.encode()) == receipt
    assert (await service.account(BUYER.address)).nonce == 1
    await service.close()
    assert audit(path).transactions == 1


async def test_a_request_used_for_something_else_is_refused(service: LedgerService) -> None:
    await service.submit(a_transfer(request=REQUEST).encode())
    assert await refused(service, a_transfer(request=REQUEST, nonce=1, amount_wei=2)) == "duplicate"
    # Another sender's request of the same id is another request.
    await service.submit(a_transfer(NODE, request=REQUEST).encode())
    assert (await service.account(STRANGER.address)).balance_wei == 2


async def test_what_happens_once_is_answered_once_whoever_asks(service: LedgerService) -> None:
    ledger = LedgerClient(service, GENESIS.ledger_id)
    spec = make_spec()
    opened = await ledger.open_escrow(spec, BUYER)
    terms = {"sender": BUYER.address, "nonce": 1, "spec": spec, "request": REQUEST}
    again = t.Open.model_validate(terms).signed(BUYER, GENESIS.ledger_id)
    assert await service.submit(again.encode()) == opened
    await ledger.register(info_of(NODE), NODE)
    await ledger.stake(DAI, NODE)
    await ledger.assign(spec.task_id, NODE.address, DAI, BUYER)
    other = t.Assign(
        sender=BUYER.address,
        nonce=2,
        task_id=spec.task_id,
        attempt=0,
        node=NODE.address,
        price_wei=2 * DAI,
    )
    assert await refused(service, other.signed(BUYER, GENESIS.ledger_id)) == "duplicate"


async def test_an_offer_may_change_and_change_back(service: LedgerService) -> None:
    ledger = LedgerClient(service, GENESIS.ledger_id)
    for price in (1, 2, 1):
        await ledger.register(info_of(NODE, price), NODE)
        registered = (await ledger.account(NODE.address)).registered
        assert registered is not None and registered.price_wei == price
    assert (await ledger.account(NODE.address)).nonce == 3


async def test_a_client_pays_the_fee_and_limits_it(tmp_path: Path) -> None:
    service = LedgerService(tmp_path / "ledger.db", PAYING, SeatsHere(PAYING), clock=lambda: T0 + 1)
    await service.start()
    sent: list[t.Transaction] = []
    ask = service.enqueue

    async def enqueue(raw: bytes) -> bytes:
        sent.append(t.parse_transaction(raw))
        return await ask(raw)

    service.enqueue = enqueue
    ledger = LedgerClient(service, PAYING.ledger_id)
    receipt = await ledger.transfer(STRANGER.address, 5, BUYER)
    (tx,) = sent
    per_byte = (await ledger.params()).fees.fee_per_byte_wei
    assert receipt.leaf.fee_wei == per_byte * len(tx.encode()) > 0
    assert tx.max_fee_wei == 2 * receipt.leaf.fee_wei
    assert tx.valid_until_ms > T0
    assert (await ledger.supply()).treasury_wei == receipt.leaf.fee_wei
    # A limit that was right when it was read, and is too low now, is read again.
    ledger._fee_per_byte_wei = per_byte // 4
    await ledger.transfer(STRANGER.address, 5, BUYER)
    assert len(sent) == 3
    await service.close()
    assert audit(tmp_path / "ledger.db").supply.conserved

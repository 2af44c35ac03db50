"""Sealed transactions: commitments, reveals, lapses, their order, and who tries to run in front."""

from __future__ import annotations

from pathlib import Path

import ledger_kinds as t
import pytest
from ledger_bench import Bench, snapshot
from ledger_kit import (
    BUILDER,
    BUYER,
    DAI,
    FREE,
    NODE,
    OTHER,
    STRANGER,
    T0,
    SeatsHere,
    make_genesis,
    make_spec,
    reseal,
)

from daifi_flows.cnft import TxReceipt
from daifi_flows.encoding import keccak256
from daifi_flows.errors import InsufficientFunds, LedgerError, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import (
    LedgerClient,
    LedgerService,
    Params,
    Replica,
    TaskState,
    audit,
)
from daifi_flows.ledger._blocks import Block, CertifiedBlock, build
from daifi_flows.ledger._chain import Chain
from daifi_flows.ledger._machine import BlockEnv
from daifi_flows.ledger._policy import SealedParams
from daifi_flows.ledger._rules.sealed import UNSEALED, place_in_block
from daifi_flows.ledger._seal import open_slot
from daifi_flows.ledger._sealed import SealedRecord, sealed_key
from daifi_flows.ledger._state import Layer
from daifi_flows.ledger._tx.lease import action_of
from daifi_flows.ledger._tx.sealed import sealed_commitment
from daifi_flows.merkle import MountainRange

SALT = keccak256(b"salt")
TERMS = SealedParams(over_wei=10 * DAI, deposit_wei=DAI, max_ms=60_000)
GENESIS = make_genesis(params=Params(fees=FREE, sealed=TERMS))
HIGH = make_spec(1, max_price_wei=50 * DAI)
NOW = T0 + 1


def action_open(spec=HIGH, who: Account = BUYER) -> bytes:
    return action_of(t.Open(sender=who.address, nonce=0, spec=spec))


def action_pay(wei: int, who: Account = BUYER) -> bytes:
    return action_of(t.Transfer(sender=who.address, nonce=0, to=STRANGER.address, amount_wei=wei))


class Table(Bench):
    """A bench whose blocks have heights."""

    def __init__(self) -> None:
        super().__init__(GENESIS)
        self.height = 1

    def run(self, tx: t.Transaction) -> TxReceipt:
        return self.machine.execute(self.state, tx, BlockEnv(self.now, self.height))

    def seal(self, who: Account, action: bytes, salt: bytes = SALT, **fields: object) -> bytes:
        commitment = sealed_commitment(who.address, salt, action)
        values = {
            "commitment": commitment,
            "deposit_wei": TERMS.deposit_wei,
            "lasts_ms": TERMS.max_ms,
        }
        self.do(t.Sealed, who, **(values | fields))
        return commitment

    def reveal(self, who: Account, action: bytes, salt: bytes = SALT) -> TxReceipt:
        return self.do(t.Reveal, who, salt=salt, action=action)

    def refused(self, code: str, kind: type[t.Transaction], who: Account, **fields: object) -> str:
        before = snapshot(self.state)
        with pytest.raises(TransactionRefused) as error:
            self.do(kind, who, **fields)
        assert error.value.details["code"] == code
        assert snapshot(self.state) == before
        return str(error.value)


@pytest.fixture
def here() -> Table:
    return Table()


# Commit and reveal


def test_a_task_of_high_value_must_be_opened_sealed(here: Table) -> None:
    assert "sealed" in here.refused("unsealed", t.Open, BUYER, spec=HIGH)
    here.do(t.Open, BUYER, spec=make_spec(2, max_price_wei=10 * DAI))
    here.seal(BUYER, action_open())
    assert here.balance(BUYER) == (1_000 - 10 - 1) * DAI
    here.height += 1
    receipt = here.reveal(BUYER, action_open())
    assert receipt.kind == "reveal" and receipt.task_id == HIGH.task_id
    assert [(p.reason, p.amount_wei) for p in receipt.payments] == [("deposit", DAI)]
    task = here.state.task(HIGH.task_id)
    assert task is not None and task.state is TaskState.OPEN and task.escrow_wei == 50 * DAI
    assert here.balance(BUYER) == (1_000 - 10 - 50) * DAI
    assert here.state.supply().conserved


def test_a_lease_does_not_open_what_must_be_sealed(here: Table) -> None:
    here.do(t.PoolDeposit, NODE, amount_wei=100 * DAI)
    fields = {
        "credit_wei": DAI,
        "node": "0x" + "00" * 20,
        "mflop": 0,
        "price_wei": 0,
        "actions": (action_open(),),
    }
    here.refused("unsealed", t.Lease, BUYER, **fields)
    lease = action_of(t.Lease(sender=BUYER.address, nonce=0, **fields))
    here.seal(BUYER, lease)
    here.height += 1
    here.reveal(BUYER, lease)
    assert here.state.task(HIGH.task_id) is not None


BAD_SEALS = {
    "too small a deposit": {"deposit_wei": DAI - 1},
    "for no time": {"lasts_ms": 0},
    "too long": {"lasts_ms": TERMS.max_ms + 1},
}


@pytest.mark.parametrize("fields", BAD_SEALS.values(), ids=BAD_SEALS.keys())
def test_what_cannot_be_sealed(here: Table, fields: dict[str, int]) -> None:
    good = {
        "commitment": SALT,
        "deposit_wei": DAI,
        "lasts_ms": TERMS.max_ms,
    }
    here.refused("bad-field", t.Sealed, BUYER, **(good | fields))


def test_a_commitment_needs_its_deposit_and_waits_once(here: Table) -> None:
    with pytest.raises(InsufficientFunds):
        here.seal(STRANGER, action_pay(1))
    commitment = here.seal(BUYER, action_pay(1))
    fields = {"deposit_wei": DAI, "lasts_ms": 1_000}
    here.refused("duplicate", t.Sealed, BUYER, commitment=commitment, **fields)


def test_what_cannot_be_revealed(here: Table) -> None:
    here.seal(BUYER, action_pay(1))
    here.refused("bad-state", t.Reveal, BUYER, salt=SALT, action=action_pay(1))
    here.height += 1
    for salt, action in ((SALT, action_pay(2)), (keccak256(b"x"), action_pay(1))):
        here.refused("unknown", t.Reveal, BUYER, salt=salt, action=action)
    here.now += TERMS.max_ms + 1
    here.refused("expired", t.Reveal, BUYER, salt=SALT, action=action_pay(1))


def test_a_revealed_action_is_not_done_twice(here: Table) -> None:
    here.seal(BUYER, action_pay(7))
    here.height += 1
    here.reveal(BUYER, action_pay(7))
    here.refused("unknown", t.Reveal, BUYER, salt=SALT, action=action_pay(7))
    assert here.balance(STRANGER) == 7


@pytest.mark.parametrize(
    "action",
    [
        b"junk",
        action_of(t.Stake(sender=BUYER.address, nonce=0, amount_wei=1)),
        action_of(t.Reveal(sender=BUYER.address, nonce=0, salt=SALT, action=action_pay(1))),
    ],
    ids=["junk", "a stake", "a reveal"],
)
def test_what_may_not_travel_sealed(here: Table, action: bytes) -> None:
    here.seal(BUYER, action)
    here.height += 1
    here.refused("bad-field", t.Reveal, BUYER, salt=SALT, action=action)


def test_an_action_that_is_refused_can_be_revealed_later(here: Table) -> None:
    here.seal(NODE, action_pay(250 * DAI, NODE))
    here.height += 1
    with pytest.raises(InsufficientFunds):
        here.reveal(NODE, action_pay(250 * DAI, NODE))
    here.do(t.Transfer, BUYER, to=NODE.address, amount_wei=100 * DAI)
    here.reveal(NODE, action_pay(250 * DAI, NODE))


def test_a_deposit_lapses_when_nothing_is_revealed(here: Table) -> None:
    commitment = here.seal(BUYER, action_pay(1))
    fields = {"holder": BUYER.address, "commitment": commitment}
    here.now += TERMS.max_ms
    here.refused("bad-state", t.Lapse, STRANGER, **fields)
    here.now += 1
    here.refused("unknown", t.Lapse, STRANGER, **(fields | {"holder": NODE.address}))
    treasury = here.state.supply().treasury_wei
    here.do(t.Lapse, STRANGER, **fields)
    assert here.state.supply().treasury_wei - treasury == DAI
    assert here.state.find(SealedRecord, sealed_key(BUYER.address, commitment)) is None
    here.refused("unknown", t.Lapse, STRANGER, **fields)


# Running in front


def test_another_sender_cannot_reveal_or_claim_a_commitment(here: Table) -> None:
    commitment = here.seal(BUYER, action_pay(5))
    here.do(  # a copy of the commitment is no use: it is bound to its sender
        t.Sealed, NODE, commitment=commitment, deposit_wei=DAI, lasts_ms=1_000
    )
    here.height += 1
    here.refused("unknown", t.Reveal, NODE, salt=SALT, action=action_pay(5))
    here.reveal(BUYER, action_pay(5))
    assert here.balance(BUYER) == 1_000 * DAI - 5


def test_a_copied_commitment_does_not_block_the_one_it_copies(here: Table) -> None:
    action = action_pay(5)
    commitment = sealed_commitment(BUYER.address, SALT, action)
    here.do(t.Sealed, NODE, commitment=commitment, deposit_wei=DAI, lasts_ms=1_000)
    here.seal(BUYER, action)
    here.height += 1
    before = here.balance(STRANGER)
    here.reveal(BUYER, action)
    assert here.balance(STRANGER) == before + 5


def test_reveals_have_the_places_of_their_commitments(here: Table) -> None:
    here.seal(NODE, action_pay(1, NODE))
    here.seal(BUYER, action_pay(2))
    here.height += 1
    second = here.make(t.Reveal, BUYER, salt=SALT, action=action_pay(2))
    first = here.make(t.Reveal, NODE, salt=SALT, action=action_pay(1, NODE))
    other = here.make(t.Transfer, OTHER, to=STRANGER.address, amount_wei=1)
    places = [place_in_block(here.state, tx) for tx in (first, second, other)]
    assert places == [0, 1, UNSEALED] == sorted(places)


def signed(chain: Chain, kind: type[t.Transaction], who: Account, **fields: object) -> bytes:
    nonce = chain.tip.account(who.address).nonce
    tx = kind.model_validate({"sender": who.address, "nonce": nonce} | fields)
    return tx.signed(who, chain.machine.ledger_id).encode()


def sealed_by(chain: Chain, who: Account, action: bytes) -> bytes:
    return signed(
        chain, t.Sealed, who, commitment=sealed_commitment(who.address, SALT, action),
        deposit_wei=DAI, lasts_ms=30_000,
    )  # fmt: skip


def test_a_reveal_begins_a_block_of_its_own_rather_than_follow_others() -> None:
    chain = Chain(GENESIS)
    actions = {who.address: action_pay(1, who) for who in (NODE, OTHER)}
    for who in (NODE, OTHER):
        chain.add(sealed_by(chain, who, actions[who.address]), NOW)
    chain.pending[0].candidate = object()  # pyright: ignore  # closed: what comes is behind it
    chain.add(signed(chain, t.Transfer, BUYER, to=STRANGER.address, amount_wei=1), NOW)
    for who in (OTHER, NODE):
        chain.add(signed(chain, t.Reveal, who, salt=SALT, action=actions[who.address]), NOW)
    chain.add(signed(chain, t.Transfer, BUYER, to=STRANGER.address, amount_wei=1), NOW)
    kinds = [[receipt.kind for receipt in block.receipts] for block in chain.pending]
    assert kinds == [["sealed", "sealed"], ["transfer"], ["reveal"], ["reveal", "transfer"]]


async def test_no_seat_signs_a_block_that_puts_something_in_front_of_a_reveal(
    tmp_path: Path,
) -> None:
    """A builder reads a reveal, and orders its block so that its own transfer comes first."""
    action, clock = action_pay(3), lambda: NOW
    seats = SeatsHere(GENESIS)
    service = LedgerService(tmp_path / "a.db", GENESIS, seats, clock=clock, builder=BUILDER)
    await service.start()
    chain = service._chain
    try:
        await service.submit(sealed_by(chain, BUYER, action))
        reveal = signed(chain, t.Reveal, BUYER, salt=SALT, action=action)
        pay = signed(chain, t.Transfer, NODE, to=STRANGER.address, amount_wei=1)
        for tx_id in [await service.enqueue(raw) for raw in (reveal, pay)]:
            await service.wait(tx_id)
        certified = [CertifiedBlock.from_canonical(raw) for raw in await service.history(1)]
    finally:
        await service.close()
    honest = certified[1].block
    assert len(honest.transactions) == 2, "both came in time for one block"
    replica = Replica(GENESIS)
    replica.catch_up([certified[0].canonical()])
    bad = reordered(replica, honest)
    with pytest.raises(LedgerError, match="behind what it comes before"):
        replica.check(bad.canonical())
    assert replica.check(honest.canonical()) == honest.header.digest


def reordered(replica: Replica, block: Block) -> Block:
    """The same transactions in the other order, everything else as it must be."""
    order = block.transactions[::-1]
    layer, env = Layer(replica._base), BlockEnv(block.header.timestamp_ms, 2)
    receipts = [
        replica._machine.execute(layer, t.parse_transaction(raw), env, size=len(raw))
        for raw in order
    ]
    slot = open_slot(replica._head, replica._base, block.seal.beacon, block.header.round)
    history, _ = MountainRange().append([])
    candidate = build(
        slot, replica._trie, replica._history or history, layer, builder=BUILDER.address,
        bid_wei=0, transactions=order, receipts=receipts,
        timestamp_ms=block.header.timestamp_ms,
    )  # fmt: skip
    names = ("tx_root", "receipt_root", "state_root", "history_root", "history_size")
    changed = {name: getattr(candidate.header, name) for name in names}
    return reseal(block.model_copy(update={"transactions": order}), BUILDER, **changed)


# The client


async def test_the_client_seals_what_must_be_sealed_and_repeats_safely(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    seats = SeatsHere(GENESIS)
    service = LedgerService(path, GENESIS, seats, clock=lambda: NOW, builder=BUILDER)
    await service.start()
    ledger = LedgerClient(service, GENESIS.ledger_id)
    try:
        low = await ledger.open_escrow(make_spec(2, max_price_wei=DAI), BUYER)
        assert low.leaf.kind == "open"
        first = await ledger.open_escrow(HIGH, BUYER)
        assert first.leaf.kind == "reveal" and first.leaf.task_id == HIGH.task_id
        assert await ledger.open_escrow(HIGH, BUYER) == first
        buyer = await ledger.account(BUYER.address)
        assert buyer.balance_wei == (1_000 - 50 - 1) * DAI
    finally:
        await service.close()
    assert audit(path).supply.conserved

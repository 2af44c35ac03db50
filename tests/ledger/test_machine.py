"""What each transaction does, and the table of attacks it refuses."""

from __future__ import annotations

from collections.abc import Callable

import ledger_kinds as t
import pytest
from eth_account import Account as EthAccount
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st
from ledger_kit import (
    BUYER,
    COMMITTEE,
    DAI,
    FREE,
    GENESIS,
    NODE,
    OTHER,
    PROOF_CID,
    SEAT_ACCOUNTS,
    STRANGER,
    T0,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
)

from daifi_flows.cnft import PPM, Decision, ModelRef, NodeInfo, Review, TxReceipt, token_id_of
from daifi_flows.encoding import canonical, cid_of, keccak256
from daifi_flows.errors import EncodingError, InsufficientFunds, LedgerError, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Genesis, Params, TaskState
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._params import FeeParams, SlashingParams
from daifi_flows.ledger._state import Base, supply_of

META = keccak256(b"metadata")
_SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


class Bench:
    """A machine and its state, with transactions signed by whoever is named."""

    def __init__(self, genesis: Genesis = GENESIS) -> None:
        self.machine = Machine(genesis)
        self.state = self.machine.genesis_state()
        self.now = T0 + 1

    def make(self, kind: type[t.Transaction], account: Account, **fields: object) -> t.Transaction:
        nonce = fields.pop("nonce", self.state.account(account.address).nonce)
        tx = kind.model_validate({"sender": account.address, "nonce": nonce} | fields)
        return tx.signed(account, self.machine.ledger_id)

    def run(self, tx: t.Transaction) -> TxReceipt:
        receipt = self.machine.execute(self.state, tx, BlockEnv(self.now, 1))
        report = supply_of(self.state)
        assert report.conserved and report == self.state.supply()
        return receipt

    def do(self, kind: type[t.Transaction], account: Account, **fields: object) -> TxReceipt:
        return self.run(self.make(kind, account, **fields))

    def balance(self, account: Account) -> int:
        return self.state.account(account.address).balance_wei

    def reach(self, state: TaskState, spec=None, node: Account = NODE, price: int = 2 * DAI):
        """A task of the buyer's brought to ``state``."""
        spec = spec if spec is not None else make_spec()
        if self.state.account(node.address).registered is None:
            self.do(t.Register, node, info=info_of(node))
            self.do(t.Stake, node, amount_wei=100 * DAI)
        self.do(t.Open, BUYER, spec=spec)
        if state is TaskState.OPEN:
            return spec
        self.assign(spec, node, price)
        if state is TaskState.ASSIGNED:
            return spec
        self.commit(spec, node)
        if state is TaskState.COMMITTED:
            return spec
        self.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)
        return spec

    def assign(self, spec, node: Account = NODE, price: int = 2 * DAI) -> None:
        attempt = self.state.task(spec.task_id).attempt
        self.do(
            t.Assign,
            BUYER,
            task_id=spec.task_id,
            attempt=attempt,
            node=node.address,
            price_wei=price,
        )

    def commit(self, spec, node: Account = NODE) -> None:
        attempt = self.state.task(spec.task_id).attempt
        self.do(
            t.Commit,
            BUYER,
            task_id=spec.task_id,
            attempt=attempt,
            proof_cid=PROOF_CID,
            header=make_header(spec, node),
        )


def snapshot(state: Base) -> dict[bytes, bytes]:
    return state.encoded()


def test_settling_splits_the_price_refunds_the_rest_and_mints() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.COMMITTED)
    before, node_before = bench.balance(BUYER), bench.balance(NODE)
    receipt = bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)

    price = 2 * DAI
    seat = price * 100_000 // PPM // 14
    treasury = price * 50_000 // PPM
    assert bench.balance(BUYER) == before + 3 * DAI
    assert bench.balance(NODE) == node_before + price - 14 * seat - treasury
    assert [bench.balance(a) for a in SEAT_ACCOUNTS] == [seat] * 14 + [0] * 7
    assert bench.state.supply().treasury_wei == treasury
    assert sum(p.amount_wei for p in receipt.payments) == 5 * DAI
    assert {p.reason for p in receipt.payments} == {"node", "committee", "treasury", "refund"}

    task, token = bench.state.task(spec.task_id), bench.state.token(token_id_of(spec.task_id))
    assert task is not None and task.state is TaskState.SETTLED and task.escrow_wei == 0
    assert token is not None and token.owner == BUYER.address and token.content == META
    assert receipt.token_id == token.token_id and receipt.node == NODE.address
    assert receipt.attestation == keccak256(attest(spec).canonical())
    assert bench.state.account(NODE.address).reputation_ppm == 2 * PPM // 3


def test_owners_of_parents_get_royalties() -> None:
    bench = Bench()
    parents = tuple(
        token_id_of(bench.reach(TaskState.SETTLED, make_spec(i)).task_id) for i in range(2)
    )
    spec = bench.reach(TaskState.COMMITTED, make_spec(9, parents=parents))
    receipt = bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)
    royalties = [p for p in receipt.payments if p.reason == "royalty"]
    assert [(p.to, p.amount_wei) for p in royalties] == [(BUYER.address, DAI // 20)] * 2


@given(
    price=st.integers(min_value=0, max_value=5 * DAI),
    fees=st.tuples(*[st.integers(min_value=0, max_value=166_666)] * 3),
    signers=st.integers(min_value=14, max_value=21),
)
def test_a_price_is_split_to_the_last_wei(price: int, fees, signers: int) -> None:
    split = FeeParams(
        committee_ppm=fees[0], treasury_ppm=fees[1], royalty_ppm=fees[2], fee_per_byte_wei=0
    )
    genesis = make_genesis(params=Params(fees=split))
    bench = Bench(genesis)
    bench.do(t.Register, NODE, info=info_of(NODE, 0))
    bench.do(t.Stake, NODE, amount_wei=DAI)
    spec = bench.reach(TaskState.COMMITTED, price=price)
    finding = attest(spec, ledger_id=genesis.ledger_id, signers=range(signers))
    receipt = bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    paid = {p.reason: 0 for p in receipt.payments}
    for payment in receipt.payments:
        paid[payment.reason] += payment.amount_wei
    assert sum(paid.values()) - paid.get("refund", 0) == price
    assert paid.get("refund", 0) == 5 * DAI - price
    assert paid.get("committee", 0) <= price * fees[0] // PPM
    assert paid.get("node", 0) >= price - price * sum(fees) // PPM


def test_rejection_slashes_bars_and_reopens() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, Decision.REJECTED)
    receipt = bench.do(t.Reject, STRANGER, attestation=finding)
    slashed = 25 * DAI
    assert sum(p.amount_wei for p in receipt.payments if p.reason == "slash") == slashed
    node, task = bench.state.account(NODE.address), bench.state.task(spec.task_id)
    assert node.stake_wei == 75 * DAI and node.rejected == 1
    assert bench.balance(STRANGER) == slashed // 10
    assert bench.state.supply().burned_wei == slashed * 4 // 10
    assert task is not None and task.state is TaskState.OPEN and task.attempt == 1
    assert task.barred == (NODE.address,) and task.escrow_wei == 5 * DAI
    with pytest.raises(TransactionRefused) as refused:
        bench.assign(spec)
    assert refused.value.details["code"] == "bad-role"
    # The step goes on with another node, and the old attestation is worthless.
    bench.do(t.Register, OTHER, info=info_of(OTHER))
    bench.do(t.Stake, OTHER, amount_wei=DAI)
    bench.assign(spec, OTHER)
    bench.commit(spec, OTHER)
    with pytest.raises(TransactionRefused, match="another attempt"):
        bench.do(t.Reject, STRANGER, attestation=finding)
    good = attest(spec, attempt=1, node=OTHER.address)
    bench.do(t.Settle, BUYER, attestation=good, metadata=META)


def test_a_slash_never_takes_more_than_half() -> None:
    with pytest.raises(ValueError, match="500000"):
        SlashingParams(rejected_ppm=500_001)
    bench = Bench(
        make_genesis(params=Params(fees=FREE, slashing=SlashingParams(rejected_ppm=500_000)))
    )
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, Decision.REJECTED, ledger_id=bench.machine.ledger_id)
    # A node that reports itself wins nothing back.
    receipt = bench.do(t.Reject, NODE, attestation=finding)
    assert bench.state.account(NODE.address).stake_wei == 50 * DAI
    assert NODE.address not in {p.to for p in receipt.payments}


def test_unproven_refunds_and_slashes_nobody() -> None:
    bench = Bench()
    before = bench.balance(BUYER)
    spec = bench.reach(TaskState.COMMITTED)
    bench.do(t.Unproven, STRANGER, attestation=attest(spec, Decision.UNPROVEN, confidence_ppm=0))
    assert bench.balance(BUYER) == before
    assert bench.state.account(NODE.address).stake_wei == 100 * DAI
    assert bench.state.task(spec.task_id).state is TaskState.UNPROVEN


def test_release_costs_an_attempt_and_attempts_are_bounded() -> None:
    bench = Bench()
    spec = make_spec(review=Review(attempts=2))
    bench.reach(TaskState.OPEN, spec)
    for attempt in range(2):
        bench.assign(spec)
        bench.do(t.Release, BUYER, task_id=spec.task_id, attempt=attempt)
    with pytest.raises(TransactionRefused, match="all 2 attempts are spent"):
        bench.assign(spec)
    before = bench.balance(BUYER)
    bench.do(t.Cancel, BUYER, task_id=spec.task_id)
    assert bench.balance(BUYER) == before + 5 * DAI
    assert bench.state.account(NODE.address).stake_wei == 100 * DAI


@pytest.mark.parametrize(
    ("state", "late_ms"),
    [(TaskState.OPEN, 0), (TaskState.ASSIGNED, 0), (TaskState.COMMITTED, 60_000)],
)
def test_expiry_refunds_after_the_deadline_and_not_before(state: TaskState, late_ms: int) -> None:
    bench = Bench()
    before = bench.balance(BUYER)
    spec = bench.reach(state)
    bench.now = spec.deadline_ms + late_ms - 1
    with pytest.raises(TransactionRefused, match="expires at"):
        bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    bench.now += 1
    bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    assert bench.balance(BUYER) == before
    assert bench.state.task(spec.task_id).state is TaskState.EXPIRED


def test_an_effect_is_committed_once_by_the_owner() -> None:
    bench = Bench()
    token = token_id_of(bench.reach(TaskState.SETTLED).task_id)
    with pytest.raises(TransactionRefused, match="only the owner"):
        bench.do(t.Effect, STRANGER, token_id=token, effect=META)
    receipt = bench.do(t.Effect, BUYER, token_id=token, effect=META)
    assert receipt.content == META and bench.state.token(token).effect == META
    with pytest.raises(TransactionRefused, match="already committed"):
        bench.do(t.Effect, BUYER, token_id=token, effect=bytes(32))


def test_sending_money_to_oneself_changes_nothing() -> None:
    bench = Bench()
    before = bench.balance(BUYER)
    bench.do(t.Transfer, BUYER, to=BUYER.address, amount_wei=before)
    assert bench.balance(BUYER) == before


# Attacks: each is one transaction, brought to a state where its honest twin would pass.

Attack = Callable[[Bench], t.Transaction]


def _settle(bench: Bench, **changes: object) -> t.Transaction:
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, **changes)  # pyright: ignore
    return bench.make(t.Settle, BUYER, attestation=finding, metadata=META)


def _assign(bench: Bench, sender: Account = BUYER, **changes: object) -> t.Transaction:
    spec = bench.reach(TaskState.OPEN)
    fields = {"task_id": spec.task_id, "attempt": 0, "node": NODE.address, "price_wei": DAI}
    return bench.make(t.Assign, sender, **(fields | changes))


def _commit(bench: Bench, sender: Account = BUYER, **changes: object) -> t.Transaction:
    spec = bench.reach(TaskState.ASSIGNED)
    header = changes.pop("header", None) or make_header(spec, **changes)  # pyright: ignore
    return bench.make(
        t.Commit, sender, task_id=spec.task_id, attempt=0, proof_cid=PROOF_CID, header=header
    )


def _open(bench: Bench, sender: Account = BUYER, **changes: object) -> t.Transaction:
    return bench.make(t.Open, sender, spec=make_spec(**changes))  # pyright: ignore


def _transfer(bench: Bench, **fields: object) -> t.Transaction:
    return bench.make(t.Transfer, BUYER, **({"to": NODE.address, "amount_wei": 1} | fields))


def _malleated(bench: Bench) -> t.Transaction:
    tx = _transfer(bench)
    r, s, v = tx.signature[:32], int.from_bytes(tx.signature[32:64], "big"), tx.signature[64]
    twin = r + (_SECP256K1_N - s).to_bytes(32, "big") + bytes([55 - v])
    return tx.model_copy(update={"signature": twin})


def _on_another_ledger(bench: Bench) -> t.Transaction:
    tx = _transfer(bench)
    return tx.signed(BUYER, make_genesis(salt=b"\x01" * 32).ledger_id)


def _forged_sender(bench: Bench) -> t.Transaction:
    return _transfer(bench).signed(STRANGER, bench.machine.ledger_id)


def _changed_after_signing(bench: Bench) -> t.Transaction:
    return _transfer(bench).model_copy(update={"amount_wei": 2})


def _settle_twice(bench: Bench) -> t.Transaction:
    spec = bench.reach(TaskState.SETTLED)
    return bench.make(t.Settle, BUYER, attestation=attest(spec), metadata=META)


def _reject_after_settling(bench: Bench) -> t.Transaction:
    spec = bench.reach(TaskState.SETTLED)
    return bench.make(t.Reject, BUYER, attestation=attest(spec, Decision.REJECTED))


def _repeated_signer(bench: Bench) -> t.Transaction:
    """13 seats, one of them counted twice in the aggregate, and a bitmap of 14."""
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, signers=[*range(13), 0])
    finding = finding.model_copy(update={"signers": (1 << 14) - 1})
    return bench.make(t.Settle, BUYER, attestation=finding, metadata=META)


def _altered(**changes: object) -> Attack:
    def attack(bench: Bench) -> t.Transaction:
        spec = bench.reach(TaskState.COMMITTED)
        finding = attest(spec).model_copy(update=changes)
        return bench.make(t.Settle, BUYER, attestation=finding, metadata=META)

    return attack


def _settle_as(sender: Account, state: TaskState = TaskState.COMMITTED) -> Attack:
    def attack(bench: Bench) -> t.Transaction:
        spec = bench.reach(state)
        return bench.make(t.Settle, sender, attestation=attest(spec), metadata=META)

    return attack


def _on_task(
    kind: type[t.Transaction], sender: Account, state: TaskState, **more: object
) -> Attack:
    def attack(bench: Bench) -> t.Transaction:
        spec = bench.reach(state)
        return bench.make(kind, sender, task_id=spec.task_id, **more)

    return attack


def _reject_with_acceptance(bench: Bench) -> t.Transaction:
    spec = bench.reach(TaskState.COMMITTED)
    return bench.make(t.Reject, STRANGER, attestation=attest(spec))


def _stakeless_node(bench: Bench) -> t.Transaction:
    bench.do(t.Register, OTHER, info=info_of(OTHER))
    return _assign(bench, node=OTHER.address)


def _big_info() -> NodeInfo:
    return info_of(NODE).model_copy(update={"engines": ("e" * 65,)})


ATTACKS: list[tuple[str, str, Attack]] = [
    ("a signature for another ledger", "bad-signature", _on_another_ledger),
    ("a malleated signature", "bad-signature", _malleated),
    ("somebody else's signature", "bad-signature", _forged_sender),
    ("a field changed after signing", "bad-signature", _changed_after_signing),
    ("a nonce too high", "bad-nonce", lambda b: _transfer(b, nonce=1)),
    ("more than one has", "insufficient-funds", lambda b: _transfer(b, amount_wei=2_000 * DAI)),
    ("nothing at all", "bad-field", lambda b: _transfer(b, amount_wei=0)),
    ("registering another", "bad-role", lambda b: b.make(t.Register, OTHER, info=info_of(NODE))),
    ("over-size engine names", "bad-field", lambda b: b.make(t.Register, NODE, info=_big_info())),
    ("opening for another", "bad-role", lambda b: _open(b, STRANGER)),
    ("opening without funds", "insufficient-funds", lambda b: _open(b, max_price_wei=2_000 * DAI)),
    ("a deadline in the past", "expired", lambda b: _open(b, deadline_ms=T0)),
    ("a parent nobody minted", "unknown", lambda b: _open(b, parents=(META,))),
    ("a parent twice", "bad-field", lambda b: _open(b, parents=(META, META))),
    (
        "too many parents",
        "bad-field",
        lambda b: _open(b, parents=tuple(i.to_bytes(32, "big") for i in range(65))),
    ),
    ("opening twice", "duplicate", lambda b: (b.reach(TaskState.OPEN), _open(b))[1]),
    ("assigning another's task", "bad-role", lambda b: _assign(b, STRANGER)),
    ("a price above the maximum", "bad-field", lambda b: _assign(b, price_wei=5 * DAI + 1)),
    ("a price below the ask", "bad-field", lambda b: _assign(b, price_wei=DAI - 1)),
    ("a node nobody registered", "unknown", lambda b: _assign(b, node=STRANGER.address)),
    ("a node without stake", "bad-role", _stakeless_node),
    ("assigning the wrong attempt", "bad-state", lambda b: _assign(b, attempt=1)),
    ("a task nobody opened", "unknown", lambda b: _assign(b, task_id=META)),
    ("a stranger's commit", "bad-role", lambda b: _commit(b, STRANGER)),
    ("another task's proof", "bad-field", lambda b: _commit(b, task_id=META)),
    ("another model's proof", "bad-field", lambda b: _commit(b, model_digest=META)),
    ("another input's proof", "bad-field", lambda b: _commit(b, input_cid=cid_of(b"x"))),
    (
        "another node's proof",
        "bad-role",
        lambda b: _commit(b, header=make_header(make_spec(), OTHER)),
    ),
    (
        "a proof signed by another",
        "bad-signature",
        lambda b: _commit(
            b,
            header=make_header(make_spec()).model_copy(
                update={"signature": make_header(make_spec(), OTHER).signature}
            ),
        ),
    ),
    ("settling what is settled", "duplicate", _settle_twice),
    ("settling what is assigned", "bad-state", _settle_as(BUYER, TaskState.ASSIGNED)),
    ("settling what is open", "bad-state", _settle_as(BUYER, TaskState.OPEN)),
    ("a stranger's metadata", "bad-role", _settle_as(STRANGER)),
    ("13 signers", "bad-signature", lambda b: _settle(b, signers=range(13))),
    ("a signer counted twice", "bad-signature", _repeated_signer),
    ("a bit beyond the committee", "bad-field", _altered(signers=(1 << 22) - 1)),
    ("a bitmap of other seats", "bad-signature", _altered(signers=((1 << 14) - 1) << 1)),
    ("an attestation for another ledger", "bad-field", lambda b: _settle(b, ledger_id=META)),
    ("another epoch", "bad-field", lambda b: _settle(b, epoch=2)),
    ("another attempt", "bad-field", lambda b: _settle(b, attempt=1)),
    ("another node", "bad-field", lambda b: _settle(b, node=OTHER.address)),
    ("another output", "bad-field", lambda b: _settle(b, output_cid=cid_of(b"x"))),
    ("another proof", "bad-field", lambda b: _settle(b, proof_cid=cid_of(b"x"))),
    ("a rejection", "bad-field", lambda b: _settle(b, decision=Decision.REJECTED)),
    ("too little confidence", "bad-field", lambda b: _settle(b, confidence_ppm=989_999)),
    ("confidence raised afterwards", "bad-signature", _altered(confidence_ppm=1_000_000)),
    ("slashing with an acceptance", "bad-field", _reject_with_acceptance),
    ("slashing what is settled", "bad-state", _reject_after_settling),
    (
        "a stranger's release",
        "bad-role",
        _on_task(t.Release, STRANGER, TaskState.ASSIGNED, attempt=0),
    ),
    (
        "releasing what has an answer",
        "bad-state",
        _on_task(t.Release, BUYER, TaskState.COMMITTED, attempt=0),
    ),
    ("a stranger's cancel", "bad-role", _on_task(t.Cancel, STRANGER, TaskState.OPEN)),
    ("cancelling an answered task", "bad-state", _on_task(t.Cancel, BUYER, TaskState.COMMITTED)),
    ("cancelling a settled task", "bad-state", _on_task(t.Cancel, BUYER, TaskState.SETTLED)),
    ("expiring a settled task", "bad-state", _on_task(t.Expire, BUYER, TaskState.SETTLED)),
    (
        "an effect on no token",
        "unknown",
        lambda b: b.make(t.Effect, BUYER, token_id=META, effect=META),
    ),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in ATTACKS]
)
def test_attacks_are_refused_and_change_nothing(code: str, attack: Attack) -> None:
    bench = Bench()
    tx = attack(bench)
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as refused:
        bench.run(tx)
    assert refused.value.details["code"] == code
    assert isinstance(refused.value, InsufficientFunds) == (code == "insufficient-funds")
    assert snapshot(bench.state) == before


def test_a_transaction_cannot_be_replayed() -> None:
    bench = Bench()
    tx = _transfer(bench)
    bench.run(tx)
    with pytest.raises(TransactionRefused) as refused:
        bench.run(tx)
    assert refused.value.details["code"] == "bad-nonce"


# EIP-712


def _one_of_each(bench: Bench) -> list[t.Transaction]:
    spec = make_spec(3, parents=(META,), model=ModelRef.model_validate(make_spec().model))
    on_task = {"task_id": spec.task_id}
    finding = attest(spec)
    fields: dict[type[t.Transaction], dict[str, object]] = {
        t.Transfer: {"to": NODE.address, "amount_wei": 2**200},
        t.Stake: {"amount_wei": 1},
        t.Register: {"info": info_of(NODE).model_copy(update={"engines": ("a", "bé")})},
        t.Open: {"spec": spec},
        t.Assign: on_task | {"attempt": 1, "node": NODE.address, "price_wei": 5},
        t.Commit: on_task | {"attempt": 1, "proof_cid": PROOF_CID, "header": make_header(spec)},
        t.Release: on_task | {"attempt": 1},
        t.Settle: {"attestation": finding, "metadata": META},
        t.Reject: {"attestation": finding},
        t.Unproven: {"attestation": finding},
        t.Cancel: on_task,
        t.Expire: on_task,
        t.Effect: {"token_id": META, "effect": META},
    }
    assert {kind.kind for kind in fields} == set(t.KINDS)
    return [bench.make(kind, BUYER, nonce=7, **values) for kind, values in fields.items()]


def test_every_kind_is_signed_as_a_wallet_would_sign_it() -> None:
    for tx in _one_of_each(Bench()):
        message = encode_typed_data(full_message=tx.typed_data(GENESIS.ledger_id))
        wallet = EthAccount.sign_message(message, BUYER.secret)
        assert bytes(wallet.message_hash) == tx.digest(GENESIS.ledger_id), tx.kind
        signed = tx.model_copy(update={"signature": bytes(wallet.signature)})
        assert signed.check_signature(GENESIS.ledger_id) == tx.digest(GENESIS.ledger_id)


def test_every_kind_has_one_encoding() -> None:
    for tx in _one_of_each(Bench()):
        assert t.parse_transaction(tx.encode()) == tx


@given(data=st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with pytest.raises(TransactionRefused):
        t.parse_transaction(data)


_WIRE = [tx.encode() for tx in _one_of_each(Bench())]


@given(
    wire=st.sampled_from(_WIRE),
    at=st.integers(min_value=0, max_value=10_000),
    byte=st.integers(min_value=0, max_value=255),
)
def test_a_changed_byte_is_refused_or_breaks_the_signature(wire: bytes, at: int, byte: int) -> None:
    at %= len(wire)
    changed = wire[:at] + bytes([byte]) + wire[at + 1 :]
    if changed == wire:
        return
    with pytest.raises(TransactionRefused) as refused:
        t.parse_transaction(changed).check_signature(GENESIS.ledger_id)
    assert refused.value.details["code"] in ("bad-field", "bad-signature")


@pytest.mark.parametrize(
    "data",
    [
        canonical({"kind": "transfer"}),
        canonical({"kind": "mint", "sender": BUYER.address}),
        canonical({"kind": 5}),
        canonical([1]),
        b"\xa1" * 70_000,
        canonical({"kind": "transfer", "filler": bytes(70_000)}),
        b"\x81" * 10_000 + b"\x00",
    ],
)
def test_hostile_wire_forms_are_refused(data: bytes) -> None:
    with pytest.raises(TransactionRefused) as refused:
        t.parse_transaction(data)
    assert refused.value.details["code"] == "bad-field"


# Genesis


def test_genesis_needs_possession_of_each_seat_key() -> None:
    seats = COMMITTEE.seats
    stolen = seats[1].model_copy(update={"possession": seats[0].possession})
    for wrong, why in (
        ((seats[0], stolen, *seats[2:]), "proof of possession"),
        ((seats[0], seats[0].model_copy(update={"index": 1}), *seats[2:]), "share a BLS key"),
        (seats[1:], "numbered"),
    ):
        committee = COMMITTEE.model_copy(update={"seats": wrong})
        with pytest.raises(LedgerError, match=why):
            Machine(GENESIS.model_copy(update={"committee": committee}))


def test_the_ledger_id_commits_to_the_whole_genesis() -> None:
    ids = {
        GENESIS.ledger_id,
        make_genesis(salt=b"\x01" * 32).ledger_id,
        make_genesis(params=Params(fees=FeeParams(treasury_ppm=1))).ledger_id,
        GENESIS.model_copy(update={"allocations": GENESIS.allocations[:1]}).ledger_id,
        GENESIS.model_copy(update={"timestamp_ms": T0 + 1}).ledger_id,
    }
    assert len(ids) == 5


def test_genesis_refuses_impossible_money() -> None:
    common = {"salt": bytes(32), "timestamp_ms": T0, "committee": COMMITTEE}
    for allocations in (
        [(BUYER.address, 1), (BUYER.address, 1)],
        [(BUYER.address, 2**255), (NODE.address, 2**255)],
    ):
        with pytest.raises(LedgerError):
            Genesis.create(allocations=allocations, **common)  # pyright: ignore
    with pytest.raises(EncodingError):
        Genesis.create(allocations=[(BUYER.address, -1)], **common)  # pyright: ignore

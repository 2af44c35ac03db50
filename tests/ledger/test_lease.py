"""Leases: the pool's shares, capacity on offer, and borrowing that is paid or never happened."""

from __future__ import annotations

from collections.abc import Callable

import ledger_kinds as t
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_bench import snapshot
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    T0,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
)
from token_bench import TokenBench, action, send_money

from daifi_flows.cnft import PPM, TxReceipt, token_id_of
from daifi_flows.encoding import canonical, keccak256, tagged_hash
from daifi_flows.errors import InsufficientFunds, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Params, TaskState
from daifi_flows.ledger._bids import bid_commitment
from daifi_flows.ledger._lease import (
    OfferRecord,
    PoolRecord,
    lease_fee_wei,
    offer_key,
)
from daifi_flows.ledger._params import FeeParams
from daifi_flows.ledger._records import ZERO_ADDRESS
from daifi_flows.ledger._tx.lease import ACTIONS, MAX_ACTIONS, action_of, read_action

WORK = 10**12
"""Floating-point operations that NODE has shown: one teraFLOP, 10^6 megaFLOP."""
RATE = 3 * DAI


class LeaseBench(TokenBench):
    """OTHER lends 100 DAi; NODE offers a teraFLOP at 3 DAi."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)  # pyright: ignore
        self.do(t.PoolDeposit, OTHER, amount_wei=100 * DAI)
        self.mint(1000, flops=WORK)
        self.offer()

    def offer(self, **changes: object) -> None:
        """A task takes a quarter of it at least."""
        fields = {"mflop": WORK // 10**6, "task_mflop": WORK // 10**6 // 4, "tflop_wei": RATE}
        self.do(t.OfferCapacity, NODE, **(fields | {"until_ms": self.now + 10**6} | changes))

    def lease(self, sender: Account, *actions: bytes, **fields: object) -> t.Transaction:
        none = {"credit_wei": 0, "node": ZERO_ADDRESS, "mflop": 0, "price_wei": 0}
        return self.make(t.Lease, sender, **(none | fields), actions=actions)

    @property
    def pool(self) -> PoolRecord:
        return self.state.find(PoolRecord, PoolRecord.prefix) or PoolRecord()


def _work(
    number: int, price: int, node: Account = NODE, buyer: Account = BUYER
) -> tuple[bytes, bytes]:
    """Actions that open a task and give it to a node."""
    spec = make_spec(number, buyer=buyer.address)
    fields = {"task_id": spec.task_id, "attempt": 0, "node": node.address, "price_wei": price}
    return action(t.Open, buyer, spec=spec), action(t.Assign, buyer, **fields)


# Credit


def test_credit_is_lent_used_and_repaid_with_a_fee() -> None:
    """A flip: buy with borrowed money, sell on to nobody's loss, repay."""
    bench = LeaseBench()
    token = bench.mint(0)
    bench.do(t.ListToken, BUYER, token_id=token, price_wei=100 * DAI)
    bench.do(t.Transfer, STRANGER, to=OTHER.address, amount_wei=bench.balance(STRANGER) - 2 * DAI)
    before, pool = bench.balance(BUYER), bench.pool.cash_wei
    buy = action(t.Buy, STRANGER, token_id=token, seller=BUYER.address, price_wei=100 * DAI)
    with pytest.raises(InsufficientFunds, match="none of them happened"):
        bench.run(bench.lease(STRANGER, buy, credit_wei=99 * DAI))
    assert bench.owner(token) == BUYER.address
    # Repaid from what it sells in the same breath: a token of its own for more than it borrowed.
    bench.do(t.Transfer, BUYER, to=STRANGER.address, amount_wei=100 * DAI)
    receipt = bench.run(bench.lease(STRANGER, buy, credit_wei=99 * DAI))
    assert bench.owner(token) == STRANGER.address
    assert bench.balance(BUYER) == before - 100 * DAI + 99 * DAI  # 1% of the sale to the treasury
    fee = lease_fee_wei(99 * DAI, 900)
    treasury = fee * 50_000 // PPM
    assert bench.pool.cash_wei == pool + fee - treasury
    assert bench.balance(STRANGER) == 2 * DAI - fee
    assert [p.reason for p in receipt.payments][-1] == "treasury"


def test_the_receipt_binds_what_every_action_did() -> None:
    bench = LeaseBench()
    actions = (send_money(BUYER, STRANGER, 5), send_money(BUYER, NODE, 6))
    receipt = bench.run(bench.lease(BUYER, *actions, credit_wei=DAI))
    inner = []
    for data, (to, amount) in zip(actions, ((STRANGER, 5), (NODE, 6)), strict=True):
        payment = {"to": to.address, "amount_wei": amount, "reason": "transfer"}
        leaf = {"tx": keccak256(data), "kind": "transfer", "sender": BUYER.address}
        inner.append(TxReceipt.model_validate(leaf | {"payments": (payment,)}))
    assert receipt.content == tagged_hash("daifi/lease/1", [leaf.plain() for leaf in inner])
    assert receipt.payments[:2] == (*inner[0].payments, *inner[1].payments)


def test_all_the_pool_can_be_borrowed_and_is_back_afterwards() -> None:
    bench = LeaseBench()
    pool = bench.pool.cash_wei
    bench.run(bench.lease(BUYER, send_money(BUYER, BUYER, 1), credit_wei=pool))
    assert bench.pool.cash_wei > pool


@given(amount=st.integers(min_value=1, max_value=2**128), fee=st.integers(1, PPM // 10))
def test_borrowing_is_never_free(amount: int, fee: int) -> None:
    due = lease_fee_wei(amount, fee)
    assert 0 <= due * PPM - amount * fee < PPM and due > 0


# Capacity


def test_capacity_is_leased_for_tasks_that_carry_its_price() -> None:
    bench = LeaseBench()
    before, node = bench.balance(BUYER), bench.balance(NODE)
    half = WORK // 10**6 // 2
    price = RATE // 2
    # Two tasks share it; each pays less than the node's flat ask of 1 DAi.
    actions = (*_work(1, price // 2), *_work(2, price - price // 2))
    assert price // 2 < DAI
    fields = {"node": NODE.address, "mflop": half, "price_wei": price}
    receipt = bench.run(bench.lease(BUYER, *actions, **fields))
    advance = price // 100
    assert receipt.node == NODE.address
    assert bench.balance(NODE) == node + advance
    assert bench.balance(BUYER) == before - 10 * DAI - advance
    for number in (1, 2):
        task = bench.state.task(make_spec(number).task_id)
        assert task.state is TaskState.ASSIGNED and task.node == NODE.address
    offer = bench.state.find(OfferRecord, offer_key(NODE.address))
    assert offer.mflop == WORK // 10**6 - half
    # The rest of it goes too, and then the offer is gone.
    bench.run(bench.lease(BUYER, *_work(3, price), **fields))
    assert bench.state.find(OfferRecord, offer_key(NODE.address)) is None


def test_every_task_pays_for_the_least_it_takes() -> None:
    bench = LeaseBench()
    actions = [a for number in range(1, 5) for a in _work(number, RATE // 4)]
    fields = {"node": NODE.address, "mflop": WORK // 10**6, "price_wei": RATE}
    bench.run(bench.lease(BUYER, *actions, **fields))
    given = [bench.state.task(make_spec(number).task_id) for number in range(1, 5)]
    assert {task.node for task in given} == {NODE.address}
    # What is left for less than one task is on offer no more.
    bench.offer()
    quarter = WORK // 10**6 // 4
    almost = 3 * quarter + 1
    cost = OfferRecord(
        node=NODE.address, mflop=1, task_mflop=1, tflop_wei=RATE, until_ms=1
    ).cost_wei(almost)
    bench.run(
        bench.lease(BUYER, *_work(5, cost), **(fields | {"mflop": almost, "price_wei": cost}))
    )
    assert bench.state.find(OfferRecord, offer_key(NODE.address)) is None


def test_a_task_that_the_node_bid_for_carries_nothing_of_a_lease() -> None:
    bench = LeaseBench()
    spec = make_spec(1)
    bench.do(t.Open, BUYER, spec=spec, bid_ms=1_000, reveal_ms=1_000)
    bid = {"task_id": spec.task_id, "attempt": 0}
    terms = {"price_wei": RATE, "eta_ms": 1_000, "salt": bytes(32)}
    sealed = bid_commitment(
        bench.machine.ledger_id, spec.task_id, attempt=0, node=NODE.address, **terms
    )
    bench.do(t.Bid, NODE, **bid, commitment=sealed)
    bench.now += 1_000
    bench.do(t.RevealBid, NODE, **bid, **terms)
    assign = action(t.Assign, BUYER, **bid, node=NODE.address, price_wei=RATE)
    fields = {"node": NODE.address, "mflop": WORK // 10**6, "price_wei": RATE}
    with pytest.raises(TransactionRefused, match="pay 0 wei"):
        bench.run(bench.lease(BUYER, assign, **fields))
    bench.run(bench.lease(BUYER, assign, *_work(2, RATE), **fields))


def test_leased_tasks_settle_like_any_other() -> None:
    bench = LeaseBench()
    fields = {"node": NODE.address, "mflop": WORK // 10**6, "price_wei": RATE}
    bench.run(bench.lease(BUYER, *_work(1, RATE), **fields))
    spec = make_spec(1)
    commit = {"task_id": spec.task_id, "attempt": 0, "proof_cid": PROOF_CID}
    bench.do(t.Commit, NODE, **commit, header=make_header(spec))
    finding = attest(spec, ledger_id=bench.machine.ledger_id)
    bench.do(t.Settle, BUYER, attestation=finding, metadata=bytes(32))
    token = bench.state.token(token_id_of(spec.task_id))
    assert token is not None and token.origin.price_wei == RATE


def test_capacity_and_credit_in_one_lease() -> None:
    bench = LeaseBench()
    fields = {"node": NODE.address, "mflop": WORK // 10**6, "price_wei": RATE}
    bench.run(bench.lease(BUYER, *_work(1, RATE), **fields, credit_wei=10 * DAI))
    assert bench.state.task(make_spec(1).task_id).price_wei == RATE


def test_an_offer_is_no_more_than_verified_work_and_can_be_taken_back() -> None:
    bench = LeaseBench()
    offer = {"task_mflop": 1, "tflop_wei": 1, "until_ms": bench.now + 1}
    with pytest.raises(TransactionRefused, match="verified work"):
        bench.do(t.OfferCapacity, NODE, mflop=WORK // 10**6 + 1, **offer)
    with pytest.raises(TransactionRefused, match="verified work"):
        bench.do(t.OfferCapacity, OTHER, mflop=1, **offer)  # it has done none
    bench.do(t.OfferCapacity, NODE, mflop=1, **offer)
    assert bench.state.find(OfferRecord, offer_key(NODE.address)).mflop == 1
    bench.do(t.EndOffer, NODE)
    assert bench.state.find(OfferRecord, offer_key(NODE.address)) is None


# Attacks

Attack = Callable[[LeaseBench], t.Transaction]


def _credit(*actions: bytes, sender: Account = BUYER, credit: int = DAI) -> Attack:
    return lambda bench: bench.lease(sender, *actions, credit_wei=credit)


def _capacity(*actions: bytes, sender: Account = BUYER, **changes: object) -> Attack:
    fields = {"node": NODE.address, "mflop": WORK // 10**6, "price_wei": RATE} | changes
    return lambda bench: bench.lease(sender, *actions, **fields)


def _poor(*actions: bytes, credit: int) -> Attack:
    """The stranger keeps nothing but 1 wei."""

    def attack(bench: LeaseBench) -> t.Transaction:
        rest = bench.balance(STRANGER) - 1
        bench.do(t.Transfer, STRANGER, to=OTHER.address, amount_wei=rest)
        return bench.lease(STRANGER, *actions, credit_wei=credit)

    return attack


def _raw(**value: object) -> bytes:
    return canonical(value)


_PAY_ONESELF = send_money(BUYER, BUYER, 1)
_WORD = DAI.to_bytes(32, "big")
_FOREIGN = {"kind": "transfer", "to": STRANGER.address, "amount_wei": _WORD}
_ASSIGN_AND_CANCEL = (
    *_work(1, RATE),
    action(t.Cancel, BUYER, task_id=make_spec(1).task_id),
)


def _inner(kind: str, **fields: object) -> bytes:
    return canonical({"kind": kind, **fields})


def _nested(bench: LeaseBench) -> t.Transaction:
    return bench.lease(
        BUYER, action_of(bench.lease(BUYER, _PAY_ONESELF, credit_wei=1)), credit_wei=1
    )


def _all_but_last(bench: LeaseBench) -> t.Transaction:
    actions = [send_money(BUYER, NODE, 1)] * 15
    return bench.lease(BUYER, *actions, send_money(BUYER, NODE, 10**6 * DAI), credit_wei=DAI)


def _sell_the_same_twice(bench: LeaseBench) -> t.Transaction:
    token = bench.mint(0)
    fields = {"token_id": token, "owner": BUYER.address}
    moves = [action(t.TransferToken, BUYER, **fields, to=a.address) for a in (NODE, OTHER)]
    return bench.lease(BUYER, *moves, credit_wei=1)


def _after_the_offer(bench: LeaseBench) -> t.Transaction:
    bench.now += 10**6 + 1
    return _capacity(*_work(1, RATE))(bench)


def _of_a_retired_node(bench: LeaseBench) -> t.Transaction:
    bench.do(t.Retire, NODE)
    return _capacity(*_work(1, RATE))(bench)


def _offer(bench: LeaseBench, node: Account = NODE, **changes: object) -> t.Transaction:
    fields = {"mflop": 1, "task_mflop": 1, "tflop_wei": 1, "until_ms": T0 + 10**9}
    return bench.make(t.OfferCapacity, node, **(fields | changes))


def _crumb(bench: LeaseBench) -> t.Transaction:
    """One megaFLOP is leased, and eight tasks are given for it."""
    first = _work(0, RATE // 10**6)
    rest = [action for number in range(1, 8) for action in _work(number, 0)]
    return _capacity(*first, *rest, mflop=1, price_wei=RATE // 10**6)(bench)


def _of_a_node_that_bids_only(bench: LeaseBench) -> t.Transaction:
    bench.do(t.Register, NODE, info=info_of(NODE).model_copy(update={"direct": 0}))
    return _capacity(*_work(1, RATE))(bench)


def _of_a_node_without_the_model(bench: LeaseBench) -> t.Transaction:
    bench.do(t.Register, NODE, info=info_of(NODE).model_copy(update={"models": (bytes(32),)}))
    return _capacity(*_work(1, RATE))(bench)


_QUARTER = {"mflop": WORK // 10**6 // 4, "price_wei": RATE // 4}
ATTACKS: list[tuple[str, str, Attack]] = [
    (
        "not repaying",
        "insufficient-funds",
        _poor(send_money(STRANGER, OTHER, DAI), credit=DAI),
    ),
    (
        "repaying without the fee",
        "insufficient-funds",
        _poor(send_money(STRANGER, STRANGER, 1), credit=DAI),
    ),
    ("borrowing more than there is", "bad-state", _credit(_PAY_ONESELF, credit=100 * DAI + 1)),
    ("borrowing nothing", "bad-field", _credit(_PAY_ONESELF, credit=0)),
    ("a lease within a lease", "bad-field", _nested),
    (
        "depositing what was borrowed",
        "bad-field",
        _credit(_inner("pool-deposit", amount_wei=_WORD, least_shares_wei=bytes(32))),
    ),
    (
        "withdrawing within a lease",
        "bad-field",
        _credit(_inner("pool-withdraw", shares_wei=_WORD, least_wei=bytes(32))),
    ),
    ("staking what was borrowed", "bad-field", _credit(_inner("stake", amount_wei=_WORD))),
    ("an action of another sender", "bad-field", _credit(_raw(**_FOREIGN, sender=NODE.address))),
    ("an action naming its sender", "bad-field", _credit(_raw(**_FOREIGN, sender=BUYER.address))),
    ("an action with a nonce", "bad-field", _credit(_raw(**_FOREIGN, nonce=5))),
    ("an action with a signature", "bad-field", _credit(_raw(**_FOREIGN, signature=bytes(65)))),
    ("an action with a request", "bad-field", _credit(_raw(**_FOREIGN, request=bytes(32)))),
    ("an action of unknown kind", "bad-field", _credit(_raw(kind="mint"))),
    ("an action without a kind", "bad-field", _credit(canonical({"to": NODE.address}))),
    ("an action that is no map", "bad-field", _credit(canonical([1]))),
    ("an action that is no DAG-CBOR", "bad-field", _credit(b"\xff")),
    (
        "moving another's token",
        "unknown",
        _credit(
            action(
                t.TransferToken,
                BUYER,
                token_id=bytes(32),
                owner=NODE.address,
                to=BUYER.address,
            )
        ),
    ),
    ("one token to two", "bad-role", _sell_the_same_twice),
    ("the last of 16 actions refused", "insufficient-funds", _all_but_last),
    ("leasing one's own capacity", "bad-role", _capacity(*_work(1, RATE, buyer=NODE), sender=NODE)),
    ("capacity nobody offers", "unknown", _capacity(*_work(1, RATE), node=OTHER.address)),
    ("more capacity than is left", "bad-state", _capacity(*_work(1, RATE), mflop=WORK)),
    ("paying less for capacity", "bad-state", _capacity(*_work(1, RATE), price_wei=RATE - 1)),
    ("paying more for capacity", "bad-state", _capacity(*_work(1, RATE), price_wei=RATE + 1)),
    ("capacity of nobody", "bad-field", _capacity(*_work(1, RATE), node=ZERO_ADDRESS)),
    ("a node and no capacity", "bad-field", _capacity(*_work(1, RATE), mflop=0)),
    (
        "a price and no capacity",
        "bad-field",
        lambda b: b.lease(BUYER, _PAY_ONESELF, credit_wei=1, price_wei=1),
    ),
    ("capacity without tasks", "bad-state", _capacity(_PAY_ONESELF)),
    ("capacity for too cheap tasks", "bad-state", _capacity(*_work(1, RATE - 1))),
    ("capacity for another node's tasks", "bad-state", _capacity(*_work(1, RATE, OTHER))),
    ("capacity for cancelled tasks", "bad-state", _capacity(*_ASSIGN_AND_CANCEL)),
    ("a crumb of capacity for many tasks", "bad-state", _crumb),
    (
        "one task's capacity for two",
        "bad-state",
        _capacity(*_work(1, RATE // 4), *_work(2, RATE // 4), **_QUARTER),
    ),
    (
        "one task that pays for another",
        "bad-state",
        _capacity(*_work(1, RATE), *_work(2, RATE // 4 - 1)),
    ),
    ("capacity of a node that only bids", "bad-role", _of_a_node_that_bids_only),
    ("capacity for another model", "bad-role", _of_a_node_without_the_model),
    ("capacity of an offer that is over", "expired", _after_the_offer),
    ("capacity of a retired node", "unknown", _of_a_retired_node),
    ("under the ask without a lease", "bad-field", _credit(*_work(1, DAI - 1))),
    (
        "depositing nothing",
        "bad-field",
        lambda b: b.make(t.PoolDeposit, BUYER, amount_wei=0),
    ),
    (
        "depositing below one's limit",
        "bad-state",
        lambda b: b.make(t.PoolDeposit, BUYER, amount_wei=DAI, least_shares_wei=DAI + 1),
    ),
    (
        "another's shares",
        "bad-field",
        lambda b: b.make(t.PoolWithdraw, BUYER, shares_wei=1),
    ),
    (
        "withdrawing more than one has",
        "bad-field",
        lambda b: b.make(t.PoolWithdraw, OTHER, shares_wei=100 * DAI + 1),
    ),
    (
        "withdrawing below one's limit",
        "bad-state",
        lambda b: b.make(t.PoolWithdraw, OTHER, shares_wei=DAI, least_wei=DAI + 1),
    ),
    (
        "withdrawing nothing",
        "bad-state",
        lambda b: b.make(t.PoolWithdraw, OTHER, shares_wei=0),
    ),
    (
        "offering without being a node",
        "unknown",
        lambda b: _offer(b, BUYER),
    ),
    (
        "an offer that is over",
        "expired",
        lambda b: _offer(b, until_ms=b.now),
    ),
    (
        "offering nothing",
        "bad-field",
        lambda b: _offer(b, mflop=0),
    ),
    ("tasks that take nothing", "bad-field", lambda b: _offer(b, task_mflop=0)),
    ("tasks that take more than is offered", "bad-field", lambda b: _offer(b, task_mflop=2)),
    ("ending no offer", "unknown", lambda b: b.make(t.EndOffer, OTHER)),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in ATTACKS]
)
def test_attacks_are_refused_and_change_nothing(code: str, attack: Attack) -> None:
    bench = LeaseBench()
    tx = attack(bench)
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as refused:
        bench.run(tx)
    assert refused.value.details["code"] == code
    assert snapshot(bench.state) == before


def test_an_action_is_its_kind_and_what_its_kind_adds() -> None:
    for kind in ACTIONS.values():
        tx = t.example(kind)
        data = action_of(tx)
        read = read_action(data, NODE.address)
        assert type(read) is kind and read.sender == NODE.address
        assert read.intent() == tx.intent() and action_of(read) == data


def test_actions_are_bounded_in_number_and_size() -> None:
    none = {"sender": BUYER.address, "nonce": 0, "credit_wei": 1, "node": ZERO_ADDRESS}
    none |= {"mflop": 0, "price_wei": 0}
    t.Lease.model_validate(none | {"actions": (b"",) * MAX_ACTIONS})
    for actions, match in (
        ((b"",) * (MAX_ACTIONS + 1), "at most 16"),
        ((), "at least 1"),
        ((bytes(20 * 1024 + 1),), "at most 20480"),
    ):
        with pytest.raises(ValueError, match=match):
            t.Lease.model_validate(none | {"actions": actions})


def test_fees_are_paid_on_the_lease_and_come_back_with_it() -> None:
    bench = LeaseBench(genesis=make_genesis(params=Params(fees=FREE)))
    params = Params(fees=FeeParams(fee_per_byte_wei=10**9))
    record = bench.state.entries[b"p"]
    bench.state.entries[b"p"] = record.model_copy(update={"params": params})
    tx = bench.lease(BUYER, _PAY_ONESELF, credit_wei=DAI)
    before = bench.balance(BUYER)
    receipt = bench.run(tx)
    assert receipt.fee_wei == len(tx.encode()) * 10**9
    assert bench.balance(BUYER) == before - receipt.fee_wei - lease_fee_wei(DAI, 900)

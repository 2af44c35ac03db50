"""What the machine does with every transaction: nonce, expiry, fee, supply."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_bench import META, Bench, snapshot
from ledger_kit import BUYER, DAI, NODE, STRANGER, TREASURY, make_genesis

from daifi_flows.encoding import keccak256
from daifi_flows.errors import InsufficientFunds, LedgerError, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Params
from daifi_flows.ledger._machine import BlockEnv
from daifi_flows.ledger._params import FeeParams
from daifi_flows.ledger._rules import RULES
from daifi_flows.ledger._state import account_key

FEE = 10**9


def paying(fee_per_byte_wei: int = FEE) -> Bench:
    """A bench whose transactions cost something."""
    fees = FeeParams(fee_per_byte_wei=fee_per_byte_wei)
    return Bench(make_genesis(params=Params(fees=fees)))


def refused(bench: Bench, tx: t.Transaction) -> str:
    """The code of the refusal, which changed nothing."""
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as caught:
        bench.run(tx)
    assert snapshot(bench.state) == before
    return caught.value.details["code"]


def a_transfer(bench: Bench, sender: Account = BUYER, **fields: object) -> t.Transaction:
    return bench.make(t.Transfer, sender, **({"to": NODE.address, "amount_wei": 1} | fields))


def test_sending_money_to_oneself_changes_nothing() -> None:
    bench = Bench()
    before = bench.balance(BUYER)
    bench.do(t.Transfer, BUYER, to=BUYER.address, amount_wei=before)
    assert bench.balance(BUYER) == before


def test_a_transaction_cannot_be_replayed() -> None:
    bench = Bench()
    tx = a_transfer(bench)
    bench.run(tx)
    assert refused(bench, tx) == "bad-nonce"


# Expiry


@pytest.mark.parametrize("late_ms", [-1, 0, 1])
def test_a_transaction_is_refused_after_its_time(late_ms: int) -> None:
    bench = Bench()
    tx = a_transfer(bench, valid_until_ms=bench.now - late_ms)
    if late_ms > 0:
        assert refused(bench, tx) == "expired"
    else:
        bench.run(tx)


def test_a_transaction_without_a_time_is_always_in_time() -> None:
    bench = Bench()
    tx = a_transfer(bench, valid_until_ms=0)
    bench.now = 2**62
    assert bench.run(tx).kind == "transfer"


# Fees


@pytest.mark.parametrize("amount", [1, 7 * DAI])
def test_every_byte_is_paid_to_the_treasury(amount: int) -> None:
    bench = paying()
    tx = a_transfer(bench, amount_wei=amount)
    before = bench.balance(BUYER)
    receipt = bench.run(tx)
    fee = FEE * len(tx.encode())
    assert receipt.fee_wei == fee > 100 * FEE
    assert bench.balance(BUYER) == before - amount - fee
    assert bench.state.supply().treasury_wei == fee
    assert TREASURY.address not in {payment.to for payment in receipt.payments}


def test_the_length_that_a_caller_knows_is_the_length_that_counts() -> None:
    one, two = paying(), paying()
    tx = a_transfer(one)
    receipts = [one.run(tx)]
    receipts.append(two.machine.execute(two.state, tx, BlockEnv(two.now, 1), size=len(tx.encode())))
    assert receipts[0] == receipts[1] and snapshot(one.state) == snapshot(two.state)


@pytest.mark.parametrize(("over", "code"), [(0, None), (1, "fee-too-high")])
def test_nobody_pays_more_than_they_signed_for(over: int, code: str | None) -> None:
    bench = paying()
    fee = FEE * len(a_transfer(bench).encode())
    tx = a_transfer(bench, max_fee_wei=fee - over)
    if code is None:
        assert bench.run(tx).fee_wei == fee
    else:
        assert refused(bench, tx) == code


def test_who_has_nothing_left_for_the_fee_is_refused() -> None:
    bench = paying()
    fee = FEE * len(a_transfer(bench).encode())
    everything = bench.balance(BUYER)
    assert refused(bench, a_transfer(bench, amount_wei=everything)) == "insufficient-funds"
    assert refused(bench, a_transfer(bench, sender=STRANGER)) == "insufficient-funds"
    bench.run(a_transfer(bench, amount_wei=everything - fee))
    assert bench.balance(BUYER) == 0


def test_a_refused_transaction_costs_nothing() -> None:
    bench = paying()
    assert refused(bench, a_transfer(bench, amount_wei=0)) == "bad-field"
    with pytest.raises(InsufficientFunds):
        bench.run(a_transfer(bench, amount_wei=2_000 * DAI))


def test_a_fee_has_a_hard_bound() -> None:
    with pytest.raises(ValueError, match="1000000000000"):
        FeeParams(fee_per_byte_wei=10**12 + 1)


# Supply


def gift(ctx, tx):  # pyright: ignore
    """Money out of nothing."""
    return {"payments": ctx.credit(tx.to, 1, "gift")}


def overdraft(ctx, tx):  # pyright: ignore
    """Conserved, but one account is below zero."""
    payer = ctx.layer.account(STRANGER.address)
    ctx.layer.put(payer.model_copy(update={"balance_wei": -1}))
    return {"payments": ctx.credit(tx.to, 1, "loan")}


def burial(ctx, tx):  # pyright: ignore
    """A record that holds money leaves the state, and its money with it."""
    ctx.layer.remove(account_key(tx.to))
    return {}


@pytest.mark.parametrize(
    ("rule", "why"), [(gift, "conserve"), (overdraft, "overdraw"), (burial, "conserve")]
)
def test_a_rule_that_makes_or_loses_money_is_stopped_before_anything_is_kept(
    monkeypatch: pytest.MonkeyPatch, rule, why: str
) -> None:
    bench = Bench()
    tx = a_transfer(bench)
    monkeypatch.setitem(RULES, type(tx), rule)
    before = snapshot(bench.state)
    with pytest.raises(LedgerError, match=why):
        bench.run(tx)
    assert snapshot(bench.state) == before


@given(moves=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10 * DAI)), max_size=8))
def test_supply_is_counted_as_it_moves(moves: list[tuple[int, int]]) -> None:
    bench = paying()
    for kind, amount in moves:
        tx = (
            a_transfer(bench, amount_wei=amount, request=META),
            bench.make(t.Stake, NODE, amount_wei=amount),
            a_transfer(bench, sender=NODE, to=BUYER.address, amount_wei=amount),
        )[kind]
        try:
            bench.run(tx)  # counts all money again after each
        except TransactionRefused:
            assert amount == 0 or bench.balance(NODE) < amount + DAI
    assert bench.state.supply().issued_wei == 1_400 * DAI


def test_the_same_history_gives_the_same_receipts() -> None:
    digests = set()
    for _ in range(2):
        bench = paying()
        receipts = [bench.run(a_transfer(bench)), bench.run(a_transfer(bench, sender=NODE))]
        digests.add(keccak256(b"".join(receipt.canonical() for receipt in receipts)))
    assert len(digests) == 1

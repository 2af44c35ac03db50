"""The lending pool: shares are backed, never lose value, and cannot be inflated for a profit."""

from __future__ import annotations

import ledger_kinds as t
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ledger_bench import snapshot
from ledger_kit import (
    BUYER,
    DAI,
    OTHER,
    STRANGER,
)
from token_bench import TokenBench, send_money

from daifi_flows.cnft import PPM
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger._lease import (
    VIRTUAL_WEI,
    PoolRecord,
    ProviderRecord,
    lease_fee_wei,
    provider_key,
)
from daifi_flows.ledger._records import ZERO_ADDRESS


def test_inflating_a_share_costs_more_than_it_takes() -> None:
    """The first depositor buys one share, lifts its price by paying fees, and waits."""
    bench = TokenBench()
    bench.do(t.PoolDeposit, STRANGER, amount_wei=1)
    paid = 0
    for _ in range(30):
        cash = bench.state.find(PoolRecord, PoolRecord.prefix).cash_wei
        tx = bench.make(
            t.Lease,
            STRANGER,
            credit_wei=cash,
            node=ZERO_ADDRESS,
            mflop=0,
            price_wei=0,
            actions=(send_money(STRANGER, STRANGER, 1),),
        )
        bench.run(tx)
        paid += lease_fee_wei(cash, 900)
    bench.do(t.PoolDeposit, BUYER, amount_wei=DAI)
    shares = bench.state.find(ProviderRecord, provider_key(BUYER.address)).shares_wei
    before = bench.balance(BUYER)
    bench.do(t.PoolWithdraw, BUYER, shares_wei=shares)
    assert DAI - (bench.balance(BUYER) - before) <= 1
    assert paid >= 30


@given(
    donated=st.integers(min_value=0, max_value=10**24),
    first=st.integers(min_value=1, max_value=10**24),
    victim=st.integers(min_value=1, max_value=10**24),
)
def test_whoever_lifts_the_price_of_shares_never_gains(
    donated: int, first: int, victim: int
) -> None:
    """Whatever fees the first depositor pays in, it never gets back more than it put in."""
    pool = PoolRecord()
    mine = pool.shares_for_wei(first)
    pool = PoolRecord(cash_wei=first + donated, shares_wei=mine)
    theirs = pool.shares_for_wei(victim)
    if theirs == 0:
        return  # refused
    pool = PoolRecord(cash_wei=pool.cash_wei + victim, shares_wei=mine + theirs)
    assert pool.worth_wei(mine) <= first + donated
    # What rounding takes from the victim is under the price of one share.
    loss = victim - pool.worth_wei(theirs)
    assert loss * VIRTUAL_WEI <= pool.cash_wei + VIRTUAL_WEI + VIRTUAL_WEI


PEOPLE = [BUYER, OTHER, STRANGER]
people = st.sampled_from(PEOPLE)
amounts = st.one_of(
    st.integers(min_value=0, max_value=10),
    st.sampled_from([999_999, 10**6, DAI - 1, DAI, 7 * DAI]),
)


class Pool(RuleBasedStateMachine):
    """Deposits, withdrawals and loans, against plain integers."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = TokenBench()
        self.cash = self.total = 0
        self.shares = {who.address: 0 for who in PEOPLE}
        self.price = (1, 1)

    def attempt(self, allowed: bool, kind: type[t.Transaction], who: Account, **fields) -> bool:
        before = snapshot(self.bench.state)
        try:
            self.bench.do(kind, who, **fields)
        except TransactionRefused:
            assert not allowed
            assert snapshot(self.bench.state) == before
        else:
            assert allowed
        return allowed

    @rule(who=people, amount=amounts)
    def deposit(self, who: Account, amount: int) -> None:
        bought = amount * (self.total + VIRTUAL_WEI) // (self.cash + VIRTUAL_WEI)
        allowed = bought > 0 and amount <= self.bench.balance(who)
        if self.attempt(allowed, t.PoolDeposit, who, amount_wei=amount):
            self.cash += amount
            self.total += bought
            self.shares[who.address] += bought

    @rule(who=people, amount=amounts, everything=st.booleans())
    def withdraw(self, who: Account, amount: int, everything: bool) -> None:
        held = self.shares[who.address]
        amount = held if everything else amount
        worth = amount * (self.cash + VIRTUAL_WEI) // (self.total + VIRTUAL_WEI)
        before = self.bench.balance(who)
        if self.attempt(amount <= held and worth > 0, t.PoolWithdraw, who, shares_wei=amount):
            assert self.bench.balance(who) == before + worth
            self.cash -= worth
            self.total -= amount
            self.shares[who.address] -= amount

    @rule(who=people, amount=amounts, to=people, sent=amounts)
    def borrow(self, who: Account, amount: int, to: Account, sent: int) -> None:
        fee = -(-amount * 900 // PPM)
        after = self.bench.balance(who) + amount - (sent if to is not who else 0)
        allowed = (
            0 < amount <= self.cash
            and 0 < sent <= self.bench.balance(who) + amount
            and after >= amount + fee
        )
        fields = {"credit_wei": amount, "node": ZERO_ADDRESS, "mflop": 0, "price_wei": 0}
        actions = (send_money(who, to, sent),)
        if self.attempt(allowed, t.Lease, who, **fields, actions=actions):
            self.cash += fee - fee * 50_000 // PPM

    @invariant()
    def shares_are_backed_and_never_lose_value(self) -> None:
        state = self.bench.state
        pool = state.find(PoolRecord, PoolRecord.prefix) or PoolRecord()
        assert (pool.cash_wei, pool.shares_wei) == (self.cash, self.total)
        for address, held in self.shares.items():
            record = state.find(ProviderRecord, provider_key(address))
            assert (record.shares_wei if record else 0) == held
            assert record is None or held > 0
        assert sum(self.shares.values()) == self.total
        owed = sum(pool.worth_wei(held) for held in self.shares.values())
        assert owed <= self.cash
        price = (self.cash + VIRTUAL_WEI, self.total + VIRTUAL_WEI)
        assert price[0] * self.price[1] >= self.price[0] * price[1], "a share lost value"
        self.price = price


Pool.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPool = Pool.TestCase

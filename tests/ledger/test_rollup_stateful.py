"""Random operators, claimers and accusers against a slow, obvious model of batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import ledger_kinds as t
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ledger_kit import BUYER, DAI, NODE, OTHER, SEAT_ACCOUNTS, STRANGER
from test_rollup import CHALLENGE, CLAIM, GENESIS, NOTICE, Rollups, attested, leaf

from daifi_flows.cnft import token_id_of
from daifi_flows.errors import TransactionRefused
from daifi_flows.ledger._records import ZERO_ADDRESS
from daifi_flows.ledger._rollups import ClaimedWord, RollupRecord
from daifi_flows.ledger._state import supply_of
from daifi_flows.rollup import Batch

TASKS = 5
OWNERLESS = {0, 1}
"""Tasks whose leaves mint no token."""
PEOPLE = [BUYER, NODE, OTHER, STRANGER, *SEAT_ACCOUNTS]


@dataclass
class Model:
    """One batch, as a person would keep it."""

    batch: Batch
    tasks: list[int]
    amounts: list[int]
    at: int
    held: int
    bond: int
    claimed: set[int] = field(default_factory=set)


class RollupMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bench = Rollups()
        self.batches: list[Model] = []
        self.tokens: dict[int, int] = {}
        """Task → when its token was minted."""
        self.balances = {each.address: self.bench.balance(each) for each in PEOPLE}
        self.outside = 0
        """Treasury and burned."""

    # What the model expects

    def attempt(self, tx: t.Transaction, code: str | None) -> None:
        if code is None:
            self.bench.run(tx)
            return
        with pytest.raises(TransactionRefused) as caught:
            self.bench.run(tx)
        assert caught.value.details["code"] == code

    def pick(self, data: st.DataObject) -> Model:
        return data.draw(st.sampled_from(self.batches))

    def age(self, model: Model) -> int:
        return self.bench.now - model.at

    # What happens

    @rule(
        tasks=st.lists(st.integers(0, TASKS - 1), min_size=1, max_size=3, unique=True),
        amount=st.one_of(st.integers(0, 9), st.integers(0, 10 * DAI)),
        extra=st.integers(0, DAI),
    )
    def submit(self, tasks: list[int], amount: int, extra: int) -> None:
        amounts = [amount + task for task in tasks]
        batch = Batch.of(
            leaf(task, amount_wei=price, **({"owner": ZERO_ADDRESS} if task in OWNERLESS else {}))
            for task, price in zip(tasks, amounts, strict=True)
        )
        total, by = sum(amounts), self.bench.now + 1
        bond = max(DAI, -(-total // 2)) + extra
        tx = self.bench.submission(
            batch, attestation=attested(batch, submit_by_ms=by), submit_by_ms=by, bond_wei=bond
        )
        if any(model.batch.root == batch.root for model in self.batches):
            self.attempt(tx, "duplicate")
            return
        if total + bond > self.balances[BUYER.address]:
            self.attempt(tx, "insufficient-funds")
            return
        self.attempt(tx, None)
        seat, treasury = total // 10 // 14, total // 20
        self.balances[BUYER.address] -= total + bond
        for account in SEAT_ACCOUNTS[:14]:
            self.balances[account.address] += seat
        self.outside += treasury
        held = total - 14 * seat - treasury
        self.batches.append(Model(batch, tasks, amounts, self.bench.now, held, bond))

    @rule(ms=st.sampled_from([1, NOTICE, NOTICE + 1]))
    def wait(self, ms: int) -> None:
        self.bench.now += ms

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), ms=st.sampled_from([CHALLENGE, CHALLENGE, CHALLENGE + CLAIM]))
    def wait_for_a_window_to_end(self, data: st.DataObject, ms: int) -> None:
        end = self.pick(data).at + ms - data.draw(st.integers(0, 1))
        self.bench.now = max(self.bench.now, end)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        model = self.pick(data)
        index = data.draw(st.integers(0, len(model.tasks) - 1))
        tx, task = self.bench.claim(model.batch, index), model.tasks[index]
        if self.age(model) < CHALLENGE:
            self.attempt(tx, "bad-state")
        elif self.age(model) >= CHALLENGE + CLAIM:
            self.attempt(tx, "expired")
        elif index in model.claimed or task in self.tokens:
            self.attempt(tx, "duplicate")
        else:
            self.attempt(tx, None)
            paid = model.amounts[index] - -(-model.amounts[index] * 15 // 100)
            self.balances[NODE.address] += paid
            model.held -= paid
            model.claimed.add(index)
            if task not in OWNERLESS:
                self.tokens[task] = self.bench.now

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), reporter=st.sampled_from([BUYER, STRANGER]))
    def accuse_as_duplicate(self, data: st.DataObject, reporter) -> None:
        model, other = self.pick(data), self.pick(data)
        index = data.draw(st.integers(0, len(model.tasks) - 1))
        other_index = data.draw(st.integers(0, len(other.tasks) - 1))
        tx = self.bench.make(
            t.ProveDuplicate,
            reporter,
            batch=model.batch.root,
            proof=model.batch.proof(index),
            earlier=other.batch.root,
            earlier_proof=other.batch.proof(other_index),
        )
        if self.age(model) >= CHALLENGE:
            self.attempt(tx, "expired")
        elif self.batches.index(other) >= self.batches.index(model):
            self.attempt(tx, "bad-field")
        elif model.tasks[index] != other.tasks[other_index] or other.at + NOTICE >= model.at:
            self.attempt(tx, "bad-proof")
        else:
            self.attempt(tx, None)
            self.reverted(model, reporter)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), reporter=st.sampled_from([BUYER, STRANGER]))
    def accuse_as_settled(self, data: st.DataObject, reporter) -> None:
        model = self.pick(data)
        index = data.draw(st.integers(0, len(model.tasks) - 1))
        tx = self.bench.make(
            t.ProveSettled, reporter, batch=model.batch.root, proof=model.batch.proof(index)
        )
        if self.age(model) >= CHALLENGE:
            self.attempt(tx, "expired")
        elif self.tokens.get(model.tasks[index], model.at) + NOTICE >= model.at:
            self.attempt(tx, "bad-proof")
        else:
            self.attempt(tx, None)
            self.reverted(model, reporter)

    def reverted(self, model: Model, reporter) -> None:
        slashed = model.bond // 2
        share = slashed // 10 if reporter is not BUYER else 0
        self.balances[reporter.address] += share
        self.outside += slashed - share
        self.balances[BUYER.address] += model.held + model.bond - slashed
        self.batches.remove(model)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def finalise(self, data: st.DataObject) -> None:
        model = self.pick(data)
        tx = self.bench.make(t.FinaliseBatch, STRANGER, batch=model.batch.root)
        if self.age(model) < CHALLENGE:
            self.attempt(tx, "bad-state")
        elif model.bond == 0:
            self.attempt(tx, "duplicate")
        else:
            self.attempt(tx, None)
            self.balances[BUYER.address] += model.bond
            model.bond = 0

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        model = self.pick(data)
        tx = self.bench.make(t.CloseBatch, STRANGER, batch=model.batch.root)
        if self.age(model) < CHALLENGE + CLAIM:
            self.attempt(tx, "bad-state")
        else:
            self.attempt(tx, None)
            self.balances[BUYER.address] += model.held + model.bond
            self.batches.remove(model)

    # What always holds

    @invariant()
    def money_is_where_the_model_says(self) -> None:
        state = self.bench.state
        assert {a: state.account(a).balance_wei for a in self.balances} == self.balances
        supply = supply_of(state)
        assert supply.escrows_wei == sum(model.held + model.bond for model in self.batches)
        assert supply.treasury_wei + supply.burned_wei == self.outside
        assert all(model.held >= 0 for model in self.batches)

    @invariant()
    def tokens_and_records_are_those_of_the_model(self) -> None:
        state = self.bench.state
        for task in range(TASKS):
            token = state.token(token_id_of(leaf(task).task_id))
            assert (None if token is None else token.minted_ms) == self.tokens.get(task)
        records = [each for _, each in state.items() if isinstance(each, RollupRecord)]
        assert {each.root for each in records} == {model.batch.root for model in self.batches}
        words = [each for _, each in state.items() if isinstance(each, ClaimedWord)]
        claimed = {(word.root, i) for word in words for i in range(3) if word.claimed(i)}
        assert claimed == {(model.batch.root, i) for model in self.batches for i in model.claimed}


TestRollups = RollupMachine.TestCase
TestRollups.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_the_model_is_of_the_same_ledger() -> None:
    params = GENESIS.params
    assert (params.fees.committee_ppm, params.fees.treasury_ppm) == (100_000, 50_000)
    assert (params.rollup.challenge_ms, params.rollup.claim_ms) == (CHALLENGE, CLAIM)
    assert params.rollup.notice_ms == NOTICE

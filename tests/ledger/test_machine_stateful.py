"""Random histories by honest and hostile actors, against a slow and obvious reference model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import ledger_kinds as t
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
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

from daifi_flows.cnft import PPM, Basis, Decision, Usage, token_id_of
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import AccountRecord, Params, TaskState
from daifi_flows.ledger._epochs import EpochRecord, epoch_key
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._state import Layer, supply_of
from daifi_flows.ledger._trie import Trie
from daifi_flows.review_rate import ReviewTerms

GENESIS = make_genesis(params=Params(fees=FREE, review=ReviewTerms(probation=1)))
"""One review is enough here to be trusted: histories are short."""
ACTORS = [BUYER, NODE, OTHER, STRANGER]
NODES = [NODE, OTHER]
actors = st.sampled_from(ACTORS)
nodes = st.sampled_from(NODES)
numbers = st.integers(min_value=0, max_value=3)
amounts = st.sampled_from([0, 1, 7, DAI, 60 * DAI, 300 * DAI, 2_000 * DAI])
prices = st.sampled_from([DAI - 1, DAI, 3 * DAI + 1, 5 * DAI, 5 * DAI + 1])
SLASH, REPORTER, BURN, COMMITTEE, TREASURY, ROYALTY = 25, 10, 40, 10, 5, 5  # percent
UNBONDING, CHALLENGE, HALF_LIFE = 7 * 24 * 60, 10, 30 * 24 * 3_600_000  # minutes, minutes, ms
HOUR = 3_600_000
BUSY = ("assigned", "committed")
SUPPLY, LAMBDA, TAU = 1_400 * DAI, Fraction(173_286_795, 10**9 * 365 * 24 * HOUR), 900_000_000
SAVING, MISS, AUDIT, FLOOR = 1, Fraction(3, 10), Fraction(1, 100), Fraction(2, 100)  # reviews
FLOPS = [0, 10**6 - 1, 3 * 10**12, 10**17]  # of tasks 0 to 3


def emission(epoch: int) -> int:
    """E₀·e^(−λt), rounded down, at the start less that at the end."""
    with localcontext() as context:
        context.prec = 80
        rate = Decimal(LAMBDA.numerator) / Decimal(LAMBDA.denominator)
        start, end = (int(SUPPLY * (-rate * (epoch + i) * HOUR).exp()) for i in (0, 1))
    return start - end


class Ledger(RuleBasedStateMachine):
    """``self.ref_*`` is the reference: plain dictionaries and whole percents."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(GENESIS)
        self.state = self.machine.genesis_state()
        self.now = T0
        self.log: list[tuple[bytes, int]] = []
        self.trie = Trie().update(self.state.encoded())
        self.balance = {a.address: 0 for a in [*ACTORS, *SEAT_ACCOUNTS]}
        self.balance |= {BUYER.address: 1000 * DAI, NODE.address: 200 * DAI}
        self.balance |= {OTHER.address: 200 * DAI}
        self.stake_of = {a.address: 0 for a in ACTORS}
        self.unbonding: dict[str, list[list[int]]] = {a.address: [] for a in ACTORS}
        self.locked: dict[str, list[list[int]]] = {a.address: [] for a in ACTORS}
        self.epochs: dict[int, dict] = {}
        self.evidence: dict[str, list[tuple[int, bool]]] = {a.address: [] for a in ACTORS}
        self.trusted: set[str] = set()
        self.service: list[list[tuple[int, bool]]] = [[] for _ in SEAT_ACCOUNTS]
        self.offers: set[str] = set()
        self.treasury = self.burned = 0
        self.issued = SUPPLY
        self.tasks: dict[int, dict] = {}
        self.settled: list[int] = []

    def send(self, allowed: bool, kind: type[t.Transaction], who: Account, **fields) -> bool:
        """Send, and check that the machine decides as the reference does."""
        nonce = self.state.account(who.address).nonce
        tx = kind.model_validate({"sender": who.address, "nonce": nonce} | fields)
        raw = tx.signed(who, GENESIS.ledger_id).encode()
        try:
            self.machine.execute(self.state, t.parse_transaction(raw), BlockEnv(self.now, 1))
        except TransactionRefused as error:
            assert not allowed, f"{kind.kind} should have passed: {error}"
        else:
            assert allowed, f"{kind.kind} should have been refused"
            self.log.append((raw, self.now))
        return allowed

    def task_in(self, number: int, *states: str) -> dict | None:
        task = self.tasks.get(number)
        return task if task is not None and task["state"] in states else None

    def spec(self, number: int):
        """Task 3 builds on the token of task 0."""
        parents = (token_id_of(make_spec(0).task_id),) if number == 3 else ()
        return make_spec(number, parents=parents, deadline_ms=T0 + 3_600_000)

    @rule(minutes=st.sampled_from([1, 1, 1, 10, 10, 30, 6 * 24 * 60]))
    def pass_time(self, minutes: int) -> None:
        self.now += minutes * 60_000
        for waiting in (self.unbonding, self.locked):
            for address, parts in waiting.items():
                self.balance[address] += sum(amount for due, amount in parts if due <= self.now)
                waiting[address] = [part for part in parts if part[0] > self.now]

    def wait(self, waiting: list[list[int]], minutes: int, amount: int) -> None:
        """Due at the next eighth of the waiting time, with what else is due then."""
        eighth = minutes * 60_000 // 8
        due = (self.now + 9 * eighth - 1) // eighth * eighth
        for part in waiting:
            if part[0] == due:
                part[1] += amount
                return
        waiting.append([due, amount])

    @rule(who=actors, to=actors, amount=amounts)
    def transfer(self, who: Account, to: Account, amount: int) -> None:
        allowed = 0 < amount <= self.balance[who.address]
        if self.send(allowed, t.Transfer, who, to=to.address, amount_wei=amount):
            self.balance[who.address] -= amount
            self.balance[to.address] += amount

    @rule(who=nodes, amount=amounts)
    def stake(self, who: Account, amount: int) -> None:
        if self.send(0 < amount <= self.balance[who.address], t.Stake, who, amount_wei=amount):
            self.balance[who.address] -= amount
            self.stake_of[who.address] += amount

    @rule(who=nodes, amount=amounts)
    def unstake(self, who: Account, amount: int) -> None:
        allowed = 0 < amount <= self.stake_of[who.address]
        if self.send(allowed, t.Unstake, who, amount_wei=amount):
            self.stake_of[who.address] -= amount
            self.wait(self.unbonding[who.address], UNBONDING, amount)

    @rule(who=actors, whose=actors)
    def withdraw(self, who: Account, whose: Account) -> None:
        record = self.state.account(whose.address)
        parts = (*record.unbonding, *record.locked)
        allowed = any(tranche.due_ms <= self.now for tranche in parts)
        if self.send(allowed, t.Withdraw, who, holder=whose.address):
            assert self.state.account(whose.address).balance_wei == self.balance[whose.address]

    @rule(who=nodes)
    def register(self, who: Account) -> None:
        self.send(True, t.Register, who, info=info_of(who))
        self.offers.add(who.address)

    @rule(who=nodes)
    def retire(self, who: Account) -> None:
        if self.send(who.address in self.offers, t.Retire, who):
            self.offers.remove(who.address)

    @rule(number=numbers, who=st.sampled_from([BUYER, BUYER, STRANGER]))
    def open(self, number: int, who: Account) -> None:
        spec = self.spec(number)
        allowed = (
            who is BUYER
            and number not in self.tasks
            and self.balance[BUYER.address] >= 5 * DAI
            and self.now < spec.deadline_ms
            and (number != 3 or 0 in self.settled)
        )
        if self.send(allowed, t.Open, who, spec=spec):
            self.balance[BUYER.address] -= 5 * DAI
            self.tasks[number] = {"state": "open", "attempt": 0, "barred": set()}

    @rule(number=numbers, node=nodes, price=prices, who=st.sampled_from([BUYER, BUYER, NODE]))
    def assign(self, number: int, node: Account, price: int, who: Account) -> None:
        task, spec = self.task_in(number, "open"), self.spec(number)
        allowed = (
            task is not None
            and who is BUYER
            and task["attempt"] < 3
            and node.address in self.offers - task["barred"]
            and self.stake_of[node.address] >= DAI
            and DAI <= price <= 5 * DAI
            and self.now < spec.deadline_ms
        )
        attempt = self.tasks.get(number, {"attempt": 0})["attempt"]
        fields = {"task_id": spec.task_id, "attempt": attempt, "node": node.address}
        if self.send(allowed, t.Assign, who, **fields, price_wei=price):
            assert task is not None
            task |= {"state": "assigned", "node": node, "price": price, "assigned": self.now}

    @rule(number=numbers, node=nodes, who=actors)
    def commit(self, number: int, node: Account, who: Account) -> None:
        task, spec = self.task_in(number, "assigned"), self.spec(number)
        first = task is not None
        task = task or self.task_in(number, "committed")
        allowed = (
            task is not None
            and task["node"] is node
            and who in (BUYER, node)
            and (self.now < spec.deadline_ms if first else who not in task["committers"])
        )
        fields = {
            "task_id": spec.task_id,
            "attempt": self.tasks.get(number, {"attempt": 0})["attempt"],
            "proof_cid": PROOF_CID,
            "header": make_header(spec, node, usage=Usage(flops=FLOPS[number])),
        }
        if self.send(allowed, t.Commit, who, **fields):
            assert task is not None
            if first:
                waited = self.now - task["assigned"]
                task |= {"state": "committed", "waited": waited, "committers": ()}
                self.check_rate(number, node, who)
            task["committers"] += (who,)

    def faded(self, judged: list[tuple[int, bool]]) -> tuple[float, float]:
        """What speaks for and against somebody."""
        good, bad = (
            sum(0.5 ** ((self.now - at) / HALF_LIFE) for at, fine in judged if fine is kind)
            for kind in (True, False)
        )
        return good, bad

    def check_rate(self, number: int, node: Account, who: Account) -> None:
        """Cheating once is found out often enough, whatever else the stake vouches for."""
        judged, price = self.evidence[node.address], self.tasks[number]["price"]
        rate = Fraction(self.state.task(self.spec(number).task_id).review_ppm, PPM)
        good, bad = self.faded(judged)
        rep = Fraction((good + 1) / (good + bad + 2))
        left = self.spec(number).deadline_ms - self.now
        if node.address not in self.trusted or who is not BUYER or left < 60_000:
            assert rate == 1
            return
        if good < 1 or rep < Fraction(6, 10):
            assert rate == 1 or abs(good - 1) < 1e-5 or abs(rep - Fraction(6, 10)) < 1e-5
            return
        engaged = [
            task["price"]
            for task in self.tasks.values()
            if task["state"] in BUSY and task["node"] is node
        ]
        reach_until = self.tasks[number]["assigned"] + UNBONDING * 60_000
        reach = self.stake_of[node.address] + sum(
            amount for due, amount in self.unbonding[node.address] if due > reach_until
        )
        slash = Fraction(reach * SLASH * price, 100 * sum(engaged))
        least = SAVING * price / ((1 - MISS) * (price + slash))
        wanted = ((4 - 2 * rep) * least - AUDIT) / (1 - AUDIT)
        expected = min(max(wanted, FLOOR), 1) if reach else Fraction(1)
        assert abs(rate - expected) < Fraction(20, PPM)

    def finding(
        self,
        number: int,
        node: Account,
        decision: Decision,
        signers: int,
        basis: Basis = Basis.REVIEWED,
    ):
        attempt = self.tasks.get(number, {"attempt": 0})["attempt"]
        return attest(
            self.spec(number),
            decision,
            ledger_id=GENESIS.ledger_id,
            basis=basis,
            confidence_ppm=0 if basis is Basis.WAIVED else 995_000,
            attempt=attempt,
            node=node.address,
            signers=range(signers),
        )

    @precondition(lambda self: self.tasks)
    @rule(
        number=numbers,
        node=nodes,
        who=actors,
        signers=st.sampled_from([13, 14, 21]),
        basis=st.sampled_from(Basis),
    )
    def settle(self, number: int, node: Account, who: Account, signers: int, basis: Basis) -> None:
        task = self.task_in(number, "committed")
        quorum = signers >= 14
        allowed = task is not None and task["node"] is node and quorum and who in (BUYER, node)
        if allowed and basis is Basis.WAIVED:
            allowed = self.state.task(self.spec(number).task_id).review_ppm < PPM
        finding = self.finding(number, node, Decision.ACCEPTED, signers, basis)
        if self.send(allowed, t.Settle, who, attestation=finding, metadata=bytes(32)):
            assert task is not None
            price, rest = task["price"], task["price"]
            for seat in SEAT_ACCOUNTS[:signers]:
                share = price * COMMITTEE // 100 // signers
                self.balance[seat.address] += share
                rest -= share
            if number == 3:
                self.balance[BUYER.address] += price * ROYALTY // 100
                rest -= price * ROYALTY // 100
            self.treasury += price * TREASURY // 100
            self.wait(self.locked[node.address], CHALLENGE, rest - price * TREASURY // 100)
            if basis is Basis.REVIEWED:
                self.evidence[node.address].append((self.now, True))
                self.trusted.add(node.address)
                self.serve(signers)
            epoch = self.epochs.setdefault((self.now - T0) // HOUR, {"open": True, "parts": {}})
            part = epoch["parts"].setdefault(node.address, {"mflop": 0, "waits": []})
            if basis is Basis.REVIEWED:
                part["mflop"] += FLOPS[number] // 10**6
            part["waits"].append(task["waited"])
            self.weigh(node)
            self.balance[BUYER.address] += 5 * DAI - price
            task["state"] = "settled"
            assert number not in self.settled, "settled twice"
            self.settled.append(number)

    def serve(self, signers: int) -> None:
        """A reviewed finding: those that signed it, and those that did not."""
        for seat, service in enumerate(self.service):
            service.append((self.now, seat < signers))

    @initialize(amount=st.sampled_from([0, 60 * DAI]))
    def begin(self, amount: int) -> None:
        for node in NODES:
            self.stake(node, amount)

    @precondition(lambda self: self.epochs)
    @rule(who=actors)
    def harvest(self, who: Account) -> None:
        """Later, somebody closes the first epoch and collects for everybody."""
        self.pass_time(max((T0 + HOUR - self.now) // 60_000 + CHALLENGE + 1, 1))
        self.close_epoch(who, 0)
        for node in NODES:
            self.withdraw(who, node)
            self.claim_reward(who, node, 0)

    @rule(number=numbers, node=nodes, amount=st.sampled_from([DAI, 60 * DAI]))
    def work(self, number: int, node: Account, amount: int) -> None:
        """A task from beginning to end: random steps alone seldom get that far."""
        self.register(node)
        self.stake(node, amount)
        self.open(number, BUYER)
        self.assign(number, node, 3 * DAI + 1, BUYER)
        self.commit(number, node, node)
        task = self.task_in(number, "committed")
        if task is not None:
            trusted = self.state.task(self.spec(number).task_id).review_ppm < PPM
            self.settle(number, node, BUYER, 14, Basis.WAIVED if trusted else Basis.REVIEWED)

    def weigh(self, node: Account) -> None:
        """The paper's weight of a node in this epoch, if it has done anything in it."""
        epoch = self.epochs.get((self.now - T0) // HOUR, {"parts": {}})
        if (part := epoch["parts"].get(node.address)) is None:
            return
        rep = Fraction(self.state.account(node.address).standing.reputation_ppm, 10**6)
        mean = Fraction(sum(part["waits"]), len(part["waits"]))
        sigma = sum((wait - mean) ** 2 for wait in part["waits"]) / len(part["waits"])
        compute = part["mflop"] * (1 - Fraction(int(sigma), TAU)) + 10**6 * rep
        gamma = Fraction(500_000 + int(500_000 * rep), 10**6)
        part["weight"] = int(max(compute, 0) * gamma)

    @rule(who=actors, number=st.sampled_from([0, 0, 0, 1]))
    def close_epoch(self, who: Account, number: int) -> None:
        epoch = self.epochs.get(number)
        over = self.now >= T0 + (number + 1) * HOUR + CHALLENGE * 60_000
        allowed = epoch is not None and epoch["open"] and over
        if self.send(allowed, t.CloseEpoch, who, epoch=number):
            assert epoch is not None
            weights = [part["weight"] for part in epoch["parts"].values()]
            epoch |= {"open": False, "weights": sum(weights)}
            epoch["pool"] = epoch["total"] = emission(number) if sum(weights) else 0
            self.issued += epoch["total"]

    @rule(who=actors, node=nodes, number=st.sampled_from([0, 0, 0, 1]))
    def claim_reward(self, who: Account, node: Account, number: int) -> None:
        epoch = self.epochs.get(number)
        part = epoch["parts"].get(node.address) if epoch is not None else None
        allowed = epoch is not None and part is not None and not epoch["open"]
        if self.send(allowed, t.ClaimReward, who, epoch=number, node=node.address):
            assert epoch is not None and part is not None
            reward = epoch["total"] * part["weight"] // epoch["weights"] if epoch["weights"] else 0
            self.balance[node.address] += reward
            epoch["pool"] -= reward
            del epoch["parts"][node.address]
            if not epoch["parts"]:
                self.treasury += epoch["pool"]
                del self.epochs[number]

    @precondition(lambda self: self.tasks)
    @rule(number=numbers, node=nodes, who=actors)
    def reject(self, number: int, node: Account, who: Account) -> None:
        task = self.task_in(number, "committed")
        allowed = task is not None and task["node"] is node
        finding = self.finding(number, node, Decision.REJECTED, 14)
        if self.send(allowed, t.Reject, who, attestation=finding):
            assert task is not None
            loss = self.stake_of[node.address] * SLASH // 100
            assert loss * 2 <= self.stake_of[node.address]
            self.stake_of[node.address] -= loss
            for part in self.unbonding[node.address]:
                loss += part[1] * SLASH // 100
                part[1] -= part[1] * SLASH // 100
            self.evidence[node.address].append((self.now, False))
            self.trusted.discard(node.address)
            self.serve(14)
            self.weigh(node)
            reward = loss * REPORTER // 100 if who is not node else 0
            self.balance[who.address] += reward
            self.burned += loss * BURN // 100
            self.treasury += loss - reward - loss * BURN // 100
            task |= {"state": "open", "attempt": task["attempt"] + 1}
            task["barred"].add(node.address)

    @precondition(lambda self: self.tasks)
    @rule(number=numbers, node=nodes)
    def unproven(self, number: int, node: Account) -> None:
        task = self.task_in(number, "committed")
        allowed = task is not None and task["node"] is node
        finding = self.finding(number, node, Decision.UNPROVEN, 14)
        if self.send(allowed, t.Unproven, STRANGER, attestation=finding):
            self.refund(number, "unproven")

    def refund(self, number: int, state: str) -> None:
        if self.tasks[number]["state"] == "committed":
            self.trusted.discard(self.tasks[number]["node"].address)
        self.tasks[number]["state"] = state
        self.balance[BUYER.address] += 5 * DAI

    @rule(number=numbers, who=actors)
    def release(self, number: int, who: Account) -> None:
        task = self.task_in(number, "assigned")
        allowed = task is not None and who in (BUYER, task["node"])
        attempt = self.tasks.get(number, {"attempt": 0})["attempt"]
        if self.send(allowed, t.Release, who, task_id=self.spec(number).task_id, attempt=attempt):
            assert task is not None
            task |= {"state": "open", "attempt": attempt + 1}

    @rule(number=numbers, who=st.sampled_from([BUYER, NODE]))
    def cancel(self, number: int, who: Account) -> None:
        allowed = self.task_in(number, "open", "assigned") is not None and who is BUYER
        if self.send(allowed, t.Cancel, who, task_id=self.spec(number).task_id):
            self.refund(number, "cancelled")

    @rule(number=numbers, who=actors)
    def expire(self, number: int, who: Account) -> None:
        late = self.now - self.spec(number).deadline_ms
        allowed = (self.task_in(number, "open", "assigned") is not None and late >= 0) or (
            self.task_in(number, "committed") is not None and late >= 60_000
        )
        if self.send(allowed, t.Expire, who, task_id=self.spec(number).task_id):
            self.refund(number, "expired")

    @invariant()
    def machine_and_reference_agree(self) -> None:
        for address, balance in self.balance.items():
            assert self.state.account(address).at(self.now).balance_wei == balance >= 0
        for address, stake in self.stake_of.items():
            account = self.state.account(address).at(self.now)
            assert account.stake_wei == stake >= 0
            for found, expected in (
                (account.unbonding, self.unbonding[address]),
                (account.locked, self.locked[address]),
            ):
                assert [[part.due_ms, part.amount_wei] for part in found] == sorted(expected)
            good, bad = self.faded(self.evidence[address])
            standing = account.standing.at(self.now, HALF_LIFE)
            assert abs(standing.reputation_ppm / 1e6 - (good + 1) / (good + bad + 2)) < 1e-4
            busy = (task for task in self.tasks.values() if task["state"] in BUSY)
            engaged = sum(task["price"] for task in busy if task["node"].address == address)
            assert account.engaged_wei == engaged
        for account, service in zip(SEAT_ACCOUNTS, self.service, strict=True):
            found = self.state.account(account.address).seat
            assert (found is None) == (not service)
            if found is not None:
                good, bad = self.faded(service)
                reputation = found.at(self.now, HALF_LIFE).reputation_ppm / 1e6
                assert abs(reputation - (good + 1) / (good + bad / 10 + 2)) < 1e-4
        locked = 0
        for number, task in self.tasks.items():
            record = self.state.task(self.spec(number).task_id)
            assert record is not None and record.state.value == task["state"]
            locked += 5 * DAI if task["state"] in ("open", "assigned", "committed") else 0
            minted = self.state.token(token_id_of(record.task_id)) is not None
            assert minted == (record.state is TaskState.SETTLED) == (number in self.settled)
        supply = self.state.supply()
        assert supply.conserved and supply == supply_of(self.state)
        assert supply.escrows_wei == locked
        assert (supply.treasury_wei, supply.burned_wei) == (self.treasury, self.burned)
        assert supply.issued_wei == self.issued
        for number, epoch in self.epochs.items():
            pool = self.state.find(EpochRecord, epoch_key(number))
            assert pool is not None and pool.pool_wei == epoch.get("pool", 0)
            if epoch["open"]:
                assert pool.weights == sum(part["weight"] for part in epoch["parts"].values())
        others = set(self.balance)
        assert all(
            noun.address in others
            for _, noun in self.state.items()
            if isinstance(noun, AccountRecord)
        )

    def teardown(self) -> None:
        """Replaying what was accepted gives the same root, in one go or step by step."""
        state = self.machine.genesis_state()
        trie = Trie().update(state.encoded())
        for raw, now in self.log:
            layer = Layer(state)
            self.machine.execute(layer, t.parse_transaction(raw), BlockEnv(now, 1))
            trie = trie.update(layer.encoded_changes())
            layer.merge_down()
        whole = Trie().update(self.state.encoded())
        assert trie.root == whole.root


Ledger.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLedger = Ledger.TestCase


_REPLAY = """
import sys, json
sys.path.insert(0, sys.argv[1])
from ledger_kit import *
from daifi_flows.cnft import Decision
from daifi_flows.ledger import Params
import ledger_kinds as t
from daifi_flows.ledger._blocks import build, genesis_header
from daifi_flows.ledger._seal import open_slot
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._state import Layer
from daifi_flows.merkle import MountainRange
machine = Machine(GENESIS)
head, base, trie = genesis_header(machine)
def sign(kind, who, **fields):
    nonce = layer.account(who.address).nonce
    return kind(sender=who.address, nonce=nonce, **fields).signed(who, GENESIS.ledger_id)
layer = Layer(base); raws = []; receipts = []
def do(kind, who, **fields):
    tx = sign(kind, who, **fields)
    raws.append(tx.encode()); receipts.append(machine.execute(layer, tx, BlockEnv(T0 + 1, 1)))
for node in (NODE, OTHER):
    do(t.Register, node, info=info_of(node)); do(t.Stake, node, amount_wei=DAI)
for i in range(4):
    spec = make_spec(i)
    do(t.Open, BUYER, spec=spec)
    do(t.Assign, BUYER, task_id=spec.task_id, attempt=0, node=NODE.address, price_wei=DAI)
    do(t.Commit, BUYER, task_id=spec.task_id, attempt=0, proof_cid=PROOF_CID,
       header=make_header(spec))
    if i % 2:
        do(t.Reject, BUYER, attestation=attest(spec, Decision.REJECTED))
        do(t.Cancel, BUYER, task_id=spec.task_id)
        do(t.Stake, NODE, amount_wei=DAI)
    else:
        do(t.Settle, BUYER, attestation=attest(spec), metadata=bytes(32))
slot = open_slot(head, base, bytes(32), 0)
header = build(slot, trie, MountainRange(), layer, builder=BUYER.address, bid_wei=DAI,
               transactions=raws, receipts=receipts, timestamp_ms=T0 + 1).header
print(json.dumps({"hash": header.digest.hex(), "txs": len(raws)}))
"""


def test_blocks_are_the_same_bytes_under_any_hash_seed_locale_and_time_zone() -> None:
    outputs = set()
    for seed, locale, zone in (("0", "C", "UTC"), ("4242", "C.UTF-8", "Asia/Kathmandu")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone}
        done = subprocess.run(
            [sys.executable, "-c", _REPLAY, str(Path(__file__).parent)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert json.loads(outputs.pop())["txs"] == 24

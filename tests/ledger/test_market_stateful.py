"""Random interleavings of everything that can be done to tasks: money is where it must be, and from
every state it comes out again."""

from __future__ import annotations

from collections import Counter

import ledger_kinds as t
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ledger_bench import META, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    attest,
    make_header,
    make_spec,
)
from market_bench import BID_MS, REVEAL_MS, STAKE, Market, other_header

from daifi_flows.cnft import Decision
from daifi_flows.dispute import DisputeFinding
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import AccountRecord, TaskRecord, TaskState
from daifi_flows.ledger._bids import AuctionRecord
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._machine import BlockEnv
from daifi_flows.ledger._state import Base, MemoryBase, supply_of

SPECS = [make_spec(i) for i in range(3)]
numbers = st.integers(min_value=0, max_value=2)
nodes = st.sampled_from([NODE, OTHER])
anybody = st.sampled_from([BUYER, NODE, OTHER, STRANGER])
prices = st.sampled_from([DAI, 2 * DAI, 5 * DAI])
ALIVE = (TaskState.OPEN, TaskState.ASSIGNED, TaskState.COMMITTED)
LATE_MS = 2 * 86_400_000


def records(state: Base, kind: type) -> list:
    return [record for _, record in state.items() if isinstance(record, kind)]


def find_dispute(state: Base, number: int) -> DisputeRecord | None:
    return state.find(DisputeRecord, dispute_key(SPECS[number].task_id))


class TaskMarket(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bench = Market()
        self.settled: Counter[bytes] = Counter()
        self.passed: Counter[str] = Counter()

    def send(self, kind: type[t.Transaction], who: Account, **fields: object) -> bool:
        """Whether it was permitted; what is not changes nothing."""
        tx = self.bench.make(kind, who, **fields)
        before = snapshot(self.bench.state)
        try:
            self.bench.run(tx)
        except TransactionRefused as error:
            assert error.details["code"] and snapshot(self.bench.state) == before
            return False
        self.passed[kind.kind] += 1
        return True

    def attempt(self, number: int) -> int:
        task = self.bench.state.task(SPECS[number].task_id)
        return task.attempt if task is not None else 0

    def held_by(self, number: int) -> Account:
        task = self.bench.state.task(SPECS[number].task_id)
        return OTHER if task is not None and task.node == OTHER.address else NODE

    @rule(number=numbers, node=nodes, price=prices, luck=st.integers(0, 9))
    def go_on(self, number: int, node: Account, price: int, luck: int) -> None:
        """What usually comes next, so that late states are reached too."""
        task = self.bench.state.task(SPECS[number].task_id)
        if task is None:
            self.open(number, bool(luck % 2))
        elif task.state is TaskState.OPEN:
            if task.bid_ms:
                self.bid(number, node, price)
                self.pass_time(BID_MS // 1_000)
                self.reveal(number, node, price)
            self.assign(number, node, price)
        elif task.state is TaskState.ASSIGNED:
            self.commit(number)
        elif task.state is TaskState.COMMITTED:
            decision = Decision.ACCEPTED if luck < 8 else list(Decision)[luck - 7]
            self.attested(number, BUYER, decision)
        elif find_dispute(self.bench.state, number) is None:
            self.dispute(number, OTHER)
        else:
            self.resolve(number, list(DisputeFinding)[luck % 3])

    @rule(seconds=st.sampled_from([1, 5, 10, 60, 600]))
    def pass_time(self, seconds: int) -> None:
        self.bench.now += seconds * 1_000

    @rule(number=numbers, auction=st.booleans())
    def open(self, number: int, auction: bool) -> None:
        windows = {"bid_ms": BID_MS, "reveal_ms": REVEAL_MS} if auction else {}
        self.send(t.Open, BUYER, spec=SPECS[number], **windows)

    @rule(number=numbers, node=nodes, price=prices)
    def bid(self, number: int, node: Account, price: int) -> None:
        spec, attempt = SPECS[number], self.attempt(number)
        if self.bench.state.task(spec.task_id) is not None:
            sealed = self.bench.sealed(spec, node, price)
            fields = {"task_id": spec.task_id, "attempt": attempt, "commitment": sealed}
            self.send(t.Bid, node, **fields)

    @rule(number=numbers, node=nodes, price=prices)
    def reveal(self, number: int, node: Account, price: int) -> None:
        if self.bench.state.task(SPECS[number].task_id) is not None:
            tx = self.bench.reveal_tx(SPECS[number], node, price)
            fields = {name: getattr(tx, name) for name in ("price_wei", "eta_ms", "salt")}
            self.send(t.RevealBid, node, task_id=tx.task_id, attempt=tx.attempt, **fields)

    @rule(number=numbers, node=nodes, price=prices)
    def assign(self, number: int, node: Account, price: int) -> None:
        self.send(
            t.Assign,
            BUYER,
            task_id=SPECS[number].task_id,
            attempt=self.attempt(number),
            node=node.address,
            price_wei=price,
        )

    @rule(number=numbers)
    def commit(self, number: int) -> None:
        node = self.held_by(number)
        self.send(
            t.Commit,
            node,
            task_id=SPECS[number].task_id,
            attempt=self.attempt(number),
            proof_cid=PROOF_CID,
            header=make_header(SPECS[number], node),
        )

    @rule(number=numbers, who=anybody, decision=st.sampled_from(Decision))
    def attested(self, number: int, who: Account, decision: Decision) -> None:
        finding = attest(
            SPECS[number],
            decision,
            attempt=self.attempt(number),
            node=self.held_by(number).address,
        )
        if decision is Decision.ACCEPTED:
            if self.send(t.Settle, who, attestation=finding, metadata=META):
                self.settled[SPECS[number].task_id] += 1
        else:
            kind = t.Reject if decision is Decision.REJECTED else t.Unproven
            self.send(kind, who, attestation=finding)

    @rule(number=numbers, who=anybody, kind=st.sampled_from(["release", "cancel", "expire"]))
    def give_up(self, number: int, who: Account, kind: str) -> None:
        more = {"attempt": self.attempt(number)} if kind == "release" else {}
        self.send(t.KINDS[kind], who, task_id=SPECS[number].task_id, **more)

    @rule(number=numbers, who=st.sampled_from([BUYER, NODE, OTHER]))
    def dispute(self, number: int, who: Account) -> None:
        task = self.bench.state.task(SPECS[number].task_id)
        if task is not None:
            tx = self.bench.dispute_tx(SPECS[number], who, number=task.disputes)
            fields = {"bond_wei": 5 * DAI, "evidence": META}
            self.send(t.Dispute, who, task_id=tx.task_id, number=tx.number, **fields)

    @rule(number=numbers, finding=st.sampled_from(DisputeFinding))
    def resolve(self, number: int, finding: DisputeFinding) -> None:
        task = self.bench.state.task(SPECS[number].task_id)
        if task is not None and task.disputes:
            attestation = self.bench.finding(
                SPECS[number],
                finding,
                attempt=task.attempt,
                node=self.held_by(number).address,
            )
            place = {"task_id": task.task_id, "number": task.disputes - 1}
            self.send(t.ResolveDispute, STRANGER, attestation=attestation, **place)

    @rule(number=numbers)
    def expire_dispute(self, number: int) -> None:
        task = self.bench.state.task(SPECS[number].task_id)
        if task is not None and task.disputes:
            place = {"task_id": task.task_id, "number": task.disputes - 1}
            self.send(t.ExpireDispute, STRANGER, **place)

    @rule(number=numbers, node=nodes)
    def equivocate(self, number: int, node: Account) -> None:
        spec, attempt = SPECS[number], self.attempt(number)
        pair = [
            self.bench.make(
                t.Commit,
                node,
                task_id=spec.task_id,
                attempt=attempt,
                proof_cid=PROOF_CID,
                header=header,
            )
            for header in (make_header(spec, node), other_header(spec, node))
        ]
        self.send(t.ProofEquivocation, STRANGER, first=pair[0], second=pair[1])

    @rule(node=nodes, amount=st.sampled_from([DAI, 30 * DAI, STAKE]), out=st.booleans())
    def stake(self, node: Account, amount: int, out: bool) -> None:
        self.send(t.Unstake if out else t.Stake, node, amount_wei=amount)

    @invariant()
    def money_is_where_it_must_be(self) -> None:
        state = self.bench.state
        supply, tasks = state.supply(), records(state, TaskRecord)
        assert supply.conserved and supply == supply_of(state)
        auctions, disputes = records(state, AuctionRecord), records(state, DisputeRecord)
        deposits = sum(bid.deposit_wei for auction in auctions for bid in auction.sealed)
        bonds = sum(record.bond_wei for record in disputes)
        alive = [task for task in tasks if task.state in ALIVE]
        assert supply.escrows_wei == deposits + bonds + 5 * DAI * len(alive)
        bonded: Counter[str] = Counter()
        for task in tasks:
            busy = task.state in (TaskState.ASSIGNED, TaskState.COMMITTED)
            assert busy == (task.node is not None and task.state in ALIVE)
            assert task.bond_wei == (task.price_wei // 20 if busy else 0)
            if busy:
                bonded[task.node] += task.bond_wei
        for account in records(state, AccountRecord):
            assert account.bonded_wei == bonded[account.address]
        for auction in auctions:
            task = state.task(auction.task_id)
            assert task.state is TaskState.OPEN and task.attempt == auction.attempt
            bidders = [bid.node for bid in (*auction.sealed, *auction.revealed)]
            assert len(bidders) == len(set(bidders))
        for record in disputes:
            assert state.task(record.task_id).state is TaskState.SETTLED
        assert all(count == 1 for count in self.settled.values())

    @invariant()
    def everything_comes_out_again(self) -> None:
        """A stranger alone, with time, frees every escrow, deposit, bond and held payment, and
        then the tasks can be forgotten."""
        bench = self.bench
        state = MemoryBase(dict(bench.state.items()))

        late_ms = bench.now + LATE_MS

        def send(kind: type[t.Transaction], **fields: object) -> None:
            nonce = state.account(STRANGER.address).nonce
            tx = kind.model_validate({"sender": STRANGER.address, "nonce": nonce} | fields)
            env = BlockEnv(late_ms, 2)
            bench.machine.execute(state, tx.signed(STRANGER, bench.machine.ledger_id), env)

        for task in records(state, TaskRecord):
            if task.state in ALIVE:
                send(t.Expire, task_id=task.task_id)
        for record in records(state, DisputeRecord):
            send(t.ExpireDispute, task_id=record.task_id, number=record.number)
        assert state.supply().escrows_wei == 0
        assert not records(state, AuctionRecord) and not records(state, DisputeRecord)
        for account in records(state, AccountRecord):
            assert account.bonded_wei == 0
            assert account.at(late_ms + LATE_MS).locked_wei == 0
        late_ms += LATE_MS
        if tasks := records(state, TaskRecord):
            send(t.Forget, tasks=tuple(task.task_id for task in tasks))
        assert not records(state, TaskRecord)


TaskMarket.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTaskMarket = TaskMarket.TestCase

"""A bench with nodes that bid, disputes about what they answered, and a committee that decides."""

from __future__ import annotations

from collections.abc import Sequence

import ledger_kinds as t
import pytest
from ledger_bench import META, Bench, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    NODE,
    OTHER,
    PROOF_CID,
    SEAT_KEYS,
    T0,
    info_of,
    make_header,
    make_spec,
)

from daifi_flows.cnft import TaskSpec, TxReceipt
from daifi_flows.dispute import DisputeAttestation, DisputeFinding, DisputeStatement
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account, aggregate_bls
from daifi_flows.ledger import Genesis, TaskState
from daifi_flows.ledger._bids import bid_commitment

BID_MS, REVEAL_MS = 10_000, 5_000
SALT = keccak256(b"salt")
STAKE = 100 * DAI


class Market(Bench):
    """Both nodes are registered and staked from the start."""

    def __init__(self, genesis: Genesis | None = None) -> None:
        super().__init__(genesis) if genesis is not None else super().__init__()
        for node in (NODE, OTHER):
            self.do(t.Register, node, info=info_of(node))
            self.do(t.Stake, node, amount_wei=STAKE)

    def open(self, spec: TaskSpec | None = None, **fields: object) -> TaskSpec:
        """A task up for auction."""
        spec = spec if spec is not None else make_spec()
        self.do(t.Open, BUYER, spec=spec, **({"bid_ms": BID_MS, "reveal_ms": REVEAL_MS} | fields))
        return spec

    def sealed(self, spec: TaskSpec, node: Account, price: int = DAI, eta: int = 1_000, **more):
        """A commitment of ``node``; ``more`` changes what it names."""
        fields = {
            "attempt": self.state.task(spec.task_id).attempt,
            "node": node.address,
            "price_wei": price,
            "eta_ms": eta,
            "salt": SALT,
        } | more
        return bid_commitment(self.machine.ledger_id, spec.task_id, **fields)

    def bid_tx(self, spec: TaskSpec, node: Account, **fields) -> t.Transaction:
        attempt = self.state.task(spec.task_id).attempt
        values = {"task_id": spec.task_id, "attempt": attempt, "commitment": META}
        return self.make(t.Bid, node, **(values | fields))

    def bid(self, spec: TaskSpec, node: Account, price: int = DAI, eta: int = 1_000) -> TxReceipt:
        return self.run(self.bid_tx(spec, node, commitment=self.sealed(spec, node, price, eta)))

    def reveal_tx(
        self, spec: TaskSpec, node: Account, price: int = DAI, eta: int = 1_000, **fields
    ) -> t.Transaction:
        values = {
            "task_id": spec.task_id,
            "attempt": self.state.task(spec.task_id).attempt,
            "price_wei": price,
            "eta_ms": eta,
            "salt": SALT,
        }
        return self.make(t.RevealBid, node, **(values | fields))

    def reveal(self, spec: TaskSpec, node: Account, price: int = DAI, eta: int = 1_000):
        return self.run(self.reveal_tx(spec, node, price, eta))

    def assign_tx(self, spec: TaskSpec, node: Account, price: int) -> t.Transaction:
        attempt = self.state.task(spec.task_id).attempt
        return self.make(
            t.Assign,
            BUYER,
            task_id=spec.task_id,
            attempt=attempt,
            node=node.address,
            price_wei=price,
        )

    def won(self, spec: TaskSpec | None = None, price: int = DAI, eta: int = 1_000) -> TaskSpec:
        """A task that NODE bid for and got."""
        spec = self.open(spec)
        self.bid(spec, NODE, price, eta)
        self.now += BID_MS
        self.reveal(spec, NODE, price, eta)
        self.assign(spec, NODE, price)
        return spec

    def dispute_tx(self, spec: TaskSpec, who: Account, **fields) -> t.Transaction:
        values = {"task_id": spec.task_id, "number": 0, "bond_wei": 2 * DAI, "evidence": META}
        return self.make(t.Dispute, who, **(values | fields))

    def disputed(self, spec: TaskSpec | None = None, challenger: Account = OTHER) -> TaskSpec:
        """A settled task of NODE's whose output is disputed."""
        spec = self.reach(TaskState.SETTLED, spec)
        self.run(self.dispute_tx(spec, challenger))
        return spec

    def finding(
        self,
        spec: TaskSpec,
        finding: DisputeFinding,
        *,
        signers: Sequence[int] = range(14),
        **changes: object,
    ) -> DisputeAttestation:
        """What the seats sign; ``changes`` are signed too."""
        values: dict[str, object] = {
            "ledger_id": self.machine.ledger_id,
            "epoch": 1,
            "task_id": spec.task_id,
            "number": self.state.task(spec.task_id).disputes - 1,
            "attempt": 0,
            "node": NODE.address,
            "output_cid": cid_of(b"output"),
            "proof_cid": PROOF_CID,
            "finding": finding,
        }
        statement = DisputeStatement.model_validate(values | changes)
        return DisputeAttestation(
            epoch=statement.epoch,
            finding=finding,
            signers=sum(1 << i for i in signers),
            signature=aggregate_bls([SEAT_KEYS[i].sign(statement.message()) for i in signers]),
        )

    def resolve_tx(
        self, spec: TaskSpec, attestation: DisputeAttestation, who: Account = BUYER, number: int = 0
    ) -> t.Transaction:
        return self.make(
            t.ResolveDispute, who, task_id=spec.task_id, number=number, attestation=attestation
        )

    def resolve(self, spec: TaskSpec, finding: DisputeFinding, number: int = 0) -> TxReceipt:
        return self.run(self.resolve_tx(spec, self.finding(spec, finding), number=number))

    def refused(self, tx: t.Transaction) -> str:
        """The code of the refusal, which changed nothing."""
        before = snapshot(self.state)
        with pytest.raises(TransactionRefused) as caught:
            self.run(tx)
        assert snapshot(self.state) == before
        return caught.value.details["code"]

    def stake_of(self, node: Account) -> int:
        return self.state.account(node.address).stake_wei

    def bonded(self, node: Account) -> int:
        return self.state.account(node.address).bonded_wei

    def locked(self, node: Account) -> int:
        return self.state.account(node.address).at(self.now).locked_wei

    def free(self, account: Account) -> int:
        """What an account can spend now."""
        return self.state.account(account.address).at(self.now).balance_wei


def other_header(spec: TaskSpec, node: Account = NODE):
    """A proof of another output."""
    return make_header(spec, node, output_cid=cid_of(b"another output"))


__all__ = ["BID_MS", "REVEAL_MS", "SALT", "STAKE", "T0", "Market", "other_header"]

"""A machine and its state, and transactions signed by whoever is named."""

from __future__ import annotations

import ledger_kinds as t
from ledger_kit import (
    BUYER,
    DAI,
    GENESIS,
    NODE,
    PROOF_CID,
    T0,
    attest,
    info_of,
    make_header,
    make_spec,
)

from daifi_flows.cnft import TxReceipt
from daifi_flows.encoding import keccak256
from daifi_flows.keys import Account
from daifi_flows.ledger import Genesis, TaskState
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._state import Base, supply_of

META = keccak256(b"metadata")


class Bench:
    """A machine and its state, with transactions signed by whoever is named."""

    height = 10
    """Of the block that transactions run in."""

    def __init__(self, genesis: Genesis = GENESIS) -> None:
        self.machine = Machine(genesis)
        self.state = self.machine.genesis_state()
        self.now = T0 + 1

    def make(self, kind: type[t.Transaction], account: Account, **fields: object) -> t.Transaction:
        nonce = fields.pop("nonce", self.state.account(account.address).nonce)
        tx = kind.model_validate({"sender": account.address, "nonce": nonce} | fields)
        return tx.signed(account, self.machine.ledger_id)

    def run(self, tx: t.Transaction) -> TxReceipt:
        receipt = self.machine.execute(self.state, tx, BlockEnv(self.now, self.height))
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

"""A bench with tokens on it: executions of the buyer's, by either node, with chosen outputs."""

from __future__ import annotations

import ledger_kinds as t
from ledger_bench import META, Bench
from ledger_kit import (
    BUYER,
    DAI,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
)

from daifi_flows.cnft import Content, Usage, token_id_of
from daifi_flows.encoding import keccak256
from daifi_flows.keys import Account
from daifi_flows.ledger import Genesis
from daifi_flows.ledger._tx.lease import action_of

SALT = bytes(32)
ANSWER = Content.text("42", SALT)
SAME_SALTED_AGAIN = Content.text("42", b"\x01" * 32)
DIFFERENT = Content.text("43", SALT)
NEW = Account.from_seed(b"never signed")


class TokenBench(Bench):
    """``mint`` settles one task; every account in ``people`` has money and has signed before."""

    people = (BUYER, NODE, OTHER, STRANGER)

    def __init__(self, genesis: Genesis | None = None) -> None:
        super().__init__(genesis if genesis is not None else make_genesis())
        self.do(t.Transfer, BUYER, to=STRANGER.address, amount_wei=200 * DAI)
        self.do(t.Transfer, STRANGER, to=STRANGER.address, amount_wei=1)
        for node in (NODE, OTHER):
            self.do(t.Register, node, info=info_of(node))
            self.do(t.Stake, node, amount_wei=50 * DAI)

    def mint(
        self,
        nonce: int,
        *,
        buyer: Account = BUYER,
        node: Account = NODE,
        output: Content = ANSWER,
        price: int = 2 * DAI,
        flops: int = 0,
        **changes: object,
    ) -> bytes:
        spec = make_spec(nonce, buyer=buyer.address, **changes)
        header = make_header(spec, node, output_cid=output.cid, usage=Usage(flops=flops))
        fields = {"task_id": spec.task_id, "attempt": 0}
        self.do(t.Open, buyer, spec=spec)
        self.do(t.Assign, buyer, **fields, node=node.address, price_wei=price)
        self.do(t.Commit, buyer, **fields, proof_cid=PROOF_CID, header=header)
        finding = attest(
            spec,
            ledger_id=self.machine.ledger_id,
            node=node.address,
            output_cid=output.cid,
        )
        self.do(t.Settle, buyer, attestation=finding, metadata=keccak256(META + spec.task_id))
        return token_id_of(spec.task_id)

    def owner(self, token_id: bytes) -> str:
        token = self.state.token(token_id)
        assert token is not None
        return token.owner


def action(kind: type[t.Transaction], sender: Account, **fields: object) -> bytes:
    """What a lease carries of a transaction."""
    return action_of(kind.model_validate({"sender": sender.address, "nonce": 0} | fields))


def send_money(sender: Account, to: Account, amount: int) -> bytes:
    """A transfer as an action."""
    return action(t.Transfer, sender, to=to.address, amount_wei=amount)

"""``Settlement``: what a step needs from a ledger, whichever ledger it is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from daifi_flows.cnft import (
    Attestation,
    BlockHeader,
    Committee,
    NodeInfo,
    ProofHeader,
    QuorumCertificate,
    Receipt,
    Subject,
    TaskSpec,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.epochs import CommitteeChain
from daifi_flows.history import HistoryProof
from daifi_flows.keys import Account
from daifi_flows.ledger._params import Params
from daifi_flows.ledger._records import AccountRecord, SupplyReport, TaskRecord, TokenRecord

__all__ = ["Settlement"]


@runtime_checkable
class Settlement(Protocol):
    """Escrow, assignment, settlement and minting, each final when the call returns.

    Reads see final state. Every other method sends one signed transaction and returns the receipt
    of the block that made it final; repeating a call that already happened (same task or token,
    same terms) returns the original receipt, so a caller that died can simply call again.
    ``transfer``, ``stake`` and ``transfer_token`` act each time they are called, unless they are
    given the same ``request``: 32 bytes, drawn by the caller and kept for the repeat.

    All of them raise :class:`~daifi_flows.errors.TransactionRefused` when a rule is broken
    (nothing changed) and :class:`~daifi_flows.errors.LedgerUnavailable` when the ledger or its
    quorum does not answer (the transaction may still become final: call again).
    """

    @property
    def ledger_id(self) -> bytes:
        """What signatures and attestations are bound to, 32 bytes."""
        ...

    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]:
        """The last final block; block 0 has no certificate."""
        ...

    async def committee(self) -> Committee:
        """The seats of this epoch."""
        ...

    async def committee_of(self, epoch: int) -> Committee | None:
        """The seats of an epoch up to the present one."""
        ...

    async def handovers(self, after: int = 0) -> CommitteeChain:
        """How the present committee came into office, from that of an epoch (else of the first):
        with it, what any of them signed can be checked by who trusts the older one's keys."""
        ...

    async def account(self, address: str) -> AccountRecord:
        """An account, with its reputation as a node and as a seat; zeros for an address never
        seen."""
        ...

    async def task(self, task_id: bytes) -> TaskRecord | None:
        """A task, if it was ever opened."""
        ...

    async def token(self, token_id: bytes) -> TokenRecord | None:
        """A token, if it was ever minted."""
        ...

    async def supply(self) -> SupplyReport:
        """Where all money is."""
        ...

    async def params(self) -> Params:
        """The parameters in force."""
        ...

    async def quote(self, node: str) -> int:
        """What a task costs on a node now, in wei: what it asks, and more when much is used."""
        ...

    async def nodes(self) -> tuple[AccountRecord, ...]:
        """Accounts registered as nodes, by address."""
        ...

    async def attestation_receipt(self, task_id: bytes) -> tuple[Attestation, Receipt] | None:
        """The attestation that settled a task, and its settlement's receipt."""
        ...

    async def prove(self, tx: bytes) -> HistoryProof:
        """A final transaction's receipt, shown against the newest certified head."""
        ...

    async def transfer(
        self, to: str, amount_wei: int, sender: Account, *, request: bytes | None = None
    ) -> Receipt:
        """Move money to another account."""
        ...

    async def stake(
        self, amount_wei: int, node: Account, *, request: bytes | None = None
    ) -> Receipt:
        """Put a node's own money at stake."""
        ...

    async def register(self, info: NodeInfo, node: Account) -> Receipt:
        """Offer a node, or change its offer."""
        ...

    async def open_escrow(self, spec: TaskSpec, buyer: Account) -> Receipt:
        """Open a task and lock its highest price."""
        ...

    async def assign(self, task_id: bytes, node: str, price_wei: int, buyer: Account) -> Receipt:
        """Give an open task to a registered, staked node, for its :meth:`quote` or more."""
        ...

    async def commit(
        self, task_id: bytes, header: ProofHeader, proof_cid: str, sender: Account
    ) -> Receipt:
        """Record the node's signed proof header; ``sender`` is the buyer or the node."""
        ...

    async def settle(self, attestation: Attestation, metadata: bytes, sender: Account) -> Receipt:
        """Pay for an accepted execution and mint its token; ``sender`` is the buyer or the node.

        The node's share is locked until its output can no longer be challenged.

        ``metadata`` is the digest of the bundle's core metadata.
        """
        ...

    async def reject(self, attestation: Attestation, sender: Account) -> Receipt:
        """Slash a rejected node and reopen the task; payments with reason ``slash`` add up to
        what it lost (the zero address stands for burned)."""
        ...

    async def unproven(self, attestation: Attestation, sender: Account) -> Receipt:
        """Refund a task the committee could not decide."""
        ...

    async def release(self, task_id: bytes, buyer: Account) -> Receipt:
        """Take an assigned task back from a lost node, without a slash."""
        ...

    async def cancel(self, task_id: bytes, buyer: Account) -> Receipt:
        """Give up a task that no node has answered; refunds the escrow."""
        ...

    async def expire(self, task_id: bytes, sender: Account) -> Receipt:
        """Refund a task past its deadline (a committed one: past the settlement grace too)."""
        ...

    async def effect(self, token_id: bytes, digest: bytes, owner: Account) -> Receipt:
        """Commit, once, to what a token's after-settlement action returned."""
        ...

    async def transfer_token(
        self, token_id: bytes, to: str, owner: Account, *, request: bytes | None = None
    ) -> Receipt:
        """Give a token away (ERC-721 ``safeTransferFrom``): ``to`` must have shown that it can
        move it on."""
        ...

    async def flash_attest(self, token_id: bytes, spec: TaskSpec, buyer: Account) -> Receipt:
        """Take an existing token's output for the new task ``spec``, without computing it again.

        The token's owner gets the fee it asks; the receipt's ``of`` is the token, its
        ``token_id`` the reference that was minted, its ``attestation`` the first one's digest.
        All of ``spec`` must be as the token's, but buyer, nonce, deadline and highest price.
        """
        ...

    async def report_double_vote(
        self, subject: Subject, first: VoteCommit, second: VoteCommit, reporter: Account
    ) -> Receipt:
        """Slash a seat that bound itself to two votes in one wave of a review; the receipt's
        ``node`` is its account."""
        ...

    async def report_copied_vote(
        self, subject: Subject, copied: VoteCommit, opening: VoteReveal, reporter: Account
    ) -> Receipt:
        """Slash a seat that bound itself to another seat's vote, which ``opening`` shows."""
        ...

    async def report_false_vote(
        self,
        subject: Subject,
        commit: VoteCommit,
        opening: VoteReveal,
        attestation: Attestation,
        reporter: Account,
    ) -> Receipt:
        """Slash a seat that voted to reject what ``attestation`` accepts, once nobody can dispute
        it any more; or to accept what it rejects for sure."""
        ...

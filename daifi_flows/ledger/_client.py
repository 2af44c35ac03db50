"""The client side of the bundled ledger: signs transactions, retries, never pays twice."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from daifi_flows.cnft import (
    Attestation,
    BlockHeader,
    Committee,
    Decision,
    NodeInfo,
    ProofHeader,
    QuorumCertificate,
    Receipt,
    Subject,
    TaskSpec,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import CommitteeChain
from daifi_flows.errors import (
    InsufficientFunds,
    TransactionRefused,
)
from daifi_flows.history import HistoryProof
from daifi_flows.keys import Account
from daifi_flows.ledger._params import Params
from daifi_flows.ledger._records import (
    AccountRecord,
    LedgerHealth,
    Record,
    SupplyReport,
    TaskRecord,
    TaskState,
    TokenRecord,
)
from daifi_flows.ledger._sending import Port, Sender
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.evidence import (
    FalseAcceptance,
    FalseAccusation,
    VoteCopy,
    VoteEquivocation,
)
from daifi_flows.ledger._tx.lease import action_of
from daifi_flows.ledger._tx.money import Transfer
from daifi_flows.ledger._tx.nodes import Register, Stake
from daifi_flows.ledger._tx.sealed import Reveal, Sealed, sealed_commitment
from daifi_flows.ledger._tx.tasks import (
    Assign,
    Cancel,
    Commit,
    Effect,
    Expire,
    Open,
    Reject,
    Release,
    Settle,
    Unproven,
)
from daifi_flows.ledger._tx.tokens import FlashAttest, SafeTransferToken

__all__ = ["LedgerClient", "Port"]

RecordT = TypeVar("RecordT", bound=Record)


class LedgerClient(Sender):
    """The bundled ledger as a :class:`~daifi_flows.ledger.Settlement`.

    Args:
        port: a running :class:`~daifi_flows.ledger.LedgerService`, or a way to one.
        patience_s: how long a call waits for a quorum that stalls, or goes on signing again while
            other processes sign for the same account, before it gives up.

    One client may be used from many threads and event loops at once.
    """

    @property
    def ledger_id(self) -> bytes:
        """What signatures and attestations are bound to, 32 bytes."""
        return self._ledger_id

    # Reads

    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]:
        """The last final block; block 0 has no certificate."""
        return await self._port.head()

    async def committee(self) -> Committee:
        """The seats of this epoch."""
        return await self._port.committee()

    async def committee_of(self, epoch: int) -> Committee | None:
        """The seats of an epoch up to the present one."""
        return await self._port.committee_of(epoch)

    async def handovers(self, after: int = 0) -> CommitteeChain:
        """How the present committee came into office, from that of an epoch (else of genesis)."""
        return await self._port.handovers(after)

    async def certified_header(self, height: int) -> tuple[BlockHeader, QuorumCertificate] | None:
        """A final block's header and certificate, if the ledger's file has it."""
        return await self._port.certified_header(height)

    async def account(self, address: str) -> AccountRecord:
        """An account; zeros for an address never seen."""
        return await self._port.account(address)

    async def task(self, task_id: bytes) -> TaskRecord | None:
        """A task, if it was ever opened."""
        return await self._port.task(task_id)

    async def token(self, token_id: bytes) -> TokenRecord | None:
        """A token, if it was ever minted."""
        return await self._port.token(token_id)

    async def record(self, kind: type[RecordT], key: bytes) -> RecordT | None:
        """What the state holds of a kind under a key: ``ListingRecord``, ``listing_key(id)``."""
        found = await self._port.record(key)
        return found if isinstance(found, kind) else None

    async def supply(self) -> SupplyReport:
        """Where all money is."""
        return await self._port.supply()

    async def params(self) -> Params:
        """The parameters in force."""
        return await self._port.params()

    async def quote(self, node: str) -> int:
        """What a task costs on a node now, in wei."""
        return await self._port.quote(node)

    async def nodes(self) -> tuple[AccountRecord, ...]:
        """Accounts registered as nodes, by address."""
        return await self._port.nodes()

    async def attestation_receipt(self, task_id: bytes) -> tuple[Attestation, Receipt] | None:
        """The attestation that settled a task, and its settlement's receipt."""
        return await self._port.attestation_receipt(task_id)

    async def prove(self, tx: bytes) -> HistoryProof:
        """A final transaction's receipt, shown against the newest certified head."""
        return await self._port.prove(tx)

    async def health(self) -> LedgerHealth:
        """Height, pending transactions, and why certification stalls, if it does."""
        return await self._port.health()

    # Transactions

    async def transfer(
        self, to: str, amount_wei: int, sender: Account, *, request: bytes | None = None
    ) -> Receipt:
        """Move money to another account; see :meth:`Settlement.transfer`."""
        fields = {"to": to, "amount_wei": amount_wei}
        return await self.submit(Transfer, sender, fields, _or_drawn(request))

    async def stake(
        self, amount_wei: int, node: Account, *, request: bytes | None = None
    ) -> Receipt:
        """Put a node's own money at stake; see :meth:`Settlement.stake`."""
        fields = {"amount_wei": amount_wei}
        return await self.submit(Stake, node, fields, _or_drawn(request))

    async def register(self, info: NodeInfo, node: Account) -> Receipt:
        """Offer a node, or change its offer."""
        return await self.submit(Register, node, {"info": info})

    async def open_escrow(self, spec: TaskSpec, buyer: Account) -> Receipt:
        """Open a task and lock its highest price; sealed, when governance asks for that."""
        terms = (await self._port.params()).sealed
        if spec.max_price_wei > terms.over_wei:
            # What is sealed and then refused loses its deposit: ask first what is known to fail.
            await self._require_funds(buyer.address, spec.max_price_wei + terms.deposit_wei)
            return await self.submit_sealed(Open, buyer, {"spec": spec})
        return await self.submit(Open, buyer, {"spec": spec})

    async def assign(self, task_id: bytes, node: str, price_wei: int, buyer: Account) -> Receipt:
        """Give an open task to a registered, staked node at a price."""
        fields = {
            "task_id": task_id,
            "attempt": (await self._require(task_id)).attempt,
            "node": node,
            "price_wei": price_wei,
        }
        return await self.submit(Assign, buyer, fields)

    async def commit(
        self, task_id: bytes, header: ProofHeader, proof_cid: str, sender: Account
    ) -> Receipt:
        """Record the node's signed proof header; ``sender`` is the buyer or the node."""
        fields = {
            "task_id": task_id,
            "attempt": (await self._require(task_id)).attempt,
            "proof_cid": proof_cid,
            "header": header,
        }
        return await self.submit(Commit, sender, fields)

    async def settle(self, attestation: Attestation, metadata: bytes, sender: Account) -> Receipt:
        """Pay for an accepted execution and mint its token."""
        return await self.submit(Settle, sender, {"attestation": attestation, "metadata": metadata})

    async def reject(self, attestation: Attestation, sender: Account) -> Receipt:
        """Slash a rejected node and reopen the task."""
        return await self.submit(Reject, sender, {"attestation": attestation})

    async def unproven(self, attestation: Attestation, sender: Account) -> Receipt:
        """Refund a task the committee could not decide."""
        return await self.submit(Unproven, sender, {"attestation": attestation})

    async def release(self, task_id: bytes, buyer: Account) -> Receipt:
        """Take an assigned task back from a lost node, without a slash."""
        task = await self._require(task_id)
        attempt = task.attempt
        if task.state is not TaskState.ASSIGNED and attempt > 0:
            attempt -= 1  # perhaps this very call succeeded before: then its receipt is returned
        return await self.submit(Release, buyer, {"task_id": task_id, "attempt": attempt})

    async def cancel(self, task_id: bytes, buyer: Account) -> Receipt:
        """Give up a task that no node has answered; refunds the escrow."""
        return await self.submit(Cancel, buyer, {"task_id": task_id})

    async def expire(self, task_id: bytes, sender: Account) -> Receipt:
        """Refund a task past its deadline."""
        return await self.submit(Expire, sender, {"task_id": task_id})

    async def effect(self, token_id: bytes, digest: bytes, owner: Account) -> Receipt:
        """Commit, once, to what a token's after-settlement action returned."""
        return await self.submit(Effect, owner, {"token_id": token_id, "effect": digest})

    async def transfer_token(
        self, token_id: bytes, to: str, owner: Account, *, request: bytes | None = None
    ) -> Receipt:
        """Give a token to an address that has signed before; see
        :meth:`Settlement.transfer_token`."""
        fields = {"token_id": token_id, "owner": owner.address, "to": to}
        return await self.submit(SafeTransferToken, owner, fields, _or_drawn(request))

    async def flash_attest(self, token_id: bytes, spec: TaskSpec, buyer: Account) -> Receipt:
        """Take an existing token's output for a new task, for what its owner asks now."""
        token = held = await self._require_token(token_id)
        while held.merged_into is not None:
            held = await self._require_token(held.merged_into)
        terms = (await self._port.params()).tokens
        fee_wei = token.fee_to_reuse_wei(terms.reuse_ppm, held.owner)
        fields = {"of": token_id, "spec": spec, "fee_wei": fee_wei}
        return await self.submit(FlashAttest, buyer, fields)

    async def report_double_vote(
        self, subject: Subject, first: VoteCommit, second: VoteCommit, reporter: Account
    ) -> Receipt:
        """Slash a seat that bound itself to two votes in one wave of a review."""
        fields = {"subject": subject, "first": first, "second": second}
        return await self.submit(VoteEquivocation, reporter, fields)

    async def report_copied_vote(
        self, subject: Subject, copied: VoteCommit, opening: VoteReveal, reporter: Account
    ) -> Receipt:
        """Slash a seat that bound itself to another seat's vote."""
        fields = {"subject": subject, "copied": copied, "opening": opening}
        return await self.submit(VoteCopy, reporter, fields)

    async def report_false_vote(
        self,
        subject: Subject,
        commit: VoteCommit,
        opening: VoteReveal,
        attestation: Attestation,
        reporter: Account,
    ) -> Receipt:
        """Slash a seat that voted against what its committee found; see
        :meth:`Settlement.report_false_vote`."""
        fields = {"subject": subject, "opening": opening, "attestation": attestation}
        if attestation.decision is Decision.ACCEPTED:
            return await self.submit(FalseAccusation, reporter, {**fields, "accusation": commit})
        return await self.submit(FalseAcceptance, reporter, {**fields, "acceptance": commit})

    async def submit_sealed(
        self, kind: type[Transaction], account: Account, fields: Mapping[str, Any]
    ) -> Receipt:
        """Commit to a transaction of a kind that may travel sealed, and reveal it when the
        commitment is final: nobody can put anything of theirs before it.

        The salt follows from the account's secret and the terms, so a call that is repeated after
        a crash goes on with the same commitment.
        """
        action = action_of(kind.model_validate({"sender": account.address, "nonce": 0, **fields}))
        salt = keccak256(b"daifi/seal-salt/1" + self._ledger_id + account.secret + action)
        terms = (await self._port.params()).sealed
        sealed = {
            "commitment": sealed_commitment(account.address, salt, action),
            "deposit_wei": terms.deposit_wei,
            "lasts_ms": terms.max_ms,
        }
        try:
            await self.submit(Sealed, account, sealed)
        except TransactionRefused as error:
            if error.details.get("code") != "duplicate":  # then a call before this one got here
                raise
        return await self.submit(Reveal, account, {"salt": salt, "action": action})

    async def _require_funds(self, address: str, amount_wei: int) -> None:
        balance_wei = (await self._port.account(address)).balance_wei
        if balance_wei < amount_wei:
            raise InsufficientFunds(
                f"account {address} holds {balance_wei} wei and needs {amount_wei}; fund it",
                code="insufficient-funds",
                balance_wei=balance_wei,
                needed_wei=amount_wei,
            )

    async def _require_token(self, token_id: bytes) -> TokenRecord:
        token = await self._port.token(token_id)
        if token is None:
            raise TransactionRefused(
                f"token {token_id.hex()} was never minted on this ledger", code="unknown"
            )
        return token

    async def _require(self, task_id: bytes) -> TaskRecord:
        task = await self._port.task(task_id)
        if task is None:
            raise TransactionRefused(
                f"task {task_id.hex()} was never opened on this ledger", code="unknown"
            )
        return task


def _or_drawn(request: bytes | None) -> bytes:
    return secrets.token_bytes(32) if request is None else request


async def patiently(
    call: Callable[[], Awaitable[Any]], retry: tuple[type[BaseException], ...], patience_s: float
) -> Any:
    """Call again after 0.5, 1, 2, 3, 5, 8, 8 … seconds while it raises one of ``retry``.

    Raises:
        the last error, once ``patience_s`` seconds have passed.
    """
    give_up = time.monotonic() + patience_s
    delays = iter((0.5, 1.0, 2.0, 3.0, 5.0))
    while True:
        try:
            return await call()
        except retry:
            if time.monotonic() >= give_up:
                raise
            await asyncio.sleep(next(delays, 8.0))

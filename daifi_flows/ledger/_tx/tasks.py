"""The life of a task, from escrow to settlement or refund."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from daifi_flows.cnft import (
    Address,
    Attestation,
    Bytes32,
    Cid,
    ProofHeader,
    TaskSpec,
    Uint,
    Wei,
)
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._tx._base import Transaction

__all__ = [
    "KINDS",
    "MAX_FORGOTTEN",
    "Assign",
    "Cancel",
    "Commit",
    "Effect",
    "Expire",
    "Forget",
    "Open",
    "Reject",
    "Release",
    "Settle",
    "Unproven",
]


MAX_FORGOTTEN: Final = 256
"""Most tasks that one transaction removes."""


class Open(Transaction):
    """Open a task and lock its highest price.

    Attributes:
        bid_ms: how long nodes may bid for it, in each attempt; 0: the buyer chooses alone.
        reveal_ms: how long after that they may reveal their bids; 0 exactly when ``bid_ms`` is.
    """

    kind: ClassVar[str] = "open"
    spec: TaskSpec
    bid_ms: Uint = 0
    reveal_ms: Uint = 0

    def mark(self) -> bytes | None:
        return b"open/" + self.spec.task_id


class _OnAttempt(Transaction):
    task_id: Bytes32
    attempt: Uint

    def mark(self) -> bytes | None:
        return self.kind.encode() + b"/" + self.task_id + self.attempt.to_bytes(8, "big")


class Assign(_OnAttempt):
    """Give an open task to a node at a price."""

    kind: ClassVar[str] = "assign"
    node: Address
    price_wei: Wei


class Commit(_OnAttempt):
    """Record the node's signed proof header, and the content id of the whole proof.

    Buyer and node may each do it once: an attestation about either content id counts.
    """

    kind: ClassVar[str] = "commit"
    proof_cid: Cid
    header: ProofHeader

    def mark(self) -> bytes | None:
        place = self.task_id + self.attempt.to_bytes(8, "big") + bytes.fromhex(self.sender[2:])
        return b"commit/" + place


class Release(_OnAttempt):
    """Take a task back from a node that was lost, or give it back."""

    kind: ClassVar[str] = "release"


class _Attested(Transaction):
    attestation: Attestation

    def intent(self) -> bytes:
        # Two honest aggregations of one finding may differ in their signers.
        return keccak256(self.kind.encode() + self.attestation.message())

    def mark(self) -> bytes | None:
        attestation = self.attestation
        return (
            self.kind.encode() + b"/" + attestation.task_id + attestation.attempt.to_bytes(8, "big")
        )


class Settle(_Attested):
    """Pay for an accepted execution and mint its token.

    ``metadata`` is the digest of the bundle's core metadata.
    """

    kind: ClassVar[str] = "settle"
    metadata: Bytes32

    def intent(self) -> bytes:
        return keccak256(super().intent() + self.metadata)

    def mark(self) -> bytes | None:
        return b"settle/" + self.attestation.task_id


class Reject(_Attested):
    """Slash the node of a rejected execution and reopen the task."""

    kind: ClassVar[str] = "reject"


class Unproven(_Attested):
    """Refund a task the committee could not decide; nobody is slashed."""

    kind: ClassVar[str] = "unproven"


class _OnTask(Transaction):
    task_id: Bytes32

    def mark(self) -> bytes | None:
        return self.kind.encode() + b"/" + self.task_id


class Cancel(_OnTask):
    """The buyer gives up a task that no node has answered; refunded."""

    kind: ClassVar[str] = "cancel"


class Expire(_OnTask):
    """Refund a task whose deadline has passed; anyone may."""

    kind: ClassVar[str] = "expire"


class Forget(Transaction):
    """Remove tasks from the state that are over for good; anyone may. Their receipts can be
    proven as before."""

    kind: ClassVar[str] = "forget"
    tasks: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=MAX_FORGOTTEN)]


class Effect(Transaction):
    """Commit, once, to what a token's after-settlement action returned."""

    kind: ClassVar[str] = "effect"
    token_id: Bytes32
    effect: Bytes32

    def mark(self) -> bytes | None:
        return b"effect/" + self.token_id


KINDS: Final[tuple[type[Transaction], ...]] = (
    Open,
    Assign,
    Commit,
    Release,
    Settle,
    Reject,
    Unproven,
    Cancel,
    Expire,
    Effect,
    Forget,
)

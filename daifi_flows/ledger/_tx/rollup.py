"""Settling many inferences at once: a batch, claims of its leaves, and proofs that one is wrong."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from daifi_flows.cnft import Attestation, Bytes32, Raw, Uint, Wei
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._tx._base import MAX_TX_BYTES, Transaction
from daifi_flows.rollup import (
    LEAF_BYTES,
    MAX_BATCH_LEAVES,
    BatchAttestation,
    BatchStatement,
    LeafProof,
)

__all__ = [
    "KINDS",
    "ClaimLeaf",
    "CloseBatch",
    "FinaliseBatch",
    "ProveDuplicate",
    "ProveRejected",
    "ProveSettled",
    "SubmitBatch",
]


class SubmitBatch(Transaction):
    """Settle a batch: its leaves, the total and a bond from the sender, who is its operator.

    Attributes:
        root: Merkle root over the leaves; the batch's name from here on.
        total_wei: sum of the leaves' amounts.
        bond_wei: lost in part when a leaf is proven wrong, else back with the sender.
        submit_by_ms: as the committee signed it (see ``BatchStatement``).
        leaves: 160 bytes each, one after another: everybody can build every proof from them.
    """

    kind: ClassVar[str] = "submit-batch"
    max_bytes: ClassVar[int] = MAX_BATCH_LEAVES * LEAF_BYTES + MAX_TX_BYTES

    root: Bytes32
    total_wei: Wei
    bond_wei: Wei
    submit_by_ms: Uint
    attestation: BatchAttestation
    leaves: Annotated[Raw, Field(max_length=MAX_BATCH_LEAVES * LEAF_BYTES)]

    def mark(self) -> bytes | None:
        return b"submit-batch/" + self.root

    def intent(self) -> bytes:
        # Two honest aggregations of one finding may differ in their signers; the root binds the
        # leaves.
        return keccak256(
            self.kind.encode()
            + self.root
            + self.total_wei.to_bytes(32, "big")
            + self.bond_wei.to_bytes(32, "big")
            + self.submit_by_ms.to_bytes(8, "big")
        )

    def statement(self, ledger_id: bytes) -> BatchStatement:
        """What the attestation must be about."""
        return BatchStatement(
            ledger_id=ledger_id,
            epoch=self.attestation.epoch,
            operator=self.sender,
            root=self.root,
            count=len(self.leaves) // LEAF_BYTES,
            total_wei=self.total_wei,
            submit_by_ms=self.submit_by_ms,
        )


class _OnBatch(Transaction):
    batch: Bytes32

    def mark(self) -> bytes | None:
        return self.kind.encode() + b"/" + self.batch


class ClaimLeaf(_OnBatch):
    """Pay a leaf's node and mint its token, once; anybody may bring the proof."""

    kind: ClassVar[str] = "claim-leaf"
    proof: LeafProof

    def mark(self) -> bytes | None:
        return self.mark_of(self.batch, self.proof.index)

    @classmethod
    def mark_of(cls, batch: bytes, index: int) -> bytes:
        """Key of the one claim of a leaf."""
        return b"claim-leaf/" + batch + index.to_bytes(8, "big")


class _Fraud(_OnBatch):
    proof: LeafProof


class ProveDuplicate(_Fraud):
    """Show that a leaf's task is in an earlier batch too."""

    kind: ClassVar[str] = "prove-duplicate"
    earlier: Bytes32
    earlier_proof: LeafProof


class ProveSettled(_Fraud):
    """Point at a leaf whose task was already settled when the batch was submitted."""

    kind: ClassVar[str] = "prove-settled"


class ProveRejected(_Fraud):
    """Show that the committee rejected what a leaf says its node answered."""

    kind: ClassVar[str] = "prove-rejected"
    attestation: Attestation

    def intent(self) -> bytes:
        return keccak256(
            self.kind.encode()
            + self.batch
            + keccak256(self.proof.canonical())
            + self.attestation.message()
        )


class FinaliseBatch(_OnBatch):
    """Give the operator its bond back, after the challenge window; anybody may."""

    kind: ClassVar[str] = "finalise-batch"


class CloseBatch(_OnBatch):
    """End a batch after its claim period: unclaimed money back to the operator; anybody may."""

    kind: ClassVar[str] = "close-batch"


KINDS: Final[tuple[type[Transaction], ...]] = (
    SubmitBatch,
    ClaimLeaf,
    ProveDuplicate,
    ProveSettled,
    ProveRejected,
    FinaliseBatch,
    CloseBatch,
)

"""The ledger's public face: payments, blocks, certificates and receipts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from daifi_flows._noun import Address, Bytes32, Bytes96, Label, Noun, Ppm, Uint, Wei
from daifi_flows.encoding import keccak256, tagged_hash

__all__ = [
    "BlockHeader",
    "Payment",
    "QuorumCertificate",
    "Receipt",
    "TxReceipt",
    "beacon_message",
    "proposal_digest",
    "skip_message",
]


class Payment(Noun):
    """Money that moved: to whom, how much, why (``node``, ``committee``, ``treasury``,
    ``refund``, ``slash``, ``royalty``)."""

    to: Address
    amount_wei: Wei
    reason: Label


class TxReceipt(Noun):
    """What one transaction did; the leaf under a block's receipt root."""

    tx: Bytes32
    kind: Label
    sender: Address
    fee_wei: Wei = 0
    """What the sender paid for the transaction itself, to the treasury."""
    task_id: Bytes32 | None = None
    token_id: Bytes32 | None = None
    of: Bytes32 | None = None
    """The earlier token that ``token_id`` reuses or repeats."""
    node: Address | None = None
    attestation: Bytes32 | None = None
    """Keccak-256 of the canonical attestation that was applied."""
    content: Bytes32 | None = None
    """Digest of the bundle's core metadata (settle), of the effect (effect), or of the proof's
    header, which the node signed (commit)."""
    attempt: Uint | None = None
    """Of the task, where that matters to who reads the receipt (commit)."""
    review_ppm: Ppm | None = None
    """How likely the committee reviews the execution whose proof was committed."""
    operator: Address | None = None
    """Who runs the node, where that is not the node's own address (commit)."""
    payments: tuple[Payment, ...] = ()

    def commits(self, *, task_id: bytes, attempt: int, node: str, proof: bytes) -> bool:
        """Whether this says that a node committed itself to a proof in an attempt of a task.

        Args:
            proof: :meth:`~daifi_flows.cnft.ProofHeader.digest` of its header, 32 bytes.
        """
        said = (self.kind, self.task_id, self.attempt, self.node, self.content)
        return said == ("commit", task_id, attempt, node, proof) and self.review_ppm is not None


class BlockHeader(Noun):
    """A block's commitments. Final at once: 14 of 21 seats sign :meth:`digest`.

    Attributes:
        proposer: account of the seat that was drawn in ``round`` from ``beacon``.
        builder: who filled the block, and pays the proposer what it bid for that.
        beacon: Keccak-256 of the group's signature over :func:`beacon_message` of ``parent``.
        round: how many drawn proposers of this height were passed over.
    """

    ledger_id: Bytes32
    height: Uint
    parent: Bytes32
    tx_root: Bytes32
    receipt_root: Bytes32
    state_root: Bytes32
    timestamp_ms: Uint
    proposer: Address
    builder: Address
    beacon: Bytes32
    round: Uint
    epoch: Uint
    committee: Bytes32
    history_root: Bytes32
    """Root of the mountain range over the receipts of all blocks up to this one."""
    history_size: Uint
    """How many receipts that is."""

    @property
    def digest(self) -> bytes:
        """Block hash, 32 bytes."""
        return tagged_hash("daifi/block/1", self.plain())


def beacon_message(block_hash: bytes) -> bytes:
    """What holders of the group key sign about a final block: it gives the next one's beacon."""
    return b"daifi/beacon/1" + block_hash


def proposal_digest(block_hash: bytes) -> bytes:
    """What a drawn proposer signs with its account to propose a block, 32 bytes."""
    return keccak256(b"daifi/propose/1" + block_hash)


def skip_message(parent: bytes, round: int) -> bytes:
    """What a seat signs to pass over the proposers of the block after ``parent`` up to ``round``:
    it has signed no block of theirs and never will."""
    return b"daifi/skip/1" + parent + round.to_bytes(8, "big")


class QuorumCertificate(Noun):
    """Signer bitmap and one aggregate BLS signature over a block hash."""

    signers: Uint
    signature: Bytes96

    @staticmethod
    def message(block_hash: bytes) -> bytes:
        """What a seat signs to make a block final."""
        return b"daifi/qc/1" + block_hash


class Receipt(Noun):
    """Inclusion of one transaction receipt in one certified block."""

    header: BlockHeader
    certificate: QuorumCertificate
    leaf: TxReceipt
    index: Uint
    size: Uint
    path: Annotated[tuple[Bytes32, ...], Field(max_length=64)]

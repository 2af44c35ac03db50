"""Proof that a receipt is in its certified block, or in the history under any later one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from daifi_flows._noun import Bytes32, Noun, Uint
from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate, Receipt, TxReceipt
from daifi_flows.epochs import Committees
from daifi_flows.errors import EncodingError
from daifi_flows.keys import verify_bls_aggregate
from daifi_flows.merkle import verify_merkle

__all__ = ["HistoryProof", "check_certificate", "verify_receipt"]


def check_certificate(
    header: BlockHeader, certificate: QuorumCertificate, trusted: Committee | Committees
) -> None:
    """Check that a quorum of the trusted committee, or of one that it leads to, signed the block.

    Raises:
        EncodingError: the block names another committee, or the certificate does not verify.
    """
    committee = Committees.trusting(trusted).certifying(header)
    seats = committee.signers(certificate.signers)
    if len(seats) < committee.quorum:
        raise EncodingError(
            f"{len(seats)} seats certified the block; {committee.quorum} are needed"
        )
    message = QuorumCertificate.message(header.digest)
    if not verify_bls_aggregate([seat.public for seat in seats], message, certificate.signature):
        raise EncodingError("the block's quorum certificate does not verify")


def verify_receipt(receipt: Receipt, trusted: Committee | Committees) -> None:
    """Check that a transaction receipt is in a block certified by the trusted committee, or by one
    that it leads to.

    Raises:
        EncodingError: not under the block's receipt root, or the certificate does not verify.
    """
    if not verify_merkle(
        receipt.header.receipt_root,
        receipt.leaf.canonical(),
        receipt.index,
        receipt.size,
        receipt.path,
    ):
        raise EncodingError("the receipt is not under the block's receipt root")
    check_certificate(receipt.header, receipt.certificate, trusted)


class HistoryProof(Noun):
    """Inclusion of one transaction receipt in everything the ledger did up to a certified block.

    Unlike :class:`~daifi_flows.cnft.Receipt`, whose header is that of the receipt's own block, this
    holds for any later header: who follows the chain by its newest certified header alone can
    check any settlement ever made. The path has at most ⌈log₂ header.history_size⌉ hashes: 20, or
    680 bytes, for a million receipts.

    Attributes:
        index: number of receipts before this one, over all blocks.
    """

    leaf: TxReceipt
    index: Uint
    path: Annotated[tuple[Bytes32, ...], Field(max_length=63)]
    header: BlockHeader
    certificate: QuorumCertificate

    def verify(self, trusted: Committee | Committees) -> None:
        """Check the path and the certificate against a trusted committee, or those it leads to.

        Raises:
            EncodingError: the receipt is not under the header's history root, or the header is
                not certified by the committee of its epoch.
        """
        header = self.header
        if not verify_merkle(
            header.history_root, self.leaf.canonical(), self.index, header.history_size, self.path
        ):
            raise EncodingError("the receipt is not under the block's history root")
        check_certificate(header, self.certificate, trusted)

"""Evidence: two statements of one key where the protocol allows one, and votes that were copied
or false."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import (
    Attestation,
    BlockHeader,
    QuorumCertificate,
    Subject,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._auction import Proposal
from daifi_flows.ledger._tx._base import Transaction
from daifi_flows.ledger._tx.tasks import Commit

__all__ = [
    "KINDS",
    "AttestationEquivocation",
    "BlockEquivocation",
    "FalseAcceptance",
    "FalseAccusation",
    "ProofEquivocation",
    "ProposalEquivocation",
    "VoteCopy",
    "VoteEquivocation",
]


class _Evidence(Transaction):
    def pair(self) -> bytes:
        """Digest of the two statements and of whom they accuse, whichever comes first."""
        raise NotImplementedError

    def mark(self) -> bytes | None:
        return b"evidence/" + self.pair()

    def intent(self) -> bytes:
        return keccak256(self.kind.encode() + self.pair())


class BlockEquivocation(_Evidence):
    """Two blocks of one height and round, each with signatures of the same seats.

    Attributes:
        first_votes: over the first block: of one seat alone, or an aggregate. Whoever is in both
            bitmaps is accused.
    """

    kind: ClassVar[str] = "block-equivocation"
    first: BlockHeader
    first_votes: QuorumCertificate
    second: BlockHeader
    second_votes: QuorumCertificate

    @property
    def accused(self) -> int:
        """Bitmap of the seats that signed both."""
        return self.first_votes.signers & self.second_votes.signers

    def pair(self) -> bytes:
        return _pair(self.first.digest, self.second.digest, self.accused.to_bytes(8, "big"))


class AttestationEquivocation(_Evidence):
    """Two findings about one execution, each with signatures of the same seats: of one seat
    alone, or an aggregate. Whoever is in both bitmaps is accused."""

    kind: ClassVar[str] = "attestation-equivocation"
    first: Attestation
    second: Attestation

    @property
    def accused(self) -> int:
        """Bitmap of the seats that signed both."""
        return self.first.signers & self.second.signers

    def pair(self) -> bytes:
        return _pair(
            keccak256(self.first.message()),
            keccak256(self.second.message()),
            self.accused.to_bytes(8, "big"),
        )


class ProofEquivocation(_Evidence):
    """Two commitments of one node to different proofs in one attempt of a task: *commit*
    transactions that it signed, whether or not the ledger ever saw them."""

    kind: ClassVar[str] = "proof-equivocation"
    first: Commit
    second: Commit

    def pair(self) -> bytes:
        return _pair(
            self.first.header.digest(),
            self.second.header.digest(),
            bytes.fromhex(self.first.sender[2:]) + self.first.attempt.to_bytes(8, "big"),
        )


class ProposalEquivocation(_Evidence):
    """Two headers of one height and round that the same drawn proposer signed."""

    kind: ClassVar[str] = "proposal-equivocation"
    first: Proposal
    second: Proposal

    def pair(self) -> bytes:
        proposer = bytes.fromhex(self.first.header.proposer[2:])
        return _pair(self.first.header.digest, self.second.header.digest, proposer)


class VoteEquivocation(_Evidence):
    """Two different votes that one seat bound itself to in one wave of a review.

    Attributes:
        subject: what the review was about; both votes name its digest.
    """

    kind: ClassVar[str] = "vote-equivocation"
    subject: Subject
    first: VoteCommit
    second: VoteCommit

    def pair(self) -> bytes:
        where = self.subject.digest + _numbers(self.first.seat, self.first.wave)
        return _pair(self.first.commitment, self.second.commitment, where)


class VoteCopy(_Evidence):
    """A seat that bound itself to another seat's vote, shown by that vote.

    Attributes:
        copied: what the accused signed.
        opening: of the commitment in it; its vote names another seat.
    """

    kind: ClassVar[str] = "vote-copy"
    subject: Subject
    copied: VoteCommit
    opening: VoteReveal

    def pair(self) -> bytes:
        where = self.subject.digest + _numbers(self.copied.seat, self.copied.wave)
        return keccak256(b"copy" + where + self.copied.commitment)


class FalseAccusation(_Evidence):
    """A seat's vote to reject a part of an output that a quorum accepted, and that stood.

    Attributes:
        accusation: what the accused signed.
        opening: its vote.
        attestation: what the quorum signed about the same review.
    """

    kind: ClassVar[str] = "false-accusation"
    subject: Subject
    accusation: VoteCommit
    opening: VoteReveal
    attestation: Attestation

    def pair(self) -> bytes:
        where = self.subject.digest + _numbers(self.accusation.seat, self.accusation.wave)
        return keccak256(b"accusation" + where + self.accusation.commitment)


class FalseAcceptance(_Evidence):
    """A seat's vote to accept an output that a quorum was sure is wrong.

    Attributes:
        acceptance: what the accused signed.
        opening: its vote.
        attestation: what the quorum signed about the same review.
    """

    kind: ClassVar[str] = "false-acceptance"
    subject: Subject
    acceptance: VoteCommit
    opening: VoteReveal
    attestation: Attestation

    def pair(self) -> bytes:
        where = self.subject.digest + _numbers(self.acceptance.seat, self.acceptance.wave)
        return keccak256(b"acceptance" + where + self.acceptance.commitment)


def _numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "big") for value in values)


def _pair(one: bytes, other: bytes, accused: bytes) -> bytes:
    return keccak256(min(one, other) + max(one, other) + accused)


KINDS: Final[tuple[type[Transaction], ...]] = (
    BlockEquivocation,
    AttestationEquivocation,
    ProofEquivocation,
    ProposalEquivocation,
    VoteEquivocation,
    VoteCopy,
    FalseAccusation,
    FalseAcceptance,
)

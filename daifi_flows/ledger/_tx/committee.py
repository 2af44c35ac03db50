"""The committee: offering oneself for a seat, drawing the next committee, handing over to it."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import BlockHeader, Bytes65, Committee, QuorumCertificate, Uint, Wei
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._tx._base import Transaction

__all__ = [
    "KINDS",
    "CloseRoll",
    "DrawSeats",
    "HandOver",
    "LateCertificate",
    "OfferSeat",
    "WithdrawOffer",
]


class OfferSeat(Transaction):
    """Offer the sender, a node with a BLS key, for a seat of later committees.

    Attributes:
        pledge_wei: part of its stake that stays as long as it may be needed; the sender's weight
            in a draw is this times its reputation.
        consent: signature of the operator that its registration names, if that is another account,
            over :func:`~daifi_flows.ledger._committees.operator_consent`: who fills an operator's
            share of the seats is the operator's to say.
    """

    kind: ClassVar[str] = "offer-seat"
    repeatable: ClassVar[bool] = True
    pledge_wei: Wei
    consent: Bytes65 = bytes(65)

    def mark(self) -> bytes | None:
        return b"seat/" + self.sender.encode()


class WithdrawOffer(Transaction):
    """Take the offer back. A seat, and a roll that was closed before, are not left by it."""

    kind: ClassVar[str] = "withdraw-offer"
    repeatable: ClassVar[bool] = True

    def mark(self) -> bytes | None:
        return b"seat/" + self.sender.encode()


class CloseRoll(Transaction):
    """Close the roll of candidates for an epoch's seats; anyone may, once it is time.

    Attributes:
        epoch: the one after the present.
    """

    kind: ClassVar[str] = "close-roll"
    epoch: Uint


class DrawSeats(Transaction):
    """Draw the seats from a closed roll; anyone may.

    Attributes:
        header: of the block after that in which the roll was closed: its beacon draws.
        certificate: a quorum's signature of it.
    """

    kind: ClassVar[str] = "draw-seats"
    header: BlockHeader
    certificate: QuorumCertificate


class HandOver(Transaction):
    """Put the committee that was drawn in office, as a quorum of the present one signed; anyone may
    bring it.

    Attributes:
        committee: seats in the order drawn, with their new shares of the same group key.
        certificate: a quorum's signature over :func:`daifi_flows.epochs.handover_message`.
    """

    kind: ClassVar[str] = "hand-over"
    committee: Committee
    certificate: QuorumCertificate

    def mark(self) -> bytes | None:
        return b"handover/" + self.committee.epoch.to_bytes(8, "big")


class LateCertificate(Transaction):
    """Show a block that seats signed which were not in office at its height.

    Attributes:
        votes: over the block: of one seat alone, or an aggregate. All of its seats are accused.
    """

    kind: ClassVar[str] = "late-certificate"
    header: BlockHeader
    votes: QuorumCertificate

    def mark(self) -> bytes | None:
        return b"evidence/" + keccak256(self.header.digest + self.votes.canonical())


KINDS: Final[tuple[type[Transaction], ...]] = (
    OfferSeat,
    WithdrawOffer,
    CloseRoll,
    DrawSeats,
    HandOver,
    LateCertificate,
)

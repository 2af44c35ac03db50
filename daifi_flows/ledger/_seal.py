"""What shows that a block was rightly proposed: its beacon, the draw, its builder and proposer."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from daifi_flows.cnft import (
    BlockHeader,
    Bytes65,
    Bytes96,
    Committee,
    Noun,
    QuorumCertificate,
    Uint,
    Wei,
    skip_message,
)
from daifi_flows.errors import EncodingError, LedgerError
from daifi_flows.keys import verify_bls_aggregate
from daifi_flows.ledger._auction import Bid, Proposal, Slot
from daifi_flows.ledger._proposer import beacon_of, beacon_valid, draw_proposer, proposer_weight
from daifi_flows.ledger._state import Base

__all__ = [
    "MAX_BIDS",
    "MAX_ROUND",
    "Offer",
    "Seal",
    "check_seal",
    "check_turn",
    "open_slot",
    "quorum_signed",
]

MAX_ROUND: Final = 2**20
MAX_BIDS: Final = 64
"""Most bids that one proposer is offered."""


class Seal(Noun):
    """Everything beside header and body that a block needs before seats certify it.

    Attributes:
        beacon: the group's signature over ``beacon_message(parent)``.
        bid_wei: what the builder pays the proposer.
        builder: the builder's signature over its bid.
        proposer: the proposer's signature over the header.
        skip: a quorum's word that it passed over the earlier rounds; absent in round 0.
    """

    beacon: Bytes96
    bid_wei: Wei = 0
    builder: Bytes65
    proposer: Bytes65
    skip: QuorumCertificate | None = None


class Offer(Noun):
    """What a drawn proposer is shown: bids, and how it knows that it is its turn."""

    justify: QuorumCertificate | None = None
    """Certificate of the parent; absent when that is block 0."""
    beacon: Bytes96
    skip: QuorumCertificate | None = None
    term: Uint = 0
    """Of the writer that asks (see :class:`~daifi_flows.ledger._blocks.Block`)."""
    bids: Annotated[tuple[Bid, ...], Field(min_length=1, max_length=MAX_BIDS)]


def open_slot(parent: BlockHeader, state: Base, signature: bytes, round: int) -> Slot:
    """Draw who proposes the block after ``parent`` in a round.

    Args:
        state: after ``parent``: its committee certifies the block, and the weights are what the
            seats' accounts have done by then, fading with time.
        signature: the group's, over ``beacon_message(parent.digest)``; not checked here.

    Raises:
        LedgerError: no such round.
    """
    if not 0 <= round < MAX_ROUND:
        raise LedgerError(f"there is no round {round}")
    office = state.in_office()
    committee, half_life_ms = office.committee, state.params().staking.half_life_ms
    weights: list[int] = []
    for seat in committee.seats:
        standing = state.account(seat.account).standing.at(parent.timestamp_ms, half_life_ms)
        weights.append(proposer_weight(standing.mflop, standing.reputation_ppm))
    beacon = beacon_of(signature)
    seat = draw_proposer(beacon, parent.height + 1, round, weights).seat
    account = committee.seats[seat].account
    return Slot(parent, beacon, round, account, seat, committee.epoch, office.digest)


def check_turn(
    committee: Committee, parent: BlockHeader, signature: bytes, round: int, skip: object
) -> None:
    """Check the beacon of the block after ``parent``, and that its earlier rounds are over.

    Raises:
        LedgerError: the signature is not the group's, or no quorum passed over those rounds.
    """
    where = f"block {parent.height + 1}"
    if committee.group_key is None:
        raise LedgerError(f"{where} cannot have a beacon: the committee has no group key")
    if not beacon_valid(committee.group_key, parent.digest, signature):
        raise LedgerError(f"{where} has a beacon that the committee's group key did not sign")
    if round == 0:
        if skip is not None:
            raise LedgerError(f"{where} passes over rounds before its first")
        return
    if not isinstance(skip, QuorumCertificate) or not quorum_signed(
        committee, skip, skip_message(parent.digest, round - 1)
    ):
        raise LedgerError(
            f"{where} is of round {round}, but no quorum passed over round {round - 1}"
        )


def check_seal(committee: Committee, slot: Slot, header: BlockHeader, seal: Seal) -> None:
    """Check that a header was bid for by its builder and proposed by the seat that was drawn.

    Raises:
        LedgerError: it was not; do not sign it.
    """
    where = f"block {header.height}"
    check_turn(committee, slot.parent, seal.beacon, header.round, seal.skip)
    if header.proposer != slot.proposer:
        raise LedgerError(f"{where} is proposed by {header.proposer}; drawn was {slot.proposer}")
    if not Bid(header=header, bid_wei=seal.bid_wei, signature=seal.builder).signed:
        raise LedgerError(f"{where} is not signed by its builder {header.builder}")
    if not Proposal(header=header, signature=seal.proposer).valid:
        raise LedgerError(f"{where} is not signed by its proposer {header.proposer}")


def quorum_signed(committee: Committee, certificate: QuorumCertificate, message: bytes) -> bool:
    """Whether a quorum of the committee signed ``message``."""
    try:
        seats = committee.signers(certificate.signers)
    except EncodingError:
        return False
    return len(seats) >= committee.quorum and verify_bls_aggregate(
        [seat.public for seat in seats], message, certificate.signature
    )

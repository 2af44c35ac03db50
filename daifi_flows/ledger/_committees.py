"""Records of the committee: who is in office, who was, who offers itself, and who was drawn."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from daifi_flows.cnft import (
    Address,
    Bytes32,
    Bytes48,
    Committee,
    Noun,
    QuorumCertificate,
    Uint,
    Wei,
)
from daifi_flows.encoding import tagged_hash
from daifi_flows.epochs import DrawTerms, Handover
from daifi_flows.errors import LedgerCorrupted
from daifi_flows.ledger._records import Record
from daifi_flows.sortition import Candidate, Draw, draw

__all__ = [
    "MAX_OFFERS",
    "CandidateList",
    "CandidateRecord",
    "CommitteeRecord",
    "Entrant",
    "OfficeRecord",
    "RollRecord",
    "candidate_key",
    "committee_key",
    "operator_consent",
]

MAX_OFFERS: Final = 1_024
"""Most accounts that offer themselves at once. When there are so many, a higher pledge takes the
place of the lowest."""
_ZEROS: Final = bytes(32)
_MOST_DOUBLINGS: Final = 6
"""Of the time until a roll may be closed anew: an hour becomes less than three days."""


class OfficeRecord(Record):
    """Which committee is in office. One record."""

    prefix: ClassVar[bytes] = b"E"
    epoch: Uint

    def key(self) -> bytes:
        return self.prefix


class CommitteeRecord(Record):
    """One epoch's committee, kept for good: the chain of handovers is in the state.

    Attributes:
        digest: of ``committee``.
        since_ms: date of the block that put it in office; it certifies those after that block.
        since_height: that block's height.
        left_ms: the same of the block that put the next one in office; 0 while it is in office.
        previous, draw, certificate: of the handover (see :class:`~daifi_flows.epochs.Handover`);
            genesis's committee has none.
    """

    prefix: ClassVar[bytes] = b"C"
    committee: Committee
    digest: Bytes32
    since_ms: Uint
    since_height: Uint
    left_ms: Uint = 0
    left_height: Uint = 0
    previous: Bytes32 = _ZEROS
    draw: DrawTerms | None = None
    certificate: QuorumCertificate | None = None

    def key(self) -> bytes:
        return committee_key(self.committee.epoch)

    def handover(self, ledger_id: bytes) -> Handover:
        """How it came into office.

        Raises:
            LedgerCorrupted: it is genesis's, which nobody handed over to.
        """
        if self.certificate is None or self.draw is None:
            raise LedgerCorrupted(f"the committee of epoch {self.committee.epoch} has no handover")
        return Handover(
            ledger_id=ledger_id,
            previous=self.previous,
            draw=self.draw,
            committee=self.committee,
            certificate=self.certificate,
        )


def committee_key(epoch: int) -> bytes:
    """State key of an epoch's committee."""
    return CommitteeRecord.prefix + epoch.to_bytes(8, "big")


class CandidateRecord(Record):
    """What an account pledged when it offered itself for a seat.

    Attributes:
        pledge_wei: part of its stake that stays while it is on offer, on the roll or seated.
        operator: who runs it and agreed to that; absent: its own address.
        offered: 1 while the offer stands; 0 when it was withdrawn.
    """

    prefix: ClassVar[bytes] = b"K"
    address: Address
    pledge_wei: Wei
    operator: Address | None = None
    offered: Annotated[int, Field(ge=0, le=1, strict=True)] = 1

    def key(self) -> bytes:
        return candidate_key(self.address)


def candidate_key(address: str) -> bytes:
    """State key of an account's offer."""
    return CandidateRecord.prefix + bytes.fromhex(address[2:])


def operator_consent(ledger_id: bytes, node: str, operator: str) -> bytes:
    """What an operator signs to have a node's seats counted as its own, 32 bytes."""
    terms = {"ledger_id": ledger_id, "node": node, "operator": operator}
    return tagged_hash("daifi/operator/1", terms)


class CandidateList(Record):
    """Whose offers stand, by address. One record.

    Attributes:
        pledges_wei: of each: what the lowest is must be cheap to tell to whoever is refused.
    """

    prefix: ClassVar[bytes] = b"L"
    addresses: tuple[Address, ...] = ()
    pledges_wei: tuple[Wei, ...] = ()

    def key(self) -> bytes:
        return self.prefix


class Entrant(Noun):
    """A candidate as it stood when the roll was closed, with the BLS key it had then."""

    candidate: Candidate
    public: Bytes48


class RollRecord(Record):
    """The newest closed roll: among whom the seats of an epoch are drawn. One record.

    Attributes:
        epoch: whose seats these are.
        height: block in which it was closed; the beacon that draws is that of the next block.
        closed_ms: that block's date.
        seats, per_operator: as :func:`daifi_flows.sortition.draw` takes them.
        root: of the sum tree over the candidates.
        since_height: height of the block that put the committee in office which draws.
        entrants: by address.
        tries: how often a roll for this epoch was closed before.
        beacon: zeros until the seats are drawn.
        drawn: their accounts, by seat.
    """

    prefix: ClassVar[bytes] = b"R"
    epoch: Uint
    height: Uint
    closed_ms: Uint
    seats: Uint
    per_operator: Uint
    root: Bytes32
    since_height: Uint
    entrants: Annotated[tuple[Entrant, ...], Field(max_length=MAX_OFFERS)]
    beacon: Bytes32 = _ZEROS
    drawn: tuple[Address, ...] = ()
    tries: Uint = 0

    def key(self) -> bytes:
        return self.prefix

    def redraw_due_ms(self, redraw_ms: int) -> int:
        """From when on the roll may be closed anew if no handover comes. It takes twice as long
        each time: who can hold handovers back gets few draws to choose from."""
        return self.closed_ms + (redraw_ms << min(self.tries, _MOST_DOUBLINGS))

    @property
    def terms(self) -> DrawTerms:
        """What a handover says of the draw."""
        return DrawTerms(
            epoch=self.epoch,
            since_height=self.since_height,
            height=self.height,
            root=self.root,
            beacon=self.beacon,
            seats=self.seats,
            per_operator=self.per_operator,
        )

    @property
    def digest(self) -> bytes:
        """Of :attr:`terms`: what seats sign, 32 bytes."""
        return self.terms.digest

    def draw(self, beacon: bytes) -> Draw:
        """The draw that a beacon gives, with the proof of each seat."""
        candidates = [entrant.candidate for entrant in self.entrants]
        return draw(beacon, candidates, self.seats, self.per_operator)

    @property
    def elected(self) -> tuple[Entrant, ...]:
        """The entrants that were drawn, by seat."""
        known = {entrant.candidate.account: entrant for entrant in self.entrants}
        return tuple(known[account] for account in self.drawn)

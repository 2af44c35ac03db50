"""Committees over time: each is signed in by a quorum of the one before.

A ledger's committee changes by *handovers*. Whoever trusts the committee of one epoch (that of
genesis, say, which the ledger's id commits to) follows them to that of any later epoch, with
nothing but signatures: :class:`Committees`. What a committee signed, a block or an attestation,
names its epoch, so there is one committee to check it with.

A committee that left could still sign. Its stake answers for that for a while and no longer (see
the ledger's ``evidence_ms``), as in every proof-of-stake chain: who was away for very long should
begin with newer keys than those of genesis, from somebody it trusts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import Field

from daifi_flows._noun import Address, Bytes32, Bytes48, Noun, Uint
from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate, Seat
from daifi_flows.encoding import canonical_json, parse_json, tagged_hash
from daifi_flows.errors import EncodingError
from daifi_flows.keys import check_seat_possession, verify_bls_aggregate
from daifi_flows.threshold import shares_sound

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_HANDOVERS",
    "CommitteeChain",
    "Committees",
    "DrawTerms",
    "Elected",
    "Handover",
    "Succession",
    "UnknownEpoch",
    "committee_fault",
    "handover_message",
]

MAX_HANDOVERS: Final = 4_096
"""Most handovers read from one file: eleven years of days."""
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""Largest file of handovers: one of 21 seats has 12 kB as JSON."""


def handover_message(
    ledger_id: bytes, previous: bytes, draw: bytes, epoch: int, committee: bytes
) -> bytes:
    """What a seat signs to hand over: ``"daifi/handover/1"``, then 32 bytes each but the epoch's 8.

    Args:
        previous: digest of the committee that hands over.
        draw: digest of the draw that chose the seats.
        epoch: of the committee that takes over.
        committee: its digest.
    """
    parts = (ledger_id, previous, draw, epoch.to_bytes(8, "big"), committee)
    return b"daifi/handover/1" + b"".join(parts)


class DrawTerms(Noun):
    """What a draw follows from, and since when the committee is in office that hands over.

    Attributes:
        epoch: whose seats were drawn.
        since_height: height of the block that put the committee before it in office, which
            certified the blocks after that one.
        height: of the block in which the roll of candidates was closed; the beacon is that of the
            next one.
        root, beacon, seats, per_operator: as :func:`daifi_flows.sortition.check_draw` takes them.
    """

    epoch: Uint
    since_height: Uint
    height: Uint
    root: Bytes32
    beacon: Bytes32
    seats: Uint
    per_operator: Uint

    @property
    def digest(self) -> bytes:
        """What seats sign, 32 bytes."""
        return tagged_hash("daifi/draw/1", self.plain())


class Handover(Noun):
    """One committee's word that another takes its place.

    Attributes:
        previous: digest of the committee that signs.
        draw: how the seats were chosen.
        committee: who takes over.
        certificate: of the committee that hands over, over :meth:`message`.
    """

    ledger_id: Bytes32
    previous: Bytes32
    draw: DrawTerms
    committee: Committee
    certificate: QuorumCertificate

    def message(self) -> bytes:
        """What the seats signed."""
        new, draw = self.committee, self.draw.digest
        return handover_message(self.ledger_id, self.previous, draw, new.epoch, new.digest)

    def check(self, previous: Committee) -> None:
        """Check that ``previous`` hands over to the next committee.

        Whether the seats were drawn, hold their keys and have sound shares, each seat of
        ``previous`` has checked before it signed, the draw by its own copy of the ledger.

        Raises:
            EncodingError: it is not the next epoch's, has another group key, or no quorum signed.
        """
        new, where = self.committee, f"the handover to epoch {self.committee.epoch}"
        if self.previous != previous.digest or new.epoch != previous.epoch + 1:
            raise EncodingError(f"{where} does not follow the committee of epoch {previous.epoch}")
        if new.group_key != previous.group_key:
            raise EncodingError(f"{where} has another group key")
        if (self.draw.epoch, self.draw.seats) != (new.epoch, len(new.seats)):
            raise EncodingError(f"{where} is not what was drawn")
        if (fault := _seating_fault(new)) is not None:
            raise EncodingError(f"{where}: {fault}")
        seats = previous.signers(self.certificate.signers)
        if len(seats) < previous.quorum:
            raise EncodingError(f"{len(seats)} seats signed {where}; {previous.quorum} are needed")
        publics = [seat.public for seat in seats]
        if not verify_bls_aggregate(publics, self.message(), self.certificate.signature):
            raise EncodingError(f"the signature of {where} does not verify")


class Elected(Noun):
    """A seat as it was drawn: who has it, by which key, and with what weight."""

    public: Bytes48
    account: Address
    operator: Address | None = None
    weight: Uint | None = None

    @classmethod
    def of(cls, seat: Seat) -> Elected:
        """What of a committee's seat the draw decides."""
        return cls(
            public=seat.public, account=seat.account, operator=seat.operator, weight=seat.weight
        )


class Succession(Noun):
    """What a final state of the ledger says of who comes next: whom seats may hand shares on to.

    Attributes:
        in_office: epoch of the committee that certifies the next block.
        draw: digest of the sortition of the epoch after it; zeros until it is drawn.
        elected: the seats that were drawn, in their order.
    """

    ledger_id: Bytes32
    in_office: Uint
    draw: Bytes32 = bytes(32)
    elected: tuple[Elected, ...] = ()


class CommitteeChain(Noun):
    """Handovers one after another, as they lie in a file beside the first committee's keys."""

    handovers: Annotated[tuple[Handover, ...], Field(max_length=MAX_HANDOVERS)] = ()

    def to_json(self) -> bytes:
        """As a file, which :meth:`from_json` reads."""
        return canonical_json(self.jsonable())

    @classmethod
    def from_json(cls, data: bytes) -> CommitteeChain:
        """Read a file. Nothing is verified; :class:`Committees` does that.

        Raises:
            EncodingError: it is no such file, or larger than :data:`MAX_FILE_BYTES`.
        """
        if len(data) > MAX_FILE_BYTES:
            raise EncodingError(f"a file of handovers has at most {MAX_FILE_BYTES} bytes")
        return cls.from_plain(parse_json(data))


class UnknownEpoch(EncodingError):
    """Whose committee is trusted leads to none of the epoch that is asked about."""


class Committees:
    """The committees of consecutive epochs, from one that is trusted.

    A handover says since when the committee that signs it is in office. So all but the last two
    are known with the blocks that were theirs to certify: what they sign later is not believed. The
    last one took office after the block whose beacon drew it. Only until its own handover is known
    is the last but one believed too long.

    Args:
        anchor: the trusted one.
        handovers: from its epoch on, in order; earlier ones are passed over.

    Raises:
        EncodingError: a handover does not follow, or is not signed by the committee before it.
    """

    def __init__(self, anchor: Committee, handovers: Iterable[Handover] = ()) -> None:
        self._known = [anchor]
        self._digests = [anchor.digest]
        self._since: list[int] = []
        """Heights after which each certified blocks, as far as a later handover says."""
        self._drawn: int | None = None
        """Height of the block whose beacon drew the last one; it certified none up to that."""
        self._ledger_id: bytes | None = None
        for handover in handovers:
            if handover.committee.epoch <= anchor.epoch:
                continue
            if self._ledger_id not in (None, handover.ledger_id):
                raise EncodingError("the handovers are of two ledgers")
            self._ledger_id = handover.ledger_id
            handover.check(self._known[-1])
            since = handover.draw.since_height
            if self._drawn is not None and since <= self._drawn:
                raise EncodingError("a committee took office before it was drawn")
            if handover.draw.height < since:
                raise EncodingError("a committee drew its successor before it was in office")
            self._since.append(since)
            self._drawn = handover.draw.height + 1
            self._known.append(handover.committee)
            self._digests.append(handover.committee.digest)

    @classmethod
    def trusting(cls, trusted: Committee | Committees) -> Committees:
        """One committee alone, or what it leads to already."""
        return cls(trusted) if isinstance(trusted, Committee) else trusted

    @property
    def anchor(self) -> Committee:
        """The one that is trusted."""
        return self._known[0]

    @property
    def last(self) -> Committee:
        """The newest one known."""
        return self._known[-1]

    def of(self, epoch: int) -> Committee:
        """The committee of an epoch.

        Raises:
            UnknownEpoch: no handover leads to it; the message says what is missing.
        """
        return self._known[self._index(epoch)]

    def certifying(self, header: BlockHeader) -> Committee:
        """The committee that a block's certificate must be of.

        Raises:
            UnknownEpoch: no handover leads to it.
            EncodingError: the block is another ledger's, names another committee, or was not this
                one's to certify.
        """
        index, height = self._index(header.epoch), header.height
        if self._ledger_id not in (None, header.ledger_id):
            raise EncodingError("the block is of another ledger than the handovers")
        if header.committee != self._digests[index]:
            raise EncodingError("the block was certified by another committee than the trusted one")
        since = self._since[index] if index < len(self._since) else self._drawn
        until = self._since[index + 1 : index + 2]
        if (since is not None and height <= since) or any(height > last for last in until):
            raise EncodingError(
                f"block {height} was not certified by the committee of epoch {header.epoch}, "
                "which was not in office"
            )
        return self._known[index]

    def _index(self, epoch: int) -> int:
        first, last = self._known[0].epoch, self._known[-1].epoch
        if epoch < first:
            raise UnknownEpoch(
                f"this is of epoch {epoch} and the trusted committee is of epoch {first}: take an "
                "earlier committee's keys as the anchor"
            )
        if epoch > last:
            raise UnknownEpoch(
                f"this is of epoch {epoch} and the trusted committees end with epoch {last}: give "
                "the ledger's handovers up to it, or a newer committee's keys"
            )
        return epoch - first


def _seating_fault(committee: Committee) -> str | None:
    seats = committee.seats
    if not seats or [seat.index for seat in seats] != list(range(len(seats))):
        return "its seats must be numbered 0, 1, 2, … in order"
    if len({seat.public for seat in seats}) != len(seats):
        return "two of its seats share a BLS key"
    return None


def committee_fault(committee: Committee) -> str | None:
    """Why a committee cannot certify blocks, or nothing.

    Its seats must be in order, each with a key of its own and a proof that somebody holds it; and
    the group key must be shared among all of them so that a quorum makes its signature and no
    fewer.
    """
    if (fault := _seating_fault(committee)) is not None:
        return fault
    for seat in committee.seats:
        if not check_seat_possession(seat.public, seat.account, seat.possession):
            return f"seat {seat.index} has no valid proof of possession of its BLS key"
    shares = tuple(seat.share for seat in committee.seats if seat.share is not None)
    group_key = committee.group_key
    if (
        group_key is None
        or len(shares) != len(committee.seats)
        or not shares_sound(group_key, shares, committee.quorum)
        or shares_sound(group_key, shares, committee.quorum - 1)
    ):
        return (
            "it has no group key shared among all of its seats, a quorum of whom, and no fewer, "
            "makes its signature; deal one: without it blocks have no beacon"
        )
    return None

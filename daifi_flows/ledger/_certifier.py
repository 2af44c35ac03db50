"""How a block gets its proposer, its quorum certificate and the next block's beacon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate, beacon_message, skip_message
from daifi_flows.errors import KeyMaterialError, LedgerUnavailable
from daifi_flows.keys import aggregate_bls, verify_bls, verify_bls_aggregate
from daifi_flows.threshold import recover_signature

__all__ = [
    "Certifier",
    "Collected",
    "Following",
    "History",
    "Resumed",
    "collect",
    "collect_resumed",
    "collect_skip",
]

History: TypeAlias = Callable[[int], Awaitable[Sequence[bytes]]]
"""Certified blocks from a height on (at most 256; ask again from the next for more)."""


class Certifier(Protocol):
    """Whoever carries blocks to the seats and brings their words back.

    Seats that lag catch up from ``history``. What is brought back is checked here.
    """

    async def propose(self, seat: int, offer: bytes, history: History) -> tuple[bytes, bytes]:
        """The block hash that a drawn seat chose from a canonical ``Offer``, and its account's
        signature over ``proposal_digest`` of it. Raises when the seat is silent."""
        ...

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes, bytes]]:
        """Of each seat that checked ``block`` and agrees: its index, its BLS signature over
        ``QuorumCertificate.message(header.digest)``, and its share of the group's signature over
        ``beacon_message(header.digest)`` (empty: none)."""
        ...

    async def resume(
        self, header: BlockHeader, term: int, history: History
    ) -> tuple[Sequence[tuple[int, bytes]], Sequence[int], Sequence[bytes]]:
        """What seats say to whoever begins to propose on top of a final block; from then on they
        refuse writers of older terms.

        Returns:
            Seat index and share of the group's signature over ``beacon_message(header.digest)``;
            rounds of the next block that seats passed over; and blocks that seats signed on top
            of it, which are not final yet.
        """
        ...

    async def skip(
        self, parent: BlockHeader, round: int, term: int, history: History
    ) -> Sequence[tuple[int, bytes]]:
        """Seat index and BLS signature over ``skip_message(parent.digest, round)``, of each seat
        that waited long enough and passes over the proposers up to that round."""
        ...


@runtime_checkable
class Following(Protocol):
    """A certifier that reaches one committee after another."""

    def follow(self, in_office: Callable[[], Awaitable[Committee]]) -> None:
        """Told by the ledger how to learn whose seats certify the next block."""
        ...


class Collected(NamedTuple):
    """A block's certificate, and the group's signature that gives the next beacon (absent when
    fewer than a quorum of right shares came along)."""

    certificate: QuorumCertificate
    beacon: bytes | None


async def collect(
    certifier: Certifier, committee: Committee, header: BlockHeader, block: bytes, history: History
) -> Collected:
    """Ask the seats, aggregate what they signed, and combine their shares of the next beacon.

    Raises:
        LedgerUnavailable: fewer than a quorum of valid signatures came back.
    """
    partials: dict[int, bytes] = {}
    shares: dict[int, bytes] = {}
    for index, signature, share in await certifier.certify(header, block, history):
        partials.setdefault(index, signature)
        shares.setdefault(index, share)
    message = QuorumCertificate.message(header.digest)
    certificate = _certificate(committee, partials, message, f"block {header.height}")
    return Collected(certificate, _combine(committee, header, shares))


class Resumed(NamedTuple):
    """What there is to know before proposing on top of a block: the group's signature that gives
    the beacon, the highest round that was passed over, and blocks that seats signed."""

    beacon: bytes
    passed: int | None
    blocks: Sequence[bytes]


async def collect_resumed(
    certifier: Certifier,
    committee: Committee,
    header: BlockHeader,
    term: int,
    history: History,
    *,
    latest: int | None = None,
) -> Resumed:
    """Ask the seats how far they are with the block after a final one.

    Args:
        latest: the last round that can be over; whoever names a later one is not believed, since
            there is only so many rounds, and one seat's word must not use them up.

    Raises:
        LedgerUnavailable: fewer than a quorum of valid shares of the beacon came back.
    """
    shares, passed, blocks = await certifier.resume(header, term, history)
    signature = _combine(committee, header, dict(shares))
    if signature is None:
        raise LedgerUnavailable(
            f"too few seats gave their share of the beacon after block {header.height}; "
            f"{committee.quorum} are needed: check that the seat hosts are up",
            quorum=committee.quorum,
            height=header.height,
        )
    known = [each for each in passed if latest is None or each <= latest]
    return Resumed(signature, max(known, default=None), blocks)


async def collect_skip(
    certifier: Certifier,
    committee: Committee,
    parent: BlockHeader,
    round: int,
    term: int,
    history: History,
) -> QuorumCertificate:
    """A quorum's word that it passes over the proposers after ``parent`` up to ``round``.

    Raises:
        LedgerUnavailable: fewer than a quorum of valid signatures came back.
    """
    partials: dict[int, bytes] = {}
    for index, signature in await certifier.skip(parent, round, term, history):
        partials.setdefault(index, signature)
    what = f"passing over round {round} of block {parent.height + 1}"
    return _certificate(committee, partials, skip_message(parent.digest, round), what)


def _combine(
    committee: Committee, header: BlockHeader, shares: Mapping[int, bytes]
) -> bytes | None:
    publics = [seat.share for seat in committee.seats if seat.share is not None]
    if committee.group_key is None or len(publics) != len(committee.seats):
        return None
    message = beacon_message(header.digest)
    try:
        return recover_signature(committee.group_key, publics, committee.quorum, message, shares)
    except KeyMaterialError:
        return None


def _certificate(
    committee: Committee, signatures: Mapping[int, bytes], message: bytes, what: str
) -> QuorumCertificate:
    count = len(committee.seats)
    partials = {index: each for index, each in signatures.items() if 0 <= index < count}
    publics = {index: committee.seats[index].public for index in partials}
    # One pairing check over all; seat by seat only when somebody sent a bad one.
    signature = _aggregate(list(partials.values()))
    if not verify_bls_aggregate(list(publics.values()), message, signature):
        partials = {
            index: each
            for index, each in partials.items()
            if verify_bls(publics[index], message, each)
        }
        signature = _aggregate(list(partials.values()))
    if len(partials) < committee.quorum:
        raise LedgerUnavailable(
            f"{len(partials)} of {count} seats certified {what}; {committee.quorum} are needed: "
            "check that the seat hosts are up",
            signed=len(partials),
            quorum=committee.quorum,
        )
    return QuorumCertificate(signers=sum(1 << index for index in partials), signature=signature)


def _aggregate(signatures: Sequence[bytes]) -> bytes:
    if not signatures:
        return bytes(96)
    try:
        return aggregate_bls(signatures)
    except KeyMaterialError:  # one malformed partial; the caller then checks each alone
        return bytes(96)

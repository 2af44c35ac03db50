"""How a proposed block gets its quorum certificate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate
from daifi_flows.errors import KeyMaterialError, LedgerUnavailable
from daifi_flows.keys import aggregate_bls, verify_bls, verify_bls_aggregate

__all__ = ["Certifier", "History", "collect"]

History: TypeAlias = Callable[[int], Awaitable[Sequence[bytes]]]
"""Certified blocks from a height on (at most 256; ask again from the next for more)."""


class Certifier(Protocol):
    """Whoever carries blocks to the seats and brings their signatures back."""

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes]]:
        """Seat index and BLS signature over ``QuorumCertificate.message(header.digest)``, of each
        seat that checked ``block`` and agrees. Seats that lag catch up from ``history``."""
        ...


async def collect(
    certifier: Certifier, committee: Committee, header: BlockHeader, block: bytes, history: History
) -> QuorumCertificate:
    """Ask the seats and aggregate what they signed.

    Raises:
        LedgerUnavailable: fewer than a quorum of valid signatures came back.
    """
    message = QuorumCertificate.message(header.digest)
    partials: dict[int, bytes] = {}
    for index, signature in await certifier.certify(header, block, history):
        if 0 <= index < len(committee.seats):
            partials.setdefault(index, signature)
    publics = {index: committee.seats[index].public for index in partials}

    def good(index: int) -> bool:
        return verify_bls(publics[index], message, partials[index])

    # One pairing check over all; seat by seat only when somebody sent a bad one.
    signature = _aggregate(list(partials.values()))
    if not verify_bls_aggregate(list(publics.values()), message, signature):
        partials = {index: each for index, each in partials.items() if good(index)}
        signature = _aggregate(list(partials.values()))
    if len(partials) < committee.quorum:
        raise LedgerUnavailable(
            f"{len(partials)} of {len(committee.seats)} seats certified block {header.height}; "
            f"{committee.quorum} are needed: check that the seat hosts are up",
            signed=len(partials),
            quorum=committee.quorum,
            height=header.height,
        )
    return QuorumCertificate(signers=sum(1 << index for index in partials), signature=signature)


def _aggregate(signatures: Sequence[bytes]) -> bytes:
    if not signatures:
        return bytes(96)
    try:
        return aggregate_bls(signatures)
    except KeyMaterialError:  # one malformed partial; the caller then checks each alone
        return bytes(96)

"""Collecting a block's partial signatures from seat hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate
from daifi_flows.errors import KeyMaterialError
from daifi_flows.judges._messages import CertifyReply, HostLost, SeatTransport
from daifi_flows.judges._rounds import ask_all
from daifi_flows.keys import aggregate_bls, verify_bls, verify_bls_aggregate

__all__ = ["BlockCertifier"]

POST_QUORUM_S: Final = 0.25
"""How long a certified block waits for further signers: finality is what users wait for."""


class BlockCertifier:
    """Satisfies the ledger's ``Certifier`` protocol without importing the ledger.

    Args:
        hosts: transports to the seat hosts.
        committee: whose seats they hold.
        timeout_s: for one block, restarts of hosts and their catching up included.
    """

    def __init__(
        self, hosts: Sequence[SeatTransport], committee: Committee, *, timeout_s: float = 60.0
    ) -> None:
        self.hosts = tuple(hosts)
        self.committee = committee
        self.timeout_s = timeout_s

    async def certify(
        self,
        header: BlockHeader,
        block: bytes,
        history: Callable[[int], Awaitable[Sequence[bytes]]],
    ) -> Sequence[tuple[int, bytes]]:
        """Partial signatures over ``QuorumCertificate.message(header.digest)``, checked.

        Args:
            block: canonical block with that header.
            history: certified blocks from a height on, for hosts that lag.

        Returns:
            (seat index, signature), one a seat, by index. Fewer than a quorum when not enough
            seats answered in time or they refuse the block.
        """
        message = QuorumCertificate.message(header.digest)
        head = header.canonical()
        partials: dict[int, bytes] = {}

        async def ask(host: SeatTransport) -> CertifyReply:
            reached = -1
            while (reply := await host.certify(head, block)).needs_from is not None:
                if reply.needs_from <= reached:  # a page of history brought it no further
                    raise HostLost("the seat host's replica does not catch up with the ledger")
                reached = reply.needs_from
                await host.provide_blocks(await history(reached))
            return reply

        def absorb(_: int, reply: CertifyReply) -> None:
            fresh = {
                index: partial
                for index, partial in reply.partials[: len(self.committee.seats)]
                if 0 <= index < len(self.committee.seats) and index not in partials
            }
            partials.update(_good(fresh, self.committee, message))

        def patience_s(_: float) -> float | None:
            if len(partials) == len(self.committee.seats):
                return 0.0
            return POST_QUORUM_S if len(partials) >= self.committee.quorum else None

        deadline = asyncio.get_running_loop().time() + self.timeout_s
        await ask_all(self.hosts, ask, absorb, patience_s, deadline=deadline)
        return sorted(partials.items())


def _good(partials: dict[int, bytes], committee: Committee, message: bytes) -> dict[int, bytes]:
    """The valid ones: one check for all of them, and one each only when that fails."""
    publics = {index: committee.seats[index].public for index in partials}
    try:
        together = aggregate_bls(list(partials.values()))
    except KeyMaterialError:
        together = b""
    if verify_bls_aggregate(list(publics.values()), message, together):
        return partials
    return {
        index: partial
        for index, partial in partials.items()
        if verify_bls(publics[index], message, partial)
    }

"""Collecting a block's partial signatures from seat hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate
from daifi_flows.judges._messages import CertifyReply, HostLost, SeatTransport
from daifi_flows.judges._rounds import ask_all
from daifi_flows.keys import verify_bls

__all__ = ["BlockCertifier"]

POST_QUORUM_S: Final = 0.25
"""How long a certified block waits for further signers: finality is what users wait for."""

CATCH_UP_ROUNDS: Final = 8
"""How often one host may ask for more history while certifying one block."""


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
            reply = await host.certify(head, block)
            for _ in range(CATCH_UP_ROUNDS):
                if reply.needs_from is None:
                    return reply
                await host.provide_blocks(await history(reply.needs_from))
                reply = await host.certify(head, block)
            raise HostLost("the seat host's replica does not catch up with the ledger")

        def absorb(_: int, reply: CertifyReply) -> None:
            for index, partial in reply.partials:
                if (
                    0 <= index < len(self.committee.seats)
                    and index not in partials
                    and verify_bls(self.committee.seats[index].public, message, partial)
                ):
                    partials[index] = partial

        def patience_s(_: float) -> float | None:
            if len(partials) == len(self.committee.seats):
                return 0.0
            return POST_QUORUM_S if len(partials) >= self.committee.quorum else None

        deadline = asyncio.get_running_loop().time() + self.timeout_s
        await ask_all(self.hosts, ask, absorb, patience_s, deadline=deadline)
        return sorted(partials.items())

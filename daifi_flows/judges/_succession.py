"""Blocks across handovers: each is carried to the seats of the committee that is in office."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from daifi_flows.cnft import BlockHeader, Committee
from daifi_flows.judges._certifier import BlockCertifier, History

__all__ = ["SuccessiveCertifier"]

_KEPT = 2
"""Committees whose hosts are remembered: one in office and the one before."""


class SuccessiveCertifier:
    """Satisfies the ledger's ``Certifier`` protocol for one committee after another.

    The ledger says who is in office (:meth:`follow`); before it has, the first committee is.

    Args:
        first: whose seats are asked until then.
        reach: makes the certifier of a committee when that is first asked; a CommitteeError it
            raises, because those seats' hosts do not run yet, leaves the block waiting for them.
    """

    def __init__(self, first: Committee, reach: Callable[[Committee], BlockCertifier]) -> None:
        self._first = first
        self._reach = reach
        self._in_office: Callable[[], Awaitable[Committee]] | None = None
        self._known: dict[bytes, BlockCertifier] = {}

    def follow(self, in_office: Callable[[], Awaitable[Committee]]) -> None:
        """From now on ask those who are in office; called by the ledger."""
        self._in_office = in_office

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes, bytes]]:
        """See :meth:`BlockCertifier.certify`."""
        return await (await self._seats()).certify(header, block, history)

    async def propose(self, seat: int, offer: bytes, history: History) -> tuple[bytes, bytes]:
        """See :meth:`BlockCertifier.propose`."""
        return await (await self._seats()).propose(seat, offer, history)

    async def resume(
        self, header: BlockHeader, term: int, history: History
    ) -> tuple[Sequence[tuple[int, bytes]], Sequence[int], Sequence[bytes]]:
        """See :meth:`BlockCertifier.resume`."""
        return await (await self._seats()).resume(header, term, history)

    async def skip(
        self, parent: BlockHeader, round: int, term: int, history: History
    ) -> Sequence[tuple[int, bytes]]:
        """See :meth:`BlockCertifier.skip`."""
        return await (await self._seats()).skip(parent, round, term, history)

    async def _seats(self) -> BlockCertifier:
        committee = self._first if self._in_office is None else await self._in_office()
        digest = committee.digest
        if digest not in self._known:
            self._known[digest] = self._reach(committee)
            for old in list(self._known)[:-_KEPT]:
                del self._known[old]
        return self._known[digest]

"""Blocks across handovers: each is carried to the seats of the committee that is in office."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from daifi_flows.cnft import BlockHeader, Committee
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._certifier import BlockCertifier, History

__all__ = ["SuccessiveCertifier"]


class SuccessiveCertifier:
    """Satisfies the ledger's ``Certifier`` protocol for one committee after another.

    The seats of the next committee are made known before the ledger takes their handover: the
    block after it is theirs. A committee that left can be forgotten when nothing asks for its
    blocks any more.

    Args:
        in_office: the committee that certifies the next block (``LedgerService.committee``).
    """

    def __init__(self, in_office: Callable[[], Awaitable[Committee]]) -> None:
        self._in_office = in_office
        self._known: dict[bytes, BlockCertifier] = {}

    def add(self, certifier: BlockCertifier) -> None:
        """Make a committee's seat hosts known."""
        self._known[certifier.committee.digest] = certifier

    def forget(self, committee: Committee) -> None:
        """Leave a committee's seat hosts out from now on."""
        self._known.pop(committee.digest, None)

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes, bytes]]:
        """See :meth:`BlockCertifier.certify`."""
        return await self._of(header.committee).certify(header, block, history)

    async def propose(self, seat: int, offer: bytes, history: History) -> tuple[bytes, bytes]:
        """See :meth:`BlockCertifier.propose`."""
        return await (await self._next()).propose(seat, offer, history)

    async def resume(
        self, header: BlockHeader, term: int, history: History
    ) -> tuple[Sequence[tuple[int, bytes]], Sequence[int], Sequence[bytes]]:
        """See :meth:`BlockCertifier.resume`."""
        return await (await self._next()).resume(header, term, history)

    async def skip(
        self, parent: BlockHeader, round: int, term: int, history: History
    ) -> Sequence[tuple[int, bytes]]:
        """See :meth:`BlockCertifier.skip`."""
        return await (await self._next()).skip(parent, round, term, history)

    async def _next(self) -> BlockCertifier:
        return self._of((await self._in_office()).digest)

    def _of(self, committee: bytes) -> BlockCertifier:
        found = self._known.get(committee)
        if found is None:
            raise CommitteeError(
                f"no seat host of committee {committee.hex()[:16]}… is known: it is in office, "
                "start its hosts"
            )
        return found

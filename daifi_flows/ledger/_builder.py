"""A builder of blocks beside the service's own: its own transactions, its own bids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from daifi_flows.errors import EncodingError, LedgerError, LedgerUnavailable, OutOfSync
from daifi_flows.keys import Account
from daifi_flows.ledger._auction import Bid, Slot
from daifi_flows.ledger._blocks import MAX_BLOCK_BYTES, CertifiedBlock, certificate_valid
from daifi_flows.ledger._chain import Chain
from daifi_flows.ledger._params import Genesis

__all__ = ["Builder"]

_BODIES: Final = 64
"""Bodies kept: bids for a few rounds of one block."""


class Builder:
    """Fills blocks with the transactions it was given and bids for them.

    It satisfies the service's ``BuilderPort``: put it behind any transport. Not thread-safe.

    Args:
        account: signs its bids, and pays them.
        bid_wei: what it pays the proposer for a block.
        clock: Unix milliseconds.
    """

    def __init__(
        self, genesis: Genesis, account: Account, bid_wei: int, clock: Callable[[], int]
    ) -> None:
        self._chain = Chain(genesis)
        self._account = account
        self._bid_wei = bid_wei
        self._clock = clock
        self._bodies: dict[bytes, tuple[bytes, ...]] = {}

    @property
    def height(self) -> int:
        """Height of the last block it knows to be final."""
        return self._chain.head.height

    def add(self, raw: bytes) -> bytes:
        """Take a signed transaction; its id.

        Raises:
            TransactionRefused: it breaks a rule on top of what is here.
            LedgerUnavailable: too many wait.
        """
        return self._chain.add(raw, self._clock())

    def follow(self, blocks: Sequence[bytes]) -> None:
        """Apply certified blocks in order; those already final here are skipped.

        Transactions that are refused on top of them are forgotten.

        Raises:
            OutOfSync: there is a gap before one of them.
            LedgerError: one is malformed, breaks a rule, or has no valid certificate.
        """
        chain = self._chain
        for raw in blocks:
            try:
                certified = CertifiedBlock.from_canonical(raw, max_bytes=MAX_BLOCK_BYTES)
            except EncodingError as error:
                raise LedgerError(f"a certified block cannot be read: {error}") from error
            block, header = certified.block, certified.block.header
            if header.height <= self.height:
                continue
            if header.height > self.height + 1:
                raise OutOfSync(f"block {self.height + 1} is missing", from_height=self.height + 1)
            committee = chain.base.committee()
            if not certificate_valid(committee, header.digest, certified.certificate):
                raise LedgerError(f"block {header.height} has no valid certificate")
            chain.supplant(block, self._clock())
            chain.finalise(certified.certificate)

    async def bid(self, slot: Slot) -> Bid | None:
        """A bid for the block after the last one followed, when there is something to put in.

        Raises:
            LedgerUnavailable: the slot is for another height than this builder has reached.
        """
        chain = self._chain
        if slot.parent != chain.head:
            raise LedgerUnavailable(
                f"this builder is at block {self.height}, the slot is after "
                f"{slot.parent.height}: give it the blocks between"
            )
        if not chain.pending:
            return None
        address = self._account.address
        bid_wei = min(self._bid_wei, chain.base.account(address).balance_wei)
        candidate = chain.close(slot, address, bid_wei)
        while len(self._bodies) >= _BODIES:
            del self._bodies[next(iter(self._bodies))]
        self._bodies[candidate.header.digest] = tuple(chain.pending[0].raw)
        return Bid.sign(candidate.header, bid_wei, self._account)

    async def body(self, block_hash: bytes) -> Sequence[bytes]:
        """The body of a header it bid with.

        Raises:
            LedgerUnavailable: it is none of this builder's.
        """
        body = self._bodies.get(block_hash)
        if body is None:
            raise LedgerUnavailable("this builder made no block with that hash")
        return body

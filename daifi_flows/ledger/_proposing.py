"""Getting the next block proposed: its beacon, bids of builders, and a drawn seat's signature."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

from daifi_flows.cnft import BlockHeader, QuorumCertificate
from daifi_flows.errors import EncodingError, LedgerError, LedgerUnavailable
from daifi_flows.keys import Account
from daifi_flows.ledger._auction import Auction, Bid, Fault, Proposal, Slot
from daifi_flows.ledger._blocks import MAX_BLOCK_BYTES, Block
from daifi_flows.ledger._certifier import Certifier, History, collect_resumed, collect_skip
from daifi_flows.ledger._chain import Chain, Dropped
from daifi_flows.ledger._replica import MAX_CLOCK_DRIFT_MS
from daifi_flows.ledger._seal import MAX_BIDS, MAX_ROUND, Offer, Seal

__all__ = ["BuilderPort", "Proposing"]

_log = logging.getLogger(__name__)
PROPOSE_TIMEOUT_S: Final = 2.0
"""How long a drawn proposer is waited for before the seats are asked to pass it over."""
BUILDER_TIMEOUT_S: Final = 0.1
"""How long other builders have to bid, and then the winner to show its body."""
_FAULTS: Final = 1_000
"""Most faults kept."""
_DRIFT_MS: Final = 2 * MAX_CLOCK_DRIFT_MS
"""How far ahead of the clock here a stranger's block may be dated: seats' clocks may be ahead too,
but a block that they will not sign for years must not be begun."""
_ROUND_MS: Final = 1_000
"""Seats pass over no round sooner than this after the one before."""


class BuilderPort(Protocol):
    """Reaches another builder of blocks."""

    async def bid(self, slot: Slot) -> Bid | None:
        """Its bid for a slot, if it wants one."""
        ...

    async def body(self, block_hash: bytes) -> Sequence[bytes]:
        """The transactions of a header it bid for, which the proposer has signed."""
        ...


class Proposing:
    """Runs the auction of each block, for the service that carries the messages.

    It is trusted with time only: it cannot forge a bid, a proposal or a beacon, and whatever it
    brings is checked by every seat.

    Args:
        builder: signs the bids of this service's own blocks.
        bid_wei: what it pays the proposer for each.
        builders: others, who are asked for bids too.
        clock: Unix milliseconds.
    """

    def __init__(
        self,
        certifier: Certifier,
        history: History,
        *,
        builder: Account,
        bid_wei: int = 0,
        builders: Sequence[BuilderPort] = (),
        clock: Callable[[], int],
    ) -> None:
        self._certifier = certifier
        self._history = history
        self._builder = builder
        self._bid_wei = bid_wei
        self._builders = tuple(builders)[: MAX_BIDS - 1]
        self._clock = clock
        self._start: _Start | None = None
        self.faults: tuple[Fault, ...] = ()
        """What builders and proposers did wrong, with evidence, newest last."""

    def learn(self, block_hash: bytes, beacon: bytes | None) -> None:
        """Keep the group's signature that came with a block's certificate."""
        self._start = _Start(block_hash, beacon) if beacon is not None else None

    async def prepare(self, chain: Chain) -> list[Dropped]:
        """Have the chain's oldest pending block proposed, or another block in front of it. Where
        nothing is pending, only a block that seats signed already is gone on with.

        Once seats were asked to pass over a round, it is never proposed in: a height whose seats
        were split between the two could not go on.

        Returns:
            Pending transactions that are refused on top of it.

        Raises:
            LedgerUnavailable: too few seats answer; ask again.
        """
        start = self._start
        if start is None or start.parent != chain.head.digest:
            resumed = await collect_resumed(
                self._certifier,
                chain.base.committee(),
                chain.head,
                chain.term,
                self._history,
                latest=self._latest_round(chain),
            )
            start = self._start = _Start(chain.head.digest, resumed.beacon, resumed.passed)
            if (dropped := self._take_over(chain, resumed.blocks)) is not None:
                return dropped
        if not chain.pending:
            return []
        auction = start.auction or Auction(chain.slot(start.beacon, 0))
        while True:
            skip = None
            if start.passed is not None:
                skip = await self._skip(chain, start.passed)
                auction = auction.next_round(chain.slot(start.beacon, start.passed + 1))
            auction = await self._round(chain, auction, start.beacon, skip)
            auction, dropped = await self._finish(chain, auction, start.beacon, skip)
            if dropped is not None:
                self.faults = (*self.faults, *auction.faults)[-_FAULTS:]
                return dropped
            start = self._start = replace(start, passed=auction.slot.round, auction=auction)

    def _latest_round(self, chain: Chain) -> int:
        """The last round after the head that can be over by now, at one a second."""
        since_ms = max(self._clock() - chain.head.timestamp_ms, 0) + _DRIFT_MS
        return min(since_ms // _ROUND_MS, MAX_ROUND // 2)

    def _take_over(self, chain: Chain, blocks: Sequence[bytes]) -> list[Dropped] | None:
        """Go on with a block that seats signed for an earlier proposer; the latest round's."""
        found: list[Block] = []
        for raw in blocks:
            with contextlib.suppress(EncodingError):
                block = Block.from_canonical(raw, max_bytes=MAX_BLOCK_BYTES)
                found.append(block)
        for block in sorted(found, key=lambda block: -block.header.round):
            try:
                return self._supplant(chain, block)
            except Exception as error:  # one host may have made it up
                _log.warning("a block that seats showed cannot be continued: %s", error)
        return None

    def _supplant(self, chain: Chain, block: Block) -> list[Dropped]:
        if self._is_ahead(block.header):
            raise LedgerError(f"block {block.header.height} is dated in the future")
        return chain.supplant(block, self._clock())

    def _is_ahead(self, header: BlockHeader) -> bool:
        return header.timestamp_ms > self._clock() + _DRIFT_MS

    async def _round(
        self, chain: Chain, auction: Auction, beacon: bytes, skip: QuorumCertificate | None
    ) -> Auction:
        """Collect bids, and offer them to the drawn proposer."""
        slot = auction.slot
        for bid in [self._own_bid(chain, slot), *await self._ask_builders(slot)]:
            balance_wei = chain.base.account(bid.header.builder).balance_wei
            auction = auction.add_bid(bid, balance_wei)
        bids = sorted(auction.bids.values(), key=lambda bid: -bid.bid_wei)
        offer = Offer(
            justify=chain.certificate,
            beacon=beacon,
            skip=skip,
            term=chain.term,
            bids=tuple(bids),
        )
        try:
            async with asyncio.timeout(PROPOSE_TIMEOUT_S):
                block_hash, signature = await self._certifier.propose(
                    slot.seat, offer.canonical(), self._history
                )
            for bid in bids:
                if bid.header.digest == block_hash:
                    proposal = Proposal(header=bid.header, signature=signature)
                    return auction.add_proposal(proposal)
        except Exception as error:  # whatever a seat answers: others are drawn after it
            _log.warning(
                "seat %d does not propose block %d: %s",
                slot.seat,
                slot.parent.height + 1,
                str(error) or "no answer",
            )
        return auction

    def _own_bid(self, chain: Chain, slot: Slot) -> Bid:
        address = self._builder.address
        bid_wei = min(self._bid_wei, chain.base.account(address).balance_wei)
        try:
            candidate = chain.close(slot, address, bid_wei)
        except LedgerError:  # its own transactions spend what it would bid
            bid_wei = 0
            candidate = chain.close(slot, address, bid_wei)
        return Bid.sign(candidate.header, bid_wei, self._builder)

    async def _ask_builders(self, slot: Slot) -> list[Bid]:
        async def ask(builder: BuilderPort) -> Bid | None:
            try:
                async with asyncio.timeout(BUILDER_TIMEOUT_S):
                    bid = cast("Any", await builder.bid(slot))
                if bid is None or (isinstance(bid, Bid) and not self._is_ahead(bid.header)):
                    return bid
                raise LedgerError("what it sent is no bid for a block of now")
            except Exception as error:  # whatever a stranger's builder raises
                _log.warning("a builder does not bid: %s", error)
                return None

        bids = await asyncio.gather(*(ask(builder) for builder in self._builders))
        return [bid for bid in bids if bid is not None]

    async def _finish(
        self, chain: Chain, auction: Auction, beacon: bytes, skip: QuorumCertificate | None
    ) -> tuple[Auction, list[Dropped] | None]:
        """Seal the winner's block; nothing when there is none, or it turns out to be no block."""
        proposal = auction.proposal
        if proposal is None:
            return auction, None
        header = proposal.header
        bid = auction.bids[header.builder]
        seal = Seal(
            beacon=beacon,
            bid_wei=bid.bid_wei,
            builder=bid.signature,
            proposer=proposal.signature,
            skip=skip,
        )
        candidate = chain.pending[0].candidate
        if candidate is not None and candidate.header == header:
            return auction, chain.seal(seal, self._clock())
        auction = await self._show(auction, header.digest)
        if auction.body is None:
            return auction, None
        try:
            block = Block(
                header=header, transactions=auction.body, seal=seal, justify=chain.certificate
            )
            return auction, self._supplant(chain, block)
        except Exception as error:  # a body that is none, too
            _log.warning("builder %s won and breaks a rule: %s", header.builder, error)
            return auction.break_rule(str(error)), None

    async def _show(self, auction: Auction, block_hash: bytes) -> Auction:
        """Ask the builders for the winner's body."""
        for builder in self._builders:
            try:
                async with asyncio.timeout(BUILDER_TIMEOUT_S):
                    body = await builder.body(block_hash)
                if (shown := auction.add_body(body)).body is not None:
                    return shown
            except Exception as error:  # the next may be the one whose block it is
                _log.warning("a builder does not show its body: %s", error)
        return auction

    async def _skip(self, chain: Chain, round: int) -> QuorumCertificate:
        if round + 1 >= MAX_ROUND:
            raise LedgerUnavailable("no drawn proposer answers: check that seat hosts are up")
        committee = chain.base.committee()
        return await collect_skip(
            self._certifier, committee, chain.head, round, chain.term, self._history
        )


@dataclass(frozen=True)
class _Start:
    """Where proposing on top of a block stands.

    Attributes:
        beacon: the group's signature over the parent.
        passed: the last round that seats were asked to pass over.
        auction: as that round left it.
    """

    parent: bytes
    beacon: bytes
    passed: int | None = None
    auction: Auction | None = None

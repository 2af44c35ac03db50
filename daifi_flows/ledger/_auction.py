"""Proposer–builder separation: who fills a block, who signs it, and what is kept when one cheats.

Builders commit to a body by its header, and bid for it. The drawn proposer signs the best header
without seeing the body, so that it can neither copy nor reorder what is inside; only then is the
body shown. The bid moves from builder to proposer inside the block (white paper, 2.5: MEV
protection). A pure reducer: messages in any order, clocks at the edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from daifi_flows.cnft import BlockHeader, Bytes65, Noun, Wei, proposal_digest
from daifi_flows.encoding import keccak256, tagged_hash
from daifi_flows.errors import KeyMaterialError
from daifi_flows.keys import Account, recover_address
from daifi_flows.merkle import merkle_root

__all__ = [
    "Auction",
    "Bid",
    "DoubleProposal",
    "Fault",
    "FaultKind",
    "Proposal",
    "Slot",
    "best_bid",
    "bid_fault",
]


class Bid(Noun):
    """A builder's commitment to a body, and what it pays the proposer for taking it.

    The header binds the body by its roots; the state root already contains the payment.
    """

    header: BlockHeader
    bid_wei: Wei
    signature: Bytes65

    @classmethod
    def sign(cls, header: BlockHeader, bid_wei: int, builder: Account) -> Bid:
        """A bid for ``header``, which must name ``builder``."""
        digest = bid_digest(header.digest, bid_wei)
        return cls(header=header, bid_wei=bid_wei, signature=builder.sign(digest))

    @property
    def signed(self) -> bool:
        """Whether the builder that the header names signed it."""
        digest = bid_digest(self.header.digest, self.bid_wei)
        return _signed(digest, self.signature, self.header.builder)


def bid_digest(block_hash: bytes, bid_wei: int) -> bytes:
    """What a builder signs, 32 bytes."""
    terms = {"block": block_hash, "bid_wei": bid_wei.to_bytes(32, "big")}
    return tagged_hash("daifi/block-bid/1", terms)


class Proposal(Noun):
    """A header that the drawn proposer signed, blind."""

    header: BlockHeader
    signature: Bytes65

    @classmethod
    def sign(cls, header: BlockHeader, proposer: Account) -> Proposal:
        """``proposer`` proposes this header."""
        return cls(header=header, signature=proposer.sign(proposal_digest(header.digest)))

    @property
    def valid(self) -> bool:
        """Whether the proposer that the header names signed it."""
        digest = proposal_digest(self.header.digest)
        return _signed(digest, self.signature, self.header.proposer)


class DoubleProposal(Noun):
    """Evidence: one proposer signed two blocks of one height and round.

    On two parents too: an honest proposer builds on final blocks, and a height has one.
    """

    first: Proposal
    second: Proposal

    @property
    def proposer(self) -> str | None:
        """Whom this convicts; nobody when it is not evidence."""
        one, two = self.first.header, self.second.header
        names = ("ledger_id", "height", "round", "proposer")
        same = all(getattr(one, name) == getattr(two, name) for name in names)
        if same and one != two and self.first.valid and self.second.valid:
            return one.proposer
        return None


@dataclass(frozen=True)
class Slot:
    """What is auctioned: the block after ``parent``, in one round.

    Attributes:
        beacon: of the new block.
        proposer: account of the seat drawn for this round.
        seat: its index.
        epoch: of the committee that certifies the new block.
        committee: its digest.
    """

    parent: BlockHeader
    beacon: bytes
    round: int
    proposer: str
    seat: int
    epoch: int
    committee: bytes


def bid_fault(slot: Slot, bid: Bid, balance_wei: int) -> str | None:
    """Why a bid cannot win, or nothing. All that can be told without the body.

    Args:
        balance_wei: what the builder holds in the parent's state.
    """
    header, parent = bid.header, slot.parent
    wanted: Mapping[str, object] = {
        "ledger_id": parent.ledger_id,
        "height": parent.height + 1,
        "parent": parent.digest,
        "epoch": slot.epoch,
        "committee": slot.committee,
        "beacon": slot.beacon,
        "round": slot.round,
        "proposer": slot.proposer,
    }
    for name, value in wanted.items():
        if getattr(header, name) != value:
            return f"its header has another {name.replace('_', ' ')}"
    if header.timestamp_ms < parent.timestamp_ms:
        return "its header is dated before the parent"
    if balance_wei < bid.bid_wei:
        return "its builder holds less than it bids"
    if not bid.signed:
        return "its builder did not sign it"
    return None


def best_bid(slot: Slot, bids: Sequence[Bid]) -> Bid | None:
    """The highest; between equals the beacon decides, which no builder knew when it was named."""

    def rank(bid: Bid) -> tuple[int, bytes, bytes]:
        luck = keccak256(slot.beacon + bid.header.builder.encode())
        return -bid.bid_wei, luck, bid.header.digest

    return min(bids, key=rank, default=None)


class FaultKind(StrEnum):
    """What somebody did wrong in an auction."""

    BAD_BID = "bad-bid"
    BAD_PROPOSAL = "bad-proposal"
    BROKEN_RULE = "broken-rule"
    DOUBLE_PROPOSAL = "double-proposal"
    WITHHELD = "withheld"


@dataclass(frozen=True)
class Fault:
    """Who did what, with the signed messages that show it. Unsigned ones accuse nobody.

    A ``double-proposal`` proves itself to anyone. That a body was ``withheld`` only those who
    waited for it know: it costs the builder its place in the next rounds, not its stake.
    """

    kind: FaultKind
    who: str
    why: str
    evidence: Noun


@dataclass(frozen=True)
class Auction:
    """One height's auction, round after round.

    Attributes:
        bids: each builder's best so far, by address.
        proposal: the header that won; nothing is won twice in a round.
        body: its transactions, once shown.
        faults: everything kept from this and earlier rounds.
        barred: builders that did not show a body they had won with.
    """

    slot: Slot
    bids: Mapping[str, Bid] = field(default_factory=lambda: {})
    proposal: Proposal | None = None
    body: tuple[bytes, ...] | None = None
    faults: tuple[Fault, ...] = ()
    barred: frozenset[str] = frozenset()

    @property
    def best(self) -> Bid | None:
        """The bid that an honest proposer signs."""
        return best_bid(self.slot, tuple(self.bids.values()))

    def add_bid(self, bid: Bid, balance_wei: int) -> Auction:
        """Take a bid. A builder may raise its own; a lower or late one changes nothing."""
        builder = bid.header.builder
        if self.proposal is not None or builder in self.barred:
            return self
        if not bid.signed:
            return self
        if (why := bid_fault(self.slot, bid, balance_wei)) is not None:
            return self._fault(FaultKind.BAD_BID, builder, why, bid)
        if (before := self.bids.get(builder)) is not None and before.bid_wei >= bid.bid_wei:
            return self
        return replace(self, bids={**self.bids, builder: bid})

    def add_proposal(self, proposal: Proposal) -> Auction:
        """Take the proposer's signature. The first counts; another header is evidence."""
        proposer = self.slot.proposer
        if proposal.header.proposer != proposer or not proposal.valid:
            return self
        if self.proposal is not None:
            double = DoubleProposal(first=self.proposal, second=proposal)
            if double.proposer is None:  # the same again, or of another round
                return self
            return self._fault(FaultKind.DOUBLE_PROPOSAL, proposer, "it signed two headers", double)
        if all(proposal.header != bid.header for bid in self.bids.values()):
            why = "nobody bid for this header"
            return self._fault(FaultKind.BAD_PROPOSAL, proposer, why, proposal)
        return replace(self, proposal=proposal)

    def add_body(self, transactions: Sequence[bytes]) -> Auction:
        """Take the winner's body. One that is not its header's changes nothing but the faults."""
        if self.proposal is None or self.body is not None:
            return self
        header = self.proposal.header
        if merkle_root(transactions) != header.tx_root:
            return self  # bodies are not signed: anyone may have sent this one
        return replace(self, body=tuple(transactions))

    def break_rule(self, why: str) -> Auction:
        """The winner's block breaks a rule, as every validator finds: it is no block."""
        if self.proposal is None or self.body is None:
            return self
        builder = self.proposal.header.builder
        state = self._fault(FaultKind.BROKEN_RULE, builder, why, self.bids[builder])
        return replace(state, proposal=None, body=None, barred=self.barred | {builder})

    def next_round(self, slot: Slot) -> Auction:
        """The round is over without a block: the next drawn proposer is asked.

        A builder that had won and did not show its body is barred at this height.
        """
        state = self
        if self.proposal is not None and self.body is None:
            builder = self.proposal.header.builder
            state = self._fault(
                FaultKind.WITHHELD, builder, "the body was not shown in time", self.bids[builder]
            )
            state = replace(state, barred=self.barred | {builder})
        return replace(state, slot=slot, bids={}, proposal=None, body=None)

    def _fault(self, kind: FaultKind, who: str, why: str, evidence: Noun) -> Auction:
        fault = Fault(kind, who, why, evidence)
        return self if fault in self.faults else replace(self, faults=(*self.faults, fault))


def _signed(digest: bytes, signature: bytes, address: str) -> bool:
    try:
        return recover_address(digest, signature) == address
    except KeyMaterialError:
        return False

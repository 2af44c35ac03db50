"""The record of one attempt's auction, and what a sealed bid commits to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from daifi_flows.cnft import Address, Bytes32, Noun, Uint, Wei
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._records import Record

__all__ = ["AuctionRecord", "RevealedBid", "SealedBid", "auction_key", "bid_commitment"]


class SealedBid(Noun):
    """A bid nobody can read yet, and what its node loses if it is never revealed."""

    node: Address
    commitment: Bytes32
    deposit_wei: Wei


class RevealedBid(Noun):
    """What a node offers: a price, and the time from assignment in which it will answer."""

    node: Address
    price_wei: Wei
    eta_ms: Uint


class AuctionRecord(Record):
    """Bids on one attempt of a task, from its opening to its assignment.

    Attributes:
        bids_until_ms: bids are taken in blocks dated before this.
        reveals_until_ms: from ``bids_until_ms`` on, bids are revealed in blocks dated before this.
        sealed: bids that are not revealed, in the order they came.
        revealed: the others, in the order they were revealed.
    """

    prefix: ClassVar[bytes] = b"u"
    task_id: Bytes32
    attempt: Uint
    bids_until_ms: Uint
    reveals_until_ms: Uint
    sealed: tuple[SealedBid, ...] = ()
    revealed: tuple[RevealedBid, ...] = ()

    def key(self) -> bytes:
        return auction_key(self.task_id)

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"escrows": sum(bid.deposit_wei for bid in self.sealed)}

    def bid_of(self, node: str) -> RevealedBid | None:
        """What a node revealed."""
        return next((bid for bid in self.revealed if bid.node == node), None)

    def over(self, now_ms: int) -> bool:
        """Whether nothing can be revealed any more: time is up, or all bids are open."""
        if now_ms < self.bids_until_ms:
            return False
        return not self.sealed or now_ms >= self.reveals_until_ms


def auction_key(task_id: bytes) -> bytes:
    """State key of a task's auction."""
    return AuctionRecord.prefix + task_id


def bid_commitment(
    ledger_id: bytes,
    task_id: bytes,
    *,
    attempt: int,
    node: str,
    price_wei: int,
    eta_ms: int,
    salt: bytes,
) -> bytes:
    """What a sealed bid says, 32 bytes.

    ``keccak256("daifi/bid/1" ‖ ledger id ‖ task id ‖ attempt ‖ node ‖ price ‖ eta ‖ salt)``, the
    attempt and the eta in 8 bytes, the price in 32, all big-endian. It names the node and the
    attempt, so that a copy of it is worthless to any other node and in any other attempt.

    Args:
        ledger_id: 32 bytes.
        task_id: 32 bytes.
        attempt: of the task, as on the ledger.
        node: the bidder's address.
        price_wei: what the node asks.
        eta_ms: the time from assignment in which it will answer, 1 or more.
        salt: 32 random bytes, kept secret until the bid is revealed: prices can be guessed.
    """
    return keccak256(
        b"daifi/bid/1"
        + ledger_id
        + task_id
        + attempt.to_bytes(8, "big")
        + bytes.fromhex(node[2:])
        + price_wei.to_bytes(32, "big")
        + eta_ms.to_bytes(8, "big")
        + salt
    )

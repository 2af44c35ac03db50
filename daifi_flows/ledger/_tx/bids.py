"""Sealed bids for an open task (see ``_bids.bid_commitment``)."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import Bytes32, Uint, Wei
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "Bid", "RevealBid"]


class _OfBidder(Transaction):
    task_id: Bytes32
    attempt: Uint

    def mark(self) -> bytes | None:
        place = self.task_id + self.attempt.to_bytes(8, "big") + bytes.fromhex(self.sender[2:])
        return self.kind.encode() + b"/" + place


class Bid(_OfBidder):
    """Commit the sender, a node, to a price and a time that nobody can read yet."""

    kind: ClassVar[str] = "bid"
    commitment: Bytes32


class RevealBid(_OfBidder):
    """Open the sender's bid and take its deposit back."""

    kind: ClassVar[str] = "reveal-bid"
    price_wei: Wei
    eta_ms: Uint
    salt: Bytes32


KINDS: Final[tuple[type[Transaction], ...]] = (Bid, RevealBid)

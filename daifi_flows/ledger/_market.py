"""The market's record: a token offered at a fixed price."""

from __future__ import annotations

from typing import ClassVar

from daifi_flows.cnft import Address, Bytes32, Uint, Wei
from daifi_flows.ledger._records import Record

__all__ = ["ListingRecord", "listing_key"]


class ListingRecord(Record):
    """An owner's offer of one token. It ends when the token is sold, moved or merged.

    Attributes:
        seller: the token's owner.
        price_wei: all that a buyer pays.
        expires_ms: not sold in blocks dated later than this; 0: until it is taken back.
    """

    prefix: ClassVar[bytes] = b"l"
    token_id: Bytes32
    seller: Address
    price_wei: Wei
    expires_ms: Uint

    def key(self) -> bytes:
        return listing_key(self.token_id)


def listing_key(token_id: bytes) -> bytes:
    """State key of a token's listing."""
    return ListingRecord.prefix + token_id

"""Tokens for sale at a fixed price, in the ledger's wei."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import Address, Bytes32, Uint, Wei
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "Buy", "ListToken", "UnlistToken"]


class ListToken(Transaction):
    """Offer a token, or change its offer; it stays with its owner.

    Attributes:
        price_wei: all that a buyer pays; royalty and treasury are taken out of it.
        expires_ms: not sold in blocks dated later than this; 0: until it is taken back.
    """

    kind: ClassVar[str] = "list"
    token_id: Bytes32
    price_wei: Wei
    expires_ms: Uint = 0


class UnlistToken(Transaction):
    """Take an offer back."""

    kind: ClassVar[str] = "unlist"
    token_id: Bytes32


class Buy(Transaction):
    """Buy a token from this seller at exactly this price."""

    kind: ClassVar[str] = "buy"
    token_id: Bytes32
    seller: Address
    price_wei: Wei


KINDS: Final[tuple[type[Transaction], ...]] = (ListToken, UnlistToken, Buy)

"""Selling tokens: the buyer pays, everybody is paid, the token moves, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.ledger._economics import royalty_wei
from daifi_flows.ledger._market import ListingRecord, listing_key
from daifi_flows.ledger._rules._context import Context, Facts, Rule, positive, refuse
from daifi_flows.ledger._rules._minting import (
    move,
    require_movable,
    require_sound,
    require_token,
)
from daifi_flows.ledger._rules.tokens import require_manager
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.market import Buy, ListToken, UnlistToken

__all__ = ["RULES"]


def _require_listing(ctx: Context, token_id: bytes) -> ListingRecord:
    listing = ctx.layer.find(ListingRecord, listing_key(token_id))
    if listing is None:
        refuse("unknown", f"token {token_id.hex()} is not for sale")
    return listing


def list_token(ctx: Context, tx: ListToken) -> Facts:
    """Offer a token, or change its price; by its owner or the owner's operator."""
    positive(tx.price_wei)
    token = require_token(ctx, tx.token_id)
    require_manager(ctx, token, tx.sender)
    require_movable(token)
    require_sound(ctx, token)
    if 0 < tx.expires_ms <= ctx.now_ms:
        refuse("expired", "the listing would already be over; set a later time, or 0")
    ctx.layer.put(
        ListingRecord(
            token_id=token.token_id,
            seller=token.owner,
            price_wei=tx.price_wei,
            expires_ms=tx.expires_ms,
        )
    )
    return {"token_id": token.token_id}


def unlist_token(ctx: Context, tx: UnlistToken) -> Facts:
    """Take an offer back; by the token's owner or the owner's operator."""
    listing = _require_listing(ctx, tx.token_id)
    require_manager(ctx, require_token(ctx, tx.token_id), tx.sender)
    ctx.layer.remove(listing.key())
    return {"token_id": tx.token_id}


def buy(ctx: Context, tx: Buy) -> Facts:
    """Pay the price, of which royalty and treasury are taken; the seller gets the rest."""
    listing = _require_listing(ctx, tx.token_id)
    if (listing.seller, listing.price_wei) != (tx.seller, tx.price_wei):
        refuse(
            "bad-state",
            f"the token is for sale by {listing.seller} at {listing.price_wei} wei, not by "
            f"{tx.seller} at {tx.price_wei}",
        )
    if 0 < listing.expires_ms < ctx.now_ms:
        refuse("expired", f"the listing was over at {listing.expires_ms} ms on this ledger")
    if tx.sender == listing.seller:
        refuse("bad-role", "the token is the sender's own already")
    token = require_token(ctx, tx.token_id)
    require_sound(ctx, token)
    price_wei = listing.price_wei
    ctx.debit(tx.sender, price_wei)
    due = token.royalty_info(price_wei)
    treasury_wei = royalty_wei(price_wei, ctx.params.tokens.sale_ppm)
    seller_wei = price_wei - treasury_wei - sum(part_wei for _, part_wei in due)
    payments = ctx.credit(listing.seller, seller_wei, "sale")
    for payee, part_wei in due:
        payments += ctx.credit(payee, part_wei, "royalty")
    payments += ctx.to_treasury(treasury_wei, "treasury")
    move(ctx, token, tx.sender)
    return {"token_id": token.token_id, "payments": payments}


RULES: Final[Mapping[type[Transaction], Rule]] = {
    ListToken: list_token,
    UnlistToken: unlist_token,
    Buy: buy,
}

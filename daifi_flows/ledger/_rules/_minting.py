"""What the rules that make and move tokens share."""

from __future__ import annotations

from collections.abc import Sequence

from daifi_flows.cnft import token_id_of
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._market import ListingRecord, listing_key
from daifi_flows.ledger._origins import Origin, shares_at_mint
from daifi_flows.ledger._records import TokenRecord
from daifi_flows.ledger._rules._context import Context, refuse
from daifi_flows.ledger._state import Base

__all__ = [
    "end_listing",
    "holder_of",
    "holders_of",
    "mint",
    "move",
    "require_movable",
    "require_not_disproven",
    "require_sound",
    "require_token",
]


def require_token(ctx: Context, token_id: bytes) -> TokenRecord:
    """A token that must have been minted."""
    token = ctx.layer.token(token_id)
    if token is None:
        refuse("unknown", f"token {token_id.hex()} was never minted on this ledger")
    return token


def require_movable(token: TokenRecord) -> None:
    """Refuse a token that went into another."""
    if token.merged_into is not None:
        refuse(
            "bad-state",
            f"token {token.token_id.hex()} was merged into {token.merged_into.hex()}; use that one",
        )


def require_not_disproven(token: TokenRecord) -> None:
    """Refuse a token whose output was proven wrong."""
    if token.disproven:
        refuse("bad-state", f"the output of token {token.token_id.hex()} was proven wrong")


def require_sound(ctx: Context, token: TokenRecord) -> None:
    """Refuse a token whose output was proven wrong, or may be: a dispute about it is open.

    What a reference token reuses counts as its own output; a merged token has none.
    """
    if token.of is not None:
        token = require_token(ctx, token.of)
    require_not_disproven(token)
    if ctx.layer.find(DisputeRecord, dispute_key(token.task_id)) is not None:
        refuse(
            "bad-state",
            f"the output of token {token.token_id.hex()} is disputed; wait for the finding",
        )


def holder_of(state: Base, token: TokenRecord) -> str:
    """Whose a token is: of a merged one, whoever owns what it went into.

    The walk is as long as merges are deep, which the rule of merging bounds.
    """
    while token.merged_into is not None:
        into = state.token(token.merged_into)
        assert into is not None, "a token is merged into one that exists"
        token = into
    return token.owner


def holders_of(state: Base, token_ids: Sequence[bytes]) -> list[str]:
    """The holder of each of these tokens that exists, in order."""
    found = (state.token(token_id) for token_id in token_ids)
    return [holder_of(state, token) for token in found if token is not None]


def mint(
    ctx: Context,
    *,
    task_id: bytes,
    owner: str,
    parents: tuple[bytes, ...],
    content: bytes,
    origin: Origin | None,
) -> TokenRecord:
    """Put a new token of an accepted execution into the state, its royalty fixed.

    Args:
        origin: absent where the ledger does not know the task's spec.

    Raises:
        TransactionRefused: ``duplicate``: the task has a token already (a task can be both open
            here and a leaf of a batch).
    """
    params, token_id = ctx.params.tokens, token_id_of(task_id)
    if ctx.layer.token(token_id) is not None:
        refuse("duplicate", f"task {task_id.hex()} is settled and its token minted")
    token = TokenRecord(
        token_id=token_id,
        owner=owner,
        parents=parents,
        task_id=task_id,
        content=content,
        minted_ms=ctx.now_ms,
        origin=origin,
        royalty_ppm=params.royalty_ppm,
        payees=shares_at_mint(owner, holders_of(ctx.layer, parents), params.lineage_ppm),
    )
    ctx.layer.put(token)
    return token


def move(ctx: Context, token: TokenRecord, to: str) -> None:
    """Give a token another owner: what the old one had said about it ends."""
    end_listing(ctx, token.token_id)
    update = {"owner": to, "approved": None, "reuse_fee_wei": None, "priced_by": None}
    ctx.layer.put(token.model_copy(update=update))


def end_listing(ctx: Context, token_id: bytes) -> None:
    """Take a token's listing out of the state, if there is one."""
    if ctx.layer.find(ListingRecord, listing_key(token_id)) is not None:
        ctx.layer.remove(listing_key(token_id))

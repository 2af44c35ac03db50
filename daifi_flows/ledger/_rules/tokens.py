"""Who may move a token, and what merging makes of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import token_id_of
from daifi_flows.encoding import tagged_hash
from daifi_flows.ledger._origins import TokenKind, merged_shares
from daifi_flows.ledger._records import ZERO_ADDRESS, TokenRecord
from daifi_flows.ledger._rules import _reuse
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._minting import (
    end_listing,
    move,
    require_movable,
    require_sound,
    require_token,
)
from daifi_flows.ledger._tokens import OperatorRecord, operator_key
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.tokens import (
    Approve,
    Merge,
    SafeTransferToken,
    SetOperator,
    TransferToken,
    UnsetOperator,
)

__all__ = ["MAX_MERGE_DEPTH", "MAX_PAYEES", "RULES", "require_manager"]

MAX_MERGE_DEPTH: Final = 8
"""Most merges on top of each other: finding a merged token's holder takes as many steps."""
MAX_PAYEES: Final = 128
"""Most payees of one token's royalty: each costs a payment in a sale's receipt."""


def _acts_for(ctx: Context, owner: str, sender: str) -> bool:
    if sender == owner:
        return True
    return ctx.layer.find(OperatorRecord, operator_key(owner, sender)) is not None


def require_manager(ctx: Context, token: TokenRecord, sender: str) -> None:
    """Refuse who is neither the token's owner nor an operator of the owner."""
    if not _acts_for(ctx, token.owner, sender):
        refuse("bad-role", f"only the owner {token.owner} or its operators can do this")


def approve(ctx: Context, tx: Approve) -> Facts:
    """Name who may move this token, or nobody; it ends when the token moves."""
    token = require_token(ctx, tx.token_id)
    require_manager(ctx, token, tx.sender)
    require_movable(token)
    if tx.approved == token.owner:
        refuse("bad-field", "the owner needs no approval")
    approved = None if tx.approved == ZERO_ADDRESS else tx.approved
    ctx.layer.put(token.model_copy(update={"approved": approved}))
    return {"token_id": token.token_id}


def set_operator(ctx: Context, tx: SetOperator) -> Facts:
    """Let an address act for all tokens the sender has and will have."""
    if tx.operator in (tx.sender, ZERO_ADDRESS):
        refuse("bad-field", "an operator is another address than the owner's, and not zero")
    ctx.layer.put(OperatorRecord(owner=tx.sender, operator=tx.operator))
    return {}


def unset_operator(ctx: Context, tx: UnsetOperator) -> Facts:
    """End an operator's rights."""
    key = operator_key(tx.sender, tx.operator)
    if ctx.layer.find(OperatorRecord, key) is None:
        refuse("unknown", f"{tx.operator} is no operator of {tx.sender}")
    ctx.layer.remove(key)
    return {}


def transfer_token(ctx: Context, tx: TransferToken) -> Facts:
    """Move a token to any address but zero; its listing and approval end."""
    token = require_token(ctx, tx.token_id)
    require_movable(token)
    if tx.owner != token.owner:
        refuse("bad-role", f"the token belongs to {token.owner}, not to {tx.owner}")
    if tx.sender != token.approved and not _acts_for(ctx, token.owner, tx.sender):
        refuse(
            "bad-role",
            f"{tx.sender} is neither the owner {token.owner}, nor approved, nor an operator",
        )
    if tx.to == ZERO_ADDRESS:
        refuse("bad-field", "nobody holds the zero address's key; name another recipient")
    move(ctx, token, tx.to)
    return {"token_id": token.token_id}


def safe_transfer_token(ctx: Context, tx: SafeTransferToken) -> Facts:
    """Move a token to an address whose key somebody has shown to hold.

    ERC-721 asks a receiving contract whether it can handle tokens. There are no contracts here;
    what a recipient must be able to do is sign, and its nonce says that it has.
    """
    if ctx.layer.account(tx.to).nonce == 0:
        refuse(
            "bad-role",
            f"{tx.to} has never signed a transaction on this ledger, so nobody may hold its key; "
            "let it send one first, or use transfer-token",
        )
    return transfer_token(ctx, tx)


def merge(ctx: Context, tx: Merge) -> Facts:
    """Make one token of several; they stay in the state, provable, but never move again.

    Nothing is computed, so nothing is attested: the new token's content is the digest of its
    parents' contents, and whoever checks it checks theirs.
    """
    if len(set(tx.tokens)) != len(tx.tokens):
        refuse("bad-field", "a merge names each token once")
    parents = [require_token(ctx, token_id) for token_id in tx.tokens]
    for token in parents:
        require_movable(token)
        require_sound(ctx, token)
        if token.owner != tx.sender:
            refuse("bad-role", f"token {token.token_id.hex()} belongs to {token.owner}")
    depth = 1 + max(token.depth for token in parents)
    if depth > MAX_MERGE_DEPTH:
        refuse("bad-state", f"tokens are merged at most {MAX_MERGE_DEPTH} times over")
    payees = merged_shares([token.payees for token in parents])
    if len(payees) > MAX_PAYEES:
        refuse("bad-state", f"{len(payees)} would share the royalty, over {MAX_PAYEES}; merge less")
    merged = TokenRecord(
        token_id=token_id_of(tx.merge_id),
        owner=tx.sender,
        parents=tx.tokens,
        task_id=tx.merge_id,
        content=tagged_hash("daifi/merged/1", [token.content for token in parents]),
        minted_ms=ctx.now_ms,
        kind=TokenKind.MERGED,
        royalty_ppm=max(token.royalty_ppm for token in parents),
        payees=payees,
        depth=depth,
    )
    for token in parents:
        end_listing(ctx, token.token_id)
        update = {"merged_into": merged.token_id, "approved": None}
        ctx.layer.put(token.model_copy(update=update))
    ctx.layer.put(merged)
    return {"token_id": merged.token_id, "content": merged.content}


RULES: Final[Mapping[type[Transaction], Rule]] = {
    Approve: approve,
    SetOperator: set_operator,
    UnsetOperator: unset_operator,
    TransferToken: transfer_token,
    SafeTransferToken: safe_transfer_token,
    Merge: merge,
    **_reuse.RULES,
}

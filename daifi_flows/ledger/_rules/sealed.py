"""Sealed transactions: what a commitment holds, and what its reveal does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from daifi_flows.ledger._rules import lease, market, money, tasks, tokens
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._sealed import SealedCount, SealedRecord, sealed_key
from daifi_flows.ledger._state import Base
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.sealed import SEALABLE, Lapse, Reveal, Sealed

__all__ = ["RULES", "UNSEALED", "place_in_block"]

UNSEALED: Final = 2**63
"""The place of everything that is not a reveal: behind all reveals."""
_OTHERS: Final[dict[type[Transaction], Rule]] = {
    **lease.RULES,
    **market.RULES,
    **money.RULES,
    **tasks.RULES,
    **tokens.RULES,
}
_ACTION_RULES: Final = {kind: _OTHERS[kind] for kind in SEALABLE.values()}


def place_in_block(state: Base, tx: Transaction) -> int:
    """Places of a block's transactions never fall: reveals come first, in the order of their
    commitments. So a builder that reads a reveal cannot put anything in front of it.

    Args:
        state: right before the transaction.
    """
    if not isinstance(tx, Reveal):
        return UNSEALED
    found = state.find(SealedRecord, sealed_key(tx.sender, tx.commitment))
    return found.number if found is not None else 0  # it will be refused


def seal(ctx: Context, tx: Sealed) -> Facts:
    """Hold the deposit and take a number."""
    terms = ctx.params.sealed
    if tx.deposit_wei < terms.deposit_wei:
        refuse("bad-field", f"the deposit is {terms.deposit_wei} wei at least")
    if not 0 < tx.lasts_ms <= terms.max_ms:
        refuse("bad-field", f"it can wait for its reveal for 1 to {terms.max_ms} ms")
    if ctx.layer.find(SealedRecord, sealed_key(tx.sender, tx.commitment)) is not None:
        refuse("duplicate", "this commitment waits for its reveal already")
    ctx.debit(tx.sender, tx.deposit_wei)
    count = (ctx.layer.find(SealedCount, SealedCount.prefix) or SealedCount()).count
    ctx.layer.put(SealedCount(count=count + 1))
    ctx.layer.put(
        SealedRecord(
            holder=tx.sender,
            commitment=tx.commitment,
            deposit_wei=tx.deposit_wei,
            expires_ms=ctx.now_ms + tx.lasts_ms,
            number=count,
            height=ctx.height,
        )
    )
    return {"content": tx.commitment}


def reveal(ctx: Context, tx: Reveal) -> Facts:
    """Give the deposit back and do what was sealed; its receipt is that of the action."""
    record = ctx.layer.find(SealedRecord, sealed_key(tx.sender, tx.commitment))
    if record is None:
        refuse("unknown", f"{tx.sender} has sealed nothing with this salt and action")
    if record.height >= ctx.height:
        refuse("bad-state", "reveal it in a later block: until then its place is not certain")
    if record.expires_ms < ctx.now_ms:
        refuse("expired", f"it could be revealed until {record.expires_ms} ms on this ledger")
    action = tx.inner()
    ctx.layer.remove(record.key())
    payments = ctx.credit(tx.sender, record.deposit_wei, "deposit")
    facts: dict[str, Any] = dict(_ACTION_RULES[type(action)](replace(ctx, sealed=True), action))
    return facts | {"payments": (*facts.get("payments", ()), *payments)}


def lapse(ctx: Context, tx: Lapse) -> Facts:
    """The deposit of what was never revealed goes to the treasury."""
    record = ctx.layer.find(SealedRecord, sealed_key(tx.holder, tx.commitment))
    if record is None:
        refuse("unknown", f"{tx.holder} has no such commitment waiting")
    if record.expires_ms >= ctx.now_ms:
        refuse("bad-state", f"it can be revealed until {record.expires_ms} ms on this ledger")
    ctx.layer.remove(record.key())
    payments = ctx.to_treasury(record.deposit_wei, "deposit")
    return {"content": tx.commitment, "payments": payments}


RULES: Final[Mapping[type[Transaction], Rule]] = {Sealed: seal, Reveal: reveal, Lapse: lapse}

"""Being a node: its offer and its stake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import Payment
from daifi_flows.ledger._rules._context import Context, Facts, Rule, positive, refuse
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.nodes import Register, Stake

__all__ = ["RULES"]

_MAX_ENGINES: Final = 32
_MAX_ENGINE_CHARS: Final = 64


def stake(ctx: Context, tx: Stake) -> Facts:
    """From the sender's balance to its stake."""
    positive(tx.amount_wei)
    ctx.debit(tx.sender, tx.amount_wei)
    account = ctx.layer.account(tx.sender)
    ctx.layer.put(account.model_copy(update={"stake_wei": account.stake_wei + tx.amount_wei}))
    payment = Payment(to=tx.sender, amount_wei=tx.amount_wei, reason="stake")
    return {"node": tx.sender, "payments": (payment,)}


def register(ctx: Context, tx: Register) -> Facts:
    """Set the sender's offer as a node."""
    info = tx.info
    if info.address != tx.sender:
        refuse("bad-role", f"node {info.address} must register itself, not {tx.sender}")
    if len(info.engines) > _MAX_ENGINES or any(
        not 0 < len(engine) <= _MAX_ENGINE_CHARS for engine in info.engines
    ):
        refuse(
            "bad-field",
            f"a node offers at most {_MAX_ENGINES} engines, each named in 1 to "
            f"{_MAX_ENGINE_CHARS} characters",
        )
    account = ctx.layer.account(tx.sender)
    ctx.layer.put(account.model_copy(update={"registered": info}))
    return {"node": tx.sender}


RULES: Final[Mapping[type[Transaction], Rule]] = {Stake: stake, Register: register}

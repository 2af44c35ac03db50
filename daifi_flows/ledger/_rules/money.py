"""Moving money."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.ledger._rules._context import Context, Facts, Rule, positive
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.money import Transfer

__all__ = ["RULES"]


def transfer(ctx: Context, tx: Transfer) -> Facts:
    """From the sender's balance to another's."""
    positive(tx.amount_wei)
    ctx.debit(tx.sender, tx.amount_wei)
    return {"payments": ctx.credit(tx.to, tx.amount_wei, "transfer")}


RULES: Final[Mapping[type[Transaction], Rule]] = {Transfer: transfer}

"""Moving money."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import Address, Wei
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "Transfer"]


class Transfer(Transaction):
    """Move money to another account."""

    kind: ClassVar[str] = "transfer"
    to: Address
    amount_wei: Wei


KINDS: Final[tuple[type[Transaction], ...]] = (Transfer,)

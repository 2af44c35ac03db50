"""Being a node: its offer and its stake."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import NodeInfo, Wei
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "Register", "Stake"]


class Stake(Transaction):
    """Put the sender's own money at stake."""

    kind: ClassVar[str] = "stake"
    amount_wei: Wei


class Register(Transaction):
    """Offer the sender as a node, or change its offer."""

    kind: ClassVar[str] = "register"
    repeatable: ClassVar[bool] = True
    info: NodeInfo

    def mark(self) -> bytes | None:
        return b"register/" + self.info.address.encode()


KINDS: Final[tuple[type[Transaction], ...]] = (Stake, Register)

"""Being a node: its offer, its stake, and taking both back."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import Address, NodeInfo, Wei
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "Register", "Retire", "Stake", "Unstake", "Withdraw"]


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


class Retire(Transaction):
    """Take the sender's offer back. Its tasks go on, its stake stays until it is unstaked."""

    kind: ClassVar[str] = "retire"
    repeatable: ClassVar[bool] = True

    def mark(self) -> bytes | None:
        # Register's mark: the later of the two is what holds.
        return b"register/" + self.sender.encode()


class Unstake(Transaction):
    """Start to take money out of the stake: free after the unbonding period."""

    kind: ClassVar[str] = "unstake"
    amount_wei: Wei


class Withdraw(Transaction):
    """Move what is due of an account's unbonding and locked money to its balance; anybody may."""

    kind: ClassVar[str] = "withdraw"
    holder: Address


KINDS: Final[tuple[type[Transaction], ...]] = (Stake, Register, Retire, Unstake, Withdraw)

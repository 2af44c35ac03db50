"""Rewards for verified compute: closing an epoch, and claiming from it. Anybody may send both."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import Address, Uint
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "ClaimReward", "CloseEpoch"]


class CloseEpoch(Transaction):
    """Issue an epoch's emission, after its end and the challenge window."""

    kind: ClassVar[str] = "close-epoch"
    epoch: Uint

    def mark(self) -> bytes | None:
        return b"close-epoch/" + self.epoch.to_bytes(8, "big")


class ClaimReward(Transaction):
    """Pay a node its reward for an epoch; the money goes to the node, whoever sends this."""

    kind: ClassVar[str] = "claim-reward"
    epoch: Uint
    node: Address

    def mark(self) -> bytes | None:
        return b"claim-reward/" + bytes.fromhex(self.node[2:]) + self.epoch.to_bytes(8, "big")


KINDS: Final[tuple[type[Transaction], ...]] = (CloseEpoch, ClaimReward)

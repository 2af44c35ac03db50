"""The committee: its seats, and what they can find."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from daifi_flows._noun import Address, Bytes48, Bytes96, Noun, Uint
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import EncodingError

__all__ = [
    "Committee",
    "Decision",
    "Seat",
    "VoteChoice",
]


class Decision(StrEnum):
    """What the committee found. Unproven is not cheating: refunded, nobody slashed."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNPROVEN = "unproven"


class VoteChoice(StrEnum):
    """What one seat found."""

    ACCEPT = "accept"
    REJECT = "reject"
    ABSTAIN = "abstain"


class Seat(Noun):
    """One of the committee's seats: BLS public key with proof of possession, payee account."""

    index: Annotated[int, Field(ge=0, lt=63, strict=True)]
    public: Bytes48
    possession: Bytes96
    account: Address
    share: Bytes48 | None = None
    """Public share of the committee's group key; who certifies no blocks has none."""
    operator: Address | None = None
    """Who runs it, where that is not ``account``: seats of one operator are one interest."""
    weight: Uint | None = None
    """Stake × reputation when the seat was drawn; absent: all seats of the committee weigh one."""

    @property
    def interest(self) -> str:
        """Address of who runs it."""
        return self.operator or self.account


class Committee(Noun):
    """The seats of an epoch. n = 21, f = 6, quorum 14 by default (DESIGN: two quorums of 13
    could share only Byzantine seats)."""

    epoch: Uint
    seats: tuple[Seat, ...]
    group_key: Bytes48 | None = None
    """Under which a quorum of shares makes one signature: the ledger's beacon."""

    @property
    def faults(self) -> int:
        """f: how many Byzantine seats are tolerated, ⌊(n−1)/3⌋."""
        return (len(self.seats) - 1) // 3

    @property
    def quorum(self) -> int:
        """⌊(n+f)/2⌋ + 1."""
        return (len(self.seats) + self.faults) // 2 + 1

    @property
    def digest(self) -> bytes:
        """What block headers commit to."""
        return tagged_hash("daifi/committee/1", self.plain())

    def signers(self, bitmap: int) -> tuple[Seat, ...]:
        """Seats whose bit is set.

        Raises:
            EncodingError: a bit beyond the last seat is set.
        """
        if bitmap >> len(self.seats):
            raise EncodingError("the signer bitmap names a seat the committee does not have")
        return tuple(seat for seat in self.seats if bitmap >> seat.index & 1)

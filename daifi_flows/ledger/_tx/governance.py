"""Governance: proposals, votes, and taking a proposal back."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from daifi_flows.cnft import Bytes32, Label
from daifi_flows.ledger._governance import MAX_CHANGES, Choice, ModelChange, ParamChange
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "CancelProposal", "CastVote", "Propose"]


class Propose(Transaction):
    """Put changes to a vote, with a deposit.

    Attributes:
        title: for people; what it does is only what ``changes`` and ``models`` say.
        changes: parameters and their new values.
        models: models and their new listings.
    """

    kind: ClassVar[str] = "propose"
    title: Label
    changes: Annotated[tuple[ParamChange, ...], Field(max_length=MAX_CHANGES)]
    models: Annotated[tuple[ModelChange, ...], Field(max_length=MAX_CHANGES)]


class CastVote(Transaction):
    """Vote on an open proposal with all of the sender's stake; once, and for good."""

    kind: ClassVar[str] = "vote"
    proposal: Bytes32
    choice: Choice

    def mark(self) -> bytes | None:
        return b"vote/" + self.proposal + bytes.fromhex(self.sender[2:])


class CancelProposal(Transaction):
    """Take the sender's own proposal back before its vote has ended."""

    kind: ClassVar[str] = "cancel-proposal"
    proposal: Bytes32

    def mark(self) -> bytes | None:
        return b"cancel-proposal/" + self.proposal


KINDS: Final[tuple[type[Transaction], ...]] = (Propose, CastVote, CancelProposal)

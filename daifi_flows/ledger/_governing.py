"""Proposing and voting, through a client of the bundled ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from daifi_flows.cnft import Receipt
from daifi_flows.errors import LedgerError
from daifi_flows.keys import Account
from daifi_flows.ledger._governance import (
    AgendaRecord,
    Choice,
    ModelChange,
    ModelListing,
    ParamChange,
    ProposalRecord,
    proposal_key,
)
from daifi_flows.ledger._tx.governance import CancelProposal, CastVote, Propose

if TYPE_CHECKING:
    from daifi_flows.ledger._client import LedgerClient

__all__ = ["Governance"]


class Governance:
    """What stakeholders do with a ledger, and how it stands.

    Example:
        ``await Governance(ledger).propose("lower fees", me, {"fees.treasury_ppm": 40_000})``
    """

    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger

    async def propose(
        self,
        title: str,
        proposer: Account,
        params: Mapping[str, int] | None = None,
        models: Mapping[bytes, ModelListing] | None = None,
    ) -> bytes:
        """Put changes to the vote, with the deposit that governance asks; the proposal's id.

        Args:
            params: new values by ``group.field``; amounts in wei.
            models: new listings by the digest of the model's weights.

        Raises:
            LedgerError: a parameter's name is not ``group.field``.
            TransactionRefused: it could not be executed today, or there is no money for it.
        """
        changes: list[ParamChange] = []
        for name, value in (params or {}).items():
            group, dot, field = name.partition(".")
            if not (group and dot and field):
                raise LedgerError(f"parameter {name!r} must be named group.field")
            changes.append(
                ParamChange.from_plain({"group": group, "field": field, "value_wei": value})
            )
        listed = [
            ModelChange(digest=digest, listing=listing)
            for digest, listing in (models or {}).items()
        ]
        fields = {"title": title, "changes": tuple(changes), "models": tuple(listed)}
        receipt = await self._ledger.submit(Propose, proposer, fields)
        assert receipt.leaf.content is not None, "a proposal's receipt names it"
        return receipt.leaf.content

    async def vote(self, proposal: bytes, choice: Choice, voter: Account) -> Receipt:
        """Vote with all of the voter's stake, which stays staked until the vote ends."""
        return await self._ledger.submit(CastVote, voter, {"proposal": proposal, "choice": choice})

    async def cancel(self, proposal: bytes, proposer: Account) -> Receipt:
        """Take a proposal back before its vote ends."""
        return await self._ledger.submit(CancelProposal, proposer, {"proposal": proposal})

    async def proposal(self, id: bytes) -> ProposalRecord | None:
        """A proposal, its votes and what became of it."""
        return await self._ledger.record(ProposalRecord, proposal_key(id))

    async def agenda(self) -> Sequence[ProposalRecord]:
        """Open proposals, the next one due first."""
        agenda = await self._ledger.record(AgendaRecord, AgendaRecord.prefix)
        found = [await self.proposal(entry.proposal) for entry in agenda.entries] if agenda else []
        return [proposal for proposal in found if proposal is not None]

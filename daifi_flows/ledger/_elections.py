"""Offering oneself for the committee, and carrying its change through, by a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daifi_flows.cnft import Committee, QuorumCertificate, Receipt, Seat
from daifi_flows.errors import LedgerError
from daifi_flows.keys import Account
from daifi_flows.ledger._committees import (
    CandidateList,
    CandidateRecord,
    CommitteeRecord,
    OfficeRecord,
    RollRecord,
    candidate_key,
    committee_key,
    operator_consent,
)
from daifi_flows.ledger._tx.committee import (
    CloseRoll,
    DrawSeats,
    HandOver,
    OfferSeat,
    WithdrawOffer,
)

if TYPE_CHECKING:
    from daifi_flows.ledger._client import LedgerClient

__all__ = ["Elections"]


class Elections:
    """How a ledger's committee changes: who stands, who was drawn, and who takes over.

    Anyone may take each step; all of them have one outcome.

    Example:
        ``await Elections(ledger).offer(100 * 10**18, node)``
    """

    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger

    async def offer(
        self, pledge_wei: int, node: Account, operator: Account | None = None
    ) -> Receipt:
        """Offer a registered node with a BLS key for a seat; or change its pledge.

        Args:
            operator: who runs it, where its registration names another account.
        """
        fields: dict[str, Any] = {"pledge_wei": pledge_wei}
        if operator is not None:
            terms = operator_consent(self._ledger.ledger_id, node.address, operator.address)
            fields["consent"] = operator.sign(terms)
        return await self._ledger.submit(OfferSeat, node, fields)

    async def withdraw(self, node: Account) -> Receipt:
        """Take an offer back. A roll that is closed already keeps it."""
        return await self._ledger.submit(WithdrawOffer, node, {})

    async def candidates(self) -> tuple[CandidateRecord, ...]:
        """Whose offers stand, by address."""
        offers = await self._ledger.record(CandidateList, CandidateList.prefix)
        found = [
            await self._ledger.record(CandidateRecord, candidate_key(address))
            for address in (offers.addresses if offers is not None else ())
        ]
        return tuple(each for each in found if each is not None)

    async def in_office(self) -> CommitteeRecord:
        """The committee that certifies the next block, and since when.

        Raises:
            LedgerError: the ledger does not say.
        """
        office = await self._ledger.record(OfficeRecord, OfficeRecord.prefix)
        key = committee_key(office.epoch) if office is not None else b""
        found = await self._ledger.record(CommitteeRecord, key)
        if found is None:
            raise LedgerError("the ledger does not say who is in office; ask another copy")
        return found

    async def due_ms(self) -> int:
        """From when on the roll for the next epoch can be closed, Unix milliseconds."""
        office, roll = await self.in_office(), await self.roll()
        rules = (await self._ledger.params()).committee
        due_ms = office.since_ms + rules.epoch_ms
        if roll is not None and roll.epoch == office.committee.epoch + 1:
            due_ms = max(due_ms, roll.redraw_due_ms(rules.redraw_ms))
        return due_ms

    async def close_roll(self, sender: Account) -> RollRecord:
        """Close the roll of candidates for the next epoch."""
        epoch = (await self.in_office()).committee.epoch + 1
        await self._ledger.submit(CloseRoll, sender, {"epoch": epoch})
        return await self._require_roll()

    async def roll(self) -> RollRecord | None:
        """The newest closed roll, with who was drawn from it; :meth:`RollRecord.draw` proves it."""
        return await self._ledger.record(RollRecord, RollRecord.prefix)

    async def _require_roll(self) -> RollRecord:
        roll = await self.roll()
        if roll is None:
            raise LedgerError("no roll of candidates was ever closed here; close one first")
        return roll

    async def draw(self, sender: Account) -> RollRecord:
        """Draw the seats of the next epoch from the closed roll.

        The beacon is that of the block after the roll's. Where nobody else makes one, the sender
        does, with one wei to itself.

        Raises:
            LedgerError: no roll was closed.
        """
        height = (await self._require_roll()).height + 1
        found = await self._ledger.certified_header(height)
        if found is None:
            await self._ledger.transfer(sender.address, 1, sender)
            found = await self._ledger.certified_header(height)
        if found is None:
            raise LedgerError(f"block {height} is not final yet; draw again when it is")
        header, certificate = found
        fields = {"header": header, "certificate": certificate}
        await self._ledger.submit(DrawSeats, sender, fields)
        return await self._require_roll()

    async def elected(self) -> Committee:
        """The seats that were drawn for the next epoch, still without shares of the group key:
        what :func:`daifi_flows.judges.hand_on` takes. The proofs of possession are those with
        which the seats' accounts registered their keys, so nobody drawn can hold one back.

        Raises:
            LedgerError: no seats are drawn, or a drawn account has no registered key.
        """
        office, roll = await self.in_office(), await self._require_roll()
        if roll.epoch != office.committee.epoch + 1 or not roll.drawn:
            raise LedgerError("the seats of the next epoch are not drawn yet; draw them first")
        seats: list[Seat] = []
        for index, entrant in enumerate(roll.elected):
            drawn = entrant.candidate
            info = (await self._ledger.account(drawn.account)).registered
            if info is None or info.bls_possession is None:
                raise LedgerError(f"{drawn.account} was drawn and has no registered BLS key")
            seats.append(
                Seat(
                    index=index,
                    public=entrant.public,
                    possession=info.bls_possession,
                    account=drawn.account,
                    operator=drawn.operator,
                    weight=drawn.weight,
                )
            )
        key = office.committee.group_key
        return Committee(epoch=roll.epoch, seats=tuple(seats), group_key=key)

    async def hand_over(
        self, committee: Committee, certificate: QuorumCertificate, sender: Account
    ) -> Receipt:
        """Put the drawn committee in office, as a quorum of the present one signed
        (:func:`daifi_flows.epochs.handover_message`)."""
        fields = {"committee": committee, "certificate": certificate}
        return await self._ledger.submit(HandOver, sender, fields)

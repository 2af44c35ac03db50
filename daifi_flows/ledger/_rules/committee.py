"""The committee as state: who offers itself, the draw of the next one, and the handover to it.

1. **Offer.** A registered node with a BLS key pledges a part of its stake. The pledge cannot be
   unstaked, nor the key be changed, while the offer stands, while the account is on a roll whose
   draw or handover is still to come, and while it has a seat.
2. **Close the roll.** Once the epoch's length has passed anyone may. Who is on it, with what weight
   (pledge, or what slashes left of it, × reputation), key and operator, is fixed in this block.
3. **Draw.** The beacon of the *next* block draws the seats. It is the group's signature over the
   hash of the block that closed the roll: nobody knew it, or could change what it would be, as
   long as anybody could change the roll. Transactions run before their own block's beacon is
   known, so the draw is brought with that certified header; anyone may.
4. **Hand over.** A quorum of the present committee signs the next one: the drawn seats in their
   order with new shares of the same group key. It certifies from the next block on.

Without a handover the present committee goes on, and after ``redraw_ms`` the roll may be closed
anew; after twice as long the next time, and so on. Nobody on the way can choose: every step has one
outcome, and can be taken by anyone.

A committee's findings still count for ``grace_ms`` after it left, about work that was committed
before: reviews that were under way are not lost. What is not settled by then, its successor
reviews again. Its seats' stakes stay in reach until all of that can no longer be disputed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import NodeInfo, Payment, QuorumCertificate
from daifi_flows.epochs import committee_fault, handover_message
from daifi_flows.errors import InsufficientFunds, KeyMaterialError
from daifi_flows.keys import recover_address
from daifi_flows.ledger._committees import (
    MAX_OFFERS,
    CandidateList,
    CandidateRecord,
    CommitteeRecord,
    Entrant,
    OfficeRecord,
    RollRecord,
    candidate_key,
    operator_consent,
)
from daifi_flows.ledger._economics import reputation_ppm
from daifi_flows.ledger._records import AccountRecord
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._offences import (
    punish,
    require_accused,
    require_fresh,
    require_signatures,
)
from daifi_flows.ledger._rules._quorum import require_quorum
from daifi_flows.ledger._standing import SeatStanding
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.committee import (
    CloseRoll,
    DrawSeats,
    HandOver,
    LateCertificate,
    OfferSeat,
    WithdrawOffer,
)
from daifi_flows.sortition import Candidate, SumTree, weigh

__all__ = ["RULES", "held_pledge_wei"]


def offer_seat(ctx: Context, tx: OfferSeat) -> Facts:
    """Put the sender on the list of candidates, or change what it pledges."""
    least_wei = ctx.params.committee.min_pledge_wei
    if tx.pledge_wei < least_wei:
        refuse("bad-field", f"a candidate pledges at least {least_wei} wei of its stake")
    account = ctx.account(tx.sender)
    if account.registered is None or account.registered.bls_public is None:
        refuse("bad-role", f"{tx.sender} is no registered node with a BLS key: register one first")
    if account.stake_wei < tx.pledge_wei:
        raise InsufficientFunds(
            f"account {tx.sender} has {account.stake_wei} wei at stake and pledges "
            f"{tx.pledge_wei}; stake more",
            code="insufficient-funds",
            balance_wei=account.stake_wei,
            needed_wei=tx.pledge_wei,
        )
    operator = _operator(ctx, tx, account.registered)
    before = ctx.layer.find(CandidateRecord, candidate_key(tx.sender))
    if before is not None and tx.pledge_wei < before.pledge_wei and _is_needed(ctx, tx.sender):
        refuse("bad-state", f"{tx.sender} is on a roll or has a seat: its pledge cannot be lowered")
    offers = _offers(ctx)
    if tx.sender not in offers and len(offers) >= MAX_OFFERS:
        _displace(ctx, offers, tx.pledge_wei)
    _set_offers(ctx, offers | {tx.sender: tx.pledge_wei})
    ctx.layer.put(CandidateRecord(address=tx.sender, pledge_wei=tx.pledge_wei, operator=operator))
    return {"node": tx.sender}


def _operator(ctx: Context, tx: OfferSeat, info: NodeInfo) -> str | None:
    """Who runs the sender, if that is another account. Without its word a stranger's nodes could
    take an operator's share of the seats."""
    operator = info.operator
    if operator is None or operator == tx.sender:
        return None
    try:
        signer = recover_address(operator_consent(ctx.ledger_id, tx.sender, operator), tx.consent)
    except KeyMaterialError:
        signer = ""
    if signer != operator:
        refuse(
            "bad-signature",
            f"{tx.sender} is registered as run by {operator}, which did not sign that it is; have "
            "it sign, or register without it",
        )
    return operator


def _offers(ctx: Context) -> dict[str, int]:
    """Whose offers stand, and what each pledges, in wei."""
    found = ctx.layer.find(CandidateList, CandidateList.prefix)
    if found is None:
        return {}
    return dict(zip(found.addresses, found.pledges_wei, strict=True))


def _set_offers(ctx: Context, offers: Mapping[str, int]) -> None:
    addresses = tuple(sorted(offers))
    pledges_wei = tuple(offers[address] for address in addresses)
    ctx.layer.put(CandidateList(addresses=addresses, pledges_wei=pledges_wei))


def _displace(ctx: Context, offers: dict[str, int], pledge_wei: int) -> None:
    """Make room for a higher pledge: else small ones could fill the list for good."""
    least_wei, least = min((pledge, address) for address, pledge in offers.items())
    if pledge_wei <= least_wei:
        refuse(
            "bad-state", f"{MAX_OFFERS} candidates pledge {least_wei} wei or more; pledge over that"
        )
    del offers[least]
    _take_back(ctx, least)


def _require_candidate(ctx: Context, address: str) -> CandidateRecord:
    found = ctx.layer.find(CandidateRecord, candidate_key(address))
    assert found is not None, "who is on the list has made an offer"
    return found


def withdraw_offer(ctx: Context, tx: WithdrawOffer) -> Facts:
    """Take the sender off the list; a roll that is closed keeps it."""
    offers = _offers(ctx)
    if tx.sender not in offers:
        refuse("unknown", f"{tx.sender} offers itself for no seat")
    del offers[tx.sender]
    _set_offers(ctx, offers)
    _take_back(ctx, tx.sender)
    return {"node": tx.sender}


def _take_back(ctx: Context, address: str) -> None:
    if _is_needed(ctx, address):
        candidate = _require_candidate(ctx, address)
        ctx.layer.put(candidate.model_copy(update={"offered": 0}))
    else:
        ctx.layer.remove(candidate_key(address))


def _is_needed(ctx: Context, address: str) -> bool:
    """Whether an account has a seat, or is on the way to one."""
    if any(seat.account == address for seat in ctx.committee.seats):
        return True
    roll = _pending(ctx)
    if roll is None:
        return False
    on_the_way = roll.drawn or [entrant.candidate.account for entrant in roll.entrants]
    return address in on_the_way


def held_pledge_wei(ctx: Context, address: str) -> int:
    """What of an account's stake is pledged for a seat and cannot be unstaked, in wei."""
    candidate = ctx.layer.find(CandidateRecord, candidate_key(address))
    if candidate is None:
        return 0
    return candidate.pledge_wei if candidate.offered or _is_needed(ctx, address) else 0


def _pending(ctx: Context) -> RollRecord | None:
    """The roll that the next committee comes from."""
    roll = ctx.layer.find(RollRecord, RollRecord.prefix)
    return roll if roll is not None and roll.epoch == ctx.committee.epoch + 1 else None


def _require_pending(ctx: Context, epoch: int) -> RollRecord:
    roll = _pending(ctx)
    if roll is None or roll.epoch != epoch:
        refuse("bad-state", f"no roll of candidates is closed for epoch {epoch}; close it first")
    return roll


def close_roll(ctx: Context, tx: CloseRoll) -> Facts:
    """Fix who is drawn from, with what weight and key."""
    office, rules = ctx.layer.in_office(), ctx.params.committee
    if tx.epoch != office.committee.epoch + 1:
        refuse("bad-field", f"the next epoch is {office.committee.epoch + 1}, not {tx.epoch}")
    due_ms = office.since_ms + rules.epoch_ms
    if (before := _pending(ctx)) is not None:
        due_ms = max(due_ms, before.redraw_due_ms(rules.redraw_ms))
    if ctx.now_ms < due_ms:
        refuse(
            "bad-state",
            f"the roll for epoch {tx.epoch} can be closed from {due_ms} ms on; it is "
            f"{ctx.now_ms} ms on this ledger",
        )
    committee = office.committee
    entrants = tuple(found for address in _offers(ctx) if (found := _entrant(ctx, address)))
    if len(entrants) < len(committee.seats):
        refuse(
            "bad-state",
            f"{len(entrants)} candidates have a weight and {len(committee.seats)} seats are to be "
            "filled; more must offer themselves",
        )
    tree = SumTree(entrant.candidate for entrant in entrants)
    roll = RollRecord(
        epoch=tx.epoch,
        height=ctx.height,
        closed_ms=ctx.now_ms,
        seats=len(committee.seats),
        # No operator alone is more than the committee stands.
        per_operator=max(1, min(rules.operator_seats, committee.faults)),
        root=tree.root,
        since_height=office.since_height,
        entrants=entrants,
        tries=before.tries + 1 if before is not None else 0,
    )
    ctx.layer.put(roll)
    return {"content": roll.root}


def _entrant(ctx: Context, address: str) -> Entrant | None:
    account, info = ctx.account(address), ctx.account(address).registered
    offer = _require_candidate(ctx, address)
    stake_wei = min(offer.pledge_wei, account.stake_wei)
    if info is None or info.bls_public is None:
        return None
    if stake_wei < ctx.params.committee.min_pledge_wei:  # slashed since
        return None
    weight = weigh(stake_wei, _reputation_ppm(ctx, account))
    if weight == 0:
        return None
    candidate = Candidate(account=address, operator=offer.operator, weight=weight)
    return Entrant(candidate=candidate, public=info.bls_public)


def _reputation_ppm(ctx: Context, account: AccountRecord) -> int:
    """Mean of one Beta posterior of all that it did, as a node and in earlier seats."""
    half_life_ms = ctx.params.staking.half_life_ms
    node = account.standing.at(ctx.now_ms, half_life_ms)
    seat = (account.seat or SeatStanding()).at(ctx.now_ms, half_life_ms)
    return reputation_ppm(node.accepted_e6 + seat.served_e6, node.rejected_e6 + seat.missed_e6)


def draw_seats(ctx: Context, tx: DrawSeats) -> Facts:
    """Draw by the beacon of the block after that in which the roll was closed."""
    roll, header = _require_pending(ctx, ctx.committee.epoch + 1), tx.header
    if roll.drawn:
        refuse("duplicate", f"the seats of epoch {roll.epoch} are drawn already")
    # The committee in office closed the roll, and certified the next block. One that left has its
    # keys still: a quorum of it could sign whichever beacon draws its own.
    office = ctx.layer.in_office()
    for name, claimed, wanted in (
        ("ledger", header.ledger_id, ctx.ledger_id),
        ("height", header.height, roll.height + 1),
        ("epoch", header.epoch, office.committee.epoch),
        ("committee", header.committee, office.digest),
    ):
        if claimed != wanted:
            refuse(
                "bad-field",
                f"the header is of another {name}; the seats of epoch {roll.epoch} are drawn by "
                f"that of block {roll.height + 1}",
            )
    message = QuorumCertificate.message(header.digest)
    certificate = tx.certificate
    require_quorum(office.committee, certificate.signers, message, certificate.signature)
    picks = roll.draw(header.beacon).picks
    drawn = tuple(pick.account for pick in picks)
    roll = roll.model_copy(update={"beacon": header.beacon, "drawn": drawn})
    ctx.layer.put(roll)
    return {"content": roll.digest}


def hand_over(ctx: Context, tx: HandOver) -> Facts:
    """Put the next committee in office."""
    office, new = ctx.layer.in_office(), tx.committee
    roll = _require_pending(ctx, new.epoch)
    if not roll.drawn:
        refuse("bad-state", f"the seats of epoch {roll.epoch} are not drawn yet; draw them first")
    _require_drawn(tx, roll)
    if new.group_key != office.committee.group_key:
        refuse("bad-field", "the new committee has another group key; it must be shared anew")
    old_shares = {seat.share for seat in office.committee.seats}
    if any(seat.share in old_shares for seat in new.seats):
        refuse("bad-field", "a seat keeps a share of the committee before; all are made anew")
    digest = new.digest
    message = handover_message(ctx.ledger_id, office.digest, roll.digest, new.epoch, digest)
    votes = tx.certificate
    require_quorum(office.committee, votes.signers, message, votes.signature)
    if (fault := committee_fault(new)) is not None:
        refuse("bad-field", f"the new committee cannot certify blocks: {fault}")
    _keep_vouching(ctx, office, {seat.account for seat in new.seats})
    left = {"left_ms": ctx.now_ms, "left_height": ctx.height}
    ctx.layer.put(office.model_copy(update=left))
    ctx.layer.put(
        CommitteeRecord(
            committee=new,
            digest=digest,
            since_ms=ctx.now_ms,
            since_height=ctx.height,
            previous=office.digest,
            draw=roll.terms,
            certificate=votes,
        )
    )
    ctx.layer.put(OfficeRecord(epoch=new.epoch))
    return {"content": digest}


def _require_drawn(tx: HandOver, roll: RollRecord) -> None:
    elected, seats = roll.elected, tx.committee.seats
    if len(seats) != len(elected):
        refuse("bad-field", f"{len(elected)} seats were drawn and the committee has {len(seats)}")
    for index, (seat, entrant) in enumerate(zip(seats, elected, strict=True)):
        drawn = entrant.candidate
        for name, given, wanted in (
            ("number", seat.index, index),
            ("account", seat.account, drawn.account),
            ("BLS key", seat.public, entrant.public),
            ("operator", seat.operator, drawn.operator),
            ("weight", seat.weight, drawn.weight),
        ):
            if given != wanted:
                refuse("bad-field", f"seat {index} has another {name} than was drawn")


def _keep_vouching(ctx: Context, office: CommitteeRecord, staying: set[str]) -> None:
    """Who leaves a seat still answers for what it signed, and may sign in the time of grace."""
    params = ctx.params
    until_ms = ctx.now_ms + params.committee.grace_ms + params.vouching_ms
    for address in sorted({seat.account for seat in office.committee.seats} - staying):
        account = ctx.account(address)
        if account.stake_wei:
            later = max(account.vouching_until_ms, until_ms)
            ctx.layer.put(account.model_copy(update={"vouching_until_ms": later}))


def late_certificate(ctx: Context, tx: LateCertificate) -> Facts:
    """Slash seats that signed a block of a height at which another committee was in office.

    Whoever was away and knows no newer committee could be shown such a block as the ledger's.
    """
    header, votes = tx.header, tx.votes
    office = ctx.layer.seated_in(header.epoch)
    if office is None or (header.ledger_id, header.committee) != (ctx.ledger_id, office.digest):
        refuse("bad-field", "no committee of this ledger is named in the header")
    early = header.height <= office.since_height and office.since_height > 0
    late = office.left_height > 0 and header.height > office.left_height
    if not early and not late:
        refuse("bad-field", f"the committee of epoch {header.epoch} was in office at that height")
    # Also far ahead of the chain: it is not theirs whenever it comes, and the evidence grows stale.
    require_fresh(ctx, max(header.timestamp_ms, office.left_ms or office.since_ms))
    seats = require_accused(office.committee, votes.signers)
    message = QuorumCertificate.message(header.digest)
    require_signatures(office.committee, votes.signers, message, votes.signature)
    where = {"epoch": header.epoch, "height": header.height, "round": header.round}
    payments: tuple[Payment, ...] = ()
    punished: list[str] = []
    for seat in seats:
        paid = punish(ctx, "late", where, seat.account, tx.sender)
        if paid is not None:
            payments += paid
            punished.append(seat.account)
    if not punished:
        refuse("duplicate", "these offences were already shown")
    return {"node": punished[0], "content": header.digest, "payments": payments}


RULES: Final[Mapping[type[Transaction], Rule]] = {
    OfferSeat: offer_seat,
    WithdrawOffer: withdraw_offer,
    CloseRoll: close_roll,
    DrawSeats: draw_seats,
    HandOver: hand_over,
    LateCertificate: late_certificate,
}

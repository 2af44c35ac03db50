"""Bidding for a task: sealed first, revealed when nobody can bid any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.ledger._bids import AuctionRecord, RevealedBid, SealedBid, bid_commitment
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules._auctions import able, find_auction
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._tasks import require_attempt, require_state, require_task
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.bids import Bid, RevealBid

__all__ = ["RULES"]


def bid(ctx: Context, tx: Bid) -> Facts:
    """Take a node's sealed bid and its deposit; one a node and attempt.

    Two bids may carry the same commitment: whoever copies one cannot reveal it, and must not keep
    its author from bidding by being first.
    """
    task, auction = _require_auction(ctx, tx)
    bids = ctx.params.bids
    if ctx.now_ms >= auction.bids_until_ms:
        refuse("expired", f"bids were taken until {auction.bids_until_ms} ms")
    if any(each.node == tx.sender for each in auction.sealed):
        refuse("duplicate", f"node {tx.sender} already bid in this attempt")
    if not able(ctx, task, tx.sender):
        refuse(
            "bad-role",
            f"{tx.sender} cannot be given this task: a bidder is registered, has "
            f"{ctx.params.staking.min_stake_wei} wei at stake, and was not rejected on it",
        )
    if len(auction.sealed) >= bids.max_bids:
        refuse("bad-state", f"this attempt has {bids.max_bids} bids, which is the most it takes")
    ctx.debit(tx.sender, bids.deposit_wei)
    sealed = SealedBid(node=tx.sender, commitment=tx.commitment, deposit_wei=bids.deposit_wei)
    ctx.layer.put(auction.model_copy(update={"sealed": (*auction.sealed, sealed)}))
    return {"task_id": task.task_id, "node": tx.sender}


def reveal_bid(ctx: Context, tx: RevealBid) -> Facts:
    """Open the sender's bid and give its deposit back."""
    task, auction = _require_auction(ctx, tx)
    if ctx.now_ms < auction.bids_until_ms:
        refuse("bad-state", f"bids are taken until {auction.bids_until_ms} ms; reveal then")
    if ctx.now_ms >= auction.reveals_until_ms:
        refuse("expired", f"bids were revealed until {auction.reveals_until_ms} ms")
    sealed = next((each for each in auction.sealed if each.node == tx.sender), None)
    if sealed is None:
        refuse("unknown", f"{tx.sender} has no sealed bid in this attempt")
    if tx.eta_ms == 0:
        refuse("bad-field", "a bid promises an answer in 1 ms or more")
    if tx.price_wei > task.escrow_wei:
        refuse(
            "bad-field",
            f"{tx.price_wei} wei are over the task's maximum of {task.escrow_wei}: the bid could "
            "not be taken",
        )
    most_ms = task.spec.deadline_ms - auction.reveals_until_ms
    if tx.eta_ms > most_ms:
        refuse(
            "bad-field",
            f"{tx.eta_ms} ms from the auction's end are after the task's deadline; a bid promises "
            f"an answer in {most_ms} ms at most",
        )
    commitment = bid_commitment(
        ctx.ledger_id,
        task.task_id,
        attempt=tx.attempt,
        node=tx.sender,
        price_wei=tx.price_wei,
        eta_ms=tx.eta_ms,
        salt=tx.salt,
    )
    if commitment != sealed.commitment:
        refuse("bad-field", "this is not what the sealed bid committed to")
    revealed = RevealedBid(node=tx.sender, price_wei=tx.price_wei, eta_ms=tx.eta_ms)
    ctx.layer.put(
        auction.model_copy(
            update={
                "sealed": tuple(each for each in auction.sealed if each.node != tx.sender),
                "revealed": (*auction.revealed, revealed),
            }
        )
    )
    payments = ctx.credit(tx.sender, sealed.deposit_wei, "deposit")
    return {"task_id": task.task_id, "node": tx.sender, "payments": payments}


def _require_auction(ctx: Context, tx: Bid | RevealBid) -> tuple[TaskRecord, AuctionRecord]:
    task = require_task(ctx, tx.task_id)
    require_state(task, TaskState.OPEN)
    require_attempt(task, tx.attempt)
    auction = find_auction(ctx, task)
    if auction is None:
        refuse("bad-state", "nobody can bid for this attempt: its buyer assigns it directly")
    return task, auction


RULES: Final[Mapping[type[Transaction], Rule]] = {Bid: bid, RevealBid: reveal_bid}

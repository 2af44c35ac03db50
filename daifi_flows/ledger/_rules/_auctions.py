"""Auctions of tasks: their windows, who wins, and what becomes of deposits.

First price: the buyer takes any revealed bid and pays exactly what that node asked. A second
price would make the true cost the best bid only if a rule picked the cheapest node and nobody
else could bid. Here the buyer chooses by price, time, hardware and reputation, and may hide
behind nodes of its own: with a second price it would drive the payment down to the winner's own
price by revealing one of its bids just above it. At the first price no bid of anybody else
changes what the winner is paid: it is the one credible sealed-bid auction (Akbarpour and Li,
Credible Auctions: A Trilemma, Econometrica 2020, for optimal auctions in which only winners pay).
Nodes then ask for more than their cost; competition between many of them is what limits it.
"""

from __future__ import annotations

from daifi_flows.cnft import Payment, TaskSpec
from daifi_flows.ledger._bids import AuctionRecord, auction_key
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules._bonds import bond_wei
from daifi_flows.ledger._rules._context import Context, refuse
from daifi_flows.ledger._rules._stakes import is_node

__all__ = ["able", "award", "check_windows", "end_auction", "find_auction", "start_auction"]


def check_windows(ctx: Context, spec: TaskSpec, bid_ms: int, reveal_ms: int) -> None:
    """Refuse an auction that is too short to bid in, or ends after the task."""
    if bid_ms == 0 and reveal_ms == 0:
        return
    least_ms = ctx.params.bids.min_window_ms
    if min(bid_ms, reveal_ms) < least_ms:
        refuse(
            "bad-field",
            f"an auction gives at least {least_ms} ms to bid and as much to reveal; set bid_ms and "
            "reveal_ms both to 0 for none",
        )
    if ctx.now_ms + bid_ms + reveal_ms >= spec.deadline_ms:
        refuse("bad-field", "the auction would end after the task's deadline; set a later one")


def start_auction(ctx: Context, task: TaskRecord) -> None:
    """Open the auction of a task's present attempt, if it asks for one and there is time; after
    the first attempt there may not be, and the buyer chooses alone."""
    if task.bid_ms == 0 or task.attempt >= task.spec.review.attempts:
        return
    bids_until_ms = ctx.now_ms + task.bid_ms
    reveals_until_ms = bids_until_ms + task.reveal_ms
    if reveals_until_ms < task.spec.deadline_ms:
        ctx.layer.put(
            AuctionRecord(
                task_id=task.task_id,
                attempt=task.attempt,
                bids_until_ms=bids_until_ms,
                reveals_until_ms=reveals_until_ms,
            )
        )


def find_auction(ctx: Context, task: TaskRecord) -> AuctionRecord | None:
    """The auction of an open task, if there is one."""
    if task.bid_ms == 0 or task.state is not TaskState.OPEN:
        return None
    return ctx.layer.find(AuctionRecord, auction_key(task.task_id))


def able(ctx: Context, task: TaskRecord, node: str, *, price_wei: int = 0) -> bool:
    """Whether a node could be given a task at a price now."""
    account = ctx.account(node)
    return (
        is_node(ctx, node)
        and account.free_stake_wei >= bond_wei(ctx, price_wei)
        and node not in task.barred
    )


def award(
    ctx: Context, task: TaskRecord, node: str, price_wei: int
) -> tuple[int, tuple[Payment, ...]]:
    """Check a choice against the auction and end it; the time that the node promised, and what
    became of deposits. The time is 0 where nobody bid: then the choice is the buyer's.

    Bids of nodes that cannot be given the task any more do not bind the buyer. Of a promised time
    counts what is left of the task when the auction's time is over, less ``tasks.notice_ms`` in
    which the buyer assigns it: else a long promise could never be broken.
    """
    auction = find_auction(ctx, task)
    if auction is None:
        return 0, ()
    if not auction.over(ctx.now_ms):
        refuse(
            "bad-state",
            f"bids are taken until {auction.bids_until_ms} ms and revealed until "
            f"{auction.reveals_until_ms} ms; assign then",
        )
    bid = auction.bid_of(node)
    if bid is None:
        if any(able(ctx, task, each.node, price_wei=each.price_wei) for each in auction.revealed):
            refuse("bad-role", f"other nodes bid for this task and {node} did not; take a bid")
        return 0, end_auction(ctx, task)
    if price_wei != bid.price_wei:
        refuse("bad-field", f"node {node} bid {bid.price_wei} wei, not {price_wei}")
    left_ms = task.spec.deadline_ms - auction.reveals_until_ms - ctx.params.tasks.notice_ms
    return max(min(bid.eta_ms, left_ms), 1), end_auction(ctx, task)


def end_auction(ctx: Context, task: TaskRecord) -> tuple[Payment, ...]:
    """Remove a task's auction. Deposits of bids that could have been revealed and were not go to
    the treasury; where there was no time for that, they go back."""
    auction = find_auction(ctx, task)
    if auction is None:
        return ()
    ctx.layer.remove(auction.key())
    if ctx.now_ms >= auction.reveals_until_ms:
        return ctx.to_treasury(sum(bid.deposit_wei for bid in auction.sealed), "unrevealed")
    payments: tuple[Payment, ...] = ()
    for bid in auction.sealed:
        payments += ctx.credit(bid.node, bid.deposit_wei, "deposit")
    return payments

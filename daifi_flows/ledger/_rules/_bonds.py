"""Bonds: the part of a node's stake that vouches for the task it was given.

A bond stays within the stake. It is marked there so that it cannot be unstaked, and a slash for
any other fault reaches it like the rest. A node loses of its bond when it bid for a task, got it
and said nothing before the deadline; a bid is a promise by a node that follows the ledger and can
give the task back in time. A node that a buyer assigned without a bid never loses of it: the work
reaches it outside of the ledger, and the buyer may not have sent it.
"""

from __future__ import annotations

from daifi_flows.cnft import PPM, Payment
from daifi_flows.ledger._economics import Fault, slash_parts
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules._context import Context, refuse
from daifi_flows.ledger._rules._stakes import share_out

__all__ = ["bond", "bond_wei", "charged", "disengage", "forfeit_bond", "vouched_until_ms"]


def bond_wei(ctx: Context, price_wei: int) -> int:
    """What an assignment at a price bonds, rounded down."""
    return price_wei * ctx.params.tasks.bond_ppm // PPM


def bond(ctx: Context, node: str, price_wei: int) -> int:
    """Bond a part of a node's stake, and keep all of it in reach for as long as unbonding lasts
    today, even if governance makes that shorter; how much is bonded, in wei."""
    amount_wei = bond_wei(ctx, price_wei)
    account = ctx.account(node)
    if account.free_stake_wei < amount_wei:
        refuse(
            "bad-role",
            f"{account.free_stake_wei} wei of node {node}'s stake vouch for no other task, and "
            f"this one needs {amount_wei}; choose another node, or wait until it has settled some",
        )
    update = {
        "bonded_wei": account.bonded_wei + amount_wei,
        "engaged_wei": account.engaged_wei + price_wei,
        "vouching_until_ms": max(account.vouching_until_ms, vouched_until_ms(ctx)),
    }
    ctx.layer.put(account.model_copy(update=update))
    return amount_wei


def vouched_until_ms(ctx: Context) -> int:
    """Until when stake is in reach that vouches for what is assigned now."""
    return ctx.now_ms + ctx.params.staking.unbonding_ms


def disengage(ctx: Context, task: TaskRecord) -> None:
    """End a task's assignment, if it has one: its node has its bond back, and its stake vouches
    for it no more. The caller writes the task, without the bond."""
    if task.node is None or task.state not in (TaskState.ASSIGNED, TaskState.COMMITTED):
        return
    account = ctx.account(task.node)
    update = {
        "bonded_wei": account.bonded_wei - task.bond_wei,
        "engaged_wei": account.engaged_wei - task.price_wei,
    }
    ctx.layer.put(account.model_copy(update=update))


def charged(ctx: Context, task: TaskRecord) -> bool:
    """Whether the silence of an assigned node is a fault: it bid, and it had the time it asked
    for, and time to give the task back."""
    if task.eta_ms == 0:
        return False
    had_ms = task.spec.deadline_ms - task.assigned_ms
    return had_ms >= max(task.eta_ms, 2 * ctx.params.tasks.notice_ms)


def forfeit_bond(
    ctx: Context, task: TaskRecord, reporter: str
) -> tuple[TaskRecord, tuple[Payment, ...]]:
    """Take the part of the bond that an unanswered task costs, and free the rest; the task
    without a bond, and the payments. The caller ends the assignment."""
    assert task.node is not None, "only an assigned task has a bond"
    account = ctx.account(task.node)
    fraction_ppm = ctx.params.slashing.fraction_ppm(Fault.UNANSWERED)
    (lost_wei,) = slash_parts([min(task.bond_wei, account.stake_wei)], fraction_ppm)
    update = {
        "stake_wei": account.stake_wei - lost_wei,
        "bonded_wei": account.bonded_wei - task.bond_wei,
    }
    ctx.layer.put(account.model_copy(update=update))
    payments = share_out(ctx, lost_wei, offender=task.node, reporter=reporter)
    return task.model_copy(update={"bond_wei": 0}), payments

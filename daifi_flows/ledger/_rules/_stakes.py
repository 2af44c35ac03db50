"""Money of nodes that is not free: slashing what is at stake, locking what was earned."""

from __future__ import annotations

from daifi_flows.cnft import Payment
from daifi_flows.ledger._economics import Fault, slash_parts, split_slash
from daifi_flows.ledger._rules._context import Context
from daifi_flows.ledger._tranches import Tranche, due_ms, taken, with_tranche

__all__ = ["is_node", "lock", "seize", "share_out", "slash"]


def is_node(ctx: Context, address: str) -> bool:
    """Whether an account is registered as a node and has the least stake of one."""
    account = ctx.account(address)
    staked = account.stake_wei >= ctx.params.staking.min_stake_wei
    return staked and account.registered is not None


def slash(ctx: Context, address: str, fault: Fault, reporter: str) -> tuple[Payment, ...]:
    """Take a fault's fraction of the stake and of every tranche that still unbonds.

    The payments, all with reason ``slash``, add up to what was taken. Whoever reports itself
    gets no reporter's share; the treasury does.
    """
    slashing = ctx.params.slashing
    account = ctx.account(address)
    unbonding = [tranche.amount_wei for tranche in account.unbonding]
    lost, *losses = slash_parts([account.stake_wei, *unbonding], slashing.fraction_ppm(fault))
    left = tuple(
        Tranche(due_ms=tranche.due_ms, amount_wei=tranche.amount_wei - loss)
        for tranche, loss in zip(account.unbonding, losses, strict=True)
    )
    ctx.layer.put(
        account.model_copy(update={"stake_wei": account.stake_wei - lost, "unbonding": left})
    )
    return share_out(ctx, lost + sum(losses), offender=address, reporter=reporter)


def share_out(ctx: Context, lost_wei: int, *, offender: str, reporter: str) -> tuple[Payment, ...]:
    """Pay out what an offender lost; the caller has taken it."""
    slashing = ctx.params.slashing
    split = split_slash(
        lost_wei,
        reporter_ppm=slashing.reporter_ppm if reporter != offender else 0,
        burn_ppm=slashing.burn_ppm,
    )
    return (
        *ctx.credit(reporter, split.reporter_wei, "slash"),
        *ctx.burn(split.burned_wei, "slash"),
        *ctx.to_treasury(split.treasury_wei, "slash"),
    )


def lock(ctx: Context, address: str, amount_wei: int, reason: str) -> tuple[Payment, ...]:
    """Pay money that is free only when the output it was paid for can no longer be challenged."""
    wait_ms = ctx.params.rewards.challenge_ms
    if amount_wei == 0 or wait_ms == 0:
        return ctx.credit(address, amount_wei, reason)
    account = ctx.account(address)
    locked = with_tranche(account.locked, due_ms(ctx.now_ms, wait_ms), amount_wei)
    ctx.layer.put(account.model_copy(update={"locked": locked}))
    return (Payment(to=address, amount_wei=amount_wei, reason=reason),)


def seize(ctx: Context, address: str, amount_wei: int) -> int:
    """Take back locked money, earliest due first; what was there, up to the amount.

    The caller says where it goes: to a dispute's escrow, or back to the buyer.
    """
    account = ctx.account(address)
    amount_wei, locked = taken(account.locked, amount_wei)
    ctx.layer.put(account.model_copy(update={"locked": locked}))
    return amount_wei

"""The lending pool, capacity on offer, and leases that are paid for where they are taken.

A rule that refuses takes the whole transaction with it, so a lease that cannot be paid has
happened to nobody: no action, no fee, no nonce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from daifi_flows.cnft import Payment, TxReceipt
from daifi_flows.encoding import keccak256, tagged_hash
from daifi_flows.errors import InsufficientFunds
from daifi_flows.ledger._economics import royalty_wei
from daifi_flows.ledger._lease import (
    OfferRecord,
    PoolRecord,
    ProviderRecord,
    lease_fee_wei,
    offer_key,
    provider_key,
)
from daifi_flows.ledger._records import ZERO_ADDRESS, TaskState
from daifi_flows.ledger._rules import market, money, tasks, tokens
from daifi_flows.ledger._rules._context import Context, Facts, Rule, positive, refuse
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.lease import (
    ACTIONS,
    EndOffer,
    Lease,
    OfferCapacity,
    PoolDeposit,
    PoolWithdraw,
    read_action,
)
from daifi_flows.ledger._tx.tasks import Assign

__all__ = ["RULES"]

_OTHERS: Final[dict[type[Transaction], Rule]] = {
    **market.RULES,
    **money.RULES,
    **tasks.RULES,
    **tokens.RULES,
}
_ACTION_RULES: Final = {kind: _OTHERS[kind] for kind in ACTIONS.values()}


def _pool(ctx: Context) -> PoolRecord:
    return ctx.layer.find(PoolRecord, PoolRecord.prefix) or PoolRecord()


def _shares(ctx: Context, provider: str) -> int:
    found = ctx.layer.find(ProviderRecord, provider_key(provider))
    return 0 if found is None else found.shares_wei


def pool_deposit(ctx: Context, tx: PoolDeposit) -> Facts:
    """From the sender's balance to the pool, for shares."""
    positive(tx.amount_wei)
    pool = _pool(ctx)
    shares_wei = pool.shares_for_wei(tx.amount_wei)
    if shares_wei == 0 or shares_wei < tx.least_shares_wei:
        refuse("bad-state", f"{tx.amount_wei} wei buy {shares_wei} shares now; deposit more")
    ctx.debit(tx.sender, tx.amount_wei)
    update = {
        "cash_wei": pool.cash_wei + tx.amount_wei,
        "shares_wei": pool.shares_wei + shares_wei,
    }
    ctx.layer.put(pool.model_copy(update=update))
    held_wei = _shares(ctx, tx.sender) + shares_wei
    ctx.layer.put(ProviderRecord(provider=tx.sender, shares_wei=held_wei))
    return {}


def pool_withdraw(ctx: Context, tx: PoolWithdraw) -> Facts:
    """From the pool to the sender's balance, for shares."""
    pool, held_wei = _pool(ctx), _shares(ctx, tx.sender)
    if tx.shares_wei > held_wei:
        refuse("bad-field", f"{tx.sender} has {held_wei} shares of the pool, not {tx.shares_wei}")
    amount_wei = pool.worth_wei(tx.shares_wei)
    if amount_wei == 0 or amount_wei < tx.least_wei:
        refuse("bad-state", f"{tx.shares_wei} shares are worth {amount_wei} wei now; return more")
    update = {
        "cash_wei": pool.cash_wei - amount_wei,
        "shares_wei": pool.shares_wei - tx.shares_wei,
    }
    ctx.layer.put(pool.model_copy(update=update))
    if tx.shares_wei == held_wei:
        ctx.layer.remove(provider_key(tx.sender))
    else:
        left_wei = held_wei - tx.shares_wei
        ctx.layer.put(ProviderRecord(provider=tx.sender, shares_wei=left_wei))
    return {"payments": ctx.credit(tx.sender, amount_wei, "pool")}


def offer_capacity(ctx: Context, tx: OfferCapacity) -> Facts:
    """Set what a staked node leases out: no more than it has lately shown it can do."""
    account = ctx.account(tx.sender)
    if account.registered is None:
        refuse("unknown", f"{tx.sender} is not registered as a node")
    staking = ctx.params.staking
    if account.stake_wei < staking.min_stake_wei:
        refuse(
            "bad-role",
            f"node {tx.sender} has {account.stake_wei} wei at stake and needs "
            f"{staking.min_stake_wei}",
        )
    shown = account.standing.at(ctx.now_ms, staking.half_life_ms).mflop
    if not 0 < tx.mflop <= shown:
        refuse("bad-field", f"offer 1 to {shown} megaFLOP, the node's verified work so far")
    if not 0 < tx.task_mflop <= tx.mflop:
        refuse("bad-field", f"a task takes 1 to {tx.mflop} megaFLOP of what is on offer")
    if tx.until_ms <= ctx.now_ms:
        refuse("expired", "the offer would already be over; set a later time")
    ctx.layer.put(
        OfferRecord(
            node=tx.sender,
            mflop=tx.mflop,
            task_mflop=tx.task_mflop,
            tflop_wei=tx.tflop_wei,
            until_ms=tx.until_ms,
        )
    )
    return {"node": tx.sender}


def end_offer(ctx: Context, tx: EndOffer) -> Facts:
    """Take the sender's offer out of the state."""
    if ctx.layer.find(OfferRecord, offer_key(tx.sender)) is None:
        refuse("unknown", f"{tx.sender} offers no capacity")
    ctx.layer.remove(offer_key(tx.sender))
    return {"node": tx.sender}


def lease(ctx: Context, tx: Lease) -> Facts:
    """Lend, act, collect.

    The receipt's payments are those of all actions, then what the lease itself cost; its content
    is the digest of the actions' receipts, ``keccak256("daifi/lease/1" ‖ dag-cbor([receipt …]))``,
    each with Keccak-256 of the action in place of a transaction id.
    """
    if not tx.credit_wei and not tx.mflop:
        refuse("bad-field", "the lease borrows nothing; send its actions as transactions")
    actions = [read_action(data, tx.sender) for data in tx.actions]
    offer = _take_capacity(ctx, tx)
    pool = _pool(ctx)
    if tx.credit_wei > pool.cash_wei:
        refuse("bad-state", f"the pool holds {pool.cash_wei} wei, not {tx.credit_wei}; borrow less")
    if tx.credit_wei:
        # Out of the pool's record, so that nothing within can count on it.
        ctx.layer.put(pool.model_copy(update={"cash_wei": pool.cash_wei - tx.credit_wei}))
        ctx.credit(tx.sender, tx.credit_wei, "lease")
    inner = replace(ctx, leased=tx.node)
    receipts: list[TxReceipt] = []
    for data, action in zip(tx.actions, actions, strict=True):
        facts: Mapping[str, Any] = _ACTION_RULES[type(action)](inner, action)
        receipts.append(TxReceipt(tx=keccak256(data), kind=action.kind, sender=tx.sender, **facts))
    payments = tuple(payment for receipt in receipts for payment in receipt.payments)
    try:
        if offer is not None:
            payments += _pay_for_capacity(ctx, tx, actions, offer)
        payments += _repay(ctx, tx)
    except InsufficientFunds as error:
        raise InsufficientFunds(
            f"the lease is not paid after its actions, so none of them happened: {error}",
            **error.details,
        ) from error
    return {
        "node": None if tx.node == ZERO_ADDRESS else tx.node,
        "content": tagged_hash("daifi/lease/1", [receipt.plain() for receipt in receipts]),
        "payments": payments,
    }


def _take_capacity(ctx: Context, tx: Lease) -> OfferRecord | None:
    """Take what is leased out of the node's offer; the offer as it was."""
    if (tx.node == ZERO_ADDRESS) != (tx.mflop == 0):
        refuse("bad-field", "name the node and how much of its capacity, or neither")
    if not tx.mflop:
        if tx.price_wei:
            refuse("bad-field", "no capacity is leased, so its price is 0")
        return None
    if tx.node == tx.sender:
        refuse("bad-role", "a node does not lease its own capacity")
    offer = ctx.layer.find(OfferRecord, offer_key(tx.node))
    if offer is None:
        refuse("unknown", f"node {tx.node} offers no capacity")
    if offer.until_ms < ctx.now_ms:
        refuse("expired", f"the offer was over at {offer.until_ms} ms on this ledger")
    if tx.mflop > offer.mflop:
        refuse("bad-state", f"node {tx.node} has {offer.mflop} megaFLOP left on offer")
    if tx.price_wei != offer.cost_wei(tx.mflop):
        refuse(
            "bad-state",
            f"{tx.mflop} megaFLOP of this node cost {offer.cost_wei(tx.mflop)} wei, not "
            f"{tx.price_wei}",
        )
    left = offer.mflop - tx.mflop
    if left < offer.task_mflop:
        ctx.layer.remove(offer.key())
    else:
        ctx.layer.put(offer.model_copy(update={"mflop": left}))
    return offer


def _pay_for_capacity(
    ctx: Context, tx: Lease, actions: Sequence[Transaction], offer: OfferRecord
) -> tuple[Payment, ...]:
    """Check that the tasks given to the leased node are covered by what was leased and carry its
    price, and pay the node its part in advance. Each task's price is in escrow and is paid, as
    ever, when its output is accepted. Tasks that the node bid for have their own price."""
    given = {action.task_id for action in actions if isinstance(action, Assign)}
    found = [task for task_id in given if (task := ctx.layer.task(task_id)) is not None]
    # A task that was assigned and cancelled within the lease carries nothing.
    prices = [
        task.price_wei
        for task in found
        if task.state is TaskState.ASSIGNED and task.node == tx.node and task.eta_ms == 0
    ]
    if len(prices) * offer.task_mflop > tx.mflop:
        refuse(
            "bad-state",
            f"{tx.mflop} megaFLOP are leased and each task takes {offer.task_mflop} at least; "
            f"lease more, or assign fewer than {len(prices)} tasks",
        )
    least_wei = offer.cost_wei(offer.task_mflop)
    if min(prices, default=least_wei) < least_wei:
        refuse(
            "bad-state",
            f"a task that takes {offer.task_mflop} megaFLOP of this node pays {least_wei} wei at "
            f"least, not {min(prices)}",
        )
    carried_wei = sum(prices)
    if not prices or carried_wei < tx.price_wei:
        refuse(
            "bad-state",
            f"the tasks that the lease gives to {tx.node} pay {carried_wei} wei and its capacity "
            f"costs {tx.price_wei}; assign tasks that use it",
        )
    advance_wei = lease_fee_wei(tx.price_wei, ctx.params.leases.capacity_ppm)
    ctx.debit(tx.sender, advance_wei)
    return ctx.credit(tx.node, advance_wei, "capacity")


def _repay(ctx: Context, tx: Lease) -> tuple[Payment, ...]:
    """Principal and fee back to the pool, less the treasury's part of the fee."""
    if not tx.credit_wei:
        return ()
    fee_wei = lease_fee_wei(tx.credit_wei, ctx.params.leases.credit_ppm)
    treasury_wei = royalty_wei(fee_wei, ctx.params.fees.treasury_ppm)
    ctx.debit(tx.sender, tx.credit_wei + fee_wei)
    pool = _pool(ctx)
    cash_wei = pool.cash_wei + tx.credit_wei + fee_wei - treasury_wei
    ctx.layer.put(pool.model_copy(update={"cash_wei": cash_wei}))
    return ctx.to_treasury(treasury_wei, "treasury")


RULES: Final[Mapping[type[Transaction], Rule]] = {
    PoolDeposit: pool_deposit,
    PoolWithdraw: pool_withdraw,
    OfferCapacity: offer_capacity,
    EndOffer: end_offer,
    Lease: lease,
}

"""Rewards: issuing an epoch's emission, and paying each node its part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import Payment
from daifi_flows.ledger._economics import reward_wei
from daifi_flows.ledger._epochs import EpochRecord, NodeEpochRecord, epoch_key, node_epoch_key
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.rewards import ClaimReward, CloseEpoch

__all__ = ["RULES"]


def close_epoch(ctx: Context, tx: CloseEpoch) -> Facts:
    """Issue an epoch's emission into its pool, once no output of it can be challenged.

    An epoch in which nobody has any weight issues nothing.
    """
    pool = ctx.layer.find(EpochRecord, epoch_key(tx.epoch))
    if pool is None:
        refuse("unknown", f"no work was settled in epoch {tx.epoch}, or all its rewards are paid")
    if pool.closed:
        refuse("duplicate", f"epoch {tx.epoch} is already closed; claim its rewards")
    due = pool.ends_ms + ctx.params.rewards.challenge_ms
    if ctx.now_ms < due:
        refuse(
            "bad-state",
            f"outputs of epoch {tx.epoch} can be challenged until {due} ms; it is {ctx.now_ms} ms "
            "on this ledger",
        )
    issued_wei = pool.emission_wei if pool.weights else 0
    supply = ctx.layer.supply()
    ctx.layer.put(supply.model_copy(update={"issued_wei": supply.issued_wei + issued_wei}))
    ctx.layer.put(pool.model_copy(update={"closed": 1, "pool_wei": issued_wei}))
    return {}


def claim_reward(ctx: Context, tx: ClaimReward) -> Facts:
    """Pay a node its part of a closed epoch; the last one's claim ends the epoch's record."""
    pool = ctx.layer.find(EpochRecord, epoch_key(tx.epoch))
    part = ctx.layer.find(NodeEpochRecord, node_epoch_key(tx.node, tx.epoch))
    if pool is None or part is None:
        refuse("unknown", f"node {tx.node} has nothing to claim in epoch {tx.epoch}")
    if not pool.closed:
        refuse("bad-state", f"epoch {tx.epoch} is not closed; close it first")
    if part.held:
        refuse("bad-state", f"an output of {tx.node} in epoch {tx.epoch} is disputed; claim later")
    if ctx.now_ms < part.free_ms:
        refuse(
            "bad-state",
            f"an output of {tx.node} in epoch {tx.epoch} can be disputed until {part.free_ms} ms; "
            "claim later",
        )
    amount_wei = reward_wei(pool.emission_wei, part.weight, pool.weights)
    left_wei = pool.pool_wei - amount_wei
    payments: tuple[Payment, ...] = ctx.credit(tx.node, amount_wei, "reward")
    ctx.layer.remove(part.key())
    if pool.nodes > 1:
        ctx.layer.put(pool.model_copy(update={"pool_wei": left_wei, "nodes": pool.nodes - 1}))
    else:
        payments += ctx.to_treasury(left_wei, "dust")
        ctx.layer.remove(pool.key())
    return {"node": tx.node, "payments": payments}


RULES: Final[Mapping[type[Transaction], Rule]] = {
    CloseEpoch: close_epoch,
    ClaimReward: claim_reward,
}

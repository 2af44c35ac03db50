"""Verified work: what it adds to a node's standing, to its epoch's weights and to demand."""

from __future__ import annotations

from typing import Final

from daifi_flows.ledger import _economics as economics
from daifi_flows.ledger._epochs import (
    EpochRecord,
    NodeEpochRecord,
    ScheduleRecord,
    epoch_key,
    node_epoch_key,
)
from daifi_flows.ledger._params import Genesis, PriceParams
from daifi_flows.ledger._rules._context import Context
from daifi_flows.ledger._state import Base

__all__ = [
    "delay_reward",
    "epoch_of",
    "forfeit_reward",
    "hold_reward",
    "index_at",
    "let_go_reward",
    "price_index_ppm",
    "record_rejection",
    "record_review",
    "record_verified",
    "record_work",
]

_LIMIT: Final = 2**63 - 1


def epoch_of(ctx: Context, time_ms: int) -> int:
    """Number of the epoch that holds an instant; genesis starts epoch 0."""
    return _epoch_at(ctx.genesis, time_ms)


def _epoch_at(genesis: Genesis, time_ms: int) -> int:
    return max(time_ms - genesis.timestamp_ms, 0) // genesis.epoch_ms


def _schedule(state: Base, genesis: Genesis) -> ScheduleRecord:
    """Where emission and the price index stand; at first as genesis and the parameters say."""
    found = state.find(ScheduleRecord, ScheduleRecord.prefix)
    return found or ScheduleRecord(
        since_ms=genesis.timestamp_ms,
        left_wei=genesis.to_issue_wei,
        lambda_ppb=state.params().rewards.lambda_ppb,
    )


def price_index_ppm(ctx: Context) -> int:
    """What nodes' asks are multiplied by now, in ppm: it follows from the epochs before."""
    return index_at(ctx.layer, ctx.genesis, ctx.now_ms)


def index_at(state: Base, genesis: Genesis, time_ms: int) -> int:
    """The price index at an instant, if nothing more is settled until then, in ppm."""
    known = _schedule(state, genesis)
    return _index_of(state.params().prices, genesis, known, _epoch_at(genesis, time_ms))


def _index_of(prices: PriceParams, genesis: Genesis, known: ScheduleRecord, epoch: int) -> int:
    if epoch <= known.epoch:
        return known.index_ppm
    after = economics.next_index_ppm(
        known.index_ppm,
        used=known.used_mflop,
        target=max(prices.capacity_gflops * genesis.epoch_ms // economics.PEAK, 1),
        change_ppm=prices.change_ppm,
        ceiling_ppm=prices.ceiling_ppm,
    )
    return economics.idle_index_ppm(
        after,
        epochs=epoch - known.epoch - 1,
        change_ppm=prices.change_ppm,
        ceiling_ppm=prices.ceiling_ppm,
    )


def _open_epoch(ctx: Context, epoch: int) -> EpochRecord:
    """The epoch's record, and the schedule at it; a new λ counts from the epoch's start."""
    found = ctx.layer.find(EpochRecord, epoch_key(epoch))
    if found is not None:
        return found
    known, rate = _schedule(ctx.layer, ctx.genesis), ctx.params.rewards.lambda_ppb
    starts_ms = ctx.genesis.timestamp_ms + epoch * ctx.genesis.epoch_ms
    ends_ms = starts_ms + ctx.genesis.epoch_ms
    update: dict[str, int] = {
        "epoch": epoch,
        "index_ppm": _index_of(ctx.params.prices, ctx.genesis, known, epoch),
        "used_mflop": 0,
    }
    if rate != known.lambda_ppb:
        left = economics.yet_to_issue_wei(
            known.left_wei, known.lambda_ppb, starts_ms - known.since_ms
        )
        update |= {"since_ms": starts_ms, "left_wei": left, "lambda_ppb": rate}
    known = known.model_copy(update=update)
    ctx.layer.put(known)
    before, after = (
        economics.yet_to_issue_wei(known.left_wei, known.lambda_ppb, time - known.since_ms)
        for time in (starts_ms, ends_ms)
    )
    return EpochRecord(epoch=epoch, ends_ms=ends_ms, emission_wei=before - after)


def _weigh(
    ctx: Context, pool: EpochRecord, part: NodeEpochRecord, reputation_ppm: int
) -> tuple[EpochRecord, NodeEpochRecord]:
    """Both records with the node's weight as it is now; an epoch's weights end at 2^63 − 1."""
    rewards, weight = ctx.params.rewards, 0
    if not part.forfeited:
        weight = economics.weight_of(
            mflop=part.mflop,
            variance_ms2=part.latency.variance_ms2,
            tau_ms2=rewards.tau_ms2,
            reputation_ppm=reputation_ppm,
            alpha_ppm=rewards.alpha_ppm,
            beta_mflop=rewards.beta_mflop,
            gamma_ppm=economics.gamma_ppm(reputation_ppm, rewards.gamma_floor_ppm),
        )
    others = pool.weights - part.weight
    weight = min(weight, _LIMIT - others)
    return (
        pool.model_copy(update={"weights": others + weight}),
        part.model_copy(update={"weight": weight}),
    )


def record_work(
    ctx: Context,
    node: str,
    *,
    flop: int,
    paid_wei: int,
    wait_ms: int | None = None,
    unseen_until_ms: int | None = None,
) -> None:
    """Count one accepted execution: for reputation, for the epoch's reward and as demand.

    Rewards are for *verified* compute (white paper 2.3). So work that nobody reviewed counts as
    none: a buyer and a node that are one and show nothing when they are drawn earn nothing by what
    is waived. What was reviewed counts once, however unlikely it was to be drawn: an attestation
    does not say that the lottery drew it, and anybody can have any work reviewed.

    Args:
        flop: floating-point operations, as the node stated them.
        paid_wei: what the buyer paid for them; bounds what is believed.
        wait_ms: from assignment to answer; absent where nothing was assigned.
        unseen_until_ms: of work that nobody reviewed, the last instant at which its output can be
            challenged: it shows nothing about the node, and no reward is paid before, because an
            output proven wrong costs all of the epoch's.
    """
    params = ctx.params
    mflop = economics.credited_mflop(flop, paid_wei, params.rewards.credit_wei_per_pflop)
    epoch = epoch_of(ctx, ctx.now_ms)
    pool = _open_epoch(ctx, epoch)
    part = ctx.layer.find(NodeEpochRecord, node_epoch_key(node, epoch))
    if part is None:
        part = NodeEpochRecord(node=node, epoch=epoch)
        pool = pool.model_copy(update={"nodes": pool.nodes + 1})
    most = params.rewards.node_gflops * ctx.genesis.epoch_ms  # a gigaFLOP a second, in megaFLOP
    room = max(most - part.mflop, 0)
    verified = min(mflop, room) if unseen_until_ms is None else 0
    account = ctx.account(node)
    standing = account.standing.at(ctx.now_ms, params.staking.half_life_ms)
    if unseen_until_ms is None:
        standing = standing.with_accepted(verified)
        update = {"standing": standing, "accepted": account.accepted + 1}
        ctx.layer.put(account.model_copy(update=update))
    latency = part.latency if wait_ms is None else part.latency.with_sample(wait_ms)
    part = part.model_copy(
        update={
            "mflop": part.mflop + verified,
            "waits": latency.count,
            "total_ms": latency.total_ms,
            "squares_ms2": latency.squares_ms2,
            "free_ms": max(part.free_ms, unseen_until_ms or 0),
        }
    )
    pool, part = _weigh(ctx, pool, part, standing.reputation_ppm)
    ctx.layer.put(pool)
    ctx.layer.put(part)
    known = _schedule(ctx.layer, ctx.genesis)
    used = min(known.used_mflop + min(mflop, room), _LIMIT)
    ctx.layer.put(known.model_copy(update={"used_mflop": used}))


def record_review(ctx: Context, node: str) -> None:
    """Count one execution that was reviewed by itself and accepted, on the way out of
    probation."""
    account = ctx.account(node)
    ctx.layer.put(account.model_copy(update={"reviewed": account.reviewed + 1}))


def record_verified(ctx: Context, node: str, *, flop: int, paid_wei: int) -> None:
    """Count an execution for reputation that was paid unseen, and reviewed after that."""
    params = ctx.params
    mflop = economics.credited_mflop(flop, paid_wei, params.rewards.credit_wei_per_pflop)
    account = ctx.account(node)
    standing = account.standing.at(ctx.now_ms, params.staking.half_life_ms).with_accepted(mflop)
    ctx.layer.put(
        account.model_copy(update={"standing": standing, "accepted": account.accepted + 1})
    )
    record_review(ctx, node)


def record_rejection(ctx: Context, node: str) -> None:
    """Count one rejected execution: for reputation, and so for this epoch's weight; its node is
    on probation again."""
    account = ctx.account(node)
    half_life_ms = ctx.params.staking.half_life_ms
    standing = account.standing.at(ctx.now_ms, half_life_ms).with_rejected()
    update = {"standing": standing, "rejected": account.rejected + 1, "reviewed": 0}
    ctx.layer.put(account.model_copy(update=update))
    epoch = epoch_of(ctx, ctx.now_ms)
    part = ctx.layer.find(NodeEpochRecord, node_epoch_key(node, epoch))
    if part is not None:
        pool, part = _weigh(ctx, _open_epoch(ctx, epoch), part, standing.reputation_ppm)
        ctx.layer.put(pool)
        ctx.layer.put(part)


def hold_reward(ctx: Context, node: str, epoch: int) -> None:
    """Keep a node from claiming an epoch while an output of it is disputed."""
    part = ctx.layer.find(NodeEpochRecord, node_epoch_key(node, epoch))
    if part is not None:
        ctx.layer.put(part.model_copy(update={"held": part.held + 1}))


def let_go_reward(ctx: Context, node: str, epoch: int) -> None:
    """Undo one :func:`hold_reward`: the dispute is decided."""
    part = ctx.layer.find(NodeEpochRecord, node_epoch_key(node, epoch))
    if part is not None and part.held:
        ctx.layer.put(part.model_copy(update={"held": part.held - 1}))


def delay_reward(ctx: Context, node: str, epoch: int, until_ms: int) -> None:
    """Keep a node from claiming an epoch before an output of it can no longer be disputed."""
    part = ctx.layer.find(NodeEpochRecord, node_epoch_key(node, epoch))
    if part is not None and part.free_ms < until_ms:
        ctx.layer.put(part.model_copy(update={"free_ms": until_ms}))


def forfeit_reward(ctx: Context, node: str, epoch: int) -> None:
    """An output of the epoch was proven wrong: the node earns no reward for it.

    Before the epoch is closed the other nodes share what it would have got; after that the
    treasury gets it.
    """
    part = ctx.layer.find(NodeEpochRecord, node_epoch_key(node, epoch))
    pool = ctx.layer.find(EpochRecord, epoch_key(epoch))
    if part is None or pool is None:
        return
    if not pool.closed:
        ctx.layer.put(pool.model_copy(update={"weights": pool.weights - part.weight}))
    ctx.layer.put(part.model_copy(update={"weight": 0, "forfeited": 1}))

"""What the committee's reviews mean for accounts: how likely one is, and who served in it."""

from __future__ import annotations

from daifi_flows.cnft import PPM, Committee, Payment
from daifi_flows.ledger._economics import EVIDENCE_ONE
from daifi_flows.ledger._records import TaskRecord
from daifi_flows.ledger._rules._context import Context
from daifi_flows.ledger._standing import SeatStanding
from daifi_flows.review_rate import review_ppm

__all__ = ["record_service", "review_rate_ppm"]


def review_rate_ppm(ctx: Context, task: TaskRecord, committer: str) -> int:
    """How likely the committee reviews the execution that is committed now, in ppm.

    Always, where the buyer asked for it, and where nothing could be challenged later. Always, too,
    where being drawn could be of no consequence: where the node commits by itself, so that nobody
    may have the output but it, to show it for a review or a dispute; and where a review might not
    end before the deadline, after which seats say nothing. Else by
    :func:`daifi_flows.review_rate.review_ppm`: of the node's stake counts what a slash still
    reaches when the last dispute about the output is decided, less its other tasks' part; of its
    past what was reviewed since the last rejection, and has not faded.
    """
    params = ctx.params
    if task.spec.review.always or params.rewards.challenge_ms == 0:
        return PPM
    left_ms = task.spec.deadline_ms - ctx.now_ms
    if committer != task.spec.buyer or left_ms < 2 * params.tasks.notice_ms:
        return PPM
    assert task.node is not None, "a committed task has a node"
    account = ctx.account(task.node)
    standing = account.standing.at(ctx.now_ms, params.staking.half_life_ms)
    return review_ppm(
        price_wei=task.price_wei,
        reach_wei=account.reach_wei(task.vouched_until_ms),
        slash_ppm=params.slashing.rejected_ppm,
        reputation_ppm=standing.reputation_ppm,
        reviewed=min(account.reviewed, standing.accepted_e6 // EVIDENCE_ONE),
        terms=params.review,
        exposed_wei=account.engaged_wei - task.price_wei,
        challenged=account.disputed > 0,
    )


def record_service(
    ctx: Context, committee: Committee, signers: int, fee_wei: int = 0
) -> tuple[Payment, ...]:
    """Count a finding for the seats that signed it, and a little against those that did not; pay
    each that signed ``fee_wei``. An account's seats count one by one."""
    half_life_ms, missed_ppm = ctx.params.staking.half_life_ms, ctx.params.committee.missed_ppm
    payments: list[Payment] = []
    for seat in committee.seats:
        account = ctx.account(seat.account)
        standing = (account.seat or SeatStanding()).at(ctx.now_ms, half_life_ms)
        if signers >> seat.index & 1:
            update = {"seat": standing.with_served(), "balance_wei": account.balance_wei + fee_wei}
            if fee_wei:
                paid = Payment(to=seat.account, amount_wei=fee_wei, reason="committee")
                payments.append(paid)
        else:
            update = {"seat": standing.with_missed(missed_ppm)}
        ctx.layer.put(account.model_copy(update=update))
    return tuple(payments)

"""Disputes: a settled output is challenged, its pay is held, and all seats review it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import PPM, Payment
from daifi_flows.dispute import MAX_DISPUTES, DisputeFinding, DisputeStatement
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._economics import Fault
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._quorum import require_quorum
from daifi_flows.ledger._rules._stakes import lock, seize, slash
from daifi_flows.ledger._rules._tasks import require_state, require_task
from daifi_flows.ledger._rules._work import (
    delay_reward,
    epoch_of,
    forfeit_reward,
    hold_reward,
    let_go_reward,
    record_rejection,
    record_verified,
)
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.disputes import Dispute, ExpireDispute, ResolveDispute

__all__ = ["RULES", "can_be_disputed", "dispute", "least_bond_wei"]


def least_bond_wei(ctx: Context, task: TaskRecord) -> int:
    """What a challenger of a task's output must put up, in wei; rounded up."""
    disputes = ctx.params.disputes
    return max(disputes.min_bond_wei, -(-task.price_wei * disputes.bond_ppm // PPM))


def can_be_disputed(ctx: Context, task: TaskRecord) -> bool:
    """Whether a task's output can be challenged now."""
    return (
        task.state is TaskState.SETTLED
        and task.disputes < MAX_DISPUTES
        and ctx.now_ms < task.challenge_until_ms
        and ctx.layer.find(DisputeRecord, dispute_key(task.task_id)) is None
    )


def dispute(ctx: Context, tx: Dispute) -> Facts:
    """Hold the node's pay and its epoch's reward until the output is reviewed again."""
    task = require_task(ctx, tx.task_id)
    if ctx.layer.find(DisputeRecord, dispute_key(tx.task_id)) is not None:
        refuse("duplicate", "this output is already disputed; all seats review it again")
    require_state(task, TaskState.SETTLED)
    if tx.number != task.disputes:
        refuse("bad-state", f"the output was disputed {task.disputes} times, not {tx.number}")
    if ctx.now_ms >= task.challenge_until_ms:
        refuse("expired", f"the output could be disputed until {task.challenge_until_ms} ms")
    if task.disputes >= MAX_DISPUTES:
        refuse("bad-state", f"an output is disputed at most {MAX_DISPUTES} times")
    least_wei = least_bond_wei(ctx, task)
    if tx.bond_wei < least_wei:
        refuse("bad-field", f"the bond is {tx.bond_wei} wei; this output needs {least_wei}")
    assert task.node is not None, "a settled task has a node"
    ctx.debit(tx.sender, tx.bond_wei)
    held_wei = seize(ctx, task.node, task.earned_wei)
    _count_disputed(ctx, task.node, 1)
    hold_reward(ctx, task.node, epoch_of(ctx, task.settled_ms))
    ctx.layer.put(
        DisputeRecord(
            task_id=task.task_id,
            number=tx.number,
            challenger=tx.sender,
            evidence=tx.evidence,
            bond_wei=tx.bond_wei,
            held_wei=held_wei,
            opened_ms=ctx.now_ms,
            due_ms=ctx.now_ms + ctx.params.disputes.answer_ms,
        )
    )
    ctx.layer.put(task.model_copy(update={"disputes": task.disputes + 1}))
    return {"task_id": task.task_id, "node": task.node, "content": tx.evidence}


def resolve_dispute(ctx: Context, tx: ResolveDispute) -> Facts:
    """Do what the committee found. A finding that comes late counts until the dispute expires."""
    task, record = _require_dispute(ctx, tx)
    attestation = tx.attestation
    committee = ctx.attesting(attestation.epoch)
    assert task.node is not None and task.proof is not None and task.proof_cid is not None
    statement = DisputeStatement(
        ledger_id=ctx.ledger_id,
        epoch=attestation.epoch,
        task_id=task.task_id,
        number=record.number,
        attempt=task.attempt,
        node=task.node,
        output_cid=task.proof.statement.output_cid,
        proof_cid=task.proof_cid,
        finding=attestation.finding,
    )
    require_quorum(committee, attestation.signers, statement.message(), attestation.signature)
    _end(ctx, task, record)
    match attestation.finding:
        case DisputeFinding.UPHELD:
            payments = _uphold(ctx, task, record)
        case DisputeFinding.DISMISSED:
            payments = _dismiss(ctx, task, record)
        case DisputeFinding.UNDECIDED:
            payments = _leave_open(ctx, task, record)
    return {
        "task_id": task.task_id,
        "token_id": task.token_id,
        "node": task.node,
        "attestation": keccak256(attestation.canonical()),
        "payments": payments,
    }


def expire_dispute(ctx: Context, tx: ExpireDispute) -> Facts:
    """Give everybody their own back when the committee did not answer in time."""
    task, record = _require_dispute(ctx, tx)
    if ctx.now_ms < record.due_ms:
        refuse(
            "bad-state",
            f"the committee may answer until {record.due_ms} ms; it is {ctx.now_ms} ms on this "
            "ledger",
        )
    _end(ctx, task, record)
    payments = _leave_open(ctx, task, record)
    return {"task_id": task.task_id, "node": task.node, "payments": payments}


def _require_dispute(
    ctx: Context, tx: ResolveDispute | ExpireDispute
) -> tuple[TaskRecord, DisputeRecord]:
    record = ctx.layer.find(DisputeRecord, dispute_key(tx.task_id))
    if record is None:
        refuse("unknown", f"no dispute about task {tx.task_id.hex()} is open")
    if record.number != tx.number:
        refuse("bad-state", f"dispute {record.number} about this output is open, not {tx.number}")
    return require_task(ctx, tx.task_id), record


def _end(ctx: Context, task: TaskRecord, record: DisputeRecord) -> None:
    assert task.node is not None, "a settled task has a node"
    ctx.layer.remove(record.key())
    _count_disputed(ctx, task.node, -1)
    let_go_reward(ctx, task.node, epoch_of(ctx, task.settled_ms))


def _count_disputed(ctx: Context, node: str, change: int) -> None:
    """While an output of a node is in doubt, the committee reviews all that it does."""
    account = ctx.account(node)
    ctx.layer.put(account.model_copy(update={"disputed": account.disputed + change}))


def _uphold(ctx: Context, task: TaskRecord, record: DisputeRecord) -> tuple[Payment, ...]:
    """The node loses stake, pay and reward; the token is marked. What the committee, the parents'
    owners and the treasury got of the price stays with them."""
    assert task.node is not None and task.token_id is not None
    record_rejection(ctx, task.node)
    forfeit_reward(ctx, task.node, epoch_of(ctx, task.settled_ms))
    payments = slash(ctx, task.node, Fault.REJECTED, record.challenger)
    payments += ctx.credit(task.spec.buyer, record.held_wei, "refund")
    payments += ctx.credit(record.challenger, record.bond_wei, "bond")
    token = ctx.layer.token(task.token_id)
    if token is not None:
        ctx.layer.put(token.model_copy(update={"disproven": 1}))
    ctx.layer.put(task.model_copy(update={"state": TaskState.REVOKED}))
    return payments


def _dismiss(ctx: Context, task: TaskRecord, record: DisputeRecord) -> tuple[Payment, ...]:
    """The output was reviewed by all seats and is right: nobody can dispute it again. If it was
    not reviewed before, this speaks for the node."""
    assert task.node is not None and task.proof is not None
    if task.waived:
        flop = task.proof.statement.usage.flops
        record_verified(ctx, task.node, flop=flop, paid_wei=task.price_wei)
    node_wei = record.bond_wei * ctx.params.disputes.node_ppm // PPM
    payments = ctx.credit(task.node, record.held_wei, "node")
    payments += ctx.credit(task.node, node_wei, "bond")
    payments += ctx.to_treasury(record.bond_wei - node_wei, "bond")
    ctx.layer.put(task.model_copy(update={"challenge_until_ms": ctx.now_ms}))
    return payments


def _leave_open(ctx: Context, task: TaskRecord, record: DisputeRecord) -> tuple[Payment, ...]:
    """Everybody gets their own back. The time of the dispute does not count as time to challenge:
    else a node could have its output disputed by a friend until nobody else can."""
    assert task.node is not None
    left_ms = task.challenge_until_ms - record.opened_ms
    payments = ctx.credit(record.challenger, record.bond_wei, "bond")
    payments += lock(ctx, task.node, record.held_wei, "node")
    until_ms = ctx.now_ms + left_ms
    delay_reward(ctx, task.node, epoch_of(ctx, task.settled_ms), until_ms)
    ctx.layer.put(task.model_copy(update={"challenge_until_ms": until_ms}))
    return payments


RULES: Final[Mapping[type[Transaction], Rule]] = {
    Dispute: dispute,
    ResolveDispute: resolve_dispute,
    ExpireDispute: expire_dispute,
}

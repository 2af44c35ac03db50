"""What a committee's attestation does to a task and its money: settle, reject, unproven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import PPM, Attestation, Basis, Committee, Decision
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._economics import Fault, split_price
from daifi_flows.ledger._origins import Origin, work_of
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules._bonds import disengage
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._minting import holders_of, mint
from daifi_flows.ledger._rules._quorum import require_quorum
from daifi_flows.ledger._rules._reviews import record_service
from daifi_flows.ledger._rules._stakes import lock, slash
from daifi_flows.ledger._rules._tasks import refund, reopen, require_state, require_task
from daifi_flows.ledger._rules._work import record_rejection, record_review, record_work
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.tasks import Reject, Settle, Unproven

__all__ = ["RULES", "check_attestation"]


def check_attestation(
    ctx: Context, task: TaskRecord, attestation: Attestation, decision: Decision
) -> Committee:
    """Check an attestation against the committed proof; whose it is.

    It may be of the committee that was in office when the proof was committed, or of a later one;
    in its time of grace, of one that left (:meth:`Context.attesting`). That a review is waived
    only the former can say: each committee draws once, and nobody waits for another's draw.

    Raises:
        TransactionRefused: ``bad-field`` for another ledger, epoch, attempt, node, output, proof
            or decision, or a review waived that was not to be waived; ``bad-signature`` for fewer
            than a quorum or a wrong BLS aggregate.
    """
    assert task.proof is not None, "a committed task has a proof"
    committee = ctx.attesting(attestation.epoch, task.answered_ms)
    for name, claimed, wanted in (
        ("ledger", attestation.ledger_id, ctx.ledger_id),
        ("attempt", attestation.attempt, task.attempt),
        ("node", attestation.node, task.node),
        ("output", attestation.output_cid, task.proof.statement.output_cid),
        ("decision", attestation.decision, decision),
    ):
        if claimed != wanted:
            refuse("bad-field", f"the attestation is about another {name} than this transaction")
    if attestation.proof_cid not in (task.proof_cid, task.other_cid):
        refuse(
            "bad-field",
            "the attestation is about another proof than was committed; its buyer and its node may "
            "each commit once where the proof is",
        )
    if attestation.basis is Basis.WAIVED:
        _check_waived(ctx, task, attestation)
    elif (
        decision is Decision.ACCEPTED
        and attestation.confidence_ppm < task.spec.review.min_confidence_ppm
    ):
        refuse(
            "bad-field",
            f"confidence {attestation.confidence_ppm} ppm is under the task's minimum of "
            f"{task.spec.review.min_confidence_ppm}",
        )
    require_quorum(committee, attestation.signers, attestation.message(), attestation.signature)
    return committee


def _check_waived(ctx: Context, task: TaskRecord, attestation: Attestation) -> None:
    """Whether the review lottery applied. That it did not draw this execution, a quorum says."""
    if not ctx.sat_at(attestation.epoch, task.answered_ms):
        refuse("bad-field", "a committee that was not in office at the commit must review it")
    if attestation.decision is not Decision.ACCEPTED or attestation.confidence_ppm:
        refuse("bad-field", "nobody reviewed this: it can only be accepted, with confidence 0")
    if task.review_ppm >= PPM:
        refuse("bad-field", "this execution is always reviewed; ask the committee for a finding")


def settle(ctx: Context, tx: Settle) -> Facts:
    """Split the price, refund the rest, mint the token, count the work.

    The node's share is locked until its output can no longer be challenged. Where the review was
    waived, this says nothing about the node or the seats: nobody's reputation moves.
    """
    layer, fees = ctx.layer, ctx.params.fees
    task = require_task(ctx, tx.attestation.task_id)
    if task.state is TaskState.SETTLED:
        refuse("duplicate", f"task {task.task_id.hex()} is already settled")
    require_state(task, TaskState.COMMITTED)
    if tx.sender not in (task.spec.buyer, task.node):
        refuse("bad-role", "only the buyer or the node can settle: the metadata is theirs")
    if ctx.now_ms + ctx.params.disputing_ms > task.vouched_until_ms:
        refuse(
            "expired",
            "the output could be challenged when the node's stake may be out of reach: it was "
            "assigned too long ago; expire it for a refund",
        )
    attestation = tx.attestation
    committee = check_attestation(ctx, task, attestation, Decision.ACCEPTED)
    assert task.proof is not None, "a committed task has a proof"
    node, price = attestation.node, task.price_wei
    waived = attestation.basis is Basis.WAIVED
    challenge_until_ms = ctx.now_ms + ctx.params.rewards.challenge_ms
    owners = holders_of(layer, task.spec.parents)
    split = split_price(
        price,
        seats=attestation.signers.bit_count(),
        parents=len(owners),
        committee_ppm=fees.committee_ppm,
        royalty_ppm=fees.royalty_ppm,
        treasury_ppm=fees.treasury_ppm,
    )
    disengage(ctx, task)
    payments = lock(ctx, node, split.node_wei, "node")
    if waived:
        for seat in committee.signers(attestation.signers):
            payments += ctx.credit(seat.account, split.seat_wei, "committee")
    else:
        payments += record_service(ctx, committee, attestation.signers, split.seat_wei)
    for owner in owners:
        payments += ctx.credit(owner, split.owner_wei, "royalty")
    payments += ctx.to_treasury(split.treasury_wei, "treasury")
    payments += ctx.credit(task.spec.buyer, task.escrow_wei - price, "refund")
    record_work(
        ctx,
        node,
        flop=task.proof.statement.usage.flops,
        paid_wei=price,
        wait_ms=task.answered_ms - task.assigned_ms,
        unseen_until_ms=challenge_until_ms if waived else None,
    )
    if not waived:
        record_review(ctx, node)
    attested = keccak256(attestation.canonical())
    token = mint(
        ctx,
        task_id=task.task_id,
        owner=task.spec.buyer,
        parents=task.spec.parents,
        content=tx.metadata,
        origin=Origin(
            work=work_of(task.spec),
            node=node,
            output_cid=attestation.output_cid,
            attestation=attested,
            price_wei=price,
        ),
    )
    layer.put(
        task.model_copy(
            update={
                "state": TaskState.SETTLED,
                "proof_cid": attestation.proof_cid,
                "escrow_wei": 0,
                "token_id": token.token_id,
                "settled_ms": ctx.now_ms,
                "earned_wei": split.node_wei,
                "bond_wei": 0,
                "challenge_until_ms": challenge_until_ms,
                "waived": int(waived),
            }
        )
    )
    return {
        "task_id": task.task_id,
        "token_id": token.token_id,
        "node": node,
        "attestation": attested,
        "content": tx.metadata,
        "payments": payments,
    }


def reject(ctx: Context, tx: Reject) -> Facts:
    """Slash the node, bar it from this task, reopen the task. The sender is the reporter."""
    task = require_task(ctx, tx.attestation.task_id)
    require_state(task, TaskState.COMMITTED)
    committee = check_attestation(ctx, task, tx.attestation, Decision.REJECTED)
    node = tx.attestation.node
    record_service(ctx, committee, tx.attestation.signers)
    record_rejection(ctx, node)
    payments = slash(ctx, node, Fault.REJECTED, tx.sender)
    reopen(ctx, task, (*task.barred, node))
    return {
        "task_id": task.task_id,
        "node": node,
        "attestation": keccak256(tx.attestation.canonical()),
        "payments": payments,
    }


def unproven(ctx: Context, tx: Unproven) -> Facts:
    """Refund the buyer; the node keeps its stake and its reputation."""
    task = require_task(ctx, tx.attestation.task_id)
    require_state(task, TaskState.COMMITTED)
    check_attestation(ctx, task, tx.attestation, Decision.UNPROVEN)
    payments = refund(ctx, task, TaskState.UNPROVEN)
    return {
        "task_id": task.task_id,
        "node": task.node,
        "attestation": keccak256(tx.attestation.canonical()),
        "payments": payments,
    }


RULES: Final[Mapping[type[Transaction], Rule]] = {
    Settle: settle,
    Reject: reject,
    Unproven: unproven,
}

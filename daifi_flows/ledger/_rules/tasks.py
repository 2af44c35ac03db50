"""The life of a task, from escrow to settlement or refund."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import NodeInfo, Payment, ProofHeader, token_id_of
from daifi_flows.errors import KeyMaterialError, TransactionRefused
from daifi_flows.keys import recover_address
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._economics import surged_wei
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules import attested
from daifi_flows.ledger._rules._auctions import award, check_windows, start_auction
from daifi_flows.ledger._rules._bonds import bond, charged, forfeit_bond, vouched_until_ms
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._minting import holder_of
from daifi_flows.ledger._rules._reviews import review_rate_ppm
from daifi_flows.ledger._rules._tasks import (
    refund,
    reopen,
    require_attempt,
    require_state,
    require_task,
)
from daifi_flows.ledger._rules._work import price_index_ppm
from daifi_flows.ledger._rules.governance import check_policy
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.tasks import (
    Assign,
    Cancel,
    Commit,
    Effect,
    Expire,
    Forget,
    Open,
    Release,
)

__all__ = ["MAX_PARENTS", "RULES"]

MAX_PARENTS: Final = 64
"""Most parents one task may name: each costs a royalty payment in the receipt."""
_MAX_SPEC_BYTES: Final = 16 * 1024


def open_task(ctx: Context, tx: Open) -> Facts:
    """Move the highest price from the buyer's balance into the task's escrow."""
    spec, layer = tx.spec, ctx.layer
    if spec.buyer != tx.sender:
        refuse("bad-role", f"only the buyer {spec.buyer} can open this task")
    token_id = token_id_of(spec.task_id)
    if layer.task(spec.task_id) is not None or layer.token(token_id) is not None:
        refuse("duplicate", f"task {spec.task_id.hex()} is already on this ledger")
    if len(spec.canonical()) > _MAX_SPEC_BYTES:
        refuse("bad-field", f"the task's spec is over {_MAX_SPEC_BYTES} bytes")
    if len(spec.parents) > MAX_PARENTS or len(set(spec.parents)) != len(spec.parents):
        refuse("bad-field", f"a task names at most {MAX_PARENTS} parents, each once")
    for parent in spec.parents:
        if layer.token(parent) is None:
            refuse("unknown", f"parent token {parent.hex()} was never minted on this ledger")
    if spec.deadline_ms <= ctx.now_ms:
        refuse("expired", "the task's deadline has already passed; set a later one")
    check_policy(ctx, spec)
    check_windows(ctx, spec, tx.bid_ms, tx.reveal_ms)
    ctx.debit(tx.sender, spec.max_price_wei)
    over_wei = ctx.params.sealed.over_wei
    if spec.max_price_wei > over_wei and not ctx.sealed:
        refuse("unsealed", f"a task of over {over_wei} wei is opened sealed: commit, then reveal")
    task = TaskRecord(
        task_id=spec.task_id,
        spec=spec,
        state=TaskState.OPEN,
        escrow_wei=spec.max_price_wei,
        bid_ms=tx.bid_ms,
        reveal_ms=tx.reveal_ms,
    )
    layer.put(task)
    start_auction(ctx, task)
    return {"task_id": spec.task_id}


def assign(ctx: Context, tx: Assign) -> Facts:
    """Bind an open task to a registered, staked node, and a part of its stake to the task: at
    the price the node bid, or without bids at what it asks or more."""
    task = require_task(ctx, tx.task_id)
    require_state(task, TaskState.OPEN)
    require_attempt(task, tx.attempt)
    if tx.sender != task.spec.buyer:
        refuse("bad-role", f"only the buyer {task.spec.buyer} can assign this task")
    if task.attempt >= task.spec.review.attempts:
        refuse("bad-state", f"all {task.spec.review.attempts} attempts are spent; cancel it")
    if task.spec.deadline_ms <= ctx.now_ms:
        refuse("expired", "the task's deadline has passed; expire it for a refund")
    if tx.node in task.barred:
        refuse("bad-role", f"node {tx.node} was rejected on this task or gave it up; take another")
    node = ctx.layer.account(tx.node)
    if node.registered is None:
        refuse("unknown", f"{tx.node} is not registered as a node")
    params = ctx.params
    min_stake_wei = params.staking.min_stake_wei
    if node.stake_wei < min_stake_wei:
        refuse(
            "bad-role",
            f"node {tx.node} has {node.stake_wei} wei at stake and needs {min_stake_wei}",
        )
    if tx.price_wei > task.escrow_wei:
        refuse(
            "bad-field",
            f"price {tx.price_wei} wei is over the task's maximum of {task.escrow_wei}",
        )
    eta_ms, payments = award(ctx, task, tx.node, tx.price_wei)
    if eta_ms == 0:
        _check_direct(task, node.registered)
        if tx.node != ctx.leased:
            _check_ask(ctx, node.registered, tx.price_wei)
    open_ms = task.spec.deadline_ms + params.vouching_ms
    if open_ms > vouched_until_ms(ctx):
        refuse(
            "bad-field",
            f"the task's output could be challenged until {open_ms} ms, when stake that starts to "
            "unbond now is out of reach; set an earlier deadline",
        )
    ctx.layer.put(
        task.model_copy(
            update={
                "state": TaskState.ASSIGNED,
                "node": tx.node,
                "price_wei": tx.price_wei,
                "assigned_ms": ctx.now_ms,
                "eta_ms": eta_ms,
                "bond_wei": bond(ctx, tx.node, tx.price_wei),
                "vouched_until_ms": vouched_until_ms(ctx),
            }
        )
    )
    return {"task_id": task.task_id, "node": tx.node, "payments": payments}


def _check_direct(task: TaskRecord, node: NodeInfo) -> None:
    """Refuse to give a node what it did not bid for, unless it offered that."""
    if not node.direct:
        refuse("bad-role", f"node {node.address} only takes tasks it bid for; open an auction")
    if node.models and task.spec.model.digest not in node.models:
        refuse("bad-role", f"node {node.address} does not offer the task's model; choose another")


def _check_ask(ctx: Context, node: NodeInfo, price_wei: int) -> None:
    """Refuse to pay a node less than it asks for what it did not bid for."""
    index_ppm = price_index_ppm(ctx)
    asked_wei = surged_wei(node.price_wei, index_ppm)
    if price_wei < asked_wei:
        refuse(
            "bad-field",
            f"price {price_wei} wei is under what node {node.address} asks, {asked_wei} "
            f"({node.price_wei} at a price index of {index_ppm} ppm)",
        )


def commit(ctx: Context, tx: Commit) -> Facts:
    """Bind the node to one proof of one output, and fix how likely the committee reviews it.

    The node signed the proof's header, but the content id is only the sender's word, and a proof
    has one. So whoever of buyer and node comes second may give its own for the same header: a
    false one then costs neither of them anything, and nobody takes a true one back.
    """
    task = require_task(ctx, tx.task_id)
    if task.state is not TaskState.COMMITTED:
        require_state(task, TaskState.ASSIGNED)
    require_attempt(task, tx.attempt)
    if tx.sender not in (task.spec.buyer, task.node):
        refuse("bad-role", "only the buyer or the assigned node can commit a proof")
    if task.state is TaskState.COMMITTED:
        return _commit_again(ctx, task, tx)
    if task.spec.deadline_ms <= ctx.now_ms:
        refuse("expired", "the task's deadline has passed; expire it for a refund")
    header = tx.header
    if header.node != task.node:
        refuse("bad-role", f"the proof is by {header.node}, the task was given to {task.node}")
    statement = header.statement
    for name, claimed, wanted in (
        ("task id", statement.task_id, task.task_id),
        ("model digest", statement.model_digest, task.spec.model.digest),
        ("input", statement.input_cid, task.spec.input_cid),
        ("scheme", header.scheme, task.spec.scheme),
    ):
        if claimed != wanted:
            refuse("bad-field", f"the proof's {name} is not the task's")
    try:
        signer = recover_address(header.digest(), header.signature)
    except KeyMaterialError as error:
        raise TransactionRefused(
            f"the proof header is not signed: {error}", code="bad-signature"
        ) from error
    if signer != header.node:
        refuse("bad-signature", f"the proof header was not signed by node {header.node}")
    registered = ctx.account(header.node).registered
    operator = registered.operator if registered is not None else None
    task = task.model_copy(
        update={
            "state": TaskState.COMMITTED,
            "proof": header,
            "proof_cid": tx.proof_cid,
            "committer": tx.sender,
            "answered_ms": ctx.now_ms,
            "review_ppm": review_rate_ppm(ctx, task, tx.sender),
            "operator": operator if operator != header.node else None,
        }
    )
    ctx.layer.put(task)
    return _committed(task, header)


def _committed(task: TaskRecord, header: ProofHeader) -> Facts:
    """What seats are shown before a review: which proof, in which attempt, checked how often, and
    whose seats are to look at it last."""
    return {
        "task_id": task.task_id,
        "node": task.node,
        "content": header.digest(),
        "attempt": task.attempt,
        "review_ppm": task.review_ppm,
        "operator": task.operator,
    }


def _commit_again(ctx: Context, task: TaskRecord, tx: Commit) -> Facts:
    """Also after the deadline: the first commit may have come just before it."""
    if tx.sender == task.committer or task.other_cid is not None:
        refuse("bad-state", f"task {task.task_id.hex()} is committed; {tx.sender} cannot do it now")
    assert task.proof is not None, "a committed task has a proof"
    if tx.header.digest() != task.proof.digest():
        refuse("bad-field", "another proof was committed; only its content id can be given again")
    ctx.layer.put(task.model_copy(update={"other_cid": tx.proof_cid}))
    return _committed(task, tx.header)


def release(ctx: Context, tx: Release) -> Facts:
    """Reopen a task whose node was lost or gives up; it costs an attempt.

    A node that bid for the task and gives up cannot take it again: else it could use up all
    attempts. If it does so too late it loses of its bond as if it had not answered.
    """
    task = require_task(ctx, tx.task_id)
    require_state(task, TaskState.ASSIGNED)
    require_attempt(task, tx.attempt)
    if tx.sender not in (task.spec.buyer, task.node):
        refuse("bad-role", "only the buyer or the assigned node can release a task")
    payments: tuple[Payment, ...] = ()
    barred = task.barred
    if tx.sender != task.spec.buyer and task.eta_ms:
        barred = (*barred, tx.sender)
        late = ctx.now_ms + ctx.params.tasks.notice_ms > task.spec.deadline_ms
        if late and charged(ctx, task):
            task, payments = forfeit_bond(ctx, task, tx.sender)
    reopen(ctx, task, barred)
    return {"task_id": task.task_id, "node": task.node, "payments": payments}


def cancel(ctx: Context, tx: Cancel) -> Facts:
    """Refund a task that no node has answered."""
    task = require_task(ctx, tx.task_id)
    if task.state is not TaskState.ASSIGNED:
        require_state(task, TaskState.OPEN)
    if tx.sender != task.spec.buyer:
        refuse("bad-role", f"only the buyer {task.spec.buyer} can cancel this task")
    return {"task_id": task.task_id, "payments": refund(ctx, task, TaskState.CANCELLED)}


def expire(ctx: Context, tx: Expire) -> Facts:
    """Refund a task whose time is over; a node that bid for it and said nothing loses of its
    bond."""
    task = require_task(ctx, tx.task_id)
    due = task.spec.deadline_ms
    if task.state is TaskState.COMMITTED:
        # A node that has answered gets time to bring its attestation.
        due += ctx.params.tasks.settle_grace_ms
    elif task.state is not TaskState.ASSIGNED:
        require_state(task, TaskState.OPEN)
    if ctx.now_ms < due:
        refuse("bad-state", f"the task expires at {due} ms; it is {ctx.now_ms} ms on this ledger")
    node, lost = None, ()
    if task.state is TaskState.ASSIGNED and charged(ctx, task):
        node = task.node
        task, lost = forfeit_bond(ctx, task, tx.sender)
    payments = (*refund(ctx, task, TaskState.EXPIRED), *lost)
    return {"task_id": task.task_id, "node": node, "payments": payments}


def forget(ctx: Context, tx: Forget) -> Facts:
    """Remove tasks that nothing can happen to any more: they are over, their outputs cannot be
    disputed, evidence about them no longer counts, and their deadlines keep them from being
    opened again."""
    params = ctx.params
    for task_id in tx.tasks:
        task = require_task(ctx, task_id)
        if task.state in (TaskState.OPEN, TaskState.ASSIGNED, TaskState.COMMITTED):
            refuse("bad-state", f"task {task_id.hex()} is {task.state}; expire it first")
        if ctx.layer.find(DisputeRecord, dispute_key(task_id)) is not None:
            refuse("bad-state", f"the output of task {task_id.hex()} is disputed")
        until_ms = max(
            task.spec.deadline_ms + params.tasks.settle_grace_ms,
            max(task.spec.deadline_ms, task.challenge_until_ms) + params.disputes.evidence_ms,
        )
        if ctx.now_ms <= until_ms:
            refuse("bad-state", f"task {task_id.hex()} is kept until {until_ms} ms")
        ctx.layer.remove(task.key())
    return {}


def effect(ctx: Context, tx: Effect) -> Facts:
    """Write what a token's action returned, once."""
    token = ctx.layer.token(tx.token_id)
    if token is None:
        refuse("unknown", f"token {tx.token_id.hex()} was never minted on this ledger")
    holder = holder_of(ctx.layer, token)
    if holder != tx.sender:
        refuse("bad-role", f"only the holder {holder} can commit this token's effect")
    if token.effect is not None:
        refuse("duplicate", "this token's effect is already committed")
    ctx.layer.put(token.model_copy(update={"effect": tx.effect}))
    return {"task_id": token.task_id, "token_id": token.token_id, "content": tx.effect}


RULES: Final[Mapping[type[Transaction], Rule]] = {
    Open: open_task,
    Assign: assign,
    Commit: commit,
    Release: release,
    Cancel: cancel,
    Expire: expire,
    Effect: effect,
    Forget: forget,
    **attested.RULES,
}

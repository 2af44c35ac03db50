"""What the rules about tasks share."""

from __future__ import annotations

from daifi_flows.cnft import PPM, Payment
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules._auctions import end_auction, start_auction
from daifi_flows.ledger._rules._bonds import disengage
from daifi_flows.ledger._rules._context import Context, refuse

__all__ = ["refund", "reopen", "require_attempt", "require_state", "require_task"]


def require_task(ctx: Context, task_id: bytes) -> TaskRecord:
    """A task that must be in the state."""
    task = ctx.layer.task(task_id)
    if task is None:
        refuse("unknown", f"task {task_id.hex()} was never opened on this ledger")
    return task


def require_state(task: TaskRecord, state: TaskState) -> None:
    """Refuse a task that stands elsewhere."""
    if task.state is not state:
        refuse("bad-state", f"task {task.task_id.hex()} is {task.state}, it must be {state}")


def require_attempt(task: TaskRecord, attempt: int) -> None:
    """Refuse what was meant for another attempt."""
    if task.attempt != attempt:
        refuse("bad-state", f"the task is at attempt {task.attempt}, not {attempt}")


def refund(ctx: Context, task: TaskRecord, state: TaskState) -> tuple[Payment, ...]:
    """End a task in ``state`` and give its whole escrow back to the buyer, and what others had
    in it to them.

    A node whose answer came to no finding is on probation again. It is not judged by that; but
    else who is drawn for a review could show nothing, lose nothing, and try its luck again.
    """
    payments = end_auction(ctx, task)
    disengage(ctx, task)
    if task.state is TaskState.COMMITTED and task.node is not None:
        account = ctx.account(task.node)
        ctx.layer.put(account.model_copy(update={"reviewed": 0}))
    ctx.layer.put(task.model_copy(update={"state": state, "escrow_wei": 0, "bond_wei": 0}))
    return (*ctx.credit(task.spec.buyer, task.escrow_wei, "refund"), *payments)


def reopen(ctx: Context, task: TaskRecord, barred: tuple[str, ...]) -> None:
    """Back to open for the next attempt; the escrow stays. Nodes bid anew, if there is time."""
    disengage(ctx, task)
    task = task.model_copy(
        update={
            "state": TaskState.OPEN,
            "attempt": task.attempt + 1,
            "price_wei": 0,
            "node": None,
            "proof": None,
            "proof_cid": None,
            "committer": None,
            "other_cid": None,
            "barred": barred,
            "assigned_ms": 0,
            "answered_ms": 0,
            "eta_ms": 0,
            "bond_wei": 0,
            "vouched_until_ms": 0,
            "review_ppm": PPM,
        }
    )
    ctx.layer.put(task)
    start_auction(ctx, task)

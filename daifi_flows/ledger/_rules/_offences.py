"""What every rule about evidence checks, and what an offence costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daifi_flows.cnft import Committee, Payment, Seat
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import EncodingError, TransactionRefused
from daifi_flows.keys import verify_bls_aggregate
from daifi_flows.ledger._disputes import OffenceRecord, offence_key
from daifi_flows.ledger._economics import Fault
from daifi_flows.ledger._records import TaskRecord
from daifi_flows.ledger._rules._context import Context, refuse
from daifi_flows.ledger._rules._stakes import slash
from daifi_flows.ledger._rules._tasks import require_task

__all__ = [
    "punish",
    "require_accused",
    "require_committee",
    "require_fresh",
    "require_fresh_task",
    "require_given",
    "require_signatures",
    "same",
]


def same(*claims: tuple[str, Any, Any]) -> None:
    """Refuse statements that are not about the same thing."""
    for name, one, other in claims:
        if one != other:
            refuse("bad-field", f"no offence can be shown: another {name}")


def require_committee(ctx: Context, epoch: int) -> Committee:
    """The committee whose seats made a statement."""
    return ctx.committee_of(epoch)


def require_fresh(ctx: Context, time_ms: int) -> None:
    """Refuse evidence of what happened too long ago."""
    until_ms = time_ms + ctx.params.disputes.evidence_ms
    if ctx.now_ms > until_ms:
        refuse("expired", f"evidence of this counted until {until_ms} ms")


def require_fresh_task(ctx: Context, task_id: bytes) -> TaskRecord:
    """Evidence about a task counts as long as about a block that is dated its deadline."""
    task = require_task(ctx, task_id)
    require_fresh(ctx, task.spec.deadline_ms)
    return task


def require_given(task: TaskRecord, attempt: int, node: str) -> None:
    """Refuse what is about an attempt that is still to come, or is not this node's: who could
    show an offence in advance could commit it for free when there is something to lose."""
    if not (attempt < task.attempt or (attempt, node) == (task.attempt, task.node)):
        refuse("bad-state", f"attempt {attempt} of the task was not given to {node}")


def require_accused(committee: Committee, accused: int) -> tuple[Seat, ...]:
    """The seats of a bitmap, one at least."""
    try:
        seats = committee.signers(accused)
    except EncodingError as error:
        raise TransactionRefused(str(error), code="bad-field") from error
    if not seats:
        refuse("bad-field", "no seat is among the signers of both statements")
    return seats


def require_signatures(
    committee: Committee, signers: int, message: bytes, signature: bytes
) -> None:
    """An aggregate over one message that verifies shows that each of its seats signed: every
    key's possession was proven (Ristenpart and Yilek, EUROCRYPT 2007)."""
    try:
        publics = [seat.public for seat in committee.signers(signers)]
    except EncodingError as error:
        raise TransactionRefused(str(error), code="bad-field") from error
    if not verify_bls_aggregate(publics, message, signature):
        refuse("bad-signature", "a statement is not signed by the seats in its bitmap")


def punish(
    ctx: Context,
    what: str,
    where: Mapping[str, Any],
    offender: str,
    reporter: str,
    fault: Fault = Fault.EQUIVOCATION,
) -> tuple[Payment, ...] | None:
    """Slash an offender, once for each place; ``None`` when it was."""
    place = tagged_hash(f"daifi/offence/{what}/1", {**where, "offender": offender})
    if ctx.layer.find(OffenceRecord, offence_key(place)) is not None:
        return None
    record = OffenceRecord(place=place, offender=offender, reporter=reporter, at_ms=ctx.now_ms)
    ctx.layer.put(record)
    return slash(ctx, offender, fault, reporter)

"""Runs canaries: earlier work asked again by somebody else, and compared with the known answer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from daifi_flows._auditing import Audit, Auditor, AuditOutcome, SettledWork
from daifi_flows._step import StepRequest
from daifi_flows.cnft import Basis, NodeResult
from daifi_flows.errors import ConfigError, EncodingError, StepFailed
from daifi_flows.judges._canary import Known, agrees, can_be_repeated, make_canary
from daifi_flows.keys import Account

if TYPE_CHECKING:
    from daifi_flows._life import Life

__all__ = ["CanaryOutcome", "CanaryReport", "known_work", "run_canary"]

FEES_WEI: Final = 10**16
"""Put on a canary's account beside its price, for the fees of its transactions."""


class CanaryOutcome(StrEnum):
    """What came back for a task whose answer is known."""

    AGREES = "agrees"
    REVIEWED = "reviewed"
    """Another answer than the known one, that all seats find right, or leave undecided."""
    CAUGHT = "caught"
    """A wrong answer: the node was slashed."""
    FAILED = "failed"
    """No node answered."""


@dataclass(frozen=True)
class CanaryReport:
    """One canary. ``node`` answered it (or was caught at it); ``audit`` is the review that a
    different answer led to."""

    task_id: bytes
    outcome: CanaryOutcome
    node: str | None = None
    audit: Audit | None = None


async def known_work(
    life: Life, works: Iterator[SettledWork] | Sequence[SettledWork]
) -> tuple[tuple[Known, SettledWork], ...]:
    """Of settled works those that the committee reviewed and accepted, and that can be repeated
    without a user's own function."""
    found: list[tuple[Known, SettledWork]] = []
    for work in works:
        if not can_be_repeated(work.spec) or work.spec.kind == "function":
            continue
        settled = await life.settlement.attestation_receipt(work.spec.task_id)
        if settled is not None and settled[0].basis is Basis.REVIEWED:
            found.append((Known(work.spec, work.input, work.result.output), work))
    return tuple(found)


async def run_canary(
    life: Life, known: Known, work: SettledWork, account: Account, auditor: Auditor
) -> CanaryReport:
    """Ask a known task again in another account's name, pay for it, and compare.

    An answer that differs is reviewed in full by all seats, though its review may have been waived,
    and disputed when they find it wrong.

    Args:
        work: where the known task's materials are.
        account: the canary's buyer, with no other use; funded from the fabric's own buyer.

    Raises:
        LedgerError, MeshError, CommitteeError: the fabric itself cannot go on.
    """
    nonce, salt = secrets.token_bytes(32), secrets.token_bytes(32)
    settings = life.settings
    timeout_s = settings.step_timeout_s + settings.review_timeout_s
    canary = make_canary(
        known,
        buyer=account.address,
        nonce=nonce,
        salt=salt,
        deadline_ms=life.clock_ms() + int(1000 * timeout_s * known.spec.review.attempts),
    )
    spec = canary.spec
    need_wei = spec.max_price_wei + FEES_WEI
    balance_wei = (await life.settlement.account(account.address)).balance_wei
    if balance_wei < need_wei:
        await life.settlement.transfer(account.address, need_wei - balance_wei, life.buyer)
    request = StepRequest(
        name="canary",
        kind=spec.kind,
        model=spec.model,
        input=canary.input,
        salt_key=nonce,
        scheme=spec.scheme,
        sampling=spec.sampling,
        review=spec.review,
        materials=work.materials,
        max_price_wei=spec.max_price_wei,
        deadline_ms=spec.deadline_ms,
    )
    quiet = replace(life, buyer=account, bundles=life.home.root / "canaries")
    try:
        token = await quiet.run(request)
    except StepFailed as error:
        caught = _rejected(error.details.get("attempts", ()))
        outcome = CanaryOutcome.CAUGHT if caught else CanaryOutcome.FAILED
        return CanaryReport(spec.task_id, outcome, caught)
    if (caught := _rejected(token.attempts)) is not None:
        return CanaryReport(spec.task_id, CanaryOutcome.CAUGHT, caught)
    result = await asyncio.to_thread(_result, life, spec.task_id)
    if agrees(canary, result.output):
        return CanaryReport(spec.task_id, CanaryOutcome.AGREES, result.proof.node)
    task = await life.settlement.task(spec.task_id)
    if task is None or not task.waived:  # a quorum has seen it
        return CanaryReport(spec.task_id, CanaryOutcome.REVIEWED, result.proof.node)
    again = SettledWork(spec, canary.input, result, work.materials)
    audit = await auditor.audit(again, suspected=True)
    wrong = audit.outcome is AuditOutcome.WRONG
    outcome = CanaryOutcome.CAUGHT if wrong else CanaryOutcome.REVIEWED
    return CanaryReport(spec.task_id, outcome, result.proof.node, audit)


def _rejected(attempts: Sequence[Mapping[str, Any]]) -> str | None:
    """Address of a node that the review of the step itself rejected."""
    return next((each["address"] for each in attempts if each.get("state") == "rejected"), None)


def _result(life: Life, task_id: bytes) -> NodeResult:
    path = life.home.result_path(task_id)
    try:
        return NodeResult.from_canonical(path.read_bytes())
    except (OSError, EncodingError) as error:
        raise ConfigError(f"the canary's result in {path} cannot be read: {error}") from error

"""Looking after what was paid unseen: audits of waived work, and answers to disputes.

While an output can still be challenged, its pay is locked. Executions whose review was waived are
drawn for an audit by the beacon of a block that came after their settlement, which nobody could
know when they were committed. All seats review a drawn one in full; when they find it wrong, the
auditor disputes it with their finding already in hand: the node is slashed, the buyer has the
node's pay back, and the auditor the bond and the reporter's share. An audit of right work costs the
auditor nothing, because nothing is disputed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from daifi_flows._home import Home, StepRecord, read_step, write_atomic
from daifi_flows.bundle import ProofFile
from daifi_flows.cnft import (
    PPM,
    Attestation,
    BlockHeader,
    Committee,
    Content,
    Materials,
    NodeResult,
    QuorumCertificate,
    Receipt,
    ReviewRequest,
    TaskSpec,
)
from daifi_flows.dispute import MAX_DISPUTES, DisputeAttestation, DisputeFinding
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import DaifiError, EncodingError, LedgerError, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Params, TaskRecord, TaskState
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._tx.disputes import Dispute, ResolveDispute
from daifi_flows.ledger._tx.money import Transfer
from daifi_flows.review_rate import drawn_for_audit

__all__ = ["Audit", "AuditOutcome", "Auditor", "Ledger", "SettledWork", "works_of"]

logger = logging.getLogger(__name__)


class AuditOutcome(StrEnum):
    """What an audit of one settled output came to."""

    CLOSED = "closed"
    """It was reviewed before, or can no longer be challenged, or is not settled."""
    WAITING = "waiting"
    """No block came after its settlement yet: there is nothing to draw by."""
    NOT_DRAWN = "not-drawn"
    RIGHT = "right"
    WRONG = "wrong"
    """Disputed and upheld: the node is slashed, the buyer refunded."""
    UNDECIDED = "undecided"
    """The seats could not agree, or could not tell."""


@dataclass(frozen=True)
class Audit:
    """One output, and what was found. ``slashed_wei`` is what the node lost."""

    task_id: bytes
    outcome: AuditOutcome
    slashed_wei: int = 0


@dataclass(frozen=True)
class SettledWork:
    """What it takes to review a settled execution again."""

    spec: TaskSpec
    input: Content
    result: NodeResult
    materials: Materials


class Ledger(Protocol):
    """What an auditor needs of a ledger (``LedgerClient`` has it)."""

    @property
    def ledger_id(self) -> bytes: ...
    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]: ...
    async def committee(self) -> Committee: ...
    async def task(self, task_id: bytes) -> TaskRecord | None: ...
    async def params(self) -> Params: ...
    async def record(self, kind: type[DisputeRecord], key: bytes) -> DisputeRecord | None: ...
    async def attestation_receipt(self, task_id: bytes) -> tuple[Attestation, Receipt] | None: ...
    async def submit(self, kind: Any, account: Account, fields: Mapping[str, Any]) -> Receipt: ...


class Reviewer(Protocol):
    """What an auditor needs of a committee (``StatementClient`` has it)."""

    async def dispute(self, review: ReviewRequest, number: int = 0) -> DisputeAttestation | None:
        """All seats' finding; ``None`` when no finding has a quorum."""
        ...


class Auditor:
    """Audits settled work, and brings the committee's answer to disputes that are open.

    Args:
        account: puts up the bonds of disputes, and gets the reporter's share of slashes.
        log: folder with a file for each output that was drawn or not, so that each is drawn once.
        clock_ms: Unix milliseconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        reviewer: Reviewer,
        account: Account,
        log: Path,
        clock_ms: Callable[[], int],
    ) -> None:
        self._ledger = ledger
        self._reviewer = reviewer
        self._account = account
        self._log = log
        self._clock_ms = clock_ms

    async def run(self, works: Iterable[SettledWork]) -> tuple[Audit, ...]:
        """Audit all of these, one after another; one that fails does not stop the rest.

        Where the newest settlement is in the newest block, the auditor pays itself one wei, so that
        there is a later block to draw by.
        """
        found, waiting = await self._run(works)
        if waiting:
            fields = {"to": self._account.address, "amount_wei": 1}
            try:
                await self._ledger.submit(Transfer, self._account, fields)
            except LedgerError as error:
                logger.warning("no block can be made to draw audits by: %s", error)
                return (*found, *(Audit(w.spec.task_id, AuditOutcome.WAITING) for w in waiting))
            later, left = await self._run(waiting)
            found += later
            found += [Audit(work.spec.task_id, AuditOutcome.WAITING) for work in left]
        return tuple(found)

    async def _run(self, works: Iterable[SettledWork]) -> tuple[list[Audit], list[SettledWork]]:
        """Audits, and the works that wait for a later block."""
        found: list[Audit] = []
        waiting: list[SettledWork] = []
        for work in works:
            try:
                audit = await self.audit(work)
            except DaifiError as error:
                logger.warning("audit of task %s failed: %s", work.spec.task_id.hex(), error)
                continue
            if audit.outcome is AuditOutcome.WAITING:
                waiting.append(work)
            elif audit.outcome is not AuditOutcome.CLOSED:
                found.append(audit)
        return found, waiting

    async def audit(self, work: SettledWork, *, suspected: bool = False) -> Audit:
        """Draw one output, and review it where it is drawn, or disputed by somebody already.

        Args:
            suspected: review it whatever the draw and whether it was reviewed before (a canary with
                another answer than the known one).

        Raises:
            InsufficientFunds: the output is wrong, and the account cannot put up the bond.
            CommitteeError: too few seats answer.
            LedgerError: the ledger refuses, or does not answer.
        """
        task_id = work.spec.task_id
        task = await self._ledger.task(task_id)
        if task is None or task.state is not TaskState.SETTLED:
            return Audit(task_id, AuditOutcome.CLOSED)
        running = await self._running(task_id)
        if running is None and not suspected:
            if not task.waived or not self._open(task):
                return Audit(task_id, AuditOutcome.CLOSED)
            known = await asyncio.to_thread(self._recall, task_id)
            known = known or await self._draw(task_id)
            if known is not None:
                return Audit(task_id, known)
        if running is None and not self._open(task):
            return Audit(task_id, AuditOutcome.CLOSED)
        return await self._review(work, task, running)

    def _open(self, task: TaskRecord) -> bool:
        return task.disputes < MAX_DISPUTES and self._clock_ms() < task.challenge_until_ms

    async def _running(self, task_id: bytes) -> DisputeRecord | None:
        return await self._ledger.record(DisputeRecord, dispute_key(task_id))

    async def _draw(self, task_id: bytes) -> AuditOutcome | None:
        """Why it is not to be audited, if it is not."""
        settled = await self._ledger.attestation_receipt(task_id)
        head, _ = await self._ledger.head()
        if settled is None or head.height <= settled[1].header.height:
            return AuditOutcome.WAITING
        rate_ppm = (await self._ledger.params()).review.audit_ppm
        if drawn_for_audit(head.beacon, task_id, rate_ppm):
            return None
        await asyncio.to_thread(self._remember, task_id, AuditOutcome.NOT_DRAWN)
        return AuditOutcome.NOT_DRAWN

    async def _review(
        self, work: SettledWork, task: TaskRecord, running: DisputeRecord | None
    ) -> Audit:
        number = task.disputes if running is None else running.number
        request = ReviewRequest(
            ledger_id=self._ledger.ledger_id,
            committee=await self._ledger.committee(),
            spec=work.spec,
            attempt=task.attempt,
            input=work.input,
            result=work.result,
            materials=work.materials,
        )
        attestation = await self._reviewer.dispute(request, number)
        outcome = AuditOutcome.UNDECIDED
        if attestation is not None:
            outcome = _OUTCOMES[attestation.finding]
        slashed_wei = 0
        if attestation is not None and (running is not None or outcome is AuditOutcome.WRONG):
            if running is None:
                await self._challenge(task, number, attestation)
            receipt = await self._ledger.submit(
                ResolveDispute,
                self._account,
                {"task_id": task.task_id, "number": number, "attestation": attestation},
            )
            payments = receipt.leaf.payments
            slashed_wei = sum(paid.amount_wei for paid in payments if paid.reason == "slash")
        await asyncio.to_thread(self._remember, task.task_id, outcome)
        return Audit(task.task_id, outcome, slashed_wei)

    async def _challenge(
        self, task: TaskRecord, number: int, attestation: DisputeAttestation
    ) -> None:
        terms = (await self._ledger.params()).disputes
        bond_wei = max(terms.min_bond_wei, -(-task.price_wei * terms.bond_ppm // PPM))
        fields = {
            "task_id": task.task_id,
            "number": number,
            "bond_wei": bond_wei,
            "evidence": keccak256(attestation.canonical()),
        }
        try:
            await self._ledger.submit(Dispute, self._account, fields)
        except TransactionRefused:
            # Somebody else may have been first: then the finding serves that dispute.
            other = await self._running(task.task_id)
            if other is None or other.number != number:
                raise

    def _path(self, task_id: bytes) -> Path:
        return self._log / f"{task_id.hex()}.json"

    def _recall(self, task_id: bytes) -> AuditOutcome | None:
        try:
            return AuditOutcome(json.loads(self._path(task_id).read_text())["outcome"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("the audit record %s is damaged; drawing again", self._path(task_id))
            return None

    def _remember(self, task_id: bytes, outcome: AuditOutcome) -> None:
        write_atomic(self._path(task_id), json.dumps({"outcome": outcome.value}).encode())


_OUTCOMES = {
    DisputeFinding.UPHELD: AuditOutcome.WRONG,
    DisputeFinding.DISMISSED: AuditOutcome.RIGHT,
    DisputeFinding.UNDECIDED: AuditOutcome.UNDECIDED,
}


def works_of(home: Home, functions: Mapping[bytes, Any] | None = None) -> Iterator[SettledWork]:
    """What a fabric's place on disk has of the executions it bought.

    Args:
        functions: a step's own function, by task id; without it such a step cannot be re-executed.
    """
    steps = home.root / "steps"
    for path in sorted(steps.glob("*.cbor")) if steps.is_dir() else []:
        try:
            record = read_step(path)
            if record is not None and (work := _work(home, record, functions or {})) is not None:
                yield work
        except DaifiError as error:
            logger.warning("step %s cannot be audited: %s", path, error)


def _work(home: Home, record: StepRecord, functions: Mapping[bytes, Any]) -> SettledWork | None:
    task_id = record.spec.task_id
    try:
        result = NodeResult.from_canonical(home.result_path(task_id).read_bytes())
    except FileNotFoundError:
        return None
    materials = Materials(blobs=_blobs(home, task_id), function=functions.get(task_id))
    return SettledWork(record.spec, record.input, result, materials)


def _blobs(home: Home, task_id: bytes) -> dict[str, bytes]:
    """Small materials of a step, from its bundle; none where that is sealed."""
    from daifi_flows._draft import read_draft

    path = home.draft_path(task_id)
    if not path.exists():
        return {}
    try:
        envelope = ProofFile.from_canonical(read_draft(path).proof_file)
    except EncodingError:
        return {}
    return {cid_of(blob): blob for blob in envelope.blobs}

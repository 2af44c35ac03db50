"""The life of one step: escrow, route, execute, commit, review, settle or reroute, bundle.

Ordinary idempotent code: every ledger call is idempotent by task id, what a step asked is on disk
before money moves, and an accepted result is on disk before it is settled. So a step that is run
again after a crash at any instant finds where it stood and never pays twice.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daifi_flows._home import Home, StepRecord, read_step, write_atomic
from daifi_flows._step import StepEvent, StepRequest, StepState, dai
from daifi_flows.bundle import METADATA_FORMAT, Bundle, Effect, Metadata, ProofFile, manifest_bytes
from daifi_flows.cnft import (
    Attestation,
    ComputeNFT,
    Content,
    CoreMetadata,
    Decision,
    NodeInfo,
    NodeResult,
    Noun,
    Receipt,
    Review,
    ReviewRequest,
    TaskSpec,
    token_id_of,
)
from daifi_flows.encoding import canonical_json, cid_of, tagged_hash
from daifi_flows.errors import (
    ConfigError,
    DaifiError,
    EncodingError,
    EngineError,
    MeshError,
    ModelError,
    NodeLost,
    ProofError,
    StepFailed,
    TransactionRefused,
)
from daifi_flows.keys import Account, seal_box
from daifi_flows.ledger import Settlement, TaskState
from daifi_flows.settings import Settings

if TYPE_CHECKING:
    from daifi_flows.judges.actor import CommitteeClient
    from daifi_flows.ray_mesh.actor import Mesh

__all__ = ["Life"]

logger = logging.getLogger(__name__)

MAX_DISCLOSED_BYTES: Final = 2 * 1024 * 1024
"""Materials up to this size travel in the bundle, so that an auditor can re-execute the step."""

_MAX_RETRIES: Final = 64

_RETRYABLE: Final = (NodeLost, EngineError, ModelError, ProofError, EncodingError)
"""Failures of one node, not of the task: the step is rerouted."""


class Draft(Noun):
    """An accepted result, on disk before it is settled."""

    core: CoreMetadata
    attestation: Attestation
    output: Content
    output_file: bytes
    manifest_file: bytes
    proof_bytes: int
    proof_file: bytes


@dataclass
class _Try:
    """One execution on one node."""

    node: NodeInfo
    reason: str
    state: str
    slashed_wei: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "node": self.node.name,
            "address": self.node.address,
            "state": self.state,
            "reason": self.reason,
            "slashed_wei": self.slashed_wei,
        }


@dataclass
class Life:
    """Runs steps over a mesh, a committee and a ledger."""

    settings: Settings
    home: Home
    buyer: Account
    mesh: Mesh
    committee: CommitteeClient
    settlement: Settlement
    tell: Callable[[StepEvent], None]
    bundles: Path
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    _finishing: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])

    async def run(self, request: StepRequest) -> ComputeNFT:
        """Take a step from request to cNFT.

        Raises:
            StepFailed: every allowed execution failed or was rejected; the escrow was refunded.
            TransactionRefused: the buyer cannot pay, or the ledger refuses the task.
            MeshError, CommitteeError, LedgerError: the fabric itself cannot go on.
        """
        record = await self._recall(request)
        return await _Step(self, request, record.spec, record.input).run()

    async def _recall(self, request: StepRequest) -> StepRecord:
        """The step's record: an earlier run's when that can still be settled, else a new one.

        A task that ended without a token stays ended; trying the step again is a new task under
        the next nonce, derived from the same key.
        """
        for number in range(_MAX_RETRIES):
            nonce = request.salt_key
            if number:
                nonce = tagged_hash("daifi/retry/1", {"key": request.salt_key, "number": number})
            record = await asyncio.to_thread(self._remember, request, nonce)
            task = await self.settlement.task(record.spec.task_id)
            live = task is None or task.state in (TaskState.OPEN, TaskState.ASSIGNED)
            if live or self.home.draft_path(record.spec.task_id).exists():
                return record
        raise ConfigError(
            f"step {request.name!r} failed {_MAX_RETRIES} times under one key: start it anew"
        )

    def _remember(self, request: StepRequest, nonce: bytes) -> StepRecord:
        path = self.home.step_path(nonce)
        earlier = read_step(path)
        if earlier is not None:
            if (
                earlier.spec.kind != request.kind
                or earlier.spec.model != request.model
                or earlier.input.data != request.input.data
            ):
                raise ConfigError(
                    f"step {request.name!r} was already started with another input or model "
                    "under the same key; give the new step a new key"
                )
            return earlier
        now = self.clock_ms()
        attempts, confidence = self.settings.attempts, self.settings.min_confidence_ppm
        price = self.settings.max_price_wei
        timeout_s = self.settings.step_timeout_s + self.settings.review_timeout_s
        spec = TaskSpec(
            kind=request.kind,
            model=request.model,
            input_cid=request.input.cid,
            sampling=request.sampling,
            parents=request.parents,
            scheme=request.scheme,
            review=request.review or Review(min_confidence_ppm=confidence, attempts=attempts),
            max_price_wei=price if request.max_price_wei is None else request.max_price_wei,
            deadline_ms=request.deadline_ms or now + int(1000 * timeout_s * attempts),
            buyer=self.buyer.address,
            nonce=nonce,
        )
        record = StepRecord(spec=spec, input=request.input)
        write_atomic(path, record.canonical())
        return record

    async def sweep(self) -> int:
        """Refund or settle what an earlier driver left when it died; returns how many refunds."""
        refunded = 0
        steps = self.home.root / "steps"
        for path in sorted(steps.glob("*.cbor")) if steps.is_dir() else []:
            try:
                record = read_step(path)
            except DaifiError as error:
                logger.warning("%s", error)
                continue
            if record is None or record.spec.buyer != self.buyer.address:
                continue
            task_id = record.spec.task_id
            task = await self.settlement.task(task_id)
            if task is None:
                continue
            draft_path = self.home.draft_path(task_id)
            if draft_path.exists() and task.state is TaskState.COMMITTED:
                draft = Draft.from_canonical(draft_path.read_bytes())  # accepted: pay the node
                await self.settlement.settle(draft.attestation, draft.core.digest, self.buyer)
            elif await self.refund(task_id, task.state):
                refunded += 1
        return refunded

    async def refund(self, task_id: bytes, state: TaskState) -> bool:
        """Bring an unfinished task's escrow home, as far as its state allows."""
        try:
            if state is TaskState.ASSIGNED:
                await self.settlement.release(task_id, self.buyer)
                state = TaskState.OPEN
            if state is TaskState.OPEN:
                await self.settlement.cancel(task_id, self.buyer)
                return True
            if state is TaskState.COMMITTED:
                await self.settlement.expire(task_id, self.buyer)
                return True
        except TransactionRefused as error:
            logger.info("escrow of task %s stays for now: %s", task_id.hex()[:16], error)
        return False

    def finish_later(self, work: asyncio.Task[Any]) -> None:
        """Keep work alive that must end although its caller was cancelled."""
        self._finishing.add(work)
        work.add_done_callback(self._finishing.discard)

    async def drain(self) -> None:
        """Wait for such work."""
        while self._finishing:
            await asyncio.gather(*self._finishing, return_exceptions=True)


@dataclass
class _Step:
    """State of one step while it runs."""

    life: Life
    request: StepRequest
    spec: TaskSpec
    input: Content
    tries: list[_Try] = field(default_factory=list[_Try])
    timings: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        self.task_id = self.spec.task_id
        self.token_id = token_id_of(self.task_id)

    def tell(self, state: StepState, message: str, **details: Any) -> None:
        event = StepEvent(self.request.name, self.spec.kind, state, self.task_id, message, details)
        self.life.tell(event)

    def _time(self, stage: str, started: float) -> None:
        elapsed = int(1000 * (time.monotonic() - started))
        self.timings[stage] = self.timings.get(stage, 0) + elapsed

    async def run(self) -> ComputeNFT:
        started = time.monotonic()
        draft_path = self.life.home.draft_path(self.task_id)
        if not draft_path.exists():
            work = asyncio.ensure_future(self._until_accepted(draft_path))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await self._abandon(work)
                raise
        finish = asyncio.ensure_future(self._finish(draft_path, started))
        try:
            return await asyncio.shield(finish)
        except asyncio.CancelledError:
            self.life.finish_later(finish)  # accepted work is paid for and bundled all the same
            raise

    async def _abandon(self, work: asyncio.Task[None]) -> None:
        """The user's task was cancelled or timed out: stop the node, bring the escrow home."""
        work.cancel()
        self.life.finish_later(work)
        await asyncio.wait([work], timeout=60)

    # Until the committee accepts

    async def _until_accepted(self, draft_path: Path) -> None:
        settlement, started = self.life.settlement, time.monotonic()
        self.timings["open"] = 0
        await settlement.open_escrow(self.spec, self.life.buyer)
        self._time("open", started)
        self.tell(
            StepState.OPEN,
            f"escrow of {dai(self.spec.max_price_wei)} opened",
            max_price_wei=self.spec.max_price_wei,
        )
        try:
            for _ in range(self.spec.review.attempts):
                if await self._attempt(draft_path):
                    return
            self._fail("every allowed execution failed")
        except BaseException as error:
            await self._refund(error)
            raise

    def _fail(self, what: str) -> None:
        lines = "; ".join(f"{item.node.name}: {item.reason}" for item in self.tries)
        raise StepFailed(
            f"step {self.request.name!r} failed: {what} ({lines or 'no node tried'}). "
            "The escrow was refunded; run the step again or allow more attempts.",
            attempts=[item.as_dict() for item in self.tries],
            task_id=self.task_id,
        )

    async def _refund(self, error: BaseException) -> None:
        async def bring_home() -> None:
            task = await self.life.settlement.task(self.task_id)
            if task is not None and await self.life.refund(self.task_id, task.state):
                self.tell(StepState.REFUNDED, f"escrow refunded after: {error!s:.200}")

        refund = asyncio.ensure_future(bring_home())
        self.life.finish_later(refund)
        try:
            await asyncio.shield(refund)
        except DaifiError as second:
            logger.warning("the refund could not be made now: %s", second)

    async def _attempt(self, draft_path: Path) -> bool:
        settlement, buyer = self.life.settlement, self.life.buyer
        task = await settlement.task(self.task_id)
        assert task is not None
        if task.state is TaskState.ASSIGNED:  # an earlier run died here
            await settlement.release(self.task_id, buyer)
        if task.state not in (TaskState.OPEN, TaskState.ASSIGNED):
            self._fail(f"the ledger already has this task as {task.state.value}")
        started = time.monotonic()
        node, why = await self._route(frozenset(task.barred))
        await settlement.assign(self.task_id, node.address, node.price_wei, buyer)
        self._time("assign", started)
        self.tell(StepState.ROUTED, f"routed to {node.name}: {why}", node=node.name)
        started = time.monotonic()
        try:
            self.tell(StepState.EXECUTING, f"running on {node.name}", node=node.name)
            result = await self.life.mesh.execute(
                node,
                self.spec,
                self.input,
                self.request.materials,
                timeout_s=self.life.settings.step_timeout_s,
                log_context=self.request.log_context,
            )
            self._time("execute", started)
            if result.output.cid != result.proof.statement.output_cid:
                raise EngineError("the output is not the one the node signed")
            await settlement.commit(self.task_id, result.proof.header, result.proof.cid, buyer)
        except (*_RETRYABLE, TransactionRefused) as error:
            self._time("execute", started)
            await settlement.release(self.task_id, buyer)
            self.tries.append(_Try(node, str(error), "lost"))
            self.tell(StepState.LOST, f"{node.name} failed: {error}", node=node.name)
            return False
        self.tell(
            StepState.COMMITTED,
            f"{node.name} committed to its output",
            output_cid=result.output.cid,
            proof_bytes=len(result.proof.canonical()),
        )
        # From here the node has done its work: the verdict is reached whoever still waits.
        review = asyncio.ensure_future(self._review(node, result, draft_path))
        try:
            return await asyncio.shield(review)
        except asyncio.CancelledError:
            await asyncio.wait([review])
            raise

    async def _route(self, barred: frozenset[str]) -> tuple[NodeInfo, str]:
        """Best node that is not barred; one that was lost on this step only if no other is left."""
        lost = {item.node.address for item in self.tries}
        reputation: dict[str, int] = {}
        for node in await self.life.mesh.nodes():
            account = await self.life.settlement.account(node.address)
            reputation[node.address] = account.reputation_ppm
        for excluded in (barred | lost, barred):
            try:
                return self.life.mesh.route(self.spec, excluded, reputation)
            except MeshError as error:
                last = error
        raise last

    async def _review(self, node: NodeInfo, result: NodeResult, draft_path: Path) -> bool:
        settlement, buyer = self.life.settlement, self.life.buyer
        started = time.monotonic()
        task = await settlement.task(self.task_id)
        assert task is not None
        self.tell(StepState.REVIEWING, "the committee is checking the proof")
        attestation, report = await self.life.committee.review(
            ReviewRequest(
                ledger_id=settlement.ledger_id,
                committee=await settlement.committee(),
                spec=self.spec,
                attempt=task.attempt,
                input=self.input,
                result=result,
                materials=self.request.materials,
            )
        )
        self._time("review", started)
        signers = attestation.signers.bit_count()
        self.tell(
            StepState.ATTESTED,
            f"{attestation.decision.value} by {signers} seats, "
            f"confidence {attestation.confidence_ppm / 1e6:.4f}",
            decision=attestation.decision.value,
            confidence_ppm=attestation.confidence_ppm,
            signers=signers,
            report=report.jsonable(),
        )
        if attestation.decision is Decision.ACCEPTED:
            draft = self._draft(result, attestation)
            await asyncio.to_thread(write_atomic, draft_path, draft.canonical())
            started = time.monotonic()
            await settlement.settle(attestation, draft.core.digest, buyer)
            self._time("settle", started)
            return True
        reason = report.reason
        if attestation.decision is Decision.REJECTED:
            receipt = await settlement.reject(attestation, buyer)
            slashed = sum(p.amount_wei for p in receipt.leaf.payments if p.reason == "slash")
            self.tries.append(_Try(node, reason, "rejected", slashed))
            self.tell(
                StepState.REJECTED,
                f"{node.name} rejected and slashed {dai(slashed)}: {reason}",
                node=node.name,
                address=node.address,
                slashed_wei=slashed,
                reason=reason,
            )
            return False
        await settlement.unproven(attestation, buyer)
        self.tries.append(_Try(node, reason, "unproven"))
        self._fail("the committee could not tell whether the output is right")
        return False

    def _draft(self, result: NodeResult, attestation: Attestation) -> Draft:
        blobs = tuple(self.request.materials.blobs.values())
        disclosed = () if sum(map(len, blobs)) > MAX_DISCLOSED_BYTES else blobs
        envelope = ProofFile(proof=result.proof, input=self.input, blobs=disclosed)
        output_file, proof_file = result.output.canonical(), envelope.canonical()
        if self.request.encrypt:
            output_file = seal_box(self.life.buyer.box_public, output_file)
            proof_file = seal_box(self.life.buyer.box_public, proof_file)
        manifest = manifest_bytes(result.manifest)
        core = CoreMetadata(
            name=self.request.name,
            spec=self.spec,
            node=result.proof.node,
            usage=result.proof.statement.usage,
            timestamp_ms=self.life.clock_ms(),
            output_cid=result.output.cid,
            output_encryption="x25519-sealed-box" if self.request.encrypt else "none",
            output_file_cid=cid_of(output_file),
            proof_cid=result.proof.cid,
            proof_file_cid=cid_of(proof_file),
            manifest_cid=cid_of(manifest),
        )
        return Draft(
            core=core,
            attestation=attestation,
            output=result.output,
            output_file=output_file,
            manifest_file=manifest,
            proof_bytes=len(result.proof.canonical()),
            proof_file=proof_file,
        )

    # Once it is accepted

    async def _finish(self, draft_path: Path, began: float) -> ComputeNFT:
        draft = Draft.from_canonical(await asyncio.to_thread(draft_path.read_bytes))
        # Settled already unless an earlier run died in between; either way paid once.
        receipt = await self.life.settlement.settle(
            draft.attestation, draft.core.digest, self.life.buyer
        )
        paid = sum(p.amount_wei for p in receipt.leaf.payments if p.reason != "refund")
        self.tell(
            StepState.SETTLED,
            f"settled in block {receipt.header.height}: {dai(paid)} paid, token minted",
            block=receipt.header.height,
            paid_wei=paid,
            token_id=self.token_id.hex(),
        )
        output = self.request.decode(draft.output.value())
        effect = await self._effect(output)
        bundle = Bundle.build(
            Metadata(
                format=METADATA_FORMAT,
                core=draft.core,
                attestation=draft.attestation,
                receipt=receipt,
                effect=effect,
            ),
            draft.proof_file,
            draft.output_file,
            draft.manifest_file,
        )
        directory = self.life.bundles / f"{self.request.name}-{self.token_id.hex()[:12]}"
        started = time.monotonic()
        await asyncio.to_thread(bundle.write, directory)
        self._time("bundle", started)
        self.timings["total"] = int(1000 * (time.monotonic() - began))
        token = await self.life.settlement.token(self.token_id)
        assert token is not None
        return ComputeNFT(
            token_id=self.token_id,
            task_id=self.task_id,
            name=self.request.name,
            owner=token.owner,
            parents=self.spec.parents,
            spec=self.spec,
            output=output,
            attestation=draft.attestation,
            receipt=receipt,
            bundle=directory,
            bundle_cid=bundle.cid,
            proof_bytes=draft.proof_bytes,
            effect=None if effect is None else json.loads(effect.value_json),
            timings_ms=dict(self.timings),
            attempts=tuple(item.as_dict() for item in self.tries),
        )

    async def _effect(self, output: Any) -> Effect | None:
        """Run the after-settlement action at most once, and commit what it returned."""
        if self.request.effect is None:
            return None
        path = self.life.home.effect_path(self.token_id)
        text = await asyncio.to_thread(_read_effect, path)
        if text == "":
            raise StepFailed(
                f"the action of step {self.request.name!r} was started by an earlier run that "
                f"died; it may have happened, so it is not run again. Remove {path} to allow it.",
                attempts=[],
            )
        if text is None:
            started = time.monotonic()
            await asyncio.to_thread(write_atomic, path, b"")
            value = await _call(self.request.effect, output)
            text = canonical_json(value).decode()
            await asyncio.to_thread(write_atomic, path, text.encode())
            self._time("effect", started)
        digest = Effect.digest_of(self.token_id, text)
        receipt: Receipt = await self.life.settlement.effect(self.token_id, digest, self.life.buyer)
        self.tell(StepState.EFFECT, f"action taken, committed in block {receipt.header.height}")
        return Effect(value_json=text, receipt=receipt)


async def _call(function: Callable[[Any], Any], value: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(value)
    result = await asyncio.to_thread(function, value)
    return await result if inspect.isawaitable(result) else result


def _read_effect(path: Path) -> str | None:
    """The committed value, ``""`` when an action was started and not finished, else ``None``."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None

"""One step from request to cNFT: escrow, route, execute, commit, review, settle or reroute, bundle.

Before a node has committed to its output the step can be cancelled, and the escrow comes home.
From then on the node has done its work: the step is judged, settled and bundled whoever waits.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Never

from daifi_flows._accusing import accuse
from daifi_flows._draft import draft_of, read_draft
from daifi_flows._home import write_atomic
from daifi_flows._step import StepEvent, StepRequest, StepState, dai, percent
from daifi_flows.bundle import Effect
from daifi_flows.cnft import (
    Basis,
    ComputeNFT,
    Content,
    Decision,
    NodeInfo,
    NodeResult,
    Receipt,
    ReviewRequest,
    TaskSpec,
    token_id_of,
)
from daifi_flows.encoding import canonical_json
from daifi_flows.errors import (
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
from daifi_flows.judges import subject_of
from daifi_flows.ledger import TaskRecord, TaskState

if TYPE_CHECKING:
    from daifi_flows._life import Life

__all__ = ["Execution"]

logger = logging.getLogger(__name__)

_RETRYABLE: Final = (NodeLost, EngineError, ModelError, ProofError, EncodingError)
"""Failures of one node, not of the task: the step is rerouted."""


@dataclass
class _Try:
    """One execution on one node that did not end in a token."""

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
class Execution:
    """State of one step while it runs."""

    life: Life
    request: StepRequest
    spec: TaskSpec
    input: Content
    tries: list[_Try] = field(default_factory=list[_Try])
    timings: dict[str, int] = field(default_factory=dict[str, int])
    abandoned: bool = False
    """Whoever asked for this step no longer waits."""
    commit_receipt: Receipt | None = None
    """Of the attempt under way, once the node has committed to its output."""
    committed: bool = False
    """The node's output is, or is about to be, on the ledger: no way back."""

    def __post_init__(self) -> None:
        self.task_id = self.spec.task_id
        self.token_id = token_id_of(self.task_id)
        self.draft_path = self.life.home.draft_path(self.task_id)
        self.began = time.monotonic()

    def tell(self, state: StepState, message: str, **details: Any) -> None:
        event = StepEvent(self.request.name, self.spec.kind, state, self.task_id, message, details)
        self.life.tell(event)

    def _time(self, stage: str, started: float) -> None:
        elapsed = int(1000 * (time.monotonic() - started))
        self.timings[stage] = self.timings.get(stage, 0) + elapsed

    async def run(self) -> ComputeNFT:
        """See :meth:`Life.run`. Cancelled, it returns only when nothing is under way any more."""
        work = asyncio.ensure_future(self._whole())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self.abandoned = True
            if not self.committed:
                work.cancel()
            await asyncio.wait([work])
            if not work.cancelled() and (error := work.exception()) is not None:
                logger.info("the cancelled step ended with: %s", error)
            raise

    async def _whole(self) -> ComputeNFT:
        task = await self.life.settlement.task(self.task_id)
        if not (self.draft_path.exists() and task is not None and await self._accepted(task)):
            try:
                await self._until_accepted()
            except BaseException as error:
                refunded = await self._refund()
                if isinstance(error, StepFailed):
                    raise StepFailed(
                        f"{error.message} {_REFUNDED if refunded else _NOT_REFUNDED}",
                        **error.details,
                    ) from error.__cause__
                raise
        return await self._finish()

    async def _accepted(self, task: TaskRecord) -> bool:
        """Whether an earlier run's accepted result is settled, or can be now."""
        if task.state is not TaskState.COMMITTED:
            return task.state is TaskState.SETTLED
        draft = await asyncio.to_thread(read_draft, self.draft_path)
        try:
            await self.life.settlement.settle(draft.attestation, draft.core.digest, self.life.buyer)
        except TransactionRefused as error:
            # The committee that accepted it may have left too long ago: the next one is asked.
            logger.warning("an accepted result is not taken any more: %s", error)
            return False
        return True

    # Until the committee accepts

    async def _until_accepted(self) -> None:
        started = time.monotonic()
        await self.life.settlement.open_escrow(self.spec, self.life.buyer)
        self._time("open", started)
        self.tell(
            StepState.OPEN,
            f"escrow of {dai(self.spec.max_price_wei)} opened",
            max_price_wei=self.spec.max_price_wei,
        )
        for _ in range(self.spec.review.attempts):
            if await self._attempt():
                return
            if self.abandoned:
                raise asyncio.CancelledError
        self._fail("every allowed execution failed")

    def _fail(self, what: str) -> Never:
        lines = "; ".join(f"{item.node.name}: {item.reason}" for item in self.tries)
        raise StepFailed(
            f"step {self.request.name!r} failed: {what} ({lines or 'no node tried'}).",
            attempts=[item.as_dict() for item in self.tries],
            task_id=self.task_id,
        )

    async def _refund(self) -> bool:
        """Bring the escrow home, however the step ended; whether it is home."""
        refund = asyncio.ensure_future(_bring_home(self))
        while not refund.done():
            try:
                await asyncio.shield(refund)
            except asyncio.CancelledError:
                self.abandoned = True  # money first; the cancellation is passed on by the caller
            except DaifiError as error:
                logger.warning("the refund could not be made now: %s", error)
        if refund.cancelled() or refund.exception() is not None or not refund.result():
            return False
        self.tell(StepState.REFUNDED, "escrow refunded")
        return True

    async def _attempt(self) -> bool:
        settlement, buyer = self.life.settlement, self.life.buyer
        task = await settlement.task(self.task_id)
        assert task is not None, "open_escrow is final when it returns"
        if task.state is TaskState.COMMITTED:
            return await self._resume(task)
        if task.state is TaskState.ASSIGNED:  # an earlier run died here
            await settlement.release(self.task_id, buyer)
        elif task.state is not TaskState.OPEN:
            self._fail(f"the ledger already has this task as {task.state.value}")
        started = time.monotonic()
        node, why = await self._route(frozenset(task.barred))
        price_wei = await settlement.quote(node.address)
        if price_wei > self.spec.max_price_wei:
            self._fail(
                f"the network is busy: {node.name} now costs {dai(price_wei)}, and the step pays "
                f"at most {dai(self.spec.max_price_wei)}; raise its price or try later"
            )
        await settlement.assign(self.task_id, node.address, price_wei, buyer)
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
            result_path = self.life.home.result_path(self.task_id)
            await asyncio.to_thread(write_atomic, result_path, result.canonical())
            self.committed = True
            self.commit_receipt = await settlement.commit(
                self.task_id, result.proof.header, result.proof.cid, buyer
            )
        except (*_RETRYABLE, TransactionRefused) as error:
            self.committed = False
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
        accepted = await self._review(node, result)
        self.committed = accepted
        return accepted

    async def _resume(self, task: TaskRecord) -> bool:
        """A node committed and the driver died: go on with the review, from what is on disk."""
        path = self.life.home.result_path(self.task_id)
        try:
            result = NodeResult.from_canonical(await asyncio.to_thread(path.read_bytes))
        except (OSError, EncodingError) as error:
            self._fail(f"the node's result is no longer at hand ({error})")
        if task.proof is None or result.proof.header != task.proof:
            self._fail("the node's result at hand is not the committed one")
        nodes = {node.address: node for node in await self.life.mesh.nodes()}
        address = result.proof.node
        known = nodes.get(address) or NodeInfo(
            name=address, address=address, device="unknown", engines=(), price_wei=task.price_wei
        )
        self.committed = True
        header, cid = result.proof.header, result.proof.cid  # made before: the same receipt again
        self.commit_receipt = await self.life.settlement.commit(
            self.task_id, header, cid, self.life.buyer
        )
        accepted = await self._review(known, result)
        self.committed = accepted
        return accepted

    async def _route(self, barred: frozenset[str]) -> tuple[NodeInfo, str]:
        """Best node that is not barred; one that was lost on this step only if no other is left."""
        lost = {item.node.address for item in self.tries}
        reputation: dict[str, int] = {}
        half_life_ms = (await self.life.settlement.params()).staking.half_life_ms
        for node in await self.life.mesh.nodes():
            account = await self.life.settlement.account(node.address)
            standing = account.standing.at(self.life.clock_ms(), half_life_ms)
            reputation[node.address] = standing.reputation_ppm
        for excluded in (barred | lost, barred):
            try:
                return self.life.mesh.route(self.spec, excluded, reputation)
            except MeshError as error:
                last = error
        if self.tries:
            self._fail("no other node can run it")
        raise last

    async def _review(self, node: NodeInfo, result: NodeResult) -> bool:
        settlement, buyer = self.life.settlement, self.life.buyer
        started = time.monotonic()
        task = await settlement.task(self.task_id)
        assert task is not None, "a committed task is known"
        committed, committee = self.commit_receipt, await settlement.committee()
        self.tell(StepState.REVIEWING, "the committee is checking the proof")
        request = ReviewRequest(
            ledger_id=settlement.ledger_id,
            committee=committee,
            spec=self.spec,
            attempt=task.attempt,
            input=self.input,
            result=result,
            materials=self.request.materials.shown,
            committed=committed,
            # As of the commit, whatever was registered since: so the seats are asked about it.
            operator=committed.leaf.operator if committed is not None else None,
        )
        attestation, report = await self.life.committee.review(request)
        self._time("review", started)
        signers = attestation.signers.bit_count()
        if attestation.basis is Basis.WAIVED:
            assert committed is not None and committed.leaf.review_ppm is not None
            outcome = f"not drawn for review (rate {percent(committed.leaf.review_ppm)})"
        else:
            outcome = (
                f"{attestation.decision.value} by {signers} seats, "
                f"confidence {attestation.confidence_ppm / 1e6:.4f}"
            )
        self.tell(
            StepState.ATTESTED,
            outcome,
            decision=attestation.decision.value,
            basis=attestation.basis.value,
            confidence_ppm=attestation.confidence_ppm,
            signers=signers,
            report=report.jsonable(),
        )
        if report.evidence:
            subject = subject_of(request)
            await accuse(settlement, subject, report.evidence, attestation, buyer)
        if attestation.decision is Decision.ACCEPTED:
            # The bundle tells of a draw only where this committee drew.
            drew = committed is not None and committed.header.epoch == committee.epoch
            draft = draft_of(
                self.request,
                request if drew else replace(request, committed=None),
                attestation,
                report,
                buyer=self.life.buyer,
                timestamp_ms=self.life.clock_ms(),
                bundles=self.life.bundles,
            )
            await asyncio.to_thread(write_atomic, self.draft_path, draft.canonical())
            started = time.monotonic()
            await settlement.settle(attestation, draft.core.digest, buyer)
            self._time("settle", started)
            return True
        reason = report.reason
        if attestation.decision is Decision.UNPROVEN:
            await settlement.unproven(attestation, buyer)
            self.tries.append(_Try(node, reason, "unproven"))
            self._fail("the committee could not tell whether the output is right")
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

    # Once it is accepted

    async def _finish(self) -> ComputeNFT:
        draft = await asyncio.to_thread(read_draft, self.draft_path)
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
        started, directory = time.monotonic(), Path(draft.directory)
        bundle = draft.bundle(receipt, None)
        if self.request.effect is None or not directory.exists():
            # Also before the action runs: whatever it does, the paid step has its bundle.
            await asyncio.to_thread(bundle.write, directory)
        self._time("bundle", started)
        output = self.request.decode(draft.output.value())
        effect = await self._effect(output)
        if effect is not None:
            bundle = draft.bundle(receipt, effect)
            await asyncio.to_thread(bundle.write, directory)
        self.timings["total"] = int(1000 * (time.monotonic() - self.began))
        token = await self.life.settlement.token(self.token_id)
        assert token is not None, "a settled task has a token"
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
            report=None if draft.report_json is None else json.loads(draft.report_json),
            effect=None if effect is None else json.loads(effect.value_json),
            timings_ms=dict(self.timings),
            attempts=tuple(item.as_dict() for item in self.tries),
        )

    async def _effect(self, output: Any) -> Effect | None:
        """Run the after-settlement action at most once, and commit what it returned."""
        if self.request.effect is None:
            return None
        path = self.life.home.effect_path(self.token_id)
        if self.abandoned and not path.exists():
            return None  # nobody waits: the action is left to whoever runs the step again
        started = time.monotonic()
        if await asyncio.to_thread(_claim, path):
            text = await self._act(self.request.effect, output, path)
        else:
            text = self._earlier(path, await asyncio.to_thread(path.read_text))
        self._time("effect", started)
        digest = Effect.digest_of(self.token_id, text)
        receipt = await self.life.settlement.effect(self.token_id, digest, self.life.buyer)
        self.tell(StepState.EFFECT, f"action taken, committed in block {receipt.header.height}")
        return Effect(value_json=text, receipt=receipt)

    async def _act(self, effect: Callable[[Any], Any], output: Any, path: Path) -> str:
        try:
            text = Effect.check(canonical_json(await _call(effect, output)).decode())
        except Exception as error:
            failed = json.dumps({"failed": f"{type(error).__name__}: {error}"})
            await asyncio.to_thread(write_atomic, path, failed.encode())
            raise
        done = json.dumps({"done": text})
        await asyncio.to_thread(write_atomic, path, done.encode())
        return text

    def _earlier(self, path: Path, record: str) -> str:
        """What the action returned in an earlier run.

        Raises:
            StepFailed: it failed, or was started and never ended: it is not run again.
        """
        try:
            known: dict[str, str] = json.loads(record) if record else {}
        except ValueError:
            known = {}
        if "done" in known:
            return known["done"]
        what = (
            f"failed before ({known['failed']})"
            if "failed" in known
            else "was started by an earlier run that died, so it may have happened"
        )
        raise StepFailed(
            f"the action of step {self.request.name!r} {what}; it is not run again. The step "
            f"itself is settled. Remove {path} to allow the action once more.",
            attempts=[item.as_dict() for item in self.tries],
            task_id=self.task_id,
        )


_REFUNDED: Final = "The escrow was refunded; run the step again or allow more attempts."
_NOT_REFUNDED: Final = "The escrow is still locked and comes home once the task expires."


async def _bring_home(step: Execution) -> bool:
    """Refund the task in whatever state it is; whether nothing of it is locked any more."""
    task = await step.life.settlement.task(step.task_id)
    if task is not None and task.state is not TaskState.OPEN:
        if task.state in (TaskState.ASSIGNED, TaskState.COMMITTED):
            return await step.life.refund(step.task_id, task.state)
        return task.state is not TaskState.SETTLED
    # Open, or its opening is not final yet: cancelling follows it in the same queue.
    return await step.life.refund(step.task_id, TaskState.OPEN)


async def _call(function: Callable[[Any], Any], value: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(value)
    result = await asyncio.to_thread(function, value)
    return await result if inspect.isawaitable(result) else result


def _claim(path: Path) -> bool:
    """Create the action's record, empty; ``False`` when there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as file:
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True

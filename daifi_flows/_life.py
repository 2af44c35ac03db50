"""Runs steps over a mesh, a committee and a ledger: once each, through crashes and retries.

What a step asked is on disk before money moves, a node's result before it is committed, an
accepted result before it is settled; every ledger call is idempotent by task id. So a step that
is run again after a crash at any instant finds where it stood and never pays twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from daifi_flows._draft import Draft, read_draft
from daifi_flows._execution import Execution
from daifi_flows._home import Home, StepRecord, read_step, write_atomic
from daifi_flows._step import StepEvent, StepRequest
from daifi_flows.cnft import ComputeNFT, Review, TaskSpec
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import (
    ConfigError,
    DaifiError,
    EngineError,
    ProofError,
    TransactionRefused,
)
from daifi_flows.keys import Account
from daifi_flows.ledger import Settlement, TaskState
from daifi_flows.ray_mesh._engines import check_scheme
from daifi_flows.settings import Settings

if TYPE_CHECKING:
    from daifi_flows.judges.actor import CommitteeClient
    from daifi_flows.ray_mesh.actor import Mesh

__all__ = ["Life"]

logger = logging.getLogger(__name__)

_MAX_RETRIES: Final = 64
_MAX_NAME: Final = 64
_MAX_BLOBS: Final = 16
"""Materials of one step, as many as a bundle holds."""


@dataclass
class Life:
    """Everything a step needs, and the steps that are under way."""

    settings: Settings
    home: Home
    buyer: Account
    mesh: Mesh
    committee: CommitteeClient
    settlement: Settlement
    tell: Callable[[StepEvent], None]
    bundles: Path
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    _busy: dict[bytes, concurrent.futures.Future[None]] = field(
        default_factory=dict[bytes, "concurrent.futures.Future[None]"]
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def run(self, request: StepRequest) -> ComputeNFT:
        """Take a step from request to cNFT.

        Raises:
            ConfigError: the request is out of bounds. Nothing was spent.
            StepFailed: every allowed execution failed or was rejected; the escrow was refunded.
            TransactionRefused: the buyer cannot pay, or the ledger refuses the task.
            MeshError, CommitteeError, LedgerError: the fabric itself cannot go on.
        """
        _check(request)
        while (other := self._claim(request.salt_key)) is not None:
            # The same step is under way, perhaps on another loop: wait, then find what it left.
            await asyncio.wrap_future(other)
        with self._releasing(request.salt_key):
            record = await self._recall(request)
            return await Execution(self, request, record.spec, record.input).run()

    def _claim(self, key: bytes) -> concurrent.futures.Future[None] | None:
        """``None`` when the key is now ours, else what ends when its holder does."""
        with self._lock:
            other = self._busy.get(key)
            if other is None:
                self._busy[key] = mine = concurrent.futures.Future[None]()
                mine.set_running_or_notify_cancel()  # a cancelled waiter must not cancel it
            return other

    @contextlib.contextmanager
    def _releasing(self, key: bytes) -> Generator[None]:
        try:
            yield
        finally:
            with self._lock:
                mine = self._busy.pop(key)
            mine.set_result(None)

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
            task_id = record.spec.task_id
            task = await self.settlement.task(task_id)
            if task is None or task.state in (TaskState.OPEN, TaskState.ASSIGNED):
                return record
            resumable = {
                TaskState.SETTLED: self.home.draft_path(task_id),
                TaskState.COMMITTED: self.home.result_path(task_id),
            }.get(task.state)
            if resumable is not None and resumable.exists():
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
        settings = self.settings
        timeout_s = settings.step_timeout_s + settings.review_timeout_s
        price = request.max_price_wei
        try:
            spec = TaskSpec(
                kind=request.kind,
                model=request.model,
                input_cid=request.input.cid,
                sampling=request.sampling,
                parents=request.parents,
                scheme=request.scheme,
                review=request.review
                or Review(
                    min_confidence_ppm=settings.min_confidence_ppm,
                    attempts=settings.attempts,
                    always=1 if settings.review == "always" else None,
                ),
                max_price_wei=settings.max_price_wei if price is None else price,
                deadline_ms=request.deadline_ms
                or self.clock_ms() + int(1000 * timeout_s * settings.attempts),
                buyer=self.buyer.address,
                nonce=nonce,
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"step {request.name!r}: {where}: {first['msg']}") from error
        record = StepRecord(spec=spec, input=request.input)
        write_atomic(path, record.canonical())
        return record

    async def sweep(self) -> int:
        """Finish what an earlier driver left when it died: settle and bundle what the committee
        accepted, refund what it may. Returns how many refunds."""
        refunded = 0
        steps = self.home.root / "steps"
        for path in sorted(steps.glob("*.cbor")) if steps.is_dir() else []:
            try:
                refunded += await self._sweep_one(path)
            except DaifiError as error:
                logger.warning("an unfinished step is left as it is (%s): %s", path, error)
        return refunded

    async def _sweep_one(self, path: Path) -> int:
        record = await asyncio.to_thread(read_step, path)
        if record is None or record.spec.buyer != self.buyer.address:
            return 0
        task_id = record.spec.task_id
        task = await self.settlement.task(task_id)
        draft_path = self.home.draft_path(task_id)
        if task is None or not draft_path.exists():
            return int(task is not None and await self.refund(task_id, task.state))
        if task.state in (TaskState.COMMITTED, TaskState.SETTLED):
            try:
                await self._bundle(await asyncio.to_thread(read_draft, draft_path))
            except TransactionRefused:
                return int(await self.refund(task_id, task.state))
        return 0

    async def _bundle(self, draft: Draft) -> None:
        if Path(draft.directory).exists():
            return
        receipt = await self.settlement.settle(draft.attestation, draft.core.digest, self.buyer)
        await asyncio.to_thread(draft.bundle(receipt, None).write, Path(draft.directory))

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


def _check(request: StepRequest) -> None:
    """Bounds that would otherwise be noticed only after the node has been paid."""
    if not re.fullmatch(r"[\w .!-]+", request.name) or len(request.name) > _MAX_NAME:
        raise ConfigError(
            f"step name {request.name[:80]!r} is not 1 to {_MAX_NAME} letters, digits, spaces, "
            "dots, dashes: rename the step"
        )
    if len(request.materials.blobs) > _MAX_BLOBS:
        raise ConfigError(
            f"step {request.name!r} has {len(request.materials.blobs)} materials; at most "
            f"{_MAX_BLOBS} are carried"
        )
    try:
        check_scheme(request.model.engine, request.scheme, request.sampling)
    except (EngineError, ProofError) as error:
        raise ConfigError(f"step {request.name!r}: {error}") from error

"""The composition root: wires the mesh, the committee and the ledger into one fabric.

``Fabric.local()`` starts Ray on this machine and everything a step needs; ``Fabric.connect()``
brings the same up on a cluster that is already there. Both have the same surface and leave no
process behind when closed.
"""

from __future__ import annotations

import contextvars
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from daifi_flows._auditing import Audit, Auditor, Ledger, works_of
from daifi_flows._bringup import Parts, bring_up
from daifi_flows._canaries import CanaryReport, known_work, run_canary
from daifi_flows._late_evidence import accuse_late
from daifi_flows._life import Life
from daifi_flows._step import StepEvent, StepRequest
from daifi_flows._sync import run_sync
from daifi_flows.cnft import BlockHeader, Committee, ComputeNFT, ModelRef
from daifi_flows.errors import ConfigError
from daifi_flows.keys import Account
from daifi_flows.ledger import Settlement, SupplyReport
from daifi_flows.settings import Settings

if TYPE_CHECKING:
    from daifi_flows.ray_mesh.actor import Mesh

__all__ = ["Fabric", "Observer"]

logger = logging.getLogger(__name__)

Observer = Callable[[StepEvent], None]

_current: contextvars.ContextVar[Fabric | None] = contextvars.ContextVar(
    "daifi_fabric", default=None
)
_open: list[Fabric] = []


def _silent(_what: str) -> None:
    """Nobody asked to hear of the preparation."""


class Fabric:
    """Everything a flow needs to run verified steps. Close it, or use it in a ``with`` block.

    Example::

        with Fabric.local() as fabric:
            asyncio.run(research_agent("What is a compute NFT?"))
    """

    def __init__(self, settings: Settings, parts: Parts, observer: Observer | None) -> None:
        self.settings = settings
        self._parts = parts
        self._observers: list[Observer] = [observer] if observer is not None else []
        self._closed = False
        self._token: contextvars.Token[Fabric | None] | None = None
        self._life = Life(
            settings=settings,
            home=parts.home,
            buyer=parts.buyer,
            mesh=parts.mesh,
            committee=parts.committee,
            settlement=parts.settlement,
            tell=self._tell,
            bundles=settings.bundles or parts.home.bundles,
        )
        _open.append(self)

    # Coming up

    @classmethod
    def local(
        cls,
        settings: Settings | None = None,
        *,
        dishonest: Sequence[str] = (),
        observer: Observer | None = None,
        prepare: Callable[[str], None] = _silent,
    ) -> Fabric:
        """Start Ray on this machine, the ledger, the seats and the nodes.

        A second fabric on the same machine takes its own place under ``settings.home``, with a
        ledger of its own. This machine is the trusted dealer of the committee's group key.

        Args:
            dishonest: add cheaper nodes that cheat on LLM steps, one for each of ``quantized``,
                ``wrong-model``, ``tampered-output``, ``replayed-proof``.
            observer: told of every step's progress.
            prepare: told what is being prepared, one line at a time.

        Raises:
            ConfigError: home cannot be used, or Ray does not start.
            LedgerCorrupted: the ledger's file is damaged.
            ModelError: the model is unknown or its files do not match its digest.
        """
        settings = settings or Settings.load()
        return cls._start(settings, None, dishonest, observer, prepare)

    @classmethod
    def connect(
        cls,
        address: str,
        settings: Settings | None = None,
        *,
        dishonest: Sequence[str] = (),
        observer: Observer | None = None,
        prepare: Callable[[str], None] = _silent,
    ) -> Fabric:
        """Bring the fabric up on the Ray cluster at ``address`` (``host:port``, ``auto``).

        Run it on a machine of that cluster: the ledger's file and the seats' keys stay on the
        machine that calls. The seats of a new ledger make their group key together
        (:mod:`daifi_flows.dkg`), so that no process ever holds it; a ledger that is there keeps
        its committee. Other arguments as for :meth:`local`.

        Raises:
            ConfigError: nothing answers at that address.
        """
        settings = settings or Settings.load()
        return cls._start(settings, address, dishonest, observer, prepare)

    @classmethod
    def _start(
        cls,
        settings: Settings,
        address: str | None,
        dishonest: Sequence[str],
        observer: Observer | None,
        prepare: Callable[[str], None],
    ) -> Fabric:
        parts = bring_up(settings, address, dishonest, prepare)
        fabric = cls(settings, parts, observer)
        try:
            run_sync(fabric._life.sweep())
        except BaseException:
            fabric.close()
            raise
        return fabric

    @classmethod
    def current(cls) -> Fabric:
        """The fabric of this ``with`` block, else the one this process opened last.

        Raises:
            ConfigError: there is none.
        """
        fabric = _current.get()
        if fabric is not None and not fabric._closed:
            return fabric
        if _open:
            return _open[-1]
        raise ConfigError(
            "no fabric is open: wrap the flow run in `with Fabric.local():`, or connect to a "
            "cluster with `Fabric.connect(address)`"
        )

    # Going down

    def close(self) -> None:
        """Stop everything this fabric started. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self in _open:
            _open.remove(self)
        self._parts.close()

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        self.close()

    # Observing

    def add_observer(self, observer: Observer) -> None:
        """Tell ``observer`` of every step event from now on, in the thread of the step."""
        self._observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Stop telling ``observer``."""
        if observer in self._observers:
            self._observers.remove(observer)

    def _tell(self, event: StepEvent) -> None:
        for observer in tuple(self._observers):
            try:
                observer(event)
            except Exception:  # whoever watches must not break the step
                logger.exception("an observer failed on %s", event.state)

    # Working

    @property
    def mesh(self) -> Mesh:
        """The nodes."""
        return self._parts.mesh

    @property
    def settlement(self) -> Settlement:
        """The ledger."""
        return self._parts.settlement

    @property
    def buyer(self) -> Account:
        """The account that pays for steps and owns their tokens."""
        return self._parts.buyer

    @property
    def committee_keys(self) -> Committee:
        """Public keys of the seats: the trust anchor of bundles."""
        return self._parts.committee_keys

    async def run(self, request: StepRequest) -> ComputeNFT:
        """Take one step from request to settled cNFT; see :class:`daifi_flows._life.Life`.

        Cancelling it stops the node's work and refunds the escrow; an execution the node has
        already committed is still judged and settled.

        Raises:
            StepFailed: every allowed execution failed or was rejected; the escrow was refunded.
            TransactionRefused: the buyer cannot pay, or the ledger refuses the task.
            MeshError: no node can run this step.
            CommitteeError, LedgerError: the fabric itself cannot go on.
        """
        if self._closed:
            raise ConfigError("this fabric is closed: open another one")
        if self.settings.encrypt_outputs:
            request = replace(request, encrypt=True)
        return await self._life.run(request)

    async def audit_work(self) -> tuple[Audit, ...]:
        """Audit what this fabric bought unseen, and bring the seats' answer to open disputes.

        Each output whose review was waived is drawn once, with the ledger's ``review.audit_ppm``.
        Run it often enough that none is out of its challenge window before it was drawn
        (``rewards.challenge_ms``, ten minutes by default). Seats that rejected what stood since
        are shown to the ledger.

        Raises:
            LedgerError: the ledger does not answer.
        """
        parts = self._parts
        await accuse_late(parts.settlement, parts.home, parts.buyer)
        return await self._auditor().run(works_of(self._parts.home))

    async def send_canaries(self, count: int = 1) -> tuple[CanaryReport, ...]:
        """Ask some of this fabric's reviewed tasks again in other names, and compare the answers.

        Raises:
            ConfigError: no reviewed task can be repeated yet.
            LedgerError, MeshError, CommitteeError: the fabric itself cannot go on.
        """
        known = await known_work(self._life, works_of(self._parts.home))
        if not known:
            raise ConfigError("no reviewed step can be repeated as a canary yet: run some steps")
        reports: list[CanaryReport] = []
        for _ in range(count):
            task, work = secrets.choice(known)
            account = Account.load(self._parts.home.keys / f"canary-{secrets.token_hex(8)}")
            reports.append(await run_canary(self._life, task, work, account, self._auditor()))
        return tuple(reports)

    def _auditor(self) -> Auditor:
        home, parts = self._parts.home, self._parts
        ledger = cast("Ledger", parts.settlement)
        log, clock_ms = home.root / "audits", self._life.clock_ms
        return Auditor(ledger, parts.committee, parts.buyer, log, clock_ms)

    def resolve_llm(self, model: str | None = None, engine: str | None = None) -> ModelRef:
        """The LLM of a step: name, digest of its files (hashed here), engine and precision.

        Raises:
            EngineError: the engine is unknown.
            ModelError: the model is unknown, or its files do not match the expected digest.
        """
        from daifi_flows.ray_mesh import resolve_llm

        return resolve_llm(self.settings, model, engine)

    def embedding_model(self) -> ModelRef:
        """The embedding model of retrieval steps."""
        from daifi_flows.ray_mesh import resolve

        return resolve(self.settings.embedding_model, "retrieval").ref

    async def build_policy(self, tools: Sequence[tuple[str, str]]) -> bytes:
        """ONNX policy over tools given as (name, description), built on a node."""
        return await self.mesh.build_policy(tools)

    def ledger_summary(self) -> tuple[BlockHeader, SupplyReport]:
        """Head of the chain, and where all money is."""

        async def read() -> tuple[BlockHeader, SupplyReport]:
            header, _ = await self.settlement.head()
            return header, await self.settlement.supply()

        return run_sync(read())

    def describe(self) -> str:
        """One line for a person: what is up."""
        header, _ = self.ledger_summary()
        seats, hosts = len(self.committee_keys.seats), self.settings.seat_hosts
        return (
            f"ready: {self._parts.node_count} node(s), {seats} seats on {hosts} host(s), "
            f"ledger at block {header.height}"
        )

"""The ledger as a Ray actor, and the client that survives its restarts."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
    RayTaskError,
)

from daifi_flows._process import collect_rarely
from daifi_flows.cnft import (
    Attestation,
    BlockHeader,
    Committee,
    QuorumCertificate,
    Receipt,
)
from daifi_flows.epochs import CommitteeChain
from daifi_flows.errors import DaifiError, LedgerUnavailable
from daifi_flows.history import HistoryProof
from daifi_flows.keys import Account
from daifi_flows.ledger._certifier import Certifier
from daifi_flows.ledger._client import LedgerClient, patiently
from daifi_flows.ledger._params import Genesis, Params
from daifi_flows.ledger._proposing import BuilderPort
from daifi_flows.ledger._reads import StateEntry
from daifi_flows.ledger._records import (
    AccountRecord,
    LedgerHealth,
    Record,
    SupplyReport,
    TaskRecord,
    TokenRecord,
)
from daifi_flows.ledger._service import LedgerService

__all__ = ["LedgerActor", "RayLedger"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
READS: Final = 256
"""Reads, health and metrics among them, that the actor answers at one time."""
WRITES: Final = 256
"""Transactions that it takes at one time; how many may wait for certificates is the service's
``max_pending``."""
MAX_WAITS: Final = 2_000
"""Callers that may wait for certificates at one time: about 50 KiB each, in Ray. More are told
to ask again."""
_REFUSALS: Final = 1_000
"""Places for those who are told so: they must not queue behind those who wait."""
_RETRY_MS: Final = 1_000
_READS: Final = frozenset(
    {
        "account",
        "attestation_receipt",
        "certified_header",
        "committee",
        "committee_of",
        "handovers",
        "head",
        "health",
        "history",
        "metrics",
        "next_nonce",
        "nodes",
        "params",
        "prove",
        "prove_entry",
        "quote",
        "record",
        "receipt",
        "supply",
        "task",
        "token",
    }
)


class LedgerActor:
    """Process around one :class:`~daifi_flows.ledger.LedgerService`; see :meth:`RayLedger.start`.

    Opened by the first call after each start, so that a damaged file is an error to the caller
    and not an endless restart. Once closed it opens the file no more.

    Reads, transactions and waits are Ray concurrency groups with limits of their own, so that
    however many callers wait for a certificate, health and reads are answered. Ray gives each
    group an event loop: all of them hand their calls to the loop that the service runs on.
    """

    def __init__(
        self,
        path: str,
        genesis: Genesis,
        certifier: Certifier,
        builder: bytes | None = None,
        builders: Sequence[BuilderPort] = (),
    ) -> None:
        account = Account(builder) if builder is not None else None
        self._service = LedgerService(path, genesis, certifier, builder=account, builders=builders)
        self._home = asyncio.get_running_loop()
        self._opening = asyncio.Lock()
        self._open = self._closed = False
        self._waits = 0

    @ray.method(concurrency_group="reads")
    async def read(self, method: str, *args: Any) -> Any:
        """Call one of the service's reads by name.

        Raises:
            DaifiError: as the service does.
            LedgerUnavailable: the actor was closed.
        """
        if method not in _READS:
            raise ValueError(f"the ledger actor has no read {method!r}")
        return await self._at_home(self._call(method, *args))

    @ray.method(concurrency_group="writes")
    async def enqueue(self, raw: bytes) -> bytes:
        """See :meth:`LedgerService.enqueue`.

        Raises:
            LedgerUnavailable: also when the actor was closed.
        """
        return await self._at_home(self._call("enqueue", raw))

    @ray.method(concurrency_group="waits")
    async def wait(self, tx_id: bytes) -> Receipt:
        """See :meth:`LedgerService.wait`.

        Raises:
            LedgerUnavailable: also when :data:`MAX_WAITS` wait already
                (``details["retry_after_ms"]``), or the actor was closed.
        """
        if self._waits >= MAX_WAITS:
            raise LedgerUnavailable(
                f"{self._waits} callers wait for certificates; the transaction may still become "
                f"final: ask again in {_RETRY_MS} ms",
                retry_after_ms=_RETRY_MS,
                waiting=self._waits,
            )
        self._waits += 1  # by the one thread of this group
        try:
            return await self._at_home(self._call("wait", tx_id))
        finally:
            self._waits -= 1

    async def _at_home(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._home))
        except DaifiError as error:
            # Thousands may be answered with one error: raised again and again it would carry the
            # tracebacks of all of them, and Ray writes each out.
            alone = copy.copy(error)
        raise alone

    async def _call(self, method: str, *args: Any) -> Any:
        await self._ready()
        return await getattr(self._service, method)(*args)

    async def _ready(self) -> None:
        async with self._opening:
            if self._closed:
                raise LedgerUnavailable("the ledger was closed; start it again", stopped=True)
            if not self._open:
                await self._service.start()
                collect_rarely()
                self._open = True

    async def close(self) -> None:
        """Stop cleanly: the block in progress may become final; what was answered is on disk."""
        async with self._opening:
            self._closed = True
            if self._open:
                self._open = False
                await self._service.close()

    def pid(self) -> int:
        """Process id of this actor."""
        return os.getpid()


class _RayPort:
    """Reaches the service through actor restarts: each call is safe to repeat."""

    def __init__(self, handle: Any, patience_s: float) -> None:
        self._handle = handle
        self._patience_s = patience_s

    async def _call(self, method: str, *args: Any) -> Any:
        return await self._ask(self._handle.read, method, *args)

    async def _ask(self, method: Any, *args: Any) -> Any:
        async def once() -> Any:
            try:
                return await method.remote(*args)
            except RayTaskError as error:
                cause: object = getattr(error, "cause", None)
                if isinstance(cause, DaifiError):
                    raise cause from None
                raise

        try:
            return await patiently(once, (ActorUnavailableError, ActorDiedError), self._patience_s)
        except RayActorError as error:
            raise LedgerUnavailable(
                f"the ledger actor does not answer after {self._patience_s:.0f} s; what it "
                "acknowledged is on disk: start the fabric again"
            ) from error

    async def enqueue(self, raw: bytes) -> bytes:
        return await self._ask(self._handle.enqueue, raw)

    async def wait(self, tx_id: bytes) -> Receipt:
        return await self._ask(self._handle.wait, tx_id)

    async def next_nonce(self, address: str) -> int:
        return await self._call("next_nonce", address)

    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]:
        return await self._call("head")

    async def committee(self) -> Committee:
        return await self._call("committee")

    async def committee_of(self, epoch: int) -> Committee | None:
        return await self._call("committee_of", epoch)

    async def handovers(self, after: int = 0) -> CommitteeChain:
        return await self._call("handovers", after)

    async def certified_header(self, height: int) -> tuple[BlockHeader, QuorumCertificate] | None:
        return await self._call("certified_header", height)

    async def account(self, address: str) -> AccountRecord:
        return await self._call("account", address)

    async def task(self, task_id: bytes) -> TaskRecord | None:
        return await self._call("task", task_id)

    async def token(self, token_id: bytes) -> TokenRecord | None:
        return await self._call("token", token_id)

    async def record(self, key: bytes) -> Record | None:
        return await self._call("record", key)

    async def supply(self) -> SupplyReport:
        return await self._call("supply")

    async def params(self) -> Params:
        return await self._call("params")

    async def quote(self, node: str) -> int:
        return await self._call("quote", node)

    async def nodes(self) -> tuple[AccountRecord, ...]:
        return await self._call("nodes")

    async def attestation_receipt(self, task_id: bytes) -> tuple[Attestation, Receipt] | None:
        return await self._call("attestation_receipt", task_id)

    async def health(self) -> LedgerHealth:
        return await self._call("health")

    async def metrics(self) -> dict[str, int]:
        return await self._call("metrics")

    async def history(self, from_height: int) -> Sequence[bytes]:
        return await self._call("history", from_height)

    async def prove(self, tx_id: bytes) -> HistoryProof:
        return await self._call("prove", tx_id)

    async def prove_entry(self, key: bytes) -> StateEntry:
        return await self._call("prove_entry", key)


class RayLedger(LedgerClient):
    """:class:`~daifi_flows.ledger.Settlement` over a ledger actor.

    >>> ledger = RayLedger.start(path, genesis, certifier, name="daifi-ledger")  # doctest: +SKIP
    >>> await ledger.open_escrow(spec, buyer)  # doctest: +SKIP
    """

    def __init__(self, handle: Any, ledger_id: bytes, *, patience_s: float = 60.0) -> None:
        self._ray_port = _RayPort(handle, patience_s)
        super().__init__(self._ray_port, ledger_id, patience_s=patience_s)
        self.handle = handle

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self)._again, (self.handle, self.ledger_id, self._patience_s))

    @classmethod
    def _again(cls, handle: Any, ledger_id: bytes, patience_s: float) -> RayLedger:
        return cls(handle, ledger_id, patience_s=patience_s)

    @classmethod
    def start(
        cls,
        path: Path | str,
        genesis: Genesis,
        certifier: Certifier,
        *,
        builder: Account | None = None,
        builders: Sequence[BuilderPort] = (),
        name: str | None = None,
        namespace: str | None = None,
        resources: dict[str, float] | None = None,
        patience_s: float = 60.0,
    ) -> RayLedger:
        """Start the actor (restarted for ever when its process dies, never detached).

        ``builder`` signs its blocks (a fresh key when absent), ``builders`` are asked to bid for
        each block too; ``resources`` pins it to the machine that has the file. Returns at once;
        the file is opened by the first call.

        Raises:
            LedgerUnavailable: an actor of this name exists already.
        """
        options: dict[str, Any] = {
            "max_restarts": -1,
            "max_task_retries": 0,
            "num_cpus": 0,
            "name": name,
            "namespace": namespace,
            "resources": resources,
        }
        options = {key: value for key, value in options.items() if value is not None}
        groups = {"reads": READS, "writes": WRITES, "waits": MAX_WAITS + _REFUSALS}
        remote = cast(Any, ray.remote)(concurrency_groups=groups)(LedgerActor)
        try:
            handle = remote.options(**options).remote(
                str(path),
                genesis,
                certifier,
                builder.secret if builder is not None else None,
                tuple(builders),
            )
        except ValueError as error:
            raise LedgerUnavailable(
                f"a ledger actor named {name!r} is already running on this cluster"
            ) from error
        return cls(handle, genesis.ledger_id, patience_s=patience_s)

    @classmethod
    def connect(
        cls,
        name: str,
        ledger_id: bytes,
        *,
        namespace: str | None = None,
        patience_s: float = 60.0,
    ) -> RayLedger:
        """A client of a running ledger actor.

        Raises:
            LedgerUnavailable: there is no such actor.
        """
        try:
            handle = ray.get_actor(name, namespace=namespace)
        except ValueError as error:
            raise LedgerUnavailable(f"no ledger actor named {name!r} on this cluster") from error
        return cls(handle, ledger_id, patience_s=patience_s)

    async def metrics(self) -> dict[str, int]:
        """Counts since the actor's start, and where the ledger stands (see
        :meth:`LedgerService.metrics`)."""
        return await self._ray_port.metrics()

    async def history(self, from_height: int) -> Sequence[bytes]:
        """Certified blocks from a height on: a follower's source."""
        return await self._ray_port.history(from_height)

    async def prove_entry(self, key: bytes) -> StateEntry:
        """What the state holds under a key, against the newest certified block."""
        return await self._ray_port.prove_entry(key)

    async def close(self) -> None:
        """Stop the actor cleanly and end its process."""
        with contextlib.suppress(RayActorError, RayTaskError, TimeoutError):
            await asyncio.wait_for(self.handle.close.remote(), 30)
        ray.kill(self.handle, no_restart=True)

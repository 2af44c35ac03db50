"""The ledger as a Ray actor, and the client that survives its restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

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

_log = logging.getLogger(__name__)
_READS: Final = frozenset(
    {
        "account",
        "attestation_receipt",
        "committee",
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
_WRITES: Final = frozenset({"enqueue", "wait"})


class LedgerActor:
    """Process around one :class:`~daifi_flows.ledger.LedgerService`; see :meth:`RayLedger.start`.

    Opened by the first call after each start, so that a damaged file is an error to the caller
    and not an endless restart.
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
        self._opening = asyncio.Lock()
        self._open = False

    async def call(self, method: str, *args: Any) -> Any:
        """Call one of the service's methods by name.

        Raises:
            DaifiError: as the service does.
        """
        if method not in _READS | _WRITES:
            raise ValueError(f"the ledger actor has no method {method!r}")
        await self._ready()
        return await getattr(self._service, method)(*args)

    async def _ready(self) -> None:
        async with self._opening:
            if not self._open:
                await self._service.start()
                collect_rarely()
                self._open = True

    async def close(self) -> None:
        """Stop cleanly: the block in progress may become final; what was answered is on disk."""
        async with self._opening:
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
        async def once() -> Any:
            try:
                return await self._handle.call.remote(method, *args)
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
        return await self._call("enqueue", raw)

    async def wait(self, tx_id: bytes) -> Receipt:
        return await self._call("wait", tx_id)

    async def next_nonce(self, address: str) -> int:
        return await self._call("next_nonce", address)

    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]:
        return await self._call("head")

    async def committee(self) -> Committee:
        return await self._call("committee")

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
            "max_concurrency": 1000,
            "name": name,
            "namespace": namespace,
            "resources": resources,
        }
        options = {key: value for key, value in options.items() if value is not None}
        remote = cast(Any, ray.remote(LedgerActor))
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

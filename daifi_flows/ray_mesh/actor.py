"""Nodes as Ray actors, and the client through which a fabric uses them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from daifi_flows.cnft import Content, Materials, ModelRef, NodeInfo, NodeResult, TaskSpec
from daifi_flows.errors import DaifiError, EngineError, MeshError, NodeLost
from daifi_flows.ray_mesh._node import NodeConfig, NodeService, parse_reply, step_log
from daifi_flows.ray_mesh._router import explain, rank
from daifi_flows.ray_mesh.engines import DEFAULT_THREADS
from daifi_flows.ray_mesh.engines._engine import Control, EngineDied

__all__ = ["Mesh", "NodeActor", "NodeHealth"]

logger = logging.getLogger(__name__)

_PREFIX: Final = "daifi-node-"
_CALLS: Final = 64
"""Concurrent calls of one node actor: health and cancel answer while steps run."""
_STEPS: Final = 8
"""Steps running at once on one node; more wait."""
_BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
"""Pauses while Ray restarts an actor (FACTS: two of 1 s were too few)."""
_FAREWELL_S: Final = 5.0


class NodeActor:
    """One node: an account, its engines, and a thread for each running step.

    Made by :class:`Mesh` with ``max_restarts=-1, max_task_retries=0``: Ray brings a dead node back,
    and never runs a step a second time behind the ledger's back.
    """

    def __init__(self, config: NodeConfig) -> None:
        # Ray gives workers one OpenMP thread per requested CPU; torch is not imported yet.
        os.environ["OMP_NUM_THREADS"] = str(config.threads or DEFAULT_THREADS)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning starves busy machines
        self._service = NodeService(config)
        self._pool = ThreadPoolExecutor(_STEPS, thread_name_prefix="daifi-step")
        if config.warm:
            threading.Thread(target=self._warm_quietly, name="daifi-warm", daemon=True).start()

    def _warm_quietly(self) -> None:
        try:
            self._service.warm(self._service.config.warm)
        except DaifiError as error:  # the step that needs the model reports it
            logger.warning("warming up failed: %s", error)

    async def execute(
        self,
        spec: bytes,
        input: bytes,
        materials: Materials,
        log_context: Mapping[str, Any] | None,
    ) -> bytes:
        """Run one step; see :meth:`NodeService.answer`. Cancelling the call stops the step."""
        cancelled = threading.Event()

        def work() -> bytes:
            with step_log(log_context) as log:
                return self._service.answer(spec, input, materials, Control(cancelled, log))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        except EngineDied as error:
            logger.error("%s: this node restarts", error)
            os._exit(1)

    async def warm(self, refs: tuple[ModelRef, ...]) -> tuple[str, str] | None:
        """Load models; the failure's kind and message, if any."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._service.warm, refs)
        except DaifiError as error:
            return type(error).__name__, str(error)
        return None

    async def build_policy(self, tools: Sequence[tuple[str, str]]) -> bytes | tuple[str, str]:
        """ONNX policy over tools (name, description), or the failure's kind and message."""
        try:
            return await asyncio.get_running_loop().run_in_executor(
                None, self._service.build_policy, tools
            )
        except DaifiError as error:
            return type(error).__name__, str(error)

    async def info(self) -> bytes:
        """Canonical :class:`NodeInfo`."""
        return self._service.config.info.canonical()

    async def ping(self) -> tuple[int, int]:
        """Process id and number of running steps."""
        return os.getpid(), self._service.running

    async def cancel(self, task_id: bytes) -> int:
        """Stop every execution of a task; returns how many were running."""
        return self._service.cancel(task_id)

    async def stop(self) -> None:
        """Stop all steps and what the engines started."""
        await asyncio.get_running_loop().run_in_executor(None, self._service.close)


@dataclass(frozen=True)
class NodeHealth:
    """What a node says about itself."""

    node: NodeInfo
    pid: int
    running: int


class Mesh:
    """The nodes a fabric uses. Ray must be initialised; not tied to an event loop.

    Make one with :meth:`start` (nodes that end with this Mesh) or :meth:`find` (nodes that others
    run).
    """

    def __init__(self, handles: Mapping[NodeInfo, Any], *, owned: bool) -> None:
        self._nodes = {node.address: (node, handle) for node, handle in handles.items()}
        self._owned = owned
        self._load: Counter[str] = Counter()

    @classmethod
    async def start(
        cls,
        configs: Sequence[NodeConfig],
        *,
        namespace: str,
        lifetime: Literal["driver", "detached"] = "driver",
        timeout_s: float = 120.0,
    ) -> Mesh:
        """Start one actor a configuration and wait until all answer.

        Args:
            namespace: Ray namespace; two fabrics on one cluster use two.
            lifetime: ``driver``: the nodes end with this process, however it ends.

        Raises:
            MeshError: a node did not come up; those that did are stopped again.
        """
        if not configs:
            raise MeshError("a mesh needs at least one node")
        handles: dict[NodeInfo, Any] = {}
        mesh = cls({}, owned=True)
        try:
            for config in configs:
                actor: Any = ray.remote(NodeActor)
                handles[config.info] = actor.options(
                    name=_PREFIX + config.name,
                    namespace=namespace,
                    lifetime="detached" if lifetime == "detached" else None,
                    max_restarts=-1,
                    max_task_retries=0,
                    max_concurrency=_CALLS,
                    num_cpus=config.cpus,
                    num_gpus=config.gpus,
                ).remote(config)
            mesh = cls(handles, owned=True)
            if len(mesh._nodes) != len(configs):
                raise MeshError("two nodes have the same account: give each its own key")
            await asyncio.gather(*(mesh._ready(node, timeout_s) for node in handles))
        except BaseException as error:
            for handle in handles.values():
                ray.kill(handle, no_restart=True)
            if isinstance(error, ValueError):  # Ray: the name is taken
                raise MeshError(
                    f"a node of that name already runs in namespace {namespace}: {error}"
                ) from error
            if isinstance(error, RayError):
                raise MeshError(f"a node could not start: {_line(error)}") from error
            raise
        return mesh

    @classmethod
    async def find(cls, *, namespace: str, timeout_s: float = 30.0) -> Mesh:
        """Use the nodes that already run in a namespace; closing leaves them running.

        Raises:
            MeshError: there is none.
        """
        listed: list[Any] = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        handles: dict[NodeInfo, Any] = {}
        for item in listed:
            if item["namespace"] != namespace or not str(item["name"]).startswith(_PREFIX):
                continue
            try:
                handle = ray.get_actor(item["name"], namespace=namespace)
                data = await _within(handle.info.remote(), timeout_s)
                handles[NodeInfo.from_canonical(data)] = handle
            except (RayError, ValueError, TimeoutError, DaifiError) as error:
                logger.warning("node %s does not answer: %s", item["name"], _line(error))
        if not handles:
            raise MeshError(f"no node runs in Ray namespace {namespace!r}: start one first")
        return cls(handles, owned=False)

    async def nodes(self) -> list[NodeInfo]:
        """All nodes of this mesh, whether or not they answer now."""
        return [node for node, _ in self._nodes.values()]

    def route(
        self,
        spec: TaskSpec,
        exclude: Collection[str] = (),
        reputation: Mapping[str, int] | None = None,
    ) -> tuple[NodeInfo, str]:
        """The best node for a step, and why.

        Args:
            exclude: addresses that may not run it.
            reputation: parts per million by address.

        Raises:
            MeshError: no node is left.
        """
        ranked = self._rank(spec, exclude, reputation)
        return ranked[0].node, explain(ranked)

    async def candidates(
        self,
        spec: TaskSpec,
        exclude: Collection[str] = (),
        reputation: Mapping[str, int] | None = None,
    ) -> list[NodeInfo]:
        """Nodes that can run a step, best first.

        Raises:
            MeshError: there is none.
        """
        return [item.node for item in self._rank(spec, exclude, reputation)]

    def _rank(
        self, spec: TaskSpec, exclude: Collection[str], reputation: Mapping[str, int] | None
    ) -> list[Any]:
        known: Iterable[NodeInfo] = (node for node, _ in self._nodes.values())
        return rank(spec, known, exclude=exclude, reputation=reputation, load=self._load)

    async def execute(
        self,
        node: NodeInfo,
        spec: TaskSpec,
        input: Content,
        materials: Materials | None = None,
        *,
        timeout_s: float,
        log_context: Mapping[str, Any] | None = None,
    ) -> NodeResult:
        """Run a step on a node. However this ends early, the work on the node is stopped.

        Args:
            timeout_s: seconds for the whole execution, proof and a node's restart included.
            log_context: opaque Prefect context; the node's lines appear under that task run.

        Raises:
            NodeLost: the node died, does not answer, or took longer than ``timeout_s``.
            EngineError, ModelError, ProofError, EncodingError: the node answered with a failure.
        """
        handle = self._handle(node)
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        self._load[node.address] += 1
        try:
            await self._ready(node, timeout_s)
            ref = handle.execute.remote(
                spec.canonical(), input.canonical(), materials or Materials(), log_context
            )
            try:
                reply = await _within(ref, max(ends - loop.time(), 0.001))
            except BaseException as error:
                self._stop(handle, ref, spec.task_id)
                if isinstance(error, TimeoutError):
                    raise NodeLost(
                        f"node {node.name} did not finish in {timeout_s:g} s; the step was "
                        "stopped there",
                        node=node.address,
                    ) from error
                if isinstance(error, RayTaskError):
                    raise EngineError(
                        f"node {node.name} failed on the step: {_line(error)}", node=node.address
                    ) from error
                if isinstance(error, RayError):
                    raise NodeLost(
                        f"node {node.name} was lost while it ran the step: {_line(error)}",
                        node=node.address,
                    ) from error
                raise
        finally:
            self._load[node.address] -= 1
        return await asyncio.to_thread(parse_reply, reply, node.name)

    def _stop(self, handle: Any, ref: Any, task_id: bytes) -> None:
        with contextlib.suppress(RayError, ValueError):
            ray.cancel(ref)
        with contextlib.suppress(RayError, ValueError):
            handle.cancel.remote(task_id)

    async def warm(self, refs: Sequence[ModelRef], timeout_s: float = 600.0) -> None:
        """Load models on every node that has their engine.

        Raises:
            EngineError, ModelError, NodeLost: a node cannot.
        """

        async def one(node: NodeInfo) -> None:
            mine = tuple(ref for ref in refs if ref.engine in node.engines)
            if not mine:
                return
            await self._ready(node, timeout_s)
            try:
                failure = await _within(self._handle(node).warm.remote(mine), timeout_s)
            except (RayError, TimeoutError) as error:
                raise NodeLost(
                    f"node {node.name} was lost while it loaded models: {_line(error)}",
                    node=node.address,
                ) from error
            if failure is not None:
                kind, message = failure
                raise _failure(kind)(f"node {node.name}: {message}", node=node.address)

        await asyncio.gather(*(one(node) for node, _ in self._nodes.values()))

    async def build_policy(
        self, tools: Sequence[tuple[str, str]], timeout_s: float = 300.0
    ) -> bytes:
        """ONNX policy over tools given as (name, description), built on the first node that can.

        What it returns is the caller's proposal: the committee checks the weights against the
        descriptions with its own embedding model.

        Raises:
            MeshError: no node has the ``onnx-policy`` engine, or the node was lost.
            EngineError, ModelError: the tools are out of bounds, or the node lacks the model.
        """
        for node, handle in self._nodes.values():
            if "onnx-policy" not in node.engines:
                continue
            await self._ready(node, timeout_s)
            try:
                built = await _within(handle.build_policy.remote(list(tools)), timeout_s)
            except (RayError, TimeoutError) as error:
                raise NodeLost(
                    f"node {node.name} was lost while it built a policy: {_line(error)}",
                    node=node.address,
                ) from error
            if isinstance(built, bytes):
                return built
            kind, message = built
            raise _failure(kind)(f"node {node.name}: {message}", node=node.address)
        raise MeshError("no node has the onnx-policy engine: start one that does")

    async def health(self, node: NodeInfo, timeout_s: float = 10.0) -> NodeHealth:
        """Whether a node answers now; waits while Ray restarts it.

        Raises:
            NodeLost: it does not answer in time.
        """
        pid, running = await self._ready(node, timeout_s)
        return NodeHealth(node, pid, running)

    async def close(self) -> None:
        """Stop the nodes that :meth:`start` started. Idempotent."""
        nodes, self._nodes = self._nodes, {}
        if not self._owned:
            return

        async def end(handle: Any) -> None:
            with contextlib.suppress(RayError, TimeoutError, ValueError):
                await _within(handle.stop.remote(), _FAREWELL_S)
            with contextlib.suppress(RayError, ValueError):
                ray.kill(handle, no_restart=True)

        await asyncio.gather(*(end(handle) for _, handle in nodes.values()))

    def _handle(self, node: NodeInfo) -> Any:
        found = self._nodes.get(node.address)
        if found is None:
            raise NodeLost(f"node {node.name} is not in this mesh", node=node.address)
        return found[1]

    async def _ready(self, node: NodeInfo, timeout_s: float) -> tuple[int, int]:
        """Wait until the node answers, through restarts."""
        handle = self._handle(node)
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        for attempt in range(1_000_000):
            left = ends - loop.time()
            try:
                pid, running = await _within(handle.ping.remote(), max(left, 0.001))
                return int(pid), int(running)
            except (RayActorError, TimeoutError) as error:
                pause = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                if isinstance(error, TimeoutError) or left <= pause or _is_final(error):
                    raise NodeLost(
                        f"node {node.name} does not answer: {_line(error)}", node=node.address
                    ) from error
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")


def _is_final(error: BaseException) -> bool:
    """Whether the constructor itself failed: a restart would fail the same way."""
    return "creation task" in str(error) or "__init__" in str(error)


def _failure(kind: str) -> type[DaifiError]:
    from daifi_flows import errors

    found = getattr(errors, kind, EngineError)
    return found if isinstance(found, type) and issubclass(found, DaifiError) else EngineError


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayTaskError) or _is_final(error):  # the cause is the last line
        return lines[-1] if lines else type(error).__name__
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


async def _plain(reference: Any) -> Any:
    return await reference


async def _within(reference: Awaitable[Any], timeout_s: float) -> Any:
    return await asyncio.wait_for(_plain(reference), timeout_s)

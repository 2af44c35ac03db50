"""A node without Ray: its account and engines, and one step from request to signed result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from daifi_flows.cnft import Content, Materials, ModelRef, NodeInfo, NodeResult, TaskSpec
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import (
    DaifiError,
    EncodingError,
    EngineError,
    ModelError,
    ProofError,
)
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, make_proof
from daifi_flows.ray_mesh._engines import make_engine
from daifi_flows.ray_mesh._models import manifest
from daifi_flows.ray_mesh.engines._engine import Control, Engine, EngineDied

__all__ = ["HONEST", "NodeConfig", "NodeService", "parse_reply", "step_log"]

logger = logging.getLogger("daifi_flows.node")

HONEST: Final = "honest"

_ERRORS: Final[Mapping[str, type[DaifiError]]] = {
    item.__name__: item for item in (EngineError, ModelError, ProofError, EncodingError)
}
"""Failures a node may report; anything else it says is an engine failure."""

_MAX_REPLY: Final = 256 * 1024 * 1024
_MAX_MESSAGE: Final = 2_000


@dataclass(frozen=True)
class NodeConfig:
    """How one node runs. Plain data: it is the Ray actor's only argument, restarts included.

    Attributes:
        secret: the node's account key, 32 bytes.
        home: the node's own cache folder.
        price_wei: flat price of one step.
        device: what people see (``cpu``, ``H100``).
        behaviour: ``honest``, or a :class:`~daifi_flows.ray_mesh.Dishonesty` kind.
        warm: models loaded in the background when the node starts or restarts.
        cpus, gpus: capacity that Ray counts for this node.
        threads: CPU threads of the node's process; by default half the machine's cores.
    """

    name: str
    secret: bytes = field(repr=False)
    home: Path
    price_wei: int
    engines: tuple[str, ...] = ("transformers", "retrieval", "onnx-policy", "function")
    device: str = "cpu"
    embedding_model: str = "all-minilm-l6-v2"
    behaviour: str = HONEST
    warm: tuple[ModelRef, ...] = ()
    cpus: float = 1
    gpus: float = 0
    threads: int | None = None

    @property
    def info(self) -> NodeInfo:
        """The node as the router sees it."""
        return NodeInfo(
            name=self.name,
            address=Account(self.secret).address,
            device=self.device,
            engines=self.engines,
            price_wei=self.price_wei,
        )


class NodeService:
    """Runs steps on this machine. Blocking calls; safe to use from several threads.

    Raises:
        EngineError: the configuration names an unknown engine or behaviour.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.account = Account(config.secret)
        self._engines = {
            name: make_engine(name, config.home, config.embedding_model, config.threads)
            for name in config.engines
        }
        if config.behaviour != HONEST:
            self._turn(config.behaviour)
        self._lock = threading.Lock()
        self._running: dict[bytes, list[Control]] = {}

    def _turn(self, kind: str) -> None:
        from daifi_flows.ray_mesh._adversary import dishonest
        from daifi_flows.ray_mesh.engines.transformers import TransformersEngine

        honest = self._engines.get(TransformersEngine.name)
        if not isinstance(honest, TransformersEngine):
            raise EngineError(f"a {kind} node cheats on LLM steps: give it the transformers engine")
        self._engines[TransformersEngine.name] = dishonest(honest, kind)

    @property
    def running(self) -> int:
        """Steps running now."""
        with self._lock:
            return sum(len(controls) for controls in self._running.values())

    def warm(self, refs: tuple[ModelRef, ...]) -> None:
        """Load models before a step needs them.

        Raises:
            EngineError, ModelError: one of them cannot be had.
        """
        for ref in refs:
            engine = self._engine(ref.engine)
            engine.load(engine.model(ref, Materials()))

    def build_policy(self, tools: Sequence[tuple[str, str]]) -> bytes:
        """ONNX policy over tools given as (name, description).

        Raises:
            EngineError: no ``onnx-policy`` engine here, or the tools are out of bounds.
        """
        from daifi_flows.ray_mesh.engines.onnx_policy import OnnxPolicyEngine, Tool

        engine = self._engine(OnnxPolicyEngine.name)
        assert isinstance(engine, OnnxPolicyEngine)
        return engine.build([Tool(name, description) for name, description in tools])

    def execute(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> NodeResult:
        """Run a step and prove it.

        Raises:
            EngineError, ModelError, ProofError: the step cannot be run or proven here.
            StepCancelled: ``control`` or :meth:`cancel` stopped it.
        """
        task_id = spec.task_id
        with self._lock:
            self._running.setdefault(task_id, []).append(control)
        try:
            if input.cid != spec.input_cid:
                raise EngineError("the input that came with the step is not the one it names")
            engine = self._engine(spec.model.engine)
            model = engine.model(spec.model, materials)
            control.log(f"{spec.kind}: {spec.model.name} on {self.config.name}")
            execution = engine.run(spec, input, materials, control)
            control.check()
            workdir = self.config.home / "proofs"
            workdir.mkdir(parents=True, exist_ok=True)
            claim = Claim(spec, input, execution.output, materials)
            proof = make_proof(claim, execution, self.account, workdir)
            control.check()
            usage = execution.usage
            control.log(
                f"{spec.kind}: done in {usage.duration_ms} ms, proof {spec.scheme} of "
                f"{len(proof.payload)} bytes"
            )
            return NodeResult(
                output=execution.output, proof=proof, manifest=manifest(model, self.account)
            )
        except DaifiError:
            raise
        except (Exception, MemoryError) as error:
            raise EngineError(
                f"{spec.model.engine} failed on this step: {type(error).__name__}: {error}"
            ) from error
        finally:
            with self._lock:
                controls = self._running[task_id]
                controls.remove(control)
                if not controls:
                    del self._running[task_id]

    def answer(
        self, spec_bytes: bytes, input_bytes: bytes, materials: Materials, control: Control
    ) -> bytes:
        """:meth:`execute` between bytes: failures become part of the reply.

        Raises:
            EngineDied: the node cannot go on and must be restarted.
        """
        try:
            spec = TaskSpec.from_canonical(spec_bytes)
            input = Content.from_canonical(input_bytes)
            result = self.execute(spec, input, materials, control)
        except EngineDied:
            raise
        except DaifiError as error:
            logger.warning("%s", error)
            kind = next((name for name, item in _ERRORS.items() if isinstance(error, item)), "")
            return canonical({"error": kind, "message": str(error)[:_MAX_MESSAGE]})
        return canonical({"result": result.canonical()})

    def cancel(self, task_id: bytes) -> int:
        """Stop every execution of a task; returns how many were running."""
        with self._lock:
            controls = list(self._running.get(task_id, ()))
        for control in controls:
            control.cancelled.set()
        return len(controls)

    def close(self) -> None:
        """Stop all steps and free the engines. Idempotent."""
        with self._lock:
            controls = [control for found in self._running.values() for control in found]
        for control in controls:
            control.cancelled.set()
        for engine in self._engines.values():
            engine.close()

    def _engine(self, name: str) -> Engine:
        engine = self._engines.get(name)
        if engine is None:
            raise EngineError(
                f"node {self.config.name} has no {name!r} engine; it has {', '.join(self._engines)}"
            )
        return engine


def parse_reply(data: Any, node: str) -> NodeResult:
    """What a node answered, parsed as the stranger's bytes they are.

    Raises:
        EngineError, ModelError, ProofError, EncodingError: what the node reports, or that it sent
            something else than a result.
    """
    if not isinstance(data, bytes):
        raise EncodingError(f"node {node} sent a {type(data).__name__}, not bytes")
    try:
        value = decode_canonical(data, max_bytes=_MAX_REPLY)
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        match fields:
            case {"result": bytes(result)} if len(fields) == 1:
                return NodeResult.from_canonical(result, max_bytes=_MAX_REPLY)
            case {"error": str(kind), "message": str(message)} if len(fields) == 2:
                pass
            case _:
                raise EncodingError("neither a result nor an error")
    except EncodingError as error:
        raise EncodingError(f"node {node} sent something that is not a result: {error}") from error
    raise _ERRORS.get(kind, EngineError)(f"node {node}: {message[:_MAX_MESSAGE]}", node=node)


@contextmanager
def step_log(context: Mapping[str, Any] | None) -> Generator[Callable[[str], None]]:
    """Where a step's progress goes: the Prefect task run of ``context``, or this process's log.

    Logging is never a reason for a step to fail: a context that cannot be used is left aside. So
    is one without the address of a Prefect server, for which Prefect would start a server here.
    """

    def plain(message: str) -> None:
        logger.info("%s", message)

    if not context or not _api_url(context):
        yield plain
        return
    try:
        from prefect.context import hydrated_context
        from prefect.logging import get_run_logger

        entered = hydrated_context(dict(context))
        entered.__enter__()
    except Exception as error:
        logger.warning("the step's Prefect context cannot be used here: %s", error)
        yield plain
        return
    try:
        run_logger = get_run_logger()
        yield lambda message: run_logger.info("%s", message)
    finally:
        entered.__exit__(None, None, None)


def _api_url(context: Mapping[str, Any]) -> str | None:
    value: Any = context
    for key in ("settings_context", "settings", "api", "url"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) and value else None

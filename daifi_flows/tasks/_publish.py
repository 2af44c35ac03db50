"""Shows settled steps in Prefect: a card per cNFT, one provenance graph per flow run, events.

The money has moved by then, so nothing here may fail a step: what goes wrong is a warning in the
task run's log.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event

from daifi_flows.cnft import ComputeNFT
from daifi_flows.tasks._logs import StepLogger
from daifi_flows.tasks._markdown import GraphNode, card, graph_markdown, graph_svg, slug

__all__ = ["publish", "publish_slashes"]

_TIMEOUT_S: Final = 20.0
"""A Prefect server that is slower than this loses the card, not the step."""

_MAX_FLOW_RUNS: Final = 64
_MAX_GRAPH_NODES: Final = 200
"""More would be unreadable, and an artifact is rewritten at every step."""


@dataclass
class _Graph:
    """Provenance of one flow run while this process works on it.

    Steps of one flow may run on several event loops, one a thread. One of them writes at a time,
    and goes on until it has written what the others added meanwhile.
    """

    nodes: dict[bytes, GraphNode] = field(default_factory=dict[bytes, GraphNode])
    artifacts: dict[str, UUID] = field(default_factory=dict[str, UUID])
    written: int = 0
    writing: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held for the flags only, never across an await."""

    def add(self, node: GraphNode) -> bool:
        """Whether the caller must write; else somebody else will, or the graph is full."""
        with self.lock:
            if node.token_id not in self.nodes and len(self.nodes) == _MAX_GRAPH_NODES:
                return False
            self.nodes[node.token_id] = node
            first, self.writing = not self.writing, True
            return first

    def unwritten(self) -> list[GraphNode]:
        """What to write next; nothing ends the caller's turn."""
        with self.lock:
            if self.written == len(self.nodes):
                self.writing = False
                return []
            return list(self.nodes.values())

    def stop_writing(self) -> None:
        """A writer failed: the next step tries again."""
        with self.lock:
            self.writing = False


_graphs: OrderedDict[UUID, _Graph] = OrderedDict()
_graphs_lock = threading.Lock()


async def publish(nft: ComputeNFT, logger: StepLogger) -> None:
    """Card, graph and events of a settled step; a no-op outside a Prefect run."""
    context = TaskRunContext.get()
    if context is None:
        return
    try:
        _emit_minted(nft)
        publish_slashes(nft.name, nft.task_id, nft.attempts, logger)
        async with asyncio.timeout(_TIMEOUT_S), get_client() as client:
            await client.create_artifact(
                ArtifactCreate(
                    key=f"cnft-{slug(nft.name)}-{nft.token_id.hex()[:12]}",
                    type="markdown",
                    description=f"Compute NFT of step {nft.name}",
                    data=card(nft),
                    task_run_id=context.task_run.id,
                    flow_run_id=context.task_run.flow_run_id,
                )
            )
            if context.task_run.flow_run_id is not None:
                await _publish_graph(client, context.task_run.flow_run_id, nft)
    except Exception as error:
        logger.warning(
            "the step is settled, but Prefect did not take its artifacts or events: %s: %s",
            type(error).__name__,
            error,
        )


async def _publish_graph(client: PrefectClient, flow_run_id: UUID, nft: ComputeNFT) -> None:
    with _graphs_lock:
        graph = _graphs.setdefault(flow_run_id, _Graph())
        _graphs.move_to_end(flow_run_id)
        while len(_graphs) > _MAX_FLOW_RUNS:
            _graphs.popitem(last=False)
    if not graph.add(GraphNode.of(nft)):
        return
    flow = FlowRunContext.get()
    name = flow.flow.name if flow is not None and flow.flow is not None else "flow"
    try:
        while nodes := graph.unwritten():
            await _write_graph(client, flow_run_id, name, graph.artifacts, nodes)
            graph.written = len(nodes)
    except BaseException:
        graph.stop_writing()
        raise


async def _write_graph(
    client: PrefectClient,
    flow_run_id: UUID,
    name: str,
    artifacts: dict[str, UUID],
    nodes: Sequence[GraphNode],
) -> None:
    """As Markdown with Mermaid, and as an image for the UI that does not draw Mermaid."""
    svg = base64.b64encode(graph_svg(nodes).encode()).decode()
    for kind, suffix, data in (
        ("markdown", "provenance", graph_markdown(name, nodes)),
        ("image", "provenance-image", f"data:image/svg+xml;base64,{svg}"),
    ):
        known = artifacts.get(kind)
        if known is not None:
            await client.update_artifact(known, ArtifactUpdate(data=data))
            continue
        created = await client.create_artifact(
            ArtifactCreate(
                key=f"{slug(name)}-{suffix}",
                type=kind,
                description=f"Which compute NFT of {name} was built on which",
                data=data,
                flow_run_id=flow_run_id,
            )
        )
        artifacts[kind] = created.id


def publish_slashes(
    name: str, task_id: bytes, attempts: Sequence[Mapping[str, Any]], logger: StepLogger
) -> None:
    """One ``daifi.node.slashed`` event for each attempt that cost its node stake."""
    try:
        for attempt in attempts:
            slashed_wei = int(attempt.get("slashed_wei", 0))
            if slashed_wei == 0:
                continue
            node = str(attempt.get("address") or attempt.get("node", "unknown"))
            emit_event(
                event="daifi.node.slashed",
                resource={
                    "prefect.resource.id": f"daifi.node.{node}",
                    "prefect.resource.name": str(attempt.get("node", node)),
                },
                related=_related(),
                payload={
                    "step": name,
                    "task_id": "0x" + task_id.hex(),
                    "reason": str(attempt.get("reason", "")),
                    "slashed_wei": str(slashed_wei),
                },
            )
    except Exception as error:
        logger.warning("Prefect did not take a slashing event: %s", error)


def _emit_minted(nft: ComputeNFT) -> None:
    emit_event(
        event="daifi.cnft.minted",
        resource={
            "prefect.resource.id": _resource_id(nft.token_id),
            "prefect.resource.name": nft.name,
            "daifi.owner": nft.owner,
        },
        related=[
            *_related(),
            *(
                {"prefect.resource.id": _resource_id(parent), "prefect.resource.role": "parent"}
                for parent in nft.parents
            ),
            {
                "prefect.resource.id": f"daifi.node.{nft.attestation.node}",
                "prefect.resource.role": "node",
            },
        ],
        payload={
            "step": nft.name,
            "kind": nft.spec.kind,
            "task_id": "0x" + nft.task_id.hex(),
            "model": nft.spec.model.name,
            "scheme": nft.spec.scheme,
            "basis": nft.attestation.basis.value,
            "confidence_ppm": nft.attestation.confidence_ppm,
            "block": nft.receipt.header.height,
            "bundle_cid": nft.bundle_cid,
        },
    )


def _resource_id(token_id: bytes) -> str:
    return f"daifi.cnft.0x{token_id.hex()}"


def _related() -> list[dict[str, str]]:
    """The task run and flow run the event belongs to."""
    context = TaskRunContext.get()
    if context is None:
        return []
    run = context.task_run
    related = [("prefect.task-run", str(run.id), "task-run")]
    if run.flow_run_id is not None:
        related.append(("prefect.flow-run", str(run.flow_run_id), "flow-run"))
    return [
        {"prefect.resource.id": f"{kind}.{id_}", "prefect.resource.role": role}
        for kind, id_, role in related
    ]

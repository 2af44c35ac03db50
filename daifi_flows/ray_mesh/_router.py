"""Ranks nodes for a step by price, reputation and load; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from daifi_flows.cnft import PPM, NodeInfo, TaskSpec
from daifi_flows.errors import MeshError

__all__ = ["NEW_NODE_PPM", "Candidate", "explain", "rank"]

NEW_NODE_PPM: Final = 500_000
"""Reputation assumed of a node nobody has reviewed: neither trusted nor shunned."""


@dataclass(frozen=True)
class Candidate:
    """A node that can run the step, and what its rank follows from.

    Attributes:
        load: steps running on it now.
        cost_wei: price divided by the chance that the work is good, times one plus the load: what
            a good answer is expected to cost, waiting included.
    """

    node: NodeInfo
    reputation_ppm: int
    load: int
    cost_wei: int


def rank(
    spec: TaskSpec,
    nodes: Iterable[NodeInfo],
    *,
    exclude: Collection[str] = (),
    reputation: Mapping[str, int] | None = None,
    load: Mapping[str, int] | None = None,
) -> list[Candidate]:
    """Nodes that can run ``spec``, best first; equals are ordered by address.

    Args:
        exclude: addresses that may not run this task.
        reputation: parts per million by address; a node not named counts as new.
        load: running steps by address.

    Raises:
        MeshError: no node is left; says why each was passed over.
    """
    standing, busy = reputation or {}, load or {}
    found: list[Candidate] = []
    passed: list[str] = []
    for node in nodes:
        if spec.model.engine not in node.engines:
            passed.append(f"{node.name} has no {spec.model.engine} engine")
        elif node.address in exclude:
            passed.append(f"{node.name} is barred from this task")
        elif node.price_wei > spec.max_price_wei:
            passed.append(f"{node.name} asks {node.price_wei} wei, over the step's limit")
        else:
            ppm = min(max(standing.get(node.address, NEW_NODE_PPM), 1), PPM)
            running = max(busy.get(node.address, 0), 0)
            # A free node still has a rank: one wei keeps reputation and load in the product.
            cost = max(node.price_wei, 1) * PPM * (1 + running) // ppm
            found.append(Candidate(node, ppm, running, cost))
    if not found:
        why = "; ".join(passed) or "the mesh has no nodes"
        raise MeshError(f"no node can run this {spec.kind} step: {why}", passed=passed)
    return sorted(found, key=lambda item: (item.cost_wei, -item.reputation_ppm, item.node.address))


def explain(candidates: list[Candidate]) -> str:
    """Why the first candidate was chosen, as a sentence."""
    best = candidates[0]
    facts = (
        f"{best.node.price_wei / 10**18:g} DAi, reputation {best.reputation_ppm / PPM:.2f}, "
        f"{best.load} running"
    )
    if len(candidates) == 1:
        return f"the only node that can run it ({facts})"
    second = candidates[1]
    reasons = [
        text
        for applies, text in (
            (best.node.price_wei < second.node.price_wei, "cheaper"),
            (best.reputation_ppm > second.reputation_ppm, "better reputation"),
            (best.load < second.load, "less busy"),
        )
        if applies
    ]
    because = " and ".join(reasons) or "first by address among equals"
    return f"best of {len(candidates)} ({facts}): {because} than {second.node.name}"

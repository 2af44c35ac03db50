"""The router prefers cheap, reputed, idle nodes and says why."""

from __future__ import annotations

from typing import Any

import pytest

from daifi_flows.cnft import Content, ModelRef, NodeInfo
from daifi_flows.errors import MeshError
from daifi_flows.keys import Account
from daifi_flows.ray_mesh._router import explain, rank


def node(name: str, price_wei: int = 100, engines: tuple[str, ...] = ("transformers",)) -> NodeInfo:
    return NodeInfo(
        name=name,
        address=Account.from_seed(name.encode()).address,
        device="cpu",
        engines=engines,
        price_wei=price_wei,
    )


A, B = node("a"), node("b")


@pytest.fixture
def spec(make_spec: Any) -> Any:
    ref = ModelRef(name="m", digest=bytes(32), engine="transformers", precision="bf16")
    return make_spec(ref, Content.text("x", bytes(32)), max_price_wei=1_000)


@pytest.mark.parametrize(
    ("nodes", "reputation", "load", "best", "why"),
    [
        ([node("a", 90), B], {}, {}, "a", "cheaper"),
        ([A, node("b", 90)], {}, {}, "b", "cheaper"),
        ([A, B], {A.address: 600_000, B.address: 900_000}, {}, "b", "better reputation"),
        ([A, B], {}, {A.address: 1}, "b", "less busy"),
        ([node("a", 50), B], {A.address: 200_000, B.address: 900_000}, {}, "b", "reputation"),
        ([node("a", 0), node("b", 0)], {B.address: 900_000}, {}, "b", "better reputation"),
        ([A], {}, {}, "a", "only node"),
        ([A, B], {A.address: 0, B.address: 1}, {}, None, "equals"),
    ],
)
def test_the_best_node_is_chosen_and_explained(
    spec: Any, nodes: Any, reputation: Any, load: Any, best: str | None, why: str
) -> None:
    found = rank(spec, nodes, reputation=reputation, load=load)
    assert best is None or found[0].node.name == best
    assert why in explain(found)
    again = rank(spec, nodes[::-1], reputation=reputation, load=load)
    assert [item.node for item in again] == [item.node for item in found]


def test_barred_unfit_and_dear_nodes_are_passed_over_with_a_reason(spec: Any) -> None:
    unfit, dear = node("c", engines=("retrieval",)), node("d", 2_000)
    assert [item.node for item in rank(spec, [A, B, unfit, dear], exclude={A.address})] == [B]
    with pytest.raises(MeshError) as caught:
        rank(spec, [A, unfit, dear], exclude=(A.address,))
    for part in ("a is barred", "c has no transformers", "d asks 2000 wei"):
        assert part in str(caught.value)
    with pytest.raises(MeshError, match="no nodes"):
        rank(spec, [])

"""Nodes on Ray: run, time out, cancel, die and come back, close."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from daifi_flows.cnft import Content, Materials, ModelRef, NodeInfo, Sampling, TaskSpec
from daifi_flows.errors import EngineError, MeshError, ModelError, NodeLost
from daifi_flows.ray_mesh import Mesh, NodeConfig

pytestmark = pytest.mark.slow

NAMESPACE = "test-ray-mesh"


@pytest.fixture
async def mesh(ray_cluster: None, model_cache: Path, tiny_ref: ModelRef) -> AsyncIterator[Mesh]:
    configs = [
        NodeConfig(
            f"node-{number}",
            bytes([number + 1]) * 32,
            model_cache / f"node-{number}",
            price_wei=100 + number,
            engines=("transformers", "function"),
            warm=(tiny_ref,) if number == 0 else (),
            threads=1,
        )
        for number in range(2)
    ]
    mesh = await Mesh.start(configs, namespace=NAMESPACE)
    yield mesh
    await mesh.close()


def forever_spec(make_spec: Any, ref: ModelRef) -> tuple[TaskSpec, Content, Materials]:
    """A step that only cancelling ends."""

    async def forever() -> None:
        import asyncio

        await asyncio.sleep(3600)

    import inspect
    import textwrap

    from daifi_flows.cnft import ModelFile, model_digest
    from daifi_flows.encoding import cid_of, sha256

    source = textwrap.dedent(inspect.getsource(forever)).encode()
    file = ModelFile(path="m:forever", size=len(source), sha256=sha256(source))
    model = ModelRef(
        name="m:forever", digest=model_digest((file,)), engine="function", precision="exact"
    )
    content = Content.json_value({"args": {}})
    spec = make_spec(model, content, kind="function", scheme="digest", sampling=None)
    return spec, content, Materials(blobs={cid_of(source): source}, function=forever)


async def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < ends, f"{what} did not happen"
        await asyncio.sleep(0.05)


async def test_a_step_runs_fails_times_out_and_survives_a_killed_node(
    mesh: Mesh,
    tiny_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
) -> None:
    content = ask()
    spec = make_spec(tiny_ref, content)
    node, why = mesh.route(spec)
    assert node.name == "node-0"
    assert "cheaper" in why
    await mesh.warm([tiny_ref])
    result = await mesh.execute(node, spec, content, timeout_s=120)
    assert result.proof.node == node.address
    other = (await mesh.candidates(spec, exclude={node.address}))[0]
    assert other.name == "node-1"
    with pytest.raises(MeshError, match="barred"):
        mesh.route(spec, {node.address, other.address})

    # A failure of the engine is not a lost node.
    gone = make_spec(tiny_ref.model_copy(update={"digest": bytes(32)}), content)
    with pytest.raises(ModelError, match="node-0"):
        await mesh.execute(node, gone, content, timeout_s=60)
    with pytest.raises(EngineError):
        await mesh.execute(node, spec, ask(), timeout_s=60)

    # A timeout stops the work on the node, and so does cancelling the caller.
    endless = forever_spec(make_spec, tiny_ref)
    with pytest.raises(NodeLost, match="did not finish in 2 s"):
        await mesh.execute(node, *endless, timeout_s=2)

    async def idle() -> bool:
        return (await mesh.health(node)).running == 0

    async def busy() -> bool:
        return (await mesh.health(node)).running == 1

    await until(idle, "stopping after the timeout")
    task = asyncio.create_task(mesh.execute(node, *endless, timeout_s=600))
    await until(busy, "starting")
    assert (await mesh.candidates(spec))[0].name == "node-1"  # the idle one is preferred now
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(idle, "stopping after the cancellation")

    # Killed in the middle of a step: lost, then back by itself under the same name.
    task = asyncio.create_task(mesh.execute(node, *endless, timeout_s=600))
    await until(busy, "starting")
    before = await mesh.health(node)
    os.kill(before.pid, signal.SIGKILL)
    with pytest.raises(NodeLost, match="node-0"):
        await task
    after = await mesh.health(node, timeout_s=120)
    assert after.pid != before.pid
    again = await mesh.execute(node, spec, content, timeout_s=120)
    assert again.output.value() == result.output.value()

    # Others find the nodes by namespace, and leave them running.
    found = await Mesh.find(namespace=NAMESPACE)
    assert sorted(item.name for item in await found.nodes()) == ["node-0", "node-1"]
    await found.close()
    assert (await mesh.health(node)).pid == after.pid
    stranger = NodeInfo(**(node.model_dump() | {"address": "0x" + "00" * 20}))
    with pytest.raises(NodeLost, match="not in this mesh"):
        await mesh.execute(stranger, spec, content, timeout_s=5)

    pids = [(await mesh.health(item)).pid for item in await mesh.nodes()]
    await mesh.close()

    async def ended() -> bool:
        return not any(Path(f"/proc/{pid}").exists() for pid in pids)

    await until(ended, "ending the node processes")
    with pytest.raises(MeshError, match="no node runs"):
        await Mesh.find(namespace=NAMESPACE)


async def test_a_mesh_that_cannot_start_leaves_nothing(ray_cluster: None, tmp_path: Path) -> None:
    good = NodeConfig("good", b"\x07" * 32, tmp_path / "a", 1, engines=("function",))
    bad = NodeConfig("bad", b"\x08" * 32, tmp_path / "b", 1, engines=("abacus",))
    with pytest.raises(MeshError, match="abacus"):
        await Mesh.start([good, bad], namespace="test-bad")
    with pytest.raises(MeshError, match="same account"):
        twin = NodeConfig("twin", b"\x07" * 32, tmp_path / "c", 1, engines=("function",))
        await Mesh.start([good, twin], namespace="test-twin")
    with pytest.raises(MeshError, match="at least one"):
        await Mesh.start([], namespace="test-none")

    async def gone() -> bool:
        named = ray.util.list_named_actors(all_namespaces=True)
        return not any(item["namespace"].startswith("test-bad") for item in named)

    await until(gone, "removing the good node")


@pytest.mark.parametrize("tokens", [8])
async def test_sampled_generation_on_a_node_is_reproducible(
    tokens: int, mesh: Mesh, tiny_ref: ModelRef, make_spec: Any, ask: Any
) -> None:
    content = ask()
    sampling = Sampling(temperature_ppm=800_000, seed=3, max_tokens=tokens)
    spec = make_spec(tiny_ref, content, sampling=sampling)
    results = [
        await mesh.execute(node, spec, content, timeout_s=120) for node in await mesh.nodes()
    ]
    assert results[0].output.value() == results[1].output.value()
    assert results[0].proof.node != results[1].proof.node

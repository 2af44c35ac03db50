"""What a run leaves in Prefect: cards, one provenance graph, events, logs; never a failed step."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from ray import cloudpickle

from daifi_flows._step import StepEvent, StepState
from daifi_flows.errors import StepFailed
from daifi_flows.settings import Settings
from daifi_flows.tasks import cnft_task, start_prefect
from daifi_flows.tasks._logs import log_context

SLASHED = {"node": "node-2", "address": "0xbad", "reason": "margin | too\nhigh", "slashed_wei": 5}


@cnft_task
def leaf(x: int) -> int:
    return x


@cnft_task(name="Fan_In!")
def fan_in(items: list[int]) -> int:
    return sum(items)


async def _artifacts(flow_run_id: UUID) -> list[Any]:
    async with get_client() as client:
        return await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )


async def _eventually(read: Callable[[], Awaitable[list[Any]]], count: int) -> list[Any]:
    """Events and logs reach the server from a thread of their own."""
    for _ in range(200):
        found = await read()
        if len(found) >= count:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"only {len(found)} of {count} arrived")


async def _events(prefix: str, flow_run_id: UUID, count: int) -> list[dict[str, Any]]:
    async def read() -> list[Any]:
        async with get_client() as client:
            answer = await client._client.post(
                "/events/filter",
                json={
                    "filter": {
                        "event": {"prefix": [prefix]},
                        "any_resource": {"id": [f"prefect.flow-run.{flow_run_id}"]},
                    }
                },
            )
            return answer.json()["events"]

    await EventsWorker.instance().drain()
    return await _eventually(read, count)


async def test_a_run_has_a_card_per_cnft_and_one_graph(fabric: Any) -> None:
    @flow(name="Fan out, in!")
    async def run() -> Any:
        leaves = [await leaf(1), await leaf(2)]
        return [*leaves, await fan_in(leaves)]

    state = await run(return_state=True)
    first, second, merged = await state.aresult()
    found = {item.key: item for item in await _artifacts(state.state_details.flow_run_id)}
    assert set(found) == {
        f"cnft-leaf-{first.token_id.hex()[:12]}",
        f"cnft-leaf-{second.token_id.hex()[:12]}",
        f"cnft-fan-in-{merged.token_id.hex()[:12]}",
        "fan-out-in-provenance",
        "fan-out-in-provenance-image",
    }
    card = found[f"cnft-fan-in-{merged.token_id.hex()[:12]}"]
    assert card.task_run_id is not None
    for part in (first.token_id.hex(), second.token_id.hex(), "17 seats", "99.90%", "1,234 bytes"):
        assert part in card.data
    graph = found["fan-out-in-provenance"].data
    for parent in (first, second):
        assert f"t{parent.token_id.hex()[:12]} --> t{merged.token_id.hex()[:12]}" in graph
    assert found["fan-out-in-provenance-image"].data.startswith("data:image/svg+xml;base64,")


def test_steps_that_run_in_threads_share_one_graph(fabric: Any) -> None:
    @flow(name="mapped")
    def run() -> Any:
        return leaf.map(list(range(6))).result()

    state = run(return_state=True)
    tokens = [nft.token_id.hex()[:12] for nft in state.result()]
    found = asyncio.run(_artifacts(state.state_details.flow_run_id))
    graphs = [item for item in found if item.key == "mapped-provenance"]
    assert len(graphs) == 1
    assert all(token in graphs[0].data for token in tokens)
    assert len(found) == 6 + 2


async def test_events_name_the_cnft_its_parents_the_node_and_the_run(fabric: Any) -> None:
    @flow
    async def run() -> Any:
        first = await leaf(1)
        return first, await fan_in([first])

    state = await run(return_state=True)
    first, second = await state.aresult()
    run_id = state.state_details.flow_run_id
    events = await _events("daifi.cnft.minted", run_id, 2)
    by_resource = {event["resource"]["prefect.resource.id"]: event for event in events}
    event = by_resource[f"daifi.cnft.0x{second.token_id.hex()}"]
    related = {
        item["prefect.resource.id"]: item["prefect.resource.role"] for item in event["related"]
    }
    assert related[f"daifi.cnft.0x{first.token_id.hex()}"] == "parent"
    assert related[f"daifi.node.{second.attestation.node}"] == "node"
    assert related[f"prefect.flow-run.{run_id}"] == "flow-run"
    assert "task-run" in related.values()
    assert len(related) == len(event["related"])
    assert event["payload"]["confidence_ppm"] == 999_000


async def test_a_slashed_node_is_an_event_and_a_row_of_the_card(fabric: Any) -> None:
    fabric.attempts = (SLASHED, {"node": "node-3", "reason": "lost", "slashed_wei": 0})

    @flow
    async def run() -> Any:
        return await leaf(1)

    state = await run(return_state=True)
    events = await _events("daifi.node.slashed", state.state_details.flow_run_id, 1)
    assert [event["payload"]["slashed_wei"] for event in events] == ["5"]
    assert events[0]["resource"]["prefect.resource.id"] == "daifi.node.0xbad"
    card = next(
        item for item in await _artifacts(state.state_details.flow_run_id) if "cnft-" in item.key
    )
    assert "margin \\| too high" in card.data
    assert "node-3" in card.data


async def test_a_failed_step_still_tells_who_was_slashed(fabric: Any) -> None:
    def fail(_request: Any) -> None:
        raise StepFailed("every allowed execution failed", attempts=[SLASHED])

    fabric.before = fail

    @flow
    async def run() -> Any:
        await leaf(1)

    state = await run(return_state=True)
    assert state.is_failed()
    events = await _events("daifi.node.slashed", state.state_details.flow_run_id, 1)
    assert events[0]["payload"]["step"] == "leaf"


@pytest.mark.parametrize("by_settings", [False, True])
async def test_a_sealed_output_is_not_shown(fabric: Any, by_settings: bool) -> None:
    fabric.settings = Settings(encrypt_outputs=by_settings)

    @cnft_task(encrypt=not by_settings)
    def secret(x: int) -> str:
        return "the sealed word"

    @flow
    async def run() -> Any:
        return await secret(1)

    state = await run(return_state=True)
    assert (await state.aresult()).output == "the sealed word"
    found = await _artifacts(state.state_details.flow_run_id)
    assert len(found) == 3
    assert not [item for item in found if "the sealed word" in item.data]


async def test_prefect_failing_after_settlement_does_not_fail_the_step(
    fabric: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> Any:
        raise ConnectionError("server is gone")

    monkeypatch.setattr("daifi_flows.tasks._publish.get_client", refuse)

    @flow
    async def run() -> Any:
        return await leaf(3)

    assert (await run()).output == 3
    assert "settled, but Prefect did not take" in caplog.text
    assert "server is gone" in caplog.text


async def test_each_steps_states_are_logged_under_its_own_task_run(
    fabric: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = StepEvent("other", "function", StepState.ROUTED, b"other", "not mine")

    async def overlap(_request: Any) -> None:
        await asyncio.sleep(0.05)
        for observer in list(fabric.observers):
            asyncio.get_running_loop().call_soon(observer, stranger)

    fabric.before = overlap

    @flow
    async def run() -> Any:
        return await asyncio.gather(leaf(10), leaf(20))

    await run()
    lines = [record for record in caplog.records if record.getMessage().startswith("settled: ")]
    assert sorted(record.getMessage() for record in lines) == [
        "settled: paid 10",
        "settled: paid 20",
    ]
    assert len({record.task_run_id for record in lines}) == 2
    assert fabric.observers == []


NODE = """
import pickle, sys
from prefect.context import hydrated_context
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL
with open(sys.argv[1], "rb") as file:
    context = pickle.load(file)
with hydrated_context(context):
    get_run_logger().info("a line from %s", "the node")
    print(PREFECT_API_URL.value())
"""


async def test_a_line_logged_on_a_node_appears_under_the_task_run(
    fabric: Any, tmp_path: Path
) -> None:
    contexts: list[Any] = []
    fabric.before = lambda request: contexts.append(request.log_context)

    @flow
    async def run() -> Any:
        return await leaf(1)

    state = await run(return_state=True)
    run_id = state.state_details.flow_run_id
    assert "parameters" not in contexts[0]["task_run_context"] or (
        contexts[0]["task_run_context"]["parameters"] == {}
    )
    file = tmp_path / "context"
    file.write_bytes(cloudpickle.dumps(contexts[0]))
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", NODE, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr

    async def read() -> list[Any]:
        await APILogHandler.aflush()
        async with get_client() as client:
            logs = await client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200
            )
        return [log for log in logs if log.message == "a line from the node"]

    (line,) = await _eventually(read, 1)
    task_run_id = contexts[0]["task_run_context"]["task_run"]["id"]
    assert line.task_run_id == task_run_id
    async with get_client() as client:
        assert done.stdout.strip() == str(client.api_url).rstrip("/")


def test_outside_a_task_run_there_is_no_log_context() -> None:
    assert log_context() is None


def test_start_prefect_gives_the_address_that_flows_use(prefect_server: None) -> None:
    url = start_prefect().result(timeout=120)
    with get_client(sync_client=True) as client:
        assert url == str(client.api_url)

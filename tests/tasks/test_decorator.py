"""``cnft_task``: still a Prefect task, with parents, stable keys and errors before spending."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect import Task, flow, unmapped

import daifi_flows.fabric
from daifi_flows.cnft import Review
from daifi_flows.errors import ConfigError, MeshError
from daifi_flows.tasks import cnft_task
from daifi_flows.tasks._lineage import unwrap


@cnft_task
def double(x: int) -> int:
    """Twice as much."""
    return 2 * x


@cnft_task
async def total(items: list[int], extra: dict[str, Any] | None = None, *, start: int = 0) -> int:
    flat = [*items, *(extra or {}).get("more", ())]
    return start + sum(flat)


@cnft_task(
    name="length",
    kind="count",
    scheme="digest",
    max_price_wei=5,
    review=Review(attempts=2),
    tags=["mine"],
    retries=1,
)
def count(text: str) -> int:
    return len(text)


async def test_a_function_becomes_a_real_task_that_returns_a_cnft(fabric: Any) -> None:
    assert isinstance(double, Task)

    @flow
    async def run() -> Any:
        return await double(21)

    nft = await run()
    assert nft.output == 42
    request = fabric.requests[0]
    assert request.name == "double"
    assert (request.kind, request.scheme) == ("function", "digest")
    assert request.input.value() == {"args": {"x": 21}}
    assert request.model.engine == "function"
    assert request.model.name.endswith(":double")


ELSEWHERE = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    function, blobs = pickle.load(file)
print(function(x=21))
print(*(b"return 2 * x" in source for source in blobs.values()))
"""


async def test_a_function_travels_without_its_module(fabric: Any, tmp_path: Path) -> None:
    await double(1)
    materials = fabric.requests[0].materials
    file = tmp_path / "step"
    file.write_bytes(cloudpickle.dumps((materials.function, dict(materials.blobs))))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["42", "True"], done.stderr


async def test_options_reach_the_spec_and_prefect(fabric: Any) -> None:
    assert count.name == "length"
    assert count.retries == 1
    assert count.tags == {"daifi", "mine"}
    nft = await count("four")
    assert nft.output == 4
    assert nft.spec.kind == "count"
    assert nft.spec.max_price_wei == 5
    assert nft.spec.review.attempts == 2


async def test_cnfts_anywhere_in_the_arguments_become_parents_and_are_replaced(
    fabric: Any,
) -> None:
    @flow
    async def run() -> Any:
        a, b, c = await double(1), await double(2), await double(3)
        return [a, b, c], await total([a, 10, b], {"more": (c, a)}, start=b)

    (a, b, c), nft = await run()
    assert nft.output == 4 + (2 + 10 + 4) + (6 + 2)
    assert nft.parents == (a.token_id, b.token_id, c.token_id)


async def test_a_named_tuple_stays_one(fabric: Any) -> None:
    nft = await double(1)
    pair = namedtuple("pair", "left right")
    value, parents = unwrap({"deep": [pair(nft, 3)]})
    assert value == {"deep": [pair(2, 3)]}
    assert value["deep"][0].left == 2
    assert parents == (nft.token_id,)


def test_submit_and_map_from_a_synchronous_flow(fabric: Any) -> None:
    @flow
    def run() -> Any:
        first = double.submit(1)
        mapped = double.map([1, 2, first])
        merged = total.submit(mapped, start=unmapped(1).value)
        return first.result(), mapped.result(), merged.result()

    first, mapped, merged = run()
    assert [nft.output for nft in mapped] == [2, 4, 4]
    assert mapped[2].parents == (first.token_id,)
    assert merged.output == 11
    assert merged.parents == tuple(nft.token_id for nft in mapped)
    assert len({nft.token_id for nft in mapped}) == 3


async def test_a_prefect_retry_is_the_same_task_on_the_ledger(fabric: Any) -> None:
    failures = iter([MeshError("no node"), MeshError("still none")])

    def fail_twice(_request: Any) -> None:
        error = next(failures, None)
        if error is not None:
            raise error

    fabric.before = fail_twice

    @flow
    async def run() -> Any:
        again = double.with_options(retries=2)
        return await again(4), await again(4)

    await run()
    first, second, third, other = fabric.requests
    assert first.salt_key == second.salt_key == third.salt_key
    assert first.input == second.input == third.input
    assert other.salt_key != first.salt_key
    assert other.input.salt != first.input.salt


async def test_outside_a_flow_every_call_is_a_new_task(fabric: Any) -> None:
    await double(1)
    await double(1)
    await double.fn(1)
    keys = {request.salt_key for request in fabric.requests}
    assert len(keys) == 3


async def test_the_public_nonce_does_not_give_the_input_salt_away(fabric: Any) -> None:
    from daifi_flows.tasks._lineage import StepKey

    key = StepKey(b"seed")
    assert key.input_salt(b"one secret") != key.input_salt(b"another")
    assert key.salt_key not in (key.input_salt(b"one secret"), key.input_salt(key.salt_key))


async def test_a_timeout_cancels_the_step(fabric: Any) -> None:
    fabric.before = lambda _request: asyncio.sleep(60)
    with pytest.raises(TimeoutError):
        await double.with_options(timeout_seconds=0.2)(1)
    assert fabric.cancelled == ["double"]


async def test_cancelling_the_flow_cancels_the_step(fabric: Any) -> None:
    started = asyncio.Event()

    async def wait(_request: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    fabric.before = wait

    @flow
    async def run() -> Any:
        return await double(1)

    running = asyncio.ensure_future(run())
    await asyncio.wait_for(started.wait(), 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert fabric.cancelled == ["double"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"x": object()}, "argument 'x' of step 'double' is a object"),
        ({"x": {1, 2}}, "argument 'x' of step 'double' is a set"),
        ({"x": float("nan")}, "argument 'x' of step 'double' is a float"),
        ({"x": b"bytes"}, "argument 'x' of step 'double' is a bytes"),
    ],
)
async def test_what_cannot_go_to_a_node_is_refused_before_spending(
    fabric: Any, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        await double(**arguments)
    assert fabric.requests == []


async def test_a_wrong_argument_is_not_retried(fabric: Any) -> None:
    tries: list[int] = []

    @cnft_task(retries=3)
    def picky(x: int) -> int:
        return x

    def refuse(_request: Any) -> None:
        tries.append(1)
        raise ConfigError("wrong: change it")

    fabric.before = refuse
    with pytest.raises(ConfigError):
        await picky(1)
    assert tries == [1]


def _generator(x: int) -> Any:
    yield x


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_generator, "yields"),
        (lambda *items: items, "by name"),
        (print, "not a Python function"),
        (int, "not a Python function"),
    ],
)
def test_what_cannot_be_a_step_is_refused_when_it_is_defined(function: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cnft_task(function)


async def test_a_function_without_source_is_refused(fabric: Any) -> None:
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec("def typed_at_a_prompt(x):\n    return x", scope)
    step = cnft_task(scope["typed_at_a_prompt"])
    with pytest.raises(ConfigError, match="source"):
        await step(1)
    assert fabric.requests == []


async def test_keyword_collecting_parameters_arrive_by_name(fabric: Any) -> None:
    @cnft_task
    def gather(first: int, **rest: int) -> dict[str, int]:
        return {"first": first, **rest}

    assert (await gather(1, b=2)).output == {"first": 1, "b": 2}


def test_without_a_fabric_the_error_says_what_to_do(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daifi_flows.fabric, "_open", [])
    alone = contextvars.copy_context()
    alone.run(daifi_flows.fabric._current.set, None)
    with pytest.raises(ConfigError, match="Fabric"):
        alone.run(asyncio.run, double(1))

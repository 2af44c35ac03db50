"""A user's function runs by name with JSON in and out, bound to its source."""

from __future__ import annotations

import asyncio
import inspect
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Content, Materials, ModelFile, ModelRef, TaskSpec, model_digest
from daifi_flows.encoding import cid_of, sha256
from daifi_flows.errors import EngineError, ModelError
from daifi_flows.ray_mesh import EngineReference
from daifi_flows.ray_mesh.engines._engine import Control, StepCancelled
from daifi_flows.ray_mesh.engines.function import FunctionEngine
from daifi_flows.settings import Settings


@dataclass
class Point:
    x: int
    y: tuple[int, ...]


def add(a: int, b: int = 2) -> int:
    return a + b


async def slow_add(a: int, b: int) -> int:
    await asyncio.sleep(0.01)
    return a + b


def point(x: int) -> Point:
    return Point(x, (x, x))


def fail(a: int) -> int:
    raise ValueError(f"no {a}")


def bad(a: int) -> Any:
    return object()


def not_finite(a: int) -> float:
    return float("nan")


async def forever() -> None:
    await asyncio.sleep(3600)


def ref_of(function: Callable[..., Any]) -> ModelRef:
    name = f"{function.__module__}:{function.__qualname__}"
    source = textwrap.dedent(inspect.getsource(function)).encode()
    file = ModelFile(path=name, size=len(source), sha256=sha256(source))
    return ModelRef(name=name, digest=model_digest((file,)), engine="function", precision="exact")


def call(make_spec: Any, function: Callable[..., Any], args: Any, control: Any = None) -> Any:
    content = Content.json_value({"args": args})
    spec: TaskSpec = make_spec(ref_of(function), content, kind="function", sampling=None)
    return (
        FunctionEngine()
        .run(spec, content, Materials(function=function), control or Control())
        .output.value()
    )


@pytest.mark.parametrize(
    ("function", "args", "value"),
    [
        (add, {"a": 1}, 3),
        (add, {"a": 1, "b": 5}, 6),
        (slow_add, {"a": 1, "b": 5}, 6),
        (point, {"x": 1}, {"x": 1, "y": [1, 1]}),
    ],
)
def test_functions_run_by_argument_name(
    make_spec: Any, function: Any, args: Any, value: Any
) -> None:
    assert call(make_spec, function, args) == value


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        (add, {}, "cannot be called"),
        (add, {"c": 1}, "cannot be called"),
        (fail, {"a": 7}, "ValueError: no 7"),
        (bad, {"a": 1}, "not JSON"),
        (not_finite, {"a": 1}, "not JSON"),
    ],
)
def test_what_goes_wrong_is_an_engine_error(
    make_spec: Any, function: Any, args: Any, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        call(make_spec, function, args)


@pytest.mark.parametrize("value", [3, [], {}, {"args": []}, {"args": {}, "more": 1}])
def test_malformed_input_is_an_engine_error(make_spec: Any, value: Any) -> None:
    content = Content.json_value(value)
    spec = make_spec(ref_of(add), content)
    with pytest.raises(EngineError, match="args"):
        FunctionEngine().run(spec, content, Materials(function=add), Control())


def test_an_async_function_is_cancelled_at_once(make_spec: Any) -> None:
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    started = time.monotonic()
    with pytest.raises(StepCancelled):
        call(make_spec, forever, {}, Control(cancelled))
    assert time.monotonic() - started < 60


def test_another_function_under_the_name_is_refused(make_spec: Any) -> None:
    content = Content.json_value({"args": {"a": 1, "b": 1}})
    spec = make_spec(ref_of(add), content)
    with pytest.raises(ModelError, match="is not the one the step names"):
        FunctionEngine().run(spec, content, Materials(function=slow_add), Control())
    with pytest.raises(ModelError, match="did not come"):
        FunctionEngine().run(spec, content, Materials(), Control())


def test_source_that_is_not_on_this_machine_may_come_as_a_blob(make_spec: Any) -> None:
    source = textwrap.dedent(inspect.getsource(add)).encode()
    scope: dict[str, Any] = {}
    exec(source, scope)  # as a function that crossed from another machine: no file here
    content = Content.json_value({"args": {"a": 1}})
    spec = make_spec(ref_of(add), content)
    with pytest.raises(ModelError):
        FunctionEngine().run(spec, content, Materials(function=scope["add"]), Control())
    materials = Materials(blobs={cid_of(source): source}, function=scope["add"])
    assert FunctionEngine().run(spec, content, materials, Control()).output.value() == 3


def test_a_verifier_runs_the_function_again(make_spec: Any, tmp_path: Path) -> None:
    reference = EngineReference(Settings(), tmp_path)
    content = Content.json_value({"args": {"a": 1}})
    spec = make_spec(ref_of(add), content)
    assert reference.missing(spec, Materials()) is not None
    materials = Materials(function=add)
    assert reference.missing(spec, materials) is None
    assert reference.reexecute(spec, content, materials).value() == 3

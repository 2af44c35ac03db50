"""The ``function`` engine: a user's own pure Python function as a verified step."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import textwrap
import time
from collections.abc import Callable
from typing import Any, ClassVar, cast

from pydantic_core import PydanticSerializationError, to_jsonable_python

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec, Usage
from daifi_flows.errors import EncodingError, EngineError, ModelError
from daifi_flows.ray_mesh._models import LocalModel, inline_model
from daifi_flows.ray_mesh.engines._engine import Control, StepCancelled

__all__ = ["FunctionEngine"]

_POLL_S = 0.1


class FunctionEngine:
    """Calls ``materials.function`` with the arguments in the input.

    Input: ``{"args": {name: JSON value}}``. Output: the return value as JSON (dataclasses, pydantic
    models, tuples and dates become their JSON forms). The function must be pure: the committee
    runs it again and expects the same bytes.

    The model's digest is over the function's dedented source under ``<module>:<qualname>``. Where
    Python cannot read the source on this machine (a script that lies elsewhere), one of the
    step's blobs may carry it. The function itself crosses Ray's own transport only.

    An ``async`` function is cancelled at once; a plain one cannot be interrupted and ends on its
    own, its result dropped.
    """

    name: ClassVar[str] = "function"
    evidence: ClassVar[frozenset[str]] = frozenset()

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """The function's source as a model of one file.

        Raises:
            ModelError: no function came with the step, or its source has another digest.
        """
        if materials.function is None:
            raise ModelError(f"the function {ref.name!r} did not come with the step")
        sources = list(materials.blobs.values())
        with contextlib.suppress(OSError, TypeError):  # not readable here: a blob may carry it
            sources.insert(0, textwrap.dedent(inspect.getsource(materials.function)).encode())
        for source in sources:
            try:
                return inline_model(ref, ref.name, source)
            except ModelError:
                continue
        raise ModelError(
            f"the source of function {ref.name!r} on this node is not the one the step names "
            f"(digest 0x{ref.digest.hex()}): bring the same code to every machine, or send its "
            "source as a blob"
        )

    def load(self, model: LocalModel) -> None:
        """Nothing to load: the function comes with the step."""
        del model

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Call the function; see :meth:`Engine.run`."""
        self.model(spec.model, materials)
        assert materials.function is not None  # model() refused that
        args = _arguments(input)
        control.check()
        started = time.perf_counter_ns()
        value = _call(spec.model.name, materials.function, args, control)
        try:
            output = Content.json_value(to_jsonable_python(value))
        except (PydanticSerializationError, EncodingError, ValueError) as error:
            raise EngineError(
                f"function {spec.model.name!r} returned a {type(value).__name__} that is not "
                f"JSON: return text, finite numbers, lists or dictionaries ({error})"
            ) from error
        elapsed = (time.perf_counter_ns() - started) // 1_000_000
        return Execution(output=output, usage=Usage(duration_ms=elapsed))

    def close(self) -> None:
        """Nothing to free."""


def _arguments(input: Content) -> dict[str, Any]:
    try:
        value = input.value()
    except EncodingError as error:
        raise EngineError(f"the input is not what a function step takes: {error}") from error
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        args = fields.get("args")
        if fields.keys() == {"args"} and isinstance(args, dict):
            return cast("dict[str, Any]", args)
    raise EngineError('a function step takes {"args": {name: value}} as its input')


def _call(name: str, function: Callable[..., Any], args: dict[str, Any], control: Control) -> Any:
    try:
        inspect.signature(function).bind(**args)
    except TypeError as error:
        raise EngineError(f"function {name!r} cannot be called like this: {error}") from error
    try:
        result = function(**args)
        if inspect.isawaitable(result):
            return asyncio.run(_watched(cast("Any", result), control))
        return result
    except StepCancelled:
        raise
    except Exception as error:
        raise EngineError(f"function {name!r} raised {type(error).__name__}: {error}") from error


async def _watched(result: Any, control: Control) -> Any:
    task = asyncio.ensure_future(result)
    while not task.done():
        await asyncio.wait([task], timeout=_POLL_S)
        if control.cancelled.is_set() and not task.done():
            task.cancel()
            await asyncio.wait([task])
            control.check()
    return task.result()

"""``act``: a proven policy picks one of the user's tools for an answer, and the tool runs once."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daifi_flows._step import StepRequest
from daifi_flows.cnft import ComputeNFT, Materials
from daifi_flows.encoding import canonical_json, cid_of
from daifi_flows.errors import ConfigError, EncodingError
from daifi_flows.proofs import DEFAULT_SCHEME
from daifi_flows.ray_mesh.engines.onnx_policy import policy_ref
from daifi_flows.tasks._decorator import step_task
from daifi_flows.tasks._lineage import unwrap
from daifi_flows.tasks._run import Step
from daifi_flows.tasks._values import Answer, Pick

__all__ = ["act"]

Tool = Callable[..., Any]


@step_task(name="act")
async def act(answer: ComputeNFT | str, tools: Sequence[Tool], **arguments: Any) -> ComputeNFT:
    """Pick the tool whose description fits the answer best, and run it once.

    The pick is a small ONNX policy over the answer's embedding; proof ``zk``: a zk-SNARK that the
    committed policy picked that tool. The tool itself may have effects, so it runs in this
    process, once, after the pick is settled; its JSON return value is committed in the bundle.

    A tool is a plain typed function; the first paragraph of its docstring tells the policy when
    to use it. Its parameters are bound by name from ``arguments``, and from the answer:
    ``answer`` (the text), ``question`` and ``passages`` (what the answer was made from).

    ``.output`` is a :class:`Pick` (the tool's name), ``.effect`` the tool's return value.

    Raises:
        ConfigError: no tools, a tool without docstring, or a parameter that no argument fills or
            no tool takes. Nothing was spent.
    """
    (text, given), parents = unwrap((answer, arguments))
    if not isinstance(text, str) or not text.strip():
        raise ConfigError("act needs the cNFT of an answer, or text, that is not empty")
    offered: dict[str, Any] = {"answer": str(text)}
    if isinstance(text, Answer):
        offered |= {"question": text.question, "passages": list(text.passages)}
    plans = _plan(tools, {**offered, **given}, required=given)
    step = Step.begin("act")
    policy = await step.fabric.build_policy([(plan.name, plan.description) for plan in plans])
    return await step.run(
        StepRequest(
            name="act",
            kind="act",
            model=policy_ref(policy),
            input=step.input(
                {
                    "text": str(text),
                    "tools": [
                        {"name": plan.name, "description": plan.description} for plan in plans
                    ],
                }
            ),
            salt_key=step.key.salt_key,
            scheme=DEFAULT_SCHEME["act"],
            parents=parents,
            materials=Materials(blobs={cid_of(policy): policy}),
            decode=Pick.decode,
            effect=_Effect(plans),
        )
    )


@dataclass(frozen=True)
class _Plan:
    """One tool, ready to call."""

    tool: Tool
    name: str
    description: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class _Effect:
    """Runs the picked tool. Called once by the fabric, after settlement."""

    plans: Sequence[_Plan]

    async def __call__(self, pick: Pick) -> Any:
        plan = self.plans[pick.position]
        if inspect.iscoroutinefunction(plan.tool):
            value = await plan.tool(**plan.arguments)
        else:
            value = await asyncio.to_thread(plan.tool, **plan.arguments)
        return _json(plan.name, value)


def _json(tool: str, value: Any) -> Any:
    """The return value as JSON; paths become text.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        return json.loads(canonical_json(value))
    except EncodingError as error:
        raise ConfigError(
            f"tool {tool!r} ran, but returned a {type(value).__name__}, which cannot be committed "
            "in the bundle: return text, numbers, lists or dictionaries"
        ) from error


def _plan(
    tools: Sequence[Tool], offered: Mapping[str, Any], required: Mapping[str, Any]
) -> list[_Plan]:
    """Bind every tool's parameters, whichever will be picked.

    Args:
        offered: what may be bound, by name.
        required: names among them that the caller gave, so that some tool must take each.
    """
    if not tools:
        raise ConfigError("act needs at least one tool: pass plain typed functions")
    plans: list[_Plan] = []
    taken: set[str] = set()
    for tool in tools:
        if not callable(tool) or not hasattr(tool, "__name__"):
            raise ConfigError(f"{tool!r} is not a tool: pass plain typed functions")
        name = tool.__name__
        if any(plan.name == name for plan in plans):
            raise ConfigError(f"two tools are called {name!r}: the pick could not tell them apart")
        bound: dict[str, Any] = {}
        for parameter in inspect.signature(tool).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                bound |= {key: value for key, value in offered.items() if key not in bound}
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                continue
            elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise ConfigError(
                    f"tool {name!r} takes {parameter.name!r} by position only: drop the /"
                )
            elif parameter.name in offered:
                bound[parameter.name] = offered[parameter.name]
            elif parameter.default is inspect.Parameter.empty:
                raise ConfigError(
                    f"tool {name!r} needs {parameter.name!r}: pass {parameter.name}=… to act",
                    tool=name,
                    parameter=parameter.name,
                )
        taken |= bound.keys()
        plans.append(_Plan(tool, name, _description(tool, name), bound))
    if unknown := sorted(set(required) - taken):
        raise ConfigError(
            f"no tool takes {', '.join(unknown)}: remove it, or name a parameter so",
            parameters=unknown,
        )
    return plans


def _description(tool: Tool, name: str) -> str:
    first = (inspect.getdoc(tool) or "").split("\n\n")[0]
    description = " ".join(first.split())
    if not description:
        raise ConfigError(
            f"tool {name!r} has no docstring: its first paragraph tells the policy when to use it"
        )
    return description

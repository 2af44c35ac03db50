"""``cnft_task``: a plain typed function becomes a Prefect task whose result is a compute NFT."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, overload

from prefect import Task
from prefect import task as prefect_task
from prefect.cache_policies import NO_CACHE

from daifi_flows._step import StepRequest
from daifi_flows.cnft import ComputeNFT, Materials, Review
from daifi_flows.encoding import cid_of
from daifi_flows.tasks._function import bind, check_function, function_model
from daifi_flows.tasks._lineage import unwrap
from daifi_flows.tasks._run import Step, worth_retrying

__all__ = ["StepTask", "cnft_task", "step_task"]

StepTask: TypeAlias = Task[..., Coroutine[Any, Any, ComputeNFT]]
"""A Prefect task that returns a cNFT: await it, or ``.submit`` and ``.map`` it."""


def step_task(**options: Any) -> Callable[[Callable[..., Any]], StepTask]:
    """``prefect.task`` with the defaults every step has.

    Results are not cached by Prefect: whether a step may be reused is the ledger's to say. Steps
    whose arguments are wrong are not retried.
    """
    options.setdefault("cache_policy", NO_CACHE)
    options.setdefault("retry_condition_fn", worth_retrying)
    options["tags"] = {"daifi", *(options.get("tags") or ())}
    return prefect_task(**options)


@overload
def cnft_task(function: Callable[..., Any], /) -> StepTask: ...
@overload
def cnft_task(
    function: None = None,
    /,
    *,
    kind: str = ...,
    scheme: str = ...,
    review: Review | None = ...,
    max_price_wei: int | None = ...,
    deadline_ms: int | None = ...,
    encrypt: bool = ...,
    **task_options: Any,
) -> Callable[[Callable[..., Any]], StepTask]: ...
def cnft_task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    kind: str = "function",
    scheme: str = "digest",
    review: Review | None = None,
    max_price_wei: int | None = None,
    deadline_ms: int | None = None,
    encrypt: bool = False,
    **task_options: Any,
) -> StepTask | Callable[[Callable[..., Any]], StepTask]:
    """Make a function a verified step.

    The function runs on a node of the mesh; the committee re-executes it, so it must be
    deterministic: same arguments, same result, no clock, no network, no random. Arguments and
    result are JSON. A cNFT among the arguments, also inside lists, tuples and dictionaries,
    becomes a parent of the new one, and the function receives its output.

    The task is asynchronous whether the function is or not: ``await`` it, or ``.submit`` it from
    a synchronous flow.

    Args:
        kind: class of work, as the router and the review policy see it.
        scheme: proof scheme, by name.
        review: how strictly it is checked; by default what the fabric's settings say.
        max_price_wei: most it may cost, held in escrow; by default what the settings say.
        deadline_ms: Unix milliseconds after which the escrow can be taken back.
        encrypt: seal the output in the bundle to the buyer's key.
        **task_options: anything ``prefect.task`` takes (``name``, ``retries``, ``tags``,
            ``timeout_seconds``, …).

    Raises:
        ConfigError: the function cannot be a step, or an argument of a call cannot go to a node.
            Nothing was spent.

    Example::

        @cnft_task(retries=2)
        def word_count(text: str) -> int:
            return len(text.split())

        @flow
        async def count(question: str):
            answer = await reason(question, await retrieve(question))
            return await word_count(answer)
    """

    def decorate(function: Callable[..., Any]) -> StepTask:
        check_function(function)
        name = str(task_options.get("name") or function.__name__)

        @functools.wraps(function)
        async def body(*args: Any, **kwargs: Any) -> ComputeNFT:
            (plain_args, plain_kwargs), parents = unwrap((args, kwargs))
            values = bind(name, function, plain_args, plain_kwargs)
            model, source = function_model(function)
            step = Step.begin(name)
            request = StepRequest(
                name=name,
                kind=kind,
                model=model,
                input=step.input({"args": values}),
                salt_key=step.key.salt_key,
                scheme=scheme,
                review=review,
                parents=parents,
                materials=Materials(blobs={cid_of(source): source}, function=function),
                max_price_wei=max_price_wei,
                deadline_ms=deadline_ms,
                encrypt=encrypt,
            )
            return await step.run(request)

        return step_task(**task_options)(body)

    return decorate if function is None else decorate(function)

"""Logs of a step under its Prefect task run: its states here, and the node's own lines there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.context import SettingsContext, TaskRunContext
from prefect.logging import get_logger, get_run_logger
from prefect.settings import PREFECT_API_URL

from daifi_flows._step import StepEvent, StepState

__all__ = ["StepLogger", "log_context", "observed", "step_logger"]

StepLogger = logging.Logger | logging.LoggerAdapter[Any]

_LEVELS: Mapping[StepState, int] = {
    StepState.REJECTED: logging.WARNING,
    StepState.LOST: logging.WARNING,
    StepState.REFUNDED: logging.WARNING,
}
_running: ContextVar[object | None] = ContextVar("daifi_running_step", default=None)


def step_logger() -> StepLogger:
    """The task run's logger; a plain one outside a run."""
    if TaskRunContext.get() is None:
        return get_logger("daifi_flows")
    return get_run_logger()


@contextmanager
def observed(
    add: Callable[[Callable[[StepEvent], None]], None],
    remove: Callable[[Callable[[StepEvent], None]], None],
    logger: StepLogger,
) -> Generator[None]:
    """Log this step's events, and no other's, while the block runs.

    A fabric tells every observer about every step. Which events are this step's is known from
    the context the first of them is emitted in; from then on from the task id, so that later ones
    may come from any thread.
    """
    mine = object()
    task_ids: set[bytes] = set()

    def observe(event: StepEvent) -> None:
        if _running.get() is mine:
            task_ids.add(event.task_id)
        if event.task_id in task_ids:
            logger.log(_LEVELS.get(event.state, logging.INFO), "%s: %s", event.state, event.message)

    token = _running.set(mine)
    add(observe)
    try:
        yield
    finally:
        remove(observe)
        _running.reset(token)


def log_context() -> dict[str, Any] | None:
    """What a node needs for ``prefect.context.hydrated_context`` to log under this task run.

    Less than ``prefect.context.serialize_context()``: no arguments, and a stand-in for the task,
    because a node need not be able to import the flow's module. The API address is the one in
    use, so that a node never starts a temporary server of its own.
    """
    context = TaskRunContext.get()
    settings = SettingsContext.get()
    if context is None or settings is None:
        return None
    task_run = context.task_run.model_copy(update={"state": None})
    lean = context.model_copy(
        update={
            "task": Task(_on_a_node, name=context.task.name),
            "task_run": task_run,
            "parameters": {},
            "persist_result": False,
        }
    )
    api_url = str(get_client(sync_client=True).api_url).rstrip("/")
    pinned = settings.settings.copy_with_update(updates={PREFECT_API_URL: api_url})
    return {
        "task_run_context": lean.serialize(),
        "settings_context": settings.model_copy(update={"settings": pinned}).serialize(),
    }


def _on_a_node() -> None:
    """Stands for a task's body where only its name is needed."""

"""The interface every engine implements, and the control a node holds over a running step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec
from daifi_flows.errors import EngineError
from daifi_flows.ray_mesh._models import LocalModel

__all__ = ["Control", "Engine", "EngineDied", "StepCancelled"]


class StepCancelled(EngineError):
    """The step was cancelled or timed out while it ran; nothing is proven or owed."""


class EngineDied(EngineError):
    """The engine cannot be used again in this process: the node must restart."""


def _silent(_message: str) -> None:
    return None


@dataclass(frozen=True)
class Control:
    """How whoever started a step follows and stops it.

    Attributes:
        cancelled: set from another thread to stop the step.
        log: takes one line of progress for a person.
    """

    cancelled: threading.Event = field(default_factory=threading.Event)
    log: Callable[[str], None] = _silent

    def check(self) -> None:
        """Engines call this often (each token, each batch).

        Raises:
            StepCancelled: somebody asked this step to stop.
        """
        if self.cancelled.is_set():
            raise StepCancelled("the step was cancelled while it ran on the node")


@runtime_checkable
class Engine(Protocol):
    """One way to run a step. Blocking: a node calls it in a thread of its own.

    An engine is made without arguments that need a heavy import, loads weights on first use, and
    may be used from several threads (it locks what is not safe to share).
    """

    name: ClassVar[str]
    """What ``ModelRef.engine`` says."""
    evidence: ClassVar[frozenset[str]]
    """Keys of the evidence in every :class:`Execution`: which proof schemes can be asked for."""

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """Find the model ``ref`` names and check its digest; loads no weights.

        Raises:
            ModelError: unknown, not at hand, or its files do not match ``ref.digest``.
        """
        ...

    def load(self, model: LocalModel) -> None:
        """Bring the weights into memory. Idempotent; a no-op for models without weights.

        Raises:
            ModelError: the files cannot be loaded.
            EngineError: the engine is not installed.
        """
        ...

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Compute the step: resolves and loads the model first when that was not done before.

        The evidence in the result is all that the step's proof scheme needs.

        Raises:
            EngineError: the input is not what this engine takes, or the computation failed.
            ModelError: see :meth:`model`.
            StepCancelled: ``control`` asked to stop.
        """
        ...

    def close(self) -> None:
        """Free the weights and stop what the engine started. Idempotent."""
        ...

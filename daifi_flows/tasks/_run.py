"""Runs one step request inside a Prefect task: logs, artifacts and events around the fabric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from daifi_flows._step import StepRequest
from daifi_flows.cnft import ComputeNFT, Content
from daifi_flows.errors import ConfigError, EncodingError, StepFailed
from daifi_flows.tasks._lineage import StepKey
from daifi_flows.tasks._logs import StepLogger, log_context, observed, step_logger
from daifi_flows.tasks._publish import publish, publish_slashes

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

    from daifi_flows.fabric import Fabric

__all__ = ["Step", "worth_retrying"]


def _fabric() -> Fabric:
    from daifi_flows.fabric import Fabric

    return Fabric.current()


@dataclass(frozen=True)
class Step:
    """The running step: the fabric it uses, its key and its log."""

    name: str
    fabric: Fabric
    key: StepKey
    logger: StepLogger

    @classmethod
    def begin(cls, name: str) -> Step:
        """In the running task, on the current fabric.

        Raises:
            ConfigError: there is no fabric.
        """
        return cls(name, _fabric(), StepKey.current(), step_logger())

    def input(self, value: Any) -> Content:
        """The salted input. A retry of the same task run gives the same bytes.

        Raises:
            ConfigError: ``value`` is not JSON.
        """
        try:
            return Content.json_value(value, self.key.input_salt(self.fabric.buyer.secret))
        except EncodingError as error:
            raise ConfigError(f"the input of step {self.name!r} is not JSON: {error}") from error

    async def run(self, request: StepRequest) -> ComputeNFT:
        """Run the request and show its cNFT in Prefect.

        Raises:
            DaifiError: see :meth:`daifi_flows.fabric.Fabric.run`.
        """
        request = replace(request, log_context=log_context())
        try:
            with observed(self.fabric.add_observer, self.fabric.remove_observer, self.logger):
                nft = await self.fabric.run(request)
        except StepFailed as error:
            attempts = error.details.get("attempts", ())
            publish_slashes(self.name, error.details.get("task_id", b""), attempts, self.logger)
            raise
        sealed = request.encrypt or self.fabric.settings.encrypt_outputs
        await publish(_without_output(nft) if sealed else nft, self.logger)
        return nft


def _without_output(nft: ComputeNFT) -> ComputeNFT:
    """For Prefect's database, which must not hold what was sealed to the buyer."""
    hidden = "sealed to the owner"
    return replace(nft, output=hidden, effect=None if nft.effect is None else hidden)


async def worth_retrying(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's ``retry_condition_fn`` of every step: a wrong argument stays wrong."""
    try:
        await state.aresult()
    except ConfigError:
        return False
    except BaseException:
        return True
    return True

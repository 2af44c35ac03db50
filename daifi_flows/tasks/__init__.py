"""Prefect: the ``cnft_task`` decorator, the built-in steps, and what runs look like in its UI."""

from daifi_flows.tasks._act import act
from daifi_flows.tasks._decorator import StepTask, cnft_task
from daifi_flows.tasks._reason import reason
from daifi_flows.tasks._retrieve import retrieve
from daifi_flows.tasks._server import start_prefect
from daifi_flows.tasks._shipped import load_flow
from daifi_flows.tasks._values import Answer, Passage, Pick

__all__ = [
    "Answer",
    "Passage",
    "Pick",
    "StepTask",
    "act",
    "cnft_task",
    "load_flow",
    "reason",
    "retrieve",
    "start_prefect",
]

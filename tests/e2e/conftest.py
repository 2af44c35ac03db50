"""One real fabric for the tests that share it, and its one run of the research agent."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daifi_flows import Fabric, Settings
from daifi_flows._home import write_committee
from daifi_flows._step import StepEvent
from daifi_flows.cnft import ComputeNFT
from daifi_flows.tasks import load_flow

for room in ("ledger", "judges"):  # makes ledger_kit and review_kit importable
    sys.path.insert(0, str(Path(__file__).parents[1] / room))

QUESTION = "What does the auditor check?"


@dataclass(frozen=True)
class Run:
    """One run of the research agent, and what was told while it ran."""

    flow_run_id: str
    steps: list[ComputeNFT]
    events: list[StepEvent]
    out: Path


@pytest.fixture(scope="session")
def settings(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small answers; bundles in a folder of the session."""
    return Settings(
        home=shared_home, max_tokens=48, bundles=tmp_path_factory.mktemp("run") / "bundles"
    )


@pytest.fixture(scope="session")
def events() -> list[StepEvent]:
    """Everything the shared fabric told."""
    return []


@pytest.fixture(scope="session")
def fabric(ray_cluster: None, settings: Settings, events: list[StepEvent]) -> Iterator[Fabric]:
    """A local fabric: real Ray actors, models, committee and ledger."""
    with Fabric.local(settings, observer=events.append) as fabric:
        yield fabric


@pytest.fixture(scope="session")
def run(prefect_api: None, fabric: Fabric, settings: Settings, events: list[StepEvent]) -> Run:
    """The research agent over this project's documentation, once."""
    assert settings.bundles is not None
    out = settings.bundles.parent
    before = len(events)  # other tests use the same fabric
    state = asyncio.run(load_flow("research_agent")(QUESTION, None, str(out), return_state=True))
    steps = asyncio.run(state.aresult())
    write_committee(settings.bundles / "committee.json", fabric.committee_keys)
    return Run(str(state.state_details.flow_run_id), steps, events[before:], out)

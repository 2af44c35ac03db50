"""The main job on real parts: three verified, settled cNFTs that anyone can check offline."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)

from daifi_flows import Fabric, Settings, verify_bundle
from daifi_flows._home import read_committee
from daifi_flows.bundle import FILES, Bundle
from daifi_flows.cnft import Committee, Decision
from daifi_flows.corpus import Corpus
from daifi_flows.ledger import audit
from daifi_flows.proofs import Reference
from daifi_flows.ray_mesh import EngineReference
from daifi_flows.tasks._shipped import shipped
from daifi_flows.verify import Status, check_lineage
from tests.e2e.conftest import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def committee(run: Run) -> Committee:
    """The trust anchor as a user has it: a file beside the bundles."""
    return read_committee(run.steps[0].bundle.parent / "committee.json")


@pytest.fixture(scope="session")
def auditor(settings: Settings) -> Iterator[Reference]:
    """The auditor's own models."""
    reference = EngineReference(settings, settings.home_path / "cache" / "auditor")
    yield reference
    reference.close()


def test_three_steps_settle_in_a_chain(run: Run) -> None:
    retrieve, reason, act = run.steps
    assert [step.name for step in run.steps] == ["retrieve", "reason", "act"]
    assert [step.spec.scheme for step in run.steps] == ["digest", "token-difr", "zk"]
    assert retrieve.parents == ()
    assert reason.parents == (retrieve.token_id,)
    assert act.parents == (reason.token_id,)
    for step in run.steps:
        assert step.attestation.decision is Decision.ACCEPTED
        assert step.attestation.signers.bit_count() >= 14
        assert step.attestation.confidence_ppm > 990_000
        assert step.attempts == ()


def test_the_answer_is_the_models_words_over_the_corpus(run: Run) -> None:
    retrieve, reason, _ = run.steps
    known = {chunk.id: chunk.text for chunk in Corpus.from_folder(shipped("docs")).chunks}
    assert len(retrieve.output) == 4
    assert all(known[passage["id"]] == passage["text"] for passage in retrieve.output)
    scores = [passage["score"] for passage in retrieve.output]
    assert scores == sorted(scores, reverse=True)
    assert any(f"[{passage['id']}]" in reason.output for passage in retrieve.output)
    assert len(reason.output.split()) > 8


def test_the_picked_tool_ran_once_and_its_result_is_committed(run: Run) -> None:
    act = run.steps[-1]
    assert act.output in {"write_report", "ask_follow_up"}
    if act.output == "write_report":
        report = Path(act.effect).read_text()
        assert str(run.steps[1].output).strip() in report
    else:
        assert str(run.steps[1].output).strip() in act.effect
    effect = Bundle.read(act.bundle).metadata.effect
    assert effect is not None
    assert json.loads(effect.value_json) == act.effect


async def test_the_ledger_paid_everybody_and_lost_nothing(run: Run, fabric: Fabric) -> None:
    for step in run.steps:
        token = await fabric.settlement.token(step.token_id)
        assert token is not None
        assert token.owner == fabric.buyer.address
        assert token.parents == step.parents
        paid = {payment.reason: 0 for payment in step.receipt.leaf.payments}
        for payment in step.receipt.leaf.payments:
            paid[payment.reason] += payment.amount_wei
        assert sum(paid.values()) == step.spec.max_price_wei
        assert paid["node"] > paid["committee"] > 0
        assert paid["treasury"] > 0
        assert ("royalty" in paid) == bool(step.parents)
    assert (await fabric.settlement.supply()).conserved


def test_the_ledger_file_replays(run: Run, fabric: Fabric) -> None:
    report = audit(fabric._parts.home.ledger)
    assert report.supply.conserved
    assert report.tokens >= 3
    assert report.tasks.get("settled", 0) >= 3


def test_events_follow_the_life_of_a_step(run: Run) -> None:
    for name in ("retrieve", "reason", "act"):
        states = [event.state.value for event in run.events if event.step == name]
        expected = ["open", "routed", "executing", "committed", "reviewing", "attested", "settled"]
        assert states == expected + (["effect"] if name == "act" else [])


@pytest.mark.parametrize("kind", ["directory", "car"])
def test_every_bundle_verifies_with_the_auditors_own_models(
    run: Run, committee: Committee, auditor: Reference, settings: Settings, kind: str
) -> None:
    reports = []
    for step in run.steps:
        path = (
            step.bundle if kind == "directory" else step.bundle.with_name(f"{step.bundle.name}.car")
        )
        report = verify_bundle(
            path,
            committee=committee,
            reference=auditor,
            workdir=settings.home_path / "cache" / "auditor",
        )
        assert {check.status for check in report.checks} == {Status.PASSED}, report
        reports.append(report)
    assert check_lineage(reports) == {}
    assert check_lineage(reports[1:]) == {reports[1].token_id: [reports[0].token_id]}


def test_without_models_the_verifier_says_what_it_could_not_check(
    run: Run, committee: Committee
) -> None:
    for step in run.steps[:2]:
        report = verify_bundle(step.bundle, committee=committee)
        not_made = [check for check in report.checks if check.status is Status.NOT_MADE]
        assert report.ok
        assert [check.name for check in not_made] == ["proof"]
        assert not_made[0].detail


def test_another_committee_is_not_believed(run: Run, tmp_path: Path) -> None:
    from daifi_flows.judges import make_committee

    strangers = make_committee(tmp_path / "keys", 21, 0)
    for step in run.steps:
        report = verify_bundle(step.bundle, committee=strangers)
        failed = {check.name for check in report.checks if check.status is Status.FAILED}
        assert {"committee signature", "certified block"} <= failed


def test_models_loaded_from_several_threads_at_once_are_whole(settings: Settings) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from daifi_flows.ray_mesh import resolve_llm

    llm = resolve_llm(settings, None, None)
    for _ in range(3):
        reference = EngineReference(settings, settings.home_path / "cache" / "auditor")
        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(reference.warm, llm) for _ in range(2)]
            rows = [pool.submit(reference.embed, ["a seat"]) for _ in range(2)]
            assert [load.result() for load in loads] == [None, None]
            assert (rows[0].result() == rows[1].result()).all()
        reference.close()


def _flips(data: bytes, count: int, chaos: random.Random) -> Iterator[bytes]:
    edges = {0, 1, len(data) // 2, len(data) - 2, len(data) - 1}
    places = edges | {chaos.randrange(len(data)) for _ in range(count)}
    for place in sorted(place for place in places if 0 <= place < len(data)):
        changed = data[place] ^ (1 << chaos.randrange(8))
        yield data[:place] + bytes([changed]) + data[place + 1 :]


@pytest.mark.parametrize("name", [*FILES, "car"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_single_changed_byte_fails_verification(
    run: Run, committee: Committee, tmp_path: Path, name: str, number: int
) -> None:
    """No model is needed to notice: every byte is under a signature or a content id."""
    bundle = run.steps[number].bundle
    if name == "car":
        target = tmp_path / "bundle.car"
        data = bundle.with_name(f"{bundle.name}.car").read_bytes()
        path = target
    else:
        shutil.copytree(bundle, tmp_path / "bundle")
        path, target = tmp_path / "bundle", tmp_path / "bundle" / name
        data = target.read_bytes()
    count = 0
    for damaged in _flips(data, 60, random.Random(number)):
        target.write_bytes(damaged)
        report = verify_bundle(path, committee=committee)
        assert not report.ok, f"{name}: a changed byte went unnoticed"
        count += 1
    assert count >= 40
    target.write_bytes(data)
    assert verify_bundle(path, committee=committee).ok


async def test_prefect_shows_tasks_logs_cards_and_the_graph(run: Run) -> None:
    from uuid import UUID

    flow_run = UUID(run.flow_run_id)
    async with get_client() as client:
        tasks = await client.read_task_runs(flow_run_filter=_flow_filter(flow_run))
        logs = await client.read_logs(
            log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run])), limit=200
        )
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
        )
    assert sorted(task.name.split("-")[0] for task in tasks) == ["act", "reason", "retrieve"]
    by_task: dict[Any, list[str]] = {}
    for log in logs:
        by_task.setdefault(log.task_run_id, []).append(log.message)
    reason = next(task for task in tasks if task.name.startswith("reason"))
    # Written on the node, shown under the task run.
    assert any("generated" in line for line in by_task[reason.id])
    keys = {artifact.key or "" for artifact in artifacts}
    for step in run.steps:
        assert f"cnft-{step.name}-{step.token_id.hex()[:12]}" in keys
    assert "research-agent-provenance" in keys


def _flow_filter(flow_run: Any) -> Any:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    return FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))

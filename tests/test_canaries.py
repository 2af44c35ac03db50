"""Canaries through whole steps: a ledger, seats and a node that may lie, all in this process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "ledger"))

from ledger_kit import (
    BUILDER,
    BUYER,
    DAI,
    DEALING,
    NODE,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    SeatsHere,
    info_of,
    make_genesis,
)

from daifi_flows._auditing import Auditor, SettledWork, works_of
from daifi_flows._canaries import CanaryOutcome, known_work, run_canary
from daifi_flows._home import take_home
from daifi_flows._life import Life
from daifi_flows._step import StepRequest
from daifi_flows.cnft import (
    Content,
    Execution,
    Materials,
    ModelFile,
    ModelManifest,
    ModelRef,
    NodeInfo,
    NodeResult,
    Sampling,
    TaskSpec,
    Usage,
    manifest_digest,
    model_digest,
)
from daifi_flows.errors import EngineError, MeshError, ModelError
from daifi_flows.judges import SeatKeys, SeatOffice
from daifi_flows.judges._canary import Known
from daifi_flows.judges._client import ReviewClient
from daifi_flows.judges._statement_client import StatementClient
from daifi_flows.judges._statements import Question, StatementReply
from daifi_flows.keys import Account
from daifi_flows.ledger import LedgerClient, LedgerService, Params, TaskState
from daifi_flows.ledger._params import FeeParams
from daifi_flows.proofs import Claim, make_proof
from daifi_flows.review_rate import ReviewTerms
from daifi_flows.settings import Settings

FILES = (ModelFile(path="lib:double", size=1, sha256=bytes(32)),)
MODEL = ModelRef(name="lib:double", digest=model_digest(FILES), engine="function", precision="x")


class Doubling:
    """A verifier's copy of the step that doubles a number."""

    def missing(self, *_: Any) -> str | None:
        return None

    def reexecute(self, spec: TaskSpec, input: Content, materials: Materials) -> Content:
        return Content.json_value(input.value() * 2, bytes(32))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)

    chat = None

    def prompt_tokens(self, *_: Any) -> Any:
        raise ModelError("there is no language model here")

    render_output = end_tokens = prefill = output_rows = calibration = prompt_tokens


class OneNode:
    """A mesh of one node, which answers what the test wants."""

    def __init__(self, price_wei: int) -> None:
        self.price_wei = price_wei
        self.factor = 2
        self.seen: list[tuple[TaskSpec, Content]] = []

    async def nodes(self) -> list[NodeInfo]:
        return [info_of(NODE, self.price_wei)]

    def route(self, spec: TaskSpec, excluded: Any, reputation: Any) -> tuple[NodeInfo, str]:
        if NODE.address in excluded:
            raise MeshError("there is no other node")
        return info_of(NODE, self.price_wei), "there is no other"

    async def execute(
        self, node: NodeInfo, spec: TaskSpec, input: Content, materials: Materials, **_: Any
    ) -> NodeResult:
        if self.factor == 0:
            raise EngineError("the engine is broken")
        self.seen.append((spec, input))
        execution = Execution(Content.json_value(input.value() * self.factor), Usage(flops=1))
        proof = make_proof(Claim(spec, input, execution.output), execution, NODE, Path())
        manifest = ModelManifest(
            model=MODEL,
            files=FILES,
            signer=NODE.address,
            signature=NODE.sign(manifest_digest(MODEL, FILES, NODE.address)),
        )
        return NodeResult(output=execution.output, proof=proof, manifest=manifest)


class Here:
    """A transport to an office in this process."""

    def __init__(self, office: SeatOffice) -> None:
        self.office = office

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            return await asyncio.to_thread(getattr(self.office, name), *arguments)

        return call

    async def statement(self, question: Question) -> StatementReply:
        return await asyncio.to_thread(self.office.statement, question)


@dataclass
class World:
    life: Life
    ledger: LedgerClient
    mesh: OneNode
    auditor: Auditor

    async def reprice(self, price_wei: int) -> None:
        """Over 1 DAi every execution is reviewed, under it nearly none."""
        self.mesh.price_wei = price_wei
        await self.ledger.register(info_of(NODE, price_wei), NODE)

    async def known(self) -> tuple[Known, SettledWork]:
        """A reviewed, accepted step that doubles 21."""
        await self.reprice(2 * DAI)
        await self.life.run(
            StepRequest(
                name="double",
                kind="arithmetic",
                model=MODEL,
                input=Content.json_value(21),
                salt_key=bytes([len(self.mesh.seen)]) * 32,
                scheme="digest",
                sampling=Sampling(),
            )
        )
        found = await known_work(self.life, works_of(self.life.home))
        await self.reprice(DAI // 100)
        return found[0]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    terms = ReviewTerms(probation=0, trust_ppm=0, floor_ppm=1_000, always_over_wei=DAI, audit_ppm=0)
    params = Params(fees=FeeParams(fee_per_byte_wei=0), review=terms)
    genesis = make_genesis(params=params)
    # The kit's seats have keys that are no key files.
    monkeypatch.setattr(
        SeatKeys,
        "load",
        lambda _, i, *_share: SeatKeys(i, SEAT_KEYS[i], SEAT_ACCOUNTS[i], DEALING.secrets[i]),
    )
    service = LedgerService(tmp_path / "ledger.db", genesis, SeatsHere(genesis), builder=BUILDER)
    await service.start()
    ledger = LedgerClient(service, genesis.ledger_id, patience_s=10)
    await ledger.register(info_of(NODE, DAI), NODE)
    await ledger.stake(150 * DAI, NODE)
    office = SeatOffice(
        genesis.committee,
        range(21),
        tmp_path / "keys",
        reference_factory=Doubling,
        validator_factory=None,
        workdir=tmp_path / "seats",
    )
    home, mesh = take_home(tmp_path / "home"), OneNode(DAI)
    reviews: Any = ReviewClient([Here(office)], genesis.committee)
    life = Life(
        settings=Settings(home=tmp_path / "home", max_price_wei=3 * DAI),
        home=home,
        buyer=BUYER,
        mesh=mesh,  # pyright: ignore
        committee=reviews,
        settlement=ledger,
        tell=lambda _: None,
        bundles=tmp_path / "bundles",
    )
    statements = StatementClient([Here(office)], genesis.committee)
    auditor = Auditor(
        ledger, statements, BUYER, tmp_path / "log", lambda: time.time_ns() // 1_000_000
    )
    yield World(life, ledger, mesh, auditor)
    office.close()
    home.close()
    await service.close(grace_s=0.2)


async def test_canaries_find_the_node_that_cheats_where_nobody_looks(world: World) -> None:
    known, work = await world.known()
    account = Account.from_seed(b"canary")
    honest = await run_canary(world.life, known, work, account, world.auditor)
    assert honest.outcome is CanaryOutcome.AGREES and honest.node == NODE.address
    (first, asked), (second, again) = world.mesh.seen
    assert first.task_id != second.task_id and asked.data == again.data
    assert second.buyer == account.address and asked.cid != again.cid
    task = await world.ledger.task(second.task_id)
    assert task is not None and task.waived and task.state is TaskState.SETTLED

    world.mesh.factor = 3
    stake = (await world.ledger.account(NODE.address)).stake_wei
    caught = await run_canary(world.life, known, work, account, world.auditor)
    assert caught.outcome is CanaryOutcome.CAUGHT and caught.audit is not None
    assert caught.audit.slashed_wei == stake // 4
    task = await world.ledger.task(caught.task_id)
    assert task is not None and task.state is TaskState.REVOKED


async def test_a_canary_that_is_reviewed_anyway_catches_at_once(world: World) -> None:
    known, work = await world.known()
    world.mesh.factor = 3
    await world.reprice(2 * DAI)
    found = await run_canary(world.life, known, work, Account.from_seed(b"c"), world.auditor)
    assert (found.outcome, found.node) == (CanaryOutcome.CAUGHT, NODE.address)
    assert found.audit is None
    assert (await world.ledger.account(NODE.address)).rejected == 1


async def test_a_canary_that_nobody_answers_accuses_nobody(world: World) -> None:
    known, work = await world.known()
    world.mesh.factor = 0
    found = await run_canary(world.life, known, work, Account.from_seed(b"c"), world.auditor)
    assert (found.outcome, found.node) == (CanaryOutcome.FAILED, None)
    assert (await world.ledger.account(NODE.address)).rejected == 0


async def test_only_reviewed_work_is_known(world: World) -> None:
    await world.reprice(DAI // 100)
    await world.life.run(
        StepRequest(
            name="double",
            kind="arithmetic",
            model=MODEL,
            input=Content.json_value(4),
            salt_key=b"w" * 32,
            scheme="digest",
        )
    )
    assert len(list(works_of(world.life.home))) == 1
    assert await known_work(world.life, works_of(world.life.home)) == ()

"""A step's life without Ray: a real ledger, real seats and a real node, all in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from ledger_kit import (
    BUYER,
    DAI,
    DEALING,
    FREE,
    NODE,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    SeatsHere,
    make_genesis,
)
from review_kit import Local

from daifi_flows._home import take_home
from daifi_flows._late_evidence import accuse_late
from daifi_flows._life import Life
from daifi_flows._step import StepEvent, StepRequest, StepState
from daifi_flows.bundle import Bundle
from daifi_flows.cnft import PPM, Basis, ComputeNFT, Content, Materials, NodeInfo, Review
from daifi_flows.encoding import cid_of
from daifi_flows.errors import CommitteeError, TransactionRefused
from daifi_flows.judges import SeatKeys, SeatOffice
from daifi_flows.judges._client import ReviewClient
from daifi_flows.ledger import LedgerClient, LedgerService, Params
from daifi_flows.ledger._params import RewardParams
from daifi_flows.ray_mesh._node import NodeConfig, NodeService
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.reference import EngineReference
from daifi_flows.review_rate import ReviewTerms
from daifi_flows.settings import Settings
from daifi_flows.tasks._function import function_model
from daifi_flows.verify import Status, verify_bundle

DEFAULT = ReviewTerms()
TRUSTING = ReviewTerms(probation=0, trust_ppm=0, margin_ppm=PPM, newcomer_margin_ppm=PPM,
                       audit_ppm=0, floor_ppm=250_000)  # fmt: skip
"""A node with much at stake is reviewed one time in four, from its first step on."""


def double(n: int) -> int:
    return 2 * n


class Reference(EngineReference):
    """Runs functions again; its sentence embeddings say nothing."""

    def embed(self, texts: Sequence[str]) -> Any:
        return np.ones((len(texts), 384), np.float32) / 384**0.5


class MeshHere:
    """One node in this process."""

    def __init__(self, node: NodeService) -> None:
        self.node = node
        self.runs = 0

    async def nodes(self) -> list[NodeInfo]:
        return [self.node.config.info]

    def route(self, _: Any, exclude: Any, reputation: Mapping[str, int]) -> tuple[NodeInfo, str]:
        assert not exclude and self.node.config.info.address in reputation
        return self.node.config.info, "the only one"

    async def execute(self, node: NodeInfo, spec: Any, input: Any, materials: Any, **_: Any) -> Any:
        self.runs += 1
        return await asyncio.to_thread(self.node.execute, spec, input, materials, Control())


class CommitteeHere:
    """The seats in this process, which can be made to lose the next question."""

    def __init__(self, client: ReviewClient) -> None:
        self.client, self.fails, self.fails_late = client, 0, 0

    async def review(self, request: Any) -> Any:
        if self.fails_late:
            self.fails_late -= 1
            await self.client.review(request)
            raise CommitteeError("the driver died here")
        if self.fails:
            self.fails -= 1
            raise CommitteeError("the driver died here")
        return await self.client.review(request)


class World:
    """A fabric without Ray."""

    def __init__(
        self,
        folder: Path,
        terms: ReviewTerms,
        byzantine: Mapping[int, str] | None = None,
        challenge_ms: int = 600_000,
    ) -> None:
        rewards = RewardParams(challenge_ms=challenge_ms)
        self.genesis = make_genesis(params=Params(fees=FREE, review=terms, rewards=rewards))
        self.settings = Settings(home=folder, price_wei=DAI // 100, attempts=1)
        self.home = take_home(folder)
        self.service = LedgerService(folder / "ledger.db", self.genesis, SeatsHere(self.genesis))
        self.settlement = LedgerClient(self.service, self.genesis.ledger_id)
        self.office = SeatOffice(
            self.genesis.committee,
            range(21),
            folder / "keys",
            reference_factory=lambda: Reference(self.settings, folder / "seats"),
            validator_factory=None,
            workdir=folder / "office",
            byzantine=byzantine,
        )
        host = Local(lambda: self.office)
        self.committee = CommitteeHere(ReviewClient([host], self.genesis.committee, timeout_s=60))
        config = NodeConfig("here", NODE.secret, folder / "node", DAI // 100, ("function",))
        self.node = NodeService(config)
        self.mesh = MeshHere(self.node)
        self.events: list[StepEvent] = []
        self.folder = folder
        self.life = self.driver()

    def driver(self) -> Life:
        """Whoever drives steps; another one after a crash."""
        mesh: Any = self.mesh
        committee: Any = self.committee
        return Life(
            settings=self.settings,
            home=self.home,
            buyer=BUYER,
            mesh=mesh,
            committee=committee,
            settlement=self.settlement,
            tell=self.events.append,
            bundles=self.folder / "bundles",
        )

    async def __aenter__(self) -> Self:
        await self.service.start()
        await self.settlement.register(self.node.config.info, NODE)
        await self.settlement.stake(100 * DAI, NODE)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.home.close()
        self.office.close()
        self.node.close()
        await self.service.close(grace_s=0.2)

    async def step(self, number: int, **changes: Any) -> ComputeNFT:
        return await self.life.run(request(number, **changes))

    def told(self, state: StepState) -> list[str]:
        return [event.message for event in self.events if event.state is state]

    def audit(self, nft: ComputeNFT) -> dict[str, tuple[Status, str]]:
        """The offline verifier's lines about a bundle; all that can be checked is right."""
        report = verify_bundle(
            nft.bundle,
            committee=self.genesis.committee,
            reference=Reference(self.settings, self.folder / "auditor"),
            materials=Materials(function=double),
        )
        assert report.ok, report.checks
        return {check.name: (check.status, check.detail) for check in report.checks}


def request(number: int, **changes: Any) -> StepRequest:
    model, source = function_model(double)
    fields: dict[str, Any] = {
        "name": "double",
        "kind": "function",
        "model": model,
        "input": Content.json_value({"args": {"n": number}}, bytes(32)),
        "salt_key": number.to_bytes(32, "big"),
        "scheme": "digest",
        "materials": Materials(blobs={cid_of(source): source}, function=double),
        "max_price_wei": DAI,
    }
    return StepRequest(**(fields | changes))


def seat_keys(_: Path, index: int, *_share: bytes | None) -> SeatKeys:
    """Those of the committee in the ledger's genesis."""
    return SeatKeys(index, SEAT_KEYS[index], SEAT_ACCOUNTS[index], DEALING.secrets[index])


@pytest.fixture
async def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    made: list[World] = []
    monkeypatch.setattr(SeatKeys, "load", staticmethod(seat_keys))

    async def make(terms: ReviewTerms = DEFAULT, **options: Any) -> World:
        world = await World(tmp_path, terms, **options).__aenter__()
        made.append(world)
        return world

    yield make
    for each in made:
        await each.__aexit__()


async def test_a_newcomers_step_is_reviewed_and_its_bundle_tells_how(world: Any) -> None:
    here = await world()
    nft = await here.step(21)
    assert nft.output == 42
    assert nft.attestation.basis is Basis.REVIEWED
    assert nft.report is not None
    (chunk,) = nft.report["chunks"]
    assert chunk["decision"] == "accepted" and len(chunk["findings"]) == 7
    status, said = here.audit(nft)["review"]
    assert status is Status.PASSED
    assert said.startswith("reviewed, at a rate of 100 %; by the client's account 7 seats checked")
    metadata = Bundle.read(nft.bundle).metadata
    assert metadata.committed is not None and metadata.committed.leaf.review_ppm == PPM


async def test_a_step_that_is_not_drawn_is_paid_and_moves_no_reputation(world: Any) -> None:
    here = await world(TRUSTING)
    kinds: dict[Basis, ComputeNFT] = {}
    for number in range(40):
        before = await here.settlement.account(NODE.address)
        nft = await here.step(number)
        after = await here.settlement.account(NODE.address)
        kinds.setdefault(nft.attestation.basis, nft)
        paid = [p for p in nft.receipt.leaf.payments if p.reason == "node"]
        assert sum(payment.amount_wei for payment in paid) > 0
        if nft.attestation.basis is Basis.WAIVED:
            assert after.standing == before.standing
            assert nft.attestation.confidence_ppm == 0
            assert here.told(StepState.ATTESTED)[-1] == "not drawn for review (rate 25 %)"
        else:
            assert after.standing.reputation_ppm >= before.standing.reputation_ppm
        assert nft.output == 2 * number
        if len(kinds) == 2:
            break
    assert set(kinds) == set(Basis), "forty draws at 25 % fell all alike"
    waived = here.audit(kinds[Basis.WAIVED])
    assert waived["review"] == (
        Status.PASSED,
        "not drawn at a rate of 25 %, as the committee's beacon shows",
    )
    assert "not drawn for review" in waived["committee signature"][1]
    assert waived["proof"][0] is Status.PASSED, "an auditor can look where nobody did"
    assert "at a rate of 25 %" in here.audit(kinds[Basis.REVIEWED])["review"][1]


async def test_whoever_asks_for_a_review_gets_one_every_time(world: Any) -> None:
    here = await world(TRUSTING)
    for number in range(6):
        nft = await here.step(number, review=Review(always=1, attempts=1))
        assert nft.attestation.basis is Basis.REVIEWED
        assert "at a rate of 100 %" in here.audit(nft)["review"][1]


@pytest.mark.parametrize("terms", [DEFAULT, TRUSTING], ids=["reviewed", "by lottery"])
async def test_a_step_goes_on_from_its_commit_with_the_same_receipt(
    world: Any, terms: ReviewTerms
) -> None:
    """The driver dies between commit and review; the next one finds the commit's own receipt."""
    here = await world(terms)
    here.committee.fails = 1
    with pytest.raises(CommitteeError, match="died here"):
        await here.step(7)
    here.life = here.driver()
    nft = await here.step(7)
    assert nft.output == 14 and here.mesh.runs == 1
    metadata = Bundle.read(nft.bundle).metadata
    assert metadata.committed is not None
    rate = metadata.committed.leaf.review_ppm
    assert rate == (PPM if terms.probation else 250_000)
    assert here.audit(nft)["review"][0] is Status.PASSED
    supply = await here.settlement.supply()
    assert supply.conserved and supply.escrows_wei == 0


async def test_a_review_goes_on_when_its_node_has_left_the_mesh(world: Any) -> None:
    """Who runs it is asked of the ledger: another answer would be another review."""
    here = await world()
    run_by = here.node.config.info.model_copy(update={"operator": SEAT_ACCOUNTS[3].address})
    await here.settlement.register(run_by, NODE)
    here.committee.fails_late = 1
    with pytest.raises(CommitteeError, match="died here"):
        await here.step(7)
    here.life = here.driver()
    here.mesh.nodes = _nobody
    nft = await here.step(7)
    assert nft.output == 14 and here.mesh.runs == 1
    assert Bundle.read(nft.bundle).metadata.core.operator == SEAT_ACCOUNTS[3].address
    assert here.audit(nft)["review"][0] is Status.PASSED


async def _nobody() -> list[NodeInfo]:
    return []


async def test_an_accepted_result_that_came_too_late_is_reviewed_again(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await world()
    settle, refused = here.settlement.settle, [1, 1]

    async def too_late(*arguments: Any) -> Any:
        if refused:
            refused.pop()
            raise TransactionRefused("findings of this committee do not count", code="expired")
        return await settle(*arguments)

    monkeypatch.setattr(here.settlement, "settle", too_late)
    with pytest.raises(TransactionRefused):
        await here.step(7)
    here.life = here.driver()
    nft = await here.step(7)
    assert nft.output == 14 and here.mesh.runs == 1
    assert here.audit(nft)["review"][0] is Status.PASSED


async def test_a_sweep_brings_home_what_cannot_be_settled(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await world()
    expired: list[bytes] = []

    async def refuse(*_: Any) -> Any:
        raise TransactionRefused("findings of this committee do not count", code="expired")

    async def expire(task_id: bytes, _: Any) -> None:
        expired.append(task_id)

    monkeypatch.setattr(here.settlement, "settle", refuse)
    with pytest.raises(TransactionRefused):
        await here.step(7)
    monkeypatch.setattr(here.settlement, "expire", expire)
    assert await here.driver().sweep() == 1 and len(expired) == 1


async def test_a_seat_that_votes_twice_is_shown_to_the_ledger_and_loses_half(world: Any) -> None:
    here = await world(byzantine={4: "equivocate"})
    liar = SEAT_ACCOUNTS[4]
    await here.settlement.transfer(liar.address, 10 * DAI, BUYER)
    await here.settlement.stake(10 * DAI, liar)
    for number in range(60):  # the beacon decides who checks what: one time in three it is the liar
        nft = await here.step(number)
        assert nft.output == 2 * number
        left = (await here.settlement.account(liar.address)).stake_wei
        if left < 10 * DAI:
            break
    assert left == 5 * DAI
    supply = await here.settlement.supply()
    assert supply.conserved and supply.burned_wei == 2 * DAI


@pytest.mark.parametrize(("challenge_ms", "charged"), [(1, True), (600_000, False)])
async def test_a_seat_that_rejected_what_stood_is_charged_when_it_stands(
    world: Any, challenge_ms: int, charged: bool
) -> None:
    here = await world(byzantine={4: "reject-falsely"}, challenge_ms=challenge_ms)
    liar = SEAT_ACCOUNTS[4]
    await here.settlement.transfer(liar.address, 10 * DAI, BUYER)
    await here.settlement.stake(10 * DAI, liar)
    for number in range(8):  # the beacon decides who checks what
        nft = await here.step(number)
        assert nft.output == 2 * number and nft.report is not None
        if nft.report["evidence"]:
            break
    shown = await accuse_late(here.settlement, here.home, BUYER)
    left = (await here.settlement.account(liar.address)).stake_wei
    if charged:
        assert [receipt.leaf.node for receipt in shown] == [liar.address]
        assert left == 10 * DAI - DAI // 10
        assert await accuse_late(here.settlement, here.home, BUYER) == shown
    else:  # it may still be proven right
        assert shown == () and left == 10 * DAI

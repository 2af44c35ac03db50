"""Nodes that cheat: each kind is caught by the committee, slashed, and replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow

from daifi_flows import Fabric, Settings, reason
from daifi_flows.cnft import ComputeNFT, Decision
from daifi_flows.ledger import audit
from daifi_flows.ray_mesh import Dishonesty

pytestmark = pytest.mark.slow

KINDS = [kind.value for kind in Dishonesty]
CONTEXT = [
    "The committee has 21 seats. Fourteen seats must sign before a decision counts.",
    "A node that is rejected loses a quarter of its stake, and the step goes to another node.",
]


@pytest.fixture(scope="module")
def fabric(ray_cluster: None, settings: Settings) -> Iterator[Fabric]:
    """One honest node and one cheat of each kind; every cheat is cheaper than the honest node."""
    strict = settings.model_copy(update={"attempts": len(KINDS) + 1})
    with Fabric.local(strict, dishonest=KINDS) as fabric:
        yield fabric


@pytest.fixture(scope="module")
def answer(prefect_api: None, fabric: Fabric) -> ComputeNFT:
    """A step that every cheat gets a chance at."""

    @flow(name="hostile-mesh")
    async def ask() -> Any:
        return await reason("How many seats must sign?", CONTEXT)

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_rejected_and_slashed(answer: ComputeNFT, fabric: Fabric, kind: str) -> None:
    (attempt,) = [item for item in answer.attempts if item["node"] == f"cheat-{kind}"]
    assert attempt["state"] == "rejected"
    assert attempt["reason"]
    stake = fabric.settings.node_stake_wei
    assert 0 < attempt["slashed_wei"] <= stake // 2
    record = asyncio.run(fabric.settlement.account(attempt["address"]))
    assert record.stake_wei == stake - attempt["slashed_wei"]
    assert record.reputation_ppm < 500_000


def test_the_step_ends_at_the_honest_node(answer: ComputeNFT, fabric: Fabric) -> None:
    assert answer.attestation.decision is Decision.ACCEPTED
    cheats = {item["address"] for item in answer.attempts}
    assert answer.attestation.node not in cheats
    assert len(cheats) == len(KINDS)
    honest = asyncio.run(fabric.settlement.account(answer.attestation.node))
    assert honest.stake_wei == fabric.settings.node_stake_wei
    assert honest.reputation_ppm > 500_000


def test_the_books_are_right_afterwards(answer: ComputeNFT, fabric: Fabric) -> None:
    report = audit(fabric._parts.home.ledger)
    assert report.supply.conserved
    assert report.supply.burned_wei > 0
    assert answer.receipt.leaf.kind == "settle"


def test_a_step_whose_attempts_are_spent_fails_and_is_refunded(
    prefect_api: None, answer: ComputeNFT, ray_cluster: None, settings: Settings
) -> None:
    from daifi_flows import Review, StepFailed
    from daifi_flows._step import StepRequest

    with Fabric.local(settings, dishonest=["replayed-proof"]) as fabric:
        from daifi_flows.cnft import Content, Sampling

        before = asyncio.run(fabric.settlement.account(fabric.buyer.address)).balance_wei
        request = StepRequest(
            name="reason",
            kind="reason",
            model=fabric.resolve_llm(),
            input=Content.json_value(
                {
                    "question": "How many seats must sign?",
                    "passages": [{"id": "a", "text": CONTEXT[0]}],
                    "context_tokens": 512,
                }
            ),
            salt_key=b"\x07" * 32,
            scheme="token-difr",
            sampling=Sampling(max_tokens=16),
            review=Review(attempts=1),
        )
        with pytest.raises(StepFailed, match="cheat-replayed-proof") as caught:
            asyncio.run(fabric.run(request))
        assert caught.value.details["attempts"][0]["slashed_wei"] > 0
        after = asyncio.run(fabric.settlement.account(fabric.buyer.address)).balance_wei
        reporter = fabric.settings.node_stake_wei // 40  # a tenth of the quarter slashed
        fees = before + reporter - after
        assert 0 < fees < 10**15

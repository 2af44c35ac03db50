"""The real SmolLM2-135M: honest answers verify, and all four dishonest kinds are caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from daifi_flows.cnft import Content, Materials, ModelRef, Sampling, TaskSpec
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, Verdict, make_proof, verify_proof
from daifi_flows.ray_mesh import Dishonesty, EngineReference
from daifi_flows.ray_mesh._adversary import dishonest
from daifi_flows.ray_mesh.engines._engine import Control, Engine
from daifi_flows.ray_mesh.engines.transformers import TransformersEngine
from daifi_flows.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def engine(home: Path) -> TransformersEngine:
    return TransformersEngine(home / "models")


@pytest.fixture(scope="module")
def reference(home: Path) -> EngineReference:
    return EngineReference(Settings(), home)  # shares only the converted file: two conversions
    # would double the time of this module


@pytest.fixture
def check(
    reference: EngineReference, tmp_path: Path
) -> Callable[[Engine, TaskSpec, Content], tuple[str, Verdict]]:
    def run(engine: Engine, spec: TaskSpec, content: Content) -> tuple[str, Verdict]:
        done = engine.run(spec, content, Materials(), Control())
        node = Account.from_seed(b"node")
        proof = make_proof(Claim(spec, content, done.output), done, node, tmp_path)
        verdict = verify_proof(Claim(spec, content, done.output), proof, reference, tmp_path)
        return done.output.value()["text"], verdict

    return run


def conversation(question: str) -> Content:
    messages = [{"role": "user", "content": question}]
    return Content.json_value({"messages": messages, "context_tokens": 512})


def test_it_knows_the_capital_of_france_and_verifies(
    engine: TransformersEngine,
    check: Callable[..., tuple[str, Verdict]],
    smollm2_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
) -> None:
    content = conversation("What is the capital of France?")
    spec = make_spec(smollm2_ref, content, sampling=Sampling(max_tokens=32))
    text, verdict = check(engine, spec, content)
    assert "Paris" in text
    assert verdict.outcome is Outcome.VALID, verdict.reason


def test_it_answers_from_passages_and_cites_one(
    engine: TransformersEngine,
    check: Callable[..., tuple[str, Verdict]],
    smollm2_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
) -> None:
    content = ask("How many seats does the oracle committee have?")
    spec = make_spec(smollm2_ref, content, sampling=Sampling(max_tokens=48))
    text, verdict = check(engine, spec, content)
    assert "21 seats" in text
    assert "[design.md#" in text
    assert verdict.outcome is Outcome.VALID, verdict.reason


@pytest.mark.parametrize("kind", list(Dishonesty))
def test_a_dishonest_node_is_caught(
    kind: Dishonesty,
    engine: TransformersEngine,
    check: Callable[..., tuple[str, Verdict]],
    smollm2_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
) -> None:
    content = ask("Why is the quorum of the oracle committee 14?")
    spec = make_spec(smollm2_ref, content, sampling=Sampling(max_tokens=48))
    cheat = dishonest(engine, kind)
    text, verdict = check(cheat, spec, content)
    assert text
    assert verdict.outcome is Outcome.INVALID, verdict.reason
    if kind in (Dishonesty.QUANTIZED, Dishonesty.WRONG_MODEL):  # weights of its own
        cheat.close()

"""``zk-slice`` on a real language model: SmolLM2 in bf16, greedy and sampled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Content, Materials, ModelRef, Sampling
from daifi_flows.errors import ModelError
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, make_proof, verify_proof
from daifi_flows.proofs.zk_slice import UNTIED_PPM
from daifi_flows.ray_mesh import EngineReference
from daifi_flows.ray_mesh._adversary import drop_layers
from daifi_flows.ray_mesh._engines import check_scheme
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines.transformers import TransformersEngine
from daifi_flows.settings import Settings

pytestmark = pytest.mark.slow

NODE = Account.from_seed(b"node")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slices")


@pytest.fixture(scope="module")
def reference(workdir: Path) -> EngineReference:
    return EngineReference(Settings(home=workdir), workdir)


@pytest.fixture
def step(
    smollm2_ref: ModelRef, model_cache: Path, make_spec: Any, workdir: Path
) -> Callable[..., Any]:
    def run(alter: Any = None, temperature_ppm: int = 700_000) -> Any:
        content = Content.json_value(
            {
                "messages": [{"role": "user", "content": "Write an essay about rivers."}],
                "context_tokens": 400,
            }
        )
        sampling = Sampling(max_tokens=64, seed=9, temperature_ppm=temperature_ppm)
        spec = make_spec(smollm2_ref, content, scheme="zk-slice", sampling=sampling)
        engine = TransformersEngine(model_cache, alter)
        execution = engine.run(spec, content, Materials(), Control())
        claim = Claim(spec, content, execution.output)
        return claim, make_proof(claim, execution, NODE, workdir)

    return run


def test_the_engine_gives_what_the_scheme_needs() -> None:
    check_scheme("transformers", "zk-slice", Sampling())


@pytest.mark.parametrize("temperature_ppm", [0, 700_000], ids=["greedy", "sampled"])
def test_an_honest_node_is_valid(
    step: Any, reference: EngineReference, workdir: Path, temperature_ppm: int
) -> None:
    claim, proof = step(temperature_ppm=temperature_ppm)
    verdict = verify_proof(claim, proof, reference, workdir)
    assert verdict.outcome is Outcome.VALID, verdict.reason
    assert len(proof.payload) < 32_000
    assert not [entry for entry in (workdir / "zk").iterdir() if entry.name.startswith(".")]


def test_rows_alone_show_the_slice(
    step: Any, reference: EngineReference, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, proof = step()

    def refuse(*_: Any) -> Any:
        raise ModelError("no room for a prefill")

    monkeypatch.setattr(reference, "prefill", refuse)
    verdict = verify_proof(claim, proof, reference, workdir)
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, UNTIED_PPM)


def test_layers_left_out_are_found_by_the_prefill_alone(
    step: Any, reference: EngineReference, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slice of a smaller model holds: its vectors make its tokens the best. That is what the
    scheme does not prove without the model."""
    claim, proof = step(drop_layers)
    assert verify_proof(claim, proof, reference, workdir).outcome is Outcome.INVALID

    def refuse(*_: Any) -> Any:
        raise ModelError("no room for a prefill")

    monkeypatch.setattr(reference, "prefill", refuse)
    verdict = verify_proof(claim, proof, reference, workdir)
    assert verdict.outcome is Outcome.VALID
    assert verdict.confidence_ppm < claim.spec.review.min_confidence_ppm

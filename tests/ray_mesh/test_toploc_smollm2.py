"""``toploc`` on a real language model: SmolLM2 in bf16 against other kernels and other weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, Sampling, TaskSpec
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, make_proof, verify_proof
from daifi_flows.proofs.calibration import ActivationBounds, Calibration, Rounding
from daifi_flows.ray_mesh import EngineReference
from daifi_flows.ray_mesh._adversary import drop_layers, quantize_int4, quantize_int8
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines.transformers import TransformersEngine
from daifi_flows.settings import Settings

pytestmark = pytest.mark.slow

TOKENS = 72
BOUNDS = ActivationBounds(
    min_exponent_matches=110,
    max_mean_error=3.6,
    max_median_error=4.0,
    mean_error=1.28,
    answer_spread=0.14,
    chunk_spread=0.18,
)
"""Fitted to 72 answers of 256 tokens: alone, in batches, fp32, both attention kernels."""


def eager(weights: Any) -> None:
    weights.set_attn_implementation("eager")


NODES: dict[str, tuple[Callable[[Any], None] | None, frozenset[Outcome]]] = {
    "honest": (None, frozenset({Outcome.VALID})),
    "other attention": (eager, frozenset({Outcome.VALID})),
    "int8 per channel": (quantize_int8, frozenset({Outcome.INVALID, Outcome.CANNOT_TELL})),
    "int4": (quantize_int4, frozenset({Outcome.INVALID})),
    "layers left out": (drop_layers, frozenset({Outcome.INVALID})),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, smollm2_ref: ModelRef) -> EngineReference:
    home = tmp_path_factory.mktemp("toploc")
    reference = EngineReference(Settings(home=home), home)
    measured = Calibration(
        model=smollm2_ref.name,
        digest=smollm2_ref.digest,
        precision=smollm2_ref.precision,
        verifier_precision="bf16",
        rounding=Rounding(scales=(0.02, 0.08), weights=(0.95, 0.05)),
        activations=BOUNDS,
        generations=72,
        tokens=18_432,
        max_log_evidence=0.0,
    )
    reference.calibration = lambda _spec: measured  # type: ignore[method-assign]
    return reference


def answer(
    engine: TransformersEngine, ref: ModelRef, make_spec: Any, question: str
) -> tuple[TaskSpec, Content, Execution]:
    content = Content.json_value(
        {"messages": [{"role": "user", "content": question}], "context_tokens": 400}
    )
    sampling = Sampling(max_tokens=TOKENS, seed=9, temperature_ppm=700_000)
    spec = make_spec(ref, content, scheme="toploc", sampling=sampling)
    return spec, content, engine.run(spec, content, Materials(), Control())


@pytest.mark.parametrize("kind", NODES)
def test_honest_nodes_are_valid_and_other_weights_are_not(
    kind: str,
    reference: EngineReference,
    smollm2_ref: ModelRef,
    model_cache: Path,
    make_spec: Any,
    tmp_path: Path,
) -> None:
    alter, outcomes = NODES[kind]
    engine = TransformersEngine(model_cache, alter)
    spec, content, execution = answer(
        engine, smollm2_ref, make_spec, "Write a detailed essay about rivers and their history."
    )
    claim = Claim(spec, content, execution.output)
    proof = make_proof(claim, execution, Account.from_seed(b"node"), tmp_path)
    verdict = verify_proof(claim, proof, reference, tmp_path)
    assert verdict.outcome in outcomes, verdict.reason


def test_a_batch_in_higher_precision_is_within_the_bounds(
    reference: EngineReference, smollm2_ref: ModelRef, model_cache: Path, make_spec: Any
) -> None:
    """The node's model in fp32, several prompts in one padded batch."""
    from daifi_flows.proofs._fingerprint import compare, fingerprint
    from daifi_flows.proofs.activations import judge_activations
    from daifi_flows.ray_mesh import resolve

    engine = TransformersEngine(model_cache)
    ref = resolve("smollm2-135m-instruct", "transformers", "fp32").ref
    llm = engine._shelf.get(engine.model(ref, Materials()))
    asked = ("What is a glacier?", "Tell me a story about a lighthouse and the sea.")
    prompts = [llm.tokenizer.chat([{"role": "user", "content": each}], "") for each in asked]
    samplings = [Sampling(max_tokens=48, seed=seed, temperature_ppm=500_000) for seed in (1, 2)]
    spec = make_spec(smollm2_ref, Content.text("x"), scheme="toploc")
    batch = llm.generate_batch(prompts, samplings, Control())
    for prompt, row in zip(prompts, batch, strict=True):
        own = reference.prefill(spec, prompt, row.tokens)
        assert own.hidden is not None
        assert row.activations is not None
        assert np.array_equal(row.activations.shape, own.hidden.shape)
        found = judge_activations(compare(fingerprint(row.activations), own.hidden), BOUNDS)
        assert found.outcome is Outcome.VALID, found.reason

"""What a task fixes cannot be swapped afterwards: a table of attacks on a real, small model.

The task id covers model digest, sampling parameters and input; the model digest covers weights,
tokenizer and chat template; the verifier builds the prompt itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, Proof, Sampling, TaskSpec
from daifi_flows.encoding import canonical, decode_canonical, keccak256
from daifi_flows.errors import ProofError
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, Verdict, make_proof, verify_proof
from daifi_flows.proofs._envelope import transcript_of
from daifi_flows.ray_mesh import EngineReference, resolve
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines.transformers import TransformersEngine
from daifi_flows.settings import Settings

NODE = Account.from_seed(b"node")
SAMPLING = Sampling(temperature_ppm=900_000, seed=5, max_tokens=40, top_k=50, top_p_ppm=900_000)
Make = Callable[..., TaskSpec]
Ask = Callable[..., Content]


@pytest.fixture(scope="module")
def reference(calibrated_home: Path, model_cache: Path) -> EngineReference:
    return EngineReference(Settings(home=calibrated_home), model_cache)


@pytest.fixture(scope="module")
def engine(model_cache: Path) -> TransformersEngine:
    return TransformersEngine(model_cache)


@pytest.fixture
def spec(tiny_ref: ModelRef, make_spec: Make, ask: Ask, salted: Content) -> TaskSpec:
    return make_spec(tiny_ref, salted, sampling=SAMPLING)


@pytest.fixture
def salted(ask: Ask) -> Content:
    return ask().model_copy(update={"salt": bytes(32)})


@pytest.fixture
def done(engine: TransformersEngine, spec: TaskSpec, salted: Content) -> Execution:
    return engine.run(spec, salted, Materials(), Control())


def check(
    spec: TaskSpec, input: Content, output: Content, proof: Proof, reference: EngineReference
) -> Verdict:
    return verify_proof(Claim(spec, input, output), proof, reference, Path())


def prove(spec: TaskSpec, input: Content, done: Execution) -> Proof:
    return make_proof(Claim(spec, input, done.output), done, NODE, Path())


def test_the_honest_answer_is_valid(
    spec: TaskSpec, salted: Content, done: Execution, reference: EngineReference
) -> None:
    verdict = check(spec, salted, done.output, prove(spec, salted, done), reference)
    assert verdict.outcome is Outcome.VALID, verdict.reason


SWAPS: dict[str, Callable[[TaskSpec], TaskSpec]] = {
    name: lambda spec, update=update: spec.model_copy(
        update={"sampling": SAMPLING.model_copy(update=update)}
    )
    for name, update in {
        "temperature": {"temperature_ppm": 1_500_000},
        "temperature 0": {"temperature_ppm": 0},
        "seed": {"seed": 6},
        "max_tokens": {"max_tokens": 41},
        "top_k": {"top_k": 2},
        "top_k off": {"top_k": None},
        "top_p": {"top_p_ppm": 100_000},
        "top_p off": {"top_p_ppm": None},
    }.items()
} | {
    "model digest": lambda spec: spec.model_copy(
        update={"model": spec.model.model_copy(update={"digest": bytes(32)})}
    ),
    "precision": lambda spec: spec.model_copy(
        update={"model": spec.model.model_copy(update={"precision": "bf16"})}
    ),
    "input": lambda spec: spec.model_copy(
        update={"input_cid": Content.text("?", bytes(32)).cid}
    ),
}  # fmt: skip


@pytest.mark.parametrize("swap", SWAPS.values(), ids=list(SWAPS))
def test_a_proof_holds_for_one_task_only(
    swap: Callable[[TaskSpec], TaskSpec],
    spec: TaskSpec,
    salted: Content,
    done: Execution,
    reference: EngineReference,
) -> None:
    """The spec says something else than the one the answer was proven for."""
    proof = prove(spec, salted, done)
    verdict = check(swap(spec), salted, done.output, proof, reference)
    assert verdict.outcome is Outcome.INVALID
    assert "another task" in verdict.reason


@pytest.mark.parametrize(
    "update",
    [
        {"temperature_ppm": 3_000_000},
        {"temperature_ppm": 0},
        {"seed": 6},
        {"max_tokens": 41},
        {"max_tokens": 39},
        {"top_k": 1},
        {"top_p_ppm": 10_000},
    ],
    ids=str,
)
def test_an_answer_made_with_other_parameters_is_not_the_tasks(
    update: dict[str, int],
    spec: TaskSpec,
    salted: Content,
    done: Execution,
    reference: EngineReference,
) -> None:
    """The node itself signs the answer for a task with other sampling parameters."""
    other = spec.model_copy(update={"sampling": SAMPLING.model_copy(update=update)})
    assert len(done.evidence["output_tokens"]) == SAMPLING.max_tokens  # it did not end by itself
    if other.sampling is not None and other.sampling.max_tokens < SAMPLING.max_tokens:
        with pytest.raises(ProofError, match="are allowed"):
            prove(other, salted, done)
        return
    proof = prove(other, salted, done)
    verdict = check(other, salted, done.output, proof, reference)
    assert verdict.outcome is Outcome.INVALID, verdict.reason


@pytest.mark.parametrize("field", ["model_digest", "input_cid", "output_cid", "task_id"])
def test_the_statement_cannot_say_something_else(
    field: str, spec: TaskSpec, salted: Content, done: Execution, reference: EngineReference
) -> None:
    from daifi_flows.cnft import proof_digest

    proof = prove(spec, salted, done)
    value: Any = Content.text("?", bytes(32)).cid if field.endswith("cid") else bytes(32)
    statement = proof.statement.model_copy(update={field: value})
    digest = proof_digest(proof.scheme, statement, keccak256(proof.payload), NODE.address)
    forged = proof.model_copy(update={"statement": statement, "signature": NODE.sign(digest)})
    assert check(spec, salted, done.output, forged, reference).outcome is Outcome.INVALID


def test_the_prompt_in_the_payload_is_compared_with_the_verifiers_own(
    spec: TaskSpec, salted: Content, done: Execution, reference: EngineReference
) -> None:
    from daifi_flows.cnft import proof_digest

    proof = prove(spec, salted, done)
    fields = decode_canonical(proof.payload)
    fields["prompt_tokens"][3] += 1
    payload = canonical(fields)
    cid = proof.statement.output_cid
    statement = proof.statement.model_copy(
        update={"transcript": transcript_of(spec.scheme, spec.task_id, cid, payload)}
    )
    digest = proof_digest(proof.scheme, statement, keccak256(payload), NODE.address)
    forged = proof.model_copy(
        update={"payload": payload, "statement": statement, "signature": NODE.sign(digest)}
    )
    verdict = check(spec, salted, done.output, forged, reference)
    assert verdict.outcome is Outcome.INVALID
    assert "chat template" in verdict.reason


def _other_template(folder: Path) -> None:
    for file in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if file.is_file():
            file.write_text(file.read_text().replace("assistant", "user"))


def _other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-20]
    file.write_text(json.dumps(content))


def _other_end(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [1, 7]}))


@pytest.mark.parametrize("change", [_other_template, _other_tokenizer, _other_end])
def test_tokenizer_template_and_ends_are_under_the_model_digest(
    change: Callable[[Path], None],
    tiny_model: Path,
    tmp_path: Path,
    spec: TaskSpec,
    salted: Content,
    engine: TransformersEngine,
    done: Execution,
    reference: EngineReference,
) -> None:
    """A node runs a copy with one file changed, and claims the digest the task names."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_model, folder)
    change(folder)
    other = resolve(str(folder), "transformers", spec.model.precision).ref
    assert other.digest != spec.model.digest
    lie = engine.run(spec.model_copy(update={"model": other}), salted, Materials(), Control())
    if lie.evidence["prompt_tokens"] != done.evidence["prompt_tokens"]:
        verdict = check(spec, salted, lie.output, prove(spec, salted, lie), reference)
        assert verdict.outcome is Outcome.INVALID, verdict.reason
    # A verifier whose own copy is changed accuses nobody.
    moved = spec.model_copy(update={"model": spec.model.model_copy(update={"name": str(folder)})})
    verdict = check(moved, salted, done.output, prove(moved, salted, done), reference)
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "do not match the digest" in verdict.reason

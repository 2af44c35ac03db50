"""``zk`` on ONNX models with the real ezkl: several inputs, batches, hidden inputs and weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, Usage
from daifi_flows.encoding import canonical, cid_of, decode_canonical
from daifi_flows.errors import EncodingError, ProofError
from daifi_flows.proofs import Outcome
from daifi_flows.proofs._onnx_task import (
    hidden_digest,
    onnx_input,
    onnx_output,
    read_outputs,
    read_task,
)
from daifi_flows.proofs.circuits import (
    CircuitSettings,
    compile_circuit,
    onnx_digest,
    poseidon,
    quantise,
    read_onnx,
    with_batch,
    without_weights,
)

FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALL = CircuitSettings(
    input_scale=8,
    param_scale=8,
    rebase_multiplier=16,
    decomp_base=256,
    decomp_legs=4,
    num_inner_cols=2,
    logrows=10,
)
X = {
    "query": np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 6),
    "candidates": np.linspace(-0.9, 0.8, 18, dtype=np.float32).reshape(3, 6),
}


def ranker(seed: int = 1, batch: int | str = 3) -> bytes:
    """Two inputs, a shared weight, a ReLU: scores of the candidates for the query."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    w = (rng.normal(size=(6, 4)) / 2).astype(np.float32)
    b = (rng.normal(size=4) / 4).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["query", "w"], ["q"]),
        helper.make_node("MatMul", ["candidates", "w"], ["c0"]),
        helper.make_node("Add", ["c0", "b"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["c"]),
        helper.make_node("Transpose", ["q"], ["qt"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "qt"], ["scores"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "ranker",
        [value("query", TensorProto.FLOAT, [1, 6]), value("candidates", 1, [batch, 6])],
        [value("scores", TensorProto.FLOAT, [batch, 1])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def run(onnx: bytes, inputs: Any) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.fixture
def build(kit: Any, zk_workdir: Path) -> Any:
    """An honest step over the ranker, as the engine answers it."""

    def make(
        circuit: Any = SMALL, *, onnx: bytes | None = None, inputs: Any = X, **options: Any
    ) -> Any:
        onnx = onnx or ranker()
        shown = options.pop("shown", inputs)
        input = onnx_input(shown, circuit=circuit, salt=bytes(32), **options)
        output = onnx_output(read_onnx(onnx), run(onnx, inputs), bytes(32))
        model = ModelRef(
            name="ranker", digest=onnx_digest(onnx), engine="onnx", precision="float32"
        )
        return kit.Case(
            kit.build_spec(input, "zk", model=model),
            input,
            Execution(output, Usage(), {"onnx": onnx, "inputs": inputs}),
            Materials(blobs={cid_of(onnx): onnx}),
            None,
            zk_workdir,
        )

    return make


@pytest.fixture(scope="module")
def memo() -> dict[str, Any]:
    return {}


@pytest.fixture
def honest(build: Any, memo: dict[str, Any]) -> Any:
    case = build()
    if "proof" not in memo:
        memo["proof"] = case.prove()
    return case, memo["proof"]


def test_an_honest_step_is_valid_for_a_verifier_with_caches_of_its_own(
    honest: Any, tmp_path: Path
) -> None:
    case, proof = honest
    verdict = case.verify(proof, workdir=tmp_path)
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 1_000_000), verdict.reason


def test_another_output_is_invalid(honest: Any) -> None:
    case, proof = honest
    scores = case.execution.output.value()["outputs"]["scores"]
    wrong = Content.json_value({"outputs": {"scores": [[scores[0][0] + 0.02], *scores[1:]]}})
    cheat = replace(case, execution=replace(case.execution, output=wrong))
    with pytest.raises(ProofError, match="away from the proven"):
        cheat.prove()
    assert cheat.verify(cheat.forge(proof, proof.payload, output_cid=wrong.cid)).outcome is (
        Outcome.INVALID
    )


def test_proven_outputs_cannot_be_edited(honest: Any) -> None:
    """The report agrees with the payload, and the SNARK with neither."""
    case, proof = honest
    fields = decode_canonical(proof.payload)
    outputs = bytearray(fields["outputs"])
    outputs[0] ^= 1
    forged = case.forge(proof, canonical(fields | {"outputs": bytes(outputs)}))
    verdict = case.verify(forged)
    assert verdict.outcome is Outcome.INVALID
    assert "SNARK" in verdict.reason


def test_a_proof_for_another_input_or_model_is_invalid(build: Any, honest: Any) -> None:
    _, proof = honest
    for other in (
        build(inputs=X | {"query": -X["query"]}),
        build(onnx=ranker(seed=2)),
    ):
        output = other.execution.output
        fields = decode_canonical(proof.payload)
        own = decode_canonical(other.prove().payload)
        moved = other.forge(
            other.prove(),
            canonical(own | {"proof": fields["proof"]}),
            output_cid=output.cid,
        )
        assert other.verify(moved).outcome is Outcome.INVALID


def test_evidence_for_another_input_cannot_be_proven(build: Any) -> None:
    case = build()
    evidence = case.execution.evidence | {"inputs": X | {"query": X["query"] * 0.5}}
    with pytest.raises(ProofError, match="not what the task's input says"):
        replace(case, execution=replace(case.execution, evidence=evidence)).prove()


@pytest.mark.parametrize(
    "evidence",
    [
        {"inputs": {}},
        {"inputs": {"query": X["query"]}},
        {"inputs": X | {"query": np.full((1, 6), np.nan, np.float32)}},
        {"inputs": X | {"query": np.full((1, 6), 1e30, np.float32)}},
        {"inputs": X | {"query": "text"}},
        {"inputs": None},
        {"onnx": b"another file"},
        {"onnx": None},
    ],
    ids=str,
)
def test_unusable_evidence_cannot_be_proven(build: Any, evidence: Any) -> None:
    case = build()
    with pytest.raises(ProofError):
        replace(
            case, execution=replace(case.execution, evidence=case.execution.evidence | evidence)
        ).prove()


def test_a_value_outside_the_range_check_cannot_be_proven(build: Any) -> None:
    """|h| reaches 4 × 2^16 where the decomposition holds 2^8."""
    case = build(replace(SMALL, decomp_base=4, decomp_legs=4))
    with pytest.raises(ProofError, match="ezkl cannot"):
        case.prove()


def test_a_task_without_a_layout_gets_one_that_both_sides_agree_on(
    build: Any, tmp_path: Path
) -> None:
    case = build({"input_scale": 9})
    proof = case.prove()
    assert case.verify(proof, workdir=tmp_path).confidence_ppm == 1_000_000
    chosen = decode_canonical(proof.payload)["circuit"]
    assert (chosen["input_scale"], chosen["param_scale"]) == (9, 12)


def test_a_batch_is_one_proof(build: Any) -> None:
    onnx = with_batch(ranker(batch="n"), 5)
    candidates = np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype(np.float32)
    case = build(onnx=onnx, inputs=X | {"candidates": candidates})
    assert case.verify(case.prove()).confidence_ppm == 1_000_000


HASHED = replace(SMALL, input_visibility="hashed", logrows=11)


def hashes(inputs: Any) -> dict[str, bytes]:
    return {name: poseidon(quantise(item, 8).ravel().tolist()) for name, item in inputs.items()}


def test_a_hashed_input_is_tied_by_its_hash_and_shown_to_nobody(build: Any) -> None:
    case = build(HASHED, shown=None, hashes=hashes(X))
    proof = case.prove()
    verdict = case.verify(proof)
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 1_000_000), verdict.reason
    assert set(decode_canonical(proof.payload)) == {"srs", "circuit", "outputs", "proof"}
    for item in X.values():
        for width in ("<i8", "<i4", "<i2", ">i8"):
            assert quantise(item, 8).astype(width).tobytes() not in proof.payload
    other = build(HASHED, shown=None, hashes=hashes(X) | {"query": bytes(32)})
    with pytest.raises(ProofError, match="not what the task's input says"):
        other.prove()
    lifted = other.forge(proof, proof.payload, input_cid=other.input.cid)
    lifted = other.forge(
        lifted, proof.payload, input_cid=other.input.cid, task_id=other.spec.task_id
    )
    assert other.verify(lifted).outcome is Outcome.INVALID


def test_a_verifier_with_the_inputs_hashes_them_itself(build: Any) -> None:
    case = build(HASHED)
    assert case.verify(case.prove()).confidence_ppm == 1_000_000


def test_inputs_shown_beside_hashes_of_others_are_not_the_proven_ones(build: Any) -> None:
    """A buyer and a node together would show one input and prove another."""
    hidden = build(HASHED, shown=None, hashes=hashes(X))
    proof = hidden.prove()
    shown = X | {"query": -X["query"]}
    case = build(HASHED, shown=shown, hashes=hashes(X))
    changes = {"input_cid": case.input.cid, "task_id": case.spec.task_id}
    verdict = case.verify(case.forge(proof, proof.payload, **changes))
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "other hashes than those of the inputs" in verdict.reason
    with pytest.raises(ProofError, match="other hashes than those of the inputs"):
        case.prove()
    agreed = build(HASHED, hashes=hashes(X))
    assert agreed.verify(agreed.prove()).outcome is Outcome.VALID


def test_a_private_input_is_tied_to_nothing(build: Any) -> None:
    case = build(replace(SMALL, input_visibility="private", logrows=11), shown=None)
    verdict = case.verify(case.prove())
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 900_000), verdict.reason


def test_hidden_weights_are_tied_by_the_models_digest(build: Any, zk_workdir: Path) -> None:
    """The verifier has an architecture full of noise and 32 bytes."""
    hidden = replace(SMALL, param_visibility="hashed", logrows=11)
    onnx = ranker()
    weights_hash = compile_circuit(onnx, hidden, zk_workdir).weights_hash()
    blank = without_weights(onnx)
    case = build(hidden)
    model = case.spec.model.model_copy(update={"digest": hidden_digest(blank, weights_hash)})
    case = replace(
        case,
        spec=case.spec.model_copy(update={"model": model}),
        materials=Materials(blobs={"a": blank, "w": weights_hash}),
    )
    proof = case.prove()
    verdict = case.verify(proof)
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 1_000_000), verdict.reason
    cheat = ranker(seed=3)
    evidence = case.execution.evidence | {"onnx": cheat}
    output = onnx_output(read_onnx(cheat), run(cheat, X), bytes(32))
    with pytest.raises(ProofError):
        replace(case, execution=replace(case.execution, evidence=evidence, output=output)).prove()


@pytest.mark.parametrize(
    ("field", "mangle"),
    [
        ("proof", lambda proof: bytes(len(proof))),
        ("proof", lambda proof: b"\xff" * len(proof)),
        ("proof", lambda proof: proof[:-32]),
        ("proof", lambda proof: proof[:-1]),
        ("proof", lambda proof: proof + bytes(32)),
        ("proof", lambda proof: proof + proof),
        ("proof", lambda _: b""),
        ("proof", lambda _: bytes(1 << 19)),
        ("proof", lambda _: 7),
        ("outputs", lambda outputs: outputs[:-32]),
        ("outputs", lambda outputs: outputs + bytes(32)),
        ("outputs", lambda outputs: b"\xff" * len(outputs)),
        ("outputs", lambda _: b""),
        ("outputs", lambda _: bytes(32 * 9000)),
        ("outputs", list),
        ("circuit", lambda circuit: circuit | {"logrows": 11}),
        ("circuit", lambda circuit: circuit | {"logrows": 1 << 40}),
        ("circuit", lambda circuit: circuit | {"input_visibility": "private"}),
        ("circuit", lambda circuit: circuit | {"input_visibility": ["public"]}),
        ("circuit", lambda circuit: circuit | {"decomp_base": 0}),
        ("circuit", lambda _: []),
        ("srs", lambda srs: srs[1:]),
        ("more", lambda _: 1),
    ],
)
def test_mangled_payloads_are_invalid(honest: Any, field: str, mangle: Any) -> None:
    case, proof = honest
    fields = decode_canonical(proof.payload)
    payload = canonical(fields | {field: mangle(fields.get(field))})
    verdict = case.verify(case.forge(proof, payload))
    assert verdict.outcome is Outcome.INVALID, verdict.reason


@FUZZ
@given(data=st.data())
def test_any_flipped_bit_is_invalid_or_cannot_be_told(data: Any, honest: Any) -> None:
    case, proof = honest
    payload = bytearray(proof.payload)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert case.verify(case.forge(proof, bytes(payload))).outcome is not Outcome.VALID


@FUZZ
@given(payload=st.binary(max_size=4096))
def test_random_payloads_are_invalid(payload: bytes, honest: Any) -> None:
    case, proof = honest
    assert case.verify(case.forge(proof, payload)).outcome is Outcome.INVALID


def test_what_is_not_at_hand_cannot_be_told(honest: Any) -> None:
    case, proof = honest
    fields = decode_canonical(proof.payload)
    other = case.forge(proof, canonical(fields | {"srs": bytes(32)}))
    assert "another SRS" in case.verify(other).reason
    for changes in (
        {"materials": Materials()},
        {"materials": Materials(blobs={"x": b"no model"})},
        {"output": None},
        {"input": None},
    ):
        assert case.verify(proof, **changes).outcome is Outcome.CANNOT_TELL


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"inputs": {}},
        {"inputs": {"query": "text"}},
        {"inputs": {"query": [[1, 2], [3]]}},
        {"inputs": {"query": [True, False]}},
        {"inputs": {"query": [10**400]}},
        {"inputs": {"query": [1e300]}},
        {"inputs": {"query": None}},
        {"inputs": {str(n): [0] for n in range(99)}},
        {"circuit": {}},
        {"inputs": {"x": [1]}, "circuit": []},
        {"inputs": {"x": [1]}, "circuit": {"logrows": 12}},
        {"inputs": {"x": [1]}, "circuit": {"unknown": 1}},
        {"inputs": {"x": [1]}, "circuit": {"input_scale": 99}},
        {"inputs": {"x": [1]}, "circuit": {"input_scale": True}},
        {"inputs": {"x": [1]}, "circuit": {"input_visibility": "committed"}},
        {"inputs": {"x": [1]}, "max_error": -1},
        {"inputs": {"x": [1]}, "max_error": "0.1"},
        {"inputs": {"x": [1]}, "max_error": True},
        {"hashes": {"x": "00"}, "circuit": {"input_visibility": "hashed"}},
        {"hashes": {"x": 1}, "circuit": {"input_visibility": "hashed"}},
        {"hashes": [], "circuit": {"input_visibility": "hashed"}},
        {"circuit": {"input_visibility": "hashed"}},
        {"inputs": {"x": [1]}, "more": 1},
    ],
    ids=str,
)
def test_malformed_tasks_are_refused(value: Any) -> None:
    with pytest.raises(EncodingError):
        read_task(Content.json_value(value, bytes(32)))


def test_texts_among_the_numbers_never_become_an_array() -> None:
    """75 kB once became 1 GB: NumPy makes every text as wide as the longest."""
    import tracemalloc

    bomb = {"scores": ["x" * 50_000, *["a"] * 5_000]}
    tracemalloc.start()
    try:
        for read, value in ((read_outputs, {"outputs": bomb}), (read_task, {"inputs": bomb})):
            with pytest.raises(EncodingError, match="not an array of numbers"):
                read(Content.json_value(value, bytes(32)))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_tasks_for_other_tensors_accuse_nobody(honest: Any, build: Any) -> None:
    case, proof = honest
    for inputs in ({"query": X["query"]}, X | {"candidates": X["query"]}):
        other = onnx_input(inputs, circuit=SMALL, salt=bytes(32))
        spec = case.spec.model_copy(update={"input_cid": other.cid})
        moved = replace(case, spec=spec, input=other)
        forged = moved.forge(proof, proof.payload, input_cid=other.cid, task_id=spec.task_id)
        assert moved.verify(forged).outcome is Outcome.CANNOT_TELL


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1, 1)])
def test_the_right_values_in_another_shape_are_invalid(honest: Any, shape: Any) -> None:
    """Whoever reads ``scores[2][0]`` would fail on a step that was paid for."""
    case, proof = honest
    scores = case.execution.output.value()["outputs"]["scores"]
    value = {"outputs": {"scores": np.reshape(scores, shape).tolist()}}
    output = Content.json_value(value, bytes(32))
    cheat = replace(case, execution=replace(case.execution, output=output))
    verdict = cheat.verify(cheat.forge(proof, proof.payload, output_cid=output.cid))
    assert verdict.outcome is Outcome.INVALID
    assert "shape" in verdict.reason


@pytest.mark.parametrize(
    "value",
    [{}, {"outputs": {}}, {"outputs": {"other": [1]}}, {"outputs": {"scores": [1]}}, []],
    ids=str,
)
def test_malformed_outputs_are_invalid(honest: Any, value: Any) -> None:
    case, proof = honest
    output = Content.json_value(value, bytes(32))
    cheat = replace(case, execution=replace(case.execution, output=output))
    forged = cheat.forge(proof, proof.payload, output_cid=output.cid)
    assert cheat.verify(forged).outcome is Outcome.INVALID

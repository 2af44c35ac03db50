"""``zk`` with the real ezkl: the demo's policy, its cheats, its cache, and hostile payloads."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Materials
from daifi_flows.encoding import canonical, cid_of, decode_canonical
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs import Outcome
from daifi_flows.proofs._policy import (
    SCALE_BITS,
    quantise_input,
    quantise_weights,
    read_policy,
    scores,
    write_policy,
)
from daifi_flows.proofs._zk_policy import policy_circuit
from daifi_flows.proofs.circuits import find_srs

FUZZ = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_an_honest_pick_is_valid(zk_case: Any, zk_proof: Any) -> None:
    verdict = zk_case.verify(zk_proof)
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 1_000_000), verdict.reason
    assert len(zk_proof.payload) < 8_000


def test_an_auditor_with_another_workdir_needs_only_the_materials(
    zk_case: Any, zk_proof: Any, tmp_path: Path
) -> None:
    """The vk is recomputed from the ONNX file and the shipped SRS, wherever the proof was made."""
    verdict = zk_case.verify(zk_proof, workdir=tmp_path, reference=None)
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 900_000), verdict.reason
    assert "no embedder" in verdict.reason


def edited(case: Any, **fields: Any) -> Any:
    """The case with a changed output, and the proof that the cheat makes of it."""
    value = case.execution.output.value() | fields
    output = Content.json_value({k: v for k, v in value.items() if v is not ...}, bytes(32))
    return replace(case, execution=replace(case.execution, output=output))


@pytest.mark.parametrize(
    "fields",
    [
        {"index": 9},
        {"index": -1},
        {"index": True},
        {"index": 1.0},
        {"tool": "rm"},
        {"scores_ppm": [1, 2]},
        {"scores_ppm": [10**6] * 3},
        {"scores_ppm": [0.1, 0.2, 0.3]},
        {"scores_ppm": [10**300] * 3},
        {"scores_ppm": None},
        {"extra": 1},
        {"tool": ...},
    ],
    ids=str,
)
def test_an_edited_output_is_invalid(zk_case: Any, zk_proof: Any, fields: Any) -> None:
    cheat = edited(zk_case, **fields)
    with pytest.raises(ProofError):
        cheat.prove()
    cid = cheat.execution.output.cid
    proof = cheat.forge(zk_proof, zk_proof.payload, output_cid=cid)
    assert cheat.verify(proof).outcome is Outcome.INVALID


def test_another_pick_is_invalid(zk_case: Any, zk_proof: Any) -> None:
    right = zk_case.execution.output.value()["index"]
    wrong = (right + 1) % 3
    cheat = edited(zk_case, index=wrong, tool=zk_case.input.value()["tools"][wrong]["name"])
    with pytest.raises(ProofError, match="best"):
        cheat.prove()
    proof = cheat.forge(zk_proof, zk_proof.payload, output_cid=cheat.execution.output.cid)
    assert "not the best" in cheat.verify(proof).reason


def test_a_proof_about_another_vector_is_invalid(zk_case: Any) -> None:
    """The SNARK holds, on a vector that picks another tool: only the embedding gives it away."""
    weights = read_policy(zk_case.execution.evidence["onnx"])
    right = zk_case.execution.output.value()["index"]
    wrong = (right + 1) % 3
    vector = weights[:, wrong].reshape(1, 384)
    row = (vector @ weights)[0]
    cheat = edited(
        zk_case,
        index=wrong,
        tool=zk_case.input.value()["tools"][wrong]["name"],
        scores_ppm=[round(float(score) * 1e6) for score in row],
    )
    evidence = cheat.execution.evidence | {"input": vector}
    cheat = replace(cheat, execution=replace(cheat.execution, evidence=evidence))
    proof = cheat.prove()
    assert cheat.verify(proof).outcome is Outcome.INVALID
    assert cheat.verify(proof, reference=None).confidence_ppm < 990_000


@pytest.mark.parametrize(
    ("field", "mangle"),
    [
        ("proof", lambda proof: bytes(len(proof))),
        ("proof", lambda proof: b"\xff" * len(proof)),
        ("proof", lambda proof: proof[:-32]),
        ("proof", lambda proof: proof[:-1]),
        ("proof", lambda proof: proof + bytes(32)),
        ("proof", lambda proof: proof + proof),
        ("proof", lambda proof: proof + b"\0"),
        ("proof", lambda _: b""),
        ("proof", lambda _: bytes(65_568)),
        ("proof", lambda _: "text"),
        ("outputs", lambda outputs: [outputs[0] + 1, *outputs[1:]]),
        ("outputs", lambda outputs: [*outputs, 0]),
        ("outputs", lambda _: []),
        ("outputs", lambda _: [2**62] * 3),
        ("outputs", lambda outputs: outputs[::-1]),
        ("outputs", lambda outputs: [str(item) for item in outputs]),
        ("input", lambda vector: vector[2:] + vector[:2]),
        ("input", lambda vector: bytes(len(vector))),
        ("input", lambda _: b"\x00\x80" * 384),
        ("input", lambda vector: vector + b"\0\0"),
        ("input", list),
        ("srs", lambda srs: srs[1:]),
        ("more", lambda _: 1),
    ],
)
def test_mangled_payloads_are_invalid(zk_case: Any, zk_proof: Any, field: str, mangle: Any) -> None:
    fields = decode_canonical(zk_proof.payload)
    payload = canonical(fields | {field: mangle(fields.get(field))})
    verdict = zk_case.verify(zk_case.forge(zk_proof, payload))
    assert verdict.outcome is Outcome.INVALID, verdict.reason


@FUZZ
@given(data=st.data())
def test_any_flipped_bit_is_invalid_or_cannot_be_told(
    data: Any, zk_case: Any, zk_proof: Any
) -> None:
    payload = bytearray(zk_proof.payload)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    verdict = zk_case.verify(zk_case.forge(zk_proof, bytes(payload)))
    assert verdict.outcome is not Outcome.VALID


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(payload=st.binary(max_size=4096))
def test_random_payloads_are_invalid(payload: bytes, zk_case: Any, zk_proof: Any) -> None:
    assert zk_case.verify(zk_case.forge(zk_proof, payload)).outcome is Outcome.INVALID


def test_another_srs_or_missing_material_cannot_be_told(
    zk_case: Any, zk_proof: Any, kit: Any
) -> None:
    fields = decode_canonical(zk_proof.payload)
    other = zk_case.forge(zk_proof, canonical(fields | {"srs": bytes(32)}))
    assert "another SRS" in zk_case.verify(other).reason
    for changes in (
        {"materials": Materials()},
        {"materials": Materials(blobs={"x": b"not the policy"})},
        {"output": None},
    ):
        assert zk_case.verify(zk_proof, **changes).outcome is Outcome.CANNOT_TELL
    private = zk_case.verify(zk_proof, input=None)
    assert (private.outcome, private.confidence_ppm) == (Outcome.VALID, 900_000)


def test_faults_of_the_task_or_the_embedder_accuse_nobody(
    zk_case: Any, zk_proof: Any, kit: Any
) -> None:
    vectors = dict(zk_case.reference.vectors)
    tool = next(text for text in vectors if text.startswith("ask"))
    kind = type(zk_case.reference)
    off = kind(vectors=vectors | {tool: -vectors[tool]})
    assert zk_case.verify(zk_proof, reference=off).outcome is Outcome.CANNOT_TELL
    gone = kind()
    gone.error = ModelError("no embedder")
    assert zk_case.verify(zk_proof, reference=gone).confidence_ppm == 900_000
    nan = kind(vectors={text: vector * np.nan for text, vector in vectors.items()})
    assert zk_case.verify(zk_proof, reference=nan).confidence_ppm == 900_000


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"onnx": b"another file"},
        {"input": np.full((1, 384), np.nan, np.float32)},
        {"input": np.full((1, 384), 7.0, np.float32)},
        {"input": np.zeros((1, 4), np.float32)},
        {"input": None},
    ],
    ids=str,
)
def test_execution_without_usable_evidence_cannot_be_proven(zk_case: Any, evidence: Any) -> None:
    given = (zk_case.execution.evidence | evidence) if evidence else {}
    with pytest.raises(ProofError):
        replace(zk_case, execution=replace(zk_case.execution, evidence=given)).prove()


def test_the_circuit_is_that_of_the_weights(zk_case: Any, zk_workdir: Path) -> None:
    """Another policy with the same shape has another vk: its proofs do not pass for this one's."""
    weights = quantise_weights(read_policy(zk_case.execution.evidence["onnx"]))
    other = weights.copy()
    other[0, 0] += 1
    vector = quantise_input(zk_case.execution.evidence["input"])
    mine, theirs = (policy_circuit(item, zk_workdir) for item in (weights, other))
    assert mine.path != theirs.path
    assert (mine.path / "vk").read_bytes() != (theirs.path / "vk").read_bytes()
    snark = theirs.prove([vector * 2.0**-SCALE_BITS])
    assert theirs.read(snark.instances).outputs == {"scores": scores(vector, other)}
    assert theirs.verify(snark) is None
    assert mine.verify(snark) is not None


def test_a_policy_is_small_and_its_settings_are_within_the_shipped_srs(
    zk_case: Any, zk_proof: Any, zk_workdir: Path
) -> None:
    weights = quantise_weights(read_policy(zk_case.execution.evidence["onnx"]))
    circuit = policy_circuit(weights, zk_workdir)
    assert (circuit.srs.logrows, circuit.srs.path.stat().st_size) == (10, 131_332)
    assert "untrusted" in circuit.srs.origin
    assert (circuit.path / "pk").stat().st_size < 8 << 20


@pytest.mark.parametrize("file", ["vk", "pk", "settings.json", "circuit.ezkl", "sha256.json"])
def test_a_damaged_cache_is_built_again(
    zk_case: Any, zk_proof: Any, tmp_path: Path, file: str
) -> None:
    weights = quantise_weights(read_policy(zk_case.execution.evidence["onnx"]))
    home = policy_circuit(weights, tmp_path).path
    (home / file).write_bytes(b"\0" * 10)
    assert zk_case.verify(zk_proof, workdir=tmp_path).outcome is Outcome.VALID


def test_a_damaged_srs_accuses_nobody(tmp_path: Path, zk_case: Any, zk_proof: Any) -> None:
    srs = find_srs(10, tmp_path)
    assert srs.cid == cid_of(srs.path.read_bytes())
    srs.path.write_bytes(srs.path.read_bytes()[:-1])
    assert zk_case.verify(zk_proof, workdir=tmp_path).outcome is Outcome.CANNOT_TELL


def test_policy_files_round_trip() -> None:
    weights = np.random.default_rng(0).normal(size=(384, 5)).astype(np.float32) / 20
    quantised = quantise_weights(weights)
    again = read_policy(write_policy(quantised))
    assert np.array_equal(quantise_weights(again), quantised)
    assert np.abs(again - weights).max() <= 2.0**-14


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"\xff" * 100, os.urandom(64), bytes(300_000)], ids=len
)
def test_what_is_not_a_policy_is_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        read_policy(data)


@given(data=st.binary(max_size=300))
def test_random_bytes_are_not_a_policy(data: bytes) -> None:
    with pytest.raises(EncodingError):
        read_policy(data)


@given(st.data())
def test_a_flipped_policy_is_a_policy_or_refused(data: Any) -> None:
    onnx = bytearray(write_policy(np.ones((384, 1), np.int64)))
    onnx[data.draw(st.integers(0, len(onnx) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        weights = read_policy(bytes(onnx))
    except EncodingError:
        return
    assert weights.shape == (384, 1)

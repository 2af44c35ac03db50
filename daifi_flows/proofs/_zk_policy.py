"""``zk`` for the tool policy of an ``act`` step: its scores, its pick, and the text it saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import PPM, Content, Execution, Materials, Proof, TaskSpec
from daifi_flows.encoding import canonical, decode_canonical, decode_canonical_json
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs._policy import (
    INPUT_WIDTH,
    MAX_TOOLS,
    SCALE_BITS,
    SCORE_UNIT,
    policy_digest,
    quantise_input,
    quantise_weights,
    read_policy,
    scores,
    write_policy,
)
from daifi_flows.proofs._scheme import Claim, Outcome, Reference, Verdict, cannot_tell, invalid
from daifi_flows.proofs.circuits import (
    Circuit,
    CircuitSettings,
    Public,
    Snark,
    check_proof,
    compile_circuit,
)

__all__ = ["POLICY_SETTINGS", "policy_circuit", "prove_policy", "verify_policy"]

POLICY_SETTINGS: Final = CircuitSettings(
    input_scale=SCALE_BITS, param_scale=SCALE_BITS, rebase_multiplier=16, logrows=10
)
"""Found by the tuner for a linear layer, and fixed: nodes and seats must agree on them. Nothing is
ever scaled back, so that scores are exact dot products and no range check is needed: 2¹⁰ rows
instead of the 2¹⁵ of ezkl's own calibration. The verifier checks the public integers' range."""

SCORE_PPM: Final = 2_000
"""How far a reported score may lie from the proven one: 40 standard deviations of quantisation."""
TIE_PPM: Final = 1_000
"""The pick may trail the best proven score by this much: float and integer arithmetic can order a
near tie differently."""
VECTOR_L2: Final = 0.01
"""How far the proven vector may lie from the verifier's own embedding: quantisation (≤ 0.0012) and
kernels. It bounds the error of every score by as much."""
WEIGHTS_L2: Final = 0.02
"""The same for a tool's column, which may have been embedded on another machine."""
UNTIED_PPM: Final = 900_000
"""Confidence when the SNARK holds but the vector was not tied to the input's text: not enough for a
committee."""

_MAX_PROOF: Final = 64 * 1024
_MAX_PAYLOAD: Final = _MAX_PROOF + 4096
_MAX_SCORE: Final = 1 << 38
_KEYS: Final = frozenset({"srs", "input", "outputs", "proof"})


@dataclass(frozen=True)
class _Payload:
    srs: bytes
    vector: NDArray[np.int64]
    outputs: list[int]
    proof: bytes


def policy_circuit(weights: NDArray[np.int64], workdir: Path) -> Circuit:
    """The circuit of quantised ``weights`` ``[384, tools]``: compiled from a file written here, so
    that a stranger's never reaches the compiler.

    Raises:
        ProofError: ezkl cannot compile it.
    """
    return compile_circuit(write_policy(weights), POLICY_SETTINGS, workdir)


def prove_policy(claim: Claim, execution: Execution, workdir: Path) -> bytes:
    """Prove ``execution.evidence``: ``onnx`` (bytes) and ``input`` (float32 ``[1, 384]``).

    Raises:
        ProofError: the evidence is missing, is not the spec's model, or contradicts the output; or
            ezkl fails.
    """
    spec, input = claim.spec, claim.input
    try:
        onnx, given = execution.evidence["onnx"], execution.evidence["input"]
        if not isinstance(onnx, bytes):  # bytes(10**10) would be 10 GB of zeros
            raise TypeError("the ONNX file is not bytes")
        vector = quantise_input(np.asarray(given, np.float32))
    except (KeyError, TypeError, ValueError, OverflowError, EncodingError) as error:
        raise ProofError(
            f"zk needs the engine's onnx and input as evidence and this engine gave none: {error}"
        ) from error
    if policy_digest(onnx) != spec.model.digest:
        raise ProofError("the ONNX file is not the model that the spec names")
    try:
        weights = quantise_weights(read_policy(onnx))
    except EncodingError as error:
        raise ProofError(f"zk cannot prove this policy: {error}") from error
    outputs = scores(vector, weights)
    if fault := _output_fault(execution.output, outputs, _tools(input)):
        raise ProofError(f"zk cannot prove this output: {fault}")
    circuit = policy_circuit(weights, workdir)
    snark = circuit.prove([vector * 2.0**-SCALE_BITS])
    if snark.instances != circuit.write(_public(vector, outputs)):
        raise ProofError("the circuit's scores are not the policy's")
    return canonical(
        {
            "srs": circuit.srs.digest,
            "input": vector.astype("<i2").tobytes(),
            "outputs": outputs,
            "proof": snark.proof,
        }
    )


def verify_policy(
    claim: Claim, proof: Proof, reference: Reference | None, workdir: Path
) -> Verdict:
    """Bytes, integers, output, embedding, then the SNARK: cheapest first.

    The ONNX file is looked for among ``materials.blobs`` by the spec's model digest.
    """
    spec, input, output, materials = claim.spec, claim.input, claim.output, claim.materials
    try:
        payload = _parse(proof.payload)
    except EncodingError as error:
        return invalid(f"the payload is malformed: {error}")
    if output is None:
        return cannot_tell("the output is private and was not opened here")
    weights = _weights(spec, materials)
    if isinstance(weights, str):
        return cannot_tell(weights)
    quantised = quantise_weights(weights)
    if payload.outputs != scores(payload.vector, quantised):
        return invalid("the claimed scores are not the policy's on the claimed vector")
    if fault := _output_fault(output, payload.outputs, _tools(input)):
        return invalid(fault)
    untied: str | None = "the input is private and was not opened here"
    if input is not None:
        untied = _tie(input, payload.vector, weights, reference)
        if isinstance(untied, _Accusation):
            return invalid(untied)
        if isinstance(untied, _Mismatch):
            return cannot_tell(untied)
    circuit = policy_circuit(quantised, workdir)
    if payload.srs != circuit.srs.digest:
        return cannot_tell("the proof was made under another SRS than the one at hand")
    instances = circuit.write(_public(payload.vector, payload.outputs))
    if fault := circuit.verify(Snark(payload.proof, instances)):
        return invalid(f"the SNARK does not hold: {fault}")
    if untied is not None:
        return Verdict(
            Outcome.VALID,
            UNTIED_PPM,
            f"the SNARK holds for the proven vector; that it is the input's embedding was not "
            f"checked: {untied}",
        )
    return Verdict(Outcome.VALID, PPM, "the SNARK holds, and its vector is the input's")


def _public(vector: NDArray[np.int64], outputs: list[int]) -> Public:
    """The public integers under the names :func:`write_policy` gives them."""
    return Public(inputs={"input": vector.tolist()}, outputs={"scores": outputs})


class _Accusation(str):
    """A fault of the node."""


class _Mismatch(str):
    """A fault of the task: nobody to accuse."""


def _tie(
    input: Content,
    vector: NDArray[np.int64],
    weights: NDArray[np.float32],
    reference: Reference | None,
) -> str | None:
    """``None`` when vector and weights are the embeddings of the input's texts; else why not."""
    if reference is None:
        return "no embedder is at hand"
    texts = _texts(input)
    if texts is None or len(texts) != weights.shape[1] + 1:
        return _Mismatch("the input does not hold one text and a tool for each column")
    try:
        embedded = np.asarray(reference.embed(texts), np.float32)
    except ModelError as error:
        return str(error)
    if embedded.shape != (len(texts), INPUT_WIDTH) or not bool(np.isfinite(embedded).all()):
        return "the embedder at hand gave no usable vectors"
    off = float(np.linalg.norm(vector * 2.0**-SCALE_BITS - embedded[0]))
    if off > VECTOR_L2:
        return _Accusation(f"the proven vector is {off:.3f} away from the input's embedding")
    columns = np.linalg.norm(weights.T - embedded[1:], axis=1)
    if float(columns.max()) > WEIGHTS_L2:
        worst = int(columns.argmax())
        return _Mismatch(f"the policy's column {worst} is not the embedding of tool {worst}")
    return None


def _texts(input: Content) -> list[str] | None:
    """The input's text, then ``name: description`` of each tool."""
    try:
        value = input.value()
        text, tools = value["text"], value["tools"]
        texts = [text, *(f"{tool['name']}: {tool['description']}" for tool in tools)]
    except (EncodingError, KeyError, TypeError):
        return None
    return texts if isinstance(text, str) and len(texts) <= MAX_TOOLS + 1 else None


def _tools(input: Content | None) -> list[str] | None:
    if input is None:
        return None
    try:
        return [str(tool["name"]) for tool in input.value()["tools"]]
    except (EncodingError, KeyError, TypeError):
        return []


def _weights(spec: TaskSpec, materials: Materials) -> NDArray[np.float32] | str:
    """The spec's policy from the materials, or why it is not to be had."""
    for blob in materials.blobs.values():
        if policy_digest(blob) == spec.model.digest:
            try:
                weights = read_policy(blob)
                quantise_weights(weights)
            except EncodingError as error:
                return f"the task's policy cannot be proven: {error}"
            return weights
    return "the policy's ONNX file is not among the materials"


def _output_fault(output: Content, outputs: list[int], tools: list[str] | None) -> str | None:
    """Why the output does not follow from the proven scores; ``None`` when it does."""
    if output.media_type != "application/json":
        return f"the output is {output.media_type}, not JSON"
    try:
        value = decode_canonical_json(output.data, max_bytes=64 * 1024)
    except EncodingError as error:
        return f"the output is malformed: {error}"
    if not isinstance(value, dict) or value.keys() != {"tool", "index", "scores_ppm"}:
        return "the output does not hold exactly tool, index and scores_ppm"
    fields = cast("dict[str, Any]", value)
    index, reported = fields["index"], fields["scores_ppm"]
    if type(index) is not int or not 0 <= index < len(outputs):
        return "the output's index is not that of a score"
    if not isinstance(reported, list) or len(cast("list[Any]", reported)) != len(outputs):
        return "the output does not report one score a tool"
    proven = [score * SCORE_UNIT * PPM for score in outputs]
    for position, score in enumerate(cast("list[Any]", reported)):
        if type(score) is not int or abs(score) > 1 << 40:
            return f"score {position} is not an integer in range"
        if abs(score - proven[position]) > SCORE_PPM:
            return f"score {position} is reported as {score} ppm, proven {proven[position]:.0f}"
    if proven[index] < max(proven) - TIE_PPM:
        return f"the pick {index} is not the best proven score"
    if tools is not None and (len(tools) != len(outputs) or fields["tool"] != tools[index]):
        return "the output does not name the tool at its index"
    return None


def _parse(payload: bytes) -> _Payload:
    """Fields of a payload with exact sizes.

    Raises:
        EncodingError: not canonical, or a field is missing, misshapen or out of range.
    """
    value = decode_canonical(payload, max_bytes=_MAX_PAYLOAD)
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise EncodingError("it does not hold exactly srs, input, outputs and proof")
    fields = cast("dict[str, Any]", value)
    srs, packed, outputs, proof = (fields[key] for key in ("srs", "input", "outputs", "proof"))
    if not isinstance(srs, bytes) or len(srs) != 32:
        raise EncodingError("srs is not 32 bytes")
    if not isinstance(packed, bytes) or len(packed) != 2 * INPUT_WIDTH:
        raise EncodingError(f"input is not {INPUT_WIDTH} 16-bit integers")
    vector = np.frombuffer(packed, "<i2").astype(np.int64)
    if int(np.abs(vector).max()) > 1 << SCALE_BITS:
        raise EncodingError("input has a component beyond ±1")
    if not isinstance(outputs, list) or not 1 <= len(cast("list[Any]", outputs)) <= MAX_TOOLS:
        raise EncodingError(f"outputs is not a list of 1 to {MAX_TOOLS}")
    if any(type(item) is not int or abs(item) > _MAX_SCORE for item in cast("list[Any]", outputs)):
        raise EncodingError("outputs are not integers in range")
    check_proof(proof, _MAX_PROOF)
    return _Payload(srs, vector, cast("list[int]", outputs), proof)

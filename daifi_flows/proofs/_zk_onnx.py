"""``zk`` for any ONNX model: several inputs, batches, hidden inputs and hidden weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import PPM, Content, Execution, Proof
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, ProofError
from daifi_flows.proofs._onnx_task import OnnxTask, find_model, read_outputs, read_task
from daifi_flows.proofs._scheme import Claim, Outcome, Verdict, cannot_tell, invalid
from daifi_flows.proofs.circuits import (
    FIELD,
    MAX_PROOF_BYTES,
    Circuit,
    CircuitSettings,
    Public,
    Snark,
    check_proof,
    compile_circuit,
    fit,
    onnx_digest,
    poseidon,
)

__all__ = ["prove_onnx", "verify_onnx"]

UNTIED_PPM: Final = 900_000
"""Confidence when the SNARK holds for some input that nothing ties to the task's: not enough for a
committee."""
_MAX_OUTPUTS: Final = 8192
_MAX_PAYLOAD: Final = MAX_PROOF_BYTES + 32 * _MAX_OUTPUTS + 8192
_KEYS: Final = frozenset({"srs", "circuit", "outputs", "proof"})


@dataclass(frozen=True)
class _Payload:
    srs: bytes
    settings: CircuitSettings
    outputs: tuple[int, ...]
    """Field elements of all outputs, in the model's order."""
    proof: bytes


def prove_onnx(claim: Claim, execution: Execution, workdir: Path) -> bytes:
    """Prove ``execution.evidence``: ``onnx`` (bytes) and ``inputs`` (float32 arrays by name).

    The payload holds the proven outputs and the proof. What else is public (inputs or their hashes,
    the hash of the weights) a verifier has from the task.

    Raises:
        ProofError: the evidence is missing, is not the spec's model, or contradicts the task or the
            output; or ezkl fails.
    """
    try:
        onnx, inputs = execution.evidence["onnx"], dict(execution.evidence["inputs"])
        if not isinstance(onnx, bytes):  # bytes(10**10) would be 10 GB of zeros
            raise TypeError("the ONNX file is not bytes")
    except (KeyError, TypeError, ValueError) as error:
        raise ProofError(
            "zk needs the engine's onnx and inputs as evidence; this engine gave none: choose "
            "another scheme"
        ) from error
    if claim.input is None:
        raise ProofError("zk needs the task's input, which says how it is to be proven")
    try:
        task = read_task(claim.input)
        digest = claim.spec.model.digest
        found = find_model(digest, claim.materials)
        expected = found[1] if found is not None else None
        if expected is None and onnx_digest(onnx) != digest:
            raise ProofError("the ONNX file is not the model that the spec names")
        settings = _settings(task, found[0] if expected and found else onnx, workdir, expected)
        circuit = compile_circuit(onnx, settings, workdir)
        snark = circuit.prove(inputs)
        public = circuit.read(snark.instances)
        if public != _public(circuit, task, public.outputs, expected, inputs):
            raise ProofError("the evidence is not what the task's input says")
        if fault := _output_fault(execution.output, circuit, public.outputs, task.max_error):
            raise ProofError(f"zk cannot prove this output: {fault}")
    except EncodingError as error:
        raise ProofError(f"zk cannot prove this step: {error}") from error
    size = sum(tensor.size for tensor in circuit.outputs)
    return canonical(
        {
            "srs": circuit.srs.digest,
            "circuit": settings.plain(),
            "outputs": b"".join(v.to_bytes(32, "little") for v in snark.instances[-size:]),
            "proof": snark.proof,
        }
    )


def verify_onnx(claim: Claim, proof: Proof, workdir: Path) -> Verdict:
    """Bytes, settings and numbers first, the SNARK last."""
    try:
        payload = _parse(proof.payload)
    except EncodingError as error:
        return invalid(f"the payload is malformed: {error}")
    if claim.input is None or claim.output is None:
        return cannot_tell("the input or output was not opened here")
    try:
        task = read_task(claim.input)
    except EncodingError as error:
        return cannot_tell(f"the task cannot be proven: {error}")
    found = find_model(claim.spec.model.digest, claim.materials)
    if found is None:
        return cannot_tell("the model's ONNX file is not among the materials")
    onnx, expected = found
    try:
        settings = _settings(task, onnx, workdir, expected)
        if payload.settings != settings:
            return invalid("the proof is of another circuit than the task's")
        circuit = compile_circuit(onnx, settings, workdir)
        if payload.srs != circuit.srs.digest:
            return cannot_tell("the proof was made under another SRS than the one at hand")
        outputs = _named_outputs(circuit, payload.outputs)
        if outputs is None:
            return invalid("the payload has another number of outputs")
        public = _public(circuit, task, outputs, expected, None)
        instances = circuit.write(public)
    except EncodingError as error:  # the payload was fine: this is about the model or the input
        return cannot_tell(f"the task cannot be proven: {error}")
    if fault := _output_fault(claim.output, circuit, outputs, task.max_error):
        return invalid(fault)
    if fault := circuit.verify(Snark(payload.proof, instances)):
        return invalid(f"the SNARK does not hold: {fault}")
    if settings.input_visibility == "private":
        return Verdict(
            Outcome.VALID,
            UNTIED_PPM,
            "the SNARK holds for some input, which is private: nothing ties it to the task's",
        )
    return Verdict(Outcome.VALID, PPM, "the SNARK holds for the task's model and input")


def _settings(
    task: OnnxTask, onnx: bytes, workdir: Path, weights_hash: bytes | None
) -> CircuitSettings:
    """What both sides compile with.

    Raises:
        EncodingError: the task shows weights that the model hides.
    """
    if weights_hash is not None and task.settings.param_visibility != "hashed":
        raise EncodingError("the model's weights are hidden: the task's circuit must hash them")
    if task.complete:
        return task.settings
    return fit(onnx, task.settings, workdir)


def _public(
    circuit: Circuit,
    task: OnnxTask,
    outputs: Mapping[str, Any],
    weights_hash: bytes | None,
    own: Mapping[str, Any] | None,
) -> Public:
    """What the task makes public, with the proven outputs.

    Args:
        own: the prover's inputs, for what the task names no hash of.

    Raises:
        EncodingError: the task's inputs are not the model's, or not those whose hashes it names.
    """
    visibility = circuit.settings.input_visibility
    given = task.inputs if task.inputs is not None else own
    inputs = hashes = param_hash = None
    if visibility == "public":
        assert task.inputs is not None
        inputs = {name: flat.tolist() for name, flat in circuit.quantise(task.inputs).items()}
    if visibility == "hashed":
        named = dict(task.hashes) if task.hashes is not None else None
        hashes = named
        if named is None or task.inputs is not None:
            assert given is not None
            hashes = {n: poseidon(flat.tolist()) for n, flat in circuit.quantise(given).items()}
        if named is not None and named != hashes:
            raise EncodingError("the task names other hashes than those of the inputs it shows")
    if circuit.settings.param_visibility == "hashed":
        param_hash = weights_hash if weights_hash is not None else circuit.weights_hash()
    return Public(outputs, inputs, hashes, param_hash)


def _named_outputs(circuit: Circuit, elements: tuple[int, ...]) -> dict[str, list[int]] | None:
    if len(elements) != sum(tensor.size for tensor in circuit.outputs):
        return None
    found: dict[str, list[int]] = {}
    start = 0
    for tensor in circuit.outputs:
        part = elements[start : start + tensor.size]
        found[tensor.name] = [v if v <= FIELD // 2 else v - FIELD for v in part]
        start += tensor.size
    return found


def _output_fault(
    output: Content, circuit: Circuit, proven: Mapping[str, Any], max_error: float
) -> str | None:
    """Why the reported values do not follow from the proven integers; ``None`` when they do."""
    try:
        reported = read_outputs(output)
    except EncodingError as error:
        return f"the output is malformed: {error}"
    if reported.keys() != {tensor.name for tensor in circuit.outputs}:
        return "the output does not name the model's outputs"
    for tensor, scale in zip(circuit.outputs, circuit.output_scales, strict=True):
        values: NDArray[np.float64] = reported[tensor.name]
        exact = np.array([float(v) * 2.0**-scale for v in proven[tensor.name]], np.float64)
        if values.shape != tensor.shape:
            shapes = f"{list(values.shape)}, not {list(tensor.shape)}"
            return f"the output {tensor.name!r} has the shape {shapes}"
        off = float(np.abs(values.reshape(-1) - exact).max())
        if not off <= max_error:
            return f"{tensor.name!r} is reported {off:.3g} away from the proven values"
    return None


def _parse(payload: bytes) -> _Payload:
    """Fields of a payload with exact sizes.

    Raises:
        EncodingError: not canonical, or a field is missing, misshapen or out of range.
    """
    value = decode_canonical(payload, max_bytes=_MAX_PAYLOAD)
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise EncodingError("it does not hold exactly srs, circuit, outputs and proof")
    fields = cast("dict[str, Any]", value)
    srs, outputs, proof = fields["srs"], fields["outputs"], fields["proof"]
    if not isinstance(srs, bytes) or len(srs) != 32:
        raise EncodingError("srs is not 32 bytes")
    settings = CircuitSettings.parse(fields["circuit"])
    if not isinstance(outputs, bytes) or len(outputs) % 32 or not outputs:
        raise EncodingError("outputs are not whole field elements")
    if len(outputs) > 32 * _MAX_OUTPUTS:
        raise EncodingError(f"outputs are more than {_MAX_OUTPUTS}")
    elements = tuple(
        int.from_bytes(outputs[start : start + 32], "little")
        for start in range(0, len(outputs), 32)
    )
    if any(element >= FIELD for element in elements):
        raise EncodingError("an output is not a field element")
    check_proof(proof)
    return _Payload(srs, settings, elements, proof)

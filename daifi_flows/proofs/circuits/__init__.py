"""ONNX models as zk-SNARK circuits (ezkl: Halo2 with KZG on BN254): compile, prove, verify, tune.

>>> from daifi_flows.proofs.circuits import CircuitSettings
>>> CircuitSettings(input_visibility="hashed", logrows=14).logrows
14
"""

from __future__ import annotations

from daifi_flows.proofs.circuits._circuit import (
    MAX_PROOF_BYTES,
    Circuit,
    Public,
    Snark,
    Spent,
    check_proof,
)
from daifi_flows.proofs.circuits._compile import compile_circuit
from daifi_flows.proofs.circuits._field import FIELD, dequantise, poseidon, quantise
from daifi_flows.proofs.circuits._fit import fit
from daifi_flows.proofs.circuits._onnx import (
    MODEL_FILE,
    OnnxModel,
    Tensor,
    onnx_digest,
    read_onnx,
    with_batch,
    without_weights,
)
from daifi_flows.proofs.circuits._process import WorkerError
from daifi_flows.proofs.circuits._settings import CircuitSettings, Limits
from daifi_flows.proofs.circuits._srs import Srs, adopt_srs, find_srs
from daifi_flows.proofs.circuits._tuner import Tuned, float_outputs, tune

__all__ = [
    "FIELD",
    "MAX_PROOF_BYTES",
    "MODEL_FILE",
    "Circuit",
    "CircuitSettings",
    "Limits",
    "OnnxModel",
    "Public",
    "Snark",
    "Spent",
    "Srs",
    "Tensor",
    "Tuned",
    "WorkerError",
    "adopt_srs",
    "check_proof",
    "compile_circuit",
    "dequantise",
    "find_srs",
    "fit",
    "float_outputs",
    "onnx_digest",
    "poseidon",
    "quantise",
    "read_onnx",
    "tune",
    "with_batch",
    "without_weights",
]

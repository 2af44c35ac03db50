"""A linear policy as integers: read from an ONNX file, quantised, and written back for a circuit.

``scores = input @ weights`` with ``input`` ``[1, 384]`` and ``weights`` ``[384, tools]``. Both are
quantised to multiples of 2⁻¹³, so that scores are exact integers in units of 2⁻²⁶ and a circuit, a
prover and any verifier agree on every one of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import ModelFile, model_digest
from daifi_flows.encoding import sha256
from daifi_flows.errors import EncodingError

__all__ = [
    "INPUT_WIDTH",
    "MAX_TOOLS",
    "POLICY_FILE",
    "SCALE_BITS",
    "SCORE_UNIT",
    "policy_digest",
    "quantise_input",
    "quantise_weights",
    "read_policy",
    "scores",
    "write_policy",
]

POLICY_FILE: Final = "policy.onnx"
INPUT_WIDTH: Final = 384
"""Width of all-MiniLM-L6-v2's embeddings."""
MAX_TOOLS: Final = 64
MAX_ONNX_BYTES: Final = 256 * 1024
SCALE_BITS: Final = 13
"""Quantisation step 2⁻¹³: a rounded unit vector of width 384 is off by at most 0.0012 (L2), a score
by 5e-5 (rms)."""
SCORE_UNIT: Final = 2.0 ** -(2 * SCALE_BITS)
_MAX_WEIGHT: Final = 4.0


def policy_digest(onnx: bytes) -> bytes:
    """Model digest of a policy: its manifest holds one file, ``policy.onnx``."""
    return model_digest((ModelFile(path=POLICY_FILE, size=len(onnx), sha256=sha256(onnx)),))


def read_policy(onnx: bytes) -> NDArray[np.float32]:
    """Weights ``[384, tools]`` of an ONNX file that is one matrix product and nothing else.

    Accepts a single ``MatMul``, or ``Gemm`` without bias and with its default factors.

    Raises:
        EncodingError: not such a file; says what it should be.
    """
    if len(onnx) > MAX_ONNX_BYTES:
        raise EncodingError(f"the policy of {len(onnx)} bytes is over {MAX_ONNX_BYTES}")
    import onnx as onnx_library
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        graph = onnx_library.load_model_from_string(onnx).graph
    except (DecodeError, ValueError) as error:
        raise EncodingError(f"the policy is not an ONNX file: {error}") from error
    if len(graph.node) != 1 or len(graph.input) != 1 or len(graph.output) != 1:
        raise EncodingError("the policy must be one node with one input and one output")
    node, tensors = graph.node[0], list(graph.initializer)
    if len(tensors) != 1 or list(node.input) != [graph.input[0].name, tensors[0].name]:
        raise EncodingError("the policy must multiply its input by one initializer")
    if list(node.output) != [graph.output[0].name] or node.domain not in ("", "ai.onnx"):
        raise EncodingError("the policy's node must give the graph's output")
    attributes = {item.name: (item.f or item.i) for item in node.attribute}
    transposed = attributes.pop("transB", 0) if node.op_type == "Gemm" else 0
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0} if node.op_type == "Gemm" else {}
    if node.op_type not in ("MatMul", "Gemm") or any(
        name not in defaults or value != defaults[name] for name, value in attributes.items()
    ):
        raise EncodingError("the policy must be a plain MatMul, or Gemm without factors")
    tensor = tensors[0]
    if tensor.data_location != onnx_library.TensorProto.DEFAULT or len(tensor.dims) != 2:
        raise EncodingError("the policy's weights must be a matrix inside the file")
    try:
        weights = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise EncodingError(f"the policy's weights are malformed: {error}") from error
    if transposed:
        weights = weights.T
    if weights.dtype != np.float32 or weights.shape[0] != INPUT_WIDTH:
        raise EncodingError(f"the policy's weights must be float32 [{INPUT_WIDTH}, tools]")
    if not 1 <= weights.shape[1] <= MAX_TOOLS:
        raise EncodingError(f"the policy has {weights.shape[1]} tools; 1 to {MAX_TOOLS} can be")
    return weights


def write_policy(weights: NDArray[np.int64]) -> bytes:
    """An ONNX file with quantised weights: what the circuit is compiled from, so that a stranger's
    file never reaches the compiler."""
    from onnx import TensorProto, helper, numpy_helper

    tools = weights.shape[1]
    exact = (weights.astype(np.float64) * 2.0**-SCALE_BITS).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "tools"], ["scores"])],
        "policy",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, INPUT_WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, tools])],
        [numpy_helper.from_array(exact, "tools")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def quantise_weights(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers ``[384, tools]`` in units of 2⁻¹³.

    Raises:
        EncodingError: a weight is not finite or beyond ±4.
    """
    if not bool(np.all(np.abs(weights) <= _MAX_WEIGHT)):  # also false for NaN
        raise EncodingError(f"a policy weight is not a number within ±{_MAX_WEIGHT}")
    return _quantise(weights)


def quantise_input(vector: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers ``[384]`` in units of 2⁻¹³ of a unit-norm embedding.

    Raises:
        EncodingError: another shape, or a component that is not within ±1.
    """
    flat = np.asarray(vector, np.float32).reshape(-1)
    if flat.shape != (INPUT_WIDTH,) or not bool(np.all(np.abs(flat) <= 1.0 + 1e-4)):
        raise EncodingError(f"the policy's input must be {INPUT_WIDTH} numbers within ±1")
    return np.clip(_quantise(flat), -(1 << SCALE_BITS), 1 << SCALE_BITS)


def _quantise(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Nearest multiple, halves away from zero (as Rust's ``round``, which ezkl uses)."""
    scaled = np.abs(values.astype(np.float64)) * 2.0**SCALE_BITS
    return (np.sign(values) * np.floor(scaled + 0.5)).astype(np.int64)


def scores(vector: NDArray[np.int64], weights: NDArray[np.int64]) -> list[int]:
    """Exact integer scores in units of 2⁻²⁶; below 2³⁷ in size by the bounds above."""
    return [int(score) for score in vector @ weights]

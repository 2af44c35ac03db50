"""A stranger's ONNX file: bounds on its size, operators, shapes and data before anything runs it.

Parsing happens here (protobuf only); ``onnx.checker``, ONNX Runtime and ezkl see the file in the
worker process alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from math import prod
from typing import TYPE_CHECKING, Any, Final

from daifi_flows.cnft import ModelFile, model_digest
from daifi_flows.encoding import sha256
from daifi_flows.errors import EncodingError
from daifi_flows.proofs.circuits._wire import check_wire

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MODEL_FILE",
    "OnnxModel",
    "Tensor",
    "onnx_digest",
    "read_onnx",
    "unshared",
    "with_batch",
    "without_weights",
]

MODEL_FILE: Final = "model.onnx"
"""The path of a model of one ONNX file in its digest and manifest."""
MAX_ONNX_BYTES: Final = 8 << 20
MAX_NODES: Final = 256
MAX_TENSORS: Final = 16
"""Inputs, and outputs, of a model."""
MAX_ELEMENTS: Final = 1 << 20
"""Of one tensor."""
MAX_COPIES: Final = 1024
"""Uses of weights that were used before; the copies are as large as a file at most."""
_MAX_NAME: Final = 128
_MAX_DEPTH: Final = 6
_FLOAT: Final = 1

OPERATORS: Final = frozenset(
    {
        "Abs",
        "Add",
        "ArgMax",
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "Div",
        "Flatten",
        "Gather",
        "Gemm",
        "GlobalAveragePool",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Neg",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Operators that ezkl lays out and that need no code, file or random number from elsewhere."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name and its fixed shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True)
class OnnxModel:
    """A model that has passed the bounds."""

    data: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: int
    """Values in all initializers."""

    @property
    def digest(self) -> bytes:
        """Model digest of the file as it came."""
        return onnx_digest(self.data)


def onnx_digest(onnx: bytes, path: str = MODEL_FILE) -> bytes:
    """Digest of a model that is one ONNX file."""
    return model_digest((ModelFile(path=path, size=len(onnx), sha256=sha256(onnx)),))


def read_onnx(onnx: bytes) -> OnnxModel:
    """Inputs and outputs of an ONNX file.

    Accepts float32 inputs and outputs of fixed shape, weights inside the file, standard operators
    of one domain, no control flow, no functions, no training information.

    Raises:
        EncodingError: what it has that it must not have.
    """
    if len(onnx) > MAX_ONNX_BYTES:
        raise EncodingError(f"the model of {len(onnx)} bytes is over {MAX_ONNX_BYTES}")
    check_wire(onnx)
    import onnx as library
    from google.protobuf.message import DecodeError

    try:
        model = library.ModelProto.FromString(bytes(onnx))
    except (DecodeError, ValueError, RecursionError) as error:
        raise EncodingError(f"the model is not an ONNX file: {error}") from error
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise EncodingError("the model has functions, training information or sparse weights")
    if any(entry.domain not in ("", "ai.onnx") for entry in model.opset_import):
        raise EncodingError("the model imports operators of another domain")
    if not 1 <= len(graph.node) <= MAX_NODES:
        raise EncodingError(f"the model has {len(graph.node)} nodes; 1 to {MAX_NODES} can be")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise EncodingError(f"the operator {node.op_type[:_MAX_NAME]!r} cannot be proven")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise EncodingError("an operator of the model holds a graph of its own")
            _size_of(attribute.t if attribute.HasField("t") else None)
            for tensor in attribute.tensors:
                _size_of(tensor)
    weights = {tensor.name for tensor in graph.initializer}
    parameters = sum(_size_of(tensor) for tensor in graph.initializer)
    inputs = tuple(_tensor(item) for item in graph.input if item.name not in weights)
    outputs = tuple(_tensor(item) for item in graph.output)
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        if not 1 <= len(tensors) <= MAX_TENSORS:
            raise EncodingError(f"the model has {len(tensors)} {kind}; 1 to {MAX_TENSORS} can be")
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise EncodingError(f"two {kind} of the model have one name")
    return OnnxModel(bytes(onnx), inputs, outputs, parameters)


def _size_of(tensor: Any) -> int:
    """Values of an initializer, all inside the file."""
    if tensor is None:
        return 0
    if tensor.data_location != 0 or tensor.external_data:
        raise EncodingError("the model keeps weights in another file")
    if not isinstance(tensor.name, str):  # protobuf gives text that is not UTF-8 as bytes
        raise EncodingError("a weight of the model has no usable name")
    if len(tensor.dims) > _MAX_DEPTH or any(not 0 <= size <= MAX_ELEMENTS for size in tensor.dims):
        raise EncodingError("a weight of the model has an unusable shape")
    if (size := prod(tensor.dims)) > 4 * MAX_ELEMENTS:
        raise EncodingError(f"a weight of the model has {size} values, over {4 * MAX_ELEMENTS}")
    if tensor.data_type == _FLOAT and 4 * size != (
        len(tensor.raw_data) if tensor.HasField("raw_data") else 4 * len(tensor.float_data)
    ):
        raise EncodingError("a weight of the model has another shape than its values")
    return size


def _tensor(item: Any) -> Tensor:
    kind = item.type.tensor_type
    if not item.name or len(item.name) > _MAX_NAME:
        raise EncodingError("an input or output of the model has no usable name")
    if kind.elem_type != _FLOAT:
        raise EncodingError(f"{item.name!r} is not float32")
    if not kind.HasField("shape") or len(kind.shape.dim) > _MAX_DEPTH:
        raise EncodingError(f"{item.name!r} has no usable shape")
    shape = tuple(size.dim_value for size in kind.shape.dim)
    if any(not 1 <= size <= MAX_ELEMENTS for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise EncodingError(
            f"{item.name!r} has the shape {list(shape)}: sizes must be fixed (see with_batch), and "
            f"their product at most {MAX_ELEMENTS}"
        )
    return Tensor(item.name, shape)


def with_batch(onnx: bytes, batch: int) -> bytes:
    """The model with its symbolic first dimension fixed: N inferences are one circuit, one proof.

    Inputs and outputs whose first dimension is a name (``"batch"``) or unset get ``batch`` there.

    Raises:
        EncodingError: not an ONNX file, a batch that is no positive number, or a model without a
            symbolic first dimension.
    """
    if type(batch) is not int or not 1 <= batch <= MAX_ELEMENTS:
        raise EncodingError(f"a batch of {batch!r} is not a number of inferences")
    if len(onnx) > MAX_ONNX_BYTES:
        raise EncodingError(f"the model of {len(onnx)} bytes is over {MAX_ONNX_BYTES}")
    check_wire(onnx)
    import onnx as library
    from google.protobuf.message import DecodeError

    try:
        model = library.ModelProto.FromString(bytes(onnx))
    except (DecodeError, ValueError, RecursionError) as error:
        raise EncodingError(f"the model is not an ONNX file: {error}") from error
    fixed = 0
    for item in (*model.graph.input, *model.graph.output):
        sizes = item.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = batch
            fixed += 1
    if not fixed:
        raise EncodingError("the model has no symbolic first dimension to fix a batch in")
    del model.graph.value_info[:]  # shapes inside follow from the inputs
    return model.SerializeToString(deterministic=True)


def unshared(onnx: bytes) -> bytes:
    """The same model with a weight of its own for each place a float32 matrix is used in.

    ezkl 23.0.5 lays a weight that is used twice out as a tensor and decomposes every value of it,
    13 cells a value where none are needed. Its reader merges equal weights again, so the largest
    value of a copy is one float32 step nearer zero, far below a circuit's precision.

    Raises:
        EncodingError: weights are used again too often, or too large for that.
    """
    import numpy as np
    import onnx as library
    from onnx import numpy_helper

    model = library.ModelProto.FromString(onnx)
    graph = model.graph
    weights = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == _FLOAT and prod(tensor.dims) > 1
    }
    kept = {item.name for item in (*graph.input, *graph.output)}
    taken = kept | {tensor.name for tensor in graph.initializer}
    taken |= {name for node in graph.node for name in node.output}
    last: dict[str, tuple[NDArray[np.float32], int] | None] = {}
    numbers = {name: count() for name in weights}
    copies = copied = 0
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in weights or name in kept:
                continue
            if name not in last:
                last[name] = None  # the first use
                continue
            copies, copied = copies + 1, copied + 4 * prod(weights[name].dims)
            if copies > MAX_COPIES or copied > MAX_ONNX_BYTES:  # one name takes a few bytes
                raise EncodingError("the model uses its weights again too often")
            if (before := last[name]) is None:
                values = np.array(numpy_helper.to_array(weights[name]), np.float32)
                before = values, int(np.abs(values).argmax())
            values, largest = before[0].copy(), before[1]
            values.flat[largest] = np.nextafter(values.flat[largest], np.float32(0))
            last[name] = values, largest
            fresh = next(n for i in numbers[name] if (n := f"{name}.{i}") not in taken)
            taken.add(fresh)
            graph.initializer.append(numpy_helper.from_array(values, fresh))
            node.input[position] = fresh
    return model.SerializeToString(deterministic=True)


def without_weights(onnx: bytes) -> bytes:
    """The model with noise for its float32 weights: what a verifier needs of a model whose weights
    are ``hashed``. Its circuit has the same keys (constants inside operators stay as they are).

    Raises:
        EncodingError: see :func:`read_onnx`.
    """
    import numpy as np
    import onnx as library
    from onnx import numpy_helper

    model = library.ModelProto.FromString(read_onnx(onnx).data)
    noise = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == _FLOAT:
            values = noise.uniform(0.25, 0.75, tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString(deterministic=True)

"""What a task with an ONNX model says: its input and output contents, and which file it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import Content, Materials, ModelFile, model_digest
from daifi_flows.encoding import canonical_json, parse_json, sha256
from daifi_flows.errors import EncodingError
from daifi_flows.proofs.circuits import CircuitSettings, OnnxModel, onnx_digest

__all__ = [
    "ARCHITECTURE_FILE",
    "DEFAULT_MAX_ERROR",
    "WEIGHTS_FILE",
    "OnnxTask",
    "find_model",
    "hidden_digest",
    "onnx_input",
    "onnx_opening",
    "onnx_output",
    "read_opening",
    "read_outputs",
    "read_task",
]

ARCHITECTURE_FILE: Final = "architecture.onnx"
WEIGHTS_FILE: Final = "weights.poseidon"
"""The two files of a model with hidden weights: :func:`without_weights` of it, and the 32-byte
hash of its weights that a circuit with its task's settings shows."""

DEFAULT_MAX_ERROR: Final = 0.01
_DEFAULT: Final = CircuitSettings(input_scale=12, param_scale=12, rebase_multiplier=16)
_LAYOUT: Final = frozenset({"decomp_base", "decomp_legs", "num_inner_cols", "logrows"})
MAX_LOGROWS: Final = 17
"""More would keep a verifier busy for minutes."""
MAX_CONTENT_BYTES: Final = 8 << 20
MAX_CONTENT_VALUES: Final = 1 << 18
"""Two bytes of JSON make a list of 56: values are bounded as well as bytes."""
_MAX_NAMES: Final = 16


@dataclass(frozen=True)
class OnnxTask:
    """A parsed input.

    Attributes:
        inputs: float64 arrays by name, each value exactly that of a float32; absent when the task
            keeps them from whoever reads this (they then travel in a blob, or are the node's).
        hashes: Poseidon hash of each input, 32 bytes, when the task names them.
        settings: with the defaults filled in; see ``complete``.
        complete: whether the task names the layout too. Otherwise it is fitted to the model, the
            same by everybody (:func:`~daifi_flows.proofs.circuits.fit`).
        max_error: how far an output value may lie from the proven one.
    """

    inputs: Mapping[str, NDArray[np.float64]] | None
    hashes: Mapping[str, bytes] | None
    settings: CircuitSettings
    complete: bool
    max_error: float


def onnx_input(
    inputs: Mapping[str, Any] | None = None,
    *,
    circuit: Mapping[str, Any] | CircuitSettings | None = None,
    hashes: Mapping[str, bytes] | None = None,
    max_error: float = DEFAULT_MAX_ERROR,
    salt: bytes | None = None,
) -> Content:
    """The input of a step that runs an ONNX model under ``zk``.

    Args:
        inputs: arrays by name. Left out when only their hashes may be seen, or nothing at all.
        circuit: settings, whole (from the tuner) or in part (``{"input_visibility": "hashed"}``).
        hashes: :func:`~daifi_flows.proofs.circuits.poseidon` of each input's integers.

    Raises:
        EncodingError: not arrays of finite numbers, or settings out of range.
    """
    whole = circuit.plain() if isinstance(circuit, CircuitSettings) else dict(circuit or {})
    value: dict[str, Any] = {"circuit": whole, "max_error": float(max_error)}
    if inputs is not None:
        value["inputs"] = {name: _array(name, item).tolist() for name, item in inputs.items()}
    if hashes is not None:
        value["hashes"] = {name: item.hex() for name, item in hashes.items()}
    content = Content.json_value(value, salt)
    read_task(content)
    return content


def read_task(input: Content) -> OnnxTask:
    """A stranger's input: ``{"inputs"?, "hashes"?, "circuit"?, "max_error"?}``.

    Raises:
        EncodingError: malformed, too large, or with settings out of range.
    """
    fields = _json(input, {"inputs", "hashes", "circuit", "max_error"})
    inputs = _arrays(fields["inputs"]) if "inputs" in fields else None
    hashes = _hashes(fields["hashes"]) if "hashes" in fields else None
    given = fields.get("circuit", {})
    if not isinstance(given, dict):
        raise EncodingError("the task's circuit is not a map of settings")
    circuit = cast("dict[str, Any]", given)
    settings = CircuitSettings.parse(_DEFAULT.plain() | circuit)
    if settings.logrows > MAX_LOGROWS:
        raise EncodingError(f"an ONNX task's circuit has at most 2^{MAX_LOGROWS} rows")
    if settings.input_visibility == "committed":
        raise EncodingError("an ONNX task's input is public, hashed or private")
    named = len(circuit.keys() & _LAYOUT)
    if named not in (0, len(_LAYOUT)):
        raise EncodingError(f"a circuit's layout is named whole: {', '.join(sorted(_LAYOUT))}")
    bound = fields.get("max_error", DEFAULT_MAX_ERROR)
    if type(bound) not in (int, float) or not 0 < bound < 1e6:
        raise EncodingError("the task's max_error is not a positive number")
    if settings.input_visibility == "public" and inputs is None:
        raise EncodingError("the task's input is public but it does not hold its inputs")
    if settings.input_visibility == "hashed" and inputs is None and hashes is None:
        raise EncodingError("the task's input is hashed but it names neither inputs nor hashes")
    return OnnxTask(inputs, hashes, settings, bool(named), float(bound))


def onnx_opening(inputs: Mapping[str, Any]) -> bytes:
    """The inputs that a task's content leaves out: ``Materials.private`` of its step.

    Raises:
        EncodingError: not arrays of finite numbers.
    """
    value = {name: _array(name, item).tolist() for name, item in inputs.items()}
    return canonical_json({"inputs": value})


def read_opening(opening: bytes) -> dict[str, NDArray[np.float64]]:
    """What :func:`onnx_opening` wrote.

    Raises:
        EncodingError: it is something else.
    """
    fields = _json(Content(media_type="application/json", data=opening, salt=bytes(32)), {"inputs"})
    if "inputs" not in fields:
        raise EncodingError("the step's private materials hold no inputs")
    return _arrays(fields["inputs"])


def onnx_output(model: OnnxModel, outputs: Sequence[Any], salt: bytes | None = None) -> Content:
    """The output an engine builds: ``{"outputs": {name: nested lists}}``.

    Raises:
        EncodingError: a value is not finite.
    """
    value = {
        tensor.name: _array(tensor.name, item).reshape(tensor.shape).tolist()
        for tensor, item in zip(model.outputs, outputs, strict=True)
    }
    return Content.json_value({"outputs": value}, salt)


def read_outputs(output: Content) -> dict[str, NDArray[np.float64]]:
    """Arrays of a claimed output, in the shapes it gives them.

    Raises:
        EncodingError: malformed, or too large.
    """
    fields = _json(output, {"outputs"})
    if "outputs" not in fields:
        raise EncodingError("it holds no outputs")
    return _arrays(fields["outputs"])


def hidden_digest(architecture: bytes, weights_hash: bytes) -> bytes:
    """Digest of a model whose weights stay with the node."""
    return model_digest(
        tuple(
            ModelFile(path=path, size=len(data), sha256=sha256(data))
            for path, data in ((ARCHITECTURE_FILE, architecture), (WEIGHTS_FILE, weights_hash))
        )
    )


def find_model(digest: bytes, materials: Materials) -> tuple[bytes, bytes | None] | None:
    """The ONNX file that a digest names among the materials, and the hash of its weights when they
    are hidden; ``None`` when it is not there."""
    blobs = list(materials.blobs.values())
    for blob in blobs:
        if onnx_digest(blob) == digest:
            return blob, None
    for weights_hash in (blob for blob in blobs if len(blob) == 32):
        for blob in blobs:
            if hidden_digest(blob, weights_hash) == digest:
                return blob, weights_hash
    return None


def _json(content: Content, names: set[str]) -> dict[str, Any]:
    if content.media_type != "application/json":
        raise EncodingError(f"it is {content.media_type}, not JSON")
    if len(content.data) > MAX_CONTENT_BYTES:
        raise EncodingError(f"its {len(content.data)} bytes are over {MAX_CONTENT_BYTES}")
    if content.data.count(b",") + content.data.count(b"[") > MAX_CONTENT_VALUES:
        raise EncodingError(f"it holds over {MAX_CONTENT_VALUES} values")
    value = parse_json(content.data)
    if not isinstance(value, dict) or not value.keys() <= names:
        raise EncodingError(f"it does not hold only {', '.join(sorted(names))}")
    return cast("dict[str, Any]", value)


def _arrays(value: Any) -> dict[str, NDArray[np.float64]]:
    if not isinstance(value, dict) or not 1 <= len(cast("dict[str, Any]", value)) <= _MAX_NAMES:
        raise EncodingError(f"it does not hold 1 to {_MAX_NAMES} arrays by name")
    named = cast("dict[str, Any]", value)
    for name, item in named.items():
        if not _only_numbers(item):
            raise EncodingError(f"{name!r} is not an array of numbers")
    return {name: _array(name, item) for name, item in named.items()}


def _only_numbers(value: Any) -> bool:
    """Whether JSON is nested lists of numbers. NumPy would make an array of one long text and many
    short ones first, each as wide as the longest: gigabytes of kilobytes."""
    level = [value]
    while level:
        if any(type(item) not in (int, float, list) for item in level):
            return False
        level = [each for item in level if isinstance(item, list) for each in cast("Any", item)]
    return True


def _array(name: str, value: Any) -> NDArray[np.float64]:
    """Numbers as the model sees them: rounded to float32."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise EncodingError(f"{name!r} is not an array of numbers")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32).astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodingError(f"{name!r} is not an array of numbers: {error}") from error
    if not bool(np.isfinite(array).all()):
        raise EncodingError(f"{name!r} has a value that is not a finite float32")
    return array


def _hashes(value: Any) -> dict[str, bytes]:
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) > _MAX_NAMES:
        raise EncodingError("the task's hashes are not a map")
    found: dict[str, bytes] = {}
    for name, item in cast("dict[str, Any]", value).items():
        try:
            found[name] = bytes.fromhex(item)
        except (TypeError, ValueError) as error:
            raise EncodingError(f"the hash of {name!r} is not hex") from error
        if len(found[name]) != 32:
            raise EncodingError(f"the hash of {name!r} is not 32 bytes")
    return found

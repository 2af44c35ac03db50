"""A tool policy as ONNX: the embeddings of the tools' descriptions as one linear layer.

``scores = embedding · tools``: the input is the unit-norm embedding of a text, ``[1, 384]``, and
column i of the weights is the embedding of ``"name: description"`` of tool i, ``[384, n]``; so a
score is a cosine similarity and the highest one is the pick. One multiplication keeps the zk
circuit of a pick small. The file has exactly one spelling (no timestamps, pinned versions), so
its digest names tools, weights and embedding model together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from daifi_flows.encoding import canonical_json, decode_canonical_json
from daifi_flows.errors import EncodingError, EngineError
from daifi_flows.ray_mesh.engines._embedder import Embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DIMENSION",
    "INPUT_NAME",
    "MAX_POLICY_BYTES",
    "MAX_TOOLS",
    "OUTPUT_NAME",
    "Policy",
    "Tool",
    "build_policy",
    "check_weights",
    "parse_tools",
    "read_policy",
]

DIMENSION: Final = 384
MAX_TOOLS: Final = 64
MAX_NAME_CHARS: Final = 64
MAX_DESCRIPTION_CHARS: Final = 1_024
MAX_POLICY_BYTES: Final = 1 << 20
INPUT_NAME: Final = "embedding"
OUTPUT_NAME: Final = "scores"

_WEIGHTS: Final = "tools"
_OPSET: Final = 13
"""MatMul has not changed since; every ONNX runtime and ezkl read it."""
_IR_VERSION: Final = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_TOLERANCE: Final = 1e-4
"""Largest difference of one weight between two machines' embeddings. Measured 1.4e-7 between
batch shapes on one CPU; another tool's embedding differs by about 0.05 in most places."""


@dataclass(frozen=True)
class Tool:
    """A tool as the policy sees it: a name a person chose, and what the tool is for."""

    name: str
    description: str

    @property
    def text(self) -> str:
        """What is embedded."""
        return f"{self.name}: {self.description}"


@dataclass(frozen=True)
class Policy:
    """What a policy file says. ``weights`` is ``[384, len(names)]``."""

    names: tuple[str, ...]
    embedding_digest: bytes
    """Digest of the embedding model the weights were made with, 32 bytes."""
    weights: NDArray[np.float32]


def parse_tools(value: Any) -> tuple[Tool, ...]:
    """Tools from JSON: ``[{"name": str, "description": str}]``.

    Raises:
        EngineError: no tools, too many, a repeated or unusable name, or a description too long.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TOOLS:
        raise EngineError(f"a policy needs a list of 1 to {MAX_TOOLS} tools")
    tools: list[Tool] = []
    for item in value:
        if not isinstance(item, dict) or set(item) != {"name", "description"}:
            raise EngineError("each tool needs exactly a name and a description")
        name, description = item["name"], item["description"]
        if not isinstance(name, str) or not isinstance(description, str):
            raise EngineError("a tool's name and description are texts")
        tools.append(Tool(name, description))
    _check(tools)
    return tuple(tools)


def _check(tools: Sequence[Tool]) -> None:
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise EngineError(f"a policy needs 1 to {MAX_TOOLS} tools, not {len(tools)}")
    for tool in tools:
        if len(tool.name) > MAX_NAME_CHARS or not _NAME.fullmatch(tool.name):
            raise EngineError(
                f"tool name {tool.name[:80]!r} is not a name of at most {MAX_NAME_CHARS} letters, "
                "digits, dots, dashes and underscores"
            )
        if len(tool.description) > MAX_DESCRIPTION_CHARS:
            raise EngineError(
                f"the description of tool {tool.name} has {len(tool.description)} characters, "
                f"over {MAX_DESCRIPTION_CHARS}; shorten it"
            )
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise EngineError(f"two tools are called {name}; rename one")


def build_policy(tools: Sequence[Tool], embedder: Embedder) -> bytes:
    """The ONNX file of a policy over these tools, in the order given.

    The same tools and embedding model give the same bytes on the same machine; between machines
    weights may differ in the last bits, so a policy is built once and then travels by digest.

    Raises:
        EngineError: see :func:`parse_tools`, or the embedding model has another dimension.
        ModelError: the embedding model cannot be loaded.
    """
    import numpy as np

    _check(tools)
    rows = embedder.embed([tool.text for tool in tools])  # [n, 384]
    if rows.shape[1] != DIMENSION:
        raise EngineError(
            f"a policy needs embeddings of {DIMENSION} numbers; {embedder.model.ref.name} gives "
            f"{rows.shape[1]}"
        )
    weights = np.ascontiguousarray(rows.T, dtype=np.float32)
    return _write(Policy(tuple(t.name for t in tools), embedder.model.ref.digest, weights))


def check_weights(policy: Policy, tools: Sequence[Tool], embedder: Embedder) -> str | None:
    """Why this policy is not what :func:`build_policy` makes of these tools; ``None`` if it is.

    Whoever built a policy could have favoured a tool; this embeds the descriptions again.
    """
    import numpy as np

    if policy.names != tuple(tool.name for tool in tools):
        return "the policy is over other tools than the step's, or in another order"
    if policy.embedding_digest != embedder.model.ref.digest:
        return "the policy was made with another embedding model than the one at hand"
    again = embedder.embed([tool.text for tool in tools]).T
    worst = float(np.max(np.abs(again - policy.weights)))
    if worst > _TOLERANCE:
        return f"the policy's weights are not its tools' embeddings (they differ by {worst:.2g})"
    return None


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise EngineError(
            f"ONNX cannot be imported ({error}); install it with pip install onnx"
        ) from error
    return onnx


def _write(policy: Policy) -> bytes:
    onnx = _onnx()
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    count = len(policy.names)
    # Little-endian raw bytes: the format's own layout, whatever this machine's is.
    weights = helper.make_tensor(
        _WEIGHTS, floats, [DIMENSION, count], policy.weights.astype("<f4").tobytes(), raw=True
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", [INPUT_NAME, _WEIGHTS], [OUTPUT_NAME], name="pick")],
        "daifi-policy",
        [helper.make_tensor_value_info(INPUT_NAME, floats, [1, DIMENSION])],
        [helper.make_tensor_value_info(OUTPUT_NAME, floats, [1, count])],
        [weights],
    )
    model = helper.make_model(
        graph,
        producer_name="daifi_flows",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    for key, value in (
        ("daifi.embedding_model", policy.embedding_digest.hex()),
        ("daifi.tools", canonical_json(list(policy.names)).decode()),
    ):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model.SerializeToString(deterministic=True)


def read_policy(data: bytes) -> Policy:
    """Parse a stranger's policy. Only what :func:`build_policy` writes is accepted, to the byte:
    no other operators, no weights in other files, nothing a runtime could be made to load.

    Raises:
        EngineError: too large, or not a policy.
    """
    import numpy as np

    if len(data) > MAX_POLICY_BYTES:
        raise EngineError(f"the policy has {len(data)} bytes, over the limit of {MAX_POLICY_BYTES}")
    onnx = _onnx()
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(bytes(data))
        props = {entry.key: entry.value for entry in model.metadata_props}
        names = decode_canonical_json(props["daifi.tools"].encode())
        parse_tools([{"name": name, "description": ""} for name in names])
        digest = bytes.fromhex(props["daifi.embedding_model"])
        raw = model.graph.initializer[0].raw_data
        weights = np.frombuffer(raw, dtype="<f4").reshape(DIMENSION, len(names))
        policy = Policy(tuple(names), digest, weights.astype(np.float32))
        if len(digest) != 32 or not np.isfinite(weights).all() or _write(policy) != data:
            raise EngineError("it is not the one spelling of its content")
    except EngineError as error:
        raise EngineError(f"not a tool policy: {error}") from error
    except (DecodeError, EncodingError, ValueError, TypeError) as error:
        raise EngineError(f"not a tool policy: {error}") from error
    except (KeyError, IndexError, AttributeError, RecursionError) as error:
        raise EngineError("not a tool policy: a part of it is missing") from error
    return policy

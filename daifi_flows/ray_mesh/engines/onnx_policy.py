"""Engine ``onnx-policy``: picks one of the user's tools for a text, by ONNX Runtime."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from daifi_flows.cnft import (
    Content,
    Execution,
    Materials,
    ModelFile,
    ModelRef,
    TaskSpec,
    Usage,
    model_digest,
)
from daifi_flows.encoding import decode_canonical_json
from daifi_flows.errors import EncodingError, EngineError, ModelError
from daifi_flows.ray_mesh._models import LocalModel, inline_model, resolve
from daifi_flows.ray_mesh.engines._embedder import (
    EMBEDDING_FLOPS_PER_TOKEN,
    Embedder,
    embedder_for,
)
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._policy import (
    DIMENSION,
    INPUT_NAME,
    MAX_POLICY_BYTES,
    MAX_TOOLS,
    OUTPUT_NAME,
    Policy,
    Tool,
    build_policy,
    check_weights,
    parse_tools,
    read_policy,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MAX_TOOLS",
    "POLICY_FILE",
    "OnnxPolicyEngine",
    "Tool",
    "build_policy",
    "policy_ref",
]

POLICY_FILE: Final = "policy.onnx"
"""The policy's path in its model digest and manifest."""

MAX_ANSWER_CHARS: Final = 65_536
_KEPT: Final = 8
"""Sessions kept ready, least recently used closed first."""


def policy_ref(data: bytes) -> ModelRef:
    """The reference of a policy that travels with its step: what ``TaskSpec.model`` says."""
    file = ModelFile(path=POLICY_FILE, size=len(data), sha256=hashlib.sha256(data).digest())
    return ModelRef(
        name="tool-policy",
        digest=model_digest((file,)),
        engine=OnnxPolicyEngine.name,
        precision="fp32",
    )


class OnnxPolicyEngine:
    """Embeds a text and lets a policy (:mod:`~daifi_flows.ray_mesh.engines._policy`) score tools.

    Input: ``{"text": str, "tools": [{"name", "description"}]}``; the ONNX file travels in
    ``materials.blobs`` and must hash to ``spec.model.digest``. Output: ``{"tool": name, "index":
    i, "scores_ppm": [...]}``, the first of the highest scores; a score is a cosine similarity in
    parts per million. Evidence for the zk scheme: ``onnx`` (the file) and ``input``, the
    embedding that went in, float32 ``[1, 384]``.

    The embedding model reads the first 256 tokens of the text: a long answer is picked for by its
    beginning. The engine refuses a policy whose weights are not the embeddings of the step's
    tools, so a buyer cannot be sold a policy that favours one. Inference runs on the CPU provider.

    Args:
        embedding_model: what policies are made and texts embedded with; a policy made with
            another model is refused.
    """

    name: ClassVar[str] = "onnx-policy"
    evidence: ClassVar[frozenset[str]] = frozenset({"onnx", "input"})

    def __init__(self, embedding_model: str = "all-minilm-l6-v2") -> None:
        self._embedding_model = embedding_model
        self._loaded: Embedder | None = None
        self._lock = threading.Lock()
        self._sessions: OrderedDict[bytes, tuple[Policy, Any]] = OrderedDict()

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """Find the policy that ``ref`` names among the blobs; see :meth:`Engine.model`.

        Raises:
            ModelError: no blob of the step hashes to ``ref.digest``.
        """
        return self._find(ref, materials)[0]

    def load(self, model: LocalModel) -> None:
        """Load the embedding model; the policy itself comes with each step. Idempotent."""
        del model
        self._embedder().load()

    def build(self, tools: Sequence[Tool]) -> bytes:
        """Make a policy over these tools: what a node offers a buyer without an embedding model.

        Raises:
            EngineError: the tools are malformed (see :func:`build_policy`).
            ModelError: the embedding model is not at hand.
        """
        return build_policy(tools, self._embedder())

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Pick a tool.

        Raises:
            EngineError: the input or the policy is malformed, or they name different tools.
            ModelError: the policy did not come with the step.
            StepCancelled: ``control`` asked to stop.
        """
        started = time.perf_counter_ns()
        text, tools = _parse(input)
        _, data = self._find(spec.model, materials)
        embedder = self._embedder()
        control.check()
        policy, session = self._session(spec.model.digest, data)
        if wrong := check_weights(policy, tools, embedder):
            raise EngineError(f"this step's policy is refused: {wrong}")
        control.check()
        vector = embedder.embed([text])  # [1, 384]
        scores = _infer(session, vector)  # [n]
        index = int(scores.argmax())  # the first of equal scores
        tokens = embedder.tokens(text)
        return Execution(
            output=Content.json_value(
                {
                    "tool": tools[index].name,
                    "index": index,
                    "scores_ppm": [round(float(score) * 1_000_000) for score in scores],
                }
            ),
            usage=Usage(
                prompt_tokens=tokens,
                flops=tokens * EMBEDDING_FLOPS_PER_TOKEN + 2 * DIMENSION * len(tools),
                duration_ms=(time.perf_counter_ns() - started) // 1_000_000,
            ),
            evidence={"onnx": data, "input": vector},
        )

    def close(self) -> None:
        """Free the sessions and the embedding model. Idempotent."""
        with self._lock:
            self._sessions.clear()
            embedder, self._loaded = self._loaded, None
        if embedder is not None:
            embedder.close()

    def _embedder(self) -> Embedder:
        with self._lock:
            if self._loaded is None:
                self._loaded = embedder_for(resolve(self._embedding_model, "retrieval"))
            return self._loaded

    def _find(self, ref: ModelRef, materials: Materials) -> tuple[LocalModel, bytes]:
        if ref.precision != "fp32":
            raise ModelError(f"the onnx-policy engine runs fp32, not {ref.precision!r}; name fp32")
        for data in materials.blobs.values():
            if len(data) <= MAX_POLICY_BYTES:
                try:
                    return inline_model(ref, POLICY_FILE, data), data
                except ModelError:
                    continue  # another blob of the step
        raise ModelError(
            f"no file that came with the step is the policy {ref.name!r} "
            f"(digest 0x{ref.digest.hex()}); send its ONNX file"
        )

    def _session(self, digest: bytes, data: bytes) -> tuple[Policy, Any]:
        with self._lock:
            known = self._sessions.get(digest)
            if known is None:
                known = self._sessions[digest] = read_policy(data), _start(data)
                if len(self._sessions) > _KEPT:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end(digest)
            return known


def _parse(input: Content) -> tuple[str, tuple[Tool, ...]]:
    """Text and tools of a stranger's input."""
    try:
        if input.media_type != "application/json":
            raise EncodingError(f"its media type is {input.media_type!r}")
        value: Any = decode_canonical_json(input.data, max_bytes=1 << 20)
    except EncodingError as error:
        raise EngineError(f"a policy's input must be JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != {"text", "tools"}:
        raise EngineError("a policy's input needs exactly text and tools")
    text = value["text"]
    if not isinstance(text, str) or not text.strip():
        raise EngineError("the text to act on is empty; there is nothing to pick a tool for")
    if len(text) > MAX_ANSWER_CHARS:
        raise EngineError(
            f"the text to act on has {len(text)} characters, over {MAX_ANSWER_CHARS}; shorten it"
        )
    return text, parse_tools(value["tools"])


def _start(data: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"ONNX Runtime cannot be imported ({error}); install it with pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a vector times a small matrix
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            data, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot load the policy: {error}") from error


def _infer(session: Any, vector: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        return session.run([OUTPUT_NAME], {INPUT_NAME: vector})[0][0]
    except Exception as error:
        raise EngineError(f"ONNX Runtime failed on the policy: {error}") from error

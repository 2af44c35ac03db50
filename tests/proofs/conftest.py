"""Specs, accounts and a small real language model for the proof tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daifi_flows.cnft import (
    Content,
    Execution,
    Materials,
    ModelRef,
    Proof,
    Sampling,
    TaskSpec,
    proof_digest,
)
from daifi_flows.encoding import keccak256
from daifi_flows.errors import EncodingError
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Prefill, Verdict, make_proof, verify_proof
from daifi_flows.proofs.calibration import Calibration, Rounding

SALT = bytes(32)
NODE = Account.from_seed(b"node")
OTHER = Account.from_seed(b"other node")
BUYER = Account.from_seed(b"buyer")


def build_spec(input: Content, scheme: str, **changes: Any) -> TaskSpec:
    fields: dict[str, Any] = {
        "kind": "function",
        "model": ModelRef(name="m", digest=bytes(32), engine="function", precision="none"),
        "input_cid": input.cid,
        "scheme": scheme,
        "max_price_wei": 10**16,
        "deadline_ms": 1,
        "buyer": BUYER.address,
        "nonce": bytes(32),
    }
    return TaskSpec(**(fields | changes))


def resign(proof: Proof, account: Account = NODE, **changes: Any) -> Proof:
    """The proof with some statement fields or its payload changed, signed again by ``account``."""
    payload = changes.pop("payload", proof.payload)
    scheme = changes.pop("scheme", proof.scheme)
    statement = proof.statement.model_copy(update=changes)
    digest = proof_digest(scheme, statement, keccak256(payload), account.address)
    return Proof(
        scheme=scheme,
        statement=statement,
        payload=payload,
        node=account.address,
        signature=account.sign(digest),
    )


@dataclass(frozen=True)
class Case:
    """One honest step: change a part and verify."""

    spec: TaskSpec
    input: Content
    execution: Execution
    materials: Materials
    reference: Any
    workdir: Path

    def prove(self, account: Account = NODE) -> Proof:
        claim = Claim(self.spec, self.input, self.execution.output, self.materials)
        return make_proof(claim, self.execution, account, self.workdir)

    def verify(self, proof: Proof, **changes: Any) -> Verdict:
        case = replace(self, **{k: v for k, v in changes.items() if k != "output"})
        output = changes.get("output", self.execution.output)
        claim = Claim(case.spec, case.input, output, case.materials)
        return verify_proof(claim, proof, case.reference, case.workdir)

    def forge(self, proof: Proof, payload: bytes, **changes: Any) -> Proof:
        """Another payload with the transcript and signature that a cheating node would make."""
        from daifi_flows.proofs._envelope import transcript_of

        cid = changes.get("output_cid", proof.statement.output_cid)
        transcript = transcript_of(self.spec.scheme, self.spec.task_id, cid, payload)
        return resign(proof, payload=payload, transcript=transcript, **changes)


TINY_CALIBRATION = Calibration(
    model="tiny",
    digest=bytes(32),
    precision="none",
    verifier_precision="none",
    rounding=Rounding(scales=(0.01, 0.05, 0.2), weights=(0.9, 0.09, 0.01)),
    generations=1,
    tokens=1,
    max_log_evidence=0.0,
)
"""Of the small Llama below in bf16 and fp32: wide enough for both."""


class TinyReference:
    """A verifier's copy of a small Llama, with byte tokens and token 0 as the end."""

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.measured: Calibration | None = TINY_CALIBRATION

    def missing(self, spec: TaskSpec, materials: Materials) -> str | None:
        return None

    def reexecute(self, spec: TaskSpec, input: Content, materials: Materials) -> Content:
        raise NotImplementedError

    def prompt_tokens(self, spec: TaskSpec, input: Content) -> list[int]:
        return [1 + byte % (self.vocabulary - 1) for byte in str(input.value()).encode()]

    def render_output(
        self, spec: TaskSpec, input: Content, output_tokens: Sequence[int], salt: bytes
    ) -> Content:
        if any(token >= self.vocabulary for token in output_tokens):
            raise EncodingError("a token is not in the vocabulary")
        return Content.json_value({"text": " ".join(map(str, output_tokens))}, salt)

    def end_tokens(self, spec: TaskSpec) -> frozenset[int]:
        return frozenset({0})

    def prefill(self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        import torch

        ids = torch.tensor([[*prompt, *output[:-1]]])
        with torch.no_grad():
            hidden = self.model.model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 :]
            logits = self.model.lm_head(hidden)
        return Prefill(logits.float().numpy(), hidden.float().numpy())

    def prefill_again(
        self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]
    ) -> Prefill | None:
        return None

    def output_rows(
        self, spec: TaskSpec, tokens: Sequence[int]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        if any(token >= self.vocabulary for token in tokens):
            raise EncodingError("a token is not in the vocabulary")
        return self.model.lm_head.weight.detach()[list(tokens)].float().numpy()

    def calibration(self, spec: TaskSpec) -> Calibration | None:
        return self.measured

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        raise NotImplementedError

    def generate(self, spec: TaskSpec, prompt: list[int]) -> list[int]:
        """What a node with this model answers, token by token."""
        from daifi_flows.proofs.sampling import sample

        assert spec.sampling is not None
        output: list[int] = []
        while len(output) < spec.sampling.max_tokens and (not output or output[-1] != 0):
            row = self.prefill(spec, prompt, [*output, 0]).logits[-1]
            output.append(sample(row, spec.sampling, len(output)))
        return output


def tiny_model(seed: int) -> TinyReference:
    """A random two-layer Llama whose logits spread like a trained one's (a few units)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return TinyReference(LlamaForCausalLM(config).eval(), 200)


@pytest.fixture(scope="session")
def honest() -> TinyReference:
    return tiny_model(1)


@pytest.fixture(scope="session")
def stranger() -> TinyReference:
    return tiny_model(2)


@pytest.fixture(scope="session")
def llm_case(
    honest: TinyReference, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Case]:
    from functools import cache

    from daifi_flows.cnft import Usage

    workdir = tmp_path_factory.mktemp("llm")

    @cache
    def make(node: TinyReference | None = None, **sampling: Any) -> Case:
        input = Content.json_value("what is a quorum?", SALT)
        spec = build_spec(
            input,
            "token-difr",
            kind="reason",
            sampling=Sampling(**({"max_tokens": 24, "seed": 5} | sampling)),
        )
        engine = node or honest
        prompt = honest.prompt_tokens(spec, input)
        tokens = engine.generate(spec, prompt)
        return Case(
            spec,
            input,
            Execution(
                honest.render_output(spec, input, tokens, SALT),
                Usage(prompt_tokens=len(prompt), output_tokens=len(tokens)),
                {"prompt_tokens": prompt, "output_tokens": tokens},
            ),
            Materials(),
            honest,
            workdir,
        )

    return make


@pytest.fixture(scope="session")
def kit() -> Any:
    """The helpers of this file, for tests (modules here cannot import each other)."""
    from types import SimpleNamespace

    return SimpleNamespace(
        Case=Case, NODE=NODE, OTHER=OTHER, SALT=SALT, build_spec=build_spec, resign=resign
    )


class Recompute:
    """A reference that answers ``reexecute`` and ``embed`` from given values."""

    def __init__(self, again: Content | None = None, vectors: Any = None) -> None:
        self.again, self.vectors = again, vectors
        self.gap: str | None = None
        self.error: Exception | None = None

    def missing(self, spec: TaskSpec, materials: Materials) -> str | None:
        return self.gap

    def reexecute(self, spec: TaskSpec, input: Content, materials: Materials) -> Content:
        if self.error is not None:
            raise self.error
        assert self.again is not None
        return self.again

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        if self.error is not None:
            raise self.error
        return np.stack([self.vectors[text] for text in texts]).astype(np.float32)


@pytest.fixture
def digest_case(tmp_path: Path) -> Callable[..., Case]:
    from daifi_flows.cnft import Usage

    def make(claimed: Any, again: Any = None) -> Case:
        def content(value: Any) -> Content:
            return value if isinstance(value, Content) else Content.json_value(value, SALT)

        input = Content.json_value({"args": {"n": 1}}, SALT)
        claimed = content(claimed)
        reference = Recompute(content(again) if again is not None else claimed)
        spec = build_spec(input, "digest")
        return Case(spec, input, Execution(claimed, Usage()), Materials(), reference, tmp_path)

    return make


TOOLS = [
    {"name": "report", "description": "write a report file"},
    {"name": "ask", "description": "ask the user a question"},
    {"name": "stop", "description": "do nothing"},
]
TEXT = "The committee has 21 seats."


def policy_onnx(weights: Any, op: str = "MatMul", **attributes: Any) -> bytes:
    """The demo's policy: one product with an initializer ``tools``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows, tools = weights.shape if not attributes.get("transB") else weights.shape[::-1]
    graph = helper.make_graph(
        [helper.make_node(op, ["input", "tools"], ["scores"], **attributes)],
        "policy",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, tools])],
        [numpy_helper.from_array(weights.astype(np.float32), "tools")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model.SerializeToString()


def unit(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).normal(size=384)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture(scope="session")
def zk_workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zk")


@pytest.fixture(scope="session")
def zk_case(zk_workdir: Path) -> Case:
    """An honest pick by ONNX Runtime, over three tools."""
    import onnxruntime

    from daifi_flows.cnft import Usage
    from daifi_flows.encoding import cid_of
    from daifi_flows.proofs._policy import policy_digest

    texts = [TEXT, *(f"{tool['name']}: {tool['description']}" for tool in TOOLS)]
    vectors = {text: unit(index) for index, text in enumerate(texts)}
    weights = np.stack([vectors[text] for text in texts[1:]], axis=1)
    onnx = policy_onnx(weights)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    vector = vectors[TEXT].reshape(1, 384)
    (row,) = session.run(None, {"input": vector})[0]
    index = int(row.argmax())
    output = Content.json_value(
        {
            "tool": TOOLS[index]["name"],
            "index": index,
            "scores_ppm": [round(float(score) * 1e6) for score in row],
        },
        SALT,
    )
    input = Content.json_value({"text": TEXT, "tools": TOOLS}, SALT)
    model = ModelRef(
        name="policy", digest=policy_digest(onnx), engine="onnx-policy", precision="float32"
    )
    return Case(
        build_spec(input, "zk", kind="act", model=model),
        input,
        Execution(output, Usage(), {"onnx": onnx, "input": vector}),
        Materials(blobs={cid_of(onnx): onnx}),
        Recompute(vectors=vectors),
        zk_workdir,
    )


@pytest.fixture(scope="session")
def zk_proof(zk_case: Case) -> Proof:
    return zk_case.prove()


@pytest.fixture(scope="session")
def slice_case(
    llm_case: Callable[..., Case], honest: TinyReference, zk_workdir: Path
) -> Callable[..., Case]:
    """The case of ``llm_case`` with the evidence that ``zk-slice`` needs."""
    from functools import cache

    from daifi_flows.proofs.zk_slice import OutputLayer

    @cache
    def make(node: TinyReference | None = None, **sampling: Any) -> Case:
        case, engine = llm_case(node, **sampling), node or honest
        evidence = case.execution.evidence
        shown = engine.prefill(case.spec, evidence["prompt_tokens"], evidence["output_tokens"])
        layer = OutputLayer(engine.vocabulary, lambda tokens: engine.output_rows(case.spec, tokens))
        return replace(
            case,
            spec=case.spec.model_copy(update={"scheme": "zk-slice"}),
            execution=replace(
                case.execution,
                evidence={**evidence, "activations": shown.hidden, "output_layer": layer},
            ),
            workdir=zk_workdir,
        )

    return make

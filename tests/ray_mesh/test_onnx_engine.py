"""The ``onnx`` engine: a user's model with several inputs, run and proven."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daifi_flows.cnft import Content, Materials, TaskSpec
from daifi_flows.encoding import cid_of
from daifi_flows.errors import EngineError, ModelError
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, make_proof, verify_proof
from daifi_flows.proofs._onnx_task import onnx_input, onnx_opening
from daifi_flows.proofs.circuits import poseidon, quantise
from daifi_flows.ray_mesh._engines import ENGINES, check_scheme, make_engine
from daifi_flows.ray_mesh.engines._engine import Control, Engine, StepCancelled
from daifi_flows.ray_mesh.engines.onnx import OnnxEngine, onnx_ref

X = {"a": np.linspace(-1, 1, 8).reshape(2, 4), "b": np.linspace(1, 0, 4).reshape(1, 4)}


def model(op: str = "Relu") -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    w = np.arange(12, dtype=np.float32).reshape(4, 3) / 7 - 0.8
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["a", "b"], ["s"]),
            helper.make_node("MatMul", ["s", "w"], ["h"]),
            helper.make_node(op, ["h"], ["r"]),
            helper.make_node("ReduceSum", ["s"], ["total"], keepdims=1),
        ],
        "two",
        [value("a", TensorProto.FLOAT, [2, 4]), value("b", TensorProto.FLOAT, [1, 4])],
        [value("r", TensorProto.FLOAT, [2, 3]), value("total", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(w, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    return made.SerializeToString()


def spec_for(data: bytes, input: Content) -> TaskSpec:
    return TaskSpec(
        kind="rank",
        model=onnx_ref(data),
        input_cid=input.cid,
        scheme="zk",
        max_price_wei=0,
        deadline_ms=0,
        buyer="0x0000000000000000000000000000000000000000",
        nonce=bytes(32),
    )


def step(input: Content, private: bytes | None = None, data: bytes | None = None) -> Any:
    data = data or model()
    materials = Materials(blobs={cid_of(data): data}, private=private)
    return OnnxEngine().run(spec_for(data, input), input, materials, Control())


def expected() -> tuple[Any, Any]:
    s = (X["a"] + X["b"]).astype(np.float32)
    w = np.arange(12, dtype=np.float32).reshape(4, 3) / 7 - 0.8
    return np.maximum(s @ w, 0), s.sum()


def test_it_is_an_engine() -> None:
    assert "onnx" in ENGINES
    assert isinstance(make_engine("onnx", Path()), Engine)
    check_scheme("onnx", "zk")


def test_outputs_are_named_and_shaped() -> None:
    done = step(onnx_input(X))
    outputs = done.output.value()["outputs"]
    scores, total = expected()
    assert np.allclose(outputs["r"], scores, atol=1e-5)
    assert np.allclose(outputs["total"], [[total]], atol=1e-5)
    assert done.evidence["inputs"]["a"].shape == (2, 4)


def test_a_step_is_proven_and_verified(tmp_path: Path) -> None:
    input = onnx_input(X)
    done = step(input)
    materials = Materials(blobs={"m": model()})
    claim = Claim(spec_for(model(), input), input, done.output, materials)
    proof = make_proof(claim, done, Account.from_seed(b"node"), tmp_path / "node")
    verdict = verify_proof(claim, proof, None, tmp_path / "seat")
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 1_000_000), verdict.reason


def test_a_hashed_input_reaches_the_node_alone(tmp_path: Path) -> None:
    """The task's content, which seats and auditors read, holds the hashes."""
    hashes = {name: poseidon(quantise(x, 12).ravel().tolist()) for name, x in X.items()}
    input = onnx_input(hashes=hashes, circuit={"input_visibility": "hashed"})
    done = step(input, onnx_opening(X))
    assert np.allclose(done.output.value()["outputs"]["r"], expected()[0], atol=1e-5)
    claim = Claim(spec_for(model(), input), input, done.output, Materials(blobs={"m": model()}))
    proof = make_proof(claim, done, Account.from_seed(b"node"), tmp_path)
    assert verify_proof(claim, proof, None, tmp_path).confidence_ppm == 1_000_000
    with pytest.raises(EngineError, match="not the one the task hashed"):
        step(input, onnx_opening(X | {"b": X["b"] * 2}))
    with pytest.raises(EngineError, match="neither in the task nor in its private materials"):
        step(input)
    for private in (b"another", b'{"inputs":[]}', b'{"inputs":', b"{}", b"[]"):
        with pytest.raises(EngineError, match="cannot be run"):
            step(input, private)


@pytest.mark.parametrize(
    "input",
    [
        Content.text("hello"),
        Content.json_value({"inputs": {}}),
        Content.json_value([]),
        onnx_input({"a": X["a"]}),
        onnx_input(X | {"a": X["b"]}),
        onnx_input(X | {"c": X["b"]}),
    ],
    ids=range(6),
)
def test_inputs_that_do_not_fit_are_refused(input: Content) -> None:
    with pytest.raises(EngineError, match="cannot be run"):
        step(input)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 64, model(op="Loop"), model(op="NonZero")], ids=len
)
def test_a_model_that_is_not_one_is_refused(data: bytes) -> None:
    with pytest.raises(EngineError):
        step(onnx_input(X), data=data or b"\0")


def test_a_model_that_did_not_come_is_missing() -> None:
    input = onnx_input(X)
    with pytest.raises(ModelError, match="send its ONNX file"):
        OnnxEngine().run(spec_for(model(), input), input, Materials(), Control())


def test_a_cancelled_step_stops() -> None:
    cancelled = threading.Event()
    cancelled.set()
    input = onnx_input(X)
    with pytest.raises(StepCancelled):
        OnnxEngine().run(
            spec_for(model(), input),
            input,
            Materials(blobs={"m": model()}),
            Control(cancelled=cancelled),
        )

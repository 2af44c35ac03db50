"""Tool policies: one spelling, honest weights, and the right pick by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Materials, TaskSpec
from daifi_flows.encoding import cid_of
from daifi_flows.errors import EngineError, ModelError
from daifi_flows.ray_mesh._models import resolve
from daifi_flows.ray_mesh.engines._embedder import Embedder, embedder_for
from daifi_flows.ray_mesh.engines._engine import Control, Engine, StepCancelled
from daifi_flows.ray_mesh.engines._policy import MAX_TOOLS, Tool, build_policy, read_policy
from daifi_flows.ray_mesh.engines.onnx_policy import OnnxPolicyEngine, policy_ref

TOOLS = (
    Tool("write_report", "Write the answer and its sources into a report file."),
    Tool("ask_follow_up", "Ask the user a question when the answer is unclear or missing."),
    Tool("send_invoice", "Send an invoice for payment to a customer."),
)
JSON_TOOLS = [{"name": tool.name, "description": tool.description} for tool in TOOLS]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return embedder_for(resolve("all-minilm-l6-v2", "retrieval"))


@pytest.fixture(scope="module")
def policy(embedder: Embedder) -> bytes:
    return build_policy(TOOLS, embedder)


@pytest.fixture(scope="module")
def engine() -> OnnxPolicyEngine:
    return OnnxPolicyEngine()


def spec_for(policy: bytes) -> TaskSpec:
    return TaskSpec(
        kind="act",
        model=policy_ref(policy),
        input_cid=Content.text("").cid,
        scheme="zk",
        max_price_wei=0,
        deadline_ms=0,
        buyer="0x0000000000000000000000000000000000000000",
        nonce=bytes(32),
    )


def asked(text: Any, tools: Any = None, **more: Any) -> Content:
    value = {"text": text, "tools": JSON_TOOLS if tools is None else tools}
    return Content.json_value({**value, **more}, salt=bytes(32))


def materials(policy: bytes) -> Materials:
    other = b"another blob of the step"
    return Materials(blobs={cid_of(other): other, cid_of(policy): policy})


def test_the_engine_keeps_to_the_interface(engine: OnnxPolicyEngine) -> None:
    assert isinstance(engine, Engine)


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ("Here is the report with the answer and its sources, to be written to a file.", 0),
        ("The question is unclear. What exactly does the user want to know?", 1),
        ("The customer still has to pay, an invoice is due.", 2),
    ],
)
def test_the_tool_that_fits_the_text_is_picked(
    engine: OnnxPolicyEngine, embedder: Embedder, policy: bytes, text: str, tool: int
) -> None:
    execution = engine.run(spec_for(policy), asked(text), materials(policy), Control())
    output = execution.output.value()
    assert (output["tool"], output["index"]) == (TOOLS[tool].name, tool)
    cosines = embedder.embed([item.text for item in TOOLS]) @ embedder.embed([text])[0]
    assert np.allclose(np.array(output["scores_ppm"]) / 1e6, cosines, atol=2e-6)
    assert max(output["scores_ppm"]) == output["scores_ppm"][tool]
    assert execution.usage.prompt_tokens > 4
    assert execution.evidence["onnx"] == policy
    vector = execution.evidence["input"]
    assert vector.dtype == np.float32 and vector.shape == (1, 384)
    assert np.allclose(vector, embedder.embed([text]))


def test_the_same_tools_give_the_same_bytes(embedder: Embedder, policy: bytes) -> None:
    assert build_policy(TOOLS, embedder) == policy
    assert OnnxPolicyEngine().build(TOOLS) == policy
    alone = Embedder(resolve("all-minilm-l6-v2", "retrieval"))
    assert build_policy(TOOLS, alone) == policy
    assert build_policy(TOOLS[::-1], embedder) != policy


def test_a_policy_is_one_multiplication_in_valid_onnx(policy: bytes) -> None:
    model = onnx.load_model_from_string(policy)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    read = read_policy(policy)
    assert read.names == tuple(tool.name for tool in TOOLS)
    assert read.weights.shape == (384, 3)
    assert np.allclose(np.linalg.norm(read.weights, axis=0), 1, atol=1e-5)


def test_one_tool_and_sixty_four_are_both_fine(engine: OnnxPolicyEngine) -> None:
    for count in (1, MAX_TOOLS):
        tools = [Tool(f"tool_{n}", f"does thing number {n}") for n in range(count)]
        blob = engine.build(tools)
        named = [{"name": tool.name, "description": tool.description} for tool in tools]
        output = engine.run(
            spec_for(blob), asked(tools[-1].text, named), materials(blob), Control()
        ).output.value()
        assert output["tool"] == tools[-1].name
        assert len(output["scores_ppm"]) == count


def test_equal_scores_pick_the_first_tool(engine: OnnxPolicyEngine, policy: bytes) -> None:
    twins = [Tool("a", ""), Tool("A", "")]  # the model is uncased: one embedding
    blob = engine.build(twins)
    named = [{"name": tool.name, "description": ""} for tool in twins]
    output = engine.run(
        spec_for(blob), asked("a", named), materials(blob), Control()
    ).output.value()
    assert output["scores_ppm"][0] == output["scores_ppm"][1]
    assert output["index"] == 0


def test_a_long_answer_is_picked_for_by_its_beginning(
    engine: OnnxPolicyEngine, policy: bytes
) -> None:
    text = "An invoice for payment to a customer. " * 100
    plus = text + "Ask the user a question, it is unclear. " * 100
    outputs = [
        engine.run(spec_for(policy), asked(item), materials(policy), Control())
        for item in (text, plus)
    ]
    assert outputs[0].output.value() == outputs[1].output.value()
    assert outputs[0].usage.prompt_tokens == 256


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (asked(""), "text to act on is empty"),
        (asked(" \n"), "text to act on is empty"),
        (asked(None), "text to act on is empty"),
        (asked("x" * 65_537), "shorten it"),
        (asked("x", extra=1), "exactly text and tools"),
        (asked("x", []), "1 to 64 tools"),
        (asked("x", "tools"), "1 to 64 tools"),
        (asked("x", JSON_TOOLS * 30), "1 to 64 tools"),
        (asked("x", [{"name": "a"}]), "exactly a name and a description"),
        (asked("x", [{"name": 1, "description": ""}]), "are texts"),
        (asked("x", [{"name": "a b", "description": ""}]), "is not a name"),
        (asked("x", [{"name": "", "description": ""}]), "is not a name"),
        (asked("x", [{"name": "a" * 65, "description": ""}]), "is not a name"),
        (asked("x", [{"name": "a", "description": "d" * 1_025}]), "shorten it"),
        (asked("x", [JSON_TOOLS[0], JSON_TOOLS[0]]), "two tools are called write_report"),
        (asked("x", JSON_TOOLS[:2]), "over other tools"),
        (asked("x", JSON_TOOLS[::-1]), "in another order"),
        (asked("x", [*JSON_TOOLS[:2], {**JSON_TOOLS[2], "description": "z"}]), "weights are not"),
        (Content.text("x"), "must be JSON"),
        (Content(media_type="application/json", data=b"{", salt=bytes(32)), "must be JSON"),
    ],
)
def test_a_bad_input_is_one_clear_sentence(
    engine: OnnxPolicyEngine, policy: bytes, content: Content, says: str
) -> None:
    with pytest.raises(EngineError) as caught:
        engine.run(spec_for(policy), content, materials(policy), Control())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_that_did_not_come_along_is_named(engine: OnnxPolicyEngine, policy: bytes) -> None:
    for blobs in ({}, {cid_of(b"x"): b"x"}, {cid_of(policy): policy[:-1]}):
        with pytest.raises(ModelError, match="send its ONNX file"):
            engine.model(spec_for(policy).model, Materials(blobs=blobs))


def _edit(change: Callable[[onnx.ModelProto], None]) -> Callable[[bytes], bytes]:
    def edit(policy: bytes) -> bytes:
        model = onnx.load_model_from_string(policy)
        change(model)
        return model.SerializeToString(deterministic=True)

    return edit


def _favour_a_tool(model: onnx.ModelProto) -> None:
    weights = np.frombuffer(model.graph.initializer[0].raw_data, "<f4").reshape(384, 3).copy()
    weights[:, 2] *= 3
    model.graph.initializer[0].raw_data = weights.tobytes()


def _not_a_number(model: onnx.ModelProto) -> None:
    raw = bytearray(model.graph.initializer[0].raw_data)
    raw[:4] = np.float32("nan").tobytes()
    model.graph.initializer[0].raw_data = bytes(raw)


def _external_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _another_node(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Neg", input=["scores"], output=["more"])


def _other_embedding_model(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "00" * 32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_edit(_favour_a_tool), "weights are not"),
        (_edit(_other_embedding_model), "another embedding model"),
        (_edit(_not_a_number), "not a tool policy"),
        (_edit(_external_data), "not a tool policy"),
        (_edit(_another_node), "not a tool policy"),
        (_edit(lambda model: setattr(model, "doc_string", "x")), "not a tool policy"),
        (_edit(lambda model: model.metadata_props.pop()), "not a tool policy"),
        (_edit(lambda model: setattr(model.opset_import[0], "version", 17)), "not a tool policy"),
        (lambda policy: policy + b"\x00", "not a tool policy"),
        (lambda policy: policy[:100], "not a tool policy"),
        (lambda _policy: b"", "not a tool policy"),
    ],
)
def test_a_strangers_policy_is_refused_unless_it_is_what_an_honest_builder_makes(
    engine: OnnxPolicyEngine, policy: bytes, change: Callable[[bytes], bytes], says: str
) -> None:
    forged = change(policy)
    with pytest.raises(EngineError) as caught:
        engine.run(spec_for(forged), asked("pay the invoice"), materials(forged), Control())
    assert says in str(caught.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_changed_byte_is_the_same_policy(policy: bytes, data: st.DataObject) -> None:
    forged = bytearray(policy)
    for _ in range(data.draw(st.integers(1, 3))):
        # Structure sits at both ends; the middle is weights.
        span = st.one_of(st.integers(0, 200), st.integers(len(policy) - 200, len(policy) - 1))
        forged[data.draw(span)] = data.draw(st.integers(0, 255))
    try:
        read = read_policy(bytes(forged))
    except EngineError:
        return
    again = read_policy(policy)
    same = read.names == again.names and read.embedding_digest == again.embedding_digest
    assert (same and np.array_equal(read.weights, again.weights)) == (bytes(forged) == policy)


@given(st.binary(max_size=400))
def test_random_bytes_are_not_a_policy(data: bytes) -> None:
    with pytest.raises(EngineError):
        read_policy(data)


def test_an_oversized_policy_is_not_parsed() -> None:
    with pytest.raises(EngineError, match="over the limit"):
        read_policy(bytes((1 << 20) + 1))


def test_closing_frees_and_the_next_use_loads_again(policy: bytes) -> None:
    engine = OnnxPolicyEngine()
    engine.load(engine.model(policy_ref(policy), materials(policy)))
    engine.close()
    engine.close()
    assert engine.build(TOOLS) == policy


def test_a_cancelled_step_stops(engine: OnnxPolicyEngine, policy: bytes) -> None:
    control = Control()
    control.cancelled.set()
    with pytest.raises(StepCancelled):
        engine.run(spec_for(policy), asked("x"), materials(policy), control)

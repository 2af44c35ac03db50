"""What reaches a verifier or prover beside the payload: outputs, models, calibrations, tensors."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hostile import cases, catalogue, json_catalogue, json_mutations, metered, mutations, settle
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.errors import DaifiError, EncodingError, ModelError
from daifi_flows.proofs import Outcome, Prefill

JSON = pytest.mark.parametrize(
    ("name", "share"),
    [
        ("digest output", 1.0),
        ("token-difr output", 1.0),
        ("zk output", 0.25),
        ("zk onnx output", 0.25),
        ("zk onnx task", 1.0),
        ("calibration", 1.0),
    ],
)


@JSON
def test_the_json_catalogue_is_refused(target: Any, name: str, share: float) -> None:
    attacked = target(name)
    for label, data in json_catalogue(attacked.honest):
        try:
            attacked.attack(data)
        except BaseException as error:
            raise AssertionError(f"{name}, {label}: {error!r}") from error


@JSON
def test_drawn_json_is_refused(target: Any, name: str, share: float) -> None:
    attacked = target(name)

    @cases(share)
    @given(json_mutations(attacked.honest))
    def run(data: bytes) -> None:
        attacked.attack(data)

    run()


def _onnx_variants(honest: bytes) -> Iterator[tuple[str, bytes]]:
    """A model's protobuf, changed by name."""
    import onnx
    from onnx import TensorProto, helper

    def variant(change: Callable[[Any, Any, Any], None]) -> bytes:
        model = onnx.load_model_from_string(honest)
        change(model, model.graph.node[0], model.graph.initializer[0])
        return model.SerializeToString()

    def set_dims(*dims: int) -> Callable[[Any, Any, Any], None]:
        def change(_model: Any, _node: Any, tensor: Any) -> None:
            del tensor.dims[:]
            tensor.dims.extend(dims)

        return change

    def set_raw(data: bytes) -> Callable[[Any, Any, Any], None]:
        return lambda _m, _n, tensor: setattr(tensor, "raw_data", data)

    def nest(model: Any, node: Any, _tensor: Any) -> None:
        graph = model.graph
        for _ in range(20):
            outer = helper.make_graph([helper.make_node("If", ["c"], ["o"])], "g", [], [])
            outer.node[0].attribute.append(helper.make_attribute("then_branch", graph))
            graph = outer
        model.graph.CopyFrom(graph)

    def external(_model: Any, _node: Any, tensor: Any) -> None:
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "/etc/passwd"
        tensor.ClearField("raw_data")

    for name, dims in {
        "no dimensions": (),
        "10 GB of weights": (384, 6_500_000),
        "2^62 rows": (2**62, 2),
        "negative dimensions": (-384, -3),
        "a product that wraps to the size": (2**63 - 1, 2),
        "zero tools": (384, 0),
        "a thousand dimensions": (1,) * 1_000,
    }.items():
        yield name, variant(set_dims(*dims))
    size = 384 * 3
    for name, data in {
        "weights of NaN": np.full(size, np.nan, "<f4").tobytes(),
        "infinite weights": np.full(size, np.inf, "<f4").tobytes(),
        "huge weights": np.full(size, 3e38, "<f4").tobytes(),
        "weights cut short": bytes(size * 4 - 1),
        "no weights": b"",
        "too many weights": bytes(size * 4 + 4),
    }.items():
        yield name, variant(set_raw(data))
    for kind in (0, TensorProto.STRING, TensorProto.FLOAT16, TensorProto.COMPLEX128, 99, -1):
        yield f"data type {kind}", variant(lambda _m, _n, t, k=kind: setattr(t, "data_type", k))
    for op in ("", "Loop", "If", "MatMulInteger", "Einsum", "no such operator", "x" * 10_000):
        yield f"operator {op[:20]!r}", variant(lambda _m, n, _t, o=op: setattr(n, "op_type", o))
    yield "external data", variant(external)
    yield "nested graphs", variant(nest)
    yield "a foreign domain", variant(lambda _m, n, _t: setattr(n, "domain", "evil.example"))
    yield "10,000 nodes", variant(lambda m, n, _t: m.graph.node.extend([n] * 10_000))
    yield "no nodes", variant(lambda m, _n, _t: m.graph.ClearField("node"))
    yield (
        "10,000 inputs",
        variant(lambda m, _n, _t: m.graph.input.extend(list(m.graph.input) * 9999)),
    )
    yield "opset 2^60", variant(lambda m, _n, _t: setattr(m.opset_import[0], "version", 2**60))
    yield "no opset", variant(lambda m, _n, _t: m.ClearField("opset_import"))
    yield "functions", variant(lambda m, n, _t: m.functions.add(name="f").node.append(n))
    yield "a loop of names", variant(lambda _m, n, _t: n.output.__setitem__(0, n.input[0]))
    for field in range(1, 32):
        key = field << 3
        yield f"field {field} of 10 GB", honest + _varint(key | 2) + _varint(10**10)
        yield f"field {field} without end", honest + _varint(key | 3)
        yield f"field {field} nested", honest + (_varint(key | 2) + b"\x7e") * 63


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


ONNX = pytest.mark.parametrize("name", ["zk policy", "zk onnx model"])


@ONNX
def test_hostile_onnx_files_are_refused(target: Any, name: str) -> None:
    attacked = target(name)
    for label, data in [*catalogue(attacked.honest), *_onnx_variants(attacked.honest)]:
        try:
            attacked.attack(data)
        except BaseException as error:
            raise AssertionError(f"{name}, {label}: {error!r}") from error


@ONNX
def test_drawn_onnx_files_are_refused(target: Any, name: str) -> None:
    attacked = target(name)

    @cases(0.5)
    @given(mutations(attacked.honest))
    def run(data: bytes) -> None:
        attacked.attack(data)

    run()


# The verifier's own engine gives nonsense: nobody is accused, and nothing escapes.


def _bad_tensors(good: np.ndarray[Any, Any]) -> dict[str, Any]:
    tokens, width = good.shape
    spoilt = {}
    for name, value in {"NaN": np.nan, "infinity": np.inf}.items():
        one = good.copy()
        one[tokens // 2, width // 2] = value
        spoilt[f"one {name}"] = one
        spoilt[f"all {name}"] = np.full_like(good, value)
    return spoilt | {
        "all minus infinity": np.full_like(good, -np.inf),
        "a row too few": good[:-1],
        "a row too many": np.concatenate([good, good[:1]]),
        "no rows": good[:0],
        "no columns": good[:, :0],
        "one dimension": good[0],
        "three dimensions": good[None],
    }


@pytest.mark.parametrize("part", ["logits", "hidden"])
@pytest.mark.parametrize("scheme", ["token-difr", "toploc"])
def test_a_prefill_of_nonsense_accuses_nobody(
    scheme_cases: Any, honest_proof: Any, monkeypatch: Any, scheme: str, part: str
) -> None:
    case, proof = scheme_cases[scheme](), honest_proof(scheme)
    evidence = case.execution.evidence
    good = case.reference.prefill(case.spec, evidence["prompt_tokens"], evidence["output_tokens"])
    honest = case.verify(proof).outcome
    for name, bad in _bad_tensors(getattr(good, part)).items():
        answer = Prefill(**({"logits": good.logits, "hidden": good.hidden} | {part: bad}))
        monkeypatch.setattr(case.reference, "prefill", lambda *_, a=answer: a)
        verdict = metered(f"{scheme} prefill", name.encode(), lambda: case.verify(proof))
        try:
            if part == "hidden" and scheme == "token-difr":  # which does not look at it
                assert verdict.outcome is honest
            else:
                settle(verdict, Outcome.CANNOT_TELL)
        except AssertionError as error:
            raise AssertionError(f"{scheme}, {part}, {name}: {verdict}") from error


@pytest.mark.parametrize("method", ["prefill", "render_output", "end_tokens", "calibration"])
@pytest.mark.parametrize("scheme", ["token-difr", "toploc"])
def test_a_reference_that_fails_accuses_nobody(
    scheme_cases: Any, honest_proof: Any, monkeypatch: Any, scheme: str, method: str
) -> None:
    case, proof = scheme_cases[scheme](), honest_proof(scheme)

    def fail(*_: Any) -> Any:
        raise ModelError("the weights are gone")

    monkeypatch.setattr(case.reference, method, fail)
    settle(case.verify(proof), Outcome.CANNOT_TELL)


# A broken engine's evidence is refused before anything is signed.

_NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3) | st.none()
_EVIDENCE = (
    st.none()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=10)
    | st.lists(_NUMBERS, max_size=30)
    | st.dictionaries(st.text(max_size=3), _NUMBERS, max_size=3)
    | st.lists(st.lists(_NUMBERS, max_size=3), max_size=3)
    | st.sampled_from(
        [
            np.full((24, 64), np.nan, np.float32),
            np.full((24, 64), np.inf, np.float32),
            np.zeros((0, 0), np.float32),
            np.zeros((24, 64, 1), np.float32),
            np.zeros((24, 63), np.float32),
            np.zeros((1, 384), np.complex64),
            np.full((1, 384), None, object),
            np.array("x"),
            np.full((1, 384), np.nan),
            np.full((1, 384), 1e300),
            object(),
        ]
    )
)


@pytest.mark.parametrize(
    ("scheme", "share"),
    [
        ("digest", 0.2),
        ("token-difr", 1.0),
        ("toploc", 1.0),
        ("zk", 1.0),
        ("zk onnx", 0.5),
        ("zk-slice", 1.0),
    ],
)
def test_hostile_evidence_is_refused(scheme_cases: Any, scheme: str, share: float) -> None:
    case = scheme_cases[scheme]()
    unused = {"output_layer"} if scheme == "toploc" else set()
    keys = sorted(case.execution.evidence.keys() - unused) or ["anything"]

    @cases(share)
    @given(st.dictionaries(st.sampled_from(keys), _EVIDENCE, min_size=1))
    def run(changes: dict[str, Any]) -> None:
        evidence = dict(case.execution.evidence) | changes
        hostile = replace(case, execution=replace(case.execution, evidence=evidence))
        try:
            hostile.prove()
        except (DaifiError, EncodingError):
            return
        # Activations of another model's width are for the verifier of toploc to compare.
        assert scheme in ("digest", "toploc"), f"{changes} was proven"

    run()

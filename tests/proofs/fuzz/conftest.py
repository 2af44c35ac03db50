"""What is attacked: one target for each kind of bytes that a stranger sends."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # makes hostile.py importable

from hostile import Target, settle

from daifi_flows.cnft import Content, Execution, Materials, Proof, Usage
from daifi_flows.encoding import decode_canonical
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs import Outcome

INVALID, VALID, CANNOT_TELL = Outcome.INVALID, Outcome.VALID, Outcome.CANNOT_TELL

OUTPUT = {"answer": "21 seats", "n": 2, "half": 0.5, "passages": [{"id": "a", "score_ppm": 9}]}


RANKER = {
    "decomp_base": 256,
    "decomp_legs": 4,
    "num_inner_cols": 2,
    "logrows": 10,
    "input_scale": 8,
    "param_scale": 8,
}


def _product(weights: Any) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rows, columns = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "ranker",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


class Again:
    """A reference that answers every re-execution with one output."""

    def __init__(self, output: Content) -> None:
        self.output = output

    def missing(self, *_: Any) -> None:
        return None

    def reexecute(self, *_: Any) -> Content:
        return self.output


@pytest.fixture(scope="session")
def scheme_cases(
    kit: Any,
    llm_case: Any,
    slice_case: Any,
    zk_case: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Callable[[], Any]]:
    """An honest case of each scheme."""

    def digest() -> Any:
        input = Content.json_value({"args": {"n": 1}}, kit.SALT)
        output = Content.json_value(OUTPUT, kit.SALT)
        return kit.Case(
            kit.build_spec(input, "digest"),
            input,
            Execution(output, Usage()),
            Materials(),
            Again(output),
            tmp_path_factory.mktemp("digest"),
        )

    def toploc() -> Any:
        case = slice_case()
        spec = case.spec.model_copy(update={"scheme": "toploc"})
        return replace(case, spec=spec)

    def ranker() -> Any:
        """An ONNX model of one product, by the general ``zk``."""
        import onnxruntime

        from daifi_flows.cnft import ModelRef
        from daifi_flows.encoding import cid_of
        from daifi_flows.proofs._onnx_task import onnx_input, onnx_output
        from daifi_flows.proofs.circuits import onnx_digest, read_onnx

        weights = np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3)
        inputs = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 6)}
        onnx = _product(weights)
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        input = onnx_input(inputs, circuit=RANKER, salt=kit.SALT)
        output = onnx_output(read_onnx(onnx), session.run(None, inputs), kit.SALT)
        model = ModelRef(name="r", digest=onnx_digest(onnx), engine="onnx", precision="float32")
        return kit.Case(
            kit.build_spec(input, "zk", model=model),
            input,
            Execution(output, Usage(), {"onnx": onnx, "inputs": inputs}),
            Materials(blobs={cid_of(onnx): onnx}),
            None,
            zk_case.workdir,
        )

    return {
        "digest": cache(digest),
        "token-difr": llm_case,
        "toploc": cache(toploc),
        "zk": lambda: zk_case,
        "zk onnx": cache(ranker),
        "zk-slice": slice_case,
    }


@pytest.fixture(scope="session")
def honest_proof(scheme_cases: Any) -> Callable[[str], Proof]:
    """The honest proof of a scheme's case."""
    return cache(lambda name: scheme_cases[name]().prove())


@pytest.fixture(scope="session")
def target(scheme_cases: Any, honest_proof: Any, tmp_path_factory: Any) -> Callable[[str], Target]:
    """Targets by name."""

    def _payload(name: str, alone: bool = False) -> Target:
        case, proof = scheme_cases[name](), honest_proof(name)
        if alone:
            case = replace(case, reference=None)

        def feed(data: bytes) -> None:
            forged = case.forge(proof, data)
            verdict = case.verify(forged)
            # Which SRS a node used is not known, nor how far fingerprints may be off uncalibrated.
            if alone or name == "toploc" or "another SRS" in verdict.reason:
                same = verdict.outcome is VALID and _but_for_moduli(data) == _but_for_moduli(
                    proof.payload
                )
                settle(verdict, VALID if same else INVALID, CANNOT_TELL)
            else:
                settle(verdict, INVALID)

        return Target(f"{name} payload", proof.payload, feed)

    def _proof(name: str) -> Target:
        case, proof = scheme_cases[name](), honest_proof(name)

        def feed(data: bytes) -> None:
            try:
                parsed = Proof.from_canonical(data)
            except EncodingError:
                return
            settle(case.verify(parsed), INVALID)

        return Target(f"{name} proof", proof.canonical(), feed)

    def _output(name: str) -> Target:
        """Another output, committed to and signed as an honest node would."""
        case, proof = scheme_cases[name](), honest_proof(name)
        honest = case.execution.output

        def feed(data: bytes) -> None:
            output = honest.model_copy(update={"data": data})
            forged = case.forge(proof, proof.payload, output_cid=output.cid)
            verdict = case.verify(forged, output=output)
            if verdict.reason.startswith("a near tie"):  # of the last passage's score
                settle(verdict, CANNOT_TELL)
            elif verdict.outcome is VALID:
                assert name not in ("token-difr", "zk-slice")
                assert _same(data, honest.data), verdict
            else:
                settle(verdict, INVALID)

        return Target(f"{name} output", honest.data, feed)

    def _policy() -> Target:
        """An ONNX file as a buyer's or a node's."""
        case, proof = scheme_cases["zk"](), honest_proof("zk")
        onnx = case.execution.evidence["onnx"]

        def feed(data: bytes) -> None:
            from daifi_flows.encoding import cid_of
            from daifi_flows.proofs._policy import policy_digest

            hostile = replace(
                case, execution=replace(case.execution, evidence={"onnx": data, "input": None})
            )
            with pytest.raises(ProofError):
                hostile.prove()
            model = case.spec.model.model_copy(update={"digest": policy_digest(data)})
            spec = case.spec.model_copy(update={"model": model})
            swapped = replace(case, spec=spec, materials=Materials(blobs={cid_of(data): data}))
            forged = swapped.forge(
                proof, proof.payload, task_id=spec.task_id, model_digest=model.digest
            )
            settle(swapped.verify(forged), INVALID, CANNOT_TELL, VALID)

        return Target("zk policy", onnx, feed)

    def _task() -> Target:
        """The input of an ONNX step, a buyer's."""
        from daifi_flows.proofs._onnx_task import read_task

        case = scheme_cases["zk onnx"]()

        def feed(data: bytes) -> None:
            with contextlib.suppress(EncodingError):
                read_task(case.input.model_copy(update={"data": data}))

        return Target("zk onnx task", case.input.data, feed)

    def _model() -> Target:
        """An ONNX file of any model, a buyer's or a node's; ezkl sees what passes in a process of
        its own."""
        from daifi_flows.proofs.circuits import read_onnx, with_batch, without_weights
        from daifi_flows.proofs.circuits._onnx import unshared

        case = scheme_cases["zk onnx"]()

        def feed(data: bytes) -> None:
            with contextlib.suppress(EncodingError):
                with_batch(data, 2)
            with contextlib.suppress(EncodingError):
                accepted = read_onnx(data).data
                unshared(accepted)
                without_weights(accepted)

        return Target("zk onnx model", case.execution.evidence["onnx"], feed)

    def _calibration() -> Target:
        from daifi_flows.proofs.calibration import read_calibration

        path = tmp_path_factory.mktemp("calibration") / "c.json"
        honest = _some_calibration()
        case = scheme_cases["token-difr"]()
        proof = honest_proof("token-difr")

        def feed(data: bytes) -> None:
            path.write_bytes(data)
            try:
                found = read_calibration(path)
            except ModelError:
                return
            calibrated = replace(case, reference=_Calibrated(case.reference, found))
            settle(calibrated.verify(proof), VALID, CANNOT_TELL, INVALID)

        return Target("calibration", honest.encode(), feed)

    makers: dict[str, Callable[[], Target]] = {
        **{f"{name} payload": lambda n=name: _payload(n) for name in scheme_cases},
        **{
            f"{name} payload alone": lambda n=name: _payload(n, alone=True) for name in scheme_cases
        },
        **{f"{name} proof": lambda n=name: _proof(n) for name in scheme_cases},
        "digest output": lambda: _output("digest"),
        "token-difr output": lambda: _output("token-difr"),
        "zk-slice output": lambda: _output("zk-slice"),
        "zk output": lambda: _output("zk"),
        "zk onnx output": lambda: _output("zk onnx"),
        "zk onnx task": _task,
        "zk onnx model": _model,
        "zk policy": _policy,
        "calibration": _calibration,
    }
    return cache(lambda name: makers[name]())


class _Calibrated:
    def __init__(self, reference: Any, calibration: Any) -> None:
        self._reference, self._calibration = reference, calibration

    def calibration(self, *_: Any) -> Any:
        return self._calibration

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reference, name)


def _some_calibration() -> Any:
    from daifi_flows.proofs.calibration import Calibration, Rounding

    return Calibration(
        model="m",
        digest=bytes(32),
        precision="none",
        verifier_precision="none",
        rounding=Rounding(scales=(0.01, 0.2), weights=(0.99, 0.01)),
        generations=200,
        tokens=12_800,
        max_log_evidence=2.5,
        made_with=("torch 2.13",),
    )


def _but_for_moduli(payload: bytes) -> Any:
    """A toploc payload without the modulus of each chunk: where all indices lie below it, any
    larger one gives the same points."""
    fields = decode_canonical(payload)
    prints = np.frombuffer(fields.pop("fingerprints"), "<u2").reshape(-1, 129)
    return fields | {"fingerprints": prints[:, 1:].tobytes()}


def _same(one: bytes, other: bytes) -> bool:
    """Whether two JSON texts say the same within the schemes' tolerances."""
    try:
        return _near(json.loads(one), json.loads(other))
    except (ValueError, RecursionError, OverflowError):
        return False


def _near(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_near, one, other))
    if isinstance(one, bool) or isinstance(other, bool) or type(one) is str or type(other) is str:
        return type(one) is type(other) and one == other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= 2_000
    return one is None and other is None

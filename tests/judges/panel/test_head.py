"""The trained head: its file, its ONNX form, and a SNARK that a verdict can carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec, Usage
from daifi_flows.encoding import cid_of
from daifi_flows.errors import EncodingError
from daifi_flows.judges.panel import Head, read_head, shipped_head, write_head
from daifi_flows.judges.panel._head import score_of
from daifi_flows.judges.panel._onnx import HEAD_CIRCUIT, HEAD_ERROR, head_to_onnx
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, make_proof, verify_proof
from daifi_flows.proofs._onnx_task import onnx_input, onnx_output
from daifi_flows.proofs.circuits import onnx_digest, read_onnx


def small(seed: int = 1, width: int = 8, rank: int = 3, hidden: int = 2) -> Head:
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> Any:
        return (rng.normal(size=shape) / 2).astype(np.float32)

    return Head(array(width, rank), array(2 * rank, hidden), array(hidden), array(hidden), array(1))


def unit(rng: Any, *shape: int) -> Any:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_the_shipped_head_tells_a_denial_and_is_symmetric(embed: Any) -> None:
    head = shipped_head()
    said = embed(["The store is open.", "The store was open.", "The store is not open."])
    forth, back = head.scores(said[:1], said[2:]), head.scores(said[2:], said[:1])
    assert forth == pytest.approx(back)
    assert forth < head.scores(said[:1], said[1:2]) - 0.2
    assert len(write_head(head)) < 100_000


def test_a_head_survives_its_file() -> None:
    head = small()
    again = read_head(write_head(head))
    for name, array in head.tensors().items():
        assert (again.tensors()[name] == array).all()


def damaged(**changes: Any) -> bytes:
    return write_head(replace(small(), **changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x04K\x01.",  # a pickle
        b"\x93NUMPY",
        bytes(5 << 20),
        damaged(project=np.full((8, 3), np.nan, np.float32)),
        damaged(project=np.zeros((8, 4), np.float32)),
        damaged(project=np.zeros((8, 3), np.float64)),
        damaged(second=np.zeros((2, 1), np.float32)),
        damaged(second_bias=np.zeros(2, np.float32)),
        damaged(project=np.array([["x"]])),
        damaged(project=np.zeros(3, np.float32)),
    ],
    ids=lambda data: str(len(data)),
)
def test_what_is_not_a_head_is_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        read_head(data)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "head.npz"
    np.savez(file, project=np.array([object()], dtype=object))
    with pytest.raises(EncodingError):
        read_head(file.read_bytes())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_a_head_or_refused(data: Any) -> None:
    whole = bytearray(write_head(small()))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    try:
        head = read_head(bytes(whole))
    except EncodingError:
        return
    assert np.isfinite(head.project).all()


@pytest.mark.parametrize("head", [small(), None], ids=["small", "shipped"])
def test_onnx_runtime_gets_the_same_scores(head: Head | None) -> None:
    import onnxruntime

    head = head or shipped_head()
    rng = np.random.default_rng(2)
    session = onnxruntime.InferenceSession(head_to_onnx(head), providers=["CPUExecutionProvider"])
    for _ in range(5):
        one, other = unit(rng, 1, head.width), unit(rng, 1, head.width)
        (logit,) = session.run(None, {"claimed": one, "expected": other})
        assert score_of(logit[:, 0]) == pytest.approx(head.scores(one, other), abs=1e-5)


class Proven:
    """A judge's score of two embeddings as a step that ``zk`` proves."""

    def __init__(self, head: Head, one: Any, other: Any, workdir: Path) -> None:
        import onnxruntime

        model = head_to_onnx(head)
        inputs = {"claimed": one, "expected": other}
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.input = onnx_input(inputs, circuit=HEAD_CIRCUIT, max_error=HEAD_ERROR, salt=bytes(32))
        self.output: Content = onnx_output(read_onnx(model), session.run(None, inputs), bytes(32))
        digest = onnx_digest(model)
        ref = ModelRef(name="head", digest=digest, engine="onnx", precision="float32")
        self.spec = TaskSpec(
            kind="function", model=ref, input_cid=self.input.cid, scheme="zk",
            max_price_wei=1, deadline_ms=1, buyer=Account.from_seed(b"b").address,
            nonce=bytes(32),
        )  # fmt: skip
        self.materials = Materials(blobs={cid_of(model): model})
        self.execution = Execution(self.output, Usage(), {"onnx": model, "inputs": inputs})
        self.workdir = workdir

    def claim(self, output: Content | None = None) -> Claim:
        return Claim(self.spec, self.input, output or self.output, self.materials)

    def prove(self) -> Any:
        return make_proof(self.claim(), self.execution, Account.from_seed(b"n"), self.workdir)


def test_a_verdict_can_carry_a_snark_of_a_small_head(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    head = small()
    proven = Proven(head, unit(rng, 1, 8), unit(rng, 1, 8), tmp_path / "prover")
    proof = proven.prove()
    verdict = verify_proof(proven.claim(), proof, None, tmp_path / "verifier")
    assert verdict.outcome is Outcome.VALID, verdict.reason
    other = Proven(small(2), unit(rng, 1, 8), unit(rng, 1, 8), tmp_path / "prover")
    lied = verify_proof(proven.claim(other.output), proof, None, tmp_path / "verifier")
    assert lied.outcome is Outcome.INVALID


@pytest.mark.slow
def test_a_verdict_can_carry_a_snark_of_the_shipped_head(tmp_path: Path, embed: Any) -> None:
    rows = embed(["The store is open.", "The store is not open."])
    proven = Proven(shipped_head(), rows[:1], rows[1:], tmp_path / "prover")
    verdict = verify_proof(proven.claim(), proven.prove(), None, tmp_path / "verifier")
    assert verdict.outcome is Outcome.VALID, verdict.reason

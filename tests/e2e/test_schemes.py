"""Schemes of steps on a real fabric: a hidden input, and proofs that cannot be."""

import asyncio

import pytest

from daifi_flows import Fabric, verify_bundle
from daifi_flows._step import StepEvent, StepRequest
from daifi_flows.cnft import Content, Materials, ModelRef, Sampling
from daifi_flows.encoding import cid_of
from daifi_flows.errors import ConfigError
from daifi_flows.proofs._onnx_task import onnx_input, onnx_opening
from daifi_flows.proofs.circuits import poseidon, quantise
from daifi_flows.ray_mesh.engines.onnx import onnx_ref

FUNCTION = ModelRef(name="m:f", digest=bytes(32), engine="function", precision="exact")


@pytest.mark.parametrize(
    ("engine", "scheme", "instead"),
    [
        ("function", "token-difr", "choose digest"),
        ("function", "toploc", "choose digest"),
        ("transformers", "digest", "choose token-difr or toploc"),
        ("transformers", "zk", "choose token-difr or toploc"),
        ("retrieval", "magic", "no proof scheme 'magic'"),
        ("abacus", "digest", "engine 'abacus' is unknown"),
    ],
)
def test_nothing_is_paid_for_a_proof_that_cannot_be(
    fabric: Fabric, events: list[StepEvent], engine: str, scheme: str, instead: str
) -> None:
    request = StepRequest(
        name="odd",
        kind="function",
        model=FUNCTION.model_copy(update={"engine": engine}),
        input=Content.json_value({"args": {}}),
        salt_key=bytes(31) + b"\x2a",
        scheme=scheme,
        sampling=Sampling(max_tokens=8),
    )
    ledger, buyer = fabric.settlement, fabric.buyer.address
    before, heard = asyncio.run(ledger.account(buyer)), len(events)
    with pytest.raises(ConfigError, match=instead):
        asyncio.run(fabric.run(request))
    assert asyncio.run(ledger.account(buyer)) == before  # balance and nonce: no transaction
    assert len(events) == heard


def test_an_onnx_step_with_a_hidden_input_settles_and_shows_it_to_nobody(fabric: Fabric) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    secret = np.linspace(-0.987654, 0.912345, 4, dtype=np.float32).reshape(1, 4)
    weights = np.linspace(-0.5, 0.6, 12, dtype=np.float32).reshape(4, 3)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "ranker",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    data = made.SerializeToString()
    hashes = {"x": poseidon(quantise(secret, 12).ravel().tolist())}
    opening = onnx_opening({"x": secret})
    request = StepRequest(
        name="rank",
        kind="rank",
        model=onnx_ref(data),
        input=onnx_input(hashes=hashes, circuit={"input_visibility": "hashed"}),
        salt_key=bytes(31) + b"\x2b",
        scheme="zk",
        materials=Materials(blobs={cid_of(data): data}, private=opening),
    )
    nft = asyncio.run(fabric.run(request))
    assert np.allclose(nft.output["outputs"]["y"], secret @ weights, atol=1e-5)
    written = b"".join(file.read_bytes() for file in nft.bundle.iterdir())
    assert data in written
    assert opening not in written
    assert b"-0.98765" not in written
    report = verify_bundle(nft.bundle, committee=fabric.committee_keys)
    assert report.ok, report
    proof = next(check for check in report.checks if check.name == "proof")
    assert proof.status == "passed", proof  # from the bundle alone: the SNARK, and the hash

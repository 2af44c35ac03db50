"""A node without Ray: signed results, failures as data, replies parsed strictly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Materials, ModelRef, TaskSpec, model_digest
from daifi_flows.encoding import canonical
from daifi_flows.errors import DaifiError, EncodingError, EngineError, ModelError, ProofError
from daifi_flows.keys import recover_address
from daifi_flows.proofs import Claim, verify_proof
from daifi_flows.ray_mesh import NodeConfig
from daifi_flows.ray_mesh._node import NodeService, parse_reply, step_log
from daifi_flows.ray_mesh.engines._engine import Control, StepCancelled


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> NodeConfig:
    home = tmp_path_factory.mktemp("node")
    return NodeConfig("n0", b"\x01" * 32, home, 10, engines=("transformers", "function"))


@pytest.fixture(scope="module")
def service(config: NodeConfig) -> NodeService:
    return NodeService(config)


def test_a_step_comes_back_proven_and_signed(
    service: NodeService,
    tiny_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
    tmp_path: Path,
) -> None:
    content = ask()
    spec = make_spec(tiny_ref, content)
    lines: list[str] = []
    reply = service.answer(
        spec.canonical(), content.canonical(), Materials(), Control(log=lines.append)
    )
    result = parse_reply(reply, "n0")
    assert result.proof.node == result.manifest.signer == service.account.address
    assert recover_address(result.manifest.digest(), result.manifest.signature) == result.proof.node
    assert model_digest(result.manifest.files) == spec.model.digest
    assert result.proof.statement.task_id == spec.task_id
    verdict = verify_proof(Claim(spec, content, result.output), result.proof, None, tmp_path)
    assert "no model" in verdict.reason  # all generic checks passed
    assert any("generated" in line for line in lines)
    assert service.running == 0


def test_failures_come_back_as_the_error_they_were(
    service: NodeService,
    tiny_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
) -> None:
    content = ask()
    cases: list[tuple[TaskSpec, Content, type[DaifiError], str]] = [
        (make_spec(tiny_ref, content), ask(), EngineError, "not the one it names"),
        (
            make_spec(tiny_ref.model_copy(update={"engine": "vllm"}), content),
            content,
            EngineError,
            "has no 'vllm' engine",
        ),
        (
            make_spec(tiny_ref.model_copy(update={"digest": bytes(32)}), content),
            content,
            ModelError,
            "digest",
        ),
        (make_spec(tiny_ref, content, scheme="zk"), content, ProofError, "n0"),
    ]
    for spec, given_input, kind, words in cases:
        reply = service.answer(spec.canonical(), given_input.canonical(), Materials(), Control())
        with pytest.raises(kind, match=words) as caught:
            parse_reply(reply, "n0")
        assert type(caught.value) is kind
        assert "n0" in str(caught.value)
    with pytest.raises(EncodingError):
        parse_reply(service.answer(b"junk", b"", Materials(), Control()), "n0")


def test_cancelling_by_task_id_stops_the_step(
    service: NodeService,
    tiny_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
) -> None:
    content = ask()
    spec = make_spec(tiny_ref, content)

    def cancel(_line: str) -> None:
        service.cancel(spec.task_id)

    with pytest.raises(StepCancelled):
        service.execute(spec, content, Materials(), Control(log=cancel))
    assert service.cancel(spec.task_id) == 0


def test_a_node_configuration_shows_no_secret(config: NodeConfig) -> None:
    assert config.secret.hex() not in repr(config)
    assert repr(config.secret) not in repr(config)
    assert config.info.engines == ("transformers", "function")


@pytest.mark.parametrize(
    "change",
    [
        {"engines": ("abacus",)},
        {"behaviour": "lazy"},
        {"behaviour": "quantized", "engines": ("function",)},
    ],
)
def test_a_wrong_configuration_is_refused(config: NodeConfig, change: dict[str, Any]) -> None:
    from dataclasses import replace

    with pytest.raises(EngineError):
        NodeService(replace(config, **change))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.integers(-5, 5) | st.text(max_size=5) | st.binary(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["result", "error", "message", "x"]), inner)
            ),
            max_leaves=6,
        ).map(canonical),
        st.just("text"),
        st.none(),
    )
)
def test_any_other_reply_is_refused_with_a_typed_error(reply: Any) -> None:
    with pytest.raises((EncodingError, EngineError)):
        parse_reply(reply, "n0")


def test_a_node_can_only_report_failures_of_a_node() -> None:
    for kind in ("TransactionRefused", "SystemExit", "LedgerError", ""):
        with pytest.raises(EngineError) as caught:
            parse_reply(canonical({"error": kind, "message": "m"}), "n0")
        assert type(caught.value) is EngineError


@pytest.mark.parametrize("context", [None, {}, {"task_run_context": {"task": 1}}])
def test_logs_fall_back_to_the_process(context: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "daifi_flows.node"), step_log(context) as log:
        log("one line")
    assert "one line" in caplog.text

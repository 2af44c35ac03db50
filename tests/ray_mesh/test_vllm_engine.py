"""The vLLM engine: the same rule and prompt as transformers, checked by a transformers prefill."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Content, Materials, ModelRef, Sampling, TaskSpec
from daifi_flows.errors import EngineError
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, make_proof, verify_proof
from daifi_flows.ray_mesh import EngineReference, resolve
from daifi_flows.ray_mesh.engines._engine import Control, EngineDied, StepCancelled
from daifi_flows.ray_mesh.engines.vllm import VllmEngine
from daifi_flows.settings import Settings


def test_a_node_without_vllm_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "vllm" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    spec = make_spec(tiny_ref.model_copy(update={"engine": "vllm"}), ask())
    with pytest.raises(EngineError, match="make vllm"):
        VllmEngine(tmp_path).run(spec, ask(), Materials(), Control())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    pytest.importorskip("vllm")
    engine = VllmEngine(tmp_path_factory.mktemp("vllm"))
    yield engine
    engine.close()


@pytest.mark.slow
@pytest.mark.vllm
def test_what_vllm_says_verifies_by_a_transformers_prefill(
    engine: VllmEngine,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
    tmp_path: Path,
) -> None:
    ref = resolve("smollm2-135m-instruct", "vllm").ref
    reference = EngineReference(Settings(), tmp_path)
    node = Account.from_seed(b"node")
    content = ask("How many seats does the oracle committee have?")
    for temperature_ppm in (0, 600_000):
        sampling = Sampling(temperature_ppm=temperature_ppm, seed=9, max_tokens=48)
        spec = make_spec(ref, content, sampling=sampling)
        done = engine.run(spec, content, Materials(), Control())
        proof = make_proof(Claim(spec, content, done.output), done, node, tmp_path)
        verdict = verify_proof(Claim(spec, content, done.output), proof, reference, tmp_path)
        assert verdict.outcome is Outcome.VALID, (temperature_ppm, verdict.reason)
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    endless = Content.json_value(
        {"messages": [{"role": "user", "content": "Count."}], "context_tokens": 8000}
    )
    spec = make_spec(ref, endless, sampling=Sampling(max_tokens=4000, temperature_ppm=3_000_000))
    with pytest.raises(StepCancelled):
        engine.run(spec, endless, Materials(), Control(cancelled))

    # Its process killed: the engine says that the node must restart.
    import psutil

    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
            child.kill()
    spec = make_spec(ref, content)
    with pytest.raises(EngineDied):
        engine.run(spec, content, Materials(), Control())

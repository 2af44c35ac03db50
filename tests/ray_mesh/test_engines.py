"""Engines by name, and which proofs each can give."""

from pathlib import Path

import pytest

from daifi_flows.cnft import Sampling
from daifi_flows.errors import EngineError, ProofError
from daifi_flows.proofs import DEFAULT_SCHEME
from daifi_flows.ray_mesh._engines import ENGINES, check_scheme, make_engine
from daifi_flows.ray_mesh.engines._engine import Engine

FIT = {
    "transformers": {"token-difr", "toploc", "zk-slice"},
    "vllm": {"token-difr", "toploc"},
    "retrieval": {"digest"},
    "onnx": {"zk"},
    "onnx-policy": {"digest", "zk"},
    "function": {"digest"},
}
SCHEMES = {"digest", "token-difr", "toploc", "zk", "zk-slice"}


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_is_made_and_says_its_evidence(name: str, tmp_path: Path) -> None:
    engine = make_engine(name, tmp_path)
    assert isinstance(engine, Engine)
    assert engine.name == name
    assert isinstance(engine.evidence, frozenset)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("engine", ENGINES)
def test_only_schemes_with_evidence_are_allowed(engine: str, scheme: str) -> None:
    if scheme in FIT[engine]:
        check_scheme(engine, scheme, Sampling())
        return
    with pytest.raises(ProofError, match=f"'{engine}' cannot be proven by '{scheme}'") as caught:
        check_scheme(engine, scheme, Sampling())
    choices = caught.value.message.rpartition("choose ")[2].split(" or ")
    assert set(choices) & SCHEMES == FIT[engine]


def test_default_schemes_are_allowed() -> None:
    engines = {"retrieve": "retrieval", "act": "onnx-policy", "function": "function"}
    for kind, scheme in DEFAULT_SCHEME.items():
        check_scheme(engines.get(kind, "transformers"), scheme, Sampling())
    check_scheme("vllm", DEFAULT_SCHEME["reason"], Sampling())


@pytest.mark.parametrize("sampling", [Sampling(top_k=40), Sampling(top_p_ppm=900_000)])
def test_samplers_a_scheme_refuses_are_refused_before_a_step(sampling: Sampling) -> None:
    check_scheme("transformers", "toploc", sampling)
    with pytest.raises(ProofError, match=r"top-k and top-p.*choose token-difr or toploc"):
        check_scheme("transformers", "zk-slice", sampling)


def test_a_step_without_a_sampler_has_no_proof_on_tokens() -> None:
    for scheme in ("token-difr", "toploc", "zk-slice"):
        with pytest.raises(ProofError, match="no sampling parameters"):
            check_scheme("transformers", scheme, None)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(EngineError, match="abacus"):
        check_scheme("abacus", "digest")
    with pytest.raises(ProofError, match="magic"):
        check_scheme("function", "magic")
    with pytest.raises(EngineError, match="abacus"):
        make_engine("abacus", Path())

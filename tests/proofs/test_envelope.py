"""What holds for every scheme: the statement, the signature, the registry, hostile bytes."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Proof, Usage
from daifi_flows.errors import EngineError, ProofError
from daifi_flows.proofs import (
    DEFAULT_SCHEME,
    MAX_PAYLOAD_BYTES,
    Outcome,
    get_scheme,
    scheme_names,
)
from daifi_flows.proofs._scheme import Scheme


def test_schemes_are_registered_and_every_kind_has_a_default() -> None:
    built_in = {"digest", "token-difr", "toploc", "zk", "zk-slice"}
    assert built_in <= set(scheme_names())
    assert set(DEFAULT_SCHEME.values()) <= built_in
    for name in built_in:
        scheme = get_scheme(name)
        assert scheme.name == name
        documentation = " ".join((type(scheme).__doc__ or "").split())
        for said in ("Proves:", "Against whom:", "Cost", "Does not prove:"):
            assert said in documentation, f"{name} does not say {said}"


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ProofError, match=r"'rune'.*digest"):
        get_scheme("rune")


def test_a_third_party_scheme_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "third_party_proofs.py").write_text(
        "class Echo:\n    name = 'echo'\n    needs = frozenset()\n"
        "    def refuses(self, sampling): return None\n"
        "    def spans(self, statement): return ()\n"
        "    def prove(self, *_): return b''\n"
        "    def verify(self, *_): raise NotImplementedError\n"
    )
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[daifi_flows.proofs]\necho = third_party_proofs:Echo\n"
        "digest = third_party_proofs:Echo\nbroken = no_such_module:X\n"
        "liar = third_party_proofs:Echo\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    get_scheme.cache_clear()
    echo: Scheme = get_scheme("echo")
    assert echo.name == "echo"
    assert "echo" in scheme_names()
    assert type(get_scheme("digest")).__name__ == "DigestScheme"
    with pytest.raises(ProofError, match="cannot be loaded"):
        get_scheme("broken")
    with pytest.raises(ProofError, match="another name"):
        get_scheme("liar")
    get_scheme.cache_clear()


def test_statement_and_signature_bind_everything(digest_case: Any, kit: Any) -> None:
    case = digest_case({"n": 2})
    proof = case.prove()
    other_task = kit.build_spec(case.input, "digest", nonce=b"\1" * 32)
    other_model = case.spec.model.model_copy(update={"digest": b"\1" * 32})
    other_input = Content.json_value({"args": {"n": 9}}, kit.SALT)
    other_output = Content.json_value({"n": 9}, kit.SALT)
    flipped = bytearray(proof.signature)
    flipped[10] ^= 1
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high_s = (order - int.from_bytes(proof.signature[32:64], "big")).to_bytes(32, "big")
    malleated = proof.signature[:32] + high_s + bytes([55 - proof.signature[64]])
    attacks: dict[str, Proof] = {
        "replayed from another task": kit.resign(proof, task_id=other_task.task_id),
        "another model": kit.resign(proof, model_digest=other_model.digest),
        "another input": kit.resign(proof, input_cid=other_input.cid),
        "another output": kit.resign(proof, output_cid=other_output.cid),
        "another scheme": kit.resign(proof, scheme="zk"),
        "another transcript": kit.resign(proof, transcript=bytes(32)),
        "a payload nobody asked for": kit.resign(proof, payload=b"x"),
        "a payload too large": kit.resign(proof, payload=bytes(MAX_PAYLOAD_BYTES + 1)),
        "somebody else's proof": proof.model_copy(update={"node": kit.OTHER.address}),
        "usage changed after signing": proof.model_copy(
            update={
                "statement": proof.statement.model_copy(update={"usage": Usage(output_tokens=9)})
            }
        ),
        "a flipped signature bit": proof.model_copy(update={"signature": bytes(flipped)}),
        "a malleated signature": proof.model_copy(update={"signature": malleated}),
        "an empty signature": proof.model_copy(update={"signature": bytes(65)}),
    }
    assert case.verify(proof).outcome is Outcome.VALID
    for name, attack in attacks.items():
        verdict = case.verify(attack)
        assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.INVALID, 0), name
    assert case.verify(proof, spec=other_task).outcome is Outcome.INVALID
    assert case.verify(proof, input=other_input).outcome is Outcome.INVALID
    assert case.verify(proof, output=other_output).outcome is Outcome.INVALID


def test_trouble_on_the_verifiers_side_accuses_nobody(digest_case: Any, kit: Any) -> None:
    case = digest_case({"n": 2})
    proof = case.prove()
    for error in (EngineError("no memory"), RuntimeError("boom"), RecursionError()):
        case.reference.error = error
        assert case.verify(proof).outcome is Outcome.CANNOT_TELL
    spec = kit.build_spec(case.input, "rune")
    unknown = replace(case, spec=spec)
    changed = unknown.forge(proof, proof.payload, scheme="rune", task_id=spec.task_id)
    assert unknown.verify(changed).outcome is Outcome.CANNOT_TELL


def test_a_proof_needs_the_specs_input(digest_case: Any) -> None:
    case = replace(digest_case({"n": 2}), input=Content.json_value(1))
    with pytest.raises(ProofError, match="input"):
        case.prove()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_proof_gets_a_verdict(data: Any, digest_case: Any, llm_case: Any, kit: Any) -> None:
    case = data.draw(st.sampled_from([digest_case({"n": 2}), llm_case()]))
    proof = kit.resign(
        case.prove(),
        account=data.draw(st.sampled_from([kit.NODE, kit.OTHER])),
        payload=data.draw(st.binary(max_size=200)),
        transcript=data.draw(st.binary(min_size=32, max_size=32)),
    )
    proof = proof.model_copy(
        update={
            "signature": data.draw(st.just(proof.signature) | st.binary(min_size=65, max_size=65))
        }
    )
    assert case.verify(proof).outcome is Outcome.INVALID


def test_verdicts_and_schemes_cross_processes(digest_case: Any) -> None:
    verdict = digest_case({"n": 2}).verify(digest_case({"n": 2}).prove())
    assert pickle.loads(pickle.dumps(verdict)) == verdict

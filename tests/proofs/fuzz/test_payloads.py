"""Whatever a node sends under its own signature, every scheme answers with a verdict."""

from typing import Any

import pytest
from hostile import cases, catalogue, metered, mutations, settle
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Usage
from daifi_flows.proofs import Outcome, scheme_names

SCHEMES = {
    "digest": 1.0,
    "token-difr": 1.0,
    "toploc": 1.0,
    "zk": 0.25,
    "zk onnx": 0.25,
    "zk-slice": 0.1,
}
"""Each with its share of a run's examples: zk starts a process for some, zk-slice compiles a
circuit."""

schemes = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.mark.parametrize("part", ["payload", "payload alone", "proof"])
@schemes
def test_the_catalogue_is_refused(target: Any, scheme: str, part: str) -> None:
    attacked = target(f"{scheme} {part}")
    for label, data in catalogue(attacked.honest):
        try:
            attacked.attack(data)
        except BaseException as error:
            raise AssertionError(f"{scheme} {part}, {label}: {error!r}") from error


@pytest.mark.parametrize("part", ["payload", "payload alone", "proof"])
@schemes
def test_drawn_mutations_are_refused(target: Any, scheme: str, part: str) -> None:
    attacked = target(f"{scheme} {part}")

    @cases(SCHEMES[scheme])
    @given(mutations(attacked.honest))
    def run(data: bytes) -> None:
        attacked.attack(data)

    run()


@schemes
def test_every_honest_proof_stands(scheme_cases: Any, honest_proof: Any, scheme: str) -> None:
    """The targets attack something that verifies."""
    verdict = scheme_cases[scheme]().verify(honest_proof(scheme))
    settle(verdict, Outcome.VALID, Outcome.CANNOT_TELL)
    assert scheme in ("token-difr", "toploc") or verdict.outcome is Outcome.VALID


@schemes
def test_swapped_statements_and_foreign_proofs_are_invalid(
    scheme_cases: Any, honest_proof: Any, kit: Any, scheme: str
) -> None:
    """Signed again by the cheat where that helps, with and without a transcript made for it."""
    case, proof = scheme_cases[scheme](), honest_proof(scheme)
    other_task = case.spec.model_copy(update={"nonce": b"\1" * 32})
    other_input = Content.json_value({"text": "another"}, kit.SALT)
    other_output = Content.json_value({"n": 9}, kit.SALT)
    payloads = {name: honest_proof(name).payload for name in SCHEMES if name != scheme}
    attacks = {
        "a proof for another task": kit.resign(proof, task_id=other_task.task_id),
        "another model": kit.resign(proof, model_digest=b"\1" * 32),
        "another input": kit.resign(proof, input_cid=other_input.cid),
        "another output": kit.resign(proof, output_cid=other_output.cid),
        "another output, bound": case.forge(proof, proof.payload, output_cid=other_output.cid),
        "a transcript of zeros": kit.resign(proof, transcript=bytes(32)),
        "by a node that did not sign": proof.model_copy(update={"node": kit.OTHER.address}),
        "usage after signing": proof.model_copy(
            update={"statement": proof.statement.model_copy(update={"usage": Usage(flops=1)})}
        ),
        **{f"the payload of {name}": case.forge(proof, data) for name, data in payloads.items()},
        **{f"as {s}": kit.resign(proof, scheme=s) for s in scheme_names() if s != proof.scheme},
    }
    for label, attack in attacks.items():
        data = attack.canonical()
        verdict = metered(f"{scheme} statement", data, lambda a=attack: case.verify(a))
        assert verdict.outcome is Outcome.INVALID, label
    replayed = case.verify(proof, spec=other_task)
    assert replayed.outcome is Outcome.INVALID
    assert case.verify(proof, input=other_input).outcome is Outcome.INVALID
    assert case.verify(proof, output=other_output).outcome is Outcome.INVALID


@schemes
def test_a_lifted_payload_needs_the_thiefs_own_signature(
    scheme_cases: Any, honest_proof: Any, kit: Any, scheme: str
) -> None:
    """Another node may sign the same payload for the same task: it then answers for it itself, and
    the ledger pays the node that the proof names. Under the first node's name it cannot."""
    case, proof = scheme_cases[scheme](), honest_proof(scheme)
    signed = kit.resign(proof, account=kit.OTHER)
    assert case.verify(signed).outcome is case.verify(proof).outcome
    claimed = signed.model_copy(update={"node": kit.NODE.address})
    assert case.verify(claimed).outcome is Outcome.INVALID


@schemes
def test_any_field_of_the_envelope(
    scheme_cases: Any, honest_proof: Any, kit: Any, scheme: str
) -> None:
    case, proof = scheme_cases[scheme](), honest_proof(scheme)

    @cases(SCHEMES[scheme])
    @given(data=st.data())
    def run(data: Any) -> None:
        attack = kit.resign(
            proof,
            account=data.draw(st.sampled_from([kit.NODE, kit.OTHER])),
            payload=data.draw(st.binary(max_size=200)),
            transcript=data.draw(st.binary(min_size=32, max_size=32)),
        )
        signature = data.draw(st.just(attack.signature) | st.binary(min_size=65, max_size=65))
        attack = attack.model_copy(update={"signature": signature})
        bound = attack
        settle(metered(f"{scheme} envelope", bound.canonical(), lambda: case.verify(bound)))

    run()

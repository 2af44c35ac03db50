"""``token-difr`` on a small real Llama: honest engines pass, every cheat of the table does not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Usage
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs import Outcome, Prefill

GREEDY = {"temperature_ppm": 0}
SAMPLED = {"temperature_ppm": 700_000}


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_honest_node_is_valid(llm_case: Any, sampling: Any) -> None:
    case = llm_case(**sampling)
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.VALID, verdict.reason
    assert verdict.confidence_ppm > 990_000
    assert verdict.reexecuted == case.execution.output


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_rounding_of_another_engine_is_valid(llm_case: Any, honest: Any, sampling: Any) -> None:
    import copy

    import torch

    half = type(honest)(copy.deepcopy(honest.model).to(torch.bfloat16), honest.vocabulary)
    case = llm_case(half, **sampling)
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.VALID, verdict.reason


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_another_model_is_invalid(llm_case: Any, stranger: Any, sampling: Any) -> None:
    case = llm_case(stranger, **sampling)
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reexecuted != case.execution.output


def test_a_verdict_tells_how_likely_the_tokens_are_where_they_differ(
    llm_case: Any, stranger: Any, honest: Any
) -> None:
    import torch

    assert llm_case().verify(llm_case().prove()).scores is None  # the same text: nothing to tell
    case = llm_case(stranger)
    verdict = case.verify(case.prove())
    prompt, tokens = (
        list(case.execution.evidence[f"{name}_tokens"]) for name in ("prompt", "output")
    )
    logits = torch.tensor(honest.prefill(case.spec, prompt, tokens).logits)
    places = range(len(tokens))
    expected = logits.log_softmax(-1)
    assert verdict.scores.claimed == pytest.approx(expected[places, tokens].tolist(), abs=1e-4)
    assert verdict.scores.own == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("change", [{"seed": 6}, {"temperature_ppm": 2_000_000}])
def test_another_seed_or_temperature_is_invalid(llm_case: Any, change: Any) -> None:
    case = llm_case(**SAMPLED)
    cheat = llm_case(**(SAMPLED | change))
    forged = replace(cheat, spec=case.spec)
    assert case.verify(forged.prove(), output=forged.execution.output).outcome is Outcome.INVALID


def with_tokens(case: Any, prompt: list[int], output: list[int], reference: Any) -> Any:
    """The case as a node would present it that claims these tokens, all consistent."""
    execution = replace(
        case.execution,
        output=reference.render_output(case.spec, case.input, output, bytes(32)),
        usage=Usage(prompt_tokens=len(prompt), output_tokens=len(output)),
        evidence={"prompt_tokens": prompt, "output_tokens": output},
    )
    return replace(case, execution=execution)


def test_edited_cut_and_stretched_texts_are_invalid(llm_case: Any, honest: Any) -> None:
    case = llm_case(max_tokens=24)
    prompt = list(case.execution.evidence["prompt_tokens"])
    tokens = list(case.execution.evidence["output_tokens"])
    row = honest.prefill(case.spec, prompt, tokens).logits[5]
    unlikely = int(np.argmin(row))
    edits: dict[str, tuple[list[int], list[int]]] = {
        "one token edited": (prompt, [*tokens[:5], unlikely, *tokens[6:]]),
        "cut short": (prompt, tokens[:-1]),
        "end in the middle": (prompt, [*tokens[:5], 0, *tokens[6:]]),
        "ended early": (prompt, [*tokens[:5], 0]),
        "another prompt": ([*prompt[:-1], prompt[-1] % 199 + 1], tokens),
        "a shorter prompt": (prompt[1:], tokens),
    }
    for name, (given_prompt, given_output) in edits.items():
        cheat = with_tokens(case, given_prompt, given_output, honest)
        verdict = cheat.verify(cheat.prove())
        assert verdict.outcome is Outcome.INVALID, f"{name}: {verdict.reason}"
        assert verdict.confidence_ppm <= 10_000


def test_a_text_that_the_tokens_do_not_say_is_invalid(llm_case: Any) -> None:
    case = llm_case()
    lie = replace(case.execution, output=Content.json_value({"text": "yes"}, bytes(32)))
    case = replace(case, execution=lie)
    assert "not what these tokens say" in case.verify(case.prove()).reason


@pytest.mark.parametrize(
    "tokens",
    [
        {"output_tokens": []},
        {"prompt_tokens": []},
        {"output_tokens": [1] * 25},
        {"output_tokens": [1 << 20]},
        {"output_tokens": [-1]},
        {"output_tokens": ["1"]},
        {"output_tokens": [b"1"]},
        {"output_tokens": {"0": 1}},
        {"output_tokens": [[1]]},
        {"output_tokens": [199] * 23 + [200]},
        {"prompt_tokens": [1] * 131_073},
        {"prompt_tokens": 7},
        {"extra": 1},
    ],
    ids=str,
)
def test_malformed_tokens_are_invalid(llm_case: Any, tokens: Any) -> None:
    case = llm_case()
    proof = case.prove()
    payload = canonical(decode_canonical(proof.payload) | tokens)
    assert case.verify(case.forge(proof, payload)).outcome is Outcome.INVALID


@pytest.mark.parametrize(
    "mangle",
    [
        lambda _: b"",
        lambda payload: payload[:-1],
        lambda payload: payload + b"\0",
        lambda payload: bytes(len(payload)),
        lambda payload: b"\xff" * len(payload),
        lambda _: b"\x9b" + b"\xff" * 8,  # a list of 2^64 − 1 items
        lambda _: b"\x5b\x00\x00\x00\x02\x54\x0b\xe4\x00",  # 10 GB of bytes
        lambda _: b"\x81" * 5000,
        lambda _: canonical([1, 2]),
    ],
)
def test_mangled_payloads_are_invalid(llm_case: Any, mangle: Any) -> None:
    case = llm_case()
    proof = case.prove()
    assert case.verify(case.forge(proof, mangle(proof.payload))).outcome is Outcome.INVALID


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_byte_is_invalid(data: Any, llm_case: Any) -> None:
    """Signed again by the cheat, so that only the scheme's own checks stand in its way. Flipping a
    token into a near tie is the one change that may pass; this seed has none."""
    case = llm_case()
    proof = case.prove()
    payload = bytearray(proof.payload)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    verdict = case.verify(case.forge(proof, bytes(payload)))
    assert verdict.outcome is Outcome.INVALID


def test_billing_other_token_counts_is_invalid(llm_case: Any, kit: Any) -> None:
    case = llm_case()
    usage = Usage(prompt_tokens=9999, output_tokens=24)
    assert case.verify(kit.resign(case.prove(), usage=usage)).outcome is Outcome.INVALID


def test_what_cannot_be_prefilled_cannot_be_told(
    llm_case: Any, honest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = llm_case()
    proof = case.prove()
    for missing in ("reference", "input", "output"):
        assert case.verify(proof, **{missing: None}).outcome is Outcome.CANNOT_TELL
    logits = honest.prefill(
        case.spec,
        case.execution.evidence["prompt_tokens"],
        case.execution.evidence["output_tokens"],
    ).logits
    narrow = logits[:, : max(case.execution.evidence["output_tokens"])]
    infinite = np.full_like(logits, np.inf)
    for bad in (np.full_like(logits, np.nan), logits[:-1], infinite, narrow, narrow[:, :0]):
        monkeypatch.setattr(honest, "prefill", lambda *_, bad=bad: Prefill(bad))
        assert case.verify(proof).outcome is Outcome.CANNOT_TELL

    def refuse(*_: Any) -> Any:
        raise ModelError("no weights")

    monkeypatch.setattr(honest, "prefill", refuse)
    assert case.verify(proof).outcome is Outcome.CANNOT_TELL

    def unreadable(*_: Any) -> Any:
        raise EncodingError("no question in the input")

    monkeypatch.setattr(honest, "prompt_tokens", unreadable)
    assert case.verify(proof).outcome is Outcome.CANNOT_TELL


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"prompt_tokens": [1], "output_tokens": None},
        {"prompt_tokens": [1], "output_tokens": []},
        {"prompt_tokens": [1], "output_tokens": [1 << 20]},
        {"prompt_tokens": [1], "output_tokens": [5]},
    ],
)
def test_execution_without_usable_evidence_cannot_be_proven(llm_case: Any, evidence: Any) -> None:
    case = llm_case()
    with pytest.raises(ProofError):
        replace(case, execution=replace(case.execution, evidence=evidence)).prove()


def test_a_spec_without_sampling_is_refused(llm_case: Any, kit: Any) -> None:
    case = llm_case()
    bare = replace(case, spec=kit.build_spec(case.input, "token-difr"))
    with pytest.raises(ProofError, match="sampling"):
        bare.prove()
    honest_proof = case.prove()
    proof = bare.forge(
        honest_proof,
        honest_proof.payload,
        **{"task_id": bare.spec.task_id, "model_digest": bare.spec.model.digest},
    )
    verdict = bare.verify(proof)  # the buyer's mistake: nobody to accuse
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "sampling" in verdict.reason

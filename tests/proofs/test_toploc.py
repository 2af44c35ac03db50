"""``toploc`` on a small real Llama: rounding passes, and every cheat of the table does not."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Execution, Materials, Sampling, Usage
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import ProofError
from daifi_flows.proofs import Outcome, Prefill
from daifi_flows.proofs._fingerprint import CHUNK_BYTES, compare, fingerprint
from daifi_flows.proofs.activations import fit_bounds

Make = Callable[..., Any]
TOKENS = 80
"""Two whole chunks and half a one."""


def like(honest: Any, model: Any) -> Any:
    return type(honest)(model, honest.vocabulary)


def altered(honest: Any, change: Callable[[Any], Any]) -> Any:
    """The honest node with other linear layers, output layer left alone."""
    import torch

    model = copy.deepcopy(honest.model)
    with torch.no_grad():
        for layer in model.model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(change(layer.weight))
    return like(honest, model)


def rounded(levels: int) -> Callable[[Any], Any]:
    def change(weight: Any) -> Any:
        scale = weight.abs().amax(1, keepdim=True) / levels
        return (weight / scale).round() * scale

    return change


@pytest.fixture(scope="module")
def half(honest: Any) -> Any:
    import torch

    return like(honest, copy.deepcopy(honest.model).to(torch.bfloat16))


@pytest.fixture(scope="module")
def make(kit: Any, honest: Any, half: Any, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Cases whose verifier has measured how bf16 and fp32 differ on this model."""
    workdir = tmp_path_factory.mktemp("toploc")
    verifier = like(honest, honest.model)

    @cache
    def case(node: Any = half, question: str = "what is a quorum?", **sampling: Any) -> Any:
        input = Content.json_value(question, kit.SALT)
        spec = kit.build_spec(
            input,
            "toploc",
            kind="reason",
            sampling=Sampling(**({"max_tokens": TOKENS, "seed": 5} | sampling)),
        )
        prompt = honest.prompt_tokens(spec, input)
        tokens = node.generate(spec, prompt)
        execution = Execution(
            honest.render_output(spec, input, tokens, kit.SALT),
            Usage(prompt_tokens=len(prompt), output_tokens=len(tokens)),
            {
                "prompt_tokens": prompt,
                "output_tokens": tokens,
                "activations": node.prefill(spec, prompt, tokens).hidden,
            },
        )
        return kit.Case(spec, input, execution, Materials(), verifier, workdir)

    rng = np.random.default_rng(0)  # any tokens show how activations round
    answers: list[Any] = []
    for _ in range(12):
        spec, tokens = None, rng.integers(1, honest.vocabulary, 40 + 96).tolist()
        seen = [node.prefill(spec, tokens[:40], tokens[40:]).hidden for node in (half, honest)]
        answers.append(compare(fingerprint(seen[0]), seen[1]))
    verifier.measured = honest.measured.model_copy(update={"activations": fit_bounds(answers)})
    return case


def with_evidence(case: Any, **changes: Any) -> Any:
    evidence = {**case.execution.evidence, **changes}
    return replace(case, execution=replace(case.execution, evidence=evidence))


def with_prints(case: Any, change: Callable[[bytes], Any]) -> Any:
    """The proof with other fingerprints, signed again by the node."""
    proof = case.prove()
    fields = decode_canonical(proof.payload, max_bytes=1 << 20)
    payload = canonical({**fields, "fingerprints": change(fields["fingerprints"])})
    return case.forge(proof, payload)


# Honest nodes


@pytest.mark.parametrize("temperature_ppm", [0, 700_000])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_honest_node_is_valid(
    make: Make, honest: Any, half: Any, precision: str, temperature_ppm: int
) -> None:
    node = half if precision == "bf16" else honest
    case = make(node, temperature_ppm=temperature_ppm)
    proof = case.prove()
    verdict = case.verify(proof)
    assert verdict.outcome is Outcome.VALID, verdict.reason
    assert verdict.confidence_ppm >= 995_000
    assert "exponents match" in verdict.reason
    assert "margin" in verdict.reason
    if precision == "fp32":
        assert verdict.reexecuted == case.execution.output


def test_a_payload_has_258_bytes_for_32_tokens(make: Make, kit: Any) -> None:
    case = make()
    plain = canonical({k: case.execution.evidence[k] for k in ("prompt_tokens", "output_tokens")})
    extra = len(case.prove().payload) - len(plain)
    assert 3 * CHUNK_BYTES <= extra <= 3 * CHUNK_BYTES + 20


@pytest.mark.parametrize("count", [1, 5, 31, 32, 33])
def test_short_answers_are_valid(make: Make, count: int) -> None:
    case = make(max_tokens=count, temperature_ppm=700_000)
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.VALID, verdict.reason


# Cheats


def test_quantised_weights_are_invalid(make: Make, honest: Any) -> None:
    cheat = make(altered(honest, rounded(7)))
    verdict = cheat.verify(cheat.prove())
    assert verdict.outcome is Outcome.INVALID, verdict.reason


def test_another_model_is_invalid(make: Make, stranger: Any) -> None:
    cheat = make(stranger)
    assert cheat.verify(cheat.prove()).outcome is Outcome.INVALID


def test_right_tokens_with_activations_from_elsewhere_are_invalid(
    make: Make, honest: Any, stranger: Any
) -> None:
    """Only the fingerprints can tell here."""
    case = make()
    evidence = case.execution.evidence
    right = evidence["activations"]
    claimed = (evidence["prompt_tokens"], evidence["output_tokens"])
    other = make(question="what does a seat cost?").execution.evidence["activations"]
    edits = {
        "another model": stranger.prefill(case.spec, *claimed).hidden,
        "int4 weights": altered(honest, rounded(7)).prefill(case.spec, *claimed).hidden,
        "another prompt": other[: len(right)],
        "a prompt cut short": honest.prefill(case.spec, claimed[0][8:], claimed[1]).hidden,
        "one row late": np.concatenate((right[1:], right[-1:])),
        "a chunk of another answer": np.concatenate((right[:32], other[32:64], right[64:])),
        "scaled": right * np.float32(1.5),
        "all zero": np.zeros_like(right),
        "noise": np.random.default_rng(0).normal(0, right.std(), right.shape),
    }
    for name, activations in edits.items():
        cheat = with_evidence(case, activations=activations)
        verdict = cheat.verify(cheat.prove())
        assert verdict.outcome is Outcome.INVALID, f"{name}: {verdict.reason}"
        assert verdict.confidence_ppm <= 10_000


def test_right_activations_do_not_excuse_other_tokens(make: Make, honest: Any) -> None:
    """A node that prefills its own choice of tokens with the right model."""
    case = make()
    prompt, tokens = (case.execution.evidence[k] for k in ("prompt_tokens", "output_tokens"))
    row = honest.prefill(case.spec, prompt, tokens).logits[5]
    edited = [*tokens[:5], int(np.argmin(row)), *tokens[6:]]
    cut = tokens[:-1]
    for chosen in (edited, cut):
        execution = replace(
            case.execution,
            output=honest.render_output(case.spec, case.input, chosen, bytes(32)),
            usage=Usage(prompt_tokens=len(prompt), output_tokens=len(chosen)),
            evidence={
                "prompt_tokens": prompt,
                "output_tokens": chosen,
                "activations": honest.prefill(case.spec, prompt, chosen).hidden,
            },
        )
        cheat = replace(case, execution=execution)
        assert cheat.verify(cheat.prove()).outcome is Outcome.INVALID


def swap(prints: bytes) -> bytes:
    return prints[CHUNK_BYTES : 2 * CHUNK_BYTES] + prints[:CHUNK_BYTES] + prints[2 * CHUNK_BYTES :]


EDITS: dict[str, Callable[[bytes], Any]] = {
    "none": lambda _: b"",
    "no bytes": lambda _: 7,
    "text": lambda prints: prints.hex(),
    "a chunk missing": lambda prints: prints[:-CHUNK_BYTES],
    "a chunk too many": lambda prints: prints + prints[-CHUNK_BYTES:],
    "a byte missing": lambda prints: prints[:-1],
    "all zeros": lambda prints: bytes(len(prints)),
    "all ones": lambda prints: b"\xff" * len(prints),
    "modulus zero": lambda prints: b"\0\0" + prints[2:],
    "chunks swapped": swap,
    "one chunk thrice": lambda prints: prints[:CHUNK_BYTES] * 3,
    "a coefficient changed": lambda prints: prints[:4] + bytes([prints[4] ^ 1]) + prints[5:],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_fingerprints_are_invalid(make: Make, edit: Callable[[bytes], Any]) -> None:
    case = make()
    verdict = case.verify(with_prints(case, edit))
    assert verdict.outcome is Outcome.INVALID, verdict.reason


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_payload_gives_a_verdict(data: Any, make: Make) -> None:
    """Valid only where the change stays within rounding: a constant term one off moves every
    mantissa by one."""
    case = make()
    proof = case.prove()
    payload = bytearray(proof.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for forged in (bytes(payload), bytes(payload[:cut]), bytes(payload) + b"\0"):
        verdict = case.verify(case.forge(proof, forged))
        if verdict.outcome is not Outcome.INVALID:
            fields, honest = (
                decode_canonical(p, max_bytes=1 << 20) for p in (forged, proof.payload)
            )
            assert fields["output_tokens"] == honest["output_tokens"]
            assert fields["prompt_tokens"] == honest["prompt_tokens"]


# What a verifier cannot tell


def test_without_a_calibration_nobody_is_accused(make: Make, honest: Any, stranger: Any) -> None:
    case = replace(make(), reference=like(honest, honest.model))
    case.reference.measured = None
    assert case.verify(case.prove()).outcome is Outcome.VALID
    evidence = case.execution.evidence
    far = stranger.prefill(case.spec, evidence["prompt_tokens"], evidence["output_tokens"]).hidden
    cheat = with_evidence(case, activations=far)
    verdict = cheat.verify(cheat.prove())
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "calibration" in verdict.reason


def test_a_calibration_without_activations_accuses_nobody_of_theirs(
    make: Make, honest: Any
) -> None:
    case = replace(make(), reference=like(honest, honest.model))
    assert case.reference.measured.activations is None
    assert case.verify(case.prove()).outcome is Outcome.VALID
    assert case.verify(with_prints(case, swap)).outcome is Outcome.CANNOT_TELL


def test_a_verifier_without_usable_activations_cannot_tell(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make()
    proof = case.prove()
    evidence = case.execution.evidence
    seen = case.reference.prefill(case.spec, evidence["prompt_tokens"], evidence["output_tokens"])
    strange = [None, seen.hidden[:-1], seen.hidden[0], np.full_like(seen.hidden, np.nan)]
    for hidden in strange:
        prefill = Prefill(seen.logits, hidden)
        monkeypatch.setattr(case.reference, "prefill", lambda *_, given=prefill: given)
        assert case.verify(proof).outcome is Outcome.CANNOT_TELL
    for missing in ("reference", "input", "output"):
        assert case.verify(proof, **{missing: None}).outcome is Outcome.CANNOT_TELL


# What a node cannot prove


@pytest.mark.parametrize(
    "given",
    [
        None,
        "text",
        np.zeros((TOKENS, 0), np.float32),
        np.zeros((TOKENS - 1, 64), np.float32),
        np.zeros(TOKENS, np.float32),
        np.full((TOKENS, 64), np.nan, np.float32),
        np.full((TOKENS, 64), np.inf, np.float32),
        np.full((TOKENS, 64), 1e300),
        [[1.0], [2.0, 3.0]],
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_activations_that_cannot_be_proven_are_refused(make: Make, given: Any) -> None:
    with pytest.raises(ProofError, match="toploc"):
        with_evidence(make(), activations=given).prove()

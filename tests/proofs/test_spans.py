"""Outputs checked in parts: how they are split, who sees what, and that all parts are the whole."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Execution, Materials, Proof, Sampling, Usage
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import ModelError
from daifi_flows.proofs import (
    MAX_SPANS,
    WHOLE,
    Claim,
    Outcome,
    Span,
    get_scheme,
    spans_of,
    verify_proof,
    verify_spans,
)
from daifi_flows.proofs._fingerprint import TOP, ChunkErrors, compare, fingerprint
from daifi_flows.proofs._spans import token_spans
from daifi_flows.proofs._tokens import MAX_OUTPUT_TOKENS
from daifi_flows.proofs.activations import ACCEPT as PLAUSIBLE
from daifi_flows.proofs.activations import REJECT, fit_bounds, judge_activations
from daifi_flows.proofs.calibration import ActivationBounds
from daifi_flows.proofs.evidence import ACCEPT, ALPHA, decide
from daifi_flows.proofs.sampling import sample

TOKENS = 300
SCHEMES = ("token-difr", "toploc")


def verify(case: Any, proof: Proof, span: Span | None = None, **changes: Any) -> Any:
    output = changes.pop("output", case.execution.output)
    reference = changes.pop("reference", case.reference)
    claim = Claim(case.spec, case.input, output, case.materials)
    return verify_proof(claim, proof, reference, case.workdir, span)


def outcomes(case: Any, proof: Proof) -> list[Outcome]:
    return [verify(case, proof, span).outcome for span in spans_of(proof)]


QUESTION = Content.json_value("what is a quorum?", bytes(32))
END = 199
"""A token that the long answer below does not hold."""


class Verifier:
    """The small Llama, with another end token."""

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    def end_tokens(self, *_: Any) -> frozenset[int]:
        return frozenset({END})

    def calibration(self, *_: Any) -> Any:
        return self.measured

    def prefill(self, *given: Any) -> Any:
        return self._honest.prefill(*given)


@pytest.fixture(scope="module")
def verifier(honest: Any) -> Any:
    """The honest model with bounds for its activations, measured against bf16."""
    import copy

    import torch

    half = type(honest)(copy.deepcopy(honest.model).to(torch.bfloat16), honest.vocabulary)
    random = np.random.default_rng(0)
    answers: list[Any] = []
    for _ in range(10):
        tokens = random.integers(1, honest.vocabulary, 40 + 64).tolist()
        seen = [node.prefill(None, tokens[:40], tokens[40:]).hidden for node in (half, honest)]
        answers.append(compare(fingerprint(seen[0]), seen[1]))
    found = Verifier(honest)
    found.measured = honest.measured.model_copy(update={"activations": fit_bounds(answers)})
    return found


def build(kit: Any, verifier: Any, scheme: str, output: list[int], workdir: Any, **sampling: Any):
    """A node that claims these tokens and shows the right model's activations of them."""
    input = QUESTION
    limits = Sampling(**({"max_tokens": TOKENS, "seed": 5} | sampling))
    spec = kit.build_spec(input, scheme, kind="reason", sampling=limits)
    prompt = verifier.prompt_tokens(spec, input)
    execution = Execution(
        verifier.render_output(spec, input, output, kit.SALT),
        Usage(prompt_tokens=len(prompt), output_tokens=len(output)),
        {
            "prompt_tokens": prompt,
            "output_tokens": output,
            "activations": verifier.prefill(spec, prompt, output).hidden,
        },
    )
    return kit.Case(spec, input, execution, Materials(), verifier, workdir)


@pytest.fixture(scope="module")
def long_tokens(kit: Any, verifier: Any) -> list[int]:
    """An honest answer of 300 tokens at temperature 0.7."""
    import torch

    sampling = Sampling(max_tokens=TOKENS, seed=5, temperature_ppm=700_000)
    ids, cache = torch.tensor([verifier.prompt_tokens(None, QUESTION)]), None
    tokens: list[int] = []
    with torch.no_grad():
        while len(tokens) < TOKENS:
            step = verifier.model(input_ids=ids, past_key_values=cache, use_cache=True)
            tokens.append(sample(step.logits[0, -1].numpy(), sampling, len(tokens)))
            ids, cache = torch.tensor([tokens[-1:]]), step.past_key_values
    return tokens


@pytest.fixture(scope="module", params=SCHEMES)
def long_case(
    request: pytest.FixtureRequest,
    kit: Any,
    verifier: Any,
    long_tokens: list[int],
    tmp_path_factory: Any,
) -> Any:
    workdir = tmp_path_factory.mktemp("spans")
    return build(kit, verifier, request.param, long_tokens, workdir, temperature_ppm=700_000)


# How outputs are split


@given(st.integers(1, MAX_OUTPUT_TOKENS))
def test_spans_cover_every_token_once_in_nearly_equal_parts(tokens: int) -> None:
    spans = token_spans(tokens)
    assert len(spans) == -(-tokens // 256) <= MAX_SPANS
    assert (spans[0].start, spans[-1].stop) == (0, tokens)
    for index, span in enumerate(spans):
        assert (span.index, span.count) == (index, len(spans))
        assert span.start % 32 == 0
        assert 0 < span.stop - span.start <= 256
        assert index == 0 or span.start == spans[index - 1].stop
    if len(spans) > 1:
        assert min(span.stop - span.start for span in spans) >= 97


@given(st.integers(0, 2**63) | st.sampled_from([MAX_OUTPUT_TOKENS + 1, 2**63]))
def test_counts_that_no_answer_has_give_one_part(tokens: int) -> None:
    if not 1 <= tokens <= MAX_OUTPUT_TOKENS:
        assert token_spans(tokens) == (WHOLE,)


def test_schemes_that_know_no_parts_have_one(digest_case: Any, zk_case: Any, zk_proof: Any) -> None:
    case = digest_case({"n": 2})
    proof = case.prove()
    assert spans_of(proof) == spans_of(zk_proof) == (WHOLE,)
    verdict = verify(case, proof, WHOLE)
    assert verdict == verify(case, proof)
    assert verdict.claimed == case.execution.output
    assert verify(zk_case, zk_proof, WHOLE).outcome is Outcome.VALID


def test_an_unknown_scheme_has_one_part(digest_case: Any, kit: Any) -> None:
    proof = kit.resign(digest_case({"n": 2}).prove(), scheme="rune")
    assert spans_of(proof) == (WHOLE,)


def test_a_scheme_that_chokes_or_floods_has_one_part(
    digest_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = digest_case({"n": 2}).prove()
    for answer in (lambda *_: 1 / 0, lambda *_: (), lambda *_: (WHOLE,) * (MAX_SPANS + 1)):
        monkeypatch.setattr(type(get_scheme("digest")), "spans", answer)
        assert spans_of(proof) == (WHOLE,)


# Honest answers


@pytest.mark.parametrize("temperature_ppm", [0, 700_000])
@pytest.mark.parametrize("count", [1, 32, 256])
def test_an_answer_of_one_part_is_judged_as_a_whole(
    kit: Any, verifier: Any, long_tokens: list[int], tmp_path: Any, count: int, temperature_ppm: int
) -> None:
    tokens = long_tokens[:count]
    changes = {"max_tokens": count, "temperature_ppm": temperature_ppm}
    for scheme in SCHEMES:
        case = build(kit, verifier, scheme, tokens, tmp_path, **changes)
        proof = case.prove()
        (span,) = spans_of(proof)
        verdict = verify(case, proof, span)
        assert verdict == verify(case, proof)
        assert verdict.claimed == case.execution.output


def test_every_part_of_an_honest_answer_is_valid(long_case: Any) -> None:
    proof = long_case.prove()
    spans = spans_of(proof)
    assert [(span.start, span.stop) for span in spans] == [(0, 160), (160, 300)]
    tokens = long_case.execution.evidence["output_tokens"]
    for span in spans:
        verdict = verify(long_case, proof, span)
        assert verdict.outcome is Outcome.VALID, verdict.reason
        assert verdict.confidence_ppm >= 995_000
        assert f"over {span.stop - span.start} tokens" in verdict.reason
        part = " ".join(map(str, tokens[span.start : span.stop]))
        assert verdict.claimed.value() == {"text": part}
        assert verdict.reexecuted == verdict.claimed
    assert verify(long_case, proof).outcome is Outcome.VALID


def test_a_part_is_prefilled_to_its_end_and_no_further(
    long_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    real = type(long_case.reference).prefill

    def watch(self: Any, spec: Any, prompt: Any, output: Any) -> Any:
        seen.append((len(prompt), len(output)))
        return real(self, spec, prompt, output)

    monkeypatch.setattr(type(long_case.reference), "prefill", watch)
    proof = long_case.prove()
    prompt = proof.statement.usage.prompt_tokens
    for span in spans_of(proof):
        verify(long_case, proof, span)
    assert seen == [(prompt, 160), (prompt + 160, 140)]


# Several parts at once


@pytest.fixture(scope="module")
def longer(kit: Any, verifier: Any, long_tokens: list[int], tmp_path_factory: Any) -> Any:
    """1,500 tokens in six parts, most of them nobody's choice: verdicts of every kind."""
    random = np.random.default_rng(3)
    rest = random.integers(1, END, 1200).tolist()
    workdir = tmp_path_factory.mktemp("longer")
    sampling = {"temperature_ppm": 700_000, "max_tokens": 1500}
    return build(kit, verifier, "toploc", [*long_tokens, *rest], workdir, **sampling)


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        ([0], [(0, 0)]),
        ([5], [(5, 5)]),
        ([0, 1, 2, 3], [(0, 3)]),
        ([3, 1, 2], [(1, 3)]),
        ([0, 2, 4], [(0, 0), (2, 2), (4, 4)]),
        ([0, 1, 2, 3, 4, 5], [(0, 3), (4, 5)]),
        ([1, 1, 5, 4], [(1, 1), (4, 5)]),
        ([], []),
    ],
    ids=str,
)
def test_neighbours_share_a_pass_and_are_judged_as_alone(
    longer: Any, monkeypatch: pytest.MonkeyPatch, wanted: list[int], passes: list[tuple[int, int]]
) -> None:
    proof = longer.prove()
    spans = [spans_of(proof)[index] for index in wanted]
    alone = [verify(longer, proof, span) for span in spans]
    seen: list[int] = []
    real = Verifier.prefill

    def watch(self: Any, spec: Any, prompt: Any, output: Any) -> Any:
        seen.append(len(output))
        return real(self, spec, prompt, output)

    monkeypatch.setattr(Verifier, "prefill", watch)
    claim = Claim(longer.spec, longer.input, longer.execution.output, longer.materials)
    together = verify_spans(claim, proof, longer.reference, longer.workdir, spans)
    assert [verdict.outcome for verdict in together] == [verdict.outcome for verdict in alone]
    assert [verdict.claimed for verdict in together] == [verdict.claimed for verdict in alone]
    for one, other in zip(together, alone, strict=True):
        assert abs(one.confidence_ppm - other.confidence_ppm) <= 1_000
    parts = spans_of(proof)
    assert sorted(seen) == sorted(parts[last].stop - parts[one].start for one, last in passes)


def test_where_all_are_too_many_for_one_pass_each_has_its_own(
    longer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Verifier.prefill

    def refuse(self: Any, spec: Any, prompt: Any, output: Any) -> Any:
        if len(output) > 256:
            raise ModelError("too many tokens")
        return real(self, spec, prompt, output)

    proof = longer.prove()
    spans = spans_of(proof)
    alone = [verify(longer, proof, span).outcome for span in spans]
    monkeypatch.setattr(Verifier, "prefill", refuse)
    claim = Claim(longer.spec, longer.input, longer.execution.output, longer.materials)
    together = verify_spans(claim, proof, longer.reference, longer.workdir, spans)
    assert [verdict.outcome for verdict in together] == alone
    without = verify_spans(claim, proof, None, longer.workdir, spans)
    assert {verdict.outcome for verdict in without} == {Outcome.CANNOT_TELL}


# Cheats


def edited(case: Any, kit: Any, change: Any) -> Any:
    """The case with other output tokens and, otherwise, everything that an honest node does."""
    tokens = change(list(case.execution.evidence["output_tokens"]))
    return build(
        kit,
        case.reference,
        case.spec.scheme,
        tokens,
        case.workdir,
        temperature_ppm=case.spec.sampling.temperature_ppm,
    )


def unlikely(case: Any, place: int) -> Any:
    """The tokens with one edited to the least likely."""
    evidence = case.execution.evidence
    rows = case.reference.prefill(
        case.spec, evidence["prompt_tokens"], evidence["output_tokens"]
    ).logits

    def change(tokens: list[int]) -> list[int]:
        row = rows[place].copy()
        row[END] = np.inf  # it would break another rule
        return [*tokens[:place], int(np.argmin(row)), *tokens[place + 1 :]]

    return change


@pytest.mark.parametrize(("place", "part"), [(5, 0), (159, 0), (160, 1), (299, 1)])
def test_an_edit_is_seen_in_its_part(long_case: Any, kit: Any, place: int, part: int) -> None:
    """After the edit the node goes on from its own text, but as the honest answer went on: later
    parts may see that, earlier ones see nothing."""
    cheat = edited(long_case, kit, unlikely(long_case, place))
    proof = cheat.prove()
    found = outcomes(cheat, proof)
    assert found[part] is Outcome.INVALID
    assert found[:part] == [Outcome.VALID] * part
    reason = verify(cheat, proof, spans_of(proof)[part]).reason
    assert f"at token {place}" in reason
    assert verify(cheat, proof).outcome is Outcome.INVALID


def test_fingerprints_from_elsewhere_are_seen_in_their_part(
    kit: Any, verifier: Any, stranger: Any, long_tokens: list[int], tmp_path: Any
) -> None:
    case = build(kit, verifier, "toploc", long_tokens, tmp_path, temperature_ppm=700_000)
    evidence = case.execution.evidence
    right = evidence["activations"]
    other = stranger.prefill(case.spec, evidence["prompt_tokens"], long_tokens).hidden
    for first, expected in ((0, 0), (160, 1)):
        mixed = right.copy()
        mixed[first : first + 32] = other[first : first + 32]
        execution = replace(case.execution, evidence={**evidence, "activations": mixed})
        cheat = replace(case, execution=execution)
        proof = cheat.prove()
        found = outcomes(cheat, proof)
        assert found[expected] is Outcome.INVALID
        assert found[1 - expected] is Outcome.VALID
        reason = verify(cheat, proof, spans_of(proof)[expected]).reason
        assert f"tokens {first} to {first + 31}" in reason


def test_what_is_wrong_with_the_whole_is_seen_in_every_part(long_case: Any, kit: Any) -> None:
    """An end token in the middle, an answer cut short, another text."""
    ended = edited(long_case, kit, lambda tokens: [*tokens[:200], END, *tokens[201:]])
    short = edited(long_case, kit, lambda tokens: tokens[:280])
    lie = replace(long_case.execution, output=Content.json_value({"text": "yes"}, kit.SALT))
    for cheat in (ended, short, replace(long_case, execution=lie)):
        assert set(outcomes(cheat, cheat.prove())) == {Outcome.INVALID}


def test_billing_other_counts_gives_other_parts_and_all_are_invalid(
    long_case: Any, kit: Any
) -> None:
    proof = long_case.prove()
    for count, parts in ((256, 1), (600, 3), (2**40, 1), (0, 1)):
        usage = proof.statement.usage.model_copy(update={"output_tokens": count})
        forged = kit.resign(proof, usage=usage)
        assert len(spans_of(forged)) == parts
        assert set(outcomes(long_case, forged)) == {Outcome.INVALID}


@pytest.mark.parametrize(
    "span",
    [
        Span(0, 1, 0, TOKENS),
        Span(0, 2, 0, 161),
        Span(1, 2, 0, 160),
        Span(0, 2, 160, 300),
        Span(-1, 2, 160, 300),
        Span(2, 3, 300, 400),
        Span(0, 2, 0, 2**70),
        Span(0, 2, 10, 5),
        WHOLE,
    ],
    ids=str,
)
def test_a_part_that_the_output_does_not_have_accuses_nobody(long_case: Any, span: Span) -> None:
    verdict = verify(long_case, long_case.prove(), span)
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "part" in verdict.reason


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_some_part_is_invalid_whatever_byte_is_flipped(data: Any, long_case: Any) -> None:
    """Checking all parts is no weaker than checking the whole. Within rounding (a near tie, the
    last bits of a fingerprint) both let a change pass."""
    proof = long_case.prove()
    payload = bytearray(proof.payload)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    forged = long_case.forge(proof, bytes(payload))
    found = outcomes(long_case, forged)
    if Outcome.INVALID not in found:
        honest, other = decode_canonical(proof.payload), decode_canonical(bytes(payload))
        assert honest["output_tokens"] == other["output_tokens"]
        assert verify(long_case, forged).outcome is not Outcome.INVALID


def test_a_part_without_a_model_or_with_a_bad_one_cannot_be_told(
    long_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = long_case.prove()
    span = spans_of(proof)[1]
    assert verify(long_case, proof, span, reference=None).outcome is Outcome.CANNOT_TELL
    real = type(long_case.reference).prefill

    def short(self: Any, spec: Any, prompt: Any, output: Any) -> Any:
        found = real(self, spec, prompt, output)
        return replace(found, logits=found.logits[:-1], hidden=found.hidden[:-1])

    monkeypatch.setattr(type(long_case.reference), "prefill", short)
    assert verify(long_case, proof, span).outcome is Outcome.CANNOT_TELL


# The limits of parts


def test_parts_share_the_chance_of_a_false_reject() -> None:
    """n parts, each n times as hard to reject: together no likelier than one whole."""
    import math

    from daifi_flows.cnft import PPM
    from daifi_flows.proofs._rounding import choices
    from daifi_flows.proofs.calibration import Rounding
    from daifi_flows.proofs.evidence import log_evidence

    rounding = Rounding(scales=(0.02,), weights=(1.0,))
    rows = np.zeros((60, 3), np.float32)
    rows[:, 2] = -30
    rows[:, 1] = -0.055
    for seconds in range(60):
        found = choices(rows, [1] * seconds + [0] * (60 - seconds), Sampling())
        assert found is not None
        evidence = log_evidence(found, rounding)
        for parts in (1, 2, 64):
            finding = decide(found, rounding, parts=parts)
            invalid = evidence >= math.log(parts / ALPHA)
            valid = evidence <= math.log(parts * ACCEPT)
            assert (finding.outcome is Outcome.INVALID) == invalid
            assert (finding.outcome is Outcome.VALID) == valid
            assert 0 <= finding.confidence_ppm <= PPM


def test_activation_limits_widen_with_the_parts() -> None:
    """An error that no whole answer may have is not yet an accusation of one part in many."""
    bounds = ActivationBounds(
        min_exponent_matches=100,
        max_mean_error=20.0,
        max_median_error=20.0,
        mean_error=2.0,
        answer_spread=0.3,
        chunk_spread=0.4,
        relative=None,
    )
    spread = (0.3**2 + 0.4**2 / 2) ** 0.5
    full = np.full(2, TOP)
    expected = {
        REJECT + 0.01: (Outcome.INVALID, Outcome.CANNOT_TELL),
        PLAUSIBLE + 0.01: (Outcome.CANNOT_TELL, Outcome.VALID),
        6.0: (Outcome.INVALID, Outcome.INVALID),
    }
    for deviations, outcomes in expected.items():
        error = np.full(2, 2.0 + deviations * spread)
        errors = ChunkErrors(full, full, error, error)
        found = tuple(judge_activations(errors, bounds, parts=n).outcome for n in (1, 64))
        assert found == outcomes


def test_a_slice_is_checked_with_the_part_it_lies_in(
    kit: Any, verifier: Any, long_tokens: list[int], zk_workdir: Any
) -> None:
    from daifi_flows.proofs.zk_slice import OutputLayer

    case = build(kit, verifier, "zk-slice", long_tokens, zk_workdir, temperature_ppm=700_000)
    layer = OutputLayer(verifier.vocabulary, lambda tokens: verifier.output_rows(case.spec, tokens))
    evidence = {**case.execution.evidence, "output_layer": layer}
    case = replace(case, execution=replace(case.execution, evidence=evidence))
    proof = case.prove()
    found = [verify(case, proof, span) for span in spans_of(proof)]
    assert [verdict.outcome for verdict in found] == [Outcome.VALID] * 2
    assert sum("is proven the best" in verdict.reason for verdict in found) == 1
    fields = decode_canonical(proof.payload)
    forged = case.forge(proof, canonical({**fields, "root": bytes(32)}))
    assert Outcome.INVALID in outcomes(case, forged)

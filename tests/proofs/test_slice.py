"""``zk-slice``: a committed vector, a drawn position, and a SNARK about a few rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from daifi_flows.cnft import Content, Usage
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs import Outcome, Prefill, get_scheme, zk_slice
from daifi_flows.proofs._slice import (
    ROW_UNIT,
    SCORE_UNIT,
    SliceCommitment,
    commit,
    draw,
    prove_slice,
    quantise_rows,
    verify_slice,
)

WIDTH, COUNT = 576, 5
"""SmolLM2's width."""


@pytest.fixture(scope="module")
def hidden() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(scale=2, size=(COUNT, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(scale=0.12, size=(8, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def made(hidden: Any, zk_workdir: Any) -> SliceCommitment:
    return commit(hidden, zk_workdir)


@pytest.fixture(scope="module")
def shown(made: Any, rows: Any, zk_workdir: Any) -> Any:
    return prove_slice(made, 3, quantise_rows(rows), zk_workdir)


def test_the_scores_are_the_rows_on_the_committed_vector(
    made: Any, shown: Any, hidden: Any, rows: Any, zk_workdir: Any
) -> None:
    assert verify_slice(made.root, 3, COUNT, shown, zk_workdir) is None
    exact = rows.astype(np.float64) @ hidden[3]
    proven = np.array(shown.scores) * SCORE_UNIT
    # Half a unit in each factor of each product.
    bound = ROW_UNIT / 2 * (np.abs(rows).sum(1) + np.abs(hidden[3]).sum()) + WIDTH * ROW_UNIT**2
    assert (np.abs(proven - exact) <= bound).all()
    assert len(shown.proof) < 6_000


def test_the_same_states_are_committed_to_differently_each_time(
    made: Any, hidden: Any, zk_workdir: Any
) -> None:
    """Whoever guesses a vector cannot check the guess: it is salted."""
    again = commit(hidden, zk_workdir)
    assert not set(again.leaves) & set(made.leaves)
    assert again.root != made.root


def test_a_slice_holds_for_its_own_position_root_rows_and_scores_only(
    made: Any, shown: Any, hidden: Any, rows: Any, zk_workdir: Any
) -> None:
    other = commit(hidden, zk_workdir)
    theirs = prove_slice(other, 3, quantise_rows(rows), zk_workdir)
    one_more = tuple(score + (index == 0) for index, score in enumerate(shown.scores))
    bent = shown.rows.copy()
    bent[0, 0] += 1
    flipped = bytearray(shown.proof)
    flipped[-1] ^= 1
    head = theirs.proof[:64] + shown.proof[64:]
    path = shown.path
    attacks = {
        "another position": (made.root, 2, COUNT, shown),
        "another number of positions": (made.root, 3, COUNT + 1, shown),
        "another commitment": (other.root, 3, COUNT, shown),
        "a vector that was not committed to": (made.root, 3, COUNT, replace(theirs, path=path)),
        "its commitment before another proof": (
            other.root,
            3,
            COUNT,
            replace(shown, proof=head, path=theirs.path),
        ),
        "another score": (made.root, 3, COUNT, replace(shown, scores=one_more)),
        "another row": (made.root, 3, COUNT, replace(shown, rows=bent)),
        "a flipped bit": (made.root, 3, COUNT, replace(shown, proof=bytes(flipped))),
        "a word appended": (made.root, 3, COUNT, replace(shown, proof=shown.proof + bytes(32))),
        "a path cut short": (made.root, 3, COUNT, replace(shown, path=path[:-1])),
    }
    for name, attack in attacks.items():
        assert verify_slice(*attack, zk_workdir) is not None, name


def test_positions_are_drawn_evenly_from_beacon_and_root() -> None:
    drawn = [draw(bytes(32), index.to_bytes(2, "big"), 10) for index in range(2_000)]
    assert min(drawn.count(position) for position in range(10)) > 140
    assert draw(bytes(32), b"a", 1000) != draw(bytes(32), b"b", 1000)
    assert draw(bytes(32), b"a", 1000) != draw(b"\1" * 32, b"a", 1000)


@pytest.mark.parametrize(
    "bad",
    [
        np.full((2, 8), np.nan),
        np.full((2, 8), np.inf),
        np.full((2, 8), 5_000.0),
        np.zeros((0, 8)),
        np.zeros((2, 0)),
        np.zeros(8),
        np.zeros((1, 8_193)),
    ],
    ids=str,
)
def test_unusable_states_are_refused(bad: Any, tmp_path: Any) -> None:
    with pytest.raises(EncodingError):
        commit(bad.astype(np.float32), tmp_path)


# The scheme, on the small Llama of the other tests.


@pytest.fixture(scope="session")
def slice_proof(slice_case: Any) -> Any:
    return slice_case().prove()


@pytest.mark.parametrize("sampling", [{}, {"temperature_ppm": 700_000}], ids=["greedy", "sampled"])
def test_an_honest_node_is_valid(slice_case: Any, sampling: Any) -> None:
    case = slice_case(**sampling)
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.VALID, verdict.reason
    assert verdict.confidence_ppm > 990_000
    assert "best of 8" in verdict.reason
    assert verdict.reexecuted == case.execution.output


def test_an_engine_that_rounds_to_bf16_is_valid(slice_case: Any, honest: Any) -> None:
    import copy

    import torch

    half = type(honest)(copy.deepcopy(honest.model).to(torch.bfloat16), honest.vocabulary)
    case = slice_case(half)
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.VALID, verdict.reason


def test_without_a_prefill_the_slice_alone_is_not_enough_for_a_committee(
    slice_case: Any, slice_proof: Any, honest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = slice_case()

    def refuse(*_: Any) -> Any:
        raise ModelError("no room for the model")

    monkeypatch.setattr(honest, "prefill", refuse)
    verdict = case.verify(slice_proof)
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, zk_slice.UNTIED_PPM)
    assert "no room for the model" in verdict.reason
    assert verdict.confidence_ppm < case.spec.review.min_confidence_ppm
    monkeypatch.setattr(honest, "output_rows", refuse)
    assert case.verify(slice_proof).outcome is Outcome.CANNOT_TELL
    assert case.verify(slice_proof, reference=None).outcome is Outcome.CANNOT_TELL
    private = case.verify(slice_proof, output=None)
    assert private.outcome is Outcome.CANNOT_TELL


def test_another_models_tokens_are_invalid(slice_case: Any, stranger: Any) -> None:
    """Its vectors make its tokens the best even of the right rows, or its rows are not the spec's;
    either way it does not pass."""
    case = slice_case(stranger)
    assert case.verify(case.prove()).outcome is Outcome.INVALID


def forged(case: Any, **changes: Any) -> Any:
    """A proof of other evidence, as a node makes it that changes its engine."""
    return replace(
        case, execution=replace(case.execution, evidence=case.execution.evidence | changes)
    )


def test_vectors_of_another_place_are_found_by_their_scores(
    slice_case: Any, honest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right tokens under made-up vectors: nothing but a prefill can tell, and it does."""
    case = slice_case()
    tokens = case.execution.evidence["output_tokens"]
    own = honest.output_rows(case.spec, tokens)
    made_up = (own * (40 / (own**2).sum(1, keepdims=True))).astype(np.float32)
    proof = forged(case, activations=made_up).prove()
    verdict = case.verify(proof)
    assert verdict.outcome is Outcome.INVALID
    assert "away from the model's" in verdict.reason

    def refuse(*_: Any) -> Any:
        raise ModelError("no room for the model")

    monkeypatch.setattr(honest, "prefill", refuse)
    assert case.verify(proof).confidence_ppm == zk_slice.UNTIED_PPM


def test_a_token_that_is_not_the_best_is_invalid_and_cannot_be_proven(
    slice_case: Any, honest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that edits its answer after it computed the vectors."""
    case = slice_case()
    evidence = case.execution.evidence
    tokens = [(token % 199) + 1 for token in evidence["output_tokens"]]
    edited = replace(
        case,
        execution=replace(
            case.execution,
            output=honest.render_output(case.spec, case.input, tokens, bytes(32)),
            usage=Usage(prompt_tokens=len(evidence["prompt_tokens"]), output_tokens=len(tokens)),
            evidence=evidence | {"output_tokens": tokens},
        ),
    )
    with pytest.raises(ProofError, match="under the best candidate"):
        edited.prove()
    with monkeypatch.context() as cheat:
        cheat.setattr(zk_slice, "_best_fault", lambda *_: None)
        proof = edited.prove()
    verdict = case.verify(proof, output=edited.execution.output)
    assert verdict.outcome is Outcome.INVALID
    assert "under the best candidate" in verdict.reason


def test_payloads_that_do_not_fit_together_are_invalid(slice_case: Any, slice_proof: Any) -> None:
    case = slice_case()
    fields = decode_canonical(slice_proof.payload)
    candidates, rows = fields["candidates"], bytearray(fields["rows"])
    width = len(rows) // 4 // len(candidates)
    rows[1] ^= 64  # 2¹⁴ units: a quarter of a logit a unit of the vector
    emitted = set(case.execution.evidence["output_tokens"])
    outsiders = [token for token in range(200) if token not in emitted][: len(candidates)]
    attacks = {
        "a row that is not the model's": {"rows": bytes(rows)},
        "rows of other tokens": {"candidates": [(t + 1) % 200 for t in candidates]},
        "candidates without the emitted token": {"candidates": outsiders},
        "a token beyond the vocabulary": {"candidates": [*candidates[:-1], 1 << 19]},
        "candidates backwards": {"candidates": candidates[::-1]},
        "a narrower model": {"rows": fields["rows"][: -4 * len(candidates)]},
        "rows of no width": {"rows": b""},
        "too wide": {"rows": bytes(4 * len(candidates) * 8_200)},
        "a score too few": {"scores": fields["scores"][:-1]},
        "a score too large": {"scores": [*fields["scores"][:-1], 1 << 62]},
        "a better score": {"scores": [score * 2 for score in fields["scores"]]},
        "another root": {"root": bytes(32)},
        "a longer path": {"path": [*fields["path"], bytes(32)]},
        "a path of 33": {"path": [bytes(32)] * 33},
        "no proof": {"proof": b""},
        "the commitment alone": {"proof": fields["proof"][:64]},
        "the SNARK of zeros": {"proof": fields["proof"][:64] + bytes(len(fields["proof"]) - 64)},
        "an unknown field": {"extra": 1},
    }
    assert width == 64
    for name, change in attacks.items():
        verdict = case.verify(case.forge(slice_proof, canonical(fields | change)))
        assert verdict.outcome is Outcome.INVALID, f"{name}: {verdict.reason}"
        assert not verdict.reason.startswith("verification failed"), name
    other_srs = case.forge(slice_proof, canonical(fields | {"srs": bytes(32)}))
    assert case.verify(other_srs).outcome is Outcome.CANNOT_TELL


def test_another_nodes_slice_cannot_be_replayed_for_another_task(
    slice_case: Any, slice_proof: Any
) -> None:
    """The draw hangs on the task: even signed anew, the proof shows another position, or (one time
    in as many as there are tokens) is for another prompt."""
    case = slice_case()
    nonces = [bytes([value]) * 32 for value in range(1, 9)]
    tasks = [case.spec.model_copy(update={"nonce": nonce}) for nonce in nonces]
    caught = 0
    for spec in tasks:
        swapped = replace(case, spec=spec)
        proof = swapped.forge(slice_proof, slice_proof.payload, task_id=spec.task_id)
        caught += swapped.verify(proof).outcome is Outcome.INVALID
    assert caught >= len(tasks) - 2


def test_bad_prefills_and_rows_accuse_nobody(
    slice_case: Any, slice_proof: Any, honest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = slice_case()
    evidence = case.execution.evidence
    good = honest.prefill(case.spec, evidence["prompt_tokens"], evidence["output_tokens"])
    with monkeypatch.context() as patch:
        bad = Prefill(np.full_like(good.logits, np.nan))
        patch.setattr(honest, "prefill", lambda *_: bad)
        assert case.verify(slice_proof).outcome is Outcome.CANNOT_TELL
    for rows in (np.full((8, 64), np.nan), np.zeros((7, 64)), np.zeros(64)):
        monkeypatch.setattr(honest, "output_rows", lambda *_, r=rows: r)
        assert case.verify(slice_proof).outcome is Outcome.CANNOT_TELL


@pytest.mark.parametrize("shown", [True, False])
def test_a_model_that_bends_its_logits_after_the_output_layer_accuses_nobody(
    slice_case: Any,
    slice_proof: Any,
    honest: Any,
    monkeypatch: pytest.MonkeyPatch,
    shown: bool,
) -> None:
    """Granite divides its logits, Gemma 2 caps them: the products are then not the logits."""
    case, prefill = slice_case(), honest.prefill

    def scaled(*arguments: Any) -> Prefill:
        found = prefill(*arguments)
        return Prefill(found.logits / 8, found.hidden if shown else None)

    monkeypatch.setattr(honest, "prefill", scaled)
    verdict = case.verify(slice_proof)
    assert verdict.outcome is Outcome.CANNOT_TELL, verdict.reason
    assert "other logits" in verdict.reason


@pytest.mark.parametrize(
    "change",
    [
        {"activations": None},
        {"activations": np.full((24, 64), np.nan)},
        {"activations": np.zeros((23, 64))},
        {"activations": np.zeros((24, 63))},
        {"activations": "x"},
        {"output_layer": None},
        {
            "output_layer": zk_slice.OutputLayer(
                200, lambda tokens: np.full((len(tokens), 64), 99.0)
            )
        },
        {"output_layer": zk_slice.OutputLayer(3, lambda ids: np.zeros((len(ids), 64)))},
    ],
    ids=str,
)
def test_unusable_evidence_cannot_be_proven(slice_case: Any, change: Any) -> None:
    with pytest.raises(ProofError):
        forged(slice_case(), **change).prove()


@pytest.mark.parametrize("cut", [{"top_k": 40}, {"top_p_ppm": 900_000}])
def test_samplers_that_cut_are_refused(slice_case: Any, slice_proof: Any, cut: Any) -> None:
    case = slice_case(temperature_ppm=700_000, **cut)
    with pytest.raises(ProofError, match="top-k"):
        case.prove()


def test_a_step_whose_engine_shows_no_output_layer_is_refused(slice_case: Any) -> None:
    assert get_scheme("zk-slice").needs >= {"activations", "output_layer"}
    case = slice_case()
    evidence = {k: v for k, v in case.execution.evidence.items() if k != "output_layer"}
    with pytest.raises(ProofError, match="zk-slice needs output_layer"):
        replace(case, execution=replace(case.execution, evidence=evidence)).prove()
    assert isinstance(case.execution.output, Content)

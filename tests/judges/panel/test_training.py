"""Pairs of known truth, training, calibration and its measures, and the commands around them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from daifi_flows.cli import app
from daifi_flows.errors import EncodingError
from daifi_flows.judges.panel import (
    FEATURES,
    LogisticMap,
    read_head,
    read_map,
    shipped_map,
    write_head,
    write_map,
)
from daifi_flows.judges.panel import _corpus as corpus
from daifi_flows.judges.panel._corpus import answers, pairs_of, structure_pairs, training_pairs
from daifi_flows.judges.panel._edits import CHANGES, REWORDINGS, pool
from daifi_flows.judges.panel._frames import FRAMES, POOLS, SPLITS
from daifi_flows.judges.panel._metrics import calibration_error, reliability, roc_auc
from daifi_flows.judges.panel._pairs import statement_pairs
from daifi_flows.judges.panel._training import fit_map, opinions, train_head

# The corpus


def test_no_frame_word_or_program_is_in_two_splits() -> None:
    for kind in POOLS:
        words = [set(pool(kind, split)) for split in SPLITS]
        assert sum(map(len, words)) == len(set().union(*words)) == len(POOLS[kind])
    for one in range(3):
        mine = {form for frame in FRAMES[one::3] for form in (*frame.forms, *frame.denials)}
        others = {
            form
            for rest in range(3)
            if rest != one
            for frame in FRAMES[rest::3]
            for form in frame.forms
        }
        assert not mine & others
    texts = [{p.expected for p in statement_pairs(split, 300, 1)} for split in SPLITS]
    assert not texts[0] & texts[2] and not texts[1] & texts[2] and not texts[0] & texts[1]
    code = [{p.expected for p in structure_pairs(split, 80, 1)} for split in SPLITS]
    assert not code[0] & code[2] and not code[1] & code[2]


def test_held_out_pairs_are_many_and_of_every_kind() -> None:
    pairs = pairs_of("held-out")
    kinds = Counter(pair.kind for pair in pairs)
    assert len(pairs) >= 2_000
    assert kinds.keys() >= {
        "negation", "number", "entity", "role", "other", "paraphrase", "reworded", "structure",
        "other precision", "re-executed", "other prompt", "other model", "lie", "disguise",
    }  # fmt: skip
    assert 0.35 < sum(pair.same for pair in pairs) / len(pairs) < 0.65
    assert min(kinds.values()) >= 50
    assert pairs == pairs_of("held-out")
    assert pairs != pairs_of("held-out", 2)


def test_real_answers_carry_their_likelihoods() -> None:
    for item in answers():
        for name in ("bf16", "fp32", "prompt", "layers"):
            answer = item[name]
            assert len(answer["scores"]) == len(answer["own_scores"]) > 0
            assert all(score <= 0.01 for score in answer["scores"])
            gap = np.array(answer["own_scores"]) - np.array(answer["scores"])
            assert gap.min() >= -0.02  # the model's own choice is its most likely token
    assert Counter(item["split"] for item in answers()) == dict.fromkeys(SPLITS, 150)


@pytest.mark.parametrize("kind", [*CHANGES, *REWORDINGS])
def test_edits_edit_or_decline(kind: str) -> None:
    edit = {**CHANGES, **REWORDINGS}[kind]
    rng = random.Random(1)
    told = "Then Ann is not taller than Bob by 1,200 metres. It is big."
    for split in SPLITS:
        edited = edit(told, rng, split)
        assert edited is None or edited != told
        assert edit("", rng, split) in {None, " \n"}


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.integers(0, 99))
def test_edits_take_any_text(text: str, seed: int) -> None:
    for edit in (*CHANGES.values(), *REWORDINGS.values()):
        edit(text, random.Random(seed), "train")


# Measures


def test_measures_of_a_probability() -> None:
    assert roc_auc([3, 2, 1], [True, True, False]) == 1.0
    assert roc_auc([1, 1, 1], [True, True, False]) == 0.5
    rng = np.random.default_rng(1)
    chances = rng.uniform(size=20_000)
    truth = rng.uniform(size=20_000) < chances
    assert calibration_error(chances.tolist(), truth.tolist()) < 0.02
    assert calibration_error((chances**3).tolist(), truth.tolist()) > 0.15
    assert sum(each.count for each in reliability(chances.tolist(), truth.tolist())) == 20_000


# Training


def test_training_is_repeatable_and_tells_opposites(embed: Any) -> None:
    pairs = statement_pairs("train", 240, 3)
    head = train_head(pairs, embed, seed=1)
    assert write_head(head) == write_head(train_head(pairs, embed, seed=1))
    assert write_head(head) != write_head(train_head(pairs, embed, seed=2))
    one, other = embed([p.claimed for p in pairs]), embed([p.expected for p in pairs])
    truth = [pair.same for pair in pairs]
    assert roc_auc(head.scores(one, other), truth) > roc_auc((one * other).sum(axis=1), truth)


def test_calibration_fits_a_rising_curve_with_the_right_signs(embed: Any) -> None:
    seen = opinions(statement_pairs("calibration", 400, 4), embed)
    fitted = fit_map(seen)
    assert fitted.weights["cosine"] >= 0 >= fitted.weights["numbers_differ"]
    assert all(weight <= 0 for name, weight in fitted.weights.items() if name.endswith("differ"))
    odds = [point[1] for point in fitted.curve]
    assert odds == sorted(odds)
    truth = [each.pair.same for each in seen]
    assert roc_auc([each.chance(fitted) for each in seen], truth) > 0.97


def test_the_shipped_map_keeps_its_promise_on_statements_held_out(embed: Any) -> None:
    """A sample of what ``python -m benchmarks judges`` measures on all pairs."""
    seen = opinions([p for p in pairs_of("held-out", 2) if p.kind != "structure"][:600], embed)
    chances = [each.opinion.probability_ppm / 1e6 for each in seen]
    truth = [each.pair.same for each in seen]
    assert roc_auc(chances, truth) > 0.97
    accepted = [same for chance, same in zip(chances, truth, strict=True) if chance > 0.99]
    assert len(accepted) > 100 and sum(not same for same in accepted) <= 1


# Files


def test_a_map_survives_its_file() -> None:
    assert read_map(write_map(shipped_map())) == shipped_map()


MAP = {"bias": 1.0, "weights": {"cosine": 2.0}, "unknown": {}, "curve": [[0.0, -1.0], [1.0, 2.0]]}


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": "1"},
        {"bias": True},
        {"weights": {"kindness": 1.0}},
        {"weights": {"exact": 1.0}},
        {"weights": [1.0]},
        {"unknown": {"cosine": None}},
        {"curve": [[0.0, 1.0], [0.0, 2.0]]},
        {"curve": [[0.0, 1.0], [1.0, 0.0]]},
        {"curve": [[0.0]]},
        {"curve": 3},
        {"bias": 10**400},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_what_is_not_a_map_is_refused(changes: Any) -> None:
    assert read_map(json.dumps(MAP).encode()).logit({"cosine": 0.5}) == 2.0
    with pytest.raises(EncodingError):
        read_map(json.dumps(MAP | changes).encode())


@given(st.binary(max_size=80))
def test_random_bytes_are_not_a_map(data: bytes) -> None:
    with pytest.raises(EncodingError):
        read_map(data)


@given(
    st.dictionaries(st.sampled_from(FEATURES), st.floats()),
    st.floats(-5, 5),
    st.lists(st.floats(-5, 5), min_size=2, max_size=2, unique=True),
)
def test_the_curve_never_falls(features: dict[str, float], one: float, ends: list[float]) -> None:
    curve = ((min(ends), -1.0), (max(ends), 2.0))
    fitted = LogisticMap(0.0, {"cosine": one}, {"cosine": one}, curve)
    assert -1.0 <= fitted.logit(features) <= 2.0
    assert fitted.logit({"cosine": 0.0}) <= fitted.logit({"cosine": 1.0}) or one < 0


# Commands


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small corpus: the commands are tested, not the shipped figures."""
    monkeypatch.setattr(corpus, "_STATEMENTS", 160)
    monkeypatch.setattr(corpus, "_STRUCTURES", 20)
    monkeypatch.setattr(corpus, "_THINGS", 20)
    monkeypatch.setattr(corpus, "answers", lambda: [])


@pytest.mark.slow
def test_the_commands_train_and_calibrate(fewer: None, tmp_path: Path) -> None:
    head, onnx, fitted = (tmp_path / name for name in ("head.npz", "head.onnx", "map.json"))
    arguments = ["judges", "train", "--out", str(head), "--onnx", str(onnx), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pairs"] == len(training_pairs())
    assert read_head(head.read_bytes()).width == 384 and onnx.stat().st_size > 1_000
    arguments = ["judges", "calibrate", "--head", str(head), "--out", str(fitted), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert 0 <= json.loads(done.stdout)["calibration_error"] < 0.2
    assert read_map(fitted.read_bytes()).weights


def test_the_commands_say_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.npz")
    done = CliRunner().invoke(app, ["judges", "calibrate", "--head", missing])
    assert done.exit_code != 0 and "cannot be read" in str(done.exception)

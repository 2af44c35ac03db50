"""``digest``: re-execution, and what counts as the same JSON."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import Content
from daifi_flows.errors import ModelError
from daifi_flows.proofs import Outcome
from daifi_flows.proofs._compare import Match, compare_json


def ranking(*passages: tuple[str, int]) -> dict[str, Any]:
    return {"passages": [{"id": i, "score_ppm": s, "text": f"text of {i}"} for i, s in passages]}


@pytest.mark.parametrize(
    ("claimed", "again", "match"),
    [
        ({"a": [1, "x", None, True]}, {"a": [1, "x", None, True]}, Match.EXACT),
        ({"a": 1}, {"a": 2}, Match.DIFFERENT),
        ({"a": 1}, {"a": True}, Match.DIFFERENT),
        ({"a": 1}, {"a": 1, "b": 2}, Match.DIFFERENT),
        ([1, 2], [2, 1], Match.DIFFERENT),
        ([1], [1, 1], Match.DIFFERENT),
        (1.0, 1.0 + 5e-7, Match.WITHIN),
        (1.0, 1.0 + 5e-6, Match.DIFFERENT),
        (1e9, 1e9 + 100, Match.WITHIN),
        (0.0, 1e-9, Match.WITHIN),
        (1, 1.0, Match.WITHIN),
        (10**400, 1.0, Match.DIFFERENT),
        ({"score_ppm": 500_000}, {"score_ppm": 502_000}, Match.WITHIN),
        ({"score_ppm": 500_000}, {"score_ppm": 502_001}, Match.DIFFERENT),
        ({"score_ppm": 500_000}, {"score_ppm": 500_000.5}, Match.WITHIN),
        ({"scores_ppm": [1, 2]}, {"scores_ppm": [3, 4]}, Match.WITHIN),
        ({"score": 500_000}, {"score": 500_001}, Match.DIFFERENT),
        (ranking(("a", 9000), ("b", 8000)), ranking(("b", 8100), ("a", 8000)), Match.WITHIN),
        (ranking(("a", 90000), ("b", 8000)), ranking(("b", 90000), ("a", 8000)), Match.DIFFERENT),
        (ranking(("a", 9000), ("c", 5000)), ranking(("a", 9000), ("b", 5100)), Match.UNCLEAR),
        (ranking(("c", 90000), ("b", 5000)), ranking(("a", 90000), ("b", 5000)), Match.DIFFERENT),
        (ranking(("a", 9000), ("a", 9000)), ranking(("a", 9000), ("b", 9000)), Match.DIFFERENT),
    ],
)
def test_comparison(claimed: Any, again: Any, match: Match) -> None:
    assert compare_json(claimed, again)[0] is match


def test_an_edited_passage_is_found_behind_a_right_score() -> None:
    claimed = ranking(("a", 9000))
    claimed["passages"][0]["text"] = "something else"
    assert compare_json(claimed, ranking(("a", 9000)))[0] is Match.DIFFERENT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON, JSON)
def test_comparison_is_total_and_reflexive(one: Any, other: Any) -> None:
    assert compare_json(one, one)[0] is Match.EXACT
    compare_json(one, other)


def test_the_same_bytes_are_valid(digest_case: Any) -> None:
    case = digest_case({"n": 2})
    verdict = case.verify(case.prove())
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 1_000_000)
    assert verdict.reexecuted == case.execution.output
    assert case.prove().payload == b""


def test_a_float_within_tolerance_is_valid_with_less_confidence(digest_case: Any) -> None:
    case = digest_case({"n": 2.0}, {"n": 2.0000001})
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.VALID
    assert 990_000 < verdict.confidence_ppm < 1_000_000


@pytest.mark.parametrize(
    "claimed",
    [
        {"n": 3},
        Content(media_type="application/json", data=b'{"n": 2}\n', salt=bytes(32)),
        Content(media_type="application/json", data=b'{"n":NaN}\n', salt=bytes(32)),
        Content(media_type="application/json", data=b"[" * 100_000, salt=bytes(32)),
        Content(media_type="application/json", data=b"\xff\x00", salt=bytes(32)),
        Content(media_type="application/json", data=b"9" * 10_000, salt=bytes(32)),
        Content(media_type="application/octet-stream", data=b'{"n":2}\n', salt=bytes(32)),
    ],
)
def test_another_output_is_invalid(digest_case: Any, claimed: Any) -> None:
    case = digest_case(claimed, {"n": 2})
    verdict = case.verify(case.prove())
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reexecuted is not None


def test_bytes_must_be_equal(digest_case: Any) -> None:
    raw = Content(media_type="application/octet-stream", data=b"\x00\x01", salt=bytes(32))
    near = raw.model_copy(update={"data": b"\x00\x02"})
    assert digest_case(raw).verify(digest_case(raw).prove()).outcome is Outcome.VALID
    case = digest_case(raw, near)
    assert case.verify(case.prove()).outcome is Outcome.INVALID


def test_what_cannot_be_run_again_cannot_be_told(digest_case: Any) -> None:
    case = digest_case({"n": 2})
    proof = case.prove()
    assert case.verify(proof, reference=None).outcome is Outcome.CANNOT_TELL
    assert case.verify(proof, input=None).outcome is Outcome.CANNOT_TELL
    assert case.verify(proof, output=None).outcome is Outcome.CANNOT_TELL
    case.reference.error = ModelError("the weights are gone")
    assert "weights are gone" in case.verify(proof).reason
    case.reference.gap = "no such function here"
    verdict = case.verify(proof)
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "no such function here" in verdict.reason

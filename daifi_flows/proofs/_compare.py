"""Comparing a claimed JSON output with a recomputed one, with stated tolerances."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, Final, cast

__all__ = ["FLOAT_RELATIVE", "SCORE_PPM", "Match", "compare_json"]

FLOAT_RELATIVE: Final = 1e-6
"""Relative tolerance of floats; also the absolute one below 1 (float32 has 24 bits: 6e-8)."""

SCORE_PPM: Final = 2_000
"""Tolerance of cosine scores in parts per million: float32 kernels differ by about 1 ppm, bfloat16
ones by up to 2,000."""

_SCORE_KEYS: Final = ("score_ppm", "scores_ppm")
_MAX_DEPTH: Final = 64
"""Deeper values must be equal to the byte."""


class Match(IntEnum):
    """How well two values agree; the worst part decides."""

    EXACT = 0
    WITHIN = 1
    UNCLEAR = 2
    DIFFERENT = 3


def compare_json(claimed: Any, again: Any) -> tuple[Match, str]:
    """Agreement of two parsed JSON values, and where they first disagree most.

    Exact but for three things: floats within ``1e-6`` relative; integers under a key that ends in
    ``score_ppm`` or ``scores_ppm`` within 2,000; and ranked passages (objects with ``id`` and
    ``score_ppm``), which may trade places when the scores at both places agree within that. A
    passage that only one ranking holds, with a score within tolerance of the last place, is
    ``UNCLEAR``: two machines may cut the list differently there.
    """
    return _compare(claimed, again, "output", scored=False, depth=0)


def _compare(claimed: Any, again: Any, path: str, *, scored: bool, depth: int) -> tuple[Match, str]:
    if depth > _MAX_DEPTH:
        return Match.DIFFERENT, f"{path} is nested too deep to compare"
    if isinstance(claimed, dict) and isinstance(again, dict):
        return _compare_objects(
            cast("dict[str, Any]", claimed), cast("dict[str, Any]", again), path, depth
        )
    if isinstance(claimed, list) and isinstance(again, list):
        left, right = cast("list[Any]", claimed), cast("list[Any]", again)
        if len(left) != len(right):
            return Match.DIFFERENT, f"{path} has {len(left)} items, not {len(right)}"
        if _ranked(left) and _ranked(right):
            return _compare_ranked(left, right, path, depth)
        return _worst(
            _compare(one, other, f"{path}[{index}]", scored=scored, depth=depth + 1)
            for index, (one, other) in enumerate(zip(left, right, strict=True))
        )
    return _compare_scalars(claimed, again, path, scored=scored)


def _compare_objects(
    claimed: dict[str, Any], again: dict[str, Any], path: str, depth: int
) -> tuple[Match, str]:
    if claimed.keys() != again.keys():
        odd = sorted(claimed.keys() ^ again.keys())[0]
        return Match.DIFFERENT, f"{path} and the recomputed value do not both have {odd[:64]!r}"
    return _worst(
        _compare(
            claimed[key],
            again[key],
            f"{path}.{key[:64]}",
            scored=key.endswith(_SCORE_KEYS),
            depth=depth + 1,
        )
        for key in sorted(claimed)
    )


def _compare_scalars(claimed: Any, again: Any, path: str, *, scored: bool) -> tuple[Match, str]:
    if type(claimed) is type(again) and claimed == again:
        return Match.EXACT, ""
    numbers = _is_number(claimed) and _is_number(again)
    if numbers and scored and isinstance(claimed, int) and isinstance(again, int):
        if abs(claimed - again) <= SCORE_PPM:
            return Match.WITHIN, path
    elif numbers and (isinstance(claimed, float) or isinstance(again, float)):
        try:
            if math.isclose(claimed, again, rel_tol=FLOAT_RELATIVE, abs_tol=FLOAT_RELATIVE):
                return Match.WITHIN, path
        except OverflowError:  # an integer beyond every float equals none
            pass
    return Match.DIFFERENT, f"{path} is {_short(claimed)}, recomputed {_short(again)}"


def _compare_ranked(
    claimed: list[dict[str, Any]], again: list[dict[str, Any]], path: str, depth: int
) -> tuple[Match, str]:
    """Two rankings of the same length: scores place by place, the rest passage by passage."""
    places = _worst(
        _compare_scalars(one["score_ppm"], other["score_ppm"], f"{path}[{index}]", scored=True)
        for index, (one, other) in enumerate(zip(claimed, again, strict=True))
    )
    if places[0] is Match.DIFFERENT:
        return places
    by_id = {passage["id"]: passage for passage in again}
    found = {passage["id"] for passage in claimed}
    if len(by_id) != len(again) or len(found) != len(claimed):
        return Match.DIFFERENT, f"{path} lists a passage twice"
    results = [places]
    last = again[-1]["score_ppm"]
    for index, passage in enumerate(claimed):
        other = by_id.get(passage["id"])
        where = f"{path}[{index}]"
        if other is not None:
            results.append(_compare(passage, other, where, scored=False, depth=depth + 1))
        elif abs(passage["score_ppm"] - last) <= SCORE_PPM:
            results.append((Match.UNCLEAR, f"{where} is as close as the last passage"))
        else:
            results.append((Match.DIFFERENT, f"{where} is not among the recomputed passages"))
    if [item["id"] for item in claimed] != [item["id"] for item in again]:
        results.append((Match.WITHIN, path))
    return _worst(results)


def _ranked(items: list[Any]) -> bool:
    return bool(items) and all(_is_passage(item) for item in items)


def _is_passage(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    fields = cast("dict[str, Any]", item)
    return isinstance(fields.get("id"), str) and type(fields.get("score_ppm")) is int


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
    return text if len(text) <= 80 else text[:77] + "…"


def _worst(results: Any) -> tuple[Match, str]:
    worst: tuple[Match, str] = (Match.EXACT, "")
    for result in results:
        if result[0] > worst[0]:
            worst = result
            if worst[0] is Match.DIFFERENT:
                break
    return worst

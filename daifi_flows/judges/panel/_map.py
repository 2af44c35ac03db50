"""From features to a probability: a logistic model and a monotone curve, fitted to known pairs."""

from __future__ import annotations

import bisect
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any, Final, cast

from daifi_flows.errors import EncodingError, ModelError

__all__ = ["FEATURES", "FITTED", "LogisticMap", "read_map", "shipped_map", "write_map"]

FEATURES: Final = (
    "exact", "normalised", "words", "length", "numbers_differ", "units_differ", "names_differ",
    "doubtful_names_differ", "disguised", "order_differs", "roles_differ",
    "negations_differ", "polarity_differs", "structure_differs", "cosine", "head", "likelihood",
    "surprise", "llm", "tensor_cosine", "tensor_error",
)  # fmt: skip
"""In the order in which votes carry them. At most 24."""

FITTED: Final = FEATURES[2:18]
"""Those that the logistic model weighs; the panel has rules of its own for the others."""

_MAX_BYTES: Final = 1 << 16
_FILE: Final = "map.json"


@dataclass(frozen=True)
class LogisticMap:
    """``score = bias + Σ weight·feature``, and from it the log-odds by a curve that only rises.

    A feature that is NaN adds its part in ``unknown`` instead, or nothing.

    Attributes:
        curve: points (score, log-odds), both rising: isotonic regression (Zadrozny & Elkan, KDD
            2002). Between two points the curve is straight, beyond the last ones level. Without
            points, the score is the log-odds.
    """

    bias: float
    weights: Mapping[str, float]
    unknown: Mapping[str, float]
    curve: Sequence[tuple[float, float]] = ()

    def score(self, features: Mapping[str, float]) -> float:
        """Before the curve."""
        score = self.bias
        for name, weight in self.weights.items():
            value = features.get(name, math.nan)
            if math.isfinite(value):
                score += weight * min(max(value, 0.0), 1.0)
            else:
                score += self.unknown.get(name, 0.0)
        return score

    def logit(self, features: Mapping[str, float]) -> float:
        """Log-odds, natural logarithm."""
        score = self.score(features)
        if not self.curve:
            return score
        place = bisect.bisect_right(self.curve, score, key=lambda point: point[0])
        if place in {0, len(self.curve)}:
            return self.curve[min(place, len(self.curve) - 1)][1]
        (left, low), (right, high) = self.curve[place - 1 : place + 1]
        return low + (high - low) * (score - left) / (right - left)


def write_map(fitted: LogisticMap) -> bytes:
    """As JSON."""
    value = {
        "bias": fitted.bias,
        "weights": {**fitted.weights},
        "unknown": {**fitted.unknown},
        "curve": [[*point] for point in fitted.curve],
    }
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def read_map(data: bytes) -> LogisticMap:
    """Parse :func:`write_map`'s bytes.

    Raises:
        EncodingError: they are not a map's, or name features that no judge has.
    """
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("too long")
        value: Any = json.loads(data)
        bias = _number(value["bias"])
        weights = {str(name): _number(each) for name, each in value["weights"].items()}
        unknown = {str(name): _number(each) for name, each in value["unknown"].items()}
        curve = [(_number(score), _number(odds)) for score, odds in value["curve"]]
        if any(one[0] >= other[0] or one[1] > other[1] for one, other in pairwise(curve)):
            raise ValueError("the curve does not rise")
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise EncodingError(f"these bytes are not a panel's map: {error}") from error
    if strange := (weights.keys() | unknown.keys()) - set(FITTED):
        raise EncodingError(f"no judge has {', '.join(sorted(strange))}")
    return LogisticMap(bias, weights, unknown, curve)


def _number(value: Any) -> float:
    if type(value) not in {int, float} or not math.isfinite(cast("float", value)):
        raise ValueError(f"{value!r} is not a number")
    return float(cast("float", value))


@functools.cache
def shipped_map() -> LogisticMap:
    """The map in this package.

    Raises:
        ModelError: it is damaged.
    """
    try:
        return read_map((files(__package__ or "") / "data" / _FILE).read_bytes())
    except (OSError, EncodingError) as error:
        raise ModelError(f"the judges' map is damaged: {error}: install the package again") from (
            error
        )

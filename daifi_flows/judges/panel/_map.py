"""From features to a probability: a logistic model, fitted to pairs of which the truth is known."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
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
    """``P(claim ≈ committee) = 1 / (1 + exp(−(bias + Σ weight·feature)))``.

    A feature that is NaN adds its log-odds in ``unknown`` instead, or nothing.
    """

    bias: float
    weights: Mapping[str, float]
    unknown: Mapping[str, float]

    def logit(self, features: Mapping[str, float]) -> float:
        """Log-odds, natural logarithm."""
        logit = self.bias
        for name, weight in self.weights.items():
            value = features.get(name, math.nan)
            if math.isfinite(value):
                logit += weight * min(max(value, 0.0), 1.0)
            else:
                logit += self.unknown.get(name, 0.0)
        return logit

    def probability(self, features: Mapping[str, float]) -> float:
        """Of the same features."""
        return 1.0 / (1.0 + math.exp(-min(max(self.logit(features), -700.0), 700.0)))


def write_map(fitted: LogisticMap) -> bytes:
    """As JSON."""
    value = {"bias": fitted.bias, "weights": {**fitted.weights}, "unknown": {**fitted.unknown}}
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EncodingError(f"these bytes are not a panel's map: {error}") from error
    if strange := (weights.keys() | unknown.keys()) - set(FITTED):
        raise EncodingError(f"no judge has {', '.join(sorted(strange))}")
    return LogisticMap(bias, weights, unknown)


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

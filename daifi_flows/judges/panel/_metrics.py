"""How good a probability is: ranking, calibration, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Bin", "calibration_error", "reliability", "roc_auc"]


@dataclass(frozen=True)
class Bin:
    """Pairs whose probability fell into one interval.

    Attributes:
        predicted: mean of the probabilities; ``actual``: share that was the same.
    """

    count: int
    predicted: float
    actual: float


def roc_auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """Area under the ROC curve: how often a pair of equals scores above another, ties half.

    >>> roc_auc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    0.875
    """
    scores, truth = np.asarray(scores, float), np.asarray(truth, bool)
    others = np.sort(scores[~truth])
    below = np.searchsorted(others, scores[truth], "left")
    upto = np.searchsorted(others, scores[truth], "right")
    return float((below + upto).mean() / 2 / len(others))


def reliability(chances: Sequence[float], truth: Sequence[bool], bins: int = 15) -> list[Bin]:
    """Bins of equal width that hold anything, in order."""
    p, y = np.asarray(chances, float), np.asarray(truth, float)
    places = np.minimum((p * bins).astype(int), bins - 1)
    found: list[Bin] = []
    for place in range(bins):
        rows = places == place
        if rows.any():
            found.append(Bin(int(rows.sum()), float(p[rows].mean()), float(y[rows].mean())))
    return found


def calibration_error(chances: Sequence[float], truth: Sequence[bool], bins: int = 15) -> float:
    """Expected calibration error: the bins' mean gap, weighed by their counts (Guo et al., arXiv
    1706.04599, section 2; 15 bins as there).

    >>> calibration_error([0.8] * 5, [True] * 4 + [False])
    0.0
    """
    found = reliability(chances, truth, bins)
    gap = sum(each.count * abs(each.predicted - each.actual) for each in found)
    return round(gap / max(len(chances), 1), 12)

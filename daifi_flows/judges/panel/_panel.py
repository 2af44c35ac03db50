"""The panel: every judge's features, and one probability from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from daifi_flows.cnft import PPM, Content
from daifi_flows.judges.panel._embedding import EmbeddingJudge
from daifi_flows.judges.panel._exact import ExactJudge
from daifi_flows.judges.panel._judge import Embed, Judge, comparable
from daifi_flows.judges.panel._negation import NegationJudge
from daifi_flows.judges.panel._numbers import NumbersJudge

__all__ = ["JUDGES", "PRIORS", "LogisticMap", "Opinion", "Panel"]

JUDGES: Final[tuple[Judge, ...]] = (
    ExactJudge(),
    NumbersJudge(),
    NegationJudge(),
    EmbeddingJudge(),
)
"""Adding a judge is adding a file and a line here (and a weight below)."""


@dataclass(frozen=True)
class LogisticMap:
    """``P(claim ≈ committee) = 1 / (1 + exp(−(bias + Σ weight·feature)))``.

    A feature that is NaN takes its value from ``unknown``: the least favourable one.
    """

    bias: float
    weights: Mapping[str, float]
    unknown: Mapping[str, float] = field(default_factory=lambda: {})

    def logit(self, features: Mapping[str, float]) -> float:
        """Log-odds, natural logarithm."""
        logit = self.bias
        for name, weight in self.weights.items():
            value = features.get(name, math.nan)
            if not math.isfinite(value):
                value = self.unknown.get(name, 0.0)
            logit += weight * min(max(value, 0.0), 1.0)
        return logit


PRIORS: Final = LogisticMap(
    bias=-6.0,
    weights={
        "cosine": 8.0,
        "normalised": 8.0,
        "exact": 4.0,
        "numbers_differ": -8.0,
        "polarity_differs": -10.0,
    },
    unknown={"cosine": 0.5},
)
"""Uncalibrated priors, chosen by hand and not fitted to data. They encode three beliefs:

* cosine alone never accepts: its best logit is −6 + 8 = 2, a probability of 0.88. Free text that
  is not the committee's own words up to spelling stays unproven until a calibrated map replaces
  this one;
* the same text up to spelling accepts, with any cosine of at least 0.33 (logit ≥ 4.6, 0.99);
* a different number or a turned polarity contradicts, at any cosine (logit ≤ −6, 0.0025).

An unknown cosine counts as 0.5: it neither accuses an unreadable model nor vouches for a text.
"""


@dataclass(frozen=True)
class Opinion:
    """What the panel thinks of one claim.

    Attributes:
        probability_ppm: that the claim says the same as the committee's re-execution.
        log_odds: the same, natural logarithm of the odds.
        features: each judge's numbers, NaN for what could not be computed.
    """

    probability_ppm: int
    log_odds: float
    features: Mapping[str, float]

    def describe(self) -> str:
        """One line for the vote's reason."""
        features = self.features
        if features.get("exact") == 1.0:
            return "judges: identical"
        cosine = features.get("cosine", math.nan)
        return "judges: " + ", ".join(
            [
                "same text" if features.get("normalised") == 1.0 else "different text",
                "numbers differ" if features.get("numbers_differ") else "numbers agree",
                "polarity differs" if features.get("polarity_differs") else "polarity agrees",
                f"cosine {cosine:.3f}" if math.isfinite(cosine) else "cosine unknown",
            ]
        )


@dataclass(frozen=True)
class Panel:
    """All judges and the map from their features to a probability.

    >>> same = Panel().compare(Content.text("4", bytes(32)), Content.text(" 4", bytes(32)), None)
    >>> same.features["normalised"], same.features["numbers_differ"]
    (1.0, 0.0)
    """

    judges: Sequence[Judge] = JUDGES
    map: LogisticMap = PRIORS

    def compare(self, claimed: Content, expected: Content, embed: Embed | None) -> Opinion:
        """Judge what a node claims against what the committee got. Never raises for content.

        Args:
            embed: unit-norm sentence embeddings, or none when no model is at hand.
        """
        left, right = comparable(claimed), comparable(expected)
        features: dict[str, float] = {}
        for judge in self.judges:
            features.update(judge.features(left, right, embed))
        logit = self.map.logit(features)
        return Opinion(int(PPM / (1.0 + math.exp(-logit))), logit, features)

"""The panel: every judge's features, and one probability from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from daifi_flows.cnft import PPM, Content
from daifi_flows.errors import EncodingError
from daifi_flows.judges.panel._embedding import EmbeddingJudge
from daifi_flows.judges.panel._entities import EntitiesJudge
from daifi_flows.judges.panel._exact import ExactJudge
from daifi_flows.judges.panel._judge import Judge, Senses, comparable
from daifi_flows.judges.panel._likelihood import LikelihoodJudge
from daifi_flows.judges.panel._llm import LlmJudge
from daifi_flows.judges.panel._map import FEATURES, LogisticMap, shipped_map
from daifi_flows.judges.panel._negation import NegationJudge
from daifi_flows.judges.panel._numbers import NumbersJudge
from daifi_flows.judges.panel._roles import RolesJudge
from daifi_flows.judges.panel._structure import StructureJudge, is_json, prose
from daifi_flows.judges.panel._tensor import MAX_RELATIVE_ERROR, MIN_COSINE, TensorJudge
from daifi_flows.judges.panel._text import TextJudge

__all__ = ["JUDGES", "UNKNOWN", "Opinion", "Panel", "decode_features", "weigh"]

JUDGES: Final[tuple[Judge, ...]] = (
    ExactJudge(),
    StructureJudge(),
    TextJudge(),
    NumbersJudge(),
    EntitiesJudge(),
    RolesJudge(),
    NegationJudge(),
    TensorJudge(),
    EmbeddingJudge(),
    LikelihoodJudge(),
    LlmJudge(),
)
"""Adding a judge is adding a file, a line here, and its features to ``FEATURES``."""

UNKNOWN: Final = PPM + 1
"""What stands for NaN where features travel as integers."""

SAME_TEXT_PPM: Final = 999_000
"""For the same words up to case, spaces and Unicode form, and for tensors within the tolerances: a
rule, not a measurement. It is not certainty, because a capital can be a name."""

APART_PPM: Final = 1_000
"""For what cannot say the same: another type, unreadable bytes, tensors out of tolerance."""

CLOSED_EYES_PPM: Final = 500_000
"""Most that the panel says where a judge it relies on saw nothing, or the language model found a
difference: enough to accuse nobody, too little to accept."""

DIFFERENT_PPM: Final = 980_000
"""Most that the panel says where a judge of facts found a difference. Likeness in everything else
may explain it (a near tie of the sampler can fall on a number), but not vouch for it."""

_FACTS: Final = ("numbers_differ", "names_differ", "polarity_differs", "roles_differ", "disguised")

_MOST_LOG_ODDS: Final = math.log(PPM)


@dataclass(frozen=True)
class Opinion:
    """What the panel thinks of one claim.

    Attributes:
        probability_ppm: that the claim says the same as the committee's re-execution.
        log_odds: the same, natural logarithm of the odds, within ±ln 1,000,000.
        features: each judge's numbers, NaN for what could not be computed.
        fitted: whether the fitted model gave the probability, and not a rule.
    """

    probability_ppm: int
    log_odds: float
    features: Mapping[str, float]
    fitted: bool = False

    @property
    def encoded(self) -> tuple[int, ...]:
        """The features in ppm, in the order of ``FEATURES``; :data:`UNKNOWN` stands for NaN."""
        found: list[int] = []
        for name in FEATURES:
            value = self.features.get(name, math.nan)
            found.append(
                round(PPM * min(max(value, 0.0), 1.0)) if math.isfinite(value) else UNKNOWN
            )
        return tuple(found)

    def describe(self) -> str:
        """One line for the vote's reason."""
        features = self.features
        if features.get("exact") == 1.0:
            return "judges: identical"
        if features.get("normalised") == 1.0:
            return "judges: same text"
        said = [f"judges: {self.probability_ppm / PPM:.1%} the same"]
        said += [
            words
            for name, words in _SAID.items()
            if features.get(name, 0.0) > 0  # false for NaN
        ]
        cosine, head = features.get("cosine", math.nan), features.get("head", math.nan)
        if math.isfinite(cosine):
            said.append(f"cosine {cosine:.3f}, head {head:.3f}")
        elif math.isfinite(error := features.get("tensor_error", math.nan)):
            said.append(f"relative error {error:.2g}")
        else:
            said.append("cosine unknown")
        return ", ".join(said)


_SAID: Final = {
    "numbers_differ": "numbers differ",
    "units_differ": "units differ",
    "names_differ": "names differ",
    "disguised": "letters in disguise",
    "roles_differ": "roles may be exchanged",
    "polarity_differs": "polarity differs",
    "structure_differs": "structure differs",
}


def decode_features(encoded: Sequence[int]) -> dict[str, float]:
    """The features in :attr:`Opinion.encoded`, for reports; empty when a panel saw nothing.

    Raises:
        EncodingError: there are not as many as features, or one is not ppm or :data:`UNKNOWN`.
    """
    if not encoded:
        return {}
    if len(encoded) != len(FEATURES) or not all(
        type(each) is int and 0 <= each <= UNKNOWN for each in encoded
    ):
        raise EncodingError(f"a panel's features are {len(FEATURES)} numbers of ppm")
    return {
        name: math.nan if value == UNKNOWN else value / PPM
        for name, value in zip(FEATURES, encoded, strict=True)
    }


@dataclass(frozen=True)
class Panel:
    """All judges and the map from their features to a probability.

    Args:
        map: the one that ships by default.

    >>> same = Panel().compare(Content.text("4", bytes(32)), Content.text(" 4", bytes(32)))
    >>> same.features["normalised"], same.features["numbers_differ"]
    (1.0, 0.0)
    """

    judges: Sequence[Judge] = JUDGES
    map: LogisticMap | None = None

    def compare(self, claimed: Content, expected: Content, senses: Senses | None = None) -> Opinion:
        """Judge what a node claims against what the committee got. Never raises for content.

        Models are asked only where the texts differ by more than spelling.
        """
        left, right = comparable(claimed), comparable(expected)
        if left.same_bytes(right):
            return _opinion(_MOST_LOG_ODDS, {"exact": 1.0, "normalised": 1.0})
        features: dict[str, float] = {}
        for judge in self.judges:
            if features.get("normalised") == 1.0:
                senses = None  # models could only confirm
            features.update(judge.features(left, right, senses or Senses()))
            if judge.name == "structure" and features["structure_differs"] == 0.0:
                left, right = prose(left), prose(right)  # the blocks are equal
        if math.isfinite(error := features.get("tensor_error", math.nan)):
            near = error <= MAX_RELATIVE_ERROR and features["tensor_cosine"] >= MIN_COSINE
            return _opinion(_log_odds(SAME_TEXT_PPM if near else APART_PPM), features)
        if left.media_type != right.media_type or not (left.readable and right.readable):
            return _opinion(_log_odds(APART_PPM), features)
        equal_json = features.get("structure_differs") == 0.0 and is_json(left) and is_json(right)
        if features.get("normalised") == 1.0 or equal_json:
            plain = features.get("disguised") == 0.0
            return _opinion(_log_odds(SAME_TEXT_PPM if plain else CLOSED_EYES_PPM), features)
        return weigh(features, self.map or shipped_map())


def weigh(features: Mapping[str, float], fitted: LogisticMap) -> Opinion:
    """The opinion that the fitted model gives, within the panel's own limits to it."""
    logit = fitted.logit(features)
    blind = any(not math.isfinite(features.get(name, math.nan)) for name in _NEEDED)
    if blind or features.get("llm", 1.0) <= 0.5:  # false for NaN: it was not asked
        return _opinion(min(logit, _log_odds(CLOSED_EYES_PPM)), features)
    if any(features[name] > 0 for name in _FACTS):
        logit = min(logit, _log_odds(DIFFERENT_PPM))
    return _opinion(logit, features, fitted=True)


_NEEDED: Final = ("words", "names_differ", "negations_differ", "roles_differ", "cosine", "head")


def _log_odds(ppm: int) -> float:
    return math.log(ppm / (PPM - ppm))


def _opinion(logit: float, features: Mapping[str, float], *, fitted: bool = False) -> Opinion:
    logit = min(max(logit, -_MOST_LOG_ODDS), _MOST_LOG_ODDS)
    ppm = PPM if features.get("exact") == 1.0 else round(PPM / (1.0 + math.exp(-logit)))
    return Opinion(ppm, logit, features, fitted)

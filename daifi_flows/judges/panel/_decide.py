"""How a verdict and the panel's opinion become a seat's decision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from daifi_flows.cnft import PPM, VoteChoice
from daifi_flows.judges.panel._panel import Opinion
from daifi_flows.proofs import Outcome, Verdict

__all__ = ["Finding", "combined_ppm", "decide"]

SCHEME_LOG_ODDS: Final = math.log(0.999 / 0.001)
"""Most that a scheme's confidence may weigh against the panel: evidence of up to 1,000 to 1 against
the node still counts as valid (:data:`daifi_flows.proofs.evidence.ACCEPT`)."""

MAX_REASON: Final = 200
"""Characters, as votes carry them."""

_TURNED: Final = ("polarity_differs", "disguised")
"""No proof outweighs these: a near tie fell on a denial in 1 of the 900 honest answers, and never
on a letter in disguise."""


@dataclass(frozen=True)
class Finding:
    """What a seat decided, before it is bound to the seat's number.

    Attributes:
        confidence_ppm: how sure the seat is *of its decision* (of a reject: that the claim is
            wrong), 0 for an abstention.
    """

    decision: VoteChoice
    confidence_ppm: int
    reason: str


def decide(verdict: Verdict, opinion: Opinion | None, min_confidence_ppm: int) -> Finding:
    """A seat's decision.

    * ``INVALID`` rejects with the verdict's reason; ``CANNOT_TELL`` abstains, whatever the panel
      says: words that look alike prove nothing about the model that wrote them.
    * ``VALID`` accepts when :func:`combined_ppm` reaches the threshold, and else abstains: the
      panel may withhold a payment, but not have a node slashed.

    Args:
        opinion: of the panel; absent when the scheme re-executed nothing comparable.
    """
    if verdict.outcome is Outcome.INVALID:
        sure = min(max(PPM - verdict.confidence_ppm, 0), PPM)
        return Finding(VoteChoice.REJECT, sure, _short(verdict.reason))
    if verdict.outcome is not Outcome.VALID:
        return Finding(VoteChoice.ABSTAIN, 0, _short(verdict.reason))
    reason = verdict.reason if opinion is None else f"{opinion.describe()}; {verdict.reason}"
    confidence = combined_ppm(verdict, opinion)
    if confidence >= min_confidence_ppm:
        return Finding(VoteChoice.ACCEPT, confidence, _short(reason))
    return Finding(
        VoteChoice.ABSTAIN,
        0,
        _short(f"confidence {confidence} ppm is under {min_confidence_ppm} ppm: {reason}"),
    )


def combined_ppm(verdict: Verdict, opinion: Opinion | None) -> int:
    """Confidence from a ``VALID`` verdict and the panel's opinion of the difference it left.

    A panel that finds likeness leaves the scheme's confidence as it is, contrary log-odds are added
    to the scheme's. A denial turned, or a letter in disguise, leaves no more than the panel's own
    probability. The panel knows how likely the model finds each token
    (:func:`~daifi_flows.judges.panel.likelihood_of`), so a near tie that fell on a number or a name
    does not look contrary: of 900 honest answers whose proof is valid, 899 are accepted at 0.99
    (``python -m benchmarks judges``).
    """
    own = min(max(verdict.confidence_ppm, 0), PPM)
    if opinion is None:
        return own
    if any(opinion.features.get(name, 0.0) > 0 for name in _TURNED):  # false for NaN
        own = min(own, opinion.probability_ppm)
    if opinion.log_odds >= 0:
        return own
    likely = min(max(own, 1), PPM - 1)
    scheme = min(math.log(likely / (PPM - likely)), SCHEME_LOG_ODDS)
    return min(own, int(PPM / (1.0 + math.exp(-(scheme + opinion.log_odds)))))


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"

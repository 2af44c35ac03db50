"""How a verdict and the panel's opinion become a seat's decision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from daifi_flows.cnft import PPM, VoteChoice
from daifi_flows.judges.panel._panel import Opinion
from daifi_flows.proofs import Outcome, Verdict

__all__ = ["Finding", "combined_ppm", "decide"]

CONTRARY_WEIGHT: Final = 0.3
"""How much the panel's contrary log-odds count beside a ``VALID`` verdict. A scheme that answers
``VALID`` has measured every difference and found it to be rounding (token-difr: each differing
token is a near tie), which explains most of what the panel sees. An uncalibrated prior: a changed
number passes only at the smallest near ties, a turned polarity and a different text never."""

SCHEME_LOG_ODDS: Final = math.log(0.999 / 0.001)
"""Most that a scheme's confidence may weigh against the panel."""


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

    * ``INVALID`` rejects with the verdict's reason; ``CANNOT_TELL`` abstains.
    * ``VALID`` accepts when :func:`combined_ppm` reaches the threshold, and else abstains: while
      the panel's map is not calibrated it may withhold a payment but not have a node slashed.

    Args:
        opinion: of the panel; absent when the scheme re-executed nothing comparable.
    """
    if verdict.outcome is Outcome.INVALID:
        sure = min(max(PPM - verdict.confidence_ppm, 0), PPM)
        return Finding(VoteChoice.REJECT, sure, _short(verdict.reason))
    if verdict.outcome is not Outcome.VALID:
        return Finding(VoteChoice.ABSTAIN, 0, _short(verdict.reason))
    reason = verdict.reason if opinion is None else f"{verdict.reason}; {opinion.describe()}"
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

    A panel that finds likeness leaves the scheme's confidence as it is: words that look alike
    cannot vouch for a proof. Contrary log-odds are added to the scheme's, weighed by
    :data:`CONTRARY_WEIGHT`.
    """
    own = min(max(verdict.confidence_ppm, 0), PPM)
    if opinion is None or opinion.log_odds >= 0:
        return own
    likely = min(max(own, 1), PPM - 1)
    scheme = min(math.log(likely / (PPM - likely)), SCHEME_LOG_ODDS)
    total = scheme + CONTRARY_WEIGHT * opinion.log_odds
    return min(own, int(PPM / (1.0 + math.exp(-total))))


def _short(text: str) -> str:
    return text if len(text) <= 500 else text[:499] + "…"

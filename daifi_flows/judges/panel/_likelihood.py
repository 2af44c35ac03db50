"""Judge: how likely the committee's own model finds the claimed text, beside its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from daifi_flows.cnft import Content
from daifi_flows.errors import DaifiError
from daifi_flows.judges.panel._judge import Comparable, Likelihood, Senses, comparable
from daifi_flows.proofs import Verdict

__all__ = ["LikelihoodJudge", "likelihood_of"]

_FLOOR: Final = -30.0
"""Nats a token; less is no different from impossible."""


class LikelihoodJudge:
    """``likelihood``: geometric mean of the claimed tokens' probabilities over that of the
    committee's own, at most 1. ``surprise``: how much less likely the claim's least likely token
    is than the committee's least likely one, as ``1 − ratio``.

    The mean says whether the model could have written this; the least likely token shows one
    word put in another's place. Both are NaN without a model.
    """

    name: ClassVar[str] = "likelihood"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        if claimed.same_bytes(expected):
            return {"likelihood": 1.0, "surprise": 0.0}
        left = right = None
        if senses.likelihood is not None and claimed.readable and expected.readable:
            left = _scores(claimed.text, senses.likelihood)
            right = _scores(expected.text, senses.likelihood)
        if left is None or right is None:
            return {"likelihood": math.nan, "surprise": math.nan}
        mean = sum(left) / len(left) - sum(right) / len(right)
        least = min(left) - min(right)
        return {"likelihood": math.exp(min(mean, 0.0)), "surprise": 1 - math.exp(min(least, 0.0))}


def likelihood_of(verdict: Verdict, claimed: Content) -> Likelihood | None:
    """What the verification of ``claimed`` has found of its tokens and of the committee's own.

    Args:
        verdict: with the re-executed content.
    """
    if verdict.scores is None or verdict.reexecuted is None:
        return None
    told = {
        comparable(verdict.reexecuted).text: verdict.scores.own,
        comparable(claimed).text: verdict.scores.claimed,
    }
    return lambda text: told.get(text, ())


def _scores(text: str, likelihood: Likelihood) -> Sequence[float] | None:
    try:
        found = [min(max(float(each), _FLOOR), 0.0) for each in likelihood(text)]
    except (DaifiError, TypeError, ValueError, OverflowError, RuntimeError, OSError):
        return None
    return found if found and all(math.isfinite(each) for each in found) else None

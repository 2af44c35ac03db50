"""Judge: the same text up to spelling, and how many words both sides share."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.judges.panel._judge import Comparable, Senses, normalised

__all__ = ["TextJudge"]

PPM_TOLERANCE: Final = 2_000
"""How far two machines' scores may differ, as in ``proofs``: bfloat16 kernels differ so much."""

FLOAT_TOLERANCE: Final = 1e-6
"""Relative, and absolute below 1, as in ``proofs``."""


class TextJudge:
    """``normalised``: 1 when the texts are equal up to case, spaces and Unicode form, and every
    measured quantity agrees within the tolerance of the ``digest`` scheme. ``words``: the words
    both sides have over all words, as multisets (Jaccard). ``length``: the shorter text's number of
    words over the longer one's."""

    name: ClassVar[str] = "text"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        if not (claimed.readable and expected.readable):
            return {"normalised": 0.0, "words": math.nan, "length": math.nan}
        left, right = normalised(claimed.whole), normalised(expected.whole)
        same = (
            claimed.media_type == expected.media_type
            and left == right
            and close(claimed.measures, expected.measures)
        )
        if left == right:
            return {"normalised": float(same), "words": 1.0, "length": 1.0}
        one, other = (Counter(re.findall(r"\w+", text)) for text in (left, right))
        total = sum((one | other).values())
        longest = max(one.total(), other.total())
        return {
            "normalised": float(same),
            "words": sum((one & other).values()) / total if total else 0.0,
            "length": min(one.total(), other.total()) / longest if longest else 0.0,
        }


def close(claimed: Mapping[str, int | float], expected: Mapping[str, int | float]) -> bool:
    """Whether the same quantities were measured, each within its tolerance."""
    return claimed.keys() == expected.keys() and all(
        _near(value, expected[path]) for path, value in claimed.items()
    )


def _near(one: int | float, other: int | float) -> bool:
    if isinstance(one, int) and isinstance(other, int):
        return abs(one - other) <= PPM_TOLERANCE
    try:
        return math.isclose(one, other, rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE)
    except OverflowError:  # an integer beyond every float is near none
        return False

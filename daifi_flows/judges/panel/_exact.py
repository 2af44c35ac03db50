"""Judge: the same bytes, or the same text up to spelling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.judges.panel._judge import Comparable, Embed, normalised

__all__ = ["ExactJudge"]

PPM_TOLERANCE: Final = 2_000
"""How far two machines' scores may differ, as in ``proofs``: bfloat16 kernels differ so much."""

FLOAT_TOLERANCE: Final = 1e-6
"""Relative, and absolute below 1, as in ``proofs``."""


class ExactJudge:
    """``exact``: 1 when type and bytes are equal. ``normalised``: 1 when the texts are equal up to
    case, spaces and Unicode form, and every measured quantity agrees within the tolerance of the
    ``digest`` scheme."""

    name: ClassVar[str] = "exact"

    def features(
        self, claimed: Comparable, expected: Comparable, embed: Embed | None
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del embed
        if claimed.media_type != expected.media_type:
            return {"exact": 0.0, "normalised": 0.0}
        if claimed.raw == expected.raw:
            return {"exact": 1.0, "normalised": 1.0}
        same = (
            claimed.readable
            and expected.readable
            and normalised(claimed.whole) == normalised(expected.whole)
            and _close(claimed.measures, expected.measures)
        )
        return {"exact": 0.0, "normalised": float(same)}


def _close(claimed: Mapping[str, int | float], expected: Mapping[str, int | float]) -> bool:
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

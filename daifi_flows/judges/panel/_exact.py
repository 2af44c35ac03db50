"""Judge: the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from daifi_flows.judges.panel._judge import Comparable, Senses

__all__ = ["ExactJudge"]


class ExactJudge:
    """``exact``: 1 when type and bytes are equal."""

    name: ClassVar[str] = "exact"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        return {"exact": float(claimed.same_bytes(expected))}

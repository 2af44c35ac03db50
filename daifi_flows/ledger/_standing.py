"""What a node has shown so far: judged executions and verified work, fading with time."""

from __future__ import annotations

from typing import Final, Self

from daifi_flows.cnft import Noun, Uint
from daifi_flows.ledger._economics import EVIDENCE_ONE, decayed, reputation_ppm

__all__ = ["Standing"]

_LIMIT: Final = 2**63 - 1


class Standing(Noun):
    """Evidence as of ``at_ms``; it halves every half-life (white paper 2.3, Bayesian-updated).

    Attributes:
        accepted_e6: accepted executions, in millionths of one.
        rejected_e6: rejected executions, in millionths of one.
        mflop: work of accepted executions, megaFLOP.
        at_ms: when the three were last brought up to date, Unix milliseconds.
    """

    accepted_e6: Uint = 0
    rejected_e6: Uint = 0
    mflop: Uint = 0
    at_ms: Uint = 0

    @property
    def reputation_ppm(self) -> int:
        """Mean of the Beta posterior, as of ``at_ms``."""
        return reputation_ppm(self.accepted_e6, self.rejected_e6)

    def at(self, now_ms: int, half_life_ms: int) -> Self:
        """Brought up to ``now_ms``, rounded down; unchanged for a time before ``at_ms``."""
        elapsed = now_ms - self.at_ms
        if elapsed <= 0:
            return self
        if not (self.accepted_e6 or self.rejected_e6 or self.mflop):
            return type(self)(at_ms=now_ms)
        accepted, rejected, mflop = decayed(
            (self.accepted_e6, self.rejected_e6, self.mflop), elapsed, half_life_ms
        )
        return type(self)(accepted_e6=accepted, rejected_e6=rejected, mflop=mflop, at_ms=now_ms)

    def with_accepted(self, mflop: int) -> Self:
        """With one accepted execution more, and its work."""
        update = {
            "accepted_e6": min(self.accepted_e6 + EVIDENCE_ONE, _LIMIT),
            "mflop": min(self.mflop + mflop, _LIMIT),
        }
        return self.model_copy(update=update)

    def with_rejected(self) -> Self:
        """With one rejected execution more."""
        return self.model_copy(update={"rejected_e6": min(self.rejected_e6 + EVIDENCE_ONE, _LIMIT)})

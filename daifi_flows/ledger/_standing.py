"""What a node or a seat has shown so far, fading with time."""

from __future__ import annotations

from typing import Final, Self

from daifi_flows.cnft import PPM, Noun, Uint
from daifi_flows.ledger._economics import EVIDENCE_ONE, decayed, reputation_ppm

__all__ = ["SeatStanding", "Standing"]

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


class SeatStanding(Noun):
    """What an account has done on the committee, as of ``at_ms``; it fades like a node's
    :class:`Standing`, and is kept apart from it.

    Attributes:
        served_e6: findings it signed that settled or rejected an execution, in millionths of one.
        missed_e6: such findings that carry no signature of it, each for the part of one that
            ``committee.missed_ppm`` says, in millionths of one.
        at_ms: when both were last brought up to date, Unix milliseconds.
    """

    served_e6: Uint = 0
    missed_e6: Uint = 0
    at_ms: Uint = 0

    @property
    def reputation_ppm(self) -> int:
        """Mean of the Beta posterior, as of ``at_ms``; one half without any evidence."""
        return reputation_ppm(self.served_e6, self.missed_e6)

    def at(self, now_ms: int, half_life_ms: int) -> Self:
        """Brought up to ``now_ms``, rounded down; unchanged for a time before ``at_ms``."""
        elapsed = now_ms - self.at_ms
        if elapsed <= 0:
            return self
        if not (self.served_e6 or self.missed_e6):
            return type(self)(at_ms=now_ms)
        served, missed = decayed((self.served_e6, self.missed_e6), elapsed, half_life_ms)
        return type(self)(served_e6=served, missed_e6=missed, at_ms=now_ms)

    def with_served(self) -> Self:
        """With one finding more that it signed."""
        return self.model_copy(update={"served_e6": min(self.served_e6 + EVIDENCE_ONE, _LIMIT)})

    def with_missed(self, part_ppm: int) -> Self:
        """With one finding more that it did not sign, which counts ``part_ppm`` of one."""
        missed = self.missed_e6 + EVIDENCE_ONE * part_ppm // PPM
        return self.model_copy(update={"missed_e6": min(missed, _LIMIT)})

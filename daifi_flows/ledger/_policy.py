"""Parameters of governance itself, of what the committee may accept, and of sealed transactions."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from daifi_flows.cnft import PPM, Noun, Ppm, Wei

__all__ = ["CommitteeParams", "GovernanceParams", "SealedParams"]

_SECOND_MS: Final = 1_000
_MINUTE_MS: Final = 60 * _SECOND_MS
_DAY_MS: Final = 24 * 60 * _MINUTE_MS


class GovernanceParams(Noun):
    """How stakeholders decide (white paper 5).

    Attributes:
        deposit_wei: held while a proposal is open; lost when it does not reach its quorum.
        voting_ms: how long stakes can vote.
        timelock_ms: how long between the end of the vote and its execution: who disagrees can
            leave in that time.
        quorum_ppm: part of all stake that must have voted, abstentions included. At most a half:
            stakes that never vote must not be able to end all governance, and with it every way
            to lower the quorum again.
        turnout_ppm: the same, as a part of all money there is: where little is staked, a quorum
            of the stake alone would be cheap to buy. 4 % is what token votes commonly ask for
            (Compound, Uniswap).
        majority_ppm: part of the stake for and against that must be exceeded by the stake for.
        whitelist_only: 1: only tasks on models that governance allowed can be opened.
    """

    deposit_wei: Annotated[Wei, Field(ge=1, le=10**24)] = 10 * 10**18
    voting_ms: Annotated[int, Field(ge=_MINUTE_MS, le=30 * _DAY_MS, strict=True)] = 3 * _DAY_MS
    timelock_ms: Annotated[int, Field(ge=_MINUTE_MS, le=30 * _DAY_MS, strict=True)] = _DAY_MS
    quorum_ppm: Annotated[int, Field(ge=PPM // 100, le=PPM // 2, strict=True)] = PPM // 5
    turnout_ppm: Annotated[int, Field(ge=PPM // 100, le=PPM // 5, strict=True)] = 40_000
    majority_ppm: Annotated[int, Field(ge=PPM // 2, le=9 * PPM // 10, strict=True)] = PPM // 2
    whitelist_only: Annotated[int, Field(ge=0, le=1, strict=True)] = 0


class CommitteeParams(Noun):
    """What tasks may ask of the committee, and how it changes.

    Attributes:
        min_confidence_ppm: the least confidence in an accepted output that a task may ask for.
        max_attempts: the most nodes that a task may try one after another.
        epoch_ms: how long a committee is in office before the next can be drawn.
        redraw_ms: how long after a roll was closed it may be closed anew, when no handover came;
            twice as long each further time, up to 64 times.
        grace_ms: how long the findings of a committee count after it left.
        min_pledge_wei: least stake that a candidate pledges.
        operator_seats: most seats of one operator, as long as others can fill them; and never
            more than the Byzantine seats that the committee stands.
        missed_ppm: what a finding that a seat did not sign weighs against it, as a part of one
            that it signed. Little: a signature that comes late is lost too.
    """

    min_confidence_ppm: Annotated[int, Field(ge=0, le=999_999, strict=True)] = 0
    max_attempts: Annotated[int, Field(ge=1, le=16, strict=True)] = 16
    epoch_ms: Annotated[int, Field(ge=_SECOND_MS, le=365 * _DAY_MS, strict=True)] = _DAY_MS
    redraw_ms: Annotated[int, Field(ge=_SECOND_MS, le=30 * _DAY_MS, strict=True)] = 60 * _MINUTE_MS
    grace_ms: Annotated[int, Field(ge=0, le=_DAY_MS, strict=True)] = 60 * _MINUTE_MS
    min_pledge_wei: Annotated[Wei, Field(ge=10**12, le=10**24)] = 10 * 10**18
    operator_seats: Annotated[int, Field(ge=1, le=63, strict=True)] = 3
    missed_ppm: Ppm = 100_000


class SealedParams(Noun):
    """When and how transactions are committed to before they are shown.

    Attributes:
        over_wei: a task with a higher price than this must be opened sealed.
        deposit_wei: held for a commitment; lost when it is never revealed.
        max_ms: longest time between commitment and reveal.
    """

    over_wei: Annotated[Wei, Field(ge=10**18, le=10**36)] = 1_000 * 10**18
    deposit_wei: Annotated[Wei, Field(ge=1, le=10**24)] = 10**17
    max_ms: Annotated[int, Field(ge=_SECOND_MS, le=_DAY_MS, strict=True)] = 60 * _MINUTE_MS

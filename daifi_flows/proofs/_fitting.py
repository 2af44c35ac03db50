"""From honest generations to a rounding that holds on others, and what it would catch of cheats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from daifi_flows.errors import ModelError
from daifi_flows.proofs._rounding import Choices, fit
from daifi_flows.proofs.calibration import Rounding
from daifi_flows.proofs.evidence import ACCEPT, ALPHA, log_evidence

__all__ = ["fit_rounding", "join", "tokens_to_catch"]

WIDENINGS: Final = (1.25, 1.5, 2.0, 3.0)
"""Factors on the fitted scales, tried in turn: what other processors and kernels may add."""


def fit_rounding(honest: Sequence[Choices]) -> tuple[Rounding, float]:
    """The rounding of honest generations, and their largest evidence against themselves.

    Each half of the generations is judged by the rounding fitted to the other half. The fit is
    widened until that evidence stays under the square root of the limit for a valid answer.

    Returns:
        The rounding fitted to all, and the largest held-out log-evidence.

    Raises:
        ModelError: no widening is enough: these generations are not of one model, or not honest.
    """
    halves = (honest[::2], honest[1::2])
    worst = math.inf
    for widen in WIDENINGS:
        fitted = [fit(half, widen=widen) for half in halves]
        worst = max(
            log_evidence(each, rounding)
            for rounding, other in zip(fitted, reversed(halves), strict=True)
            for each in other
        )
        if worst <= math.log(ACCEPT) / 2:
            return fit(honest, widen=widen), worst
    raise ModelError(
        f"honest generations differ from the verifier by more than rounding (evidence "
        f"10^{worst / math.log(10):.1f} against one): is every engine running the same weights?"
    )


def join(many: Sequence[Choices]) -> Choices:
    """Several answers of one node as one: evidence over them all."""
    return Choices(
        np.concatenate([each.gaps for each in many]),
        np.concatenate([each.noise for each in many]),
        np.concatenate([each.levels for each in many]),
        np.concatenate([each.edges for each in many]),
        np.concatenate([each.places for each in many]),
        np.concatenate([each.claimed for each in many]),
        np.concatenate([each.claimed_levels for each in many]),
        np.concatenate([each.margins for each in many]),
        [token for each in many for token in each.best],
    )


def tokens_to_catch(many: Sequence[Choices], rounding: Rounding) -> int | None:
    """About how many tokens of this node convict it at the limit ``1/α``, over however many
    answers; ``None`` when its tokens give no evidence."""
    together = join(many)
    gained = log_evidence(together, rounding)
    if gained == math.inf:
        return 1
    if gained <= 1.0:
        return None
    return max(1, math.ceil(-math.log(ALPHA) * len(together) / gained))

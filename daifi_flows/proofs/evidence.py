"""From scores to a finding: how much more likely a cheat makes the claimed tokens than honesty.

Under the honest hypothesis the tokens follow the calibrated likelihood ``P`` of
:mod:`~daifi_flows.proofs._rounding`. An alternative ``(s, ε)`` says that a share ``ε`` of the
tokens follows ``Q_s``, the same law at a larger scale ``s`` (other weights, seed, prompt, an edit),
and the rest ``P``; a few more say that all follow it at another temperature. The evidence is the
e-value

    E = Σ_k w_k Π_t ((1 − ε_k) + ε_k·Q_{s_k}(v_t)/P(v_t)),

a mixture of likelihood ratios: its expectation under honesty is at most 1 whatever the logits, the
number of tokens and when one stops looking, so that ``P(E ≥ 1/α) ≤ α`` (Ville 1939; Ramdas et al.,
arXiv 2210.01948, section 3). Evidence from several answers of one node multiplies: logarithms add.

Measured by ``daifi calibrate smollm2-135m-instruct --engine vllm`` and ``… --precision fp32``
(2026-11, two CPU cores; built-in prompts, answers of up to 96 tokens, greedy, temperatures 0.7 and
1, and 0.8 with top-k 50 and top-p 0.95; the verifier computes in the claimed precision). Evidence
is the largest of one answer; "by" is how many tokens convict, over however many answers:

==========================  ============  =======  ========  ===================  ==============
the node ran                claim         margin   evidence  valid, invalid of n  convicted by
==========================  ============  =======  ========  ===================  ==============
bf16, in any batch          bf16           0.0018  10^1.1    108, 0 of 108
fp32                        bf16           0.0010  10^-0.1   32, 0 of 32
bf16 on vLLM                bf16           0.0017  10^0.8    60, 0 of 60
int8 per channel            bf16           0.0055  10^2.7    32, 0 of 32          not told
temperature 0.1 higher      bf16           0.024   10^36     6, 8 of 15           175 tokens
int4 in groups of 64        bf16           0.71    10^348    0, 20 of 20          3 tokens
half of the weights pruned  bf16           1.3     10^705    0, 20 of 20          2 tokens
another seed                bf16           1.3     10^863    0, 15 of 15          2 tokens
fp32, in any batch          fp32           0.0000  10^0.0    108, 0 of 108
int8 per channel            fp32           0.0038  10^19     14, 7 of 32          107 tokens
temperature 0.1 higher      fp32           0.018   10^102    2, 13 of 15          23 tokens
int4 in groups of 64        fp32           0.69    10^330    0, 20 of 20          3 tokens
half of the weights pruned  fp32           1.3     10^695    0, 20 of 20          2 tokens
another seed                fp32           1.4     10^879    0, 15 of 15          2 tokens
==========================  ============  =======  ========  ===================  ==============

Seed and temperature say nothing of greedy answers, which those rows leave out. int8 weights round
by as much as bf16 arithmetic does; ``toploc`` tells them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import PPM, Sampling
from daifi_flows.proofs._rounding import (
    HONEST_CUTS,
    REACH,
    SCALES,
    Choices,
    Floats,
    choices,
    likelihoods,
    warmer,
)
from daifi_flows.proofs._scheme import Outcome
from daifi_flows.proofs.calibration import Calibration, Rounding

__all__ = ["ALPHA", "MIN_TOKENS", "UNCALIBRATED", "Finding", "decide", "judge"]

ALPHA: Final = 1e-6
"""Stated false-reject rate: an honest answer is invalid at most this often."""
ACCEPT: Final = 1e3
"""Valid up to this evidence: an honest answer is not valid at most once in as many."""

MIN_TOKENS: Final = 32
"""Without a calibration, fewer tokens than this are never called valid."""
UNCALIBRATED: Final = Rounding(scales=(0.02, 0.08, 0.3), weights=(0.9, 0.09, 0.01))
"""For a model nobody measured: wider than any seen. Too wide to tell int8 weights."""

FACTORS: Final = (1.5, 2.0, 3.0, 4.5, 8.0, 16.0, 32.0, 64.0)
"""How much larger the scales of the alternatives are than the honest ones."""
SHARES: Final = (1.0, 0.1, 0.01)
"""Shares of the alternatives: all tokens, a passage, a word."""
DEGREES: Final = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)
"""Alternatives that add the noise at a temperature off by so much, in all tokens."""
_PRIOR: Final = np.concatenate(
    [0.4 * 2.0 ** -np.arange(1, 9), np.full(16, 0.4 / 16), np.full(len(DEGREES), 0.2 / 6)]
)
"""Weights of the alternatives, share by share, then degrees; their sum is just under 1. Much lies
on cheats in every token at the smallest scales, which need it: large ones show in a few tokens."""

STRAY: Final = 1e-6
STRAY_SCALE: Final = 0.7
"""Added to every rounding: one token in a million at this scale. Bounds what one odd honest token
can weigh: by itself it convicts at three logits and more, ten times the largest margin measured.
"""

_OTHER_CUTS: Final = (0.2, 0.2, 0.2, 0.2, 0.2)

_VALID_FLOOR: Final = 995_000
_UNSURE_CEILING: Final = 980_000
_INVALID_CEILING: Final = 10_000


@dataclass(frozen=True)
class Finding:
    """The decision over one output.

    Attributes:
        log_evidence: natural logarithm of E. Those of several answers of one node add up; their sum
            over ``log(1/α)`` convicts, at the same false-reject rate.
        scale: the scale at which the tokens are most likely, in logits: how far the node's scores
            are from the verifier's.
        mean_margin, largest_margin: how far the claimed tokens' scores lie under the best ones, in
            logits.
        best: the verifier's own choice at each position.
    """

    outcome: Outcome
    confidence_ppm: int
    reason: str
    log_evidence: float
    scale: float
    mean_margin: float
    largest_margin: float
    best: list[int]


def judge(
    logits: NDArray[np.float32],
    tokens: Sequence[int],
    sampling: Sampling,
    calibration: Calibration | None,
    *,
    first: int = 0,
    parts: int = 1,
) -> Finding | None:
    """Were ``tokens`` drawn from ``logits`` ``[tokens, vocab]``, as ``sampling`` says?

    Args:
        calibration: of this model and precision; without one nobody is accused by statistics.
        first: position of the first token in the output.
        parts: how many parts of the output are judged apart, this one among them.

    Returns:
        ``None`` when the logits are unusable: trouble with the verifier's own model.
    """
    found = choices(logits, tokens, sampling, first)
    if found is None:
        return None
    rounding = UNCALIBRATED if calibration is None else calibration.rounding
    calibrated = calibration is not None
    return decide(found, rounding, calibrated=calibrated, first=first, parts=parts)


def log_evidence(found: Choices, rounding: Rounding) -> float:
    """Natural logarithm of E; ``inf`` when a token is impossible."""
    if not np.isfinite(found.claimed).all():
        return math.inf
    honest = _honest(found, rounding)
    ratios = _others(found, rounding) / honest[:, None]  # [tokens, factors]
    terms = [np.log(np.maximum(1 - share + share * ratios, 1e-300)).sum(0) for share in SHARES]
    weights = np.array(rounding.weights)
    for degrees in DEGREES:  # at temperature 0 these are honesty itself
        other = warmer(found, degrees, rounding.scales) @ weights
        terms.append(np.log(np.maximum(other / honest, 1e-300)).sum(keepdims=True))
    flat = np.concatenate(terms)
    top = float(flat.max())
    return top + float(np.log(np.exp(flat - top) @ _PRIOR))


def _others(found: Choices, rounding: Rounding) -> Floats:
    """Probability of each claimed token under each factor, ``[tokens, factors]``."""
    scales = np.outer(FACTORS, rounding.scales)
    each = likelihoods(found, scales.ravel().tolist(), _OTHER_CUTS)
    return each.reshape(len(found), *scales.shape) @ np.array(rounding.weights)


def _honest(found: Choices, rounding: Rounding) -> Floats:
    """Probability of each claimed token under honesty, ``[tokens]``; never 0."""
    scales = (*rounding.scales, STRAY_SCALE)
    weights = np.array([*((1 - STRAY) * np.array(rounding.weights)), STRAY])
    return np.maximum(likelihoods(found, scales, HONEST_CUTS) @ weights, 1e-300)


def decide(
    found: Choices,
    rounding: Rounding,
    *,
    calibrated: bool = True,
    first: int = 0,
    parts: int = 1,
) -> Finding:
    """Valid, invalid or cannot tell, from one output.

    Valid up to evidence 1,000, with confidence falling from 1,000,000 at E ≤ 1 to 995,000; invalid
    from ``1/α``, with confidence at most 10,000; between them confidence falls linearly in log E
    from 980,000. More evidence never gives more confidence. Without a calibration: valid needs
    :data:`MIN_TOKENS`, and only impossible tokens (no finite logit) are invalid.

    Args:
        first: position of the first token in the output, for the reason.
        parts: the output is judged in so many parts, each by itself, and is invalid when one is.
            Both thresholds grow as much: an honest *output* is then invalid no more often than one
            that is judged at once (the sum of the parts' chances bounds that of all).
    """
    count = len(found)
    log_e = log_evidence(found, rounding)
    mean = float(np.minimum(found.margins, REACH).mean())
    worst = int(found.margins.argmax())
    facts = (
        f"mean margin {mean:.4f} over {count} tokens, largest "
        f"{min(float(found.margins[worst]), 9999.0):.2f} at token {first + worst}, evidence "
        f"10^{min(log_e / math.log(10), 9999.0):.1f}"
    )
    low, high = math.log(ACCEPT * parts), math.log(parts / ALPHA)
    if log_e <= low:
        outcome, said = Outcome.VALID, "the tokens are the model's"
        confidence = PPM - (PPM - _VALID_FLOOR) * max(0.0, log_e / low)
    elif log_e < high:
        outcome, said = Outcome.CANNOT_TELL, "the tokens are neither clearly the model's nor not"
        share = (log_e - low) / (high - low)
        confidence = _UNSURE_CEILING - (_UNSURE_CEILING - _INVALID_CEILING) * share
    else:
        outcome, said = Outcome.INVALID, "the tokens are not the model's"
        confidence = _INVALID_CEILING * high / log_e
    if not calibrated and math.isfinite(log_e):
        if outcome is Outcome.VALID and count < MIN_TOKENS:
            outcome, confidence = Outcome.CANNOT_TELL, float(_UNSURE_CEILING)
            said = f"too few tokens for a model without a calibration ({MIN_TOKENS} are needed)"
        elif outcome is Outcome.INVALID:
            outcome = Outcome.CANNOT_TELL
            said = "the tokens look unlike the model's, but it has no calibration"
    return Finding(
        outcome,
        round(confidence),
        f"{said}: {facts}",
        log_e,
        noise(found),
        mean,
        float(found.margins[worst]),
        found.best,
    )


def noise(found: Choices) -> float:
    """The one scale under which the tokens are most likely, of 0.005, 0.01, … 5.12 logits; the
    largest when a token is impossible."""
    scales = (*SCALES, *(SCALES[-1] * 2**step for step in (1, 2, 3)))
    values = np.log(np.maximum(likelihoods(found, scales, _OTHER_CUTS), 1e-300)).sum(0)
    return scales[int(values.argmax())] if np.isfinite(found.claimed).all() else scales[-1]

"""From fingerprint errors to a finding: are these the activations of the model named?

Honest engines differ by rounding, and by about as much everywhere: the mean error of an answer's
mantissas lies around a centre that belongs to model and precision, with one spread between answers
and one between chunks that averages out over an answer's length. Other weights lie above it: int8
per channel at twice the centre, int4 at ten times and more. Single chunks are
held to wider bounds, so that one from elsewhere does not hide in a long answer.

Some answers are noisier than others, whoever computes them, so that a noisy honest answer reaches
the least of int8. Where an answer's error is above the usual, the verifier therefore looks again:
it computes its own activations a second time by another attention kernel, and takes the difference
as the unit. Honest answers lie at 1 in it, int8 at 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import PPM
from daifi_flows.errors import EncodingError
from daifi_flows.proofs._fingerprint import NO_MATCH, TOP, ChunkErrors
from daifi_flows.proofs._scheme import Outcome
from daifi_flows.proofs.calibration import ActivationBounds, RelativeBounds

__all__ = [
    "PAPER_MATCHES",
    "PAPER_MEAN",
    "PAPER_MEDIAN",
    "ActivationFinding",
    "answer_error",
    "fit_bounds",
    "judge_activations",
]

PAPER_MATCHES: Final = 90
PAPER_MEAN: Final = 10.0
PAPER_MEDIAN: Final = 8.0
"""Bounds of a chunk for a model nobody measured: those of TOPLOC (arXiv 2501.16007) for bfloat16,
where at most 38 of 128 exponents differ."""

REJECT: Final = 4.75
"""Invalid from so many standard deviations over the centre: 1 in 10⁶ of a normal distribution."""
ACCEPT: Final = 3.1
"""Valid up to so many: an honest answer is not valid once in a thousand times."""
_CHUNK_REJECT: Final = 10.0
"""The same for single chunks, of which a long answer has hundreds."""
_JUDGED: Final = TOP // 2
"""A last chunk with fewer values than this counts for the whole answer only."""
_LEAST_ANSWERS: Final = 8
_STRAYS: Final = 3
"""Exponents that may differ in any answer, however short."""

_LEAST_SPREAD: Final = 0.1
"""Of the centre: what other processors may add to answers that were all made on one."""
_LEAST_RELATIVE: Final = 0.06
"""The same for relative errors, of which other processors change numerator and unit alike."""
_LOOK_AGAIN: Final = 2.0
"""Standard deviations over the centre from which an answer is measured by its own noise: one honest
answer in forty, and all long ones of int8."""
_LEAST_NOISE: Final = 0.2
"""Of the centre: kernels that differ by less are the same one, and no unit."""

_VALID_FLOOR: Final = 995_000
_UNSURE_CEILING: Final = 980_000
_INVALID_CEILING: Final = 10_000
_LISTED: Final = 10
"""Chunks listed in a reason."""


@dataclass(frozen=True)
class ActivationFinding:
    """The decision over one answer's fingerprints.

    Attributes:
        error: mean error of all mantissas compared, see :func:`answer_error`.
        deviation: how many standard deviations that is above the centre; absent without a
            calibration.
    """

    outcome: Outcome
    confidence_ppm: int
    reason: str
    error: float
    deviation: float | None


def answer_error(errors: ChunkErrors) -> float:
    """Mean error of an answer's mantissas over all chunks, in units of bfloat16's last place."""
    matches = int(errors.matches.sum())
    return float((errors.mean * errors.matches).sum()) / matches if matches else NO_MATCH


def judge_activations(
    errors: ChunkErrors,
    bounds: ActivationBounds | None,
    again: Callable[[], ChunkErrors | None] = lambda: None,
    *,
    first: int = 0,
    parts: int = 1,
) -> ActivationFinding:
    """Valid, invalid or cannot tell, from the errors of one answer.

    Invalid when a chunk of 16 rows or more is beyond its bounds, too few exponents match over all,
    or the answer's error is :data:`REJECT` deviations above the centre; valid when none of that is
    so and it is at most :data:`ACCEPT` above. Confidence falls from 1,000,000 at the centre to
    995,000 at :data:`ACCEPT`, and from 980,000 to 10,000 at :data:`REJECT`.

    Args:
        bounds: of this model and precision. Without them the paper's bounds of a chunk hold, what
            is beyond them cannot be told, and nobody is accused.
        again: the verifier's own activations of another kernel against those that ``errors`` were
            taken with, ``None`` when it has one kernel. Called only for an answer more than two
            deviations above the centre; the deviation is then the relative error's.
        first: number of the first chunk in the output, for the reason.
        parts: the answer is judged in so many parts, each by itself. Both limits then leave each
            of them its share of the chance that an honest answer exceeds them.
    """
    error = answer_error(errors)
    facts = _facts(errors, error)
    far = _far_chunk(errors, bounds, first)
    accept, reject = _shared(ACCEPT, parts), _shared(REJECT, parts)
    if bounds is None:
        if far is not None:
            reason = f"{far}, but the model has no calibration: {facts}"
            return ActivationFinding(Outcome.CANNOT_TELL, PPM // 2, reason, error, None)
        reason = f"the activations are within the paper's bounds: {facts}"
        return ActivationFinding(Outcome.VALID, _VALID_FLOOR, reason, error, None)
    deviation = (error - bounds.mean_error) / _spread(bounds, _size(errors))
    if far is None and deviation > _LOOK_AGAIN and bounds.relative is not None:
        own = again()
        noise = 0.0 if own is None else answer_error(own)
        if noise > _LEAST_NOISE * bounds.mean_error:
            relative = error / noise
            deviation = (relative - bounds.relative.mean) / _spread(bounds.relative, _size(errors))
            facts += f", {relative:.2f} times what rounding does to this answer"
    if far is not None or deviation >= reject:
        confidence = round(_INVALID_CEILING * min(1.0, reject / max(deviation, reject)))
        what = far or "the activations are not the model's"
        return ActivationFinding(Outcome.INVALID, confidence, f"{what}: {facts}", error, deviation)
    if deviation <= accept:
        confidence = PPM - (PPM - _VALID_FLOOR) * max(0.0, deviation / accept)
        reason = f"the activations are the model's: {facts}"
        return ActivationFinding(Outcome.VALID, round(confidence), reason, error, deviation)
    share = (deviation - accept) / (reject - accept)
    confidence = round(_UNSURE_CEILING - (_UNSURE_CEILING - _INVALID_CEILING) * share)
    reason = f"the activations are neither clearly the model's nor not: {facts}"
    return ActivationFinding(Outcome.CANNOT_TELL, confidence, reason, error, deviation)


def fit_bounds(
    answers: Sequence[ChunkErrors], own: Sequence[ChunkErrors | None] = ()
) -> ActivationBounds:
    """Bounds from the errors of honest answers: pool all engines and settings that are honest.

    The spreads are taken larger than measured by what chance can hide in so few answers, and at
    least a tenth of the centre, for processors that were not measured.

    Args:
        own: for each answer, what ``again`` of :func:`judge_activations` gives for it; the relative
            bounds are fitted to those that are there.

    Raises:
        EncodingError: fewer than 8 answers, or fewer than 2 whole chunks in them.
    """
    whole = [found.mean[found.compared == TOP] for found in answers]
    centre, answer_spread, chunk_spread = _spreads(
        [answer_error(found) for found in answers], answers, whole, _LEAST_SPREAD
    )
    bounds = ActivationBounds(
        min_exponent_matches=0,
        max_mean_error=0.0,
        max_median_error=0.0,
        mean_error=centre,
        answer_spread=answer_spread,
        chunk_spread=chunk_spread,
        relative=_fit_relative(answers, own, centre),
    )
    full = [found.compared == TOP for found in answers]
    lost = TOP - np.concatenate([f.matches[k] for f, k in zip(answers, full, strict=True)])
    medians = np.concatenate([f.median[k] for f, k in zip(answers, full, strict=True)])
    loss = max(float(lost.mean() + _CHUNK_REJECT * lost.std()), 3.0 * float(lost.max()), 8.0)
    median = max(float(medians.mean() + _CHUNK_REJECT * medians.std()), 2 * float(medians.max()))
    return bounds.model_copy(
        update={
            "min_exponent_matches": max(0, TOP - math.ceil(loss)),
            "max_mean_error": round(
                min(centre + _CHUNK_REJECT * _spread(bounds, 1.0), NO_MATCH), 4
            ),
            "max_median_error": round(min(max(median, 2.0), NO_MATCH), 4),
        }
    )


def _fit_relative(
    answers: Sequence[ChunkErrors], own: Sequence[ChunkErrors | None], centre: float
) -> RelativeBounds | None:
    pairs = [
        (found, noise)
        for found, unit in zip(answers, own, strict=False)
        if unit is not None and (noise := answer_error(unit)) > _LEAST_NOISE * centre
    ]
    if len(pairs) < len(answers) / 2 or len(pairs) < _LEAST_ANSWERS:
        return None
    mean, answer_spread, chunk_spread = _spreads(
        [answer_error(found) / noise for found, noise in pairs],
        [found for found, _ in pairs],
        [found.mean[found.compared == TOP] / noise for found, noise in pairs],
        _LEAST_RELATIVE,
    )
    return RelativeBounds(mean=mean, answer_spread=answer_spread, chunk_spread=chunk_spread)


def _spreads(
    errors: Sequence[float],
    answers: Sequence[ChunkErrors],
    whole: Sequence[NDArray[np.float64]],
    least_share: float,
) -> tuple[float, float, float]:
    """Centre, spread between long answers, and spread between whole chunks within an answer."""
    chunks = np.concatenate(whole) if whole else np.empty(0)
    if len(answers) < _LEAST_ANSWERS or len(chunks) < 2:
        raise EncodingError(
            f"{len(answers)} answers with {len(chunks)} whole chunks are too few to fit bounds "
            f"to: at least {_LEAST_ANSWERS} with 2 are needed"
        )
    means = np.array(errors)
    within = [((each - each.mean()) ** 2).sum() for each in whole if len(each) > 1]
    freedom = max(1, len(chunks) - len(whole))
    chunk_spread = math.sqrt(sum(within) / freedom) if within else float(chunks.std(ddof=1))
    sizes = np.array([_size(found) for found in answers])
    between = float(means.var(ddof=1)) - chunk_spread**2 * float((1 / sizes).mean())
    doubt = 1 + 1 / math.sqrt(len(answers))  # 1.4 standard errors of a standard deviation
    centre = float(means.mean())
    least = max(least_share * centre, 0.01)
    return (
        round(centre, 4),
        round(max(doubt * math.sqrt(max(between, 0.0)), least), 4),
        round(max(doubt * chunk_spread, least), 4),
    )


def _size(errors: ChunkErrors) -> float:
    """Whole chunks' worth of values compared."""
    return float(errors.compared.sum()) / TOP


def _spread(bounds: ActivationBounds | RelativeBounds, chunks: float) -> float:
    """Standard deviation of the mean error over so many chunks."""
    return math.sqrt(bounds.answer_spread**2 + bounds.chunk_spread**2 / chunks) or 1e-9


def _shared(deviations: float, parts: int) -> float:
    """Deviations that a normal value exceeds ``parts`` times more rarely than ``deviations``."""
    if parts == 1:
        return deviations
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-deviations) / parts)


def _far_chunk(errors: ChunkErrors, bounds: ActivationBounds | None, first: int) -> str | None:
    """What is too far off for any honest answer, one chunk or exponents over all."""
    least = PAPER_MATCHES if bounds is None else bounds.min_exponent_matches
    median = PAPER_MEDIAN if bounds is None else bounds.max_median_error
    total = int(errors.compared.sum())
    if errors.matches.sum() + _STRAYS < total * least / TOP:
        return f"only {int(errors.matches.sum())} of {total} exponents match"
    for chunk in np.flatnonzero(errors.compared >= _JUDGED):
        compared, matches = int(errors.compared[chunk]), int(errors.matches[chunk])
        if bounds is None:
            mean = PAPER_MEAN
        else:
            room = (bounds.max_mean_error - bounds.mean_error) * math.sqrt(TOP / compared)
            mean = bounds.mean_error + room
        begin = 32 * (first + int(chunk))
        where = f"the activations of tokens {begin} to {begin + compared // 4 - 1}"
        if matches < compared * least / TOP:
            return f"{where} match in {matches} of {compared} exponents"
        if errors.mean[chunk] > mean or errors.median[chunk] > median:
            return f"{where} are not the model's"
    return None


def _facts(errors: ChunkErrors, error: float) -> str:
    each = " ".join(f"{value:.1f}" for value in errors.mean[:_LISTED])
    more = " …" if len(errors.mean) > _LISTED else ""
    return (
        f"{int(errors.matches.sum())} of {int(errors.compared.sum())} exponents match, mantissas "
        f"are off by {error:.2f} on average ({each}{more} by 32 tokens)"
    )

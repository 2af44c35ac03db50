"""The likelihood of claimed tokens: how an honest node's choices follow from a verifier's scores.

The verifier's score of a token is ``z = logits + T·gumbel(seed, t)``, in logits; at temperature 0
the logits. With exact arithmetic the node would choose the best one. Engines round differently, so
where scores nearly tie an honest node may choose another. The model: a token that lies ``g`` logits
below the best is chosen with probability proportional to ``exp(−½(g/s)²)``, the tail of normal
noise, for a scale ``s`` of hundredths of a logit, mixed over a few scales
(:class:`~daifi_flows.proofs.calibration.Rounding`). Other weights, another seed, prompt or
temperature move the node's scores far more, and look like larger scales. (With ``exp(−g/s)``
instead, int8 weights gave a third less evidence a token on SmolLM2, and honest tokens were less
likely.)

Only the best tokens matter. Beyond :data:`MOST` of them or :data:`REACH` logits, tokens are lumped
into bins a logit wide, each with the weight of one token at its near edge: still a probability
distribution, so that ratios of likelihoods keep their meaning. Where top-k or top-p cuts, the cut
itself is uncertain by rounding: the likelihood is mixed over cuts a little lower and higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import PPM, Sampling
from daifi_flows.proofs.calibration import Rounding
from daifi_flows.proofs.sampling import contenders, cutoffs, gumbel, sample

__all__ = [
    "HONEST_CUTS",
    "REACH",
    "SCALES",
    "Choices",
    "Floats",
    "choices",
    "fit",
    "likelihoods",
    "warmer",
]


Floats = NDArray[np.float64]

MOST: Final = 64
REACH: Final = 10.0
"""Tokens looked at one by one: so many of the best, and so far below the best, in logits."""

CUTS: Final = (-0.125, 0.0, 0.125, 0.625)
"""How far the cut of top-k or top-p is moved down, in logits: both neighbours in bf16 at logits of
16 to 32, and five times as far."""
_OUTSIDE: Final = len(CUTS)
HONEST_CUTS: Final = (0.02, 0.96, 0.015, 0.0049, 0.0001)
"""How often an honest node's cut is which, and how often a token is outside all: on SmolLM2, of
2,300 honest tokens drawn with top-k 50 and top-p 0.95, about one in 300 showed another cut."""

SCALES: Final = tuple(0.005 * 2**step for step in range(8))
"""Scales that :func:`fit` mixes, in logits: from 0.005 to 0.64."""


@dataclass(frozen=True)
class Choices:
    """What a verifier's scores say about ``n`` claimed tokens.

    Attributes:
        gaps: below the best score of its row, in logits, ``[n, MOST]``, ascending; ``inf`` where a
            row has fewer tokens.
        noise: the Gumbel noise in their scores, ``[n, MOST]``; 0 at temperature 0.
        levels: the first of :data:`CUTS` that keeps the token, ``[n, MOST]``.
        edges: where the bins of all other tokens begin, in logits, ``[n]``.
        places: column of the claimed token, ``[n]``; −1 when it is in a bin.
        claimed: gap of the claimed token, its bin's edge when it is in a bin, ``[n]``.
        claimed_levels: as ``levels``, 0 in a bin; ``len(CUTS)`` when every cut leaves it out.
        margins: how far the claimed token's score lies under the best one that is not cut, by the
            highest cut that keeps the claimed one, in logits, ``[n]``.
        best: the verifier's choice at each position.
    """

    gaps: Floats
    noise: Floats
    levels: NDArray[np.int8]
    edges: Floats
    places: NDArray[np.intp]
    claimed: Floats
    claimed_levels: NDArray[np.int8]
    margins: Floats
    best: list[int]

    def __len__(self) -> int:
        return len(self.best)


def choices(
    logits: NDArray[np.float32], tokens: Sequence[int], sampling: Sampling, first: int = 0
) -> Choices | None:
    """Compare ``tokens`` with ``logits`` ``[tokens, vocab]``.

    Args:
        first: position of the first of them in the output; their noise hangs on it.

    Returns:
        ``None`` when the logits are not one finite-or-``−inf`` row per token: trouble with the
        verifier's own model. A token outside the vocabulary, or whose logit is ``−inf``, has an
        infinite gap and margin.
    """
    count = len(tokens)
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] == 0 or count == 0:
        return None
    found = Choices(
        np.full((count, MOST), np.inf),
        np.zeros((count, MOST)),
        np.zeros((count, MOST), np.int8),
        np.full(count, REACH),
        np.full(count, -1, np.intp),
        np.full(count, np.inf),
        np.zeros(count, np.int8),
        np.full(count, np.inf),
        [],
    )
    for row, token in enumerate(tokens):
        if not _fill(found, row, logits[row], int(token), sampling, first + row):
            return None
    return found


def _fill(
    found: Choices,
    row: int,
    logits: NDArray[np.float32],
    token: int,
    sampling: Sampling,
    position: int,
) -> bool:
    heat = sampling.temperature_ppm / PPM
    unit = heat or 1.0
    if not np.isfinite(logits.max()):
        return False
    cuts = np.array(cutoffs(logits, sampling, CUTS))
    ids, scores = contenders(
        logits, sampling, position, most=MOST, reach=REACH / unit, cut=float(cuts[-1])
    )
    if not len(ids):
        return False
    levels = _levels(logits[ids], cuts)
    order = np.argsort(-scores, kind="stable")
    ids, scores, levels = ids[order], scores[order].astype(np.float64), levels[order]
    gaps = (scores[0] - scores) * unit
    size = len(ids)
    found.gaps[row, :size] = gaps
    found.levels[row, :size] = levels
    if heat:
        found.noise[row, :size] = scores - logits[ids] / heat
    if size == MOST:
        found.edges[row] = gaps[-1]
    uncut = np.flatnonzero(levels <= CUTS.index(0.0))
    # Where the best token that is not cut lies in the bins, it is drawn anew.
    found.best.append(int(ids[uncut[0]]) if len(uncut) else sample(logits, sampling, position))
    if not 0 <= token < len(logits) or not np.isfinite(logits[token]):
        return True
    place = np.flatnonzero(ids == token)
    if len(place):
        found.places[row] = place[0]
        gap, level = float(gaps[place[0]]), int(levels[place[0]])
        found.claimed[row] = gap
    else:
        score = float(logits[token])
        if heat:
            score += heat * float(gumbel(sampling.seed, position, token + 1)[token])
        gap, level = float(scores[0]) * unit - score, int(_levels(logits[[token]], cuts)[0])
        level = _OUTSIDE if level == _OUTSIDE else 0  # a bin is one outcome, whatever is in it
        edge = 0.0 if level == _OUTSIDE else found.edges[row]
        found.claimed[row] = edge + max(0.0, np.floor(gap - edge))
    found.claimed_levels[row] = level
    rivals = gaps[levels <= level]
    found.margins[row] = max(0.0, gap - float(rivals[0]) if len(rivals) else 0.0)
    return True


def _levels(logits: NDArray[np.float32], cuts: Floats) -> NDArray[np.int8]:
    """The first of :data:`CUTS` that keeps each; ``cuts`` are their lowest logits."""
    return (logits[:, None] < cuts).sum(1).astype(np.int8)


def likelihoods(found: Choices, scales: Sequence[float], cuts: Sequence[float]) -> Floats:
    """Probability of each claimed token under each scale, ``[n, scales]``.

    Args:
        scales: in logits, positive.
        cuts: weights of :data:`CUTS` and, last, of tokens that every one of them leaves out; they
            sum to 1 and play no role where nothing is cut.
    """
    binned = found.places < 0
    if not found.levels.any() and not found.claimed_levels.any():
        return _among(found.gaps, found.edges, found.claimed, binned, scales)
    result = np.zeros((len(found), len(scales)))
    for level, weight in enumerate(cuts[:_OUTSIDE]):
        gaps = np.where(found.levels <= level, found.gaps, np.inf)
        nearest = gaps.min(1)
        nearest = np.where(np.isfinite(nearest), nearest, found.edges)  # all are in the bins
        edges = np.maximum(found.edges - nearest, 0.0)
        claimed = np.maximum(found.claimed - nearest, 0.0)
        part = _among(gaps - nearest[:, None], edges, claimed, binned, scales)
        result += np.where((found.claimed_levels <= level)[:, None], weight * part, 0.0)
    outside = found.claimed_levels == _OUTSIDE
    if outside.any():
        empty = np.full((int(outside.sum()), 1), np.inf)
        part = _among(empty, np.zeros(len(empty)), found.claimed[outside], binned[outside], scales)
        result[outside] = cuts[_OUTSIDE] * part
    return result


def warmer(found: Choices, degrees: float, scales: Sequence[float]) -> Floats:
    """:func:`likelihoods` for a node that adds its noise at a temperature higher by ``degrees``."""
    scores = degrees * found.noise - found.gaps
    gaps = scores.max(1, keepdims=True) - scores
    binned = found.places < 0
    moved = np.take_along_axis(gaps, np.maximum(found.places, 0)[:, None], 1)[:, 0]
    table = _among(gaps, found.edges, np.where(binned, found.claimed, moved), binned, scales)
    # No more than one in all, and no advantage over an honest node that must respect the cut.
    kept = np.cumsum(HONEST_CUTS[:_OUTSIDE][::-1])[::-1]
    return table * np.append(kept, HONEST_CUTS[_OUTSIDE])[found.claimed_levels][:, None]


def _among(
    gaps: Floats,
    edges: Floats,
    claimed: Floats,
    binned: NDArray[np.bool_],
    scales: Sequence[float],
) -> Floats:
    """:func:`likelihoods` where nothing is cut: ``exp(−½(gap/s)²)``, in the bins falling by
    ``exp(−1/s)`` from one to the next, over the sum of all."""
    result = np.empty((len(gaps), len(scales)))
    squares = -0.5 * gaps * gaps
    square = -0.5 * np.square(np.where(binned, edges, claimed))
    beyond = np.where(binned, claimed - edges, 0.0)
    nearest = gaps.min(0)
    for column, scale in enumerate(scales):
        # Beyond 39 scales the weight is 0 in float64, in most columns for all rows.
        felt = np.flatnonzero(nearest <= 39.0 * scale)
        kept = squares[:, : felt[-1] + 1] if len(felt) else squares[:, :0]
        total = np.exp(kept / scale**2).sum(1)
        total += np.exp(-0.5 * (edges / scale) ** 2) / -np.expm1(-1.0 / scale)
        result[:, column] = np.exp(square / scale**2 - beyond / scale) / total
    return result


def fit(honest: Sequence[Choices], *, widen: float = 1.25, rounds: int = 400) -> Rounding:
    """The rounding of honest generations: weights of :data:`SCALES` of the highest likelihood.

    The log-likelihood is concave in the weights, so that expectation-maximisation from equal ones
    finds its top (a nonparametric mixture, Laird 1978). Two steps make it safe rather than sharp:
    every scale is multiplied by ``widen``, and the largest scale seen keeps the weight of at least
    three tokens.

    Args:
        honest: at least one generation, with no impossible token.
    """
    table = np.concatenate([likelihoods(each, SCALES, HONEST_CUTS) for each in honest])
    table = np.maximum(table, 1e-300)
    weights = np.full(len(SCALES), 1 / len(SCALES))
    for _ in range(rounds):
        shares = table * weights
        weights = (shares / shares.sum(1, keepdims=True)).mean(0)
    kept = weights > 1e-5
    weights = np.where(kept, weights, 0.0)
    last = int(np.flatnonzero(kept)[-1])
    weights[last] = max(weights[last], 3 / len(table))
    weights /= weights.sum()
    pairs = [(SCALES[i] * widen, float(weights[i])) for i in np.flatnonzero(weights)]
    return Rounding(
        scales=tuple(round(scale, 6) for scale, _ in pairs),
        weights=tuple(weight for _, weight in pairs),
    )

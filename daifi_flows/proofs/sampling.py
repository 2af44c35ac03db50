"""Engine-independent sampling: any engine, and any verifier, draws the same token from a seed.

Token ``t`` is ``argmax_v(logits[v] / temperature + gumbel(seed, t)[v])``, plain argmax at
temperature 0. By the Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv 1411.0030) that is a
draw from ``softmax(logits / temperature)``; fixing the noise by a counter-based generator makes the
draw a deterministic function of the logits (Token-DiFR, arXiv 2511.20621, section 3). With top-k or
top-p, tokens below the cut (:func:`cutoff`) do not take part.

The generator is Philox4x64-10 (Salmon et al., SC11; ``numpy.random.Philox``): key (seed, 0),
counter words (1 + ``v`` div 4, t, 0, 0); word ``v`` mod 4 of that block belongs to vocabulary index
``v``. An index's noise is thus the same whatever the size of the vocabulary, and positions never
overlap.

The draw is the same on any machine that gives the same logits. Most tokens need no logarithm for
that: noise grows with the word it is made of, so that comparing words tells which tokens are out of
reach (:data:`_RARE`); the few that are left are scored as :func:`gumbel` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import PPM, Sampling

__all__ = ["contenders", "cutoff", "cutoffs", "gumbel", "noised", "sample"]

_LANE_BITS: Final = 52
"""Bits of each 64-bit word that are used: ``(n + ½)/2⁵²`` is exact in float64 and never 0 or 1."""

_PROBE: Final = 8.0
"""Tokens so far below the likeliest, in noise units, are scored first: a few dozen. The best of
them is a floor for the winner's score."""

_RARE: Final = 5.5
_RARE_WORD: Final = np.uint64(math.exp(-math.exp(-_RARE)) * 2.0**64)
"""Noise that one token in 245 exceeds, and the least word that gives it. Noise never falls as words
grow, so a token with ``logits / T < F − 5.5`` and a smaller word has ``logits / T + noise < F``: no
floor F is reached, and its noise need not be known. Of a language model's 49,152 tokens some 1,500
are left."""

_SLACK: Final = 1e-3
"""Taken off a floor, with 2⁻²⁰ of it, so that this holds in float32 too: the sum and the difference
are rounded by 2⁻²⁴ of values that lie near the floor or are smaller, the noise by 10⁻⁶."""

_FIRST: Final = 1024
"""Most probable tokens among which the end of the nucleus is looked for first."""


def gumbel(seed: int, position: int, vocabulary: int) -> NDArray[np.float32]:
    """Standard Gumbel noise of one output position, ``[vocabulary]``, between −3.6 and 36.8.

    Args:
        seed: the task's seed, 0 ≤ seed < 2⁶³.
        position: index of the output token, from 0.
        vocabulary: width of the logits.

    >>> [round(float(x), 5) for x in gumbel(seed=7, position=3, vocabulary=4)]
    [0.19449, -0.58658, 4.02554, 0.26597]
    """
    return _noise(_words(seed, position, vocabulary))


def _words(seed: int, position: int, vocabulary: int) -> NDArray[np.uint64]:
    return np.random.Philox(key=seed, counter=position << 64).random_raw(vocabulary)


def _noise(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    uniform = ((words >> np.uint64(64 - _LANE_BITS)).astype(np.float64) + 0.5) * 2.0**-_LANE_BITS
    return (-np.log(-np.log(uniform))).astype(np.float32)


def cutoff(logits: NDArray[np.float32], sampling: Sampling) -> float:
    """The lowest logit that takes part; ``−inf`` when all do.

    ``top_k`` keeps the k largest logits, then ``top_p_ppm`` the fewest of these whose probability
    ``softmax(logits / temperature)`` reaches it; at least one. Tokens that tie with the last one
    kept are kept too, so that the cut does not hang on an order among equals. Temperature 0 has no
    cut: the best token is never below one.
    """
    return cutoffs(logits, sampling, (0.0,))[0]


def cutoffs(
    logits: NDArray[np.float32], sampling: Sampling, slacks: Sequence[float]
) -> list[float]:
    """:func:`cutoff` where the logits are uncertain by each of ``slacks``, in logits.

    A positive slack gives a cut that no token lies under which an engine keeps whose logits differ
    by up to half as much; a negative one, a cut that keeps only tokens such an engine keeps.
    """
    if sampling.temperature_ppm == 0:
        return [-np.inf] * len(slacks)
    cut = -np.inf
    if sampling.top_k is not None and sampling.top_k < len(logits):
        cut = float(np.partition(logits, -sampling.top_k)[-sampling.top_k])
    top = float(logits.max())  # always takes part
    if sampling.top_p_ppm is None or sampling.top_p_ppm == PPM:
        return [min(cut - slack, top) for slack in slacks]
    odds = (PPM - sampling.top_p_ppm) / sampling.top_p_ppm
    shifts = np.clip(np.array(slacks) * (PPM / sampling.temperature_ppm), -300, 300)
    ends = _nucleus(logits, sampling.temperature_ppm, cut, 1 / (1 + odds * np.exp(-shifts)))
    return [min(max(cut, end) - slack, top) for end, slack in zip(ends, slacks, strict=True)]


def _nucleus(
    logits: NDArray[np.float32], temperature_ppm: int, cut: float, shares: NDArray[np.float64]
) -> list[float]:
    """The smallest logit of the fewest tokens at or above ``cut`` that have each share."""
    inside = logits[logits >= cut] if np.isfinite(cut) else logits
    top = float(inside.max())

    def weights(values: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.exp((values.astype(np.float64) - top) * (PPM / temperature_ppm))

    wanted = shares * weights(inside).sum()
    values, reached = inside[:0], np.empty(0)
    for count in (_FIRST, len(inside)):
        if count < len(inside):
            values = np.sort(np.partition(inside, -count)[-count:])[::-1]
        else:
            values = np.sort(inside)[::-1]
        reached = weights(values).cumsum()
        if reached[-1] >= wanted.max():
            break
    last = np.minimum(np.searchsorted(reached, wanted), len(values) - 1)
    return [float(value) for value in values[last]]


def contenders(
    logits: NDArray[np.float32],
    sampling: Sampling,
    position: int,
    *,
    most: int,
    reach: float = 0.0,
    cut: float | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Tokens that win at ``position`` or come near, and their scores.

    The score of a token is ``logits / T + gumbel``, at temperature 0 the logit itself.

    Args:
        logits: ``[vocabulary]``.
        most: how many tokens at most; the best are kept, among equals those of lower index.
        reach: how far below the best score, in its unit.
        cut: the lowest logit that takes part; by default :func:`cutoff`.

    Returns:
        Token ids, ascending, and their scores. Nothing when no score is finite or one is NaN.
    """
    top = logits.max()
    if not np.isfinite(top):
        return np.empty(0, np.intp), np.empty(0, np.float32)
    if sampling.temperature_ppm == 0:
        found = np.flatnonzero(logits >= top - np.float32(reach))
        return _best(found, logits[found], most)
    shares = logits / _temperature(sampling)
    cut = cutoff(logits, sampling) if cut is None else cut
    if cut > -np.inf:
        shares[logits < cut] = -np.inf
    likeliest = shares.max()
    if not np.isfinite(likeliest):  # too large for float32 at this temperature
        return np.empty(0, np.intp), np.empty(0, np.float32)
    words = _words(sampling.seed, position, len(logits))
    found = np.flatnonzero(shares >= likeliest - np.float32(_PROBE))
    floor = _floor(shares[found] + _noise(words[found]), most, reach)
    found = np.flatnonzero((shares >= floor - _RARE) | (words >= _RARE_WORD))
    scores = shares[found] + _noise(words[found])
    near = scores >= scores.max(initial=-np.inf) - np.float32(reach)
    return _best(found[near], scores[near], most)


def _floor(scores: NDArray[np.float32], most: int, reach: float) -> float:
    """No token that :func:`contenders` returns has a score below this, whatever the others are.

    Args:
        scores: of some tokens.
    """
    floor = float(scores.max()) - reach
    if len(scores) > most:
        floor = max(floor, float(np.partition(scores, -most)[-most]))
    return floor - _SLACK - abs(floor) * 2.0**-20


def _best(
    found: NDArray[np.intp], scores: NDArray[np.float32], most: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    if len(found) <= most:
        return found, scores
    kept = np.sort(np.argsort(-scores, kind="stable")[:most])
    return found[kept], scores[kept]


def _temperature(sampling: Sampling) -> np.float32:
    return np.float32(sampling.temperature_ppm / PPM)


def noised(logits: NDArray[np.float32], sampling: Sampling, position: int) -> NDArray[np.float32]:
    """Scores ``[vocabulary]`` whose argmax is the token at ``position``.

    ``logits / T + gumbel``, and ``−inf`` for tokens below the cut or too far down to be the best;
    at temperature 0 the logits themselves. For engines that draw by argmax over what a hook
    returns. Logits with a NaN, or none finite, come back as they are.
    """
    if sampling.temperature_ppm == 0:
        return logits
    found, scores = contenders(logits, sampling, position, most=len(logits))
    if not len(found):
        return logits
    result = np.full_like(logits, -np.inf)
    result[found] = scores
    return result


def sample(logits: NDArray[np.float32], sampling: Sampling, position: int) -> int:
    """The token at ``position``; the lowest index among equals.

    >>> sample(np.array([0.0, 2.0, 1.0], np.float32), Sampling(), position=0)
    1
    """
    if sampling.temperature_ppm == 0:
        return int(np.argmax(logits))
    found, scores = contenders(logits, sampling, position, most=len(logits))
    return int(found[np.argmax(scores)]) if len(found) else int(np.argmax(logits))

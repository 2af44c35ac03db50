"""Engine-independent sampling: any engine, and any verifier, draws the same token from a seed.

Token ``t`` is ``argmax_v(logits[v] / temperature + gumbel(seed, t)[v])``, plain argmax at
temperature 0. By the Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv 1411.0030) that is a
draw from ``softmax(logits / temperature)``; fixing the noise by a counter-based generator makes the
draw a deterministic function of the logits (Token-DiFR, arXiv 2511.20621, section 3).

The generator is Philox4x64-10 (Salmon et al., SC11; ``numpy.random.Philox``): key (seed, 0),
counter words (1 + ``v`` div 4, t, 0, 0); word ``v`` mod 4 of that block belongs to vocabulary index
``v``. An index's noise is thus the same whatever the size of the vocabulary, and positions never
overlap.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["gumbel", "noised", "sample"]

_LANE_BITS: Final = 52
"""Bits of each 64-bit word that are used: ``(n + ½)/2⁵²`` is exact in float64 and never 0 or 1."""


def gumbel(seed: int, position: int, vocabulary: int) -> NDArray[np.float32]:
    """Standard Gumbel noise of one output position, ``[vocabulary]``, between −3.6 and 36.8.

    Args:
        seed: the task's seed, 0 ≤ seed < 2⁶³.
        position: index of the output token, from 0.
        vocabulary: width of the logits.

    >>> [round(float(x), 5) for x in gumbel(seed=7, position=3, vocabulary=4)]
    [0.19449, -0.58658, 4.02554, 0.26597]
    """
    words = np.random.Philox(key=seed, counter=position << 64).random_raw(vocabulary)
    uniform = ((words >> np.uint64(64 - _LANE_BITS)).astype(np.float64) + 0.5) * 2.0**-_LANE_BITS
    return (-np.log(-np.log(uniform))).astype(np.float32)


def noised(
    logits: NDArray[np.float32], temperature_ppm: int, seed: int, position: int
) -> NDArray[np.float32]:
    """Scores ``[vocabulary]`` whose argmax is the token at ``position``.

    ``logits / T + gumbel``; at temperature 0 the logits themselves.
    """
    if temperature_ppm == 0:
        return logits
    temperature = np.float32(temperature_ppm / 1_000_000)
    return logits / temperature + gumbel(seed, position, logits.shape[-1])


def sample(logits: NDArray[np.float32], temperature_ppm: int, seed: int, position: int) -> int:
    """The token at ``position``; the lowest index among equals.

    >>> sample(np.array([0.0, 2.0, 1.0], np.float32), 0, seed=0, position=0)
    1
    """
    return int(np.argmax(noised(logits, temperature_ppm, seed, position)))

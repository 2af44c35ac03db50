"""Judge: cosine similarity of sentence embeddings. It is a feature, not a probability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.errors import DaifiError
from daifi_flows.judges.panel._judge import Comparable, Embed

__all__ = ["EmbeddingJudge"]

CHUNK_WORDS: Final = 120
"""About 160 word pieces, well under the 256 at which all-MiniLM-L6-v2 cuts a text silently."""

MAX_CHUNKS: Final = 32


class EmbeddingJudge:
    """``cosine``: the *smallest* cosine over aligned chunks of both texts, clipped to [0, 1].

    The smallest, so that a long answer cannot hide one wrong paragraph among right ones. NaN when
    there is no embedder, or it fails or returns something that is not a finite unit vector.
    Measured (FACTS): a negated sentence has 0.81, a swapped fact 0.75, a paraphrase 0.966.
    """

    name: ClassVar[str] = "embedding"

    def features(
        self, claimed: Comparable, expected: Comparable, embed: Embed | None
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        return {"cosine": _cosine(claimed, expected, embed)}


def _cosine(claimed: Comparable, expected: Comparable, embed: Embed | None) -> float:
    if claimed.raw == expected.raw and claimed.media_type == expected.media_type:
        return 1.0  # spares the model where it could only confirm
    if embed is None or not (claimed.readable and expected.readable):
        return math.nan
    left, right = _chunks(claimed.text), _chunks(expected.text)
    if not left or not right or max(len(left), len(right)) > MAX_CHUNKS:
        return math.nan
    if len(left) != len(right):  # cannot be aligned: one has at least a chunk more to say
        return 0.0
    try:
        rows = embed([*left, *right])  # [2 * chunks, d]
        if len(rows.shape) != 2 or rows.shape[0] != 2 * len(left):
            return math.nan
        cosines = (rows[: len(left)] * rows[len(left) :]).sum(axis=1)
        norms = (rows * rows).sum(axis=1)
    except (DaifiError, AttributeError, TypeError, ValueError, RuntimeError):
        return math.nan
    if not all(abs(float(norm) - 1.0) < 0.01 for norm in norms):  # false for NaN too
        return math.nan
    return min(max(float(cosines.min()), 0.0), 1.0)


def _chunks(text: str) -> list[str]:
    words = text.split()
    return [
        " ".join(words[start : start + CHUNK_WORDS]) for start in range(0, len(words), CHUNK_WORDS)
    ]

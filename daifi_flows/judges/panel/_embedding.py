"""Judge: sentence embeddings, as they are and through the head that was trained on opposites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar, Final

from daifi_flows.errors import DaifiError
from daifi_flows.judges.panel._align import align
from daifi_flows.judges.panel._head import Head, shipped_head
from daifi_flows.judges.panel._judge import Comparable, Embed, Senses

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EmbeddingJudge"]

CHUNK_WORDS: Final = 120
"""About 160 word pieces, well under the 256 at which all-MiniLM-L6-v2 cuts a text silently."""

MAX_CHUNKS: Final = 32


class EmbeddingJudge:
    """``cosine``: the *smallest* cosine over the passages that differ, clipped to [0, 1]; ``head``:
    the smallest score of the trained head over them (:mod:`_head`).

    The smallest, so that a long answer cannot hide one wrong passage among right ones; a passage
    that one side has more scores 0. NaN when there is no embedder, or it fails or returns something
    that is not a finite unit vector of the head's width. Measured (FACTS): a negated sentence has
    cosine 0.81, a swapped fact 0.75, a paraphrase 0.966.

    Args:
        head: the one that ships by default.
    """

    name: ClassVar[str] = "embedding"

    def __init__(self, head: Head | None = None) -> None:
        self._head = head

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        cosine, head = self._scores(claimed, expected, senses.embed)
        return {"cosine": cosine, "head": head}

    def _scores(
        self, claimed: Comparable, expected: Comparable, embed: Embed | None
    ) -> tuple[float, float]:
        unknown = (math.nan, math.nan)
        if claimed.same_bytes(expected):
            return 1.0, 1.0  # spares the model where it could only confirm
        if embed is None or not (claimed.readable and expected.readable):
            return unknown
        pairs = align(claimed.text, expected.text)
        if pairs is None:
            return unknown
        chunks = [pair for one, other in pairs for pair in _chunks(one, other)]
        if not chunks:
            return (1.0, 1.0) if claimed.text.strip() else unknown
        if len(chunks) > MAX_CHUNKS:
            return unknown
        if not all(one and other for one, other in chunks):
            return 0.0, 0.0
        left, right = zip(*chunks, strict=True)
        rows = _embedded([*left, *right], embed)
        if rows is None:
            return unknown
        one, other = rows[: len(left)], rows[len(left) :]
        cosine = float((one * other).sum(axis=1).min())
        head = self._head or shipped_head()
        scores = head.scores(one, other) if head.width == rows.shape[1] else None
        score = math.nan if scores is None else float(scores.min())
        return min(max(cosine, 0.0), 1.0), score


def _embedded(texts: Sequence[str], embed: Embed) -> NDArray[np.float32] | None:
    """Finite unit rows ``[len(texts), d]``, or ``None``. Most passages are on both sides: each is
    embedded once."""
    import numpy as np

    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    try:
        rows = np.asarray(embed(list(places)), np.float32)
    except (DaifiError, AttributeError, TypeError, ValueError, RuntimeError, OSError):
        return None
    if rows.ndim != 2 or rows.shape[0] != len(places) or not rows.shape[1]:
        return None
    rows = rows[[places[text] for text in texts]]
    with np.errstate(all="ignore"):
        norms = (rows * rows).sum(axis=1)
    return rows if bool((np.abs(norms - 1.0) < 0.01).all()) else None  # false for NaN too


def _chunks(one: str, other: str) -> list[tuple[str, str]]:
    left, right = _parts(one), _parts(other)
    return list(zip_longest(left, right, fillvalue=""))


def _parts(text: str) -> list[str]:
    words = text.split()
    return [
        " ".join(words[start : start + CHUNK_WORDS]) for start in range(0, len(words), CHUNK_WORDS)
    ]

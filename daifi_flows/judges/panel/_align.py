"""Which passage of one text answers to which of the other: what both share is left out."""

from __future__ import annotations

import difflib
from typing import Final

from daifi_flows.judges.panel._judge import normalised, sentences

__all__ = ["align"]

MAX_SENTENCES: Final = 400
"""Of each side. Alignment takes the product of the two numbers in the worst case."""


def align(claimed: str, expected: str) -> list[tuple[str, str]] | None:
    """Pairs of passages that differ, in order; ``None`` when a text has too many sentences.

    Sentences that both sides have in the same order, up to spelling, are left out; what lies
    between them on either side is paired, sentence by sentence where both have as many, and as a
    whole otherwise. A side of a pair is empty where the other has something more to say.

    >>> align("It rains. Bob sings. It is late.", "It rains. Bob dances. It is late.")
    [('Bob sings.', 'Bob dances.')]
    """
    left, right = sentences(claimed), sentences(expected)
    if max(len(left), len(right)) > MAX_SENTENCES:
        return None
    one, other = [_spelt(each) for each in left], [_spelt(each) for each in right]
    # difflib takes the first of equally long common runs: which one hangs on the order of sides.
    swapped = other < one
    if swapped:
        one, other = other, one
    pairs: list[tuple[str, str]] = []
    for what, *where in difflib.SequenceMatcher(None, one, other, False).get_opcodes():
        i, j, k, m = (*where[2:], *where[:2]) if swapped else where
        if what == "equal":
            continue
        if j - i == m - k:
            pairs += zip(left[i:j], right[k:m], strict=True)
        else:
            pairs.append((" ".join(left[i:j]), " ".join(right[k:m])))
    return pairs


def _spelt(sentence: str) -> str:
    return normalised(sentence).rstrip(".!?;: ")

"""Judge: the same polarity, clause by clause as far as words tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.judges.panel._judge import Comparable, Embed, normalised

__all__ = ["NegationJudge", "polarity"]

_NEGATIONS: Final = frozenset(
    (
        "not", "no", "never", "none", "neither", "nor", "nobody", "nothing", "nowhere", "cannot",
        "without", "hardly", "barely", "isnt", "arent", "wasnt", "werent", "dont", "doesnt",
        "didnt", "wont", "cant", "couldnt", "shouldnt", "wouldnt",
    )
)  # fmt: skip
"""Cues of the negation-scope literature (Morante & Blanco, *SEM 2012 shared task), single
words only; contractions are recognised by their ``n't``."""

_SIGNS: Final = {
    "yes": ("answer", 1), "no": ("answer", -1), "true": ("truth", 1), "false": ("truth", -1),
    "correct": ("truth", 1), "incorrect": ("truth", -1), "wrong": ("truth", -1),
    "possible": ("possible", 1), "impossible": ("possible", -1),
    "increase": ("trend", 1), "increases": ("trend", 1), "increased": ("trend", 1),
    "decrease": ("trend", -1), "decreases": ("trend", -1), "decreased": ("trend", -1),
    "accept": ("accept", 1), "accepted": ("accept", 1),
    "reject": ("accept", -1), "rejected": ("accept", -1),
}  # fmt: skip


def polarity(text: str) -> tuple[int, Mapping[str, int]]:
    """Number of negation cues, and the balance of each pair of opposites.

    >>> polarity("It isn't wrong")
    (1, {'truth': -1})
    """
    words = re.findall(r"[a-z]+(?:'[a-z]+)?", normalised(text))
    cues = sum(word in _NEGATIONS or word.endswith("n't") for word in words)
    balance: dict[str, int] = {}
    for word in words:
        if word in _SIGNS:
            pair, sign = _SIGNS[word]
            balance[pair] = balance.get(pair, 0) + sign
    return cues, {pair: total for pair, total in balance.items() if total}


class NegationJudge:
    """``polarity_differs``: 1 when one side negates more often, or leans the other way."""

    name: ClassVar[str] = "negation"

    def features(
        self, claimed: Comparable, expected: Comparable, embed: Embed | None
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del embed
        differs = polarity(claimed.text) != polarity(expected.text)
        return {"polarity_differs": float(differs)}

"""Judge: the same polarity, clause by clause as far as words tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.judges.panel._align import align
from daifi_flows.judges.panel._judge import Comparable, Senses, normalised

__all__ = ["NegationJudge", "polarity"]

_NEGATIONS: Final = frozenset(
    (
        "not", "no", "never", "none", "neither", "nor", "nobody", "nothing", "nowhere", "cannot",
        "without", "hardly", "barely", "isnt", "arent", "wasnt", "werent", "dont", "doesnt",
        "didnt", "wont", "cant", "couldnt", "shouldnt", "wouldnt", "refused", "refuses", "failed",
        "fails", "lacks", "lacked",
    )
)  # fmt: skip
"""Cues of the negation-scope literature (Morante & Blanco, *SEM 2012 shared task), single
words only; contractions are recognised by their ``n't``."""

_SIGNS: Final = {
    "yes": ("answer", 1), "true": ("truth", 1), "false": ("truth", -1),
    "correct": ("truth", 1), "incorrect": ("truth", -1), "wrong": ("truth", -1),
    "possible": ("possible", 1), "impossible": ("possible", -1),
    "increase": ("trend", 1), "increases": ("trend", 1), "increased": ("trend", 1),
    "decrease": ("trend", -1), "decreases": ("trend", -1), "decreased": ("trend", -1),
    "accept": ("accept", 1), "accepted": ("accept", 1),
    "reject": ("accept", -1), "rejected": ("accept", -1),
    "safe": ("safe", 1), "unsafe": ("safe", -1), "open": ("open", 1), "closed": ("open", -1),
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


_SUPERLATIVE: Final = re.compile(
    r"\b(?:nobody|nothing|no one|nowhere|none)\b(?=(?: [\w',]+){1,14} than\b)"
)
"""A denied comparison names the greatest: "nobody is taller than Ann" denies nothing of Ann."""


def _denials(text: str) -> tuple[int, frozenset[str]]:
    """How often a text denies, and in which pairs of opposites it leans to the negative one."""
    cues, balance = polarity(text)
    cues -= len(_SUPERLATIVE.findall(normalised(text)))
    return cues, frozenset(pair for pair, total in balance.items() if total < 0)


def _odd(text: str) -> int:
    """Whether a text denies an odd number of times, opposites counted as denials."""
    cues, negative = _denials(text)
    return (cues + len(negative)) % 2


class NegationJudge:
    """``negations_differ``: 1 when in some passage one side negates more often, or leans the other
    way in a pair of opposites. ``polarity_differs``: 1 when in some passage the sides differ in
    whether denials and the negative words of such pairs are odd in number, so that "not possible"
    equals "impossible". Passages are those that :func:`align` pairs."""

    name: ClassVar[str] = "negation"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        pairs = None
        if claimed.readable and expected.readable:
            pairs = align(claimed.text, expected.text)
        if pairs is None:
            return {"negations_differ": math.nan, "polarity_differs": math.nan}
        differ = any(_denials(one) != _denials(other) for one, other in pairs)
        turned = any(_odd(one) != _odd(other) for one, other in pairs)
        return {"negations_differ": float(differ), "polarity_differs": float(turned)}

"""Judge: the same names do the same things to each other, as far as prepositions and order tell."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.judges.panel._align import align
from daifi_flows.judges.panel._entities import COMMON
from daifi_flows.judges.panel._judge import Comparable, Senses, sentences

__all__ = ["RolesJudge", "directions"]

_WORD: Final = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_SOURCES: Final = {"of": 1, "from": 2, "whom": 3, "by": 4}
"""Before a name: it is who acts, gives, has. An owner, a giver, a passive's agent; where two names
have one, the larger number acts."""
_TARGETS: Final = frozenset({"to", "against", "than", "with", "for", "towards", "behind"})
_PLACES: Final = frozenset({"in", "at", "on", "near", "during", "until", "since"})
"""Before a name: it says where or when, and has no part that could be exchanged."""

_CONVERSE_WORDS: Final = """
lost lose loses losing reports reported answers owes owed shorter smaller younger lower slower
cheaper weaker lighter fewer less worse below under after later obeys inherits inherited
"""
_CONVERSE: Final = frozenset(_CONVERSE_WORDS.split())
"""Words that turn who comes first into who comes second: a few of each kind of converse (Cruse,
*Lexical Semantics*, 1986, section 10.4), none of them complete."""

_SUPERIOR_WORDS: Final = """
manager boss teacher parent father mother owner author leader head king queen president director
founder inventor winner creator north east ahead
"""
_SUPERIOR: Final = frozenset(_SUPERIOR_WORDS.split())
"""Before "of": who is named before them acts on who is named after."""

_MAX_NAMES: Final = 12


class RolesJudge:
    """``roles_differ``: n/(n + 1) for n pairs of names that both sides have in one sentence and in
    which another one acts. ``order_differs``: the same for pairs in which another one comes first.

    Who acts is guessed from the word before a name (``by``, ``from``, ``to``, ``than``…), from the
    order, and from a list of converse words ("lost to"). Names after ``in`` or ``at`` are left out.
    Names or numbers that change places in a sentence that is otherwise the same count as one pair
    more. It is a guess: the panel's model weighs it.
    """

    name: ClassVar[str] = "roles"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        pairs = None
        if claimed.readable and expected.readable:
            pairs = align(claimed.text, expected.text)
        if pairs is None:
            return {"roles_differ": math.nan, "order_differs": math.nan}
        acting = first = 0
        for one, other in pairs:
            acting += _exchanged(one, other)
            left, right = directions(one), directions(other)
            for names in left.keys() & right.keys():
                first += left[names][0] != right[names][0]
                acting += left[names][1] != right[names][1]
        return {"roles_differ": acting / (acting + 1), "order_differs": first / (first + 1)}


def _exchanged(one: str, other: str) -> bool:
    """Whether two passages are one sentence with its names or numbers in other places."""
    left, right = re.findall(r"\w+", one), re.findall(r"\w+", other)
    if left == right or sorted(left) != sorted(right):
        return False
    moved = [pair for pair in zip(left, right, strict=True) if pair[0] != pair[1]]
    return all(not word[0].islower() for pair in moved for word in pair)


def directions(text: str) -> dict[frozenset[str], tuple[str, str]]:
    """For each pair of names of one sentence: who comes first, and who acts.

    >>> directions("Bob was invited by Alice.")[frozenset({"alice", "bob"})]
    ('bob', 'alice')
    """
    found: dict[frozenset[str], tuple[str, str]] = {}
    for sentence in sentences(unicodedata.normalize("NFKC", text)):
        words = _WORD.findall(sentence)
        lower = [word.casefold().removesuffix("'s").removesuffix("’s") for word in words]
        compares = "than" in lower or "compared" in lower
        names = [
            (index, name)
            for index, (word, name) in enumerate(zip(words, lower, strict=True))
            if word[0].isupper()
            and name not in COMMON
            and (compares or not index or lower[index - 1] not in _PLACES)
        ][:_MAX_NAMES]
        for one, other in itertools.combinations(names, 2):
            if one[1] != other[1]:
                key = frozenset({one[1], other[1]})
                # a converse word counts between the names, and after the sentence's last
                end = other[0] if other is not names[-1] else len(lower)
                found.setdefault(key, (one[1], _acting(one, other, lower, end)))
    return found


def _acting(one: tuple[int, str], other: tuple[int, str], words: list[str], end: int) -> str:
    before = [words[index - 1] if index else "" for index, _ in (one, other)]
    sources = [_SOURCES.get(word, 0) for word in before]
    turned = sum(word in _CONVERSE for word in words[one[0] : end]) % 2 == 1
    if sources[0] != sources[1]:
        acting = other if sources[1] > sources[0] else one
        # "by" and "from" say it all; whose manager somebody is acts on them
        turned = max(sources) == _SOURCES["of"] and any(word in _SUPERIOR for word in words)
    elif before[0] in _TARGETS and before[1] not in _TARGETS:
        acting = other
    else:
        acting = one
    return (other if acting is one else one)[1] if turned else acting[1]

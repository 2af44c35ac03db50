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

_SOURCES: Final = frozenset({"by", "from", "whom", "of"})
"""Before a name: it is who acts, gives, has. A passive's agent, a giver, an owner."""
_TARGETS: Final = frozenset({"to", "against", "than", "with", "for", "towards", "behind"})
_PLACES: Final = frozenset({"in", "at", "on", "near", "where", "during", "until", "since"})
"""Before a name: it says where or when, and has no part that could be exchanged."""

_CONVERSE_WORDS: Final = """
lost lose loses losing reports reported answers owes owed shorter smaller younger lower slower
cheaper weaker lighter fewer less worse below under after later obeys inherits inherited follows
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
    """``roles_differ``: share of the pairs of names that both sides have in one sentence and in
    which another one acts. ``order_differs``: share of those in which another one comes first.

    Who acts is guessed from the word before a name (``by``, ``from``, ``to``, ``than``…), from the
    order, and from a list of converse words ("lost to"). Names after ``in`` or ``at`` are left out.
    It is a guess: the panel's model weighs it.
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
        total = acting = first = 0
        for one, other in pairs:
            left, right = directions(one), directions(other)
            for names in left.keys() & right.keys():
                total += 1
                first += left[names][0] != right[names][0]
                acting += left[names][1] != right[names][1]
        if not total:
            return {"roles_differ": 0.0, "order_differs": 0.0}
        return {"roles_differ": acting / total, "order_differs": first / total}


def directions(text: str) -> dict[frozenset[str], tuple[str, str]]:
    """For each pair of names of one sentence: who comes first, and who acts.

    >>> directions("Bob was invited by Alice.")[frozenset({"alice", "bob"})]
    ('bob', 'alice')
    """
    found: dict[frozenset[str], tuple[str, str]] = {}
    for sentence in sentences(unicodedata.normalize("NFKC", text)):
        words = _WORD.findall(sentence)
        lower = [word.casefold().removesuffix("'s").removesuffix("’s") for word in words]
        names = [
            (index, name)
            for index, (word, name) in enumerate(zip(words, lower, strict=True))
            if word[0].isupper()
            and name not in COMMON
            and not (index and lower[index - 1] in _PLACES and lower[index - 1] != "where")
        ][:_MAX_NAMES]
        for one, other in itertools.combinations(names, 2):
            if one[1] != other[1]:
                key = frozenset({one[1], other[1]})
                found.setdefault(key, (one[1], _acting(one, other, lower)))
    return found


def _acting(one: tuple[int, str], other: tuple[int, str], words: list[str]) -> str:
    before = [words[index - 1] if index else "" for index, _ in (one, other)]
    sources = [word in _SOURCES for word in before]
    turned = sum(word in _CONVERSE for word in words) % 2 == 1
    if sources[0] != sources[1]:
        acting = other if sources[1] else one
        if before[sources.index(True)] == "of":
            turned = any(word in _SUPERIOR for word in words)
        else:  # "by" and "from" say it all
            turned = False
    elif before[0] in _TARGETS and before[1] not in _TARGETS:
        acting = other
    else:
        acting = one
    return (other if acting is one else one)[1] if turned else acting[1]

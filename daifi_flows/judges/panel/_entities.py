"""Judge: the same names, in letters of one script."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.judges.panel._judge import Comparable, Senses, normalised, sentences

__all__ = ["COMMON", "EntitiesJudge", "disguised", "names"]

_NAME: Final = re.compile(r"\b[^\W\d_a-z][\w'’-]*")
_WORD: Final = re.compile(r"\w+")
_FUNCTION_WORDS: Final = """
the a an it its this that these those he she they we you i in on at by from to for with of as
and or but if when while there here each every both some many most all no not yes one two who
what why how where according compared within after before because although since during so then
thus also however additionally is are was were can will do does did has have had
"""
COMMON: Final = frozenset(_FUNCTION_WORDS.split())
"""Words that begin sentences and name nothing."""

_INVISIBLE: Final = frozenset({"Cf", "Co", "Cn"})
"""Unicode categories of characters nobody sees: joiners, direction marks, private use."""


class EntitiesJudge:
    """``names_differ``: n/(n + 1) for n names inside sentences, of both sides, that are nowhere in
    the other text. ``doubtful_names_differ``: the same for capitalised words that begin a sentence,
    which may be names. ``disguised``: 1 when one side has more words that mix scripts (a Cyrillic
    ``а`` in ``Pаris``), or more invisible characters (Unicode TR 39, section 5).
    """

    name: ClassVar[str] = "entities"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        if not (claimed.readable and expected.readable):
            return dict.fromkeys(("names_differ", "doubtful_names_differ", "disguised"), math.nan)
        left, right = _Names(claimed.whole), _Names(expected.whole)
        return {
            "names_differ": _missing(left.sure, right.sure, left, right),
            "doubtful_names_differ": _missing(left.doubtful, right.doubtful, left, right),
            "disguised": float(disguised(claimed.whole) != disguised(expected.whole)),
        }


class _Names:
    """What one text names."""

    def __init__(self, text: str) -> None:
        self.words = frozenset(_WORD.findall(normalised(text)))
        self.sure, self.doubtful = names(text)


def names(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Capitalised words inside sentences, and those that only ever begin one, case folded.

    >>> sure, doubtful = names("Yesterday Alice met Bob. Children saw it.")
    >>> sorted(sure), sorted(doubtful)
    (['alice', 'bob'], ['children', 'yesterday'])
    """
    sure: set[str] = set()
    doubtful: set[str] = set()
    for sentence in sentences(unicodedata.normalize("NFKC", text)):
        for match in _NAME.finditer(sentence):
            word = match[0].replace("’", "'").casefold()
            word = word.removesuffix("'s")
            if word in COMMON or "'" in word:
                continue
            begins = not _WORD.search(sentence[: match.start()])
            (doubtful if begins else sure).add(word)
    return frozenset(sure), frozenset(doubtful - sure)


def disguised(text: str) -> int:
    """Number of words that mix scripts, and of invisible characters.

    >>> disguised("P\\u0430ris"), disguised("Paris \\u041f\\u0430\\u0440\\u0438\\u0436")
    (1, 0)
    """
    if text.isascii():
        return 0
    found = sum(unicodedata.category(char) in _INVISIBLE for char in text)
    for word in set(_WORD.findall(text)):
        if not word.isascii():
            scripts = {_script(char) for char in word if char.isalpha()}
            found += len(scripts - {"HIRAGANA", "KATAKANA", "CJK", "HANGUL"}) > 1
    return found


def _script(char: str) -> str:
    """The first word of the character's Unicode name: ``LATIN``, ``CYRILLIC``, ``GREEK``…"""
    return unicodedata.name(char, "?").split(" ", 1)[0]


def _missing(one: frozenset[str], other: frozenset[str], left: _Names, right: _Names) -> float:
    def absent(name: str, words: frozenset[str]) -> bool:
        return not words.issuperset(_WORD.findall(name))

    missing = sum(absent(name, right.words) for name in one)
    missing += sum(absent(name, left.words) for name in other)
    return missing / (missing + 1)

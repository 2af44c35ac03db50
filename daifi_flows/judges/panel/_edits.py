"""Edits of a text by code: some leave its meaning as it is, the others change it."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping
from typing import Final

from daifi_flows.judges.panel._frames import POOLS, SPLITS
from daifi_flows.judges.panel._numbers import WORDS

__all__ = ["CHANGES", "REWORDINGS", "negate", "pool", "rename", "renumber", "swap"]

Edit = Callable[[str, random.Random, str], "str | None"]
"""``(text, random, split)`` to the edited text, or ``None`` where there is nothing to edit."""

_AUXILIARY: Final = re.compile(
    r"\b(is|are|was|were|can|could|will|would|should|has|have|had|does|do|did|must|may)\b"
    r"(?! not\b| never\b|n't)(?= \w)"
)
_DENIAL: Final = re.compile(
    r"\b(is|are|was|were|could|will|would|should|does|did|do|must|may) not\b"
)
_NUMBER: Final = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w]|,\d)")
_NAME: Final = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b")

_SYNONYMS: Final[tuple[tuple[str, str], ...]] = (
    ("big", "large"), ("also", "additionally"), ("begin", "start"), ("buy", "purchase"),
    ("help", "assist"), ("show", "demonstrate"), ("important", "significant"),
    ("many", "numerous"), ("use", "utilise"), ("used", "utilised"), ("often", "frequently"),
    ("however", "but"), ("quickly", "rapidly"), ("usually", "typically"), ("find", "discover"),
    ("end", "finish"), ("make", "produce"), ("need", "require"), ("needs", "requires"),
    ("get", "obtain"), ("small", "little"), ("over", "more than"), ("about", "roughly"),
    ("people", "persons"), ("allows", "lets"), ("keep", "retain"), ("main", "principal"),
    ("known as", "called"), ("such as", "for example"), ("various", "several"),
    ("essential", "vital"), ("crucial", "critical"), ("located", "situated"),
    ("home to", "the home of"), ("provide", "supply"), ("beautiful", "lovely"),
    ("different", "distinct"), ("popular", "well-liked"), ("including", "among them"),
)  # fmt: skip

_CONTRACTIONS: Final[tuple[tuple[str, str], ...]] = (
    ("is not", "isn't"), ("are not", "aren't"), ("was not", "wasn't"), ("does not", "doesn't"),
    ("did not", "didn't"), ("do not", "don't"), ("cannot", "can't"), ("will not", "won't"),
    ("It is", "It's"), ("it is", "it's"), ("They are", "They're"), ("they are", "they're"),
)  # fmt: skip

_UNITS: Final[tuple[tuple[str, str], ...]] = (
    ("kilometres", "km"), ("percent", "%"), ("kilograms", "kg"), ("metres", "m"),
    ("minutes", "min"), ("hours", "h"),
)  # fmt: skip


def pool(kind: str, split: str) -> tuple[str, ...]:
    """The words of a pool that belong to a split."""
    return POOLS[kind][SPLITS.index(split) :: len(SPLITS)]


def negate(text: str, rng: random.Random, split: str) -> str | None:
    """Deny one clause, or take a denial away."""
    del split
    denied = list(_DENIAL.finditer(text))
    if denied and rng.random() < 0.5:
        match = rng.choice(denied)
        return f"{text[: match.end() - 4]}{text[match.end() :]}"
    found = list(_AUXILIARY.finditer(text))
    if not found:
        return None
    match = rng.choice(found)
    word = " never" if rng.random() < 0.2 else " not"
    return f"{text[: match.end()]}{word}{text[match.end() :]}"


def renumber(text: str, rng: random.Random, split: str) -> str | None:
    """Change one number."""
    del split
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    match = rng.choice(found)
    return text[: match.start()] + other_number(match[0], rng) + text[match.end() :]


def other_number(spelt: str, rng: random.Random) -> str:
    """Another number that looks like this one."""
    digits = [index for index, char in enumerate(spelt) if char.isdigit()]
    match rng.randrange(3):
        case 0 if (
            len(digits) > 1 and spelt[digits[0]] != spelt[digits[1]] and spelt[digits[1]] > "0"
        ):
            one, two = digits[0], digits[1]
            return spelt[:one] + spelt[two] + spelt[one + 1 : two] + spelt[one] + spelt[two + 1 :]
        case 1 if "," not in spelt and "." not in spelt:
            return spelt + "0"
        case _:
            index = rng.choice(digits)
            allowed = [d for d in "123456789" if d != spelt[index]]
            return spelt[:index] + rng.choice(allowed) + spelt[index + 1 :]


def rename(text: str, rng: random.Random, split: str) -> str | None:
    """Put another name in a name's place."""
    found = list(_NAME.finditer(text))
    if not found:
        return None
    match = rng.choice(found)
    kinds = [kind for kind in "pcko" if match[0] in POOLS[kind]] or list("pck")
    others = [name for name in pool(rng.choice(kinds), split) if name != match[0]]
    return text[: match.start()] + rng.choice(others) + text[match.end() :]


def swap(text: str, rng: random.Random, split: str) -> str | None:
    """Exchange two names of one sentence that are not members of one list."""
    del split
    found = list(_NAME.finditer(text))
    able = [
        (one, two)
        for one, two in itertools.pairwise(found)
        if one[0] != two[0]
        and 2 <= len((between := text[one.end() : two.start()]).split()) <= 8
        and not re.search(r"[,.;:]|\b(?:and|or|with|both)\b", between)
    ]
    if not able:
        return None
    one, two = rng.choice(able)
    return text[: one.start()] + two[0] + text[one.end() : two.start()] + one[0] + text[two.end() :]


def _replaced(text: str, pairs: tuple[tuple[str, str], ...], rng: random.Random) -> str | None:
    able = [
        (old, new)
        for pair in pairs
        for old, new in (pair, pair[::-1])
        if re.search(rf"(?<!\w){re.escape(old)}(?!\w)", text)
    ]
    if not able:
        return None
    old, new = rng.choice(able)
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new, text, count=1)


def synonym(text: str, rng: random.Random, split: str) -> str | None:
    """Another word for one of the words."""
    return _replaced(text, _SYNONYMS[SPLITS.index(split) :: len(SPLITS)], rng)


def contract(text: str, rng: random.Random, split: str) -> str | None:
    """``is not`` for ``isn't``, or the other way."""
    del split
    return _replaced(text, _CONTRACTIONS, rng)


def respell(text: str, rng: random.Random, split: str) -> str | None:
    """A unit, a number or an apostrophe spelt in another way."""
    del split
    names = {value: word for word, value in WORDS.items()}
    ways: list[str] = []
    for match in _NUMBER.finditer(text):
        spelt = match[0]
        before, after = text[: match.start()], text[match.end() :]
        if spelt.isdigit() and int(spelt) in names and int(spelt) > 1:
            ways.append(before + names[int(spelt)] + after)
        elif "," in spelt:
            ways.append(before + spelt.replace(",", "") + after)
        elif spelt.isdigit() and len(spelt) > 4:
            ways.append(before + f"{int(spelt):,}" + after)
    for long, short in _UNITS:
        if match := re.search(rf"(\d) {long}\b", text):
            gap = "" if short == "%" else " "
            ways.append(text[: match.end(1)] + gap + short + text[match.end() :])
    if "'" in text:
        ways.append(text.replace("'", "’"))
    return rng.choice(ways) if ways else None


def respace(text: str, rng: random.Random, split: str) -> str | None:
    """Other spaces, or no full stop at the end."""
    del split
    if text.endswith(".") and rng.random() < 0.5:
        return text[:-1]
    return text.replace(". ", ".\n") if ". " in text else f" {text}\n"


def disguise(text: str, rng: random.Random, split: str) -> str | None:
    """A Cyrillic letter in place of the Latin one that looks like it."""
    del split
    able = [index for index, char in enumerate(text) if char in _ALIKE]
    if not able:
        return None
    index = rng.choice(able)
    return text[:index] + _ALIKE[text[index]] + text[index + 1 :]


_ALIKE: Final = dict(zip("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ", strict=True))

CHANGES: Final[Mapping[str, Edit]] = {
    "disguise": disguise,
    "negation": negate,
    "number": renumber,
    "entity": rename,
    "role": swap,
}
"""Edits after which a text says something else."""

REWORDINGS: Final[Mapping[str, Edit]] = {
    "synonym": synonym,
    "contraction": contract,
    "spelling": respell,
    "spaces": respace,
}
"""Edits after which a text says the same."""

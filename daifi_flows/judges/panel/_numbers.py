"""Judge: the same numbers with the same units, as multisets."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import ClassVar, Final

from daifi_flows.judges.panel._judge import Comparable, Senses, normalised

__all__ = ["NumbersJudge", "quantities"]

_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+]?)(?P<currency>[$€£¥]?)"
    r"(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?P<exponent>e[-+]?\d{1,3})?"
    r"(?P<tail>\s?(?:%|[a-zµ°]+(?:/[a-z]+)?))?"
)

WORDS: Final = {
    "zero": 0, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
}  # fmt: skip
"""Without "one", which is as often a pronoun as a number."""

_UNITS: Final = {
    alias: unit
    for unit, aliases in {
        "%": "% percent",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers kilometre kilometres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "mm": "mm millimeter millimeters millimetre millimetres",
        "mi": "mi mile miles",
        "ft": "ft foot feet",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "t": "t ton tons tonne tonnes",
        "lb": "lb lbs pound pounds",
        "s": "s sec secs second seconds",
        "ms": "ms millisecond milliseconds",
        "min": "min mins minute minutes",
        "h": "h hr hrs hour hours",
        "d": "day days",
        "wk": "week weeks",
        "mo": "month months",
        "y": "year years",
        "b": "byte bytes",
        "kb": "kb kilobyte kilobytes",
        "mb": "mb megabyte megabytes",
        "gb": "gb gigabyte gigabytes",
        "tb": "tb terabyte terabytes",
        "c": "°c celsius",
        "f": "°f fahrenheit",
        "km/h": "km/h kph",
        "mph": "mph",
        "m/s": "m/s",
        "w": "w watt watts",
        "kw": "kw kilowatt kilowatts",
        "wei": "wei",
        "dai": "dai",
        "usd": "$ usd dollar dollars",
        "eur": "€ eur euro euros",
        "gbp": "£ gbp",
        "jpy": "¥ jpy yen",
        "thousand": "thousand",
        "million": "million",
        "billion": "billion bn",
    }.items()
    for alias in aliases.split()
}


def quantities(text: str) -> Counter[tuple[str, str]]:
    """Multiset of (value, unit) in a text; the unit is empty when none of the known follows.

    >>> sorted(quantities("1,000 metres in 3.50 s, then twelve of them"))
    [('1000', 'm'), ('12', ''), ('3.5', 's')]
    """
    text = normalised(text)
    found: Counter[tuple[str, str]] = Counter()
    for match in _NUMBER.finditer(text):
        spelt = match["value"].replace(",", "") + (match["exponent"] or "")
        # "3-4" is a range and "covid-19" a name: a sign counts only after a space
        negative = match["sign"] == "-" and (match.start() == 0 or text[match.start() - 1] in " (")
        try:
            value = Decimal(("-" if negative else "") + spelt)
            name = format(value.normalize(), "f") if abs(value.adjusted()) < 60 else spelt
        except InvalidOperation:
            name = spelt
        unit = _UNITS.get((match["tail"] or "").strip()) or _UNITS.get(match["currency"], "")
        found[(name, unit)] += 1
    for word in re.findall(r"[a-z]+", text):
        if word in WORDS:
            found[(str(WORDS[word]), "")] += 1
    return found


class NumbersJudge:
    """``numbers_differ``: 1 when a value is on one side only, or more often there.
    ``units_differ``: 1 when the values agree and a unit does not."""

    name: ClassVar[str] = "numbers"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        if not (claimed.readable and expected.readable):
            return {"numbers_differ": math.nan, "units_differ": math.nan}
        left, right = quantities(claimed.whole), quantities(expected.whole)
        if left == right:
            return {"numbers_differ": 0.0, "units_differ": 0.0}
        differ = _values(left) != _values(right)
        return {"numbers_differ": float(differ), "units_differ": float(not differ)}


def _values(found: Counter[tuple[str, str]]) -> Counter[str]:
    values: Counter[str] = Counter()
    for (value, _), times in found.items():
        values[value] += times
    return values

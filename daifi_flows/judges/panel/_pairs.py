"""Pairs of texts of which it is known whether they say the same, by code and seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from daifi_flows.judges.panel._edits import REWORDINGS, other_number, pool
from daifi_flows.judges.panel._frames import FRAMES, POOLS, SPLITS, Frame

__all__ = ["Fact", "Pair", "changed", "draw_fact", "statement_pairs", "thing_pairs"]

KINDS: Final = ("negation", "number", "entity", "role")


@dataclass(frozen=True)
class Pair:
    """Two texts, what was done to one of them, and whether they still say the same.

    Attributes:
        kind: what makes the pair hard: ``negation``, ``number``, ``entity``, ``role``, another
            statement, a paraphrase, an edit that leaves the meaning, or where real texts are from.
        claimed_scores, expected_scores: log-probabilities of the texts' tokens under the
            committee's model, where a model wrote them; natural logarithm.
    """

    claimed: str
    expected: str
    same: bool
    kind: str
    claimed_scores: tuple[float, ...] = ()
    expected_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Fact:
    """A frame with its slots filled; ``denied`` facts are told by the frame's denials."""

    frame: Frame
    values: tuple[tuple[str, str], ...]
    denied: bool = False

    def say(self, rng: random.Random) -> str:
        """One of its forms, numbers as they are spelt."""
        forms = self.frame.denials if self.denied else self.frame.forms
        return rng.choice(forms).format(**dict(self.values))


def _slots(frame: Frame) -> list[str]:
    import string

    return sorted({name for _, name, _, _ in string.Formatter().parse(frame.forms[0]) if name})


def _value(slot: str, rng: random.Random, split: str) -> str:
    match slot[0]:
        case "y":
            return str(rng.randrange(1850, 2024))
        case "n":
            return str(rng.randrange(2, 60))
        case "q":
            number = rng.choice((rng.randrange(100, 1000), rng.randrange(1000, 90_000)))
            return f"{number:,}" if rng.random() < 0.5 else str(number)
        case "v":
            return f"{rng.randrange(2, 90)}.{rng.randrange(1, 10)}"
        case "m":
            return str(rng.randrange(2, 99))
        case kind:
            return rng.choice(pool(kind, split))


def draw_fact(rng: random.Random, split: str) -> Fact:
    """A fact of the split, asserted nine times of ten."""
    frame = rng.choice(FRAMES[SPLITS.index(split) :: len(SPLITS)])
    values: dict[str, str] = {}
    for slot in _slots(frame):
        while (value := _value(slot, rng, split)) in values.values():
            pass
        values[slot] = value
    return Fact(frame, tuple(values.items()), rng.random() < 0.1)


def changed(fact: Fact, kind: str, rng: random.Random, split: str) -> Fact | None:
    """The fact after a change of this kind; ``None`` where it has nothing of the kind."""
    values = dict(fact.values)
    match kind:
        case "negation":
            return Fact(fact.frame, fact.values, not fact.denied)
        case "number":
            able = [slot for slot in values if slot[0] in "ynqvm"]
            if not able:
                return None
            slot = rng.choice(able)
            values[slot] = other_number(values[slot], rng)
        case "entity":
            able = [slot for slot in values if slot[0] in "pckotwu"]
            if not able:
                return None
            slot = rng.choice(able)
            others = [each for each in pool(slot[0], split) if each not in values.values()]
            values[slot] = rng.choice(others)
        case _:
            if not fact.frame.roles:
                return None
            one, two = fact.frame.roles
            values[one], values[two] = values[two], values[one]
    return Fact(fact.frame, tuple(values.items()), fact.denied)


def _tell(facts: list[Fact], rng: random.Random, split: str) -> str:
    text = " ".join(fact.say(rng) for fact in facts)
    for edit in REWORDINGS.values():
        if rng.random() < 0.15:
            text = edit(text, rng, split) or text
    return text


def statement_pairs(split: str, count: int, seed: int) -> list[Pair]:
    """``count`` pairs of one to three statements each: one half says the same, the other differs
    in one statement, told in forms drawn alike.

    The other half in equal parts: negation, number, entity, roles exchanged, one other statement.
    """
    rng = random.Random(f"{split} {seed}")
    pairs: list[Pair] = []
    kinds = (*KINDS, "other")
    while len(pairs) < count:
        facts = [draw_fact(rng, split) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        told = [*facts]
        kind = "paraphrase"
        if len(pairs) % 2:
            kind = kinds[len(pairs) // 2 % len(kinds)]
            where = rng.randrange(len(facts))
            other = (
                draw_fact(rng, split)
                if kind == "other"
                else changed(facts[where], kind, rng, split)
            )
            if other is None:
                continue
            told[where] = other
        claimed, expected = _tell(told, rng, split), _tell(facts, rng, split)
        if claimed != expected:
            pairs.append(Pair(claimed, expected, kind == "paraphrase", kind))
    return pairs


def thing_pairs(count: int, seed: int) -> list[Pair]:
    """``count`` training pairs about more kinds of things, of which one half names another thing.

    No judge of words sees this difference but by the embedding.
    """
    rng = random.Random(f"things {seed}")
    pairs: list[Pair] = []
    while len(pairs) < count:
        fact = draw_fact(rng, "train")
        values = dict(fact.values)
        if "t" not in values:
            continue
        one, other = rng.sample(POOLS["x"], 2)
        same = len(pairs) % 2 == 0
        told = Fact(fact.frame, tuple({**values, "t": one}.items()), fact.denied).say(rng)
        again = {**values, "t": one if same else other}
        expected = Fact(fact.frame, tuple(again.items()), fact.denied).say(rng)
        if told != expected:
            pairs.append(Pair(told, expected, same, "paraphrase" if same else "entity"))
    return pairs

"""Prompts whose answers teach and test the judges: questions, and passages to reword."""

from __future__ import annotations

import random
from dataclasses import dataclass

from daifi_flows.judges.panel._frames import SPLITS
from daifi_flows.judges.panel._pairs import KINDS, changed, draw_fact

__all__ = ["Prompt", "prompts"]

_WORDS = """
whales volcanoes bread bicycles rainbows penguins chess coffee glaciers trains honey owls
vaccines cement tomatoes lightning magnets spiders paper butterflies guitars deserts salt
dolphins tides rice windmills camels diamonds cheese bamboo satellites elephants soap mushrooms
batteries kangaroos glass potatoes earthquakes silk bees chocolate submarines sunflowers rockets
wolves pianos coral lighthouses tea bridges frogs steel comets cotton giraffes clocks olives
tornadoes telescopes sharks rubber maple eagles lemons canals horses ice copper bats pepper
ferries tigers wool caves bananas radios snails mirrors oak parrots concrete salmon helium
ginger castles ants kites wheat
"""
_SUBJECTS = _WORDS.split()
_QUESTIONS = (
    "In one or two sentences, what are {}?",
    "Why are {} important? Answer briefly.",
    "Tell me one fact with a number about {}.",
    "Name a country that is known for {} and say why.",
    "Write one sentence about {} for a child.",
    "Who first studied {}, and when?",
)
_TASKS = (
    "Say the same in other words.",
    "Repeat these facts as a list.",
    "Write this as one sentence.",
    "Tell a friend what happened, with every name and number.",
)


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, and a prompt like it that asks for something else.

    Attributes:
        change: what tells the two apart: a kind of :mod:`_pairs`, or ``subject``.
    """

    split: str
    asked: str
    other: str
    change: str


def prompts(per_split: int, seed: int = 1) -> list[Prompt]:
    """The same on every machine; half of them questions, half passages."""
    found: list[Prompt] = []
    for part, split in enumerate(SPLITS):
        rng = random.Random(f"prompts {split} {seed}")
        subjects = _SUBJECTS[part :: len(SPLITS)]
        for index in range(per_split // 2):
            question = _QUESTIONS[(index + index // len(subjects)) % len(_QUESTIONS)]
            subject = subjects[index % len(subjects)]
            other = rng.choice([each for each in subjects if each != subject])
            found.append(Prompt(split, question.format(subject), question.format(other), "subject"))
        while len(found) < per_split * (part + 1):
            facts = [draw_fact(rng, split) for _ in range(rng.choice((1, 2, 2)))]
            kind, where = KINDS[len(found) % len(KINDS)], rng.randrange(len(facts))
            if (wrong := changed(facts[where], kind, rng, split)) is None:
                continue
            task, state = rng.choice(_TASKS), rng.getrandbits(32)
            told: list[str] = []
            for each in (facts, [*facts[:where], wrong, *facts[where + 1 :]]):
                words = random.Random(state)
                told.append(f"{' '.join(fact.say(words) for fact in each)}\n\n{task}")
            found.append(Prompt(split, told[0], told[1], kind))
    return found

"""Prompts for measurements: paragraphs of the documentation, each with something to do."""

from __future__ import annotations

import itertools
from pathlib import Path

__all__ = ["cut", "prompts"]

_TASKS = (
    "Explain this passage in detail to a new colleague.",
    "Write a long story in which this matters.",
    "List every claim made here and comment on each.",
    "Write a dialogue of two engineers who argue about this.",
    "Turn this into a quiz with answers.",
    "Rewrite this as a letter to a customer.",
    "Give five examples, each with numbers.",
    "What could go wrong? Write a report.",
    "Write a Python program that models this, with comments.",
    "Summarise this in French, then in Spanish.",
)
_DOCS = Path(__file__).parent.parent / "docs"


def _paragraphs() -> list[str]:
    found: list[str] = []
    for file in sorted(_DOCS.glob("*.md")):
        for block in file.read_text().split("\n\n"):
            text = " ".join(block.split())
            if 240 <= len(text) <= 900 and text[0].isalpha():
                found.append(text)
    return found


def prompts(count: int) -> list[tuple[str, str]]:
    """``count`` different pairs of passage and task, the same on every machine."""
    passages = _paragraphs()
    pairs = (
        (passage, _TASKS[(index + turn) % len(_TASKS)])
        for turn in itertools.count()
        for index, passage in enumerate(passages)
    )
    return list(itertools.islice(pairs, count))


def cut(passage: str) -> str:
    """The passage without its middle half, the ends spliced: what a node saves by not reading."""
    words = passage.split()
    quarter = len(words) // 4
    return " ".join([*words[:quarter], *words[-quarter:]])

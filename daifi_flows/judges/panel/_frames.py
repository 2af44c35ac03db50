"""Sentences with a known meaning: frames that say one fact in several ways, or deny it.

``data/frames.txt`` has a frame a line: forms that mean the same, then forms that deny it, then the
slots whose exchange makes another statement. ``data/words.txt`` has the words of each kind of
slot: ``p`` person, ``c`` city, ``k`` country, ``o`` company, ``t`` things, ``w`` weekday, ``u``
month, and ``x`` for more things, in training only. Other slots are numbers: ``y`` year, ``n``
small, ``q`` large, ``v`` decimal, ``m`` per cent. A digit tells two slots of one kind apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

__all__ = ["FRAMES", "POOLS", "SPLITS", "Frame"]

SPLITS: Final = ("train", "calibration", "held-out")
"""A frame, and a word of a pool, belongs to the split of its position modulo three."""


@dataclass(frozen=True)
class Frame:
    """One fact's forms, the forms of its denial, and slots that can be exchanged (or none)."""

    forms: tuple[str, ...]
    denials: tuple[str, ...]
    roles: tuple[str, ...]


def _lines(name: str) -> list[str]:
    return (files(__package__ or "") / "data" / name).read_text("utf-8").splitlines()


def _frame(line: str) -> Frame:
    forms, denials, roles = (part.strip() for part in line.split("||"))
    return Frame(
        tuple(form.strip() for form in forms.split(" | ")),
        tuple(form.strip() for form in denials.split(" | ")),
        tuple(roles.split()),
    )


POOLS: Final[Mapping[str, tuple[str, ...]]] = {
    line[0]: tuple(line[2:].split()) for line in _lines("words.txt")
}
FRAMES: Final = tuple(_frame(line) for line in _lines("frames.txt"))

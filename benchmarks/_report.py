"""What a benchmark prints: figures with their targets, baselines and samples."""

from __future__ import annotations

import operator
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Figure", "machine", "report"]

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Figure:
    """One measured figure: the median of its samples.

    Attributes:
        target: text such as ``<= 90``; empty when there is none.
        baseline: what the figure is to be compared with, measured in the same run, by name.
    """

    name: str
    samples: Sequence[float]
    unit: str
    target: str = ""
    baseline: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def value(self) -> float:
        """Median."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        if not self.target:
            return None
        sign, number = self.target.split()
        return _COMPARE[sign](self.value, float(number))

    def jsonable(self) -> dict[str, Any]:
        """As the one JSON object's ``figures`` list has it."""
        return asdict(self) | {
            "value": round(self.value, 4),
            "met": self.met,
            "samples": [round(sample, 4) for sample in self.samples],
        }


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def report(name: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    return {
        "benchmark": name,
        "machine": machine(),
        "figures": [figure.jsonable() for figure in figures],
    }

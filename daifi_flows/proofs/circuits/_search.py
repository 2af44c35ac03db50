"""The pure part of the tuner: what a circuit will cost, and which layouts are worth a try."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

from daifi_flows.proofs.circuits._settings import CircuitSettings

__all__ = ["Analysis", "Cost", "best_sizes", "decompositions", "layouts", "least", "predict"]

_BLINDING: Final = 10
"""Rows of each column that hold no values, rounded up (Halo2: blinding factors + 1)."""
_SECONDS_PER_CELL: Final = 18e-6
"""One column's share of a proof's time, a row: fitted to 16 proofs of six circuits (k 10 to 15, 1
to 8 inner columns, ezkl 23.0.5, one core); within ±25% of each. Only ratios matter here."""
_LOOKUP: Final = 1.5
"""Columns that one lookup costs as much as."""
_FREIVALDS: Final = 5.5
"""The same for a block of the random projections."""
_POSEIDON: Final = 4.0
_FIXED_SECONDS: Final = 0.1
_COLUMNS: Final = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Analysis:
    """What ezkl counts of a model under some settings, without laying it out.

    Attributes:
        assignments: cells of each of the three kinds of advice columns.
        constants: different constants.
        tables: sizes of the tables that values are looked up in.
        freivalds: cells of the random projections.
        module_rows: rows of the Poseidon hashes.
        instances: public integers.
    """

    assignments: int
    constants: int
    tables: tuple[int, ...]
    freivalds: int
    module_rows: int
    instances: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Analysis:
        """From ezkl's ``settings.json``."""
        low, high = settings["run_args"]["lookup_range"]
        ranges = [last - first + 1 for first, last in settings["required_range_checks"]]
        module_rows, hashes = settings["module_sizes"]["poseidon"]
        shapes = settings["model_instance_shapes"]
        return cls(
            assignments=settings["total_assignments"],
            constants=settings["total_const_size"],
            tables=(*ranges, *[high - low + 1] * len(settings["required_lookups"])),
            freivalds=settings["einsum_params"]["total_einsum_col_size"],
            module_rows=module_rows,
            instances=sum(hashes) + sum(_size(shape) for shape in shapes),
        )


@dataclass(frozen=True)
class Cost:
    """A prediction: columns of all kinds (lookups and projections counted as columns), rows, and
    seconds on the machine the model was fitted on."""

    columns: float
    logrows: int

    @property
    def seconds(self) -> float:
        """Of one proof."""
        return _FIXED_SECONDS + _SECONDS_PER_CELL * self.columns * (1 << self.logrows)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def predict(analysis: Analysis, num_inner_cols: int, logrows: int) -> Cost | None:
    """Cost of a layout; ``None`` when it does not fit."""
    usable = (1 << logrows) - _BLINDING
    if usable <= 0 or max(analysis.instances, analysis.module_rows) > usable:
        return None
    blocks = (analysis.assignments + 1) // (usable * num_inner_cols) + 1
    advice = 3 * num_inner_cols * blocks
    lookups = sum(ceil(size / usable) for size in analysis.tables) * num_inner_cols * blocks
    constants = analysis.constants // usable + 1 if analysis.constants else 0
    freivalds = ceil(analysis.freivalds / usable) * max(1.0, num_inner_cols / 2)
    columns = (
        advice
        + _LOOKUP * lookups
        + constants
        + _FREIVALDS * freivalds
        + (_POSEIDON if analysis.module_rows else 0.0)
    )
    return Cost(columns, logrows)


def best_sizes(
    analysis: Analysis, settings: CircuitSettings, sizes: Iterable[int]
) -> list[tuple[Cost, CircuitSettings]]:
    """The settings at the two numbers of rows among 2^sizes that are predicted to be fastest."""
    found: list[tuple[Cost, CircuitSettings]] = []
    for logrows in sizes:
        cost = predict(analysis, settings.num_inner_cols, logrows)
        if cost is not None:
            found.append((cost, replace(settings, logrows=logrows)))
    return sorted(found, key=lambda item: item[0].seconds)[:2]


def decompositions(bits: int) -> list[tuple[int, int]]:
    """``(base, legs)`` that hold integers of so many bits: for each number of legs the smallest
    table.

    >>> decompositions(26)[:3]
    [(8192, 2), (512, 3), (128, 4)]
    """
    found: dict[int, int] = {}
    for width in range(14, 2, -1):
        found[ceil(bits / width)] = width
    return [(1 << width, legs) for legs, width in sorted(found.items())]


def layouts(
    settings: CircuitSettings, bits: int | None, visibilities: Iterable[Any]
) -> list[CircuitSettings]:
    """Layouts of one arithmetic: everything that changes the cost and not the outputs.

    Args:
        bits: what integers that are decomposed must hold; ``None`` when none are.
    """
    bases = decompositions(bits) if bits is not None else [(1024, 3)]
    return [
        replace(
            settings,
            input_visibility=visibility,
            decomp_base=base,
            decomp_legs=legs,
            num_inner_cols=columns,
            freivalds=freivalds,
        )
        for visibility in visibilities
        for base, legs in bases
        for columns in _COLUMNS
        for freivalds in (False, True)
    ]


def least(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The least integer in ``low … high`` for which ``holds``, by bisection; ``None`` when it does
    not hold at ``high``. ``holds`` must stay true once it is.

    >>> least(0, 100, lambda value: value * value >= 50)
    8
    """
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high

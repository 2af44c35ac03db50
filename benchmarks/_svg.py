"""Line plots as SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

__all__ = ["Line", "Plot"]

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by the colour-blind (Okabe and Ito, 2008)."""
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 640, 400, 78, 44, 56, 18


@dataclass(frozen=True)
class Line:
    """A line through points; ``band`` has a low and a high value for each."""

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    dots: bool = False


@dataclass
class Plot:
    """Axes with lines on them. Where an axis is logarithmic, all of its values are positive."""

    title: str
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    lines: list[Line] = field(default_factory=list[Line])
    zero: bool = False
    """Draw the line y = 0."""

    def write(self, path: Path) -> None:
        """Draw into a file."""
        xs = [x for line in self.lines for x, _ in line.points]
        ys = [y for line in self.lines for _, y in line.points]
        ys += [y for line in self.lines for pair in line.band for y in pair]
        ys += [0.0] if self.zero else []
        x_of = _Scale(min(xs), max(xs), self.x_log, _LEFT, _WIDTH - _RIGHT)
        y_of = _Scale(min(ys), max(ys), self.y_log, _HEIGHT - _BOTTOM, _TOP)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_WIDTH / 2}" y="22" text-anchor="middle" font-size="15">'
            f"{escape(self.title)}</text>",
        ]
        for value, text in _ticks(min(xs), max(xs), self.x_log):
            at = x_of(value)
            parts.append(
                f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_HEIGHT - _BOTTOM}" '
                'stroke="#dddddd"/>'
                f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
                f"{text}</text>"
            )
        for value, text in _ticks(min(ys), max(ys), self.y_log):
            at = y_of(value)
            parts.append(
                f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}" '
                'stroke="#dddddd"/>'
                f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
            )
        if self.zero:
            at = y_of(0.0)
            parts.append(
                f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}" '
                'stroke="#333333"/>'
            )
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
            f'<text x="18" y="{middle}" text-anchor="middle" '
            f'transform="rotate(-90 18 {middle})">{escape(self.y_label)}</text>'
        )
        for number, line in enumerate(self.lines):
            colour = _COLOURS[number % len(_COLOURS)]
            at = [(x_of(x), y_of(y)) for x, y in line.points]
            if line.band:
                edge = [(x, y_of(low)) for (x, _), (low, _) in zip(at, line.band, strict=True)]
                back = [(x, y_of(high)) for (x, _), (_, high) in zip(at, line.band, strict=True)]
                parts.append(
                    f'<polygon points="{_points(edge + back[::-1])}" fill="{colour}" '
                    'fill-opacity="0.18"/>'
                )
            parts.append(
                f'<polyline points="{_points(at)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            if line.dots:
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
                          for x, y in at]  # fmt: skip
            y = _TOP + 16 + 17 * number
            parts.append(
                f'<line x1="{_WIDTH - _RIGHT - 228}" y1="{y}" x2="{_WIDTH - _RIGHT - 206}" y2="{y}"'
                f' stroke="{colour}" stroke-width="2"/>'
                f'<text x="{_WIDTH - _RIGHT - 200}" y="{y + 4}">{escape(line.label)}</text>'
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*parts, "</svg>", ""]))


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


class _Scale:
    """Maps values to places."""

    def __init__(self, low: float, high: float, log: bool, start: float, end: float) -> None:
        self.log, self.start, self.end = log, start, end
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        span = self.high - self.low or 1.0
        return self.start + (at - self.low) / span * (self.end - self.start)


def _ticks(low: float, high: float, log: bool) -> list[tuple[float, str]]:
    if log:
        powers = range(math.floor(math.log10(low)), math.floor(math.log10(high) + 1e-9) + 1)
        parts = (1, 2, 5) if high <= 100 * low else (1,)
        values = [part * 10.0**power for power in powers for part in parts]
        return [(v, f"{v:g}") for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
    step = 10 ** math.floor(math.log10((high - low or 1.0) / 4))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 7:
            step *= factor
            break
    first = math.ceil(low / step)
    return [(n * step, f"{n * step:g}") for n in range(first, math.floor(high / step) + 1)]

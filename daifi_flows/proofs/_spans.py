"""The parts of an output that are checked one by one, so that a committee can share the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from daifi_flows.cnft import MAX_CHUNKS

__all__ = ["MAX_SPANS", "SPAN_TOKENS", "WHOLE", "Span", "token_spans"]

SPAN_TOKENS: Final = 256
"""Most tokens of one part: a prefill of as many costs a twentieth of generating them, and every
cheat that tokens show at all shows in fewer (:mod:`~daifi_flows.proofs.evidence`)."""
MAX_SPANS: Final = MAX_CHUNKS
"""Most parts of one output: what the longest answer of the token schemes has."""
_BORDER: Final = 32
"""Parts begin at multiples of this, where ``toploc``'s fingerprints begin."""


@dataclass(frozen=True)
class Span:
    """One part of an output.

    Attributes:
        index: from 0.
        count: how many parts the output has.
        start, stop: its positions, ``start ≤ t < stop``, in the scheme's own unit: output tokens.
            0 and 1 where the scheme knows no parts.
    """

    index: int
    count: int
    start: int
    stop: int

    def __contains__(self, position: int) -> bool:
        return self.start <= position < self.stop


WHOLE: Final = Span(0, 1, 0, 1)
"""The one part of an output that its scheme does not split."""


def token_spans(tokens: int) -> tuple[Span, ...]:
    """⌈tokens/256⌉ nearly equal parts of an answer, with borders at multiples of 32.

    Args:
        tokens: as a stranger counts them. A count that no answer has gives one part: whoever
            verifies it finds what is wrong.

    >>> [(span.start, span.stop) for span in token_spans(600)]
    [(0, 192), (192, 384), (384, 600)]
    """
    if not 1 <= tokens <= MAX_SPANS * SPAN_TOKENS:
        return (WHOLE,)
    count, blocks = -(-tokens // SPAN_TOKENS), -(-tokens // _BORDER)
    borders = [min(index * blocks // count * _BORDER, tokens) for index in range(count + 1)]
    return tuple(Span(i, count, borders[i], borders[i + 1]) for i in range(count))

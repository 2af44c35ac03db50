"""Several parts of one output, checked with fewer passes of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from daifi_flows.cnft import Proof, TaskSpec
from daifi_flows.errors import ModelError
from daifi_flows.proofs._envelope import verify_proof
from daifi_flows.proofs._scheme import Claim, Prefill, Reference, Verdict
from daifi_flows.proofs._spans import Span

__all__ = ["verify_spans"]

_TOGETHER: Final = 4
"""Parts that share a pass: 1,024 tokens, whose logits take 200 MB at a vocabulary of 49,152."""


def verify_spans(
    claim: Claim,
    proof: Proof,
    reference: Reference | None,
    workdir: Path,
    spans: Sequence[Span],
) -> list[Verdict]:
    """:func:`~daifi_flows.proofs.verify_proof` of each of some parts, in their order.

    A pass over the last of four parts has read the three before it: parts that follow each other
    are scored by one pass, up to four at a time. Up to rounding nothing else changes.
    """
    found: dict[Span, Verdict] = {}
    for group in _groups(sorted(set(spans), key=lambda span: span.start)):
        shared = reference
        if reference is not None and len(group) > 1:
            shared = cast("Reference", _OnePass(reference, group[-1].start - group[0].start))
        for span in reversed(group):
            found[span] = verify_proof(claim, proof, shared, workdir, span)
    return [found[span] for span in spans]


def _groups(spans: Sequence[Span]) -> list[list[Span]]:
    """Neighbours together, so many at most."""
    groups: list[list[Span]] = []
    for span in spans:
        last = groups[-1] if groups else None
        if last is not None and last[-1].stop == span.start and len(last) < _TOGETHER:
            last.append(span)
        else:
            groups.append([span])
    return groups


class _OnePass:
    """A reference whose first pass also scores the ``back`` tokens before those it is asked for,
    and which answers later questions about these from it."""

    def __init__(self, reference: Reference, back: int) -> None:
        self._reference = reference
        self._back = back
        self._tokens: list[int] = []
        self._first = 0
        self._rows: Prefill | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reference, name)

    def prefill(self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        """See :meth:`Reference.prefill`."""
        tokens = [*prompt, *output]
        if self._back:
            self._look_back(spec, tokens, len(prompt))
        begin = len(prompt) - self._first
        if self._rows is None or begin < 0 or self._tokens[: len(tokens)] != tokens:
            return self._reference.prefill(spec, prompt, output)
        hidden, part = self._rows.hidden, slice(begin, begin + len(output))
        return Prefill(self._rows.logits[part], None if hidden is None else hidden[part])

    def _look_back(self, spec: TaskSpec, tokens: list[int], before: int) -> None:
        """The one pass, where this machine can make it; ``before`` tokens precede the part."""
        first, self._back = before - self._back, 0
        if first < 1:
            return
        try:
            self._rows = self._reference.prefill(spec, tokens[:first], tokens[first:])
        except ModelError:  # together they may be too many here: each part by itself, then
            return
        self._tokens, self._first = tokens, first

"""From logits to a finding: margins of the claimed tokens, and the bands of the decision.

The margin of token t is ``max_v s[v] − s[claimed]`` with ``s = logits + T·gumbel(seed, t)``: in
logits, never negative, 0 when the verifier would have chosen the same token. Honest engines differ
from the verifier by rounding only, so their margins are almost all 0, with a few near ties; other
weights, prompts or seeds give many margins of about a logit, edited text a few of several logits.

Measured on SmolLM2-135M-Instruct, 6 retrieval prompts with answers of 11 to 64 tokens per row,
verified by bf16 and by fp32 (2026-11, two CPU cores; temperatures 0 and 0.7 alike; a run or two of
int4 may fall to either side of the invalid limit, none was valid):

==================  ==================  =================  ========================
the node ran        mean margin         largest margin     decision
==================  ==================  =================  ========================
bf16                0 to 0.013          0 to 0.33          all valid, ≥ 996,700 ppm
fp32                0 to 0.003          0 to 0.19          all valid
int8 per channel    0 to 0.013          0 to 0.31          all valid (not told apart)
int4, groups of 64  0.057 to 0.88       0.88 to 4.8        22 of 24 invalid, rest unclear
another seed        0.30 to 0.74                           all invalid
one word edited                         16 to 28           all invalid
==================  ==================  =================  ========================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import PPM
from daifi_flows.proofs._scheme import Outcome
from daifi_flows.proofs.sampling import gumbel

__all__ = ["Finding", "Margins", "decide", "margins"]

CLIP: Final = 8.0
"""A margin counts at most this many logits towards the sum: one edit must not drown the rest."""

VALID_SUM: Final = (0.75, 0.01)
INVALID_SUM: Final = (1.0, 0.03)
"""Sum of clipped margins: ``a + b·n`` for n tokens. The constant admits a near tie or two in a
short output; the slopes lie about and above the largest honest mean, and below the smallest int4
one.
"""

VALID_MAX: Final = 0.75
INVALID_MAX: Final = 1.25
"""Largest single margin in logits: twice, and almost four times, the largest honest one."""

_VALID_FLOOR: Final = 995_000
_UNSURE_CEILING: Final = 980_000
_INVALID_CEILING: Final = 10_000


@dataclass(frozen=True)
class Margins:
    """Margin of each claimed token in logits, and the token the verifier would have chosen."""

    margins: NDArray[np.float64]
    best: list[int]


@dataclass(frozen=True)
class Finding:
    """The decision over one output."""

    outcome: Outcome
    confidence_ppm: int
    reason: str


def margins(
    logits: NDArray[np.float32], tokens: Sequence[int], *, temperature_ppm: int, seed: int
) -> Margins | None:
    """Margins of ``tokens`` under ``logits`` ``[tokens, vocab]``.

    Returns:
        ``None`` when the logits are not one finite-or-``−inf`` row per token: trouble with the
        verifier's own model. A token outside the vocabulary has an infinite margin.
    """
    if logits.ndim != 2 or logits.shape[0] != len(tokens) or logits.shape[1] == 0:
        return None
    found = np.empty(len(tokens), np.float64)
    best: list[int] = []
    scale = temperature_ppm / PPM if temperature_ppm else 1.0
    for index, token in enumerate(tokens):
        scores = logits[index]
        if temperature_ppm:
            scores = scores / np.float32(scale) + gumbel(seed, index, logits.shape[1])
        choice = int(np.argmax(scores))
        top = float(scores[choice])
        if not np.isfinite(top):  # NaN sorts first in argmax; +inf is no logit either
            return None
        best.append(choice)
        inside = 0 <= token < logits.shape[1]
        found[index] = (top - float(scores[token])) * scale if inside else np.inf
    return Margins(found, best)


def decide(found: NDArray[np.float64]) -> Finding:
    """Valid, invalid or cannot tell, from the margins of one output (at least one token).

    The evidence against the claim is ``e = max(sum/limit(n), max/limit)``, once against the valid
    limits and once against the invalid ones. Valid while the first is ≤ 1, with confidence falling
    from 1,000,000 at 0 to 995,000 at 1; invalid once the second is > 1, with confidence at most
    10,000 and falling as 1/e; between them confidence falls linearly from 980,000 to 10,000. The
    map is monotone: more margin never gives more confidence.
    """
    count = len(found)
    total = float(np.minimum(found, CLIP).sum())
    largest = float(found.max())
    doubt = max(total / (VALID_SUM[0] + VALID_SUM[1] * count), largest / VALID_MAX)
    guilt = max(total / (INVALID_SUM[0] + INVALID_SUM[1] * count), largest / INVALID_MAX)
    facts = (
        f"mean margin {total / count:.4f} over {count} tokens, largest "
        f"{min(largest, 9999.0):.2f} at token {int(found.argmax())}"
    )
    if doubt <= 1:
        return Finding(
            Outcome.VALID,
            round(PPM - (PPM - _VALID_FLOOR) * doubt),
            f"the tokens are the model's: {facts}",
        )
    if guilt > 1:
        return Finding(
            Outcome.INVALID,
            round(_INVALID_CEILING / guilt),
            f"the tokens are not the model's: {facts}",
        )
    span = _UNSURE_CEILING - _INVALID_CEILING
    return Finding(
        Outcome.CANNOT_TELL,
        round(_UNSURE_CEILING - span * guilt),
        f"the tokens are neither clearly the model's nor clearly not: {facts}",
    )

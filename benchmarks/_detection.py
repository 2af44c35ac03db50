"""Who is caught: honest nodes and cheats, judged by the schemes' default decisions."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._generations import HONEST, KINDS, MODEL, NODE, Generation, Kind, generate
from benchmarks._report import Figure
from daifi_flows.cnft import TaskSpec
from daifi_flows.proofs import Outcome, Prefill, make_proof, verify_proof
from daifi_flows.proofs._fingerprint import compare, fingerprint
from daifi_flows.proofs.evidence import judge
from daifi_flows.ray_mesh.reference import EngineReference
from daifi_flows.settings import Settings

__all__ = ["figures"]

_SCHEMES = ("token-difr", "toploc")
_LENGTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300)


class _Once(EngineReference):
    """Prefills an answer once, however many schemes ask."""

    _last: tuple[Any, Prefill] | None = None

    def prefill(self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        key = (tuple(prompt), tuple(output))
        if self._last is None or self._last[0] != key:
            self._last = (key, super().prefill(spec, prompt, output))
        return self._last[1]


@dataclass
class _Judged:
    """What became of one kind's generations."""

    kind: Kind
    outcomes: dict[str, list[Outcome]] = field(
        default_factory=lambda: {scheme: [] for scheme in _SCHEMES}
    )
    scores: dict[str, list[float]] = field(
        default_factory=lambda: {scheme: [] for scheme in _SCHEMES}
    )
    """Larger is more suspect: log-evidence, and mean mantissa error."""
    needed: list[float] = field(default_factory=list[float])
    """Tokens after which token-difr's decision is invalid; infinite when it never is."""
    tokens: int = 0

    def share(self, scheme: str, *outcomes: Outcome) -> float:
        found = self.outcomes[scheme]
        return sum(outcome in outcomes for outcome in found) / len(found)


def _score(generation: Generation, reference: EngineReference, judged: _Judged) -> None:
    spec = generation.claim.spec
    assert spec.sampling is not None
    tokens: list[int] = generation.execution.evidence["output_tokens"]
    found = reference.prefill(spec, generation.execution.evidence["prompt_tokens"], tokens)
    calibration = reference.calibration(spec)
    whole = judge(found.logits, tokens, spec.sampling, calibration)
    assert whole is not None
    assert found.hidden is not None
    judged.scores["token-difr"].append(min(whole.log_evidence, 1e6))
    errors = compare(fingerprint(generation.execution.evidence["activations"]), found.hidden)
    judged.scores["toploc"].append(float(np.mean(errors.mean)))
    needed = float("inf")
    if whole.outcome is Outcome.INVALID:
        for length in (*(n for n in _LENGTHS if n < len(tokens)), len(tokens)):
            part = judge(found.logits[:length], tokens[:length], spec.sampling, calibration)
            if part is not None and part.outcome is Outcome.INVALID:
                needed = length
                break
    judged.needed.append(needed)
    judged.tokens += len(tokens)


def _judge(kind: Kind, reference: EngineReference, workdir: Path) -> _Judged:
    judged = _Judged(kind)
    began = time.perf_counter()
    for generation in generate(kind):
        for scheme in _SCHEMES:
            spec = generation.claim.spec.model_copy(update={"scheme": scheme})
            claim = replace(generation.claim, spec=spec)
            proof = make_proof(claim, generation.execution, NODE, workdir)
            judged.outcomes[scheme].append(verify_proof(claim, proof, reference, workdir).outcome)
        _score(generation, reference, judged)
    print(
        f"{kind.name}: {len(judged.needed)} generations, {judged.tokens} tokens, "
        f"{time.perf_counter() - began:.0f} s; "
        + "; ".join(
            f"{scheme} invalid {judged.share(scheme, Outcome.INVALID):.3f}, cannot tell "
            f"{judged.share(scheme, Outcome.CANNOT_TELL):.3f}, largest score "
            f"{max(judged.scores[scheme]):.2f}, least {min(judged.scores[scheme]):.2f}"
            for scheme in _SCHEMES
        ),
        file=sys.stderr,
        flush=True,
    )
    return judged


def auc(honest: Sequence[float], cheats: Sequence[float]) -> float:
    """Area under the ROC curve: how often a cheat scores above an honest one, ties counting half.

    >>> auc([1, 2], [2, 3])
    0.875
    """
    base = np.sort(np.asarray(honest, float))
    values = np.asarray(cheats, float)
    below = np.searchsorted(base, values, "left")
    upto = np.searchsorted(base, values, "right")
    return float((below + upto).mean() / 2 / len(base))


def _target(scheme: str, kind: Kind) -> str:
    """The targets that were set: for the kinds they name, and int8 for the scheme that sees it."""
    if "int8" in kind.name:
        return ">= 99" if scheme == "toploc" else ""
    named = ("int4", "another model", "seed", "prompt")
    return ">= 99.9" if any(word in kind.name for word in named) else ""


def figures() -> list[Figure]:
    """False rejects of honest nodes; what share of each cheat's answers is caught."""
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as temporary:
        folder = Path(temporary)
        reference = _Once(Settings(home=folder, model=MODEL), folder, fetch=False)
        honest = [_judge(kind, reference, folder) for kind in HONEST]
        cheats = [_judge(kind, reference, folder) for kind in KINDS]
        reference.close()
    found: list[Figure] = []
    for scheme in _SCHEMES:
        for judged in honest:
            rejects = judged.outcomes[scheme].count(Outcome.INVALID)
            unproven = judged.outcomes[scheme].count(Outcome.CANNOT_TELL)
            found.append(
                Figure(
                    f"{scheme}: honest, {judged.kind.name}, false rejects",
                    [rejects],
                    "",
                    "<= 0",
                    {
                        "generations": len(judged.needed),
                        "tokens": judged.tokens,
                        "cannot tell": unproven,
                        "largest score": round(max(judged.scores[scheme]), 2),
                    },
                )
            )
        for judged in cheats:
            peers = [each for each in honest if each.kind.tokens == judged.kind.tokens]
            base = [score for each in peers for score in each.scores[scheme]]
            facts = {
                "generations": float(len(judged.needed)),
                "mean tokens": judged.tokens / len(judged.needed),
                "missed (valid)": float(judged.outcomes[scheme].count(Outcome.VALID)),
                "unpaid (not valid), %": 100 * (1 - judged.share(scheme, Outcome.VALID)),
                "ROC AUC": round(auc(base, judged.scores[scheme]), 5),
            }
            needed = float(np.median(judged.needed))
            if scheme == "token-difr" and np.isfinite(needed):
                facts["tokens needed, median"] = needed
            found.append(
                Figure(
                    f"{scheme}: {judged.kind.name}, rejected in {judged.kind.tokens} tokens",
                    [100 * judged.share(scheme, Outcome.INVALID)],
                    "%",
                    _target(scheme, judged.kind),
                    facts,
                )
            )
    return found

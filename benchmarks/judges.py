"""The judges' panel: how well it tells the same from another statement, on pairs held out.

No frame, word, prompt or program of these pairs was used in training or calibration. The baseline
``plain cosine`` is the one of the two whole texts' embeddings. ``DAIFI_BENCH_PLOTS=docs/images``
draws the reliability curve there.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._report import Figure
from benchmarks._svg import Line, Plot
from daifi_flows.cnft import PPM, Content, VoteChoice
from daifi_flows.judges.panel import Panel, Senses, decide, likelihood_of, shipped_map
from daifi_flows.judges.panel._corpus import answers, pairs_of
from daifi_flows.judges.panel._judge import Embed
from daifi_flows.judges.panel._metrics import calibration_error, reliability, roc_auc
from daifi_flows.judges.panel._panel import weigh
from daifi_flows.judges.panel._training import Example, opinions, remembered
from daifi_flows.proofs import Outcome, Scores, Verdict
from daifi_flows.ray_mesh._models import resolve
from daifi_flows.ray_mesh.engines._embedder import Embedder
from daifi_flows.settings import Settings

__all__ = ["figures"]

_REAL = frozenset({"other precision", "re-executed", "reworded", "other prompt", "other model",
                   "lie", "disguise"})  # fmt: skip
_ACCEPT = 0.99


def figures() -> list[Figure]:
    """Ranking, calibration and acceptance on the held-out split; what a comparison costs."""
    embed = Embedder(resolve(Settings().embedding_model, "retrieval")).embed
    seen = opinions(pairs_of("held-out"), embed)
    truth = np.array([each.pair.same for each in seen])
    kinds = np.array([each.pair.kind for each in seen])
    chances = np.array([each.opinion.probability_ppm / PPM for each in seen])
    scores = {
        "panel": chances,
        "plain cosine": _plain(seen, embed),
        "head alone": np.array([_head(each) for each in seen]),
        "panel without likelihood": np.array([_without_likelihood(each) for each in seen]),
    }
    found = [_auc("ROC AUC, all pairs", scores, truth, np.ones(len(seen), bool), ">= 0.98")]
    for kind, name in (("negation", "negations"), ("number", "numbers"), ("entity", "entities")):
        found.append(_auc(f"ROC AUC, {name} alone", scores, truth, kinds == kind, ">= 0.97"))
    found.append(_auc("ROC AUC, exchanged roles alone", scores, truth, kinds == "role", ""))
    real = np.isin(kinds, list(_REAL))
    found.append(
        Figure(
            "ROC AUC, texts of real models only",
            [roc_auc(chances[real], truth[real])],
            "",
            "",
            {name: _round(roc_auc(each[real], truth[real])) for name, each in scores.items()}
            | {"pairs": float(real.sum())},
        )
    )
    accepted = chances > _ACCEPT
    wrong = int((accepted & ~truth).sum())
    counts = {"accepted": float(accepted.sum()), "of them wrong": float(wrong)}
    found.append(
        Figure(
            "false accepts at confidence over 0.99",
            [100 * wrong / max(int(accepted.sum()), 1)],
            "%",
            "<= 0.2",
            counts | {"of all pairs that differ, %": _round(100 * wrong / int((~truth).sum()))},
        )
    )
    found.append(
        Figure(
            "equals accepted at confidence over 0.99",
            [100 * float(accepted[truth].mean())],
            "%",
            "",
            {
                f"{kind}, %": _round(100 * float(accepted[truth & (kinds == kind)].mean()))
                for kind in sorted(set(kinds[truth]))
            },
        )
    )
    found.append(
        Figure(
            "expected calibration error",
            [calibration_error(chances.tolist(), truth.tolist())],
            "",
            "<= 0.02",
            {"without likelihood": _round(calibration_error(
                scores["panel without likelihood"].tolist(), truth.tolist()))},
        )
    )  # fmt: skip
    by_kind = {f"{kind}": float(count) for kind, count in sorted(Counter(kinds).items())}
    found.append(Figure("held-out pairs", [len(seen)], "", ">= 2000", by_kind))
    found += _beside_a_proof(embed)
    found += _costs(embed)
    if folder := os.environ.get("DAIFI_BENCH_PLOTS"):
        _plot(chances, truth, Path(folder) / "judges-reliability.svg")
    return found


def _round(value: float) -> float:
    return round(value, 4)


def _plain(seen: Sequence[Example], embed: Embed) -> np.ndarray:
    known = remembered(embed, (t for e in seen for t in (e.pair.claimed, e.pair.expected)))
    one = known([each.pair.claimed for each in seen])
    other = known([each.pair.expected for each in seen])
    return (one * other).sum(axis=1)


def _head(example: Example) -> float:
    score = example.opinion.features.get("head", math.nan)
    return score if math.isfinite(score) else 1.0  # nothing differs but spelling


def _without_likelihood(example: Example) -> float:
    opinion = example.opinion
    if opinion.fitted:
        features = {**opinion.features, "likelihood": math.nan, "surprise": math.nan}
        opinion = weigh(features, shipped_map())
    return opinion.probability_ppm / PPM


def _auc(
    name: str, scores: dict[str, np.ndarray], truth: np.ndarray, kind: np.ndarray, target: str
) -> Figure:
    """Of all equal pairs against the different ones of a kind."""
    rows = truth | kind
    areas = {key: roc_auc(each[rows], truth[rows]) for key, each in scores.items()}
    baseline = {key: _round(value) for key, value in areas.items() if key != "panel"}
    counts = {"equal": float(truth.sum()), "different": float((rows & ~truth).sum())}
    return Figure(name, [areas["panel"]], "", target, baseline | counts)


def _beside_a_proof(embed: Embed) -> list[Figure]:
    """What seats decide of real answers that ``token-difr`` calls valid; the long ones are five of
    48 tokens each, of which one may be a lie."""
    valid = {
        name: [a for item in answers() if (a := item.get(name)) and a["outcome"] == "valid"]
        for name in ("fp32", "bf16", "lie")
    }
    honest, lies = [*valid["fp32"], *valid["bf16"]], valid["lie"]
    fives = [honest[start : start + 5] for start in range(0, len(honest) - 4, 5)]
    hidden = [[lie, *valid["bf16"][4 * i : 4 * i + 4]] for i, lie in enumerate(lies)]
    figures: list[Figure] = []
    for name, right, wrong in (
        ("48", [[each] for each in honest], [[each] for each in lies]),
        ("240", fives, hidden),
    ):
        figures.append(
            Figure(
                f"honest real answers of {name} tokens accepted beside a valid proof",
                [100 * sum(_accepts(each, embed) for each in right) / len(right)],
                "%",
                "",
                {
                    "answers": float(len(right)),
                    "best lies in one token called valid": float(len(wrong)),
                    "of them accepted": float(sum(_accepts(each, embed) for each in wrong)),
                },
            )
        )
    return figures


def _accepts(parts: Sequence[Mapping[str, Any]], embed: Embed) -> bool:
    claimed, own = (
        Content.text("\n\n".join(each[name] for each in parts), bytes(32))
        for name in ("text", "own")
    )
    scores = Scores(
        tuple(score for each in parts for score in each["scores"]),
        tuple(score for each in parts for score in each["own_scores"]),
    )
    ppm = min(each["ppm"] for each in parts)
    verdict = Verdict(Outcome.VALID, ppm, "", own, claimed, scores)
    opinion = Panel().compare(claimed, own, Senses(embed, likelihood_of(verdict, claimed)))
    return decide(verdict, opinion, 990_000).decision is VoteChoice.ACCEPT


def _costs(embed: Embed) -> list[Figure]:
    text = " ".join(
        f"Step {n} of the plan takes {n + 2} hours and is done in hall {n % 7}." for n in range(14)
    )  # 256 tokens or so
    first, same = Content.text(text, bytes(32)), Content.text(text, bytes([1]) * 32)
    other = Content.text(text.replace("Step 3 of", "Step three of"), bytes(32))
    turned = Content.text(text.replace("is done", "is finished"), bytes(32))

    def timed(act: Callable[[], object]) -> list[float]:
        act()
        samples: list[float] = []
        for _ in range(9):
            began = time.perf_counter()
            act()
            samples.append(1000 * (time.perf_counter() - began))
        return samples

    panel, senses = Panel(), Senses(embed)
    return [
        Figure(f"comparing 256 tokens, {name}", timed(lambda c=c: panel.compare(c, first, senses)),
               "ms")
        for name, c in (
            ("equal", same), ("one sentence differs", other), ("every sentence differs", turned),
        )
    ]  # fmt: skip


def _plot(chances: np.ndarray, truth: np.ndarray, path: Path) -> None:
    """Wilson's intervals of 95 % (1927) about each bin's share."""
    bins = reliability(chances.tolist(), truth.tolist(), 10)
    band: list[tuple[float, float]] = []
    for each in bins:
        z2 = 1.96**2
        middle = (each.actual + z2 / (2 * each.count)) / (1 + z2 / each.count)
        spread = math.sqrt(
            each.actual * (1 - each.actual) / each.count + z2 / (4 * each.count**2)
        ) * (1.96 / (1 + z2 / each.count))
        band.append((middle - spread, middle + spread))
    plot = Plot(
        "How often the panel's probability is right",
        "probability that the panel gives",
        "share of pairs that are the same",
    )
    points = [(each.predicted, each.actual) for each in bins]
    plot.lines.append(Line("panel, 95 % interval", points, band, dots=True))
    plot.lines.append(Line("a perfect probability", [(0.0, 0.0), (1.0, 1.0)]))
    plot.write(path)

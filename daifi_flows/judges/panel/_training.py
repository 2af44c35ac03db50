"""Training of the head and calibration of the map. Both are seeded, and take minutes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from daifi_flows.cnft import PPM, Content
from daifi_flows.judges.panel._align import align
from daifi_flows.judges.panel._embedding import EmbeddingJudge
from daifi_flows.judges.panel._head import Head
from daifi_flows.judges.panel._judge import Embed, Senses
from daifi_flows.judges.panel._map import FITTED, LogisticMap
from daifi_flows.judges.panel._pairs import Pair
from daifi_flows.judges.panel._panel import JUDGES, Opinion, Panel, weigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]
    Floats = NDArray[np.float64]

__all__ = ["Example", "fit_map", "opinions", "remembered", "train_head"]

_RANK: Final = 32
_HIDDEN: Final = 16
_EPOCHS: Final = 30
_BATCH: Final = 128
_SHARPNESS: Final = 20.0
"""Inverse temperature of the contrastive loss (InfoNCE, van den Oord et al., arXiv 1807.03748)."""
_MARGIN: Final = 0.5
_CONTRAST: Final = 0.3
_LIKENESSES: Final = frozenset({"words", "length", "cosine", "head", "likelihood"})
"""Features that are large where the sides are alike; the other fitted ones are differences."""

_POOL: Final = 60
"""Least number of pairs behind a point of the curve."""

_RIDGE: Final = 0.3
"""Of the logistic model: half the squared weights times this, beside the sum of log-losses."""


def train_head(
    pairs: Sequence[Pair], embed: Embed, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> Head:
    """Train on passages that differ, each pair's own: the projection with in-batch negatives, the
    hard ones of the corpus among them, and a margin; the net above it with the log-loss.
    """
    import torch
    from torch.nn import functional

    one, other, same = _embedded(pairs, embed, say)
    torch.manual_seed(seed)
    width = int(one.shape[1])
    project = torch.nn.Linear(width, _RANK, bias=False)
    first, second = torch.nn.Linear(2 * _RANK, _HIDDEN), torch.nn.Linear(_HIDDEN, 1)
    scale = math.sqrt(width / _RANK) * 2.0  # so that the projections begin with norms near 1
    weights = [*project.parameters(), *first.parameters(), *second.parameters()]
    optimiser: Any = torch.optim.AdamW(weights, lr=2e-3, weight_decay=1.0)
    left, right = torch.from_numpy(one), torch.from_numpy(other)
    truth = torch.from_numpy(same.astype(np.float32))
    for epoch in range(_EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(same)).split(_BATCH):
            p, q = project(left[rows]) * scale, project(right[rows]) * scale
            both = functional.dropout(torch.cat([(p - q).abs(), p * q], 1), 0.5)
            logits = second(torch.relu(first(both)))[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits, truth[rows])
            u, v = functional.normalize(p, dim=1), functional.normalize(q, dim=1)
            equal = truth[rows] > 0
            places = torch.nonzero(equal)[:, 0]
            contrast = torch.relu((u * v).sum(1)[~equal] - _MARGIN).sum() / len(rows)
            if len(places):
                contrast = contrast + functional.cross_entropy(u[equal] @ v.T * _SHARPNESS, places)
            loss = loss + _CONTRAST * contrast
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(rows)
        if epoch % 10 == 9:
            say(f"epoch {epoch + 1} of {_EPOCHS}: loss {total / len(same):.4f}")

    def array(tensor: Any, factor: float = 1.0) -> Rows:
        return np.ascontiguousarray(tensor.detach().numpy().T * factor, np.float32)

    return Head(
        array(project.weight, scale),
        array(first.weight),
        array(first.bias),
        array(second.weight)[:, 0],
        array(second.bias),
    )


def _embedded(
    pairs: Sequence[Pair], embed: Embed, say: Callable[[str], None]
) -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """Embeddings of the passages that differ; of a pair that differs only those count that make
    the difference, which is known where there is one."""
    texts: list[tuple[str, str]] = []
    same: list[bool] = []
    for pair in pairs:
        passages = align(pair.claimed, pair.expected) or []
        passages = [(one, other) for one, other in passages if one and other]
        if pair.same or len(passages) == 1:
            texts += passages
            same += [pair.same] * len(passages)
    say(f"embedding {len(texts)} pairs of passages")
    known = remembered(embed, [text for pair in texts for text in pair])
    return known([left for left, _ in texts]), known([right for _, right in texts]), np.array(same)


def remembered(embed: Embed, texts: Iterable[str]) -> Embed:
    """The embedder with these texts embedded beforehand, in batches."""
    unique = list(dict.fromkeys(texts))
    rows: dict[str, Rows] = {}
    for start in range(0, len(unique), 64):
        part = unique[start : start + 64]
        rows.update(zip(part, embed(part), strict=True))

    def known(asked: Sequence[str]) -> Rows:
        if all(text in rows for text in asked):
            return np.stack([rows[text] for text in asked]).astype(np.float32)
        return embed(asked)

    return known


@dataclass(frozen=True)
class Example:
    """A pair with what the panel thinks of it."""

    pair: Pair
    opinion: Opinion

    def chance(self, fitted: LogisticMap) -> float:
        """The probability that the panel would give with another map."""
        opinion = self.opinion
        if opinion.fitted:
            opinion = weigh(opinion.features, fitted)
        return opinion.probability_ppm / PPM


def opinions(
    pairs: Iterable[Pair], embed: Embed, head: Head | None = None, fitted: LogisticMap | None = None
) -> list[Example]:
    """The panel's opinion of each pair, with the likelihoods that came with it.

    Args:
        head, fitted: the ones that ship by default.
    """
    judges = [EmbeddingJudge(head) if isinstance(j, EmbeddingJudge) else j for j in JUDGES]
    panel = Panel(judges, fitted)
    found: list[Example] = []
    pairs = list(pairs)
    passages = [align(pair.claimed, pair.expected) or [] for pair in pairs]
    embed = remembered(embed, (text for each in passages for pair in each for text in pair if text))
    for pair in pairs:
        scores = {pair.claimed: pair.claimed_scores, pair.expected: pair.expected_scores}
        senses = Senses(embed, scores.__getitem__ if pair.claimed_scores else None)
        claimed = Content.text(pair.claimed, bytes(32))
        expected = Content.text(pair.expected, bytes(32))
        found.append(Example(pair, panel.compare(claimed, expected, senses)))
    return found


def fit_map(examples: Sequence[Example]) -> LogisticMap:
    """Fit the logistic model to what the panel's rules leave open, by Newton's method with a ridge.

    An unknown feature has an intercept of its own. A weight whose sign says that likeness speaks
    against, or a difference for the claim, is an accident of the sample: it is set to 0, and the
    others are fitted again.
    """
    able = [each for each in examples if each.opinion.fitted]
    values = np.array([[each.opinion.features[name] for name in FITTED] for each in able])
    truth = np.array([each.pair.same for each in able], np.float64)
    unknown = ~np.isfinite(values)
    design = np.concatenate(
        [np.ones((len(able), 1)), np.where(unknown, 0.0, values), unknown.astype(np.float64)],
        axis=1,
    )
    signs = np.array([1.0 if name in _LIKENESSES else -1.0 for name in FITTED])
    kept = np.ones(design.shape[1], bool)
    weights = np.zeros(design.shape[1])
    while True:
        weights[:] = 0.0
        weights[kept] = _logistic(design[:, kept], truth)
        wrong = weights[1 : 1 + len(FITTED)] * signs < 0
        if not wrong.any():
            break
        kept[1 : 1 + len(FITTED)] &= ~wrong
    count = len(FITTED)
    return LogisticMap(
        round(float(weights[0]), 4),
        {name: round(float(weights[1 + i]), 4) for i, name in enumerate(FITTED)},
        {
            name: round(float(weights[1 + count + i]), 4)
            for i, name in enumerate(FITTED)
            if unknown[:, i].any()
        },
        _isotonic(design @ weights, truth),
    )


def _isotonic(scores: Floats, truth: Floats) -> list[tuple[float, float]]:
    """Points of a rising curve from scores to log-odds: neighbours in order of score are pooled
    until shares rise and each pool has enough pairs (pool adjacent violators).

    One pair of each kind is added to every pool (Laplace), so that no share is 0 or 1.
    """
    order = np.argsort(scores, kind="stable")
    pools: list[tuple[float, float, float]] = []  # sum of scores, pairs, of them the same
    for score, same in zip(scores[order], truth[order], strict=True):
        pools.append((float(score), 1.0, float(same)))
        while len(pools) > 1 and (
            pools[-2][1] < _POOL or pools[-2][2] / pools[-2][1] >= pools[-1][2] / pools[-1][1]
        ):
            last = pools.pop()
            pools[-1] = tuple(map(sum, zip(pools[-1], last, strict=True)))  # type: ignore[assignment]
    if len(pools) > 1 and pools[-1][1] < _POOL:
        last = pools.pop()
        pools[-1] = tuple(map(sum, zip(pools[-1], last, strict=True)))  # type: ignore[assignment]
    points: list[tuple[float, float]] = []
    for total, count, same in pools:
        odds = (same + 1.0) / (count - same + 1.0)
        point = (round(total / count, 4), round(math.log(odds), 4))
        if not points or (point[0] > points[-1][0] and point[1] >= points[-1][1]):
            points.append(point)
    return points


def _logistic(design: Floats, truth: Floats) -> Floats:
    """Weights ``[columns]`` of least penalised log-loss; the first column is not penalised."""
    ridge = np.full(design.shape[1], _RIDGE)
    ridge[0] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(100):
        chance = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (chance - truth) + ridge * weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights -= step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights

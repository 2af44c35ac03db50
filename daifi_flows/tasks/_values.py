"""What the built-in steps return as ``.output``: plain JSON values that read well in Python.

Each is a ``str`` or a ``dict`` underneath, so that it can be an argument of any later step, cross
to a node and come back without a codec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from daifi_flows.errors import ConfigError

__all__ = ["Answer", "Passage", "Pick", "as_passages", "decode_passages"]

_MICRO = 1_000_000


class Passage(TypedDict):
    """One retrieved passage. ``score`` is the cosine similarity with the question, −1 to 1."""

    id: str
    source: str
    text: str
    score: float


class Answer(str):
    """The model's answer: text, and how it came about.

    Attributes:
        question: what was asked, as given.
        passages: the passages that reached the model, best first.
        finish: ``stop`` (the model ended) or ``length`` (the token budget ended it).
        prompt_tokens: tokens of the prompt, template included.
        dropped_passages: ids of passages that did not fit the context.
        question_tokens_dropped: tokens cut from an over-long question.

    >>> answer = Answer("Paris.", question="Capital of France?", finish="stop")
    >>> answer + "!", answer.finish
    ('Paris.!', 'stop')
    """

    question: str
    passages: tuple[Passage, ...]
    finish: str
    prompt_tokens: int
    dropped_passages: tuple[str, ...]
    question_tokens_dropped: int

    def __new__(
        cls,
        text: str,
        *,
        question: str = "",
        passages: Sequence[Passage] = (),
        finish: str = "stop",
        prompt_tokens: int = 0,
        dropped_passages: Sequence[str] = (),
        question_tokens_dropped: int = 0,
    ) -> Answer:
        """See the attributes."""
        answer = super().__new__(cls, text)
        answer.question = question
        answer.passages = tuple(passages)
        answer.finish = finish
        answer.prompt_tokens = prompt_tokens
        answer.dropped_passages = tuple(dropped_passages)
        answer.question_tokens_dropped = question_tokens_dropped
        return answer

    @classmethod
    def decode(cls, value: Mapping[str, Any], question: str, given: Sequence[Passage]) -> Answer:
        """From the LLM engine's output and what the step was given."""
        dropped = tuple(value.get("dropped_passages", ()))
        return cls(
            value["text"],
            question=question,
            passages=tuple(passage for passage in given if passage["id"] not in dropped),
            finish=value.get("finish", "stop"),
            prompt_tokens=value.get("prompt_tokens", 0),
            dropped_passages=dropped,
            question_tokens_dropped=value.get("question_tokens_dropped", 0),
        )

    @property
    def trimmed(self) -> str:
        """What did not fit the model's context, as a sentence; empty when all did."""
        parts: list[str] = []
        if self.dropped_passages:
            names = ", ".join(self.dropped_passages)
            parts.append(f"left out {len(self.dropped_passages)} passage(s): {names}")
        if self.question_tokens_dropped:
            parts.append(f"cut {self.question_tokens_dropped} tokens from the question")
        return f"context trimmed: {'; '.join(parts)}" if parts else ""

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (str(self),), dict(self.__dict__)


class Pick(str):
    """The tool a policy picked: its name, its place in the list, and every tool's score.

    Attributes:
        position: place in the tools given to ``act``.
        scores: policy score of each tool, in order; the highest wins.
    """

    position: int
    scores: tuple[float, ...]

    def __new__(cls, tool: str, *, position: int, scores: Sequence[float] = ()) -> Pick:
        """See the attributes."""
        pick = super().__new__(cls, tool)
        pick.position = position
        pick.scores = tuple(scores)
        return pick

    @classmethod
    def decode(cls, value: Mapping[str, Any]) -> Pick:
        """From the policy engine's output."""
        scores = [score / _MICRO for score in value.get("scores_ppm", ())]
        return cls(value["tool"], position=value["index"], scores=scores)

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (str(self),), dict(self.__dict__)


def decode_passages(value: Mapping[str, Any]) -> list[Passage]:
    """From the retrieval engine's output."""
    return [
        Passage(
            id=item["id"],
            source=item["source"],
            text=item["text"],
            score=item["score_ppm"] / _MICRO,
        )
        for item in value["passages"]
    ]


def as_passages(context: Any) -> list[Passage]:
    """Context for ``reason`` from whatever a step returned: passages, texts, or one text.

    Raises:
        ConfigError: it is none of these, or a passage has no text.

    >>> as_passages(["Seats vote."])[0]["id"]
    '1'
    """
    if isinstance(context, str):
        items: list[Any] = [context]
    elif isinstance(context, Sequence):
        items = list(context)
    else:
        raise ConfigError(_not_passages(context))
    passages: list[Passage] = []
    for item in items:
        if isinstance(item, list):  # several retrievals given together
            passages += as_passages(item)
            continue
        number = str(len(passages) + 1)
        given = {"text": item} if isinstance(item, str) else item
        if not isinstance(given, Mapping) or not isinstance(given.get("text"), str):
            raise ConfigError(_not_passages(item))
        passages.append(
            Passage(
                id=str(given.get("id", number)),
                source=str(given.get("source", given.get("id", number))),
                text=given["text"],
                score=float(given.get("score", 0.0)),
            )
        )
    ids = [passage["id"] for passage in passages]
    if len(set(ids)) == len(ids):
        return passages
    seen: dict[str, Passage] = {}
    for passage in passages:  # two retrievals that found the same passage give it once
        if seen.setdefault(passage["id"], passage)["text"] != passage["text"]:
            raise ConfigError(
                f"two different passages share the id {passage['id']!r}: give each its own id"
            )
    return list(seen.values())


def _not_passages(value: Any) -> str:
    return (
        f"the context of reason holds a {type(value).__name__}: give it the cNFT of retrieve, "
        "texts, or dictionaries with id and text"
    )

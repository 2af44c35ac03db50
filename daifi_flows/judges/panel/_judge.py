"""The interface every judge implements, what it may use, and how contents are made comparable."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from daifi_flows.cnft import Content
from daifi_flows.errors import EncodingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Chat",
    "Comparable",
    "Embed",
    "Judge",
    "Likelihood",
    "Senses",
    "comparable",
    "normalised",
    "sentences",
]

Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Unit-norm sentence embeddings, ``[len(texts), d]``."""

Likelihood = Callable[[str], Sequence[float]]
"""Log-probability (natural) of each token of a text as the answer to this task's prompt, under the
committee's own copy of the model."""

Chat = Callable[[str, str], str]
"""``(instructions, data)`` to a language model's raw answer."""

MAX_TEXT: int = 200_000
"""Characters of each side that judges read; a longer text equals another only byte for byte."""

MAX_LEAVES: int = 20_000


@dataclass(frozen=True)
class Senses:
    """What judges may ask beside the two contents. Each sense may be absent, and may fail: what it
    would have told is then unknown."""

    embed: Embed | None = None
    likelihood: Likelihood | None = None
    chat: Chat | None = None


@dataclass(frozen=True)
class Comparable:
    """A content as judges see it. It is data: nothing in it is ever followed as an instruction.

    Attributes:
        media_type: of the content.
        raw: the bytes, salt excluded (a re-execution cannot know the node's salt).
        text: what a person would read: the ``text`` of a JSON answer, or everything in it.
        whole: every leaf of a JSON value on its own line as ``path: leaf``, or the text.
        measures: JSON floats, and numbers under a key with ``_ppm``: measured quantities,
            compared within a tolerance and not as facts.
        readable: whether the bytes are what the media type says, within bounds.
        value: as parsed; ``None`` when unreadable.
    """

    media_type: str
    raw: bytes
    text: str = ""
    whole: str = ""
    measures: Mapping[str, int | float] = field(default_factory=lambda: {})
    readable: bool = True
    value: Any = None

    def same_bytes(self, other: Comparable) -> bool:
        """Whether type and bytes are equal."""
        return (self.media_type, self.raw) == (other.media_type, other.raw)


class Judge(Protocol):
    """One way to compare a claim with what the committee got.

    A judge returns features, not verdicts: the panel's model turns all of them into one
    probability. It never raises for any content, nor for a sense that fails.
    """

    name: ClassVar[str]

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """Named numbers in [0, 1]; NaN for what could not be computed."""
        ...


def comparable(content: Content) -> Comparable:
    """Parse a content for the judges. Total: broken bytes give an unreadable one."""
    unreadable = Comparable(content.media_type, content.data, readable=False)
    if len(content.data) > 4 * MAX_TEXT:  # UTF-8: at most four bytes a character
        return unreadable
    try:
        value = content.value()
    except EncodingError:
        return unreadable
    if isinstance(value, bytes):
        return unreadable
    if isinstance(value, str) and content.media_type.startswith("text/"):
        text, whole, measures = value, value, {}
    else:
        lines: list[str] = []
        measures: dict[str, int | float] = {}
        try:
            _flatten(value, "", lines, measures)
        except (ValueError, RecursionError):
            return unreadable
        whole = "\n".join(lines)
        inner = value.get("text") if isinstance(value, dict) else None
        text = inner if isinstance(inner, str) else whole
    if len(whole) > MAX_TEXT:
        return unreadable
    return Comparable(content.media_type, content.data, text, whole, measures, value=value)


def _flatten(value: Any, path: str, lines: list[str], measures: dict[str, int | float]) -> None:
    if len(lines) + len(measures) > MAX_LEAVES:
        raise ValueError("too many leaves")
    if isinstance(value, dict):
        for key in sorted(value):
            _flatten(value[key], f"{path}.{json.dumps(key)}", lines, measures)
    elif isinstance(value, list):
        lines.append(f"{path}#: {len(value)}")
        for index, item in enumerate(value):
            _flatten(item, f"{path}[{index}]", lines, measures)
    elif isinstance(value, float) or (type(value) is int and "_ppm" in path):
        measures[path] = value
    else:
        lines.append(f"{path}: {value if isinstance(value, str) else json.dumps(value)}")


_SPACE = re.compile(r"\s+")
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-"})


def normalised(text: str) -> str:
    """One spelling of a text: NFKC, typographic quotes and dashes, single spaces, case folded.

    >>> normalised("The  CAPITAL’s name…")
    "the capital's name..."
    """
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return _SPACE.sub(" ", text).strip().casefold()


_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\s*\n+\s*")


def sentences(text: str) -> list[str]:
    """A text's sentences and lines, none of them empty.

    >>> sentences("It is 3.5 m. Is it?\\nYes")
    ['It is 3.5 m.', 'Is it?', 'Yes']
    """
    return [part for part in _SENTENCE.split(text) if part.strip()]

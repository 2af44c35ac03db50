"""The interface every judge implements, and how contents are made comparable."""

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

__all__ = ["Comparable", "Embed", "Judge", "comparable", "normalised"]

Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Unit-norm sentence embeddings, ``[len(texts), d]``."""

MAX_TEXT: int = 200_000
"""Characters of each side that judges read; a longer text equals another only byte for byte."""

MAX_LEAVES: int = 20_000


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
    """

    media_type: str
    raw: bytes
    text: str = ""
    whole: str = ""
    measures: Mapping[str, int | float] = field(default_factory=lambda: {})
    readable: bool = True


class Judge(Protocol):
    """One way to compare a claim with what the committee got.

    A judge returns features, not verdicts: the panel's model turns all of them into one
    probability. It never raises for any content.
    """

    name: ClassVar[str]

    def features(
        self, claimed: Comparable, expected: Comparable, embed: Embed | None
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
    return Comparable(content.media_type, content.data, text, whole, measures)


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

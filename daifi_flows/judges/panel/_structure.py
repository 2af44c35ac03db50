"""Judge: JSON, code that must parse, and tool calls, compared as what they are."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, cast

from daifi_flows.judges.panel._judge import Comparable, Senses
from daifi_flows.judges.panel._text import close

__all__ = ["StructureJudge", "blocks", "is_json", "prose"]

_FENCE: Final = re.compile(r"^```[ \t]*([\w+-]*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MAX_BLOCK: Final = 20_000
_MAX_DEPTH: Final = 60
_CALL_KEYS: Final = ("arguments", "parameters", "input")


class StructureJudge:
    """``structure_differs``: 1 when what can be parsed on either side says something else. NaN when
    neither side has anything to parse.

    Parsed are a whole text that is JSON, fenced blocks of JSON and of Python, and a whole JSON
    content. JSON is compared by value, whatever the order of keys and the spaces, floats within
    1e-6; a tool call's arguments may be an object or its JSON text. Python is compared by its
    syntax tree, so that comments and spaces do not count; code that does not parse equals only the
    same characters.
    """

    name: ClassVar[str] = "structure"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        return {"structure_differs": _differs(claimed, expected)}


def _differs(claimed: Comparable, expected: Comparable) -> float:
    if not (claimed.readable and expected.readable):
        return math.nan
    left, right = blocks(claimed), blocks(expected)
    if not left and not right:
        return math.nan
    return float(left != right)


def blocks(content: Comparable) -> list[object]:
    """What can be parsed in a content, in order, each in a form that compares by meaning."""
    found: list[object] = []
    if isinstance(content.value, dict | list) and not _tagged(content.value):
        found.append(_keyed(content.value, 0))
    whole = _json(content.text)
    if whole is not None:
        found.append(whole)
        return found
    for match in _FENCE.finditer(content.text):
        language, body = match[1].lower(), match[2]
        parsed: object = None
        if language in {"json", ""}:
            parsed = _json(body)
        if parsed is None and language in {"python", "py", ""}:
            parsed = _python(body)
        found.append(parsed if parsed is not None else ("text", body.strip()))
    return found


def is_json(content: Comparable) -> bool:
    """Whether the whole text is one JSON value: blocks that are equal are then all there is."""
    return _json(content.text) is not None


def prose(content: Comparable) -> Comparable:
    """The content without its fenced blocks."""
    if "```" not in content.text:
        return content
    text = _FENCE.sub("\n", content.text)
    whole = text if content.whole == content.text else _FENCE.sub("\n", content.whole)
    return replace(content, text=text, whole=whole)


def _tagged(value: Any) -> bool:
    """Whether a JSON answer is prose in a ``text`` field, its other fields being about it."""
    return isinstance(value, dict) and isinstance(cast("dict[str, Any]", value).get("text"), str)


def _json(text: str) -> object:
    text = text.strip()
    if not text.startswith(("{", "[")) or len(text) > _MAX_BLOCK:
        return None
    try:
        return _keyed(json.loads(text, parse_constant=_no_constant), 0)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _keyed(value: Any, depth: int, measured: bool = False) -> object:
    """A JSON value in a form that compares by value; tool calls with their arguments parsed.

    Args:
        measured: whether it lies under a key with ``_ppm``: its integers are measured quantities.
    """
    if depth > _MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        call = isinstance(items.get("name"), str)
        return {
            key: _keyed(
                _arguments(item) if call and key in _CALL_KEYS else item,
                depth + 1,
                measured or "_ppm" in key,
            )
            for key, item in items.items()
        }
    if isinstance(value, list):
        return [_keyed(item, depth + 1, measured) for item in cast("list[Any]", value)]
    if isinstance(value, float) or (measured and type(value) is int):
        return _Measure(value)
    return (type(value).__name__, value)  # true is not 1


def _arguments(value: Any) -> Any:
    if isinstance(value, str) and len(value) <= _MAX_BLOCK:
        try:
            parsed = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, dict) else value
    return value


class _Measure:
    """A float that equals what lies within the tolerance of the ``digest`` scheme."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: int | float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Measure) and close({"": self.value}, {"": other.value})


def _python(text: str) -> object:
    if len(text) > _MAX_BLOCK:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ("python", ast.dump(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None

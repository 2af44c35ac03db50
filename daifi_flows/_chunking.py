"""Cuts one document of prose into passages at its headings and paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_CHUNK_CHARS", "MAX_WORDS", "chunk_text"]

MAX_WORDS: Final = 120
MAX_CHUNK_CHARS: Final = 1_200
"""A passage stays under MiniLM's 256 tokens: 120 English words are about 160 of them. The
character bound is for text without spaces."""

MAX_HEADING_CHARS: Final = 160
SECTION_WORDS: Final = 30
"""A new section starts a new passage unless the current one is shorter than this."""

_SETEXT = re.compile(r"^(={3,}|-{3,})[ \t]*$")
_RST_RULE = re.compile(r"^([=\-~^\"'*+#`:._])\1{2,}[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)")
_ITEM = re.compile(r"(?:[-*+>]|\d{1,9}[.)])(?: |$)")
_TABLE_RULE = re.compile(r"[|:\- ]+$")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+(?=\S)")
_DRAWINGS: Final = frozenset({"mermaid", "plantuml", "dot", "graphviz"})
"""Fenced blocks that are pictures to a reader and noise to a language model."""


@dataclass(frozen=True)
class _Block:
    """A paragraph, list, table or code block, and the headings it stands under."""

    headings: tuple[str, ...]
    text: str
    code: bool = False


def chunk_text(text: str, *, rst: bool = False) -> list[str]:
    """Cut one document into passages of about 80 to 120 words at headings and paragraphs.

    Each passage starts with its headings ("Page: Section") so that it can be understood alone.
    Paragraphs longer than a passage are cut between lines or sentences, then between words.
    Diagrams (Mermaid and the like) and front matter are left out.

    >>> chunk_text("# Seats\\n\\nThere are 21 seats.")
    ['Seats\\n\\nThere are 21 seats.']
    """
    passages: list[str] = []
    parts: list[str] = []
    title: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    words = 0

    def flush() -> None:
        if parts:
            heading = ": ".join(title)[:MAX_HEADING_CHARS].rstrip()
            passages.append("\n\n".join([heading, *parts] if heading else parts))
        parts.clear()

    for block in _blocks(text, rst):
        for piece in _pieces(block):
            count = len(piece.split())
            chars = sum(len(part) + 2 for part in parts) + len(piece)
            moved = block.headings != last
            if parts and (
                words + count > MAX_WORDS
                or chars > MAX_CHUNK_CHARS
                or (moved and words >= SECTION_WORDS)
            ):
                flush()
            if not parts:
                title, words = block.headings, 0
                parts.append(piece)
            elif moved and block.headings:
                # Short sections share a passage; the later ones are named in place.
                parts.append(f"{block.headings[-1]}\n{piece}")
            else:
                parts.append(piece)
            words += count
            last = block.headings
    flush()
    return passages


def _blocks(text: str, rst: bool) -> Iterator[_Block]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not rst:
        lines = lines[_front_matter(lines) :]
    headings: list[tuple[int, str]] = []
    rules: list[str] = []  # reStructuredText: a rule's level is its order of first appearance
    pending: list[str] = []
    fence = ""
    drawing = any_body = False

    def path() -> tuple[str, ...]:
        return tuple(name for _, name in headings)

    def push(level: int, name: str) -> None:
        while headings and headings[-1][0] >= level:
            headings.pop()
        if name:
            headings.append((level, name[:MAX_HEADING_CHARS]))

    def paragraph() -> Iterator[_Block]:
        prose = _prose(pending)
        pending.clear()
        if prose:
            yield _Block(path(), prose)

    for line in [*lines, ""]:
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
                code = "\n".join(pending).strip("\n")
                pending.clear()
                if code.strip() and not drawing:
                    any_body = True
                    yield _Block(path(), code, code=True)
            else:
                pending.append(line.rstrip())
            continue
        if not rst and (opened := _FENCE.match(line)):
            for block in paragraph():
                any_body = True
                yield block
            fence, drawing = opened[1], opened[2].lower() in _DRAWINGS
            continue
        rule = (_RST_RULE if rst else _SETEXT).match(line)
        if rule and len(pending) == 1:
            name = " ".join(pending.pop().split())
            if rst and rule[1] not in rules:
                rules.append(rule[1])
            push(rules.index(rule[1]) + 1 if rst else 1 + (rule[1][0] == "-"), name)
            continue
        level, name = (0, "") if rst else _atx(line)
        if rule or level or not line.strip():
            for block in paragraph():
                any_body = True
                yield block
            if level:
                push(level, name)
            continue
        pending.append(line)
    if fence and not drawing and "".join(pending).strip():  # a fence nobody closed
        any_body = True
        yield _Block(path(), "\n".join(pending).strip("\n"), code=True)
    if not any_body and headings:
        yield _Block((), ": ".join(path()))


def _front_matter(lines: list[str]) -> int:
    """How many lines of YAML front matter there are (0 without)."""
    if lines[0].strip().lstrip("\ufeff") != "---":
        return 0
    for number, line in enumerate(lines[1:200], 1):
        if line.strip() in ("---", "..."):
            return number + 1
        if not line.strip():
            return 0
    return 0


def _atx(line: str) -> tuple[int, str]:
    """Level and text of a ``# heading``; level 0 for other lines."""
    stripped = line.strip()
    level = len(stripped) - len(stripped.lstrip("#"))
    rest = stripped[level:]
    if not 1 <= level <= 6 or (rest and not rest[0].isspace()) or line.startswith("    "):
        return 0, ""
    return level, " ".join(rest.rstrip("#").split())


def _prose(lines: list[str]) -> str:
    """Unwrap a paragraph; list items and table rows keep their lines."""
    out: list[list[str]] = []
    for line in lines:
        words = " ".join(line.split())
        if _TABLE_RULE.match(words) and "-" in words:
            continue
        if out and not _ITEM.match(words) and not words.startswith("|"):
            out[-1].append(words)
        else:
            out.append([words])
    return "\n".join(" ".join(line) for line in out).strip()


def _pieces(block: _Block) -> Iterator[str]:
    """The block, cut where it is longer than a passage."""
    if _fits(block.text):
        yield block.text
        return
    units: list[tuple[str, str]] = []  # (separator before, text)
    for line in block.text.split("\n"):
        parts = [line] if block.code or _fits(line) else _SENTENCE.split(line)
        separator = "\n"
        for part in parts:
            units += [(separator, part)] if _fits(part) else _cut_words(part, separator)
            separator = " "
    current = ""
    for separator, unit in units:
        joined = current + separator + unit if current else unit
        if _fits(joined):
            current = joined
        else:
            if current.strip():
                yield current
            current = unit
    if current.strip():
        yield current


def _fits(text: str) -> bool:
    return len(text) <= MAX_CHUNK_CHARS and len(text.split()) <= MAX_WORDS


def _cut_words(text: str, separator: str) -> list[tuple[str, str]]:
    units: list[tuple[str, str]] = []
    for word in text.split():
        for start in range(0, len(word), MAX_CHUNK_CHARS):
            units.append((separator, word[start : start + MAX_CHUNK_CHARS]))
            separator = "" if start + MAX_CHUNK_CHARS < len(word) else " "
    return units

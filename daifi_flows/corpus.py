"""A corpus: a folder of Markdown and text, cut into passages with stable ids and one Merkle root.

Chunking is a pure function of the files' text: the same folder gives the same bytes, root and
CID on every machine, so that a retrieval over it can be re-executed by a stranger who was handed
only the blob. No model is needed here, and nothing heavy is imported.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from daifi_flows._chunking import MAX_CHUNK_CHARS, chunk_text
from daifi_flows.cnft import Label, Noun
from daifi_flows.encoding import canonical, cid_of, decode_canonical
from daifi_flows.errors import CorpusError, EncodingError
from daifi_flows.merkle import merkle_proof, merkle_root

__all__ = [
    "MAX_BLOB_BYTES",
    "MAX_CHUNKS",
    "MAX_FILE_BYTES",
    "SUFFIXES",
    "Chunk",
    "Corpus",
]

SUFFIXES: Final = (".md", ".markdown", ".txt", ".rst")
"""File types that are read; others are passed over."""

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""Larger files are skipped: prose of this length is a book, more is a data file."""

MAX_CHUNKS: Final = 20_000
"""Passages in one corpus: about ten minutes of embedding on two CPU cores."""

MAX_BLOB_BYTES: Final = 32 * 1024 * 1024
"""Canonical size of one corpus."""

MAX_ENTRIES: Final = 200_000
"""Directory entries looked at before giving up: someone passed a whole disk."""

MAX_TEXT_CHARS: Final = 2 * MAX_CHUNK_CHARS
"""What a stranger's passage may hold, heading included."""


class Chunk(Noun):
    """One passage. ``id`` is ``<source>#<n>``, n from 1 in reading order; ``source`` is the file's
    path inside the folder, with ``/``."""

    id: Label
    source: Label
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]


@dataclass(frozen=True)
class Corpus:
    """Passages in canonical order: sources ascending by code point, then reading order.

    >>> corpus = Corpus((Chunk(id="a.md#1", source="a.md", text="A seat is one of 21."),))
    >>> Corpus.from_blob(corpus.blob()) == corpus
    True
    """

    chunks: tuple[Chunk, ...]
    skipped: Mapping[str, int] = field(default_factory=lambda: {}, compare=False)
    """Files that were not read, by reason (``too large``, ``binary``, …); not hashed."""

    @classmethod
    def from_folder(cls, folder: Path | str) -> Corpus:
        """Read and cut every Markdown and text file under ``folder``.

        Hidden files and folders are left out; links are followed only to files inside the
        folder; files over :data:`MAX_FILE_BYTES`, binary or not UTF-8/UTF-16 are counted in
        ``skipped``.

        Raises:
            CorpusError: the folder is missing, empty, too large, or holds no readable text.
        """
        root = Path(folder).expanduser()
        if not root.exists():
            raise CorpusError(
                f"corpus folder {folder} does not exist; pass a folder of Markdown or text files"
            )
        if not root.is_dir():
            raise CorpusError(f"corpus {folder} is not a folder; pass the folder that holds it")
        chunks: list[Chunk] = []
        skipped: Counter[str] = Counter()
        size = 0
        for source, path in sorted(_files(root, skipped)):
            text = _read(path, skipped)
            if text is None:
                continue
            pieces = chunk_text(text, rst=path.suffix.lower() == ".rst")
            if not pieces:
                skipped["empty"] += 1
            for number, piece in enumerate(pieces, 1):
                chunks.append(Chunk(id=f"{source}#{number}", source=source, text=piece))
                size += len(chunks[-1].canonical())
            if len(chunks) > MAX_CHUNKS or size > MAX_BLOB_BYTES - 16:
                raise CorpusError(
                    f"corpus folder {folder} is too large (over {MAX_CHUNKS} passages or "
                    f"{MAX_BLOB_BYTES >> 20} MiB of text); choose a smaller folder"
                )
        if not chunks:
            raise CorpusError(_nothing_readable(folder, skipped))
        return cls(tuple(chunks), dict(skipped))

    @classmethod
    def from_blob(cls, data: bytes) -> Corpus:
        """Parse a stranger's :meth:`blob`; anything that is not one is refused.

        Raises:
            EncodingError: too large, not canonical, no chunks, or ids that are unordered,
                repeated or do not belong to their source.
        """
        value = decode_canonical(data, max_bytes=MAX_BLOB_BYTES)
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHUNKS:
            raise EncodingError(f"a corpus is a list of 1 to {MAX_CHUNKS} chunks")
        chunks = tuple(Chunk.from_plain(item) for item in value)
        previous, number = "", 0
        for chunk in chunks:
            if chunk.source < previous:
                raise EncodingError(f"corpus sources are not in order at {chunk.id[:80]!r}")
            number = number + 1 if chunk.source == previous else 1
            previous = chunk.source
            if chunk.id != f"{chunk.source}#{number}":
                raise EncodingError(f"corpus chunk {chunk.id[:80]!r} is out of sequence")
        corpus = cls(chunks)
        if corpus.blob() != data:  # a byte string where text belongs, read as text
            raise EncodingError("not the canonical form of a corpus")
        return corpus

    def blob(self) -> bytes:
        """Canonical DAG-CBOR of the chunk list: what a step's materials carry."""
        return self._blob

    @cached_property
    def _blob(self) -> bytes:
        return canonical([chunk.plain() for chunk in self.chunks])

    @cached_property
    def cid(self) -> str:
        """CIDv1 (raw codec) of :meth:`blob`."""
        return cid_of(self._blob)

    @cached_property
    def leaves(self) -> tuple[bytes, ...]:
        """Canonical bytes of each chunk, in order: the leaves of the Merkle tree."""
        return tuple(chunk.canonical() for chunk in self.chunks)

    @cached_property
    def root(self) -> bytes:
        """Merkle root over :attr:`leaves` (RFC 9162 with Keccak-256), 32 bytes."""
        return merkle_root(self.leaves)

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Sibling hashes that prove chunk ``index`` under :attr:`root` (``verify_merkle``).

        Raises:
            EncodingError: there is no such chunk.
        """
        return merkle_proof(self.leaves, index)


# Files


def _files(root: Path, skipped: Counter[str]) -> Iterator[tuple[str, Path]]:
    """Readable candidates as (source, path); reasons for the others go to ``skipped``."""
    inside = root.resolve()
    seen = 0
    for where, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            seen += 1
            if seen > MAX_ENTRIES:
                raise CorpusError(
                    f"corpus folder {root} holds over {MAX_ENTRIES} files; choose a smaller folder"
                )
            if name.startswith("."):
                continue
            path = Path(where) / name
            if path.suffix.lower() not in SUFFIXES:
                skipped["other type"] += 1
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                skipped["link out of the folder"] += 1
                continue
            source = path.relative_to(root).as_posix()
            # 256 characters is what a Label holds; "#20000" takes six.
            if len(source) > 250 or not source.isprintable():
                skipped["unusable name"] += 1
                continue
            yield source, path


def _read(path: Path, skipped: Counter[str]) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO would block the read for ever
            skipped["unreadable"] += 1
            return None
        if status.st_size > MAX_FILE_BYTES:
            skipped["too large"] += 1
            return None
        data = path.read_bytes()
    except OSError:
        skipped["unreadable"] += 1
        return None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        skipped["binary" if b"\0" in data else "not UTF-8"] += 1
        return None
    if "\0" in text:
        skipped["binary"] += 1
        return None
    return text


def _nothing_readable(folder: Path | str, skipped: Mapping[str, int]) -> str:
    if not skipped:
        return f"corpus folder {folder} is empty; put Markdown or text files into it"
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return (
        f"corpus folder {folder} has no readable text in {', '.join(SUFFIXES)} files "
        f"(found: {found}); add a Markdown or text file"
    )

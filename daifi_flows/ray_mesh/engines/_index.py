"""A corpus' embeddings on disk: one LanceDB table, written once, checked before each opening.

Layout of ``<home>/indexes/<corpus root>-<embedding model digest>/``::

    chunks.lance/   ordinal, id, source, text, vector; written in one commit: version 1
    index.json      what the folder must hold, to the byte: size and SHA-256 of every file

The folder is made beside its place and renamed into it, under a file lock, so that a reader sees
a whole index or none, and one process embeds while the others wait. Hashes are compared before
LanceDB's native code parses anything. They find damage, not an attacker who can write to this
disk and recomputes them: whoever verifies others keeps an index of its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daifi_flows.corpus import Corpus
from daifi_flows.encoding import canonical_json, parse_json, sha256
from daifi_flows.errors import EncodingError, EngineError
from daifi_flows.ray_mesh.engines._embedder import Embedder
from daifi_flows.ray_mesh.engines._engine import Control

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["INDEX_VERSION", "SCORE_STEP_PPM", "PassageIndex", "open_index"]

INDEX_VERSION: Final = 1
"""The table version that is opened: a corpus never changes, so its index has one commit."""

SCORE_STEP_PPM: Final = 1_000
"""Scores are rounded to a thousandth. CPUs differ by about 1e-6 in a cosine (measured: 1.4e-7
between batch shapes on one CPU), so honest machines nearly always agree on every digit, and near
ties are ordered by id everywhere."""

_FORMAT: Final = "daifi/index/1"
_TABLE: Final = "chunks"


class PassageIndex:
    """An opened index. Searching is exact: every vector is compared (no approximate index)."""

    def __init__(self, corpus: Corpus, table: Any) -> None:
        self.corpus = corpus
        self.version = INDEX_VERSION
        self._table = table

    def search(self, query: NDArray[np.float32], k: int) -> list[tuple[int, int]]:
        """The best ``k`` chunks as (position in the corpus, score_ppm).

        Args:
            query: unit-norm embedding, ``[dimension]``.

        Returns:
            At most ``k`` pairs, score descending, then chunk id ascending by code point. A score
            is cosine similarity in ppm, in steps of :data:`SCORE_STEP_PPM`; it can be negative.

        Raises:
            EngineError: the vector store failed.
        """
        total = len(self.corpus.chunks)
        wanted = min(total, 4 * k + 32)
        while True:
            hits = self._nearest(query, wanted)
            hits.sort(key=lambda hit: (-hit[1], self.corpus.chunks[hit[0]].id))
            # A tie across the cut must be decided by id, not by what the store happened to list.
            if wanted == total or hits[-1][1] < hits[min(k, len(hits)) - 1][1]:
                return hits[:k]
            wanted = min(total, 4 * wanted)

    def _nearest(self, query: NDArray[np.float32], limit: int) -> list[tuple[int, int]]:
        try:
            found: dict[str, list[Any]] = (
                self._table.search(query)
                .distance_type("cosine")
                .bypass_vector_index()
                .select(["ordinal", "_distance"])
                .limit(limit)
                .to_arrow()
                .to_pydict()
            )
        except Exception as error:
            raise EngineError(f"the vector store failed to search: {error}") from error
        steps = 1_000_000 // SCORE_STEP_PPM
        return [
            (int(ordinal), round((1.0 - float(distance)) * steps) * SCORE_STEP_PPM)
            for ordinal, distance in zip(found["ordinal"], found["_distance"], strict=True)
        ]


def open_index(home: Path, corpus: Corpus, embedder: Embedder, control: Control) -> PassageIndex:
    """Open the corpus' index under ``home``; build it when absent, rebuild it when damaged.

    Raises:
        EngineError: LanceDB is not installed, or the folder cannot be written.
        StepCancelled: ``control`` asked to stop while passages were embedded.
    """
    name = f"{corpus.root.hex()}-{embedder.model.ref.digest.hex()}"
    place = home / "indexes" / name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.parent / f"{name}.lock"):
            problem = _damage(place)
            if problem is None:
                table = _open_table(place)
                problem = _differs(table, corpus)
                if problem is None:
                    return PassageIndex(corpus, table)
            if problem != "absent":
                control.log(f"the index of this corpus is damaged ({problem}); building it anew")
            building = place.with_name(f"{name}.building")
            shutil.rmtree(building, ignore_errors=True)  # left by a process that died
            _build(building, corpus, embedder, control)
            shutil.rmtree(place, ignore_errors=True)
            building.rename(place)
            return PassageIndex(corpus, _open_table(place))
    except OSError as error:
        raise EngineError(
            f"the index folder {place.parent} cannot be used ({error}); free space there or set "
            "DAIFI_HOME to a folder this process can write"
        ) from error


@contextmanager
def _locked(path: Path) -> Generator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel releases it if this process dies
        yield
    finally:
        os.close(descriptor)


def _lancedb() -> Any:
    os.environ.setdefault("LANCE_LOG", "error")  # it warns that a table to be created is absent
    try:
        import lancedb
    except ImportError as error:
        raise EngineError(
            f"LanceDB cannot be imported ({error}); install it with pip install lancedb"
        ) from error
    return lancedb


def _open_table(place: Path) -> Any:
    lancedb = _lancedb()
    try:
        table = lancedb.connect(str(place)).open_table(_TABLE)
        table.checkout(INDEX_VERSION)
    except Exception as error:
        raise EngineError(f"the vector store cannot open {place}: {error}") from error
    return table


def _listing(place: Path) -> dict[str, list[Any]]:
    files = sorted(path for path in place.rglob("*") if path.is_symlink() or path.is_file())
    return {
        path.relative_to(place).as_posix(): [len(data), sha256(data).hex()]
        for path in files
        if path != place / "index.json"
        for data in [path.read_bytes()]
    }


def _damage(place: Path) -> str | None:
    """Why this folder is not the index that was written here."""
    if not place.exists():
        return "absent"
    try:
        said = parse_json((place / "index.json").read_bytes())
        if not isinstance(said, dict) or said.get("format") != _FORMAT:
            return "index.json is of another format"
        return None if said.get("files") == _listing(place) else "a file was changed"
    except (OSError, EncodingError) as error:
        return f"it cannot be read: {error}"


def _differs(table: Any, corpus: Corpus) -> str | None:
    """Why the stored passages are not this corpus'."""
    try:
        columns: dict[str, list[Any]] = (
            table.to_arrow().select(["ordinal", "id", "source", "text"]).to_pydict()
        )
    except Exception as error:
        return f"its table cannot be read: {error}"
    stored = zip(*columns.values(), strict=True)
    expected = [(n, c.id, c.source, c.text) for n, c in enumerate(corpus.chunks)]
    return None if list(stored) == expected else "its passages are not the corpus'"


def _build(place: Path, corpus: Corpus, embedder: Embedder, control: Control) -> None:
    import pyarrow as pa

    lancedb = _lancedb()
    control.log(f"embedding {len(corpus.chunks)} passages with {embedder.model.ref.name}")
    vectors = embedder.embed([chunk.text for chunk in corpus.chunks], control.check)
    control.check()
    dimension = int(vectors.shape[1])
    schema = pa.schema(
        [
            ("ordinal", pa.int32()),
            ("id", pa.string()),
            ("source", pa.string()),
            ("text", pa.string()),
            ("vector", pa.list_(pa.float32(), dimension)),
        ]
    )
    data = pa.table(
        {
            "ordinal": pa.array(range(len(corpus.chunks)), pa.int32()),
            "id": [chunk.id for chunk in corpus.chunks],
            "source": [chunk.source for chunk in corpus.chunks],
            "text": [chunk.text for chunk in corpus.chunks],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension),
        },
        schema=schema,
    )
    try:
        table = lancedb.connect(str(place)).create_table(_TABLE, data, schema=schema)
    except OSError:
        raise
    except Exception as error:
        raise EngineError(f"the vector store cannot write {place}: {error}") from error
    if table.version != INDEX_VERSION:
        raise EngineError(f"the vector store wrote version {table.version}, not {INDEX_VERSION}")
    listing = {"format": _FORMAT, "root": corpus.root.hex(), "files": _listing(place)}
    (place / "index.json").write_bytes(canonical_json(listing))

"""Engine ``retrieval``: the passages of a corpus that are nearest to a question."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, Final

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec, Usage
from daifi_flows.corpus import Corpus
from daifi_flows.encoding import cid_of, decode_canonical_json
from daifi_flows.errors import EncodingError, EngineError, ModelError
from daifi_flows.ray_mesh._models import LocalModel, resolve
from daifi_flows.ray_mesh.engines._embedder import (
    EMBEDDING_FLOPS_PER_TOKEN,
    Embedder,
    embedder_for,
)
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._index import PassageIndex, open_index

__all__ = ["MAX_K", "MAX_QUERY_CHARS", "RetrievalEngine"]

MAX_K: Final = 64
MAX_QUERY_CHARS: Final = 8_192
"""Of which the embedding model reads its first 256 tokens."""

_OPEN: Final = 4
"""Indexes kept open, least recently used closed first."""
_FIELDS: Final = {"query", "k", "corpus", "corpus_cid"}
_ROOT = re.compile(r"[0-9a-f]{64}")


class RetrievalEngine:
    """Exact top-k by cosine similarity of all-MiniLM-L6-v2 embeddings, stored in LanceDB.

    Input: ``{"query": str, "k": 1..64, "corpus": root (64 hex digits), "corpus_cid": cid}``; the
    corpus travels in ``materials.blobs[corpus_cid]``. Output: ``{"passages": [{"id", "source",
    "text", "score_ppm"}], "index_version": 1}``, best first; ties are ordered by id. Fewer than k
    passages come back only when the corpus holds fewer.

    A node and a verifier run this same class over home folders of their own. Usage counts the
    question: its tokens, and FLOPs estimated as tokens × 2 × matrix weights of the embedding
    model, plus 2 × dimension for each passage compared. Building the index is done once a corpus
    and not counted.

    Args:
        home: indexes are kept under ``home/indexes``; they can be deleted at any time.
    """

    name: ClassVar[str] = "retrieval"
    evidence: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._embedders: dict[bytes, Embedder] = {}
        self._indexes: OrderedDict[tuple[str, bytes], PassageIndex] = OrderedDict()

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """Find the embedding model; see :meth:`Engine.model`.

        Raises:
            ModelError: unknown, not at hand, another digest, or a precision other than fp32.
        """
        del materials
        if ref.precision != "fp32":
            raise ModelError(
                f"the retrieval engine embeds in fp32, not {ref.precision!r}; name fp32"
            )
        return resolve(ref.name, self.name, ref.precision, ref.digest)

    def load(self, model: LocalModel) -> None:
        """Load the embedding model. Idempotent; see :meth:`Engine.load`."""
        self._embedder(model).load()

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Search; the corpus is embedded first when this home has no index of it.

        Raises:
            EngineError: the input is malformed, its corpus is not in the materials or is not the
                one named, or the vector store failed.
            ModelError: see :meth:`model`.
            StepCancelled: ``control`` asked to stop.
        """
        started = time.perf_counter_ns()
        query, k, root, cid = _parse(input)
        blob = materials.blobs.get(cid)
        if blob is None:
            raise EngineError(f"the corpus {cid} did not come with the step; send its blob")
        if cid_of(blob) != cid:
            raise EngineError(f"the corpus that came with the step does not hash to {cid}")
        embedder = self._embedder(self.model(spec.model, materials))
        control.check()
        with self._lock:  # one build at a time; searching an opened index takes milliseconds
            index = self._index(cid, blob, embedder, control)
        if index.corpus.root != root:
            raise EngineError(f"the corpus' root is {index.corpus.root.hex()}, not {root.hex()}")
        hits = index.search(embedder.embed([query])[0], k)
        passages = [
            {**index.corpus.chunks[position].plain(), "score_ppm": score}
            for position, score in hits
        ]
        tokens = embedder.tokens(query)
        flops = tokens * EMBEDDING_FLOPS_PER_TOKEN + 2 * 384 * len(index.corpus.chunks)
        return Execution(
            output=Content.json_value({"passages": passages, "index_version": index.version}),
            usage=Usage(
                prompt_tokens=tokens,
                flops=flops,
                duration_ms=(time.perf_counter_ns() - started) // 1_000_000,
            ),
        )

    def close(self) -> None:
        """Free the embedding model and close the indexes. Idempotent."""
        with self._lock:
            self._indexes.clear()
            embedders = list(self._embedders.values())
            self._embedders.clear()
        for embedder in embedders:
            embedder.close()

    def _embedder(self, model: LocalModel) -> Embedder:
        with self._lock:
            return self._embedders.setdefault(model.ref.digest, embedder_for(model))

    def _index(self, cid: str, blob: bytes, embedder: Embedder, control: Control) -> PassageIndex:
        key = (cid, embedder.model.ref.digest)
        index = self._indexes.get(key)
        if index is None:
            try:
                corpus = Corpus.from_blob(blob)
            except EncodingError as error:
                raise EngineError(
                    f"the corpus that came with the step is malformed: {error}"
                ) from (error)
            index = open_index(self._home, corpus, embedder, control)
            self._indexes[key] = index
            if len(self._indexes) > _OPEN:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(key)
        return index


def _parse(input: Content) -> tuple[str, int, bytes, str]:
    """Query, k, corpus root and corpus CID of a stranger's input."""
    try:
        if input.media_type != "application/json":
            raise EncodingError(f"its media type is {input.media_type!r}")
        value: Any = decode_canonical_json(input.data, max_bytes=1 << 20)
    except EncodingError as error:
        raise EngineError(f"a retrieval's input must be JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise EngineError(f"a retrieval's input needs exactly {', '.join(sorted(_FIELDS))}")
    query, k, root, cid = (value[name] for name in ("query", "k", "corpus", "corpus_cid"))
    if not isinstance(query, str) or not query.strip():
        raise EngineError("the question is empty; ask one")
    if len(query) > MAX_QUERY_CHARS:
        raise EngineError(
            f"the question has {len(query)} characters, over {MAX_QUERY_CHARS}; shorten it"
        )
    if type(k) is not int or not 1 <= k <= MAX_K:
        raise EngineError(f"k must be a whole number from 1 to {MAX_K}, not {str(k)[:40]}")
    if not isinstance(root, str) or not _ROOT.fullmatch(root):
        raise EngineError("corpus must be the corpus' Merkle root in 64 lower-case hex digits")
    if not isinstance(cid, str):
        raise EngineError("corpus_cid must be the CID of the corpus' blob")
    return query, k, bytes.fromhex(root), cid

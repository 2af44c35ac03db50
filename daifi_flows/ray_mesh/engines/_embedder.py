"""Sentence embeddings (sentence-transformers on CPU), shared by retrieval, policy and judges."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from daifi_flows.errors import EngineError, ModelError
from daifi_flows.ray_mesh._models import LocalModel
from daifi_flows.ray_mesh.engines._loading import LOADING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EMBEDDING_FLOPS_PER_TOKEN", "MAX_TEXT_CHARS", "Embedder", "embedder_for"]

BATCH: Final = 32
MAX_TEXT_CHARS: Final = 16_384
"""Texts are cut here before tokenising: the model reads 256 tokens, so the rest cannot matter,
but a stranger's megabyte would cost seconds."""

EMBEDDING_FLOPS_PER_TOKEN: Final = 2 * 6 * (4 * 384**2 + 2 * 384 * 1536)
"""Estimate for MiniLM-L6-H384: two per weight of its six layers' matrices (Kaplan et al., arXiv
2001.08361, section 2.1); attention scores and the embedding table are left out."""


def _nothing() -> None:
    return None


class Embedder:
    """Unit-norm embeddings of one model. Loads on first use; safe to share between threads.

    Texts longer than the model's window (256 tokens for all-MiniLM-L6-v2) are truncated at their
    end: an embedding of a long text describes its beginning.
    """

    def __init__(self, model: LocalModel) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._loaded: Any = None

    def load(self) -> None:
        """Bring the weights into memory. Idempotent.

        Raises:
            EngineError: sentence-transformers is not installed.
            ModelError: the folder holds no sentence-transformers model.
        """
        with self._lock:
            self._load()

    def _load(self) -> Any:
        if self._loaded is None:
            try:
                import transformers
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise EngineError(
                    f"sentence-transformers cannot be imported ({error}); "
                    "install it with pip install sentence-transformers"
                ) from error
            transformers.utils.logging.disable_progress_bar()
            try:
                # On the CPU: two kinds of device would differ by more than the scores' tolerance.
                with LOADING:
                    self._loaded = SentenceTransformer(
                        str(self.model.location), device="cpu", local_files_only=True
                    )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(
                    f"model {self.model.ref.name!r} cannot be loaded as an embedding model: {error}"
                ) from error
        return self._loaded

    def embed(
        self, texts: Sequence[str], check: Callable[[], None] = _nothing
    ) -> NDArray[np.float32]:
        """Embeddings in the order given, ``[len(texts), dimension]``, each of norm 1.

        Args:
            check: called between batches; raises to stop.

        Raises:
            EngineError: the model failed on these texts.
            ModelError: see :meth:`load`.
        """
        import numpy as np

        out: list[NDArray[np.float32]] = []
        with self._lock:
            model = self._load()
            for start in range(0, len(texts), BATCH):
                check()
                batch = [text[:MAX_TEXT_CHARS] for text in texts[start : start + BATCH]]
                try:
                    rows = model.encode(
                        batch,
                        batch_size=BATCH,
                        normalize_embeddings=True,
                        convert_to_numpy=True,
                        show_progress_bar=False,
                    )
                except (RuntimeError, ValueError, TypeError) as error:
                    raise EngineError(f"embedding failed: {error}") from error
                out.append(np.asarray(rows, dtype=np.float32))
            dimension = int(model.get_embedding_dimension())
        return np.concatenate(out) if out else np.zeros((0, dimension), dtype=np.float32)

    def tokens(self, text: str) -> int:
        """How many tokens of ``text`` the model reads, special ones included."""
        with self._lock:
            model = self._load()
            ids = model.tokenizer(text[:MAX_TEXT_CHARS], truncation=False, verbose=False)
        return min(len(ids["input_ids"]), int(model.max_seq_length))

    def close(self) -> None:
        """Free the weights. Idempotent; the next use loads them again."""
        with self._lock:
            self._loaded = None


_shared: dict[bytes, Embedder] = {}
_shared_lock = threading.Lock()


def embedder_for(model: LocalModel) -> Embedder:
    """The one embedder of this model in this process, whoever asks: weights are loaded once."""
    with _shared_lock:
        return _shared.setdefault(model.ref.digest, Embedder(model))

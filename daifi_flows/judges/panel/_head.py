"""The head on the sentence embeddings: a small net, trained so that opposites lie far apart."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import numpy as np

from daifi_flows.errors import EncodingError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

__all__ = ["MAX_HEAD_BYTES", "Head", "read_head", "score_of", "shipped_head", "write_head"]

MAX_HEAD_BYTES: Final = 4 << 20
_NAMES: Final = ("project", "first", "first_bias", "second", "second_bias")
_FILE: Final = "head.npz"
_REACH: Final = 8.0


@dataclass(frozen=True)
class Head:
    """``logit(u, v) = second · relu(first · [|p − q|, p∘q] + b) + c`` with ``p = project·u`` and
    ``q = project·v``: symmetric in its two embeddings.

    Attributes:
        project: ``[d, k]``, trained contrastively; ``d`` is the width of the embeddings.
        first, first_bias: ``[2k, h]`` and ``[h]``.
        second, second_bias: ``[h]`` and ``[1]``.
    """

    project: Rows
    first: Rows
    first_bias: Rows
    second: Rows
    second_bias: Rows

    @property
    def width(self) -> int:
        """Of the embeddings it takes."""
        return int(self.project.shape[0])

    def scores(self, one: Rows, other: Rows) -> Rows:
        """Scores in [0, 1], ``[n]``, of unit-norm embeddings ``[n, d]`` each: the logit, from −8 to
        8 and linear between, so that the panel's model can weigh it in log-odds."""
        p, q = one @ self.project, other @ self.project
        both = np.concatenate([np.abs(p - q), p * q], axis=1)
        hidden = np.maximum(both @ self.first + self.first_bias, 0.0)
        return score_of(hidden @ self.second + self.second_bias[0])

    def tensors(self) -> Mapping[str, Rows]:
        """Its weights by name."""
        return {name: getattr(self, name) for name in _NAMES}


def score_of(logit: Rows) -> Rows:
    """The head's score from its logit."""
    return (np.clip(logit, -_REACH, _REACH) / (2 * _REACH) + 0.5).astype(np.float32)


def write_head(head: Head) -> bytes:
    """As an ``.npz`` archive of float32 arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(head.tensors()))
    return buffer.getvalue()


def read_head(data: bytes) -> Head:
    """Parse :func:`write_head`'s bytes. Nothing is unpickled.

    Raises:
        EncodingError: they are not a head's, or its shapes do not fit together.
    """
    if len(data) > MAX_HEAD_BYTES:
        raise EncodingError(f"a head has at most {MAX_HEAD_BYTES} bytes")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in _NAMES}
    except Exception as error:  # zipfile and NumPy raise many kinds for a stranger's bytes
        raise EncodingError(f"these bytes are not a head: {error}") from error
    head = Head(**arrays)
    if (
        any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays.values())
        or head.project.ndim != 2
        or head.second.ndim != 1
        or head.first.shape != (2 * head.project.shape[1], len(head.second))
        or head.first_bias.shape != head.second.shape
        or head.second_bias.shape != (1,)
    ):
        raise EncodingError("the head's tensors do not fit together")
    return head


@functools.cache
def shipped_head() -> Head:
    """The head in this package.

    Raises:
        ModelError: it is damaged.
    """
    try:
        return read_head((files(__package__ or "") / "data" / _FILE).read_bytes())
    except (OSError, EncodingError) as error:
        raise ModelError(f"the judges' head is damaged: {error}: install the package again") from (
            error
        )

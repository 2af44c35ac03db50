"""Judge: images and tensors, by cosine and relative error within stated tolerances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, cast

from daifi_flows.judges.panel._judge import Comparable, Senses

__all__ = ["MAX_RELATIVE_ERROR", "MIN_COSINE", "TensorJudge"]

MIN_COSINE: Final = 0.999
MAX_RELATIVE_ERROR: Final = 0.02
"""Of the L2 norm of the difference over that of the committee's values. bfloat16 keeps 8 bits, a
relative step of 2⁻⁸ = 0.4 %; a chain of layers rounds a few times as much, and a changed value in
an array of a few hundred exceeds it."""

MAX_VALUES: Final = 1 << 18


class TensorJudge:
    """``tensor_cosine`` and ``tensor_error`` (relative, L2, at most 1) of contents that hold
    nothing but numbers in lists of one shape, floats among them; NaN for every other content.

    Raw bytes under ``application/x-float32``, and grey or coloured pixels under ``image/x-raw``
    (one byte each), are arrays of one dimension.
    """

    name: ClassVar[str] = "tensor"

    def features(
        self, claimed: Comparable, expected: Comparable, senses: Senses
    ) -> Mapping[str, float]:
        """See :class:`Judge`."""
        del senses
        unknown = {"tensor_cosine": math.nan, "tensor_error": math.nan}
        if claimed.media_type != expected.media_type:
            return unknown
        if claimed.same_bytes(expected):
            return {"tensor_cosine": 1.0, "tensor_error": 0.0} if is_tensor(expected) else unknown
        left, right = _array(claimed), _array(expected)
        if right is None:
            return unknown
        apart = {"tensor_cosine": 0.0, "tensor_error": 1.0}
        if left is None or left.shape != right.shape:
            return apart
        import numpy as np

        with np.errstate(all="ignore"):
            size = float(np.linalg.norm(right))
            product = float(np.linalg.norm(left)) * size
            cosine = float((left * right).sum()) / product if product else 0.0
            error = float(np.linalg.norm(left - right)) / size if size else math.inf
        if not (math.isfinite(cosine) and error < math.inf):
            return apart
        return {
            "tensor_cosine": min(max(cosine, 0.0), 1.0),
            "tensor_error": min(error, 1.0),
        }


def is_tensor(content: Comparable) -> bool:
    """Whether a content is judged as numbers."""
    return _array(content) is not None


def _array(content: Comparable) -> Any:
    """Finite values as float64 of any shape, or ``None``."""
    import numpy as np

    if content.media_type in {"application/x-float32", "image/x-raw"}:
        kind = np.dtype("<f4") if content.media_type == "application/x-float32" else np.uint8
        size = np.dtype(kind).itemsize
        if not content.raw or len(content.raw) % size or len(content.raw) > size * MAX_VALUES:
            return None
        with np.errstate(all="ignore"):
            found = np.frombuffer(content.raw, kind).astype(np.float64)
    else:
        if not isinstance(content.value, list) or not content.measures:
            return None
        values = cast("list[Any]", content.value)
        if not _numbers(values, 0):
            return None
        try:
            found = np.asarray(values, np.float64)
        except (ValueError, TypeError, OverflowError):
            return None
    return found if found.size and bool(np.isfinite(found).all()) else None


def _numbers(values: list[Any], depth: int) -> bool:
    return depth < 8 and all(
        _numbers(cast("list[Any]", item), depth + 1)
        if isinstance(item, list)
        else type(item) in {int, float}
        for item in values
    )

"""How far honest engines differ from a verifier: measured once for a model and precision.

A calibration is one canonical JSON file. ``daifi calibrate MODEL`` makes one; some ship with this
package under ``proofs/data/calibrations``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from daifi_flows.cnft import Bytes32, Label, ModelRef, Noun, Uint
from daifi_flows.encoding import canonical_json, decode_canonical_json
from daifi_flows.errors import EncodingError, ModelError

__all__ = [
    "ActivationBounds",
    "Calibration",
    "RelativeBounds",
    "Rounding",
    "find_calibration",
    "read_calibration",
    "write_calibration",
]

_SHIPPED: Final = Path(__file__).parent / "data" / "calibrations"
_MAX_BYTES: Final = 16_384
_FORMAT: Final = "daifi-calibration/1"

Scale = Annotated[float, Field(ge=1e-4, le=100.0, allow_inf_nan=False, strict=True)]
Weight = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False, strict=True)]
Error = Annotated[float, Field(ge=0.0, le=256.0, allow_inf_nan=False, strict=True)]


class Rounding(Noun):
    """How an honest node's token follows from the verifier's scores.

    A token that lies ``g`` logits under the best score is drawn with probability proportional to
    ``exp(−½(g/scale)²)``, the scale itself drawn from ``scales`` by ``weights``: engines that round
    differently choose differently where scores nearly tie.

    Attributes:
        scales: in logits, increasing.
        weights: sum to 1.
    """

    scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=32)]
    weights: Annotated[tuple[Weight, ...], Field(min_length=1, max_length=32)]

    @model_validator(mode="after")
    def _is_mixture(self) -> Self:
        if len(self.scales) != len(self.weights):
            raise ValueError("a rounding needs one weight a scale")
        if any(a >= b for a, b in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError("the scales of a rounding increase")
        if abs(sum(self.weights) - 1) > 1e-9:
            raise ValueError("the weights of a rounding sum to 1")
        return self


class RelativeBounds(Noun):
    """How an honest answer's error compares with what rounding does to that same answer.

    Some answers are noisier than others, whoever computes them. A verifier sees by how much when it
    computes its own activations twice, by two attention kernels: that difference is the unit here.

    Attributes:
        mean: of honest answers, about 1.
        answer_spread: its standard deviation over long answers.
        chunk_spread: of one fingerprint's within an answer.
    """

    mean: Error
    answer_spread: Error
    chunk_spread: Error


class ActivationBounds(Noun):
    """What honest fingerprints keep to (TOPLOC, arXiv 2501.16007), one of 32 tokens and all of an
    answer's. Made by :func:`~daifi_flows.proofs.activations.fit_bounds`.

    Attributes:
        min_exponent_matches: of the 128 largest activations, how many have the same exponent.
        max_mean_error, max_median_error: of their mantissas, in units of a bf16 mantissa's last
            bit.
        mean_error: of all mantissas of an honest answer, on average over answers.
        answer_spread: its standard deviation over long answers.
        chunk_spread: standard deviation of one fingerprint's mean error within an answer.
        relative: of an answer's error divided by the verifier's own, see :class:`RelativeBounds`;
            absent: not measured.
    """

    min_exponent_matches: Annotated[int, Field(ge=0, le=128, strict=True)]
    max_mean_error: Error
    max_median_error: Error
    mean_error: Error
    answer_spread: Error
    chunk_spread: Error
    relative: RelativeBounds | None = None


class Calibration(Noun):
    """What was measured for one model in one precision.

    Attributes:
        model: name it was measured under; the digest and the precisions decide.
        precision, verifier_precision: what the node claims, and what the verifier prefills in.
        rounding: of token choices, for ``token-difr``.
        activations: bounds for ``toploc``; absent: not measured, the paper's hold.
        generations, tokens: honest ones, how many were measured.
        max_log_evidence: the largest evidence that held-out honest generations gave against
            themselves, natural logarithm.
        made_with: libraries and processor, one line each.
    """

    model: Label
    digest: Bytes32
    precision: Label
    verifier_precision: Label
    rounding: Rounding
    activations: ActivationBounds | None = None
    generations: Uint
    tokens: Uint
    max_log_evidence: Annotated[float, Field(allow_inf_nan=False, strict=True)]
    made_with: Annotated[tuple[Label, ...], Field(max_length=16)] = ()

    @property
    def file_name(self) -> str:
        """Where it is kept: digest and precisions."""
        return _file_name(self.digest, self.precision, self.verifier_precision)

    def encode(self) -> bytes:
        """The canonical JSON file."""
        return canonical_json({"format": _FORMAT, **self.jsonable()})


def _file_name(digest: bytes, precision: str, verifier_precision: str) -> str:
    pair = precision if precision == verifier_precision else f"{precision}-by-{verifier_precision}"
    return f"{digest.hex()[:32]}-{pair}.json"


def read_calibration(path: Path) -> Calibration:
    """A calibration file, exactly as :func:`write_calibration` writes it.

    Raises:
        ModelError: it cannot be read, or is not a calibration in canonical form.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        value = decode_canonical_json(data, max_bytes=_MAX_BYTES)
        if not isinstance(value, dict) or value.pop("format", None) != _FORMAT:
            raise EncodingError(f"it is not of format {_FORMAT}")
        found = Calibration.from_plain(value)
        if found.encode() != data:
            raise EncodingError("it is not in canonical form")
    except (OSError, EncodingError) as error:
        raise ModelError(
            f"calibration file {path} cannot be used: {error}; make it again with `daifi calibrate`"
        ) from error
    return found


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file in one step: readers see the old one or the new one.

    Raises:
        ModelError: the folder or file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(calibration.encode())
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise ModelError(f"calibration file {path} cannot be written: {error}") from error


def find_calibration(model: ModelRef, folder: Path | None = None) -> Calibration | None:
    """The calibration of ``model``: from ``folder``, else shipped with this package.

    Verifiers prefill in the precision the node claims; so was the calibration made.

    Raises:
        ModelError: there is a file for it, but it is damaged or of another model.
    """
    name = _file_name(model.digest, model.precision, model.precision)
    if os.sep in name:  # a precision is a stranger's text
        return None
    for place in (folder, _SHIPPED):
        if place is None:
            continue
        path = place / name
        try:
            changed = path.stat().st_mtime_ns
        except (OSError, ValueError):
            continue
        found = _read_once(path, changed)
        pair = (model.precision, model.precision)
        if (found.digest, found.precision, found.verifier_precision) != (model.digest, *pair):
            raise ModelError(f"calibration file {path} is of another model or precision")
        return found
    return None


@lru_cache(maxsize=64)
def _read_once(path: Path, changed_ns: int) -> Calibration:
    del changed_ns  # part of the key: a new file is read again
    return read_calibration(path)

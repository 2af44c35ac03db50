"""Settings that prove fastest within an error bound.

ezkl's own ``calibrate_settings`` takes scale 13 and 2¹⁵ rows for every small model, because its
range checks use tables of 2¹⁴ rows. The tuner takes the smallest scales within the bound, never
scales back where sums stay small, sizes the range checks to the values that occur, predicts the
cost of a few hundred layouts from ezkl's own counts, and measures the best few.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daifi_flows.encoding import canonical, cid_of, parse_json, sha256
from daifi_flows.errors import DaifiError, EncodingError, ProofError
from daifi_flows.proofs.circuits._circuit import Spent
from daifi_flows.proofs.circuits._compile import compile_circuit
from daifi_flows.proofs.circuits._field import signed
from daifi_flows.proofs.circuits._fit import run_trials, sized_layouts, write_json
from daifi_flows.proofs.circuits._onnx import OnnxModel, read_onnx, unshared
from daifi_flows.proofs.circuits._process import run_job
from daifi_flows.proofs.circuits._search import Cost, layouts, least
from daifi_flows.proofs.circuits._settings import (
    CircuitSettings,
    InputVisibility,
    Limits,
    ParamVisibility,
)
from daifi_flows.proofs.circuits._srs import SHIPPED_LOGROWS

__all__ = ["Tuned", "float_outputs", "tune"]

_MAX_SAMPLES: Final = 32
_MAX_SCALE: Final = 16
_NEVER: Final = 16
"""Rebase multiplier at which nothing is ever scaled back."""
_WIDE: Final = (1 << 14, 8)
"""Decomposition for everything that can be computed: 112 bits."""
_WIDE_BITS: Final = 110
_MARGIN_BITS: Final = 2
"""Values four times as large as any in the calibration inputs still fit."""
_VERSION: Final = 1

Samples = Sequence[Mapping[str, ArrayLike]]


@dataclass(frozen=True)
class Tuned:
    """What the tuner found.

    Attributes:
        error: largest absolute difference of an output value from ONNX Runtime's, over the
            calibration inputs.
        spent: of one proof.
        verify_seconds: of one verification, in a process that is already running.
        key_bytes: size of the proving key.
        predicted: how many layouts were compared on paper.
        measured: how many were proven.
    """

    settings: CircuitSettings
    error: float
    spent: Spent
    verify_seconds: float
    proof_bytes: int
    key_bytes: int
    predicted: int
    measured: int


def tune(
    onnx: bytes,
    calibration: Samples,
    max_error: float,
    workdir: Path,
    *,
    input_visibility: InputVisibility | None = "public",
    param_visibility: ParamVisibility = "fixed",
    sizes: Sequence[int] = SHIPPED_LOGROWS,
    measure: int = 3,
    limits: Limits | None = None,
) -> Tuned:
    """The fastest settings found for a model, from ``workdir``'s cache or searched now.

    Args:
        calibration: inputs like those to come: errors and ranges are measured on them alone, and a
            later input that is four times as large may not be provable.
        max_error: bound on the absolute difference of every output value from ONNX Runtime's.
        input_visibility: ``None``: whichever of ``public`` and ``private`` proves faster.
        sizes: numbers of rows to consider, as powers of two. By default those that every
            installation has the same SRS for; others only when none of these fits.
        measure: how many of the layouts that promise most are proven and timed.

    Raises:
        EncodingError: the model or the inputs are not usable.
        ProofError: no settings meet the bound, or none can be proven within the limits.
    """
    model = read_onnx(onnx)
    limits = limits or Limits()
    samples = [_flat(model, sample) for sample in calibration]
    if not 1 <= len(samples) <= _MAX_SAMPLES:
        raise EncodingError(f"{len(samples)} calibration inputs; 1 to {_MAX_SAMPLES} can be")
    if not max_error > 0:
        raise EncodingError("the error bound is not a positive number")
    key = {
        "version": _VERSION,
        "onnx": sha256(onnx),
        "inputs": sha256(canonical([np.concatenate(item).tobytes() for item in samples])),
        "visibility": f"{input_visibility} {param_visibility}",
        "bound": repr(float(max_error)),
        "search": [*sizes, measure],
        "ezkl": version("ezkl"),
    }
    cached = workdir / "zk" / "tuned" / f"{cid_of(canonical(key), 'dag-cbor')}.json"
    if (known := _read(cached)) is not None:
        return known
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(unshared(onnx) if param_visibility == "fixed" else onnx)
        file.flush()
        search = _Search(model, Path(file.name), samples, max_error, limits)
        tuned = search.run(
            ("public", "private") if input_visibility is None else (input_visibility,),
            CircuitSettings(param_visibility=param_visibility),
            workdir,
            tuple(sizes),
            measure,
        )
    write_json(cached, asdict(tuned) | {"settings": tuned.settings.plain()})
    return tuned


def float_outputs(onnx: bytes, samples: Samples, limits: Limits) -> list[NDArray[np.float64]]:
    """All output values of a model on each sample, by ONNX Runtime in a process of its own.

    Raises:
        EncodingError: the model or the inputs are not usable.
        ProofError: ONNX Runtime cannot run it, or not within the limits.
    """
    model = read_onnx(onnx)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(onnx)
        file.flush()
        return _infer(model, file.name, [_flat(model, sample) for sample in samples], limits)


def _infer(
    model: OnnxModel, path: str, samples: Sequence[Sequence[NDArray[np.float64]]], limits: Limits
) -> list[NDArray[np.float64]]:
    request = {
        "do": "infer",
        "onnx": path,
        "inputs": [[item.tolist() for item in sample] for sample in samples],
        "shapes": [[tensor.name, list(tensor.shape)] for tensor in model.inputs],
    }
    answer = run_job(request, limits)["outputs"]
    return [np.concatenate([np.array(item, np.float64) for item in outputs]) for outputs in answer]


def _flat(model: OnnxModel, sample: Mapping[str, ArrayLike]) -> list[NDArray[np.float64]]:
    """Flat float arrays of one sample in the model's order."""
    if set(sample) != {tensor.name for tensor in model.inputs}:
        raise EncodingError("a calibration input does not name the model's inputs")
    found: list[NDArray[np.float64]] = []
    for tensor in model.inputs:
        try:
            flat = np.asarray(sample[tensor.name], np.float32).astype(np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise EncodingError(f"a calibration input holds no numbers: {error}") from error
        if flat.size != tensor.size or not bool(np.isfinite(flat).all()):
            raise EncodingError(f"a calibration input for {tensor.name!r} is not {tensor.shape}")
        found.append(flat)
    return found


class _Search:
    """One search: a model, its calibration inputs and what is known of them so far."""

    def __init__(
        self,
        model: OnnxModel,
        path: Path,
        samples: list[list[NDArray[np.float64]]],
        max_error: float,
        limits: Limits,
    ) -> None:
        self._model, self._path, self._limits = model, path, limits
        self._samples, self._max_error = samples, max_error
        self._floats = _infer(model, str(path), samples, limits)
        self._errors: dict[CircuitSettings, float] = {}

    def run(
        self,
        visibilities: Sequence[InputVisibility],
        base: CircuitSettings,
        workdir: Path,
        sizes: Sequence[int],
        measure: int,
    ) -> Tuned:
        candidates: list[tuple[Cost, CircuitSettings, float]] = []
        for multiplier in (_NEVER, 1):
            arithmetic = self._arithmetic(replace(base, rebase_multiplier=multiplier))
            if arithmetic is None:
                continue
            error = self._error(arithmetic)
            options = layouts(arithmetic, self._bits(arithmetic), visibilities)
            trials = self._trials(options)
            sized = sized_layouts(options, trials, sizes)
            candidates += [(cost, settings, error) for cost, settings in sized]
        if not candidates:
            raise ProofError(
                f"no circuit of this model stays within {self._max_error:g} of its outputs; give a "
                "larger bound, or inputs like those to come"
            )
        candidates.sort(key=lambda item: item[0].seconds)
        return self._measure(candidates, workdir, measure)

    def _measure(
        self,
        candidates: list[tuple[Cost, CircuitSettings, float]],
        workdir: Path,
        measure: int,
    ) -> Tuned:
        best: Tuned | None = None
        refused: ProofError | None = None
        measured = 0
        inputs = [flat.tolist() for flat in self._samples[0]]
        for _, settings, error in _diverse(candidates, 4 * measure):
            if measured == measure:
                break
            try:
                circuit = compile_circuit(self._model, settings, workdir, self._limits)
                snark = circuit.prove(inputs)
                fault = circuit.verify(snark)  # the first one starts the verifier's process
                started = time.perf_counter()
                fault = fault or circuit.verify(snark)
                verify_seconds = time.perf_counter() - started
            except ProofError as problem:  # it did not fit after all
                refused = problem
                continue
            assert snark.spent is not None
            measured += 1
            # by processor time: wall time depends on what else the machine does
            cpu_seconds = snark.spent.cpu_seconds
            if fault is None and (best is None or cpu_seconds < best.spent.cpu_seconds):
                best = Tuned(
                    settings=settings,
                    error=error,
                    spent=snark.spent,
                    verify_seconds=verify_seconds,
                    proof_bytes=len(snark.proof),
                    key_bytes=(circuit.path / "pk").stat().st_size,
                    predicted=len(candidates),
                    measured=measured,
                )
        if best is None:
            raise ProofError(f"no layout of this model could be proven: {refused}")
        return replace(best, measured=measured)

    def _arithmetic(self, base: CircuitSettings) -> CircuitSettings | None:
        """The smallest scales within the bound; ``None`` when none are."""
        wide = replace(base, decomp_base=_WIDE[0], decomp_legs=_WIDE[1])

        def at(inputs: int, params: int) -> CircuitSettings:
            return replace(wide, input_scale=inputs, param_scale=params)

        def holds(settings: CircuitSettings) -> bool:
            return self._error(settings) <= self._max_error

        scale = least(2, _MAX_SCALE, lambda value: holds(at(value, value)))
        if scale is None:
            return None
        chosen = at(scale, scale)
        for fewer in ((1, 0), (0, 1)):  # each bit less on one side is a bit less everywhere
            for step, _ in pairwise(range(1, 6)):
                other = at(scale - step * fewer[0], scale - step * fewer[1])
                if min(other.input_scale, other.param_scale) < 1 or not holds(other):
                    break
                total = other.input_scale + other.param_scale
                if total < chosen.input_scale + chosen.param_scale:
                    chosen = other
        return chosen

    def _bits(self, arithmetic: CircuitSettings) -> int | None:
        """Bits that every decomposed integer fits in, with the margin; ``None`` if none is."""
        (trial,) = self._trials([arithmetic])
        if not trial["settings"]["required_range_checks"]:
            return None

        def fits(bits: int) -> bool:
            width = -(-bits // 16)
            narrow = replace(arithmetic, decomp_base=1 << width, decomp_legs=-(-bits // width))
            return self._error(narrow) <= self._max_error

        return (least(2, _WIDE_BITS, fits) or _WIDE_BITS) + _MARGIN_BITS

    def _error(self, settings: CircuitSettings) -> float:
        """Largest absolute error over the samples; infinite when the circuit cannot compute."""
        if settings not in self._errors:
            (trial,) = self._trials([settings], with_outputs=True)
            self._errors[settings] = self._distance(trial)
        return self._errors[settings]

    def _distance(self, trial: Mapping[str, Any]) -> float:
        if "error" in trial:
            return float("inf")
        scales = trial["settings"]["model_output_scales"]
        worst = 0.0
        for outputs, floats in zip(trial["outputs"], self._floats, strict=True):
            values = np.concatenate(
                [
                    np.array([_number(element) * 2.0**-scale for element in tensor], np.float64)
                    for tensor, scale in zip(outputs, scales, strict=True)
                ]
            )
            if values.shape != floats.shape:
                raise ProofError("ezkl gives other outputs for this model than ONNX Runtime")
            worst = max(worst, float(np.abs(values - floats).max()))
        return worst

    def _trials(
        self, settings: Sequence[CircuitSettings], *, with_outputs: bool = False
    ) -> list[dict[str, Any]]:
        samples = self._samples if with_outputs else []
        return run_trials(str(self._path), settings, samples, self._limits)


def _diverse(
    candidates: Sequence[tuple[Cost, CircuitSettings, float]], count: int
) -> list[tuple[Cost, CircuitSettings, float]]:
    """The most promising of each number of rows first, then the rest, in order of promise: the
    prediction is better within one size than between sizes."""
    first: dict[int, tuple[Cost, CircuitSettings, float]] = {}
    for item in candidates:
        first.setdefault(item[1].logrows, item)
    chosen = list(first.values())
    return [*chosen, *(item for item in candidates if item not in chosen)][:count]


def _number(element: str) -> int:
    return signed(int.from_bytes(bytes.fromhex(element), "little"))


def _read(cached: Path) -> Tuned | None:
    try:
        value = cast("dict[str, Any]", parse_json(cached.read_bytes()))
        settings, spent = CircuitSettings.parse(value["settings"]), Spent(**value["spent"])
        fields: Any = value | {"settings": settings, "spent": spent}
        return Tuned(**fields)
    except (OSError, DaifiError, KeyError, TypeError):
        return None

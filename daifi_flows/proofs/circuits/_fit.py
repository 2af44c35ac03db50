"""A layout for settings that name none: predicted, not measured, the same everywhere."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.encoding import canonical, cid_of, parse_json, sha256
from daifi_flows.errors import DaifiError, ProofError
from daifi_flows.proofs.circuits._onnx import read_onnx, unshared
from daifi_flows.proofs.circuits._process import run_job
from daifi_flows.proofs.circuits._search import Analysis, Cost, best_sizes, layouts
from daifi_flows.proofs.circuits._settings import MIN_LOGROWS, CircuitSettings, Limits
from daifi_flows.proofs.circuits._srs import SHIPPED_LOGROWS

__all__ = ["ALL_SIZES", "fit", "run_trials", "sized_layouts", "write_json"]

ALL_SIZES: Final = tuple(range(MIN_LOGROWS, 18))


def fit(
    onnx: bytes,
    settings: CircuitSettings,
    workdir: Path,
    *,
    bits: int = 40,
    limits: Limits | None = None,
) -> CircuitSettings:
    """``settings`` with the columns, rows and range checks predicted to be fastest.

    Nothing is measured, so two parties with one version of ezkl get the same from the same model.

    Args:
        settings: visibilities, scales, rebase multiplier and ``check_ranges`` are kept.
        bits: what integers that are decomposed must hold, sign not counted.

    Raises:
        EncodingError: the model or the settings are not usable.
        ProofError: no layout of it fits 2^17 rows.
    """
    read_onnx(onnx)
    key = {
        "fit": settings.check().plain(),
        "onnx": sha256(onnx),
        "within": [bits, *SHIPPED_LOGROWS],
        "ezkl": version("ezkl"),
    }
    cached = workdir / "zk" / "tuned" / f"{cid_of(canonical(key), 'dag-cbor')}.json"
    with suppress(OSError, DaifiError):
        return CircuitSettings.parse(parse_json(cached.read_bytes()))
    options = layouts(settings, bits, (settings.input_visibility,))
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(unshared(onnx) if settings.param_visibility == "fixed" else onnx)
        file.flush()
        trials = run_trials(file.name, options, [], limits or Limits())
    sized = sized_layouts(options, trials, SHIPPED_LOGROWS) or sized_layouts(
        options, trials, ALL_SIZES
    )
    if not sized:
        problem = next((trial["error"] for trial in trials if "error" in trial), "too many rows")
        raise ProofError(f"no circuit of this model fits 2^{ALL_SIZES[-1]} rows: {problem}")
    best = min(sized, key=lambda item: item[0].seconds)[1]
    write_json(cached, best.plain())
    return best


def sized_layouts(
    options: Sequence[CircuitSettings], trials: Sequence[Mapping[str, Any]], sizes: Sequence[int]
) -> list[tuple[Cost, CircuitSettings]]:
    """Each option that ezkl can lay out, at its best of these sizes; at others only when none of
    the options fits one of these."""
    found: list[tuple[Cost, CircuitSettings]] = []
    for option, trial in zip(options, trials, strict=True):
        if "error" not in trial:
            analysis = Analysis.of(trial["settings"])
            if option.freivalds and not analysis.freivalds:
                continue  # the same circuit as without
            found += best_sizes(analysis, option, sizes)
    return found or ([] if sizes == ALL_SIZES else sized_layouts(options, trials, ALL_SIZES))


def run_trials(
    path: str,
    settings: Sequence[CircuitSettings],
    samples: Sequence[Sequence[NDArray[np.float64]]],
    limits: Limits,
) -> list[dict[str, Any]]:
    request = {
        "do": "trials",
        "onnx": path,
        "trials": [item.run_args() for item in settings],
        "inputs": [[flat.tolist() for flat in sample] for sample in samples],
    }
    return run_job(request, limits)["trials"]


def write_json(cached: Path, value: Any) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    temporary = cached.with_name(f".{cached.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(value))
    temporary.replace(cached)

"""Compiling circuits, each once.

A circuit is compiled once per model, settings, ezkl version and SRS, into ``workdir/zk/<content
id>``, by one process of the machine at a time. When a file no longer matches the hashes written
with it, the circuit is built again.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from filelock import FileLock, Timeout

from daifi_flows.encoding import canonical, cid_of, sha256
from daifi_flows.errors import ProofError
from daifi_flows.proofs.circuits._cache import FILES, intact
from daifi_flows.proofs.circuits._circuit import Circuit
from daifi_flows.proofs.circuits._onnx import OnnxModel, read_onnx, unshared
from daifi_flows.proofs.circuits._process import WorkerError, run_job
from daifi_flows.proofs.circuits._settings import CircuitSettings, Limits
from daifi_flows.proofs.circuits._srs import Srs, find_srs

__all__ = ["compile_circuit"]


def compile_circuit(
    onnx: bytes | OnnxModel,
    settings: CircuitSettings,
    workdir: Path,
    limits: Limits | None = None,
) -> Circuit:
    """The circuit of a model, from ``workdir``'s cache or built now (in a process of its own).

    Both sides of a proof call this, each in its own ``workdir``: a verifier never uses keys that a
    prover made.

    Args:
        onnx: a stranger's file; see :func:`read_onnx` for what is accepted.
        limits: for compiling, and the circuit's default for proving.

    Raises:
        EncodingError: the file or a setting is out of bounds.
        ProofError: ezkl cannot compile it so (too few rows, an operator it lacks), or took too
            much time or memory.
    """
    model = onnx if isinstance(onnx, OnnxModel) else read_onnx(onnx)
    limits = limits or Limits()
    srs = find_srs(settings.check().logrows, workdir)
    home = workdir / "zk" / _name(model.data, settings, srs)
    if not intact(home, FILES):
        locks = workdir / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / f"{home.name}.lock", timeout=2 * limits.seconds):
                if not intact(home, FILES):
                    _build(home, model.data, settings, srs, limits)
        except Timeout as error:
            raise WorkerError(
                f"another process has been building this circuit for {2 * limits.seconds:g} s"
            ) from error
    return _open(home, model, settings, srs, limits)


def _name(onnx: bytes, settings: CircuitSettings, srs: Srs) -> str:
    key = {
        "onnx": sha256(onnx),
        "settings": settings.plain(),
        "ezkl": version("ezkl"),
        "srs": srs.digest,
    }
    return cid_of(canonical(key), "dag-cbor")


def _build(home: Path, onnx: bytes, settings: CircuitSettings, srs: Srs, limits: Limits) -> None:
    building = home.with_name(f".{home.name}")
    shutil.rmtree(building, ignore_errors=True)  # of a builder that was killed
    building.mkdir(parents=True)
    try:
        (building / "model.onnx").write_bytes(
            unshared(onnx) if settings.param_visibility == "fixed" else onnx
        )
        request = {
            "do": "setup",
            "home": str(building.absolute()),
            "srs": str(srs.path.absolute()),
            "run_args": settings.run_args(),
        }
        run_job(request, limits)
        hashes = {name: sha256((building / name).read_bytes()).hex() for name in FILES}
        (building / "sha256.json").write_text(json.dumps(hashes))
        shutil.rmtree(home, ignore_errors=True)
        building.rename(home)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _open(
    home: Path, model: OnnxModel, settings: CircuitSettings, srs: Srs, limits: Limits
) -> Circuit:
    ezkl = cast("dict[str, Any]", json.loads((home / "settings.json").read_bytes()))
    circuit = Circuit(
        path=home,
        srs=srs,
        settings=settings,
        inputs=model.inputs,
        outputs=model.outputs,
        input_scales=tuple(ezkl["model_input_scales"]),
        output_scales=tuple(ezkl["model_output_scales"]),
        limits=limits,
    )
    counted = sum(int(np.prod(shape)) for shape in ezkl["model_instance_shapes"])
    hashes = sum(ezkl["module_sizes"]["poseidon"][1])
    if (
        counted + hashes != circuit.size
        or len(circuit.input_scales) != len(model.inputs)
        or len(circuit.output_scales) != len(model.outputs)
    ):
        raise ProofError("ezkl reads other inputs or outputs from this model than its file names")
    return circuit

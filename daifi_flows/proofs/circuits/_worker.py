"""ezkl in a process of its own: a panic or a hostile proof ends this process, no other.

Run as a script, ``python -I _worker.py MEMORY_BYTES CPU_SECONDS``, by ``_process.py``. One request
a line on stdin, one answer a line on stdout, both JSON: ``{"ok": true, …}``, or ``{"ok": false,
"error": "…"}`` when ezkl refuses. No answer means trouble in this process (it died, ezkl is not
installed, the disk is full), which says nothing about a proof. It ends with its stdin.

Inputs, witnesses and proofs are kept in unlinked files: nothing of them stays on disk, however this
process ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

_FILE_BYTES = 8 << 30
_FIELD = 0x30644E72E131A029B85045B68181585D2833E84879B9709143E1F593F0000001


@contextmanager
def _file(data: bytes = b"") -> Generator[str]:
    """Path of an unlinked file that holds ``data``."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _load(path: str) -> Any:
    return json.loads(Path(path).read_bytes())


def _input(values: list[list[float]]) -> bytes:
    return json.dumps({"input_data": values}).encode()


def _run_args(fields: dict[str, Any]) -> Any:
    import ezkl

    args = ezkl.PyRunArgs()
    for name, value in fields.items():
        setattr(args, name, value)
    return args


def canonical_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """ezkl's settings with what it keeps in hash maps sorted, and without the time of day: two
    parties' keys differ otherwise."""
    for name in ("required_range_checks", "required_lookups"):
        settings[name] = sorted(settings[name], key=lambda item: json.dumps(item, sort_keys=True))
    equations = settings["einsum_params"]["equations"]
    settings["einsum_params"]["equations"] = sorted(
        ([name, dict(sorted(sizes.items()))] for name, sizes in equations), key=str
    )
    return settings | {"timestamp": 0}


def _check(onnx: str) -> None:
    import onnx as library

    library.checker.check_model(onnx, full_check=True)


def _settings(request: dict[str, Any]) -> dict[str, Any]:
    """ezkl's own analysis of the model ``onnx`` under ``run_args``."""
    import ezkl

    if request.get("check", True):
        _check(request["onnx"])
    with _file() as path:
        ezkl.gen_settings(request["onnx"], path, py_run_args=_run_args(request["run_args"]))
        return {"settings": canonical_settings(_load(path))}


def _setup(request: dict[str, Any]) -> dict[str, Any]:
    """``settings.json``, ``circuit.ezkl``, ``vk`` and ``pk`` in the directory ``home``, of
    ``model.onnx`` there."""
    import ezkl

    home = Path(request["home"])
    onnx, circuit = str(home / "model.onnx"), str(home / "circuit.ezkl")
    settings = request.get("settings")
    if settings is None:
        settings = _settings({"onnx": onnx, "run_args": request["run_args"]})["settings"]
    (home / "settings.json").write_text(json.dumps(settings))
    ezkl.compile_circuit(onnx, circuit, str(home / "settings.json"))
    if request.get("keys", True):
        ezkl.setup(
            model=circuit,
            vk_path=str(home / "vk"),
            pk_path=str(home / "pk"),
            srs_path=request["srs"],
            witness_path=None,
            disable_selector_compression=False,
        )
    return {"settings": settings}


def _trials(request: dict[str, Any]) -> dict[str, Any]:
    """What the model ``onnx`` costs and computes under each of several settings, without keys.

    A trial gives ``run_args``; its answer holds ezkl's ``settings``, and its ``outputs`` for each
    of ``inputs`` when there are any, or the ``error`` that ezkl had with it.
    """
    import ezkl

    _check(request["onnx"])
    found: list[Any] = []
    for run_args in request["trials"]:
        try:
            with _file() as path:
                ezkl.gen_settings(request["onnx"], path, py_run_args=_run_args(run_args))
                settings = canonical_settings(_load(path))
            trial: dict[str, Any] = {"settings": settings}
            if request["inputs"]:
                with _file(json.dumps(settings).encode()) as path, _file() as circuit:
                    ezkl.compile_circuit(request["onnx"], circuit, path)
                    trial |= _witness({"circuit": circuit, "inputs": request["inputs"]})
        except (MemoryError, OSError, KeyboardInterrupt):
            raise
        except BaseException as error:
            trial = {"error": f"{type(error).__name__}: {error}"[:300]}
        found.append(trial)
    return {"trials": found}


def _witness(request: dict[str, Any]) -> dict[str, Any]:
    """The circuit's outputs for each of ``inputs``: ``[samples][outputs][values]`` as felts."""
    import ezkl

    found: list[Any] = []
    answer: dict[str, Any] = {}
    for values in request["inputs"]:
        with _file(_input(values)) as data, _file() as witness:
            ezkl.gen_witness(
                data=data, model=request["circuit"], output=witness, vk_path=None, srs_path=None
            )
            answer = _load(witness)
            found.append(answer["outputs"])
    return {"outputs": found, "params": (answer.get("processed_params") or {}).get("poseidon_hash")}


def _prove(request: dict[str, Any]) -> dict[str, Any]:
    import ezkl

    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    home = Path(request["home"])
    circuit = str(home / "circuit.ezkl")
    with _file(_input(request["inputs"])) as data, _file() as witness, _file() as proof:
        keys = (str(home / "vk"), request["srs"]) if request["commit"] else (None, None)
        ezkl.gen_witness(
            data=data, model=circuit, output=witness, vk_path=keys[0], srs_path=keys[1]
        )
        ezkl.prove(witness, circuit, str(home / "pk"), proof, request["srs"])
        snark = _load(proof)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = time.perf_counter() - started
    return {
        "proof": bytes(snark["proof"]).hex(),
        "instances": snark["instances"][0],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": _peak_bytes(),
    }


def _commit(request: dict[str, Any]) -> dict[str, Any]:
    """KZG commitments to ``vectors`` of integers: points as a proof spells them."""
    import ezkl

    points: list[str] = []
    point: Any
    for vector in request["vectors"]:
        message = [(value % _FIELD).to_bytes(32, "little").hex() for value in vector]
        (point,) = ezkl.kzg_commit(message, request["vk"], request["settings"], request["srs"])
        points.append("".join(bytes.fromhex(each)[::-1].hex() for each in (point.x, point.y)))
    return {"points": points}


def _verify(request: dict[str, Any]) -> dict[str, Any]:
    """Accept ``proof``, and reject it when it also holds without its last 32 bytes.

    Halo2 stops reading where the proof ends, so that anything appended to it would pass: the last
    32 bytes must be needed. Proofs under one key have one length: once one has been found to need
    its last bytes, others of that length are not asked again.
    """
    import ezkl

    proof, instances = bytes.fromhex(request["proof"]), request["instances"]
    known = _lengths.get(request["id"])
    if known is not None and len(proof) > known:
        raise ValueError("the proof has bytes appended to it")
    for path in (request["settings"], request["vk"]):
        Path(path).stat()  # missing: trouble here, not an answer
    with _file(bytes.fromhex(request["srs"])) as srs:
        if not _holds(ezkl, proof, instances, request, srs):
            raise ValueError("the proof does not hold")
        if known == len(proof):
            return {}
        try:
            longer = _holds(ezkl, proof[:-32], instances, request, srs)
        except RuntimeError:
            longer = False
    if longer:
        raise ValueError("the proof has bytes appended to it")
    _lengths[request["id"]] = len(proof)
    return {}


_lengths: dict[str, int] = {}
"""Length of a valid proof, by circuit."""


def _holds(ezkl: Any, proof: bytes, instances: Any, request: dict[str, Any], srs: str) -> bool:
    snark = {
        "protocol": None,
        "instances": [instances],
        "proof": list(proof),
        "hex_proof": None,
        "split": None,
        "pretty_public_inputs": None,
        "timestamp": None,
        "version": None,
    }
    with _file(json.dumps(snark).encode()) as path:
        return bool(ezkl.verify(path, request["settings"], request["vk"], srs, True))


def _srs(request: dict[str, Any]) -> dict[str, Any]:
    import ezkl

    ezkl.gen_srs(request["path"], request["logrows"])
    return {}


def _infer(request: dict[str, Any]) -> dict[str, Any]:
    """The model in floating point, by ONNX Runtime: ``[samples][outputs][values]``."""
    import numpy as np
    import onnxruntime

    _check(request["onnx"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        request["onnx"], sess_options=options, providers=["CPUExecutionProvider"]
    )
    found: list[Any] = []
    for values in request["inputs"]:
        feed = {
            name: np.array(flat, np.float32).reshape(shape)
            for (name, shape), flat in zip(request["shapes"], values, strict=True)
        }
        found.append([np.asarray(item).ravel().tolist() for item in session.run(None, feed)])
    return {"outputs": found}


def _calibrate(request: dict[str, Any]) -> dict[str, Any]:
    """ezkl's own choice of settings for ``onnx`` on the calibration ``inputs``."""
    import ezkl

    joined = [list(parts) for parts in zip(*request["inputs"], strict=True)]
    data = [[value for part in parts for value in part] for parts in joined]
    with _file() as settings, _file(_input(data)) as path:
        ezkl.gen_settings(request["onnx"], settings, py_run_args=_run_args(request["run_args"]))
        ezkl.calibrate_settings(
            data=path,
            model=request["onnx"],
            settings=settings,
            target=request["target"],
            lookup_safety_margin=2,
            scales=request.get("scales"),
            scale_rebase_multiplier=[1],
            max_logrows=request.get("max_logrows", 20),
        )
        return {"settings": canonical_settings(_load(settings))}


_JOBS = {
    "calibrate": _calibrate,
    "infer": _infer,
    "prove": _prove,
    "settings": _settings,
    "setup": _setup,
    "srs": _srs,
    "trials": _trials,
    "commit": _commit,
    "verify": _verify,
    "witness": _witness,
}


def _peak_bytes() -> int:
    """Memory this process touched. ``ru_maxrss`` would include what its parent had touched before
    it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _limit(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (bound, hard))


def main(memory_bytes: int, cpu_seconds: int) -> int:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is not an answer
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
    import_module("ezkl")  # not installed: trouble here, not an answer
    for line in sys.stdin:
        request = json.loads(line)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime) + cpu_seconds)
        try:
            answer: dict[str, Any] = {"ok": True} | _JOBS[request["do"]](request)
        except (MemoryError, OSError):
            return 3
        except BaseException as error:  # PyO3 turns Rust panics into BaseException
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

"""One ezkl job in a process of its own: a panic or a hostile proof ends this process, no other.

Run as a script, ``python -I _zk_worker.py JOB``, by :mod:`daifi_flows.proofs._circuit`. ``JOB`` is
a directory with ``job.json``; the answer is ``result.json`` in it: ``{"ok": true}``, or
``{"ok": false, "error": "…"}`` when ezkl refuses. No answer means trouble in this process (it died,
ezkl is not installed, the disk is full), which says nothing about a proof.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_ADDRESS_SPACE = 16 << 30
"""Bytes; generous, because provers reserve far more than they touch."""
_CPU_SECONDS = 300
_FILE_BYTES = 1 << 30


def _limit() -> None:
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, _ADDRESS_SPACE),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
    ):
        _, hard = resource.getrlimit(kind)
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (bound, bound))


def _setup(job: dict[str, Any]) -> None:
    """Settings, circuit and keys of ``policy.onnx`` in the directory ``circuit``."""
    import ezkl

    home = Path(job["circuit"])
    args = ezkl.PyRunArgs()
    for name, value in job["run_args"].items():
        setattr(args, name, value)
    onnx, settings = str(home / "policy.onnx"), str(home / "settings.json")
    circuit = str(home / "circuit.ezkl")
    ezkl.gen_settings(onnx, settings, py_run_args=args)
    ezkl.compile_circuit(onnx, circuit, settings)
    ezkl.setup(
        model=circuit,
        vk_path=str(home / "vk"),
        pk_path=str(home / "pk"),
        srs_path=job["srs"],
        witness_path=None,
        disable_selector_compression=False,
    )


def _prove(job: dict[str, Any]) -> None:
    """``proof.json`` in the job's directory, from ``input.json`` there."""
    import ezkl

    home, here = Path(job["circuit"]), Path(job["here"])
    circuit, witness = str(home / "circuit.ezkl"), str(here / "witness.json")
    ezkl.gen_witness(
        data=str(here / "input.json"), model=circuit, output=witness, vk_path=None, srs_path=None
    )
    ezkl.prove(witness, circuit, str(home / "pk"), str(here / "proof.json"), job["srs"])


def _verify(job: dict[str, Any]) -> None:
    """Accept ``proof.json``, and reject it when it also holds without its last 32 bytes.

    Halo2 stops reading where the proof ends, so that anything appended to it would pass: the last
    32 bytes must be needed.
    """
    import ezkl

    home, here = Path(job["circuit"]), Path(job["here"])
    keys = (str(home / "settings.json"), str(home / "vk"), job["srs"], False)
    whole = here / "proof.json"
    if not ezkl.verify(str(whole), *keys):
        raise ValueError("the proof does not hold")
    snark = json.loads(whole.read_text())
    snark["proof"] = snark["proof"][:-32]
    (here / "short.json").write_text(json.dumps(snark))
    try:
        longer = bool(ezkl.verify(str(here / "short.json"), *keys))
    except RuntimeError:
        longer = False
    if longer:
        raise ValueError("the proof has bytes appended to it")


_JOBS = {"setup": _setup, "prove": _prove, "verify": _verify}


def main(here: Path) -> int:
    """Do the job in ``here``; the exit status is 0 when there is an answer."""
    _limit()
    import_module("ezkl")  # not installed: trouble here, not an answer
    job = json.loads((here / "job.json").read_text())
    job["here"] = str(here)
    os.chdir(here)
    try:
        _JOBS[job["do"]](job)
        result: dict[str, Any] = {"ok": True}
    except (MemoryError, OSError):
        return 3
    except BaseException as error:  # PyO3 turns Rust panics into BaseException
        result = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
    temporary = here / "result.tmp"
    temporary.write_text(json.dumps(result))
    temporary.rename(here / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

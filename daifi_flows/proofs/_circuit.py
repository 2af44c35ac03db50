"""Circuits and their keys on disk, and the worker process that uses them.

A circuit is compiled once per quantised policy, settings, ezkl version and SRS, under
``workdir/zk/<content id>``: built beside it and renamed into place, so that concurrent builders
cannot see a half-built one and the last to finish throws its own away. When a file no longer
matches the hashes written with it, the circuit is built again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.encoding import canonical, cid_of, parse_json, sha256
from daifi_flows.errors import EncodingError, ProofError
from daifi_flows.proofs._policy import SCALE_BITS, write_policy

__all__ = ["Circuit", "Srs", "WorkerError", "circuit_for", "prepare", "prove", "verify"]

LOGROWS: Final = 10
RUN_ARGS: Final[Mapping[str, Any]] = {
    "input_visibility": "public",
    "output_visibility": "public",
    "param_visibility": "fixed",
    "input_scale": SCALE_BITS,
    "param_scale": SCALE_BITS,
    "scale_rebase_multiplier": 10,
    "num_inner_cols": 2,
    "logrows": LOGROWS,
    "disable_freivalds": True,
    "ignore_range_check_inputs_outputs": True,
}
"""ezkl settings found by search for a linear layer. Rescaling never happens (multiplier 10), so
that scores are exact dot products and the circuit needs no range-check table: 2¹⁰ rows instead of
the 2¹⁵ of ezkl's own calibration. Inputs and outputs are public; the verifier checks their range.
"""

SRS_FILE: Final = f"bn254-k{LOGROWS}.srs"
SRS_BYTES: Final = 4 + 2 * 64 * (1 << LOGROWS) + 256
"""k, powers of τ in G1 in two bases, G2 and τ·G2, uncompressed (Halo2 ``RawBytes``)."""

_SETUP_SECONDS: Final = 180.0
_PROVE_SECONDS: Final = 120.0
_VERIFY_SECONDS: Final = 30.0
_FIELD: Final = 0x30644E72E131A029B85045B68181585D2833E84879B9709143E1F593F0000001
"""Order of BN254's scalar field."""
_FILES: Final = ("policy.onnx", "settings.json", "circuit.ezkl", "vk", "pk")


class WorkerError(ProofError):
    """The worker process crashed or ran out of time: nothing is known about the proof."""


@dataclass(frozen=True)
class Srs:
    """Structured reference string of the proof system: its file, and what it is called."""

    path: Path
    digest: bytes

    @property
    def cid(self) -> str:
        """Raw CID of the file."""
        return cid_of(self.path.read_bytes())


@dataclass(frozen=True)
class Circuit:
    """A compiled policy with its keys."""

    path: Path
    srs: Srs


def prepare(workdir: Path) -> Srs:
    """The SRS to use: ``workdir/srs/bn254-k10.srs`` when an operator put one there, otherwise the
    one shipped with this package (copied there).

    The shipped file was made with ``ezkl.gen_srs``: whoever made it could have kept τ, with which
    proofs of false statements can be made. Operators with a file from a public ceremony put it in
    place, the same one on every node and seat.

    Raises:
        ProofError: the file there is not an SRS of this size.
    """
    path = workdir / "srs" / SRS_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{SRS_FILE}.{secrets.token_hex(4)}")
        temporary.write_bytes(
            files("daifi_flows.proofs").joinpath("data").joinpath(SRS_FILE).read_bytes()
        )
        temporary.replace(path)
    data = path.read_bytes()
    if len(data) != SRS_BYTES or data[:4] != LOGROWS.to_bytes(4, "little"):
        raise ProofError(f"{path} is not an SRS of 2^{LOGROWS} rows; remove it or put one there")
    return Srs(path, sha256(data))


_locks: dict[str, threading.Lock] = {}
_locks_guard = threading.Lock()


def circuit_for(weights: NDArray[np.int64], workdir: Path) -> Circuit:
    """The compiled circuit of quantised ``weights`` ``[384, tools]``, building it when needed.

    Raises:
        ProofError: ezkl cannot compile it.
    """
    srs = prepare(workdir)
    name = sha256(
        canonical(
            {
                "weights": weights.astype("<i8").tobytes(),
                "shape": list(weights.shape),
                "run_args": json.dumps(RUN_ARGS, sort_keys=True),
                "ezkl": version("ezkl"),
                "srs": srs.digest,
            }
        )
    ).hex()
    home = workdir / "zk" / name
    with _locks_guard:
        lock = _locks.setdefault(str(home), threading.Lock())
    with lock:
        if not _intact(home):
            _build(home, weights, srs)
    return Circuit(home, srs)


def _intact(home: Path) -> bool:
    try:
        written = parse_json((home / "sha256.json").read_bytes())
        return all(written[name] == sha256((home / name).read_bytes()).hex() for name in _FILES)
    except (OSError, ValueError, KeyError, TypeError, EncodingError):
        return False


def _build(home: Path, weights: NDArray[np.int64], srs: Srs) -> None:
    building = home.with_name(f".{home.name[:16]}.{secrets.token_hex(4)}")
    building.mkdir(parents=True)
    try:
        (building / "policy.onnx").write_bytes(write_policy(weights))
        with _job("setup", building, srs, _SETUP_SECONDS, {}, {"run_args": dict(RUN_ARGS)}):
            pass
        hashes = {name: sha256((building / name).read_bytes()).hex() for name in _FILES}
        (building / "sha256.json").write_text(json.dumps(hashes))
        try:
            building.rename(home)
        except OSError:  # there is one already: damaged, or just built by another process
            if not _intact(home):
                shutil.rmtree(home, ignore_errors=True)
                building.rename(home)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def prove(circuit: Circuit, vector: Sequence[int]) -> tuple[bytes, list[int]]:
    """A SNARK that the circuit's policy on ``vector`` gives the scores that come with it.

    Raises:
        ProofError: ezkl fails, dies or takes too long.
    """
    values = [value * 2.0**-SCALE_BITS for value in vector]
    given = {"input.json": {"input_data": [values]}}
    with _job("prove", circuit.path, circuit.srs, _PROVE_SECONDS, given) as here:
        snark = json.loads((here / "proof.json").read_text())
        instances = [_signed(item) for item in snark["instances"][0]]
        if instances[: len(vector)] != list(vector):
            raise ProofError("the prover quantised its input to other integers than it was given")
        return bytes(snark["proof"]), instances[len(vector) :]


def verify(circuit: Circuit, proof: bytes, instances: Sequence[int]) -> str | None:
    """Why the SNARK does not hold for these public integers; ``None`` when it does.

    Raises:
        WorkerError: the verifier crashed or ran out of time.
    """
    snark = {
        "protocol": None,
        "instances": [[_felt(value) for value in instances]],
        "proof": list(proof),
        "hex_proof": None,
        "split": None,
        "pretty_public_inputs": None,
        "timestamp": None,
        "version": None,
    }
    try:
        with _job("verify", circuit.path, circuit.srs, _VERIFY_SECONDS, {"proof.json": snark}):
            return None
    except WorkerError:
        raise
    except ProofError as error:
        return str(error)


def _felt(value: int) -> str:
    return (value % _FIELD).to_bytes(32, "little").hex()


def _signed(felt: str) -> int:
    value = int.from_bytes(bytes.fromhex(felt), "little")
    return value if value < _FIELD // 2 else value - _FIELD


@contextmanager
def _job(
    do: str,
    circuit: Path,
    srs: Srs,
    seconds: float,
    given: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> Generator[Path]:
    """Run one job and give its directory while it lasts."""
    worker = Path(__file__).with_name("_zk_worker.py")
    with tempfile.TemporaryDirectory(prefix="daifi-zk-") as name:
        here = Path(name)
        for file, value in given.items():
            (here / file).write_text(json.dumps(value))
        job = {
            "do": do,
            "circuit": str(circuit.absolute()),
            "srs": str(srs.path.absolute()),
            **(options or {}),
        }
        (here / "job.json").write_text(json.dumps(job))
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(worker), str(here)],
                env={"PATH": os.environ.get("PATH", ""), "HOME": name, "TMPDIR": name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WorkerError(f"zk {do} took longer than {seconds:.0f} s and was ended") from error
        answer = here / "result.json"
        if done.returncode != 0 or not answer.exists():
            raise WorkerError(f"the zk {do} process died (status {done.returncode})")
        result = json.loads(answer.read_text())
        if not result["ok"]:
            raise ProofError(f"ezkl cannot {do} this circuit: {result['error']}")
        yield here

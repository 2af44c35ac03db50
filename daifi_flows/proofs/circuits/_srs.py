"""Structured reference strings: the files, where each came from, and refusing others.

A verifier relies on nobody knowing τ, the secret an SRS was made from: whoever does can prove
false statements. So every file has a record beside it that says where it came from, and is used
only while it is the file the record names:

* files of the public *perpetual powers of tau* ceremony are known by digest (ezkl publishes the
  digests in ``src/srs_sha.rs``; files from github.com/han0110/halo2-kzg-srs): sound while one of
  the ceremony's participants was honest;
* files shipped with this package were made by ``ezkl.gen_srs`` on one machine: sound while whoever
  did it kept no τ. Good for a trial, not between strangers;
* files made here on demand are the same, made on this machine: no other machine can check proofs
  under them without taking this one's file on trust.

Parties that check each other's proofs need the same file. An operator puts a ceremony file at
``workdir/srs/bn254-k<rows>.srs`` on every node and seat.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, cast

from filelock import FileLock

from daifi_flows.encoding import cid_of, parse_json, sha256
from daifi_flows.errors import DaifiError, EncodingError, ProofError
from daifi_flows.proofs.circuits._process import run_job
from daifi_flows.proofs.circuits._settings import MAX_LOGROWS, MIN_LOGROWS, Limits

__all__ = ["SHIPPED_LOGROWS", "Srs", "adopt_srs", "find_srs", "srs_bytes", "srs_file"]

SHIPPED_LOGROWS: Final = (10, 11, 12, 14)
"""Sizes that every installation has the same file of: 14 holds a Poseidon hash of 384 values."""
CEREMONY: Final = "public ceremony: perpetual powers of tau (han0110/halo2-kzg-srs)"
LOCAL: Final = "generated locally by ezkl.gen_srs (untrusted setup)"

_CEREMONY_SHA256: Final = {
    6: "85030b2924111fc60acaf4fb8a7bad89531fbe0271aeab0c21e545f71eee273d",
    7: "e65f95150519fe01c2bedf8f832f5249822ef84c9c017307419e10374ff9eeb1",
    8: "446092fd1d6030e5bb2f2a8368267d5ed0fbdb6a766f6c5e4a4841827ad3106f",
    9: "493d088951882ad81af11e08c791a38a37c0ffff14578cf2c7fb9b7bca654d8b",
    10: "9705d450e5dfd06adb673705f7bc34418ec86339203198beceb2ae7f1ffefedb",
    11: "257fa566ed9bc0767d3e63e92b5e966829fa3347d320a32055dc31ee7d33f8a4",
    12: "28b151069f41abc121baa6d2eaa8f9e4c4d8326ddbefee2bd9c0776b80ac6fad",
    13: "d5d94bb25bdc024f649213593027d861042ee807cafd94b49b54f1663f8f267d",
    14: "c09129f064c08ecb07ea3689a2247dcc177de6837e7d2f5f946e30453abbccef",
    15: "90807800a1c3b248a452e1732c45ee5099f38b737356f5542c0584ec9c3ebb45",
    16: "2a1a494630e71bc026dd5c0eab4c1b9a5dbc656228c1f0d48f5dbd3909b161d3",
    17: "41509f380362a8d14401c5ae92073154922fe23e45459ce6f696f58607655db7",
    18: "d0148475717a2ba269784a178cb0ab617bc77f16c58d4a3cbdfe785b591c7034",
    19: "d1a1655b4366a766d1578beb257849a92bf91cb1358c1a2c37ab180c5d3a204d",
    20: "54ef75911da76d7a6b7ea341998aaf66cb06c679c53e0a88a4fe070dd3add963",
}
_GENERATING: Final = Limits(seconds=300.0, memory_bytes=4 << 30)


@dataclass(frozen=True)
class Srs:
    """An SRS on disk that is what its record says.

    Attributes:
        path: powers of τ for 2^logrows rows, in Halo2's ``RawBytes``.
        verifier: the few points of it that a verifier needs, whatever the circuit's size, in the
            form of a file.
        digest: SHA-256 of the file at ``path``.
        origin: for people: where the file came from.
    """

    path: Path
    verifier: bytes
    digest: bytes
    logrows: int
    origin: str

    @property
    def cid(self) -> str:
        """Raw CID of the file."""
        return cid_of(self.path.read_bytes())


def srs_file(logrows: int) -> str:
    """Name of the file of this size."""
    return f"bn254-k{logrows}.srs"


def srs_bytes(logrows: int) -> int:
    """Size of the file: k, powers of τ in G1 in two bases, G2 and τ·G2, uncompressed."""
    return 4 + 2 * 64 * (1 << logrows) + 256


def find_srs(logrows: int, workdir: Path) -> Srs:
    """The SRS for 2^logrows rows: the one in ``workdir/srs``, else the one shipped with this
    package, else one generated now (seconds to minutes).

    Raises:
        ProofError: the file there is damaged, or nothing says where it came from.
    """
    if not MIN_LOGROWS <= logrows <= MAX_LOGROWS:
        raise ProofError(f"there is no SRS of 2^{logrows} rows: {MIN_LOGROWS} to {MAX_LOGROWS}")
    path = workdir / "srs" / srs_file(logrows)
    if not _recorded(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_GENERATING.seconds):
            if not path.exists():
                _put(logrows, path)
            elif not _record_of(path).exists():
                _recognise(logrows, path)
    return _checked(logrows, path)


def adopt_srs(source: Path, logrows: int, origin: str, workdir: Path) -> Srs:
    """Take an SRS file into ``workdir``: ``origin`` says, for the record, why it is believed.

    Raises:
        ProofError: the file is not an SRS of this size.
    """
    data = source.read_bytes()
    if (fault := _fault(logrows, data)) is not None:
        raise ProofError(f"{source} {fault}")
    path = workdir / "srs" / srs_file(logrows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=_GENERATING.seconds):
        _write(path, data)
        _record(path, logrows, data, origin)
    return _checked(logrows, path)


def _record_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _recorded(path: Path) -> bool:
    return path.exists() and _record_of(path).exists()


def _put(logrows: int, path: Path) -> None:
    """Copy the shipped file and its record, or generate one."""
    shipped = files("daifi_flows.proofs").joinpath("data").joinpath(srs_file(logrows))
    if shipped.is_file():
        record = files("daifi_flows.proofs").joinpath("data").joinpath(_record_of(path).name)
        _write(_record_of(path), record.read_bytes())
        _write(path, shipped.read_bytes())
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        run_job({"do": "srs", "path": str(temporary), "logrows": logrows}, _GENERATING)
        data = temporary.read_bytes()
        _record(path, logrows, data, LOCAL)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _recognise(logrows: int, path: Path) -> None:
    """A record for a file that an operator put there without one, when it is the ceremony's."""
    data = path.read_bytes()
    if sha256(data).hex() == _CEREMONY_SHA256.get(logrows):
        _record(path, logrows, data, CEREMONY)
        return
    fault = _fault(logrows, data) or (
        "is an SRS of unknown origin: it is not the public ceremony's, and no record beside it "
        "says where it came from"
    )
    raise ProofError(f"{path} {fault}; remove it, or adopt it with adopt_srs")


def _record(path: Path, logrows: int, data: bytes, origin: str) -> None:
    known = sha256(data).hex() == _CEREMONY_SHA256.get(logrows)
    value = {
        "sha256": sha256(data).hex(),
        "logrows": logrows,
        "origin": CEREMONY if known else origin,
    }
    _write(_record_of(path), json.dumps(value, indent=2).encode() + b"\n")


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _fault(logrows: int, data: bytes) -> str | None:
    if len(data) != srs_bytes(logrows) or data[:4] != logrows.to_bytes(4, "little"):
        return f"is not an SRS of 2^{logrows} rows"
    return None


def _checked(logrows: int, path: Path) -> Srs:
    record = _record_of(path)
    try:
        stamps = tuple(
            (item.st_ino, item.st_size, item.st_mtime_ns) for item in (path.stat(), record.stat())
        )
    except OSError as error:
        raise ProofError(f"the SRS {path} cannot be read: {error}") from error
    return _load(logrows, path, stamps)


@lru_cache(maxsize=64)
def _load(logrows: int, path: Path, _stamps: Any) -> Srs:
    """Read and compare; the stamps stand for the files' content in the cache's key."""
    try:
        data = path.read_bytes()
        value = cast("dict[str, Any]", parse_json(_record_of(path).read_bytes()))
        digest, origin = value["sha256"], value["origin"]
        if not isinstance(origin, str) or value["logrows"] != logrows:
            raise EncodingError("it is not the record of this file")
    except (OSError, DaifiError, KeyError, TypeError) as error:
        raise ProofError(f"the record beside the SRS {path} cannot be used: {error}") from error
    if (fault := _fault(logrows, data)) is not None:
        raise ProofError(f"{path} {fault}; remove it or put one there")
    if sha256(data).hex() != digest:
        raise ProofError(f"the SRS {path} is not the file its record names; remove both")
    # A verifier opens at one point: it needs G1, G2 and τ·G2 only, here in the form of an SRS of
    # two rows (copies of G1 stand in for powers that are never used).
    verifier = (1).to_bytes(4, "little") + data[4:132] * 2 + data[-256:]
    return Srs(path, verifier, sha256(data), logrows, origin)

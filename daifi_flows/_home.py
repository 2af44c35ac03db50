"""Where a fabric keeps things on disk, and the lock that gives each running fabric its own place.

    home/
      cache/            converted models, indexes, circuits: shared, safe under concurrency; the
                        nodes, the seats and the auditor have one each and trust only their own
      local-0/          one ledger with its keys, journals, indexes and bundles
        lock  keys/  ledger.sqlite  genesis.cbor  committee.json
        seats/        the seats' journal: what they voted and signed
        steps/        what each step asked, written before money moves
        results/      what nodes answered, written before it is committed
        drafts/       accepted results, written before they are settled
        effects/      one file a token: an after-settlement action runs at most once
        bundles/
      local-1/ …        a second fabric running at the same time takes the next place

Files are written to a temporary name and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from daifi_flows.cnft import Committee, Content, Noun, TaskSpec
from daifi_flows.encoding import canonical_json, decode_canonical_json
from daifi_flows.epochs import MAX_FILE_BYTES, CommitteeChain
from daifi_flows.errors import ConfigError, DaifiError, EncodingError

__all__ = [
    "Home",
    "StepRecord",
    "read_committee",
    "read_handovers",
    "take_home",
    "write_atomic",
    "write_committee",
    "write_handovers",
]

_MAX_PLACES = 64


class StepRecord(Noun):
    """What a step asked, remembered under its salt key so that a retry is the same task."""

    spec: TaskSpec
    input: Content


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, and durably.

    Raises:
        ConfigError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error


def write_committee(path: Path, committee: Committee) -> None:
    """Write a committee's public keys, the trust anchor of ``daifi verify``."""
    write_atomic(path, canonical_json(committee.jsonable()))


def read_committee(path: Path) -> Committee:
    """Read a committee file.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        return Committee.from_plain(decode_canonical_json(path.read_bytes(), max_bytes=1 << 20))
    except OSError as error:
        raise ConfigError(f"committee file {path} cannot be read: {error.strerror}") from error
    except EncodingError as error:
        raise ConfigError(f"committee file {path} is damaged: {error}") from error


def write_handovers(path: Path, chain: CommitteeChain) -> None:
    """Write how later committees came into office, for ``daifi verify`` beside the first one's
    keys. It needs no trust: every handover is signed by the committee before."""
    write_atomic(path, chain.to_json())


def read_handovers(path: Path) -> CommitteeChain:
    """Read a file of handovers; nothing is verified yet.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        with path.open("rb") as file:
            return CommitteeChain.from_json(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"file {path} of handovers cannot be read: {error.strerror}") from error
    except EncodingError as error:
        raise ConfigError(f"file {path} of handovers is damaged: {error}") from error


@dataclass(frozen=True)
class Home:
    """A locked place on disk."""

    root: Path
    cache: Path
    _lock: TextIOWrapper

    @property
    def keys(self) -> Path:
        """Key files, mode 0600."""
        return self.root / "keys"

    @property
    def ledger(self) -> Path:
        """The ledger's SQLite file."""
        return self.root / "ledger.sqlite"

    @property
    def bundles(self) -> Path:
        """Where bundles go when the caller names no folder."""
        return self.root / "bundles"

    def step_path(self, salt_key: bytes) -> Path:
        """File of a step's record."""
        return self.root / "steps" / f"{salt_key.hex()}.cbor"

    def draft_path(self, task_id: bytes) -> Path:
        """File of an accepted, not yet bundled result."""
        return self.root / "drafts" / f"{task_id.hex()}.cbor"

    def result_path(self, task_id: bytes) -> Path:
        """File of a node's result, written before it is committed."""
        return self.root / "results" / f"{task_id.hex()}.cbor"

    def effect_path(self, token_id: bytes) -> Path:
        """File of an after-settlement action."""
        return self.root / "effects" / f"{token_id.hex()}.json"

    def close(self) -> None:
        """Give the place back."""
        self._lock.close()


def take_home(base: Path, prefix: str = "local") -> Home:
    """Lock the first free place under ``base``.

    Raises:
        ConfigError: the folder cannot be used, or every place is taken.
    """
    for number in range(_MAX_PLACES):
        root = base / f"{prefix}-{number}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)  # keys, and outputs before they are sealed
            lock = (root / "lock").open("a+")
        except OSError as error:
            raise ConfigError(
                f"home folder {base} cannot be used ({error.strerror or error}): "
                "set DAIFI_HOME or --home to a folder you can write"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        cache = base / "cache"
        cache.mkdir(exist_ok=True)
        return Home(root=root, cache=cache, _lock=lock)
    raise ConfigError(
        f"{_MAX_PLACES} fabrics are running from {base}: close one, or set DAIFI_HOME"
    )


def read_step(path: Path) -> StepRecord | None:
    """The record of an earlier try of the same step, if there is one.

    Raises:
        DaifiError: the record is damaged.
    """
    try:
        return StepRecord.from_canonical(path.read_bytes())
    except FileNotFoundError:
        return None
    except EncodingError as error:
        raise DaifiError(f"step record {path} is damaged: remove it and run again") from error

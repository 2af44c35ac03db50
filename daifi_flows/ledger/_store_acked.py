"""The high-water mark: beside the ledger file, what was acknowledged last.

SQLite cannot tell a write-ahead log that lost its tail from one that never had it: both open as
the older ledger. So the height and hash of each block are also written here, and are on disk,
before any caller is answered. A ledger file behind its mark has lost acknowledged blocks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from daifi_flows.encoding import sha256
from daifi_flows.errors import LedgerCorrupted, LedgerUnavailable
from daifi_flows.ledger._files import flush_folder

__all__ = ["Acked", "AckedFile", "acked_path", "read_acked"]

_MAGIC: Final = b"daifi-acked/1\n\0\0"
_SLOT: Final = 4096
"""Two copies, a page apart, written in turn: a torn write spoils only the newer."""
_BODY: Final = 16 + 3 * 8 + 32


class Acked(NamedTuple):
    """Last acknowledged block, and the highest writer's term."""

    height: int
    digest: bytes
    term: int


def acked_path(ledger: Path) -> Path:
    """Where the mark of a ledger file is."""
    return ledger.with_name(ledger.name + ".acked")


def read_acked(path: Path) -> Acked | None:
    """The mark beside a ledger file that is only read; absent where there is none.

    Raises:
        LedgerCorrupted: neither copy is readable.
        LedgerUnavailable: the file cannot be used.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        return _newest(path, handle)[1]
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        os.close(handle)


def _unusable(path: Path, error: OSError) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"ledger mark {path} cannot be used ({error.strerror or error}); check the disk's free "
        "space and permissions"
    )


def _newest(path: Path, handle: int) -> tuple[int, Acked | None]:
    """The newer of the copies that are whole, and its number."""
    slots = [os.pread(handle, _BODY + 16, at * _SLOT) for at in range(2)]
    newest, best = 0, None
    for raw in slots:
        body, check = raw[:_BODY], raw[_BODY:]
        if len(raw) != _BODY + 16 or sha256(body)[:16] != check or body[:16] != _MAGIC:
            continue
        sequence, height, term = (int.from_bytes(body[at : at + 8], "big") for at in (16, 24, 32))
        if sequence > newest:
            newest, best = sequence, Acked(height, body[40:72], term)
    if best is None and any(raw.strip(b"\0") for raw in slots):
        raise LedgerCorrupted(
            f"ledger mark {path} is damaged: if the ledger file beside it is surely the newest, "
            "remove the mark; otherwise restore both, or follow a follower"
        )
    return newest, best


class AckedFile:
    """An open mark, made when it is not there.

    Raises:
        LedgerCorrupted: neither copy is readable.
        LedgerUnavailable: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sequence = 0
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            self.last = self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> Acked | None:
        try:
            self._sequence, found = _newest(self.path, self._handle)
        except OSError as error:
            raise _unusable(self.path, error) from error
        return found

    def write(self, acked: Acked) -> None:
        """Replace the mark; on disk when this returns.

        Raises:
            LedgerUnavailable: it cannot be written.
        """
        first = self._sequence == 0
        self._sequence += 1
        body = b"".join(
            (
                _MAGIC,
                self._sequence.to_bytes(8, "big"),
                acked.height.to_bytes(8, "big"),
                acked.term.to_bytes(8, "big"),
                acked.digest,
            )
        )
        try:
            os.pwrite(self._handle, body + sha256(body)[:16], self._sequence % 2 * _SLOT)
            os.fdatasync(self._handle)
            if first:
                flush_folder(self.path.parent)
        except OSError as error:
            raise _unusable(self.path, error) from error
        self.last = acked

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

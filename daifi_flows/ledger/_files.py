"""Files that are whole or not there: temporary name, flush to disk, rename, flush of the folder."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from daifi_flows.errors import LedgerUnavailable

__all__ = ["flush", "flush_folder", "whole_file", "whole_path"]


def flush(path: Path) -> None:
    """Have the kernel put a file's bytes on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Have the kernel put a folder's names on the disk."""
    flush(folder)


@contextmanager
def whole_path(path: Path) -> Generator[Path]:
    """A temporary name to write under; the file gets its own name when the block ends well.

    Raises:
        LedgerUnavailable: the disk is full, or the folder cannot be written; nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise LedgerUnavailable(
            f"{path} cannot be written ({error.strerror or error}); check the disk's free space "
            "and permissions"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Generator[IO[bytes]]:
    """:func:`whole_path`, open for writing."""
    with whole_path(path) as temporary, temporary.open("wb") as file:
        yield file

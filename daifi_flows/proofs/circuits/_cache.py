"""A circuit's files on disk, and whether they are still those that were built."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

from daifi_flows.encoding import parse_json, sha256
from daifi_flows.errors import DaifiError

__all__ = ["FILES", "VERIFIER_FILES", "intact"]

FILES: Final = ("model.onnx", "settings.json", "circuit.ezkl", "vk", "pk")
VERIFIER_FILES: Final = ("settings.json", "vk")


def intact(home: Path, names: Sequence[str]) -> bool:
    """Whether these files are those that were built."""
    try:
        stamps = tuple(
            (name, item.st_ino, item.st_size, item.st_mtime_ns)
            for name in (*names, "sha256.json")
            for item in ((home / name).stat(),)
        )
        return _hashes_match(home, stamps)
    except OSError:
        return False


@lru_cache(maxsize=512)
def _hashes_match(home: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> bool:
    """Hash the files; the stamps stand for their content in the cache's key."""
    try:
        written = cast("dict[str, Any]", parse_json((home / "sha256.json").read_bytes()))
        return all(
            written[name] == sha256((home / name).read_bytes()).hex() for name, *_ in stamps[:-1]
        )
    except (OSError, KeyError, TypeError, DaifiError):
        return False

"""A ledger as text: one JSON object a line, which any tool can read and ``import`` verifies.

The first line has the format and the genesis; each following line a block and its certificate; the
last line the height and hash it ends with, so that a file cut short is noticed. Bytes are hex,
amounts decimal text. Receipts and state are not in it: an import executes every transaction again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from daifi_flows.encoding import canonical_json, parse_json
from daifi_flows.errors import EncodingError, LedgerError, LedgerUnavailable
from daifi_flows.ledger._blocks import MAX_BLOCK_BYTES, CertifiedBlock
from daifi_flows.ledger._files import whole_file, whole_path
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._recovery import certified_state, follow_block
from daifi_flows.ledger._store import Store

__all__ = ["Exported", "export_ledger", "import_ledger"]

_FORMAT: Final = "daifi-ledger-export/1"
_MAX_LINE: Final = 4 * MAX_BLOCK_BYTES


class Exported(NamedTuple):
    """What an export or import went through."""

    path: Path
    ledger_id: bytes
    height: int
    head: bytes


def export_ledger(path: Path | str, target: Path | str) -> Exported:
    """Write the final blocks of a ledger file, which may be in use, as newline-delimited JSON.

    Raises:
        LedgerCorrupted: a block fails its checksum.
        LedgerError: there is no such file, or it began with a snapshot.
        LedgerUnavailable: the target is there already, or cannot be written; nothing is left.
    """
    path, target = Path(path), Path(target)
    if target.exists():
        raise LedgerUnavailable(f"{target} is there already; export to another name")
    store = Store(path, None, writable=False)
    try:
        with store.pinned():
            if store.origin > 0:
                raise LedgerError(
                    f"ledger file {path} began with a snapshot of block {store.origin}: export "
                    "from a file that has all blocks"
                )
            with whole_file(target) as file:
                height, head = _write(store, file)
    finally:
        store.close()
    return Exported(target, store.genesis.ledger_id, height, head)


def _write(store: Store, file: IO[bytes]) -> tuple[int, bytes]:
    def line(**value: Any) -> None:
        file.write(canonical_json(value))

    line(format=_FORMAT, genesis=store.genesis.jsonable())
    height, head = 0, bytes(32)
    for row in store.rows(1, 2**62):
        if row.certificate is None:
            break  # not final
        line(block=row.block.jsonable(), certificate=row.certificate.jsonable())
        height, head = row.height, row.block.header.digest
    line(head="0x" + head.hex(), height=height)
    return height, head


def import_ledger(source: Path | str, path: Path | str, ledger_id: bytes | None = None) -> Exported:
    """Make a fresh ledger file of an export, executing and verifying everything.

    Args:
        ledger_id: the ledger it must be; without it, whatever genesis the export has is taken.

    Raises:
        LedgerError: a line is malformed, a block breaks a rule or is not certified, or it is
            another ledger; nothing is left.
        LedgerUnavailable: there is a ledger file already, or it cannot be written.
    """
    source, path = Path(source), Path(path)
    if any(_beside(path, suffix).exists() for suffix in ("", "-wal", ".acked")):
        raise LedgerUnavailable(f"{path} is there already; import into a fresh file")
    try:
        file = source.open("rb")
    except OSError as error:
        raise LedgerError(f"export {source} cannot be read: {error.strerror or error}") from error
    with file, whole_path(path) as temporary:
        try:
            return _read(source, file, temporary, path, ledger_id)
        finally:
            for suffix in ("-wal", "-shm", ".lock", ".acked"):
                _beside(temporary, suffix).unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _read(
    source: Path, file: IO[bytes], temporary: Path, path: Path, ledger_id: bytes | None
) -> Exported:
    lines = _lines(source, file)
    try:
        genesis = Genesis.from_plain(_member(next(lines), "genesis", {"format", "genesis"}))
    except (EncodingError, StopIteration) as error:
        raise LedgerError(f"{source} is no export of a ledger: {error}") from error
    if ledger_id is not None and genesis.ledger_id != ledger_id:
        raise LedgerError(f"{source} is of ledger {genesis.ledger_id.hex()}, not {ledger_id.hex()}")
    machine = Machine(genesis)
    store = Store(temporary, genesis)
    try:
        at = certified_state(store, machine)
        for value in lines:
            if "height" in value:
                break
            number = at.header.height + 1
            try:
                block = CertifiedBlock.from_plain(value)
            except EncodingError as error:
                raise LedgerError(f"block {number} of {source} cannot be read: {error}") from error
            follow_block(store, machine, at, block)
        else:
            raise LedgerError(f"{source} is cut short after block {at.header.height}")
        height = at.header.height
        head = at.header.digest if height else bytes(32)
        if value != {"head": "0x" + head.hex(), "height": height}:
            raise LedgerError(f"{source} does not end with block {height}, which is its last")
        if next(lines, None) is not None:
            raise LedgerError(f"{source} goes on after its end")
        store.settle()
    finally:
        store.close()
    return Exported(path, genesis.ledger_id, height, head)


def _lines(source: Path, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        try:
            value = parse_json(line)
        except EncodingError as error:
            raise LedgerError(f"line {number} of {source} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise LedgerError(f"line {number} of {source} is not an object")
        yield value


def _member(value: dict[str, Any], name: str, names: set[str]) -> Any:
    if set(value) != names or value["format"] != _FORMAT:
        raise EncodingError(f"its first line is not that of {_FORMAT}")
    return value[name]

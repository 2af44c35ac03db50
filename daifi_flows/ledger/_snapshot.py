"""Snapshots: the state at one height in one file, checked against its certificate when loaded.

A follower or a seat's replica starts from one instead of executing the chain from genesis. Layout:
the magic line; a frame (four bytes of length, big-endian, then that many bytes) with the header,
its certificate, how many handovers and entries follow, and the peaks of the receipts' history; a
frame for each handover, from genesis to the committee that certified the header; for each entry,
by ``keccak256(key)``, a frame for the key and one for the value; at the end SHA-256 of all before.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Final

from daifi_flows.cnft import BlockHeader, QuorumCertificate
from daifi_flows.encoding import canonical, decode_canonical, keccak256
from daifi_flows.epochs import Handover
from daifi_flows.errors import DaifiError, EncodingError, LedgerCorrupted, LedgerUnavailable
from daifi_flows.ledger._files import whole_file
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._store import Probe, Store, ignore
from daifi_flows.ledger._succession import certified_by, stored_handovers
from daifi_flows.ledger._trie import OrderedEntries, Trie, leaf_hash
from daifi_flows.merkle import MountainRange

__all__ = ["Snapshot", "batched", "load_newest", "open_snapshot", "snapshots_in", "take_snapshot"]

_log = logging.getLogger(__name__)
_MAGIC: Final = b"daifi-snapshot/3\n"
_MAX_FRAME: Final = 16 * 1024 * 1024
_BATCH: Final = 4_096


def snapshots_in(folder: Path) -> list[Path]:
    """Snapshot files, newest first."""
    return sorted(folder.glob("*.snapshot"), reverse=True)


def take_snapshot(path: Path, folder: Path, *, keep: int, probe: Probe = ignore) -> Path | None:
    """Write the state that a ledger file ends with, and remove all but the newest ``keep``.

    The ledger may be in use. Nothing to do (``None``) at genesis, or when there is one already.

    Raises:
        LedgerUnavailable: it cannot be written; what was there stays.
    """
    store = Store(path, None, writable=False)
    try:
        with store.pinned():
            head = store.head()
            if head is None:
                return None
            target = folder / f"{head.height:012d}.snapshot"
            if target.exists():
                return None
            probe("snapshot:begin")
            with whole_file(target) as file:
                _write(store, head.header, head.certificate, file, probe)
                probe("snapshot:written")
            probe("snapshot:renamed")
    finally:
        store.close()
    _rotate(folder, keep, probe)
    return target


def _write(
    store: Store,
    header: BlockHeader,
    certificate: QuorumCertificate,
    file: IO[bytes],
    probe: Probe,
) -> None:
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    def frame(data: bytes) -> None:
        put(len(data).to_bytes(4, "big") + data)

    handovers = stored_handovers(store, store.genesis, header.epoch)
    put(_MAGIC)
    frame(
        canonical(
            {
                "header": header.plain(),
                "certificate": certificate.plain(),
                "handovers": len(handovers),
                "entries": store.count_entries(),
                "peaks": list(MountainRange.load(store.node, header.history_size).peaks),
            }
        )
    )
    for handover in handovers:
        frame(handover.canonical())
    for number, entry in enumerate(store.entries()):
        frame(entry.key)
        frame(entry.value)
        if number % 16 == 0:
            probe("snapshot:entries")
    file.write(digest.digest())


def _rotate(folder: Path, keep: int, probe: Probe) -> None:
    stale = [*snapshots_in(folder)[max(keep, 1) :], *folder.glob(".*.snapshot.*.part")]
    for path in reversed(stale):
        with contextlib.suppress(OSError):
            path.unlink()
        probe("rotate:removed")


class Snapshot:
    """A snapshot file being read; :meth:`entries` must be taken to the end, where it is checked.

    Attributes:
        header: certified block whose state it is.
        history: the receipts up to it.

    Raises:
        LedgerCorrupted: it is not a snapshot of this ledger, or its block is not certified.
    """

    def __init__(self, path: Path, genesis: Genesis, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._digest = hashlib.sha256()
        if self._take(len(_MAGIC)) != _MAGIC:
            raise self._damaged("it is no snapshot")
        try:
            plain = decode_canonical(self._frame())
            self.header = BlockHeader.from_plain(plain["header"])
            self.certificate = QuorumCertificate.from_plain(plain["certificate"])
            handovers = [Handover.from_canonical(self._frame()) for _ in range(plain["handovers"])]
            self.count = int(plain["entries"])
            peaks: tuple[object, ...] = tuple(plain["peaks"])
            self.history = MountainRange(
                self.header.history_size, tuple(each for each in peaks if isinstance(each, bytes))
            )
        except (EncodingError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if self.header.ledger_id != genesis.ledger_id:
            raise self._damaged("it is another ledger's")
        if any(len(peak) != 32 for peak in self.history.peaks) or (
            self.history.root != self.header.history_root
        ):
            raise self._damaged("its receipts' history is not its block's")
        if certified_by(genesis, handovers, self.header, self.certificate) is None:
            raise self._damaged("its block has no valid certificate")

    def _damaged(self, why: str) -> LedgerCorrupted:
        return LedgerCorrupted(f"snapshot {self.path} cannot be used ({why}): remove it")

    def _take(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise self._damaged(str(error)) from error
        if len(data) != size:
            raise self._damaged("it is cut short")
        self._digest.update(data)
        return data

    def _frame(self) -> bytes:
        size = int.from_bytes(self._take(4), "big")
        if size > _MAX_FRAME:
            raise self._damaged("an entry is too large")
        return self._take(size)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of each entry, by ``keccak256(key)``; memory does not grow with them.

        Raises:
            LedgerCorrupted: at the end: they are not the certified state. Nothing that was made
                of them may be used then.
        """
        buckets = OrderedEntries()
        before = b""
        for _ in range(self.count):
            key, value = self._frame(), self._frame()
            path = keccak256(key)
            if path <= before:
                raise self._damaged("its entries are out of order")
            before = path
            buckets.add(path, leaf_hash(path, value))
            yield key, value
        expected = self._digest.digest()
        if self._file.read(33) != expected:
            raise self._damaged("it fails its checksum")
        self.summaries = buckets.summaries()
        if Trie.restore(self.summaries.items(), None).root != self.header.state_root:
            raise self._damaged("its state is not its block's")


def batched(entries: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Some thousand entries at a time."""
    while some := list(islice(entries, _BATCH)):
        yield some


@contextmanager
def open_snapshot(path: Path, genesis: Genesis) -> Generator[Snapshot]:
    """Read a snapshot file.

    Raises:
        LedgerCorrupted: see :class:`Snapshot`.
        LedgerUnavailable: it cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise LedgerUnavailable(f"snapshot {path} cannot be read: {error}") from error
    with file:
        yield Snapshot(path, genesis, file)


def load_newest(
    folder: Path, genesis: Genesis, at_most: int | None = None
) -> tuple[Snapshot, dict[bytes, bytes]] | None:
    """The newest snapshot that is sound, with its entries in memory; bad ones are passed over.

    Args:
        at_most: highest block wanted.
    """
    for path in snapshots_in(folder):
        try:
            with open_snapshot(path, genesis) as snapshot:
                if at_most is None or snapshot.header.height <= at_most:
                    return snapshot, dict(snapshot.entries())
        except DaifiError as error:
            _log.warning("%s", error)
    return None

"""The ledger file: SQLite in WAL mode, synchronous to disk, one writer.

Blocks are journaled before they are certified and certified before they are acknowledged. The
state, its bucket summaries, the receipts' mountain range and both lookup tables change in the same
SQLite transaction as the certificate. Beside the file stand its lock and its high-water mark.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from daifi_flows.cnft import BlockHeader, QuorumCertificate
from daifi_flows.encoding import canonical, canonical_list
from daifi_flows.errors import EncodingError, LedgerCorrupted, LedgerError, LedgerUnavailable
from daifi_flows.ledger._files import whole_path
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._store_acked import Acked, AckedFile, acked_path
from daifi_flows.ledger._store_changes import Changes, put_changes
from daifi_flows.ledger._store_reads import StoreReads
from daifi_flows.ledger._store_schema import (
    FORMAT,
    GENESIS_LINK,
    SCHEMA,
    Mark,
    Row,
    certificate_check,
    checksum,
    connect,
    damaged,
    link,
    readable,
    transaction,
)

__all__ = ["Mark", "Probe", "Row", "Store", "backup_ledger", "head_bytes", "ignore"]

Probe = Callable[[str], None]
"""Called with the name of each point that a write passes; for tests that stop there."""
_CHECKPOINT_PAGES: Final = 4_000
"""The log is folded into the file at about 16 MB."""
_TERM_AHEAD_MS: Final = 600_000
"""A term further ahead of the clock than this is not believed."""


def ignore(_: str) -> None:
    """The probe of real use."""


class Store(StoreReads):
    """An open ledger file. One writer at a time, held by a lock the kernel frees on death.

    Args:
        genesis: of the ledger; without it, what the file says.
        writable: take the writer's lock; otherwise the file is only read (audit).
        may_lag: open a file that is behind its mark too, to fetch what it lacks; the mark stays
            until it has.

    Raises:
        LedgerUnavailable: another process writes this file, or it cannot be opened.
        LedgerCorrupted: it is not a sound ledger file, or acknowledged blocks are missing from it.
        LedgerError: there is no such file to read, or it belongs to another ledger.
    """

    def __init__(
        self,
        path: Path,
        genesis: Genesis | None,
        *,
        writable: bool = True,
        may_lag: bool = False,
        probe: Probe = ignore,
    ) -> None:
        self.path = path
        self._probe = probe
        self._lock = -1
        self._acked: AckedFile | None = None
        if not path.is_file() and (not writable or genesis is None):
            raise LedgerError(f"there is no ledger file at {path}")
        if writable:
            self._take_lock()
        try:
            with readable(path):
                self._open(writable)
                self.genesis = self._check_genesis(genesis)
                self._term = self.term
            if writable:
                self._check_acked(may_lag)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(
                self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = -1
            raise LedgerUnavailable(
                f"ledger file {self.path} is in use by another process; stop it first"
            ) from error
        except OSError as error:
            raise LedgerUnavailable(
                f"ledger folder {self.path.parent} cannot be written: {error}"
            ) from error

    def _open(self, writable: bool) -> None:
        mode = "rwc" if writable else "ro"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        self._db = connect(uri)
        self._reader = connect(uri)
        if writable:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            if self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,):
                self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")

    def _check_genesis(self, genesis: Genesis | None) -> Genesis:
        format_ = self.meta("format")
        if format_ is None:
            if genesis is None or self.last() > 0:
                raise damaged(self.path, "it does not say which ledger it is")
            with transaction(self._db):
                self._put_meta("format", FORMAT)
                self._put_meta("genesis", genesis.canonical())
            return genesis
        if format_ != FORMAT:
            raise LedgerError(f"ledger file {self.path} has a format this version cannot read")
        try:
            stored = Genesis.from_canonical(self.meta("genesis") or b"")
        except EncodingError as error:
            raise damaged(self.path, f"genesis: {error}") from error
        if genesis is not None and stored.ledger_id != genesis.ledger_id:
            raise LedgerError(
                f"ledger file {self.path} belongs to ledger {stored.ledger_id.hex()}, not "
                f"{genesis.ledger_id.hex()}; use another file or the genesis it was made with"
            )
        return stored

    def _check_acked(self, may_lag: bool) -> None:
        """Compare with the high-water mark; one is made where there is none (a restored copy)."""
        self._acked = AckedFile(acked_path(self.path))
        mark, head = self._acked.last, self.head()
        height = 0 if head is None else head.height
        if mark is None:
            self._acknowledge(height, bytes(32) if head is None else head.header.digest)
            return
        if mark.height > height and may_lag:
            return
        if mark.height > height:
            raise LedgerCorrupted(
                f"ledger file {self.path} is older than what it acknowledged: it ends at block "
                f"{height}, and {mark.height} was final. Start it as a follower of one that has "
                "the rest, or put a follower's file or a newer backup in its place; it is accepted "
                f"as it is once {self._acked.path.name} is removed, and what it lacks is then lost",
                height=height + 1,
                acknowledged=mark.height,
            )
        if mark.height > self.origin:
            found = next(self.rows(mark.height, mark.height), None)
            if found is None or found.block.header.digest != mark.digest:
                raise damaged(self.path, "another block was acknowledged here", mark.height)

    def _acknowledge(self, height: int, digest: bytes) -> None:
        assert self._acked is not None, "only a writer acknowledges"
        before = self._acked.last
        if before is not None and before.height > height:
            return  # still fetching what was acknowledged
        term = max(self._term, before.term if before is not None else 0)
        self._acked.write(Acked(height, digest, term))

    def _put_meta(self, key: str, value: bytes) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)",
            (key, value, checksum(key.encode(), value)),
        )

    def close(self) -> None:
        """Close the file and free the lock."""
        for name in ("_reader", "_db"):
            connection = getattr(self, name, None)
            if connection is not None:
                connection.close()
        if self._acked is not None:
            self._acked.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Writing

    def begin_term(self, now_ms: int = 0) -> int:
        """Start a new writer's term, above every one this file has seen; on disk on return.

        Terms are times. One far ahead of the clock came from a clock that was wrong, or was made
        up by whoever sent the block that it came with: seats would refuse what is above it.

        Args:
            now_ms: the least term, and by which a seen one is judged.
        """
        seen = [self._term]
        if self._acked is not None and self._acked.last is not None:
            seen.append(self._acked.last.term)
        real = [term + 1 for term in seen if not now_ms or term <= now_ms + _TERM_AHEAD_MS]
        term = max(now_ms, *real, 0)
        with readable(self.path), transaction(self._db):
            self._put_meta("term", term.to_bytes(8, "big"))
        self._term = term
        return term

    def seed(
        self,
        changes: Iterable[Changes],
        origin: tuple[BlockHeader, QuorumCertificate] | None = None,
    ) -> None:
        """Write the first state into a fresh file.

        Args:
            origin: certified block of the snapshot it is from.
        """
        with readable(self.path), transaction(self._db):
            for each in changes:
                put_changes(self._db, each, 0)
            if origin is not None:
                self._put_meta("origin", origin[0].height.to_bytes(8, "big"))
                self._put_meta("head", head_bytes(*origin, GENESIS_LINK))
            self._put_meta("seeded", b"")
        head = self.head()
        if head is not None:
            self._acknowledge(head.height, head.header.digest)

    def journal(self, raw: bytes, height: int, receipts: Sequence[bytes]) -> None:
        """Write a proposed block ahead of its certificate; on disk when this returns.

        Args:
            receipts: encoded.
        """
        self._probe("journal:begin")
        leaves = canonical_list(receipts)
        with readable(self.path), transaction(self._db):
            self._put_block(raw, height, leaves)
            self._probe("journal:written")
        self._probe("journal:committed")

    def _put_block(self, raw: bytes, height: int, leaves: bytes) -> None:
        before = self._link(height - 1)
        self._db.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, ?)",
            (height, link(before, height, raw, leaves), raw, leaves),
        )

    def _link(self, height: int) -> bytes:
        row = self._db.execute("SELECT link FROM blocks WHERE height = ?", (height,)).fetchone()
        if row is None and height != self.origin:
            raise damaged(self.path, f"block {height} is missing", height)
        return GENESIS_LINK if row is None else row[0]

    def finalise(
        self, header: BlockHeader, certificate: QuorumCertificate, changes: Changes
    ) -> None:
        """Write a journaled block's certificate and everything that became final with it.

        Raises:
            LedgerUnavailable: the disk is full or the file cannot be written; nothing changed.
        """
        self._probe("finalise:begin")
        with readable(self.path), transaction(self._db):
            self._finalise(header, certificate, changes)
            self._probe("finalise:written")
        self._probe("finalise:committed")
        self._acknowledge(header.height, header.digest)
        self._probe("finalise:acknowledged")

    def append(
        self,
        raw: bytes,
        receipts: Sequence[bytes],
        header: BlockHeader,
        certificate: QuorumCertificate,
        changes: Changes,
        term: int,
    ) -> None:
        """Write a block that is final already (a follower's, an import's), as one change.

        A block journaled here at that height that never became final gives way to it. The file
        remembers the highest ``term`` it has seen.
        """
        self._probe("append:begin")
        leaves = canonical_list(receipts)
        with readable(self.path), transaction(self._db):
            self._db.execute("DELETE FROM blocks WHERE height = ?", (header.height,))
            self._put_block(raw, header.height, leaves)
            self._finalise(header, certificate, changes)
            if term > self._term:
                self._put_meta("term", term.to_bytes(8, "big"))
            self._probe("append:written")
        self._term = max(self._term, term)
        self._acknowledge(header.height, header.digest)
        self._probe("append:acknowledged")

    def _finalise(
        self, header: BlockHeader, certificate: QuorumCertificate, changes: Changes
    ) -> None:
        height, encoded = header.height, certificate.canonical()
        block_link = self._link(height)
        self._db.execute(
            "INSERT INTO certificates VALUES (?, ?, ?)",
            (height, encoded, certificate_check(block_link, height, encoded)),
        )
        put_changes(self._db, changes, height)
        self._put_meta("head", head_bytes(header, certificate, block_link))

    def settle(self) -> None:
        """Fold the log into the file, which then can be moved by itself; nothing may follow."""
        self._reader.close()
        with readable(self.path):
            self._db.execute("PRAGMA journal_mode=DELETE")


def backup_ledger(path: Path | str, target: Path | str, probe: Probe = ignore) -> None:
    """A copy of a ledger file as it is at one instant, while it is in use; whole or not there.

    Thread-safe. The copy stands for itself: it takes the place of a lost file once the lost one's
    mark is gone too.

    Raises:
        LedgerError: there is no such ledger file.
        LedgerUnavailable: there is a target already, or the copy cannot be written.
    """
    path, target = Path(path), Path(target)
    if target.exists():
        raise LedgerUnavailable(f"{target} is there already; back up to another name")
    Store(path, None, writable=False).close()

    def pages(_status: int, _remaining: int, _total: int) -> None:
        probe("backup:pages")

    probe("backup:begin")
    with whole_path(target) as temporary, readable(target):
        source = connect(f"{path.absolute().as_uri()}?mode=ro")
        copy = connect(f"{temporary.absolute().as_uri()}?mode=rwc")
        try:
            source.execute("BEGIN")
            source.execute("SELECT 1 FROM meta LIMIT 1").fetchone()  # takes the instant
            source.backup(copy, pages=256, progress=pages)
            # A copy in WAL mode would need a log beside it before it could be opened.
            copy.execute("PRAGMA journal_mode=DELETE")
        finally:
            copy.close()
            source.close()
        probe("backup:written")
    probe("backup:renamed")


def head_bytes(header: BlockHeader, certificate: QuorumCertificate, block_link: bytes) -> bytes:
    """The ``head`` value in ``meta``."""
    return canonical(
        {"header": header.plain(), "certificate": certificate.plain(), "link": block_link}
    )

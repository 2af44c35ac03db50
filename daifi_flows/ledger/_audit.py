"""Replay of a ledger file: every signature, root, certificate, receipt, index row and balance.

Memory does not grow with the ledger: the replayed state lies in a scratch file, blocks pass one by
one, and tables are compared as they are read.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from daifi_flows.errors import DaifiError, LedgerCorrupted, LedgerError
from daifi_flows.ledger._blocks import CertifiedBlock, genesis_header, reexecute
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._records import BUCKETS, SupplyReport, TaskRecord, TokenRecord
from daifi_flows.ledger._recovery import Certified, verified_block
from daifi_flows.ledger._service import LedgerService
from daifi_flows.ledger._snapshot import Snapshot, batched, open_snapshot, snapshots_in
from daifi_flows.ledger._store import Row, Store
from daifi_flows.ledger._store_acked import acked_path, read_acked
from daifi_flows.ledger._store_base import StoreBase
from daifi_flows.ledger._store_changes import Changes, changes_of, marks_of, put_changes
from daifi_flows.ledger._store_reads import StoreReads
from daifi_flows.ledger._store_schema import SCHEMA, connect
from daifi_flows.ledger._trie import Trie
from daifi_flows.merkle import MountainRange

__all__ = ["AuditReport", "audit"]

_BATCH: Final = 64
"""Blocks a scratch file takes in one transaction."""


@dataclass(frozen=True)
class AuditReport:
    """What a clean audit found.

    Attributes:
        first: first block that was executed again; the state before it is that of genesis, or of
            a snapshot that a quorum certified.
        head: hash of the last final block.
        state_root: root of the state after it.
        transactions: number of transactions in the blocks that were executed again.
        tokens: number of tokens in the state.
        tasks: number of tasks in the state by where they stand.
        journaled: height of a block that is journaled but not certified yet, or absent.
    """

    path: str
    ledger_id: bytes
    first: int
    height: int
    head: bytes
    state_root: bytes
    transactions: int
    tokens: int
    tasks: dict[str, int]
    supply: SupplyReport
    journaled: int | None

    def jsonable(self) -> dict[str, Any]:
        """As JSON types."""
        plain = asdict(self) | {"supply": self.supply.jsonable()}
        plain["supply_conserved"] = self.supply.conserved
        return {k: "0x" + v.hex() if isinstance(v, bytes) else v for k, v in plain.items()}


def audit(path: Path | str, from_height: int = 1) -> AuditReport:
    """Replay the chain in a ledger file, from disk alone.

    The file may be in use; what becomes final meanwhile may or may not be looked at.

    Args:
        from_height: first block to execute again. The replay starts at the newest snapshot before
            it, or at genesis where there is none; blocks before the snapshot are not looked at.

    Raises:
        LedgerCorrupted: something does not follow; ``details["height"]`` says where.
        LedgerError: there is no such file, or it is of a format this version cannot read.
        LedgerUnavailable: the file cannot be opened.
    """
    store = Store(Path(path), None, writable=False)
    try:
        mark = read_acked(acked_path(store.path))  # before the instant that is looked at
        try:
            machine = Machine(store.genesis)
        except DaifiError as error:
            raise _wrong(store, 0, str(error)) from error
        # In one read transaction, so that a ledger in use is seen at one instant.
        with tempfile.TemporaryDirectory(prefix="daifi-audit-") as folder, store.pinned():
            scratch = _Scratch(Path(folder) / "replay.db")
            try:
                report = _Replay(store, scratch, machine).run(from_height)
            finally:
                scratch.close()
        if mark is not None and mark.height > report.height:
            raise _wrong(store, report.height + 1, f"block {mark.height} was acknowledged")
        return report
    finally:
        store.close()


def _wrong(store: StoreReads, height: int, why: str) -> LedgerCorrupted:
    return LedgerCorrupted(
        f"ledger file {store.path} fails its audit at height {height}: {why}; restore it from a "
        "backup",
        height=height,
    )


class _Scratch(StoreReads):
    """The replayed state and indexes, in a file that nobody needs after a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = connect(f"{path.as_uri()}?mode=rwc")
        self._reader.execute("PRAGMA journal_mode=OFF")
        self._reader.execute("PRAGMA synchronous=OFF")
        self._reader.executescript(SCHEMA)
        self._written = 0

    def put(self, changes: Changes, height: int) -> None:
        if not self._reader.in_transaction:
            self._reader.execute("BEGIN")
        put_changes(self._reader, changes, height)
        self._written += 1
        if self._written % _BATCH == 0:
            self.flush()

    def flush(self) -> None:
        if self._reader.in_transaction:
            self._reader.commit()

    def close(self) -> None:
        self._reader.close()


class _Replay:
    def __init__(self, store: Store, scratch: _Scratch, machine: Machine) -> None:
        self._store = store
        self._scratch = scratch
        self._machine = machine
        self._transactions = 0

    def run(self, from_height: int) -> AuditReport:
        store = self._store
        at, first = self._begin(from_height)
        journaled: int | None = None
        expected = first
        for row in store.rows(first, 2**62):
            if journaled is not None or row.height != expected:
                raise _wrong(store, row.height, "a block before it is missing or uncertified")
            expected += 1
            if row.certificate is None:
                self._check_journaled(at, row)
                journaled = row.height
            else:
                self._step(at, row, CertifiedBlock(block=row.block, certificate=row.certificate))
                if first > 1:
                    self._check_lookups(row)
        self._scratch.flush()
        height = at.header.height
        head = store.head()
        if at.certificate is not None and (head is None or head.header != at.header):
            raise _wrong(store, height, "the head it names is not its last final block")
        if store.meta("seeded") is not None:  # else it was killed before its first write
            self._compare(first)
        tasks, tokens, supply = self._count(at)
        return AuditReport(
            path=str(store.path),
            ledger_id=self._machine.ledger_id,
            first=first,
            height=height,
            head=at.header.digest,
            state_root=at.trie.root,
            transactions=self._transactions,
            tokens=tokens,
            tasks=tasks,
            supply=supply,
            journaled=journaled,
        )

    def _begin(self, from_height: int) -> tuple[Certified, int]:
        folder = LedgerService.snapshot_folder(self._store.path)
        wanted = max(from_height - 1, self._store.origin)
        for path in snapshots_in(folder) if wanted > 0 else []:
            try:
                with open_snapshot(path, self._machine.genesis) as snapshot:
                    if snapshot.header.height <= wanted:
                        return self._from_snapshot(snapshot), snapshot.header.height + 1
            except DaifiError as error:
                raise _wrong(self._store, wanted, str(error)) from error
        if self._store.origin > 0:
            raise LedgerError(
                f"ledger file {self._store.path} began with a snapshot of block "
                f"{self._store.origin}, which is not in {folder}: audit a file that has all blocks"
            )
        header, base, trie = genesis_header(self._machine)
        summaries = dict(trie.summaries())
        self._scratch.put(Changes(entries=base.encoded(), summaries=summaries), 0)
        trie = Trie.restore(summaries.items(), self._scratch.bucket)
        return Certified(header, None, StoreBase(self._scratch, trie), trie, MountainRange()), 1

    def _from_snapshot(self, snapshot: Snapshot) -> Certified:
        for some in batched(snapshot.entries()):
            self._scratch.put(Changes(entries=dict(some), summaries={}), 0)
        self._scratch.put(Changes(entries={}, summaries=snapshot.summaries), 0)
        trie = Trie.restore(snapshot.summaries.items(), self._scratch.bucket)
        return Certified(
            snapshot.header,
            snapshot.certificate,
            StoreBase(self._scratch, trie),
            trie,
            snapshot.history,
        )

    def _step(self, at: Certified, row: Row, block: CertifiedBlock) -> None:
        try:
            candidate = verified_block(self._machine, at, block)
        except DaifiError as error:
            raise _wrong(self._store, row.height, str(error)) from error
        if candidate.receipts != row.receipts:
            raise _wrong(self._store, row.height, "the stored receipts are not those of the replay")
        marks = marks_of(row.block.transactions, row.receipts)
        self._scratch.put(changes_of(candidate, at.history, marks), row.height)
        at.adopt(candidate, block.certificate)
        self._transactions += len(row.receipts)

    def _check_journaled(self, at: Certified, row: Row) -> None:
        try:
            after = reexecute(self._machine, at.header, at.trie, at.history, at.base, row.block)
        except DaifiError as error:
            raise _wrong(self._store, row.height, str(error)) from error
        if after.receipts != row.receipts:
            raise _wrong(self._store, row.height, "the stored receipts are not those of the replay")

    def _check_lookups(self, row: Row) -> None:
        """Of a partial audit: each transaction is found where it is."""
        for position, receipt in enumerate(row.receipts):
            if self._store.find_tx(receipt.tx) != (row.height, position):
                raise _wrong(self._store, row.height, "a transaction is not found where it is")

    def _compare(self, first: int) -> None:
        """Tables hold what the replay gives. A partial audit knows only the state whole."""
        whole = ("history", "txs", "marks", "nodes") if first == 1 else ()
        for table in ("state", "buckets", *whole):
            pairs = zip_longest(self._store.table(table), self._scratch.table(table))
            if any(mine != theirs for mine, theirs in pairs):
                raise _wrong(
                    self._store,
                    self._store.last(),
                    f"the stored {table} table is not that of the replay",
                )

    def _count(self, at: Certified) -> tuple[dict[str, int], int, SupplyReport]:
        held: dict[str, int] = dict.fromkeys(BUCKETS, 0)
        tasks: dict[str, int] = {}
        tokens = 0
        for _, record in at.base.items():
            for bucket, amount_wei in record.holdings.items():
                held[bucket] += amount_wei
            if isinstance(record, TaskRecord):
                tasks[record.state.value] = tasks.get(record.state.value, 0) + 1
            tokens += isinstance(record, TokenRecord)
        supply = at.base.supply()
        counted = supply.model_copy(update={f"{name}_wei": held[name] for name in BUCKETS})
        if not counted.conserved or counted != supply:
            raise _wrong(self._store, at.header.height, "money was made or lost")
        return tasks, tokens, supply

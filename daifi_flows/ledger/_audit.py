"""Replay of a ledger file from genesis: every signature, root, certificate and balance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daifi_flows.errors import DaifiError, LedgerCorrupted
from daifi_flows.ledger._blocks import certificate_valid, genesis_header, reexecute
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._records import SupplyReport, TaskRecord
from daifi_flows.ledger._state import supply_of
from daifi_flows.ledger._store import Mark, Row, Store
from daifi_flows.ledger._tx import parse_transaction
from daifi_flows.merkle import MountainRange

__all__ = ["AuditReport", "audit"]


@dataclass(frozen=True)
class AuditReport:
    """What a clean audit found.

    Attributes:
        head: hash of the last final block.
        state_root: root of the state after it.
        tasks: number of tasks by state.
        journaled: height of a block that is journaled but not certified yet, or absent.
    """

    path: str
    ledger_id: bytes
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


def audit(path: Path | str) -> AuditReport:
    """Replay the chain in a ledger file from its genesis, from disk alone.

    The file may be in use; what becomes final meanwhile may or may not be looked at.

    Raises:
        LedgerCorrupted: something does not follow; ``details["height"]`` says where.
        LedgerError: there is no such file, or it is of a format this version cannot read.
        LedgerUnavailable: the file cannot be opened.
    """
    store = Store(Path(path), None, writable=False)
    try:
        return _replay(store)
    finally:
        store.close()


def _wrong(store: Store, height: int, why: str) -> LedgerCorrupted:
    return LedgerCorrupted(
        f"ledger file {store.path} fails its audit at height {height}: {why}; restore it from a "
        "backup",
        height=height,
    )


def _replay(store: Store) -> AuditReport:
    try:
        machine = Machine(store.genesis)
    except DaifiError as error:
        raise _wrong(store, 0, str(error)) from error
    head, base, trie = genesis_header(machine)
    history, nodes = MountainRange(), list[bytes]()
    txs: dict[bytes, tuple[int, int]] = {}
    marks: dict[bytes, Mark] = {}
    journaled: int | None = None
    expected = 1
    parent = None
    # In one read transaction, so that a ledger in use is seen at one instant.
    with store.snapshot():
        for row in store.rows(1, 2**62):
            if journaled is not None or row.height != expected:
                raise _wrong(store, row.height, "a block before it is missing or uncertified")
            if row.block.justify != parent:
                raise _wrong(store, row.height, "its parent's certificate is not the parent's")
            try:
                after = reexecute(machine, head, trie, history, base, row.block)
            except DaifiError as error:
                raise _wrong(store, row.height, str(error)) from error
            if after.receipts != row.receipts:
                raise _wrong(store, row.height, "the stored receipts are not those of the replay")
            expected += 1
            if row.certificate is None:
                journaled = row.height
                continue
            if not certificate_valid(machine.committee, after.header.digest, row.certificate):
                raise _wrong(store, row.height, "its certificate does not verify")
            _index(row, txs, marks)
            after.apply()
            head, trie, parent = after.header, after.trie, row.certificate
            history = after.history
            nodes += after.nodes
        stored = dict(store.entries())
        if stored != base.encoded() and (stored or head.height > 0):
            raise _wrong(store, head.height, "the stored state is not that of the replay")
        if store.nodes() != nodes:
            raise _wrong(store, head.height, "the stored history is not that of the replay")
        if store.index() != (txs, marks):
            raise _wrong(store, head.height, "the stored lookup tables are not those of the replay")
    supply = supply_of(base)
    if not supply.conserved or supply != base.supply():
        raise _wrong(store, head.height, "money was made or lost")
    tasks: dict[str, int] = {}
    for _, noun in base.items():
        if isinstance(noun, TaskRecord):
            tasks[noun.state.value] = tasks.get(noun.state.value, 0) + 1
    return AuditReport(
        path=str(store.path),
        ledger_id=machine.ledger_id,
        height=head.height,
        head=head.digest,
        state_root=trie.root,
        transactions=len(txs),
        tokens=tasks.get("settled", 0),
        tasks=tasks,
        supply=supply,
        journaled=journaled,
    )


def _index(row: Row, txs: dict[bytes, tuple[int, int]], marks: dict[bytes, Mark]) -> None:
    for position, (raw, receipt) in enumerate(
        zip(row.block.transactions, row.receipts, strict=True)
    ):
        txs[receipt.tx] = (row.height, position)
        tx = parse_transaction(raw)
        for key in tx.marks():
            marks[key] = Mark(receipt.tx, tx.intent())

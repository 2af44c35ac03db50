"""What becomes final with a block, and the rows it changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daifi_flows.cnft import TxReceipt
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._blocks import Candidate
from daifi_flows.ledger._records import AccountRecord
from daifi_flows.ledger._state import decode_entry
from daifi_flows.ledger._store_schema import Mark, checksum
from daifi_flows.ledger._trie import Summary, leaf_hash
from daifi_flows.ledger._tx import parse_transaction
from daifi_flows.merkle import MountainRange

__all__ = ["Changes", "changes_of", "marks_of", "nodes_in", "put_changes"]


@dataclass(frozen=True)
class Changes:
    """What becomes final with a block.

    Attributes:
        entries: state entries set (encoded) or removed (``None``).
        summaries: of the buckets they are in.
        txs: hashes of the block's transactions in order.
        history: new hashes of the receipts' mountain range, by position.
        nodes: state keys of accounts that register as a node (true) or cease to be one.
    """

    entries: Mapping[bytes, bytes | None]
    summaries: Mapping[int, Summary]
    txs: Sequence[bytes] = ()
    marks: Mapping[bytes, Mark] = field(default_factory=dict[bytes, Mark])
    history: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    nodes: Mapping[bytes, bool] = field(default_factory=dict[bytes, bool])


def changes_of(candidate: Candidate, before: MountainRange, marks: Mapping[bytes, Mark]) -> Changes:
    """The changes of an executed block that is not merged yet.

    Args:
        before: the receipts' history before it.
    """
    nodes: dict[bytes, bool] = {}
    parent = candidate.layer.parent
    for key, record in candidate.layer.changes.items():
        if isinstance(record, AccountRecord):
            was = parent.find(AccountRecord, key)
            if (record.registered is None) == (was is None or was.registered is None):
                continue
            nodes[key] = record.registered is not None
    return Changes(
        entries=candidate.entries,
        summaries=candidate.trie.changed(),
        txs=[receipt.tx for receipt in candidate.receipts],
        marks=marks,
        history=dict(enumerate(candidate.nodes, before.stored)),
        nodes=nodes,
    )


def nodes_in(entries: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bool]:
    """Which of these state entries are accounts registered as nodes."""
    return {
        key: True
        for key, value in entries
        if key[:1] == AccountRecord.prefix
        and isinstance(record := decode_entry(key, value), AccountRecord)
        and record.registered is not None
    }


def marks_of(transactions: Sequence[bytes], receipts: Sequence[TxReceipt]) -> dict[bytes, Mark]:
    """What the transactions of a block did that happens once."""
    marks: dict[bytes, Mark] = {}
    for raw, receipt in zip(transactions, receipts, strict=True):
        tx = parse_transaction(raw)
        for key in tx.marks():
            marks[key] = Mark(receipt.tx, tx.intent())
    return marks


def put_changes(db: sqlite3.Connection, changes: Changes, height: int) -> None:
    """Change the rows, inside the caller's transaction."""
    sets: list[tuple[bytes, bytes, bytes, bytes]] = []
    removals: list[tuple[bytes]] = []
    for key, value in changes.entries.items():
        path = keccak256(key)
        if value is None:
            removals.append((path,))
        else:
            sets.append((path, leaf_hash(path, value), key, value))
    run = db.executemany
    run("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", sets)
    run("DELETE FROM state WHERE path = ?", removals)
    run(
        "INSERT OR REPLACE INTO buckets VALUES (?, ?, ?)",
        [(index, s.kind, s.hash) for index, s in changes.summaries.items() if s.kind],
    )
    run(
        "DELETE FROM buckets WHERE bucket = ?",
        [(index,) for index, s in changes.summaries.items() if not s.kind],
    )
    run(
        "INSERT INTO txs VALUES (?, ?, ?, ?)",
        [(tx, height, at, checksum(tx, height, at)) for at, tx in enumerate(changes.txs)],
    )
    run(
        "INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?)",
        [(key, m.tx, m.intent, checksum(key, *m)) for key, m in changes.marks.items()],
    )
    run("INSERT INTO history VALUES (?, ?)", changes.history.items())
    run(
        "INSERT OR REPLACE INTO nodes VALUES (?)",
        [(k,) for k, is_node in changes.nodes.items() if is_node],
    )
    run(
        "DELETE FROM nodes WHERE key = ?",
        [(k,) for k, is_node in changes.nodes.items() if not is_node],
    )

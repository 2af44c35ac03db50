"""From a ledger file to its certified state, and one block further. Nothing here scans all blocks.

A start reads the head, the bucket summaries and the peaks of the receipts' history, and compares
them with what a quorum signed; entries are checked against the same roots when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daifi_flows.cnft import BlockHeader, QuorumCertificate
from daifi_flows.errors import LedgerError
from daifi_flows.ledger._blocks import (
    Candidate,
    CertifiedBlock,
    certificate_valid,
    genesis_header,
    reexecute,
)
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._snapshot import Snapshot, batched, open_snapshot
from daifi_flows.ledger._store import Row, Store
from daifi_flows.ledger._store_base import StoreBase
from daifi_flows.ledger._store_changes import Changes, changes_of, marks_of, nodes_in
from daifi_flows.ledger._store_reads import StoreReads
from daifi_flows.ledger._store_schema import damaged
from daifi_flows.ledger._succession import certified_by, stored_handovers
from daifi_flows.ledger._trie import Trie
from daifi_flows.merkle import MountainRange

__all__ = [
    "Certified",
    "Verified",
    "certified_state",
    "follow_block",
    "journaled_row",
    "seed_from",
    "verified",
    "verified_block",
]


@dataclass
class Certified:
    """A final block and the state after it. Block 0 has no certificate."""

    header: BlockHeader
    certificate: QuorumCertificate | None
    base: StoreBase
    trie: Trie
    history: MountainRange

    def adopt(self, candidate: Candidate, certificate: QuorumCertificate) -> None:
        """Move to the next block, once the file has its changes."""
        candidate.apply()
        candidate.trie.merge()
        self.header, self.certificate = candidate.header, certificate
        self.history = candidate.history


def certified_state(store: Store, machine: Machine) -> Certified:
    """The state that a file ends with; that of genesis is written into a fresh one.

    Raises:
        LedgerCorrupted: it is not the state that a quorum certified.
    """
    header, genesis_base, genesis_trie = genesis_header(machine)
    head = store.head()
    if head is None and store.meta("seeded") is None:
        summaries = dict(genesis_trie.summaries())
        store.seed([Changes(entries=genesis_base.encoded(), summaries=summaries)])
    certificate: QuorumCertificate | None = None
    if head is not None:
        header, certificate = head.header, head.certificate
        handovers = stored_handovers(store, machine.genesis, header.epoch)
        if certified_by(machine.genesis, handovers, header, certificate) is None:
            raise damaged(store.path, "its last block has no valid certificate", header.height)
        if header.height > store.origin:
            row = next(store.rows(header.height, header.height), None)
            if row is None or row.block.header != header or row.certificate != certificate:
                raise damaged(store.path, "its last block is not its head", header.height)
            if store.link_at(header.height) != head.link:
                raise damaged(store.path, "its last block is not its head", header.height)
    trie = Trie.restore(store.summaries(), store.bucket)
    if trie.root != header.state_root:
        raise damaged(store.path, "the stored state does not match its block", header.height)
    history = _history(store, header)
    return Certified(header, certificate, StoreBase(store, trie), trie, history)


def _history(store: StoreReads, header: BlockHeader) -> MountainRange:
    history = MountainRange.load(store.node, header.history_size)
    if history.root != header.history_root:
        raise damaged(store.path, "the receipts' history does not match its block", header.height)
    return history


def journaled_row(store: StoreReads, height: int) -> Row | None:
    """The block after the last final one, when it was journaled and not certified yet.

    Raises:
        LedgerCorrupted: there is more than that.
    """
    rows = list(store.rows(height + 1, height + 2))
    if not rows:
        return None
    if len(rows) > 1 or rows[0].certificate is not None:
        raise damaged(store.path, "it has blocks after its head", height + 1)
    return rows[0]


def verified_block(machine: Machine, at: Certified, block: CertifiedBlock) -> Candidate:
    """Check a certified block against the state it follows, by executing it.

    Raises:
        LedgerError: it does not follow, breaks a rule, or has no valid certificate.
    """
    header, justify = block.block.header, block.block.justify
    if header.height != at.header.height + 1:
        raise LedgerError(f"block {header.height} does not follow block {at.header.height}")
    if not certificate_valid(at.base.committee(), header.digest, block.certificate):
        raise LedgerError(f"block {header.height} has no valid certificate")
    # Who leads next may have aggregated other seats' signatures of the same parent.
    signers = at.base.certifying(at.header)
    if justify != at.certificate and (
        justify is None
        or at.certificate is None
        or signers is None
        or not certificate_valid(signers, at.header.digest, justify)
    ):
        raise LedgerError(f"block {header.height} does not show that its parent is final")
    return reexecute(machine, at.header, at.trie, at.history, at.base, block.block)


def seed_from(store: Store, machine: Machine, path: Path) -> None:
    """Begin a fresh file with a snapshot instead of genesis.

    Raises:
        LedgerCorrupted: it is not sound; nothing was written.
    """
    with open_snapshot(path, machine.genesis) as snapshot:
        store.seed(_batches(snapshot), (snapshot.header, snapshot.certificate))


def _batches(snapshot: Snapshot) -> Iterator[Changes]:
    for some in batched(snapshot.entries()):
        yield Changes(entries=dict(some), summaries={}, nodes=nodes_in(some))
    history = snapshot.history
    yield Changes(
        entries={},
        summaries=snapshot.summaries,
        history=dict(zip(history.peak_positions, history.peaks, strict=True)),
    )


@dataclass(frozen=True)
class Verified:
    """A certified block that was executed, and what to write of it."""

    block: CertifiedBlock
    candidate: Candidate
    changes: Changes

    def write(self, store: Store) -> None:
        """Write it; its state becomes the file's."""
        block = self.block.block
        store.append(
            block.canonical(),
            self.candidate.leaves,
            block.header,
            self.block.certificate,
            self.changes,
            block.term,
        )


def verified(machine: Machine, at: Certified, block: CertifiedBlock) -> Verified:
    """:func:`verified_block`, with what it changes."""
    candidate = verified_block(machine, at, block)
    marks = marks_of(block.block.transactions, candidate.receipts)
    return Verified(block, candidate, changes_of(candidate, at.history, marks))


def follow_block(store: Store, machine: Machine, at: Certified, block: CertifiedBlock) -> None:
    """Verify a certified block, write it and move to it.

    Raises:
        LedgerError: see :func:`verified_block`; nothing changed.
        LedgerUnavailable: the file cannot be written; nothing changed.
    """
    found = verified(machine, at, block)
    with store.pinned():
        found.write(store)
        at.adopt(found.candidate, block.certificate)

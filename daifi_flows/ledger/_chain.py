"""The proposer's chain: the certified state and the blocks on top of it that are not final yet.

Transactions execute when they arrive, on the newest block, so that a refusal is immediate; blocks
become final in order, as certificates come. Pure: times are passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from daifi_flows.cnft import BlockHeader, QuorumCertificate, TxReceipt
from daifi_flows.errors import LedgerCorrupted, LedgerUnavailable, TransactionRefused
from daifi_flows.ledger._blocks import (
    MAX_BLOCK_TXS,
    Block,
    Candidate,
    build,
    genesis_header,
    reexecute,
)
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._state import Base, Layer
from daifi_flows.ledger._store import Mark, Row
from daifi_flows.ledger._trie import Trie
from daifi_flows.ledger._tx import parse_transaction
from daifi_flows.merkle import MountainRange

__all__ = ["Chain", "Pending"]

MAX_PENDING_TXS = 10_000
"""Back-pressure: above this the ledger asks callers to wait."""


@dataclass
class Pending:
    """A block being filled or waiting for its certificate."""

    layer: Layer
    env: BlockEnv
    raw: list[bytes] = field(default_factory=lambda: [])
    receipts: list[TxReceipt] = field(default_factory=lambda: [])
    marks: dict[bytes, Mark] = field(default_factory=lambda: {})
    candidate: Candidate | None = None
    """Set when the block is closed; nothing is added after that."""
    proposal: bytes = b""


class Chain:
    """Certified base plus pending blocks, oldest first."""

    def __init__(self, genesis: Genesis) -> None:
        self.machine = Machine(genesis)
        self.head, base, self.trie = genesis_header(self.machine)
        self.base: Base = base
        self.history = MountainRange()
        self.certificate: QuorumCertificate | None = None
        self.pending: deque[Pending] = deque()
        self.queued: dict[bytes, Pending] = {}

    def restore(
        self,
        head: BlockHeader,
        certificate: QuorumCertificate,
        base: Base,
        history: MountainRange,
    ) -> None:
        """Continue from a stored head.

        Raises:
            LedgerCorrupted: the state or the history does not have the head's root.
        """
        trie = Trie().update(base.encoded())
        if trie.root != head.state_root:
            raise LedgerCorrupted(
                f"the stored state does not match block {head.height}: restore the ledger file "
                "from a backup",
                height=head.height,
            )
        if (history.root, history.size) != (head.history_root, head.history_size):
            raise LedgerCorrupted(
                f"the stored history does not match block {head.height}: restore the ledger file "
                "from a backup",
                height=head.height,
            )
        self.head, self.certificate, self.base, self.trie = head, certificate, base, trie
        self.history = history

    def readopt(self, row: Row) -> None:
        """Put a journaled, uncertified block back, byte for byte.

        Raises:
            LedgerCorrupted: it does not follow from the head.
        """
        try:
            candidate = reexecute(
                self.machine, self.head, self.trie, self.history, self.base, row.block
            )
        except Exception as error:
            raise LedgerCorrupted(
                f"journaled block {row.height} does not follow from block {self.head.height} "
                f"({error}): restore the ledger file from a backup",
                height=row.height,
            ) from error
        header = row.block.header
        env = BlockEnv(header.timestamp_ms, header.height)
        block = Pending(candidate.layer, env, candidate=candidate)
        block.proposal = row.raw
        for raw, receipt in zip(row.block.transactions, candidate.receipts, strict=True):
            self._record(block, raw, receipt)
        self.pending.append(block)

    def _record(self, block: Pending, raw: bytes, receipt: TxReceipt) -> None:
        tx = parse_transaction(raw)
        block.raw.append(raw)
        block.receipts.append(receipt)
        for mark in tx.marks():
            block.marks[mark] = Mark(receipt.tx, tx.intent())
        self.queued[receipt.tx] = block

    @property
    def tip(self) -> Base:
        """State after everything accepted so far, final or not."""
        return self.pending[-1].layer if self.pending else self.base

    def add(self, raw: bytes, now_ms: int) -> bytes:
        """Execute a transaction on the newest block; its id.

        Repeating a transaction that is still pending is not an error.

        Raises:
            TransactionRefused: it cannot be read or breaks a rule; nothing changed.
            LedgerUnavailable: too many transactions wait for certificates.
        """
        tx = parse_transaction(raw)
        tx_id = tx.digest(self.machine.ledger_id)
        if tx_id in self.queued:
            return tx_id
        if len(self.queued) >= MAX_PENDING_TXS:
            raise LedgerUnavailable(
                f"{MAX_PENDING_TXS} transactions wait for certificates; try again later"
            )
        block = self._filling(now_ms)
        try:
            receipt = self.machine.execute(block.layer, tx, block.env, size=len(raw))
        except TransactionRefused:
            if block.env.timestamp_ms >= now_ms or not block.raw:
                self._drop_empty()
                raise
            # Refused at the time this block was begun, which may be long ago: try at this time.
            block = self._fresh(now_ms)
            try:
                receipt = self.machine.execute(block.layer, tx, block.env, size=len(raw))
            except TransactionRefused:
                self._drop_empty()
                raise
        self._record(block, raw, receipt)
        return tx_id

    def _filling(self, now_ms: int) -> Pending:
        last = self.pending[-1] if self.pending else None
        if last is None or last.candidate is not None or len(last.raw) >= MAX_BLOCK_TXS:
            return self._fresh(now_ms)
        return last

    def _fresh(self, now_ms: int) -> Pending:
        before = self.pending[-1].env.timestamp_ms if self.pending else self.head.timestamp_ms
        height = self.head.height + len(self.pending) + 1
        block = Pending(Layer(self.tip), BlockEnv(max(now_ms, before), height))
        self.pending.append(block)
        return block

    def _drop_empty(self) -> None:
        if self.pending and not self.pending[-1].raw:
            self.pending.pop()

    def propose(self) -> tuple[Pending, bool]:
        """Close the oldest pending block; whether it is new (not journaled yet)."""
        block = self.pending[0]
        if block.candidate is not None:
            return block, False
        block.candidate = build(
            self.machine.genesis,
            self.head,
            self.trie,
            self.history,
            block.layer,
            transactions=block.raw,
            receipts=block.receipts,
            timestamp_ms=block.env.timestamp_ms,
        )
        block.proposal = Block(
            header=block.candidate.header,
            transactions=tuple(block.raw),
            justify=self.certificate,
        ).canonical()
        return block, True

    def finalise(self, certificate: QuorumCertificate) -> Pending:
        """Make the oldest pending block final."""
        block = self.pending.popleft()
        assert block.candidate is not None, "only a closed block can be certified"
        block.layer.merge_down()
        if self.pending:
            self.pending[0].layer.parent = self.base
        self.head = block.candidate.header
        self.trie = block.candidate.trie
        self.history = block.candidate.history
        self.certificate = certificate
        for receipt in block.receipts:
            self.queued.pop(receipt.tx, None)
        return block

    def pending_mark(self, mark: bytes) -> Mark | None:
        """What a pending transaction does, by key."""
        for block in reversed(self.pending):
            if (found := block.marks.get(mark)) is not None:
                return found
        return None

"""The proposer's chain: the certified state and the blocks on top of it that are not final yet.

Transactions execute when they arrive, on the newest block, so that a refusal is immediate; blocks
become final in order, as certificates come. Pure: times are passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from daifi_flows.cnft import BlockHeader, QuorumCertificate, TxReceipt
from daifi_flows.errors import (
    LedgerCorrupted,
    LedgerError,
    LedgerUnavailable,
    TransactionRefused,
)
from daifi_flows.ledger._auction import Slot
from daifi_flows.ledger._blocks import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TXS,
    MAX_BODY_BYTES,
    Block,
    Candidate,
    build,
    genesis_header,
    reexecute,
)
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._rules.sealed import place_in_block
from daifi_flows.ledger._seal import Seal, open_slot
from daifi_flows.ledger._state import Base, Layer
from daifi_flows.ledger._store import Mark, Row
from daifi_flows.ledger._trie import Trie
from daifi_flows.ledger._tx import Incoming
from daifi_flows.merkle import MountainRange

__all__ = ["Chain", "Dropped", "Pending"]

MAX_PENDING_TXS: Final = 10_000
MAX_PENDING_BYTES: Final = 128 * 1024 * 1024
"""Back-pressure: above these the ledger asks callers to wait."""


@dataclass
class Pending:
    """A block being filled or waiting for its certificate."""

    layer: Layer
    env: BlockEnv
    raw: list[bytes] = field(default_factory=lambda: [])
    receipts: list[TxReceipt] = field(default_factory=lambda: [])
    marks: dict[bytes, Mark] = field(default_factory=lambda: {})
    place: int = 0
    """That of the last transaction: a reveal which belongs before it begins a new block."""
    candidate: Candidate | None = None
    """Set when the block is closed; nothing is added after that."""
    proposal: bytes = b""
    size: int = 0
    """Bytes of all its transactions."""
    """The canonical block, once a proposer has signed its header."""


class Dropped(NamedTuple):
    """A transaction that was accepted, and is refused on top of the block that came before it."""

    tx: bytes
    why: TransactionRefused


class Chain:
    """Certified base plus pending blocks, oldest first."""

    def __init__(self, genesis: Genesis) -> None:
        self.machine = Machine(genesis)
        self.head, base, self.trie = genesis_header(self.machine)
        self.base: Base = base
        self.history = MountainRange()
        self.certificate: QuorumCertificate | None = None
        self.term = 0
        """The writer's term, by which seats tell it from one that it replaced."""
        self.pending: deque[Pending] = deque()
        self.queued: dict[bytes, Pending] = {}

    def restore(
        self,
        head: BlockHeader,
        certificate: QuorumCertificate | None,
        base: Base,
        trie: Trie,
        history: MountainRange,
    ) -> None:
        """Continue from a stored head, whose roots are those of ``trie`` and ``history``."""
        self.head, self.certificate, self.base = head, certificate, base
        self.trie, self.history = trie, history

    def readopt(self, row: Row) -> None:
        """Put a journaled, uncertified block back; only the writer's term may be another.

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
        candidate.paid.merge_down()
        block = Pending(candidate.layer, env, candidate=candidate)
        block.proposal = self._in_term(row.block)
        for raw, receipt in zip(row.block.transactions, candidate.receipts, strict=True):
            self._record(block, self._read(raw), receipt)
        self.pending.append(block)

    def _read(self, raw: bytes) -> Incoming:
        return Incoming.read(raw, self.machine.ledger_id)

    def _record(self, block: Pending, read: Incoming, receipt: TxReceipt) -> None:
        block.raw.append(read.raw)
        block.size += len(read.raw)
        block.receipts.append(receipt)
        block.marks.update(dict.fromkeys(read.marks, Mark(receipt.tx, read.intent)))
        self.queued[receipt.tx] = block

    @property
    def tip(self) -> Base:
        """State after everything accepted so far, final or not."""
        return self.pending[-1].layer if self.pending else self.base

    def add(self, raw: bytes, now_ms: int) -> bytes:
        """:meth:`accept` a transaction by its bytes."""
        return self.accept(self._read(raw), now_ms)

    def accept(self, read: Incoming, now_ms: int) -> bytes:
        """Execute a transaction on the newest block; its id.

        Repeating a transaction that is still pending is not an error.

        Raises:
            TransactionRefused: it cannot be read or breaks a rule; nothing changed.
            LedgerUnavailable: too many transactions wait for certificates.
        """
        raw, tx_id = read.raw, read.tx_id
        if tx_id in self.queued:
            return tx_id
        if len(self.queued) >= MAX_PENDING_TXS:
            raise LedgerUnavailable(
                f"{MAX_PENDING_TXS} transactions wait for certificates; try again later"
            )
        if sum(block.size for block in self.pending) + len(raw) > MAX_PENDING_BYTES:
            raise LedgerUnavailable(
                f"{MAX_PENDING_BYTES} bytes of transactions wait for certificates; try again later"
            )
        try:
            self._place(read, now_ms)
        except BaseException:  # a damaged file, too: no seat signs a block without transactions
            self._drop_empty()
            raise
        return tx_id

    def _place(self, read: Incoming, now_ms: int) -> None:
        place = place_in_block(self.tip, read.tx)
        block = self._filling(now_ms, len(read.raw), place)
        try:
            receipt = self._execute(block, read)
        except TransactionRefused:
            if block.env.timestamp_ms >= now_ms or not block.raw:
                raise
            # Refused at the time this block was begun, which may be long ago: try at this time.
            block = self._fresh(now_ms)
            receipt = self._execute(block, read)
        self._record(block, read, receipt)
        block.place = place

    def _execute(self, block: Pending, read: Incoming) -> TxReceipt:
        return self.machine.execute(
            block.layer, read.tx, block.env, size=len(read.raw), tx_id=read.tx_id
        )

    def _filling(self, now_ms: int, size: int, place: int) -> Pending:
        last = self.pending[-1] if self.pending else None
        if (
            last is None
            or last.candidate is not None
            or len(last.raw) >= MAX_BLOCK_TXS
            or last.size + size > MAX_BODY_BYTES
            or place < last.place
        ):
            return self._fresh(now_ms)
        return last

    def _fresh(self, now_ms: int) -> Pending:
        before = self.pending[-1].env.timestamp_ms if self.pending else self.head.timestamp_ms
        height = self.head.height + len(self.pending) + 1
        block = Pending(Layer(self.tip), BlockEnv(max(now_ms, before), height))
        self.machine.begin(block.layer, block.env)
        self.pending.append(block)
        return block

    def _drop_empty(self) -> None:
        if self.pending and not self.pending[-1].raw:
            self.pending.pop()

    def slot(self, beacon: bytes, round: int) -> Slot:
        """Who proposes the block after the head, by the group's signature over it."""
        return open_slot(self.head, self.base, beacon, round)

    def close(self, slot: Slot, builder: str, bid_wei: int) -> Candidate:
        """Close the oldest pending block for a slot: its header names who was drawn.

        Until it is sealed it can be closed again, for a later round.

        Raises:
            LedgerError: the builder holds less than it bids.
        """
        block = self.pending[0]
        assert not block.proposal, "a sealed block stays as it is"
        block.candidate = build(
            slot,
            self.trie,
            self.history,
            block.layer,
            builder=builder,
            bid_wei=bid_wei,
            transactions=block.raw,
            receipts=block.receipts,
            timestamp_ms=block.env.timestamp_ms,
        )
        return block.candidate

    def seal(self, seal: Seal, now_ms: int) -> list[Dropped]:
        """Give the closed block what makes it a proposal.

        When its builder paid for it, what came after was executed without that payment, and is
        executed again.

        Returns:
            Later transactions that are refused now.
        """
        block = self.pending[0]
        assert block.candidate is not None, "only a closed block can be sealed"
        block.proposal = Block(
            header=block.candidate.header,
            transactions=tuple(block.raw),
            seal=seal,
            justify=self.certificate,
            term=self.term,
        ).canonical()
        if not block.candidate.paid.changes:
            return []
        block.candidate.paid.merge_down()
        return self._repeat_after(1, now_ms)

    def supplant(self, foreign: Block, now_ms: int) -> list[Dropped]:
        """Put another builder's sealed block in front of everything that is pending here.

        Returns:
            Transactions that are refused on top of it.

        Raises:
            LedgerError: it does not follow from the head, or no seat would read it; nothing
                changed.
        """
        proposal = self._in_term(foreign)
        if len(proposal) > MAX_BLOCK_BYTES:
            raise LedgerError(f"the block has {len(proposal)} bytes; {MAX_BLOCK_BYTES} are allowed")
        candidate = reexecute(self.machine, self.head, self.trie, self.history, self.base, foreign)
        candidate.paid.merge_down()
        header = foreign.header
        block = Pending(candidate.layer, BlockEnv(header.timestamp_ms, header.height))
        block.candidate, block.proposal = candidate, proposal
        self.pending.appendleft(block)
        for each, receipt in zip(foreign.transactions, candidate.receipts, strict=True):
            self._record(block, self._read(each), receipt)
        return self._repeat_after(1, now_ms)

    def _in_term(self, block: Block) -> bytes:
        """With this writer's own word for what the hash does not bind."""
        own = {"term": self.term, "justify": self.certificate}
        return block.model_copy(update=own).canonical()

    def _repeat_after(self, kept: int, now_ms: int) -> list[Dropped]:
        """Execute again what is pending after the first blocks."""
        later = [self.pending.pop() for _ in range(len(self.pending) - kept)][::-1]
        first = {receipt.tx for block in self.pending for receipt in block.receipts}
        dropped: list[Dropped] = []
        again = [
            (raw, receipt.tx)
            for block in later
            for raw, receipt in zip(block.raw, block.receipts, strict=True)
            if receipt.tx not in first
        ]
        for _, tx_id in again:
            self.queued.pop(tx_id, None)
        for raw, tx_id in again:
            try:
                read = self._read(raw)
                self._refuse_repeat(read)
                self.accept(read, now_ms)
            except TransactionRefused as error:
                dropped.append(Dropped(tx_id, error))
            except LedgerUnavailable as error:  # no room behind the other builder's block
                dropped.append(Dropped(tx_id, TransactionRefused(str(error), code="unknown")))
        return dropped

    def _refuse_repeat(self, read: Incoming) -> None:
        """A request that was signed again, with another nonce, is not done a second time."""
        for key in read.marks:
            mark = self.pending_mark(key)
            if mark is not None and (mark.intent == read.intent or key == read.tx.request_mark()):
                raise TransactionRefused(
                    f"transaction {mark.tx.hex()} does this already; send it again for its receipt",
                    code="duplicate",
                )

    def finalise(self, certificate: QuorumCertificate) -> Pending:
        """Make the oldest pending block final."""
        block = self.pending.popleft()
        assert block.candidate is not None, "only a closed block can be certified"
        block.candidate.apply()
        if self.pending:
            self.pending[0].layer.parent = self.base
        self.head = block.candidate.header
        self.trie = block.candidate.trie.merge()
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

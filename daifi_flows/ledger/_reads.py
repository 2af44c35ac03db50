"""What a ledger's file answers: the same for the process that writes it and for a follower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from daifi_flows.cnft import (
    Attestation,
    BlockHeader,
    Committee,
    QuorumCertificate,
    Receipt,
)
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import MAX_HANDOVERS, CommitteeChain
from daifi_flows.errors import LedgerCorrupted, LedgerUnavailable, TransactionRefused
from daifi_flows.history import HistoryProof
from daifi_flows.ledger._blocks import CertifiedBlock, Inclusions
from daifi_flows.ledger._economics import surged_wei
from daifi_flows.ledger._params import Genesis, Params
from daifi_flows.ledger._records import (
    AccountRecord,
    Record,
    SupplyReport,
    TaskRecord,
    TokenRecord,
)
from daifi_flows.ledger._rules._work import index_at
from daifi_flows.ledger._state import Base
from daifi_flows.ledger._store import Store
from daifi_flows.ledger._store_schema import damaged
from daifi_flows.ledger._succession import handovers_in
from daifi_flows.ledger._trie import StateProof, Trie
from daifi_flows.ledger._tx import parse_transaction
from daifi_flows.ledger._tx.tasks import Settle
from daifi_flows.merkle import mountain_proof

__all__ = ["LastFinal", "LedgerReads", "StateEntry"]

_HISTORY: Final = 256
"""Most certified blocks given to a lagging seat or follower at once …"""
_HISTORY_BYTES: Final = 16 * 1024 * 1024
"""… and their most bytes, where there is more than one."""
_QUOTE_MS: Final = 5_000
"""How far ahead a quote looks: a block is made sooner than that."""
_RECEIPT_BLOCKS: Final = 16
"""Blocks whose receipts are kept ready: callers ask right after their block is final."""


class StateEntry(NamedTuple):
    """What is stored under a key, shown against a certified header.

    Attributes:
        value: the record's canonical form; ``None``: there is nothing.
        proof: for :func:`~daifi_flows.ledger.verify_state` with ``header.state_root``.
    """

    value: bytes | None
    proof: StateProof
    header: BlockHeader
    certificate: QuorumCertificate | None


class LastFinal(NamedTuple):
    """The last final block and the state after it."""

    header: BlockHeader
    certificate: QuorumCertificate | None
    base: Base
    trie: Trie


class LedgerReads(ABC):
    """Reads of final state; none waits for a certificate or for the disk's writes."""

    path: Path
    genesis: Genesis
    _clock: Callable[[], int]
    _store: Store
    _receipts: dict[int, Inclusions]

    @abstractmethod
    def _final(self) -> LastFinal:
        """Where this ledger stands."""

    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]:
        """The last final block; block 0 has no certificate."""
        final = self._final()
        return final.header, final.certificate

    async def committee(self) -> Committee:
        """The seats that certify the next block and sign attestations now."""
        return self._final().base.committee()

    async def committee_of(self, epoch: int) -> Committee | None:
        """The seats of an epoch up to the present one."""
        found = self._final().base.seated_in(epoch)
        return found.committee if found is not None else None

    async def handovers(self, after: int = 0) -> CommitteeChain:
        """How the present committee came into office, from that of an epoch (else of genesis):
        what a verifier needs that trusts the older one."""
        found = handovers_in(self._final().base, self.genesis, after)
        return CommitteeChain(handovers=found[:MAX_HANDOVERS])

    async def certified_header(self, height: int) -> tuple[BlockHeader, QuorumCertificate] | None:
        """A final block's header and certificate, if it is in this file."""
        if not self._store.origin < height <= self._final().header.height:
            return None
        row = next(self._store.rows(height, height))
        if row.certificate is None:
            raise damaged(self.path, "the block lost its certificate", height)
        return row.block.header, row.certificate

    async def account(self, address: str) -> AccountRecord:
        """An account; zeros for an address never seen."""
        return self._final().base.account(address)

    async def task(self, task_id: bytes) -> TaskRecord | None:
        """A task, if it was opened and has not left the state."""
        return self._final().base.task(task_id)

    async def token(self, token_id: bytes) -> TokenRecord | None:
        """A token, if it was ever minted."""
        return self._final().base.token(token_id)

    async def record(self, key: bytes) -> Record | None:
        """What the state holds under a key (records' modules say how theirs are made)."""
        return self._final().base.get(key)

    async def supply(self) -> SupplyReport:
        """Where all money is."""
        return self._final().base.supply()

    async def params(self) -> Params:
        """The parameters in force."""
        return self._final().base.params()

    async def quote(self, node: str) -> int:
        """What a task costs on a node within the next seconds, in wei.

        Raises:
            TransactionRefused: ``unknown``: the address is not registered as a node.
        """
        final = self._final()
        offer = final.base.account(node).registered
        if offer is None:
            raise TransactionRefused(f"{node} is not registered as a node", code="unknown")
        now = max(self._clock(), final.header.timestamp_ms)
        times = (now, now + _QUOTE_MS)  # the next epoch may have begun when the block is made
        index_ppm = max(index_at(final.base, self.genesis, time) for time in times)
        return surged_wei(offer.price_wei, index_ppm)

    async def nodes(self) -> tuple[AccountRecord, ...]:
        """Accounts registered as nodes, by address."""
        base = self._final().base
        found = [base.find(AccountRecord, key) for (key,) in self._store.table("nodes")]
        return tuple(
            sorted(
                (each for each in found if each is not None and each.registered is not None),
                key=lambda account: account.address,
            )
        )

    async def entries(self) -> dict[bytes, Record]:
        """Every final state entry, all in memory: for tests and small ledgers."""
        return dict(self._final().base.items())

    async def prove_entry(self, key: bytes) -> StateEntry:
        """What the state holds under a key, with its proof against the newest certified block."""
        final = self._final()
        entry = self._store.entry(keccak256(key))

        def value_hash(path: bytes) -> bytes:
            found = self._store.entry(path)
            if found is None:
                raise LedgerCorrupted(
                    f"an entry of the state is missing from {self.path}: restore a backup"
                )
            return keccak256(found.value)

        proof = final.trie.prove(key, value_hash)
        value = None if entry is None else entry.value
        return StateEntry(value, proof, final.header, final.certificate)

    async def prove(self, tx_id: bytes) -> HistoryProof:
        """The receipt of a final transaction, shown against the newest certified block.

        Raises:
            TransactionRefused: ``unknown``: it is not final here.
        """
        final = self._final()
        found = self._store.find_tx(tx_id)
        if found is None or found[0] > final.header.height or final.certificate is None:
            raise TransactionRefused(
                f"transaction {tx_id.hex()} is not final here; wait for its receipt first",
                code="unknown",
            )
        height, position = found
        row = next(self._store.rows(height, height))
        index = row.block.header.history_size - len(row.receipts) + position
        return HistoryProof(
            leaf=row.receipts[position],
            index=index,
            path=mountain_proof(self.history_node, index, final.header.history_size),
            header=final.header,
            certificate=final.certificate,
        )

    def history_node(self, position: int) -> bytes:
        """A stored hash of the history's mountain range (see :mod:`daifi_flows.merkle`).

        Raises:
            LedgerCorrupted: it is not there.
        """
        return self._store.node(position)

    async def history(self, from_height: int) -> Sequence[bytes]:
        """Certified blocks from a height on, at most 256 and, beyond the first, 16 MiB.

        Raises:
            LedgerUnavailable: this file began with a later snapshot.
        """
        first = max(1, from_height)
        if first <= self._store.origin:
            raise LedgerUnavailable(
                f"{self.path} has blocks after {self._store.origin} only; ask one that has all"
            )
        last = min(self._final().header.height, first + _HISTORY - 1)
        found: list[bytes] = []
        total = 0
        for row in self._store.rows(first, last):
            if row.certificate is None:
                raise damaged(self.path, "the block lost its certificate", row.height)
            found.append(CertifiedBlock(block=row.block, certificate=row.certificate).canonical())
            total += len(found[-1])
            if total >= _HISTORY_BYTES:
                break
        return found

    async def attestation_receipt(self, task_id: bytes) -> tuple[Attestation, Receipt] | None:
        """The attestation that settled a task, and its settlement's receipt."""
        mark = self._store.find_mark(b"settle/" + task_id)
        found = self._store.find_tx(mark.tx) if mark is not None else None
        if mark is None or found is None:
            return None
        height, position = found
        (row,) = self._store.rows(height, height)
        tx = parse_transaction(row.block.transactions[position])
        assert isinstance(tx, Settle), "a settle mark names a settle transaction"
        return tx.attestation, self._receipt(height, position, mark.tx)

    async def receipt(self, tx_id: bytes) -> Receipt:
        """The receipt of a final transaction.

        Raises:
            TransactionRefused: ``unknown``: it is not final here.
        """
        found = self._store.find_tx(tx_id)
        if found is None:
            raise TransactionRefused(
                f"transaction {tx_id.hex()} is not known here; send it again", code="unknown"
            )
        return self._receipt(*found, tx_id)

    def _receipt(self, height: int, position: int, tx_id: bytes) -> Receipt:
        receipts = self._receipts.get(height)
        if receipts is None:
            rows = list(self._store.rows(height, height))
            if not rows or rows[0].certificate is None:
                raise LedgerCorrupted(f"block {height} is missing from {self.path}", height=height)
            row = rows[0]
            leaves = [receipt.canonical() for receipt in row.receipts]
            receipts = Inclusions(row.block.header, rows[0].certificate, row.receipts, leaves)
            self._remember(height, receipts)
        found = receipts[position] if position < len(receipts) else None
        if found is None or found.leaf.tx != tx_id:
            raise LedgerCorrupted(
                f"the index of {self.path} names a wrong transaction", height=height
            )
        return found

    def _remember(self, height: int, receipts: Inclusions) -> None:
        self._receipts[height] = receipts
        while len(self._receipts) > _RECEIPT_BLOCKS:
            del self._receipts[next(iter(self._receipts))]

"""The running ledger: chain, file and certifier under one asyncio loop. No Ray here.

Order of a block's life: journal the proposal → collect the certificate → journal the certificate →
answer the callers. A restart proposes a journaled block again, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from daifi_flows.cnft import (
    Attestation,
    BlockHeader,
    Committee,
    QuorumCertificate,
    Receipt,
)
from daifi_flows.errors import (
    LedgerCorrupted,
    LedgerError,
    LedgerUnavailable,
    TransactionRefused,
)
from daifi_flows.history import HistoryProof
from daifi_flows.keys import Account
from daifi_flows.ledger._blocks import CertifiedBlock, certificate_valid, inclusions
from daifi_flows.ledger._certifier import Certifier, Collected, collect
from daifi_flows.ledger._chain import Chain, Pending
from daifi_flows.ledger._economics import surged_wei
from daifi_flows.ledger._params import Genesis, Params
from daifi_flows.ledger._proposing import BuilderPort, Proposing
from daifi_flows.ledger._records import (
    AccountRecord,
    LedgerHealth,
    Record,
    SupplyReport,
    TaskRecord,
    TokenRecord,
)
from daifi_flows.ledger._rules._work import index_at
from daifi_flows.ledger._state import MemoryBase, decode_entry
from daifi_flows.ledger._store import Store
from daifi_flows.ledger._tx import Transaction, parse_transaction
from daifi_flows.ledger._tx.tasks import Settle
from daifi_flows.merkle import MountainRange, mountain_proof

__all__ = ["LedgerService"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
_HISTORY: Final = 256
"""Most certified blocks given to a lagging seat at once."""
_QUOTE_MS: Final = 5_000
"""How far ahead a quote looks: a block is made sooner than that."""
_RECEIPT_BLOCKS: Final = 16
"""Blocks whose receipts are kept ready: callers ask right after their block is final."""
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class LedgerService:
    """One ledger file, proposed by this process and certified by the committee.

    Args:
        path: the SQLite file, created with ``genesis`` when it is not there.
        certifier: carries blocks to the seats.
        clock: Unix milliseconds, for block timestamps.
        builder: signs this service's blocks as their builder; a fresh key when absent.
        bid_wei: what the builder pays the drawn proposer for each block.
        builders: other builders, asked to bid for each block too.
        certify_timeout_s: how long one round of asking the seats may take.
        wait_timeout_s: how long :meth:`wait` waits for a certificate before it says so.

    Reads see final state only and never wait for a certificate.
    """

    def __init__(
        self,
        path: Path | str,
        genesis: Genesis,
        certifier: Certifier,
        *,
        clock: Callable[[], int] = _wall_clock_ms,
        builder: Account | None = None,
        bid_wei: int = 0,
        builders: Sequence[BuilderPort] = (),
        certify_timeout_s: float = 75.0,
        wait_timeout_s: float = 20.0,
    ) -> None:
        self.path = Path(path)
        self.genesis = genesis
        self.ledger_id = genesis.ledger_id
        self._certifier = certifier
        self._clock = clock
        self._proposing = Proposing(
            certifier,
            self.history,
            builder=builder if builder is not None else Account.create(),
            bid_wei=bid_wei,
            builders=builders,
            clock=clock,
        )
        self._certify_timeout_s = certify_timeout_s
        self._wait_timeout_s = wait_timeout_s
        self._waiters: dict[bytes, asyncio.Future[None]] = {}
        self._receipts: dict[int, list[Receipt]] = {}
        self._stalled = ""
        self._broken: LedgerError | None = None

    async def start(self) -> None:
        """Open the file and begin to certify what is pending.

        Raises:
            LedgerCorrupted: the file is damaged (the message names the height).
            LedgerUnavailable: another process uses the file, or it cannot be opened.
            LedgerError: the file belongs to another ledger.
        """
        # One thread: SQLite writes wait for the disk, and must not hold up reads.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        try:
            self._chain = await asyncio.to_thread(self._load)
        except BaseException:
            self._writer.shutdown()
            raise
        self._wake = asyncio.Event()
        for tx in self._chain.queued:
            self._waiters[tx] = asyncio.get_running_loop().create_future()
        if self._chain.pending:
            self._wake.set()
        self._task = asyncio.create_task(self._run(), name="ledger")

    def _load(self) -> Chain:
        chain = Chain(self.genesis)
        self._store = store = Store(self.path, self.genesis)
        try:
            count = store.scan()
            last = list(store.rows(max(1, count - 1), count))
            final = [row for row in last if row.certificate is not None]
            entries = {key: decode_entry(key, value) for key, value in store.entries()}
            if final:
                head = final[-1]
                assert head.certificate is not None
                if not certificate_valid(
                    self.genesis.committee, head.block.header.digest, head.certificate
                ):
                    raise LedgerCorrupted(
                        f"block {head.height} in {self.path} has no valid certificate: restore "
                        "the file from a backup",
                        height=head.height,
                    )
                header = head.block.header
                history = MountainRange.load(store.node, header.history_size)
                chain.restore(header, head.certificate, MemoryBase(entries), history)
            elif not entries:
                store.seed(chain.base.encoded())
            elif MemoryBase(entries).encoded() != chain.base.encoded():
                raise LedgerCorrupted(
                    f"the genesis state in {self.path} is not its genesis: restore a backup",
                    height=0,
                )
            open_rows = [row for row in last if row.certificate is None]
            if len(open_rows) > 1 or (open_rows and open_rows[0].height != count):
                raise LedgerCorrupted(
                    f"block {open_rows[0].height} in {self.path} was never certified but has "
                    "successors: restore the file from a backup",
                    height=open_rows[0].height,
                )
            for row in open_rows:
                chain.readopt(row)
        except BaseException:
            store.close()
            raise
        return chain

    async def close(self) -> None:
        """Stop at once. What was answered is on disk; what was not is as if never sent, or is in
        the journal and becomes final at the next start."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._stop(LedgerUnavailable("the ledger was closed; start it again"))
        await asyncio.to_thread(self._writer.shutdown)
        self._store.close()

    # Writing

    async def enqueue(self, raw: bytes) -> bytes:
        """Check and accept a signed transaction; its id. Not final until :meth:`wait` returns.

        A repeat of what an earlier transaction did (same request, or same task and terms) is
        answered with the earlier one's id.

        Raises:
            TransactionRefused: a rule is broken, or it was done with other terms
                (``duplicate``); nothing changed.
            LedgerUnavailable: too many transactions wait, or the file cannot be written.
        """
        if self._broken is not None:
            raise self._broken
        tx = parse_transaction(raw)
        tx_id = tx.digest(self.ledger_id)
        if self._store.find_tx(tx_id) is not None:
            return tx_id
        if (done := self._done(tx)) is not None:
            return done
        tx_id = self._chain.add(raw, self._clock())
        if tx_id not in self._waiters:
            self._waiters[tx_id] = asyncio.get_running_loop().create_future()
        self._wake.set()
        return tx_id

    def _done(self, tx: Transaction) -> bytes | None:
        """The transaction that already did this, when it did exactly this."""
        intent = tx.intent()
        for key in tx.marks():
            mark = self._chain.pending_mark(key) or self._store.find_mark(key)
            if mark is None:
                continue
            if mark.intent == intent:
                return mark.tx
            if key == tx.request_mark():
                raise TransactionRefused(
                    "this request id was used for something else; draw a new one",
                    code="duplicate",
                )
            if not tx.repeatable:
                raise TransactionRefused(
                    f"this {tx.kind} already happened with other terms; read the task to see which",
                    code="duplicate",
                )
        return None

    async def wait(self, tx_id: bytes) -> Receipt:
        """The receipt of an accepted transaction, once its block is final.

        Raises:
            TransactionRefused: ``unknown``: it was never accepted, or was lost in a restart.
            LedgerUnavailable: no certificate yet; the transaction may still become final.
        """
        waiter = self._waiters.get(tx_id)
        if waiter is None and self._broken is not None:
            raise self._broken
        if waiter is not None:
            try:
                await asyncio.wait_for(asyncio.shield(waiter), self._wait_timeout_s)
            except TimeoutError:
                raise LedgerUnavailable(
                    "no certificate yet for the block with this transaction "
                    f"({self._stalled or 'seats have not answered'}); it may still become final"
                ) from None
        found = self._store.find_tx(tx_id)
        if found is None:
            raise TransactionRefused(
                f"transaction {tx_id.hex()} is not known here; send it again", code="unknown"
            )
        return self._receipt(*found, tx_id)

    async def submit(self, raw: bytes) -> Receipt:
        """:meth:`enqueue`, then :meth:`wait`."""
        return await self.wait(await self.enqueue(raw))

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                while self._chain.pending:
                    await self._make_final()
                self._wake.clear()
        except LedgerError as error:  # the disk: nothing more can be promised
            _log.error("the ledger stopped: %s", error)
            self._stop(error)
        except Exception as error:  # a bug: callers must not wait for ever
            _log.exception("the ledger stopped")
            self._stop(LedgerError(f"the ledger stopped ({error}); start it again and report this"))

    async def _make_final(self) -> None:
        new = not self._chain.pending[0].proposal
        if new:
            await self._propose()
        block = self._chain.pending[0]
        assert block.candidate is not None
        height = block.candidate.header.height
        if new:
            await self._write(self._store.journal, block.proposal, height, block.receipts)
        certificate, beacon = await self._certify(block)
        txs = [receipt.tx for receipt in block.receipts]
        await self._write(
            self._store.finalise,
            height,
            certificate,
            block.candidate.entries,
            txs,
            block.marks,
            self._chain.history.stored,
            block.candidate.nodes,
        )
        self._chain.finalise(certificate)
        self._proposing.learn(block.candidate.header.digest, beacon)
        self._remember(height, inclusions(block.candidate.header, certificate, block.receipts))
        for tx in txs:
            if (waiter := self._waiters.pop(tx, None)) is not None and not waiter.done():
                waiter.set_result(None)

    async def _write(self, write: Callable[..., None], *args: object) -> None:
        # Shielded: a cancelled caller must not leave a write half known.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, write, *args))

    async def _propose(self) -> None:
        """Have a block proposed; tell callers whose transactions it leaves out."""
        height = self._chain.head.height + 1
        dropped = await self._insist(
            f"block {height} is not proposed yet", lambda: self._proposing.prepare(self._chain)
        )
        for tx, why in dropped:
            if (waiter := self._waiters.pop(tx, None)) is not None and not waiter.done():
                waiter.set_exception(why)
                waiter.exception()  # nobody may be waiting: do not warn about it

    async def _certify(self, block: Pending) -> Collected:
        """Ask until a quorum signs: a journaled block is never given up."""
        assert block.candidate is not None
        header, committee = block.candidate.header, self.genesis.committee
        return await self._insist(
            f"block {header.height} is not certified yet",
            lambda: collect(self._certifier, committee, header, block.proposal, self.history),
        )

    async def _insist(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the seats until there is an answer."""
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(self._certify_timeout_s):
                    answer = await ask()
            except Exception as error:  # whatever a certifier raises, the block stays
                self._stalled = str(error) or type(error).__name__
                _log.warning("%s: %s", what, self._stalled)
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                attempt += 1
            else:
                self._stalled = ""
                return answer

    def _stop(self, error: LedgerError) -> None:
        error.details["stopped"] = True  # no use in asking again
        self._broken = error
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # nobody may be waiting: do not warn about it
        self._waiters.clear()

    # Reading

    async def prove(self, tx_id: bytes) -> HistoryProof:
        """The receipt of a final transaction, shown against the newest certified block.

        Raises:
            TransactionRefused: ``unknown``: it is not final here.
        """
        head, certificate = self._chain.head, self._chain.certificate
        found = self._store.find_tx(tx_id)
        if found is None or found[0] > head.height or certificate is None:
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
            path=mountain_proof(self.history_node, index, head.history_size),
            header=head,
            certificate=certificate,
        )

    def history_node(self, position: int) -> bytes:
        """A stored hash of the history's mountain range (see :mod:`daifi_flows.merkle`).

        Raises:
            LedgerCorrupted: it is not there, or fails its checksum.
        """
        return self._store.node(position)

    async def history(self, from_height: int) -> Sequence[bytes]:
        """Certified blocks from a height on, at most 256."""
        last = min(self._chain.head.height, from_height + _HISTORY - 1)
        return [
            CertifiedBlock(block=row.block, certificate=row.certificate).canonical()
            for row in self._store.rows(max(1, from_height), last)
            if row.certificate is not None
        ]

    async def next_nonce(self, address: str) -> int:
        """Nonce of the account's next transaction, pending ones counted."""
        return self._chain.tip.account(address).nonce

    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]:
        """The last final block; block 0 has no certificate."""
        return self._chain.head, self._chain.certificate

    async def committee(self) -> Committee:
        """The seats that certify blocks and sign attestations."""
        return self.genesis.committee

    async def account(self, address: str) -> AccountRecord:
        """An account; zeros for an address never seen."""
        return self._chain.base.account(address)

    async def task(self, task_id: bytes) -> TaskRecord | None:
        """A task, if it was ever opened."""
        return self._chain.base.task(task_id)

    async def token(self, token_id: bytes) -> TokenRecord | None:
        """A token, if it was ever minted."""
        return self._chain.base.token(token_id)

    async def supply(self) -> SupplyReport:
        """Where all money is."""
        return self._chain.base.supply()

    async def params(self) -> Params:
        """The parameters in force."""
        return self._chain.base.params()

    async def quote(self, node: str) -> int:
        """What a task costs on a node within the next seconds, in wei.

        Raises:
            TransactionRefused: ``unknown``: the address is not registered as a node.
        """
        offer = self._chain.base.account(node).registered
        if offer is None:
            raise TransactionRefused(f"{node} is not registered as a node", code="unknown")
        now = max(self._clock(), self._chain.head.timestamp_ms)
        times = (now, now + _QUOTE_MS)  # the next epoch may have begun when the block is made
        index_ppm = max(index_at(self._chain.base, self.genesis, time) for time in times)
        return surged_wei(offer.price_wei, index_ppm)

    async def nodes(self) -> tuple[AccountRecord, ...]:
        """Accounts registered as nodes, by address."""
        found = [
            noun
            for _, noun in self._chain.base.items()
            if isinstance(noun, AccountRecord) and noun.registered is not None
        ]
        return tuple(sorted(found, key=lambda account: account.address))

    async def entries(self) -> dict[bytes, Record]:
        """Every final state entry (a copy)."""
        return dict(self._chain.base.items())

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

    def _receipt(self, height: int, position: int, tx_id: bytes) -> Receipt:
        receipts = self._receipts.get(height)
        if receipts is None:
            rows = list(self._store.rows(height, height))
            if not rows or rows[0].certificate is None:
                raise LedgerCorrupted(f"block {height} is missing from {self.path}", height=height)
            receipts = inclusions(rows[0].block.header, rows[0].certificate, rows[0].receipts)
            self._remember(height, receipts)
        if position >= len(receipts) or receipts[position].leaf.tx != tx_id:
            raise LedgerCorrupted(
                f"the index of {self.path} names a wrong transaction", height=height
            )
        return receipts[position]

    def _remember(self, height: int, receipts: list[Receipt]) -> None:
        self._receipts[height] = receipts
        while len(self._receipts) > _RECEIPT_BLOCKS:
            del self._receipts[next(iter(self._receipts))]

    async def health(self) -> LedgerHealth:
        """Process id, height, transactions not final yet, and why certification stalls."""
        return LedgerHealth(
            pid=os.getpid(),
            height=self._chain.head.height,
            pending=len(self._chain.queued),
            stalled_reason=str(self._broken or self._stalled),
        )

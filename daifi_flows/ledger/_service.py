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
from typing import Final, TypeAlias, TypeVar

from daifi_flows.cnft import Receipt
from daifi_flows.errors import LedgerError, LedgerUnavailable, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger._auction import Fault
from daifi_flows.ledger._blocks import Inclusions
from daifi_flows.ledger._certifier import Certifier, Collected, Following, collect
from daifi_flows.ledger._chain import MAX_PENDING_TXS, Chain, Pending
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._proposing import BuilderPort, Proposing
from daifi_flows.ledger._reads import LastFinal, LedgerReads
from daifi_flows.ledger._records import LedgerHealth
from daifi_flows.ledger._recovery import certified_state, journaled_row
from daifi_flows.ledger._snapshot import take_snapshot
from daifi_flows.ledger._store import Probe, Store, backup_ledger, ignore
from daifi_flows.ledger._store_changes import changes_of
from daifi_flows.ledger._tx import Incoming

__all__ = ["LedgerService", "opened", "wall_clock_ms"]

T = TypeVar("T")
_Place: TypeAlias = tuple[int, int]
"""Height of a final transaction's block, and its position there."""

_log = logging.getLogger(__name__)
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LEAST_RETRY_MS: Final = 50
"""Shortest pause asked of a caller while too many transactions wait."""


def wall_clock_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class LedgerService(LedgerReads):
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
        max_pending: transactions that may wait for certificates before callers are turned away.
        snapshot_every: a snapshot is taken each time this many blocks became final; 0: never.
        snapshots: how many are kept, in the folder :meth:`snapshot_folder`.
        probe: called with the name of each point that a write passes; for tests.

    Reads see final state only and never wait for a certificate.
    """

    def __init__(
        self,
        path: Path | str,
        genesis: Genesis,
        certifier: Certifier,
        *,
        clock: Callable[[], int] = wall_clock_ms,
        builder: Account | None = None,
        bid_wei: int = 0,
        builders: Sequence[BuilderPort] = (),
        certify_timeout_s: float = 75.0,
        wait_timeout_s: float = 20.0,
        max_pending: int = 10_000,
        snapshot_every: int = 1_000,
        snapshots: int = 3,
        probe: Probe = ignore,
    ) -> None:
        self.path = Path(path)
        self.genesis = genesis
        self.ledger_id = genesis.ledger_id
        self._certifier = certifier
        if isinstance(certifier, Following):
            certifier.follow(self.committee)
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
        self._max_pending = max_pending
        self._snapshot_every = snapshot_every
        self._snapshots = snapshots
        self._probe = probe
        self._waiters: dict[bytes, asyncio.Future[_Place]] = {}
        self._left_out: dict[bytes, TransactionRefused] = {}
        """Why accepted transactions were refused on top of another builder's block."""
        self._receipts = {}
        self._stalled = ""
        self._broken: LedgerError | None = None
        self._closing = False
        self._snapshotting: asyncio.Task[None] | None = None
        self._counts = dict.fromkeys(
            ("accepted", "refused", "turned_away", "finalised", "blocks", "snapshots"), 0
        )
        self._last_block_ms = self._block_took_ms = 0

    @staticmethod
    def snapshot_folder(path: Path) -> Path:
        """Where the snapshots of a ledger file are."""
        return path.with_name(path.name + ".snapshots")

    async def start(self, *, inherit: bool = False) -> None:
        """Open the file and begin to certify what is pending.

        Args:
            inherit: go on at once with what seats signed for the writer before this one, whose
                file this is not.

        Raises:
            LedgerCorrupted: the file is damaged, or older than what it acknowledged.
            LedgerUnavailable: another process uses the file, or it cannot be opened.
            LedgerError: the file belongs to another ledger.
        """
        # One thread: SQLite writes wait for the disk, and must not hold up reads.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        try:
            self._chain = await opened(self._load, self._abandon)
        except BaseException:
            self._writer.shutdown()
            raise
        self._wake = asyncio.Event()
        self._inherits = inherit
        for tx in self._chain.queued:
            self._waiters[tx] = asyncio.get_running_loop().create_future()
        if self._chain.pending or inherit:
            self._wake.set()
        self._task = asyncio.create_task(self._run(), name="ledger")

    def _load(self) -> Chain:
        chain = Chain(self.genesis)
        self._store = store = Store(self.path, self.genesis, probe=self._probe)
        try:
            at = certified_state(store, chain.machine)
            chain.restore(at.header, at.certificate, at.base, at.trie, at.history)
            row = journaled_row(store, at.header.height)
            if store.origin > 0:
                raise LedgerError(
                    f"ledger file {self.path} began with a snapshot of block {store.origin}: only "
                    "a file with all blocks can be written"
                )
            chain.term = store.begin_term(self._clock())
            if row is not None:
                chain.readopt(row)
        except BaseException:
            store.close()
            raise
        return chain

    def _abandon(self) -> None:
        self._store.close()

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop. No more is accepted; the block in progress may become final within ``grace_s``.

        What was answered is on disk; what was not is as if never sent, or is in the journal and
        becomes final at the next start.
        """
        self._closing = True
        self._wake.set()
        await asyncio.wait({self._task}, timeout=grace_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._stop(LedgerUnavailable("the ledger was closed; start it again"))
        if self._snapshotting is not None:
            await asyncio.gather(self._snapshotting, return_exceptions=True)
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
            LedgerUnavailable: too many transactions wait (``details["retry_after_ms"]``), the
                ledger is closing, or the file cannot be written.
        """
        if self._broken is not None:
            raise self._broken
        read = Incoming.read(raw, self.ledger_id)
        tx_id = read.tx_id
        # A final transaction has used its sender's nonce: a newer nonce need not be looked up.
        used = self._chain.base.account(read.tx.sender).nonce
        if read.tx.nonce < used and self._store.find_tx(tx_id) is not None:
            return tx_id
        if (done := self._done(read)) is not None:
            return done
        if tx_id not in self._chain.queued:
            self._check_room()
        try:
            self._chain.accept(read, self._clock())
        except TransactionRefused:
            self._counts["refused"] += 1
            raise
        except LedgerUnavailable as error:
            self._counts["turned_away"] += 1
            error.details.setdefault("retry_after_ms", self._retry_after_ms)
            raise
        self._left_out.pop(tx_id, None)
        if tx_id not in self._waiters:
            self._counts["accepted"] += 1
            self._waiters[tx_id] = asyncio.get_running_loop().create_future()
        self._wake.set()
        return tx_id

    def _check_room(self) -> None:
        if self._closing:
            raise LedgerUnavailable("the ledger is closing; send the transaction to the next one")
        waiting = len(self._chain.queued)
        if waiting >= self._max_pending:
            self._counts["turned_away"] += 1
            raise LedgerUnavailable(
                f"{waiting} transactions wait for certificates; try again in "
                f"{self._retry_after_ms} ms",
                retry_after_ms=self._retry_after_ms,
                pending=waiting,
            )

    @property
    def _retry_after_ms(self) -> int:
        """About when there is room again: when the next block is final."""
        return max(_LEAST_RETRY_MS, self._block_took_ms)

    def _done(self, read: Incoming) -> bytes | None:
        """The transaction that already did this, when it did exactly this."""
        tx = read.tx
        for key in read.marks:
            mark = self._chain.pending_mark(key) or self._store.find_mark(key)
            if mark is None:
                continue
            if mark.intent == read.intent:
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
            TransactionRefused: ``unknown``: it was never accepted, or was lost in a restart; or
                why it is refused on top of another builder's block that came before it.
            LedgerUnavailable: no certificate yet; the transaction may still become final.
        """
        waiter = self._waiters.get(tx_id)
        if waiter is None and self._broken is not None:
            raise self._broken
        if waiter is None and tx_id in self._chain.queued:  # it came with another writer's block
            waiter = self._waiters[tx_id] = asyncio.get_running_loop().create_future()
        if waiter is not None:
            try:
                height, position = await _wait_for(waiter, self._wait_timeout_s)
                return self._receipt(height, position, tx_id)
            except TimeoutError:
                raise LedgerUnavailable(
                    "no certificate yet for the block with this transaction "
                    f"({self._stalled or 'seats have not answered'}); it may still become final"
                ) from None
        if (why := self._left_out.get(tx_id)) is not None:
            raise why
        return await self.receipt(tx_id)

    async def submit(self, raw: bytes) -> Receipt:
        """:meth:`enqueue`, then :meth:`wait`."""
        return await self.wait(await self.enqueue(raw))

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                while (self._chain.pending or self._inherits) and not self._closing:
                    await self._make_final()
                    self._inherits = False
                if self._closing:
                    return
                self._wake.clear()
        except LedgerError as error:  # the disk: nothing more can be promised
            _log.error("the ledger stopped: %s", error)
            self._stop(error)
        except Exception as error:  # a bug: callers must not wait for ever
            _log.exception("the ledger stopped")
            self._stop(LedgerError(f"the ledger stopped ({error}); start it again and report this"))

    async def _make_final(self) -> None:
        began = time.monotonic_ns()
        new = not self._chain.pending or not self._chain.pending[0].proposal
        if new:
            await self._propose()
            if not self._chain.pending:
                return
        block = self._chain.pending[0]
        assert block.candidate is not None
        header, leaves = block.candidate.header, block.candidate.leaves
        if new:
            await self._write(self._store.journal, block.proposal, header.height, leaves)
        certificate, beacon = await self._certify(block)
        changes = changes_of(block.candidate, self._chain.history, block.marks)
        # Until the chain follows, reads are to see the file as the chain still knows it.
        with self._store.pinned():
            await self._write(self._store.finalise, header, certificate, changes)
            self._chain.finalise(certificate)
        self._proposing.learn(header.digest, beacon)
        self._remember(header.height, Inclusions(header, certificate, block.receipts, leaves))
        self._counts["blocks"] += 1
        self._counts["finalised"] += len(block.receipts)
        self._last_block_ms = self._clock()
        self._block_took_ms = (time.monotonic_ns() - began) // 1_000_000
        for position, receipt in enumerate(block.receipts):
            waiter = self._waiters.pop(receipt.tx, None)
            if waiter is not None and not waiter.done():
                waiter.set_result((header.height, position))
        if self._snapshot_every and header.height % self._snapshot_every == 0:
            self._begin_snapshot()

    def _begin_snapshot(self) -> None:
        if self._snapshotting is None or self._snapshotting.done():
            self._snapshotting = asyncio.create_task(self._snapshot(), name="ledger-snapshot")

    async def _snapshot(self) -> None:
        try:
            taken = await asyncio.to_thread(
                take_snapshot,
                self.path,
                self.snapshot_folder(self.path),
                keep=self._snapshots,
                probe=self._probe,
            )
        except LedgerError as error:  # the ledger goes on without it
            _log.warning("no snapshot: %s", error)
        else:
            self._counts["snapshots"] += taken is not None

    async def backup(self, target: Path | str) -> None:
        """Copy the ledger file as it is at one instant, while it is in use.

        Raises:
            LedgerUnavailable: there is a target already, or it cannot be written.
        """
        await asyncio.to_thread(backup_ledger, self.path, target, self._probe)

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
            while len(self._left_out) >= MAX_PENDING_TXS:
                del self._left_out[next(iter(self._left_out))]
            self._left_out[tx] = why
            if (waiter := self._waiters.pop(tx, None)) is not None and not waiter.done():
                waiter.set_exception(why)
                waiter.exception()  # nobody may be waiting: do not warn about it

    async def _certify(self, block: Pending) -> Collected:
        """Ask until a quorum signs: a journaled block is never given up."""
        assert block.candidate is not None
        header, committee = block.candidate.header, self._chain.base.committee()
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
                if isinstance(error, LedgerError) and "fenced_by" in error.details:
                    raise LedgerUnavailable(str(error)) from error
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

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What builders and proposers did wrong while this ran, with evidence."""
        return self._proposing.faults

    # Reading

    def _final(self) -> LastFinal:
        chain = self._chain
        return LastFinal(chain.head, chain.certificate, chain.base, chain.trie)

    async def next_nonce(self, address: str) -> int:
        """Nonce of the account's next transaction, pending ones counted."""
        return self._chain.tip.account(address).nonce

    async def health(self) -> LedgerHealth:
        """Process id, height, transactions not final yet, and why certification stalls."""
        return LedgerHealth(
            pid=os.getpid(),
            height=self._chain.head.height,
            pending=len(self._chain.queued),
            stalled_reason=str(self._broken or self._stalled),
        )

    async def metrics(self) -> dict[str, int]:
        """Counts since the start, and where the ledger stands; times in milliseconds."""
        first = self._chain.pending[0].env.timestamp_ms if self._chain.pending else 0
        return {
            **self._counts,
            "height": self._chain.head.height,
            "term": self._chain.term,
            "pending_transactions": len(self._chain.queued),
            "pending_blocks": len(self._chain.pending),
            "oldest_pending_ms": first,
            "last_block_ms": self._last_block_ms,
            "last_block_took_ms": self._block_took_ms,
            "stopped": int(self._broken is not None),
        }


async def opened(load: Callable[[], T], close: Callable[[], None]) -> T:
    """Load in a thread. One that is cancelled meanwhile leaves nothing open, and no file locked."""
    loading = asyncio.ensure_future(asyncio.to_thread(load))
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        await asyncio.wait({loading})
        if loading.exception() is None:
            close()
        raise


async def _wait_for(shared: asyncio.Future[T], timeout_s: float) -> T:
    """Wait for a future that others wait for too, and that is to stay when this caller is cancelled
    or has waited long enough (``asyncio.wait_for`` of a ``shield`` takes three times as long).

    Raises:
        TimeoutError: it is not done by then.
    """
    loop = asyncio.get_running_loop()
    mine: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not mine.done():
            mine.set_result(None)

    timer = loop.call_later(timeout_s, wake)
    shared.add_done_callback(wake)
    try:
        await mine
    finally:
        timer.cancel()
        shared.remove_done_callback(wake)
    if not shared.done():
        raise TimeoutError
    return shared.result()

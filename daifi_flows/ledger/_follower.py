"""A follower: a process with a ledger file of its own that is a checked copy of the writer's.

It fetches certified blocks, executes and verifies every one, serves reads, and can go on as the
writer when the writer is gone.

Why two writers cannot both have a block certified at one height. A certificate takes a quorum of
14 of 21 seats, so two certificates share at least 7 signers, of whom at most 6 are dishonest. An
honest seat journals what it signs before it says it and signs one block a height, unless a quorum
has signed that the rounds before were passed over; and a seat that signed a block passes over no
round up to it. So of two blocks at one height at most one finds 14 signers, whoever proposes them,
and whatever a writer believes about being the only one. Which committee certifies a height follows
from the state after its parent, so it is one also where the committee changes. The file's lock
keeps two processes from one file; it is not what safety rests on.

Terms keep an old writer from disturbing the new one. Each start of a writer takes a term above
every term in its file, its mark and its clock. Its first question to the seats and its proposals
carry it, and a replica that was asked by a newer writer, or has seen a right block of its, refuses
older ones. So a writer that was believed dead finds itself refused, and stops. A term proves
nothing to anybody and is not part of what is signed.

A writer that takes over first asks the seats what they signed on top of its last block, and
proposes that again: what a quorum signed, and was perhaps acknowledged, becomes final and nothing
else. If seats know final blocks that the follower never fetched, they refuse it until it has them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

from daifi_flows.errors import EncodingError, LedgerError
from daifi_flows.ledger._blocks import MAX_BLOCK_BYTES, CertifiedBlock
from daifi_flows.ledger._certifier import Certifier
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._reads import LastFinal, LedgerReads
from daifi_flows.ledger._records import LedgerHealth
from daifi_flows.ledger._recovery import Certified, certified_state, seed_from, verified
from daifi_flows.ledger._service import LedgerService, opened, wall_clock_ms
from daifi_flows.ledger._store import Probe, Store, ignore

__all__ = ["BlockSource", "Follower"]

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S: Final = 5.0


class BlockSource(Protocol):
    """Where certified blocks are fetched: a service, another follower, or a way to one."""

    async def history(self, from_height: int) -> Sequence[bytes]:
        """Certified blocks from a height on; none when there are no more."""
        ...


class Follower(LedgerReads):
    """Keeps a copy of a ledger in its own file, and serves reads from it.

    Args:
        path: its file; made when it is not there. One that lost its last blocks gets them again.
        source: where blocks come from. What it gives is believed only as far as it is certified
            and executes.
        snapshot: what a fresh file begins with instead of genesis. Such a follower serves reads
            and cannot take over: it does not know what happened before, so it could not tell a
            repeated request.
        poll_s: how often it asks for new blocks.
    """

    def __init__(
        self,
        path: Path | str,
        genesis: Genesis,
        source: BlockSource,
        *,
        snapshot: Path | None = None,
        poll_s: float = 0.2,
        clock: Callable[[], int] = wall_clock_ms,
        probe: Probe = ignore,
    ) -> None:
        self.path = Path(path)
        self.genesis = genesis
        self._source = source
        self._snapshot = snapshot
        self._poll_s = poll_s
        self._clock = clock
        self._probe = probe
        self._machine = Machine(genesis)
        self._receipts = {}
        self._trouble = ""
        self._heard_ns = 0
        self._grown = asyncio.Condition()
        self._fetching = asyncio.Lock()

    async def start(self) -> None:
        """Open the file and begin to follow.

        Raises:
            LedgerCorrupted: the file or the snapshot is damaged.
            LedgerUnavailable: another process uses the file, or it cannot be opened.
            LedgerError: the file belongs to another ledger.
        """
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-follower")
        try:
            self._at = await opened(self._load, self._abandon)
        except BaseException:
            self._writer.shutdown()
            raise
        self._task = asyncio.create_task(self._run(), name="ledger-follower")

    def _load(self) -> Certified:
        fresh = not self.path.exists()
        self._store = Store(self.path, self.genesis, may_lag=True, probe=self._probe)
        try:
            if self._snapshot is not None and (fresh or self._store.meta("seeded") is None):
                seed_from(self._store, self._machine, self._snapshot)
            return certified_state(self._store, self._machine)
        except BaseException:
            self._store.close()
            raise

    def _abandon(self) -> None:
        self._store.close()

    async def close(self) -> None:
        """Stop following and close the file."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._writer.shutdown)
        self._store.close()

    # Following

    async def _run(self) -> None:
        pause = self._poll_s
        while True:
            try:
                more = await self.fetch()
                pause = self._poll_s
                self._trouble = ""
            except Exception as error:  # whatever a source does, what is here stays
                self._trouble = str(error) or type(error).__name__
                _log.warning("block %d is not here yet: %s", self.height + 1, self._trouble)
                more, pause = 0, min(2 * pause, _LONGEST_PAUSE_S)
            if not more:
                await asyncio.sleep(pause)

    async def fetch(self) -> int:
        """Ask the source once; the number of blocks added.

        Raises:
            LedgerError: a block does not follow or is not certified, or the file cannot be
                written; blocks before it were added.
            Exception: whatever the source raises.
        """
        async with self._fetching:
            blocks = await self._source.history(self.height + 1)
            self._heard_ns = time.monotonic_ns()
            added = 0
            for raw in blocks:
                try:
                    block = CertifiedBlock.from_canonical(raw, max_bytes=MAX_BLOCK_BYTES)
                except EncodingError as error:
                    raise LedgerError(f"a certified block cannot be read: {error}") from error
                if block.block.header.height > self.height:
                    await self._add(block)
                    added += 1
            return added

    async def _add(self, block: CertifiedBlock) -> None:
        found = verified(self._machine, self._at, block)
        with self._store.pinned():
            # Shielded: a cancelled follower must not leave a write half known.
            loop = asyncio.get_running_loop()
            await asyncio.shield(loop.run_in_executor(self._writer, found.write, self._store))
            self._at.adopt(found.candidate, block.certificate)
        async with self._grown:
            self._grown.notify_all()

    async def reach(self, height: int) -> None:
        """Wait until this follower has a height."""
        async with self._grown:
            await self._grown.wait_for(lambda: self.height >= height)

    async def take_over(self, certifier: Certifier, **options: Any) -> LedgerService:
        """Become the writer: a started service on this follower's file, which this one gives up.

        To be called when the writer is gone; if it is not, nothing forks (see the module), and
        the one with the older term stops.

        Args:
            options: of :class:`LedgerService`.

        Raises:
            LedgerError: this file began with a snapshot.
            LedgerUnavailable, LedgerCorrupted: see :meth:`LedgerService.start`.
        """
        if self._store.origin > 0:
            raise LedgerError(
                f"{self.path} began with a snapshot of block {self._store.origin}: only a "
                "follower with all blocks can take over"
            )
        await self.close()
        service = LedgerService(self.path, self.genesis, certifier, **options)
        await service.start(inherit=True)
        return service

    # Reading

    @property
    def height(self) -> int:
        """Height of its last block."""
        return self._at.header.height

    def _final(self) -> LastFinal:
        at = self._at
        return LastFinal(at.header, at.certificate, at.base, at.trie)

    async def health(self) -> LedgerHealth:
        """As a service's; ``stalled_reason`` says why blocks do not come."""
        return LedgerHealth(
            pid=os.getpid(), height=self.height, pending=0, stalled_reason=self._trouble
        )

    @property
    def silent_ms(self) -> int | None:
        """Milliseconds since the source last answered; absent before its first answer."""
        if self._heard_ns == 0:
            return None
        return (time.monotonic_ns() - self._heard_ns) // 1_000_000

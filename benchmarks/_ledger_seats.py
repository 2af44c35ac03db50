"""The 21 seats of the ledger's benchmark: one process of their own, as on one seat host.

It runs what a seat host's actor runs (keys and journal on disk, one re-executing replica), over a
pipe instead of Ray.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from daifi_flows._process import collect_rarely
from daifi_flows.cnft import Committee
from daifi_flows.errors import DaifiError
from daifi_flows.judges._blocks import BlockOffice
from daifi_flows.judges._certifier import BlockCertifier
from daifi_flows.judges._journal import Journal
from daifi_flows.judges._messages import CertifyReply, ProposeReply
from daifi_flows.judges._seat import SeatKeys
from daifi_flows.ledger import Genesis, Replica

__all__ = ["SeatHostProcess"]


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _serve(pipe: Connection, genesis: bytes, folder: Path, keys: Path, dated: bool) -> None:
    parsed = Genesis.from_canonical(genesis)
    committee = parsed.committee
    office = BlockOffice(
        committee,
        {seat.index: SeatKeys.load(keys, seat.index) for seat in committee.seats},
        {},
        Journal(folder / "seats.sqlite"),
        functools.partial(Replica, parsed, clock=_wall_clock_ms if dated else None),
    )
    office.warm()
    collect_rarely()
    pipe.send(None)
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        began = time.thread_time()
        try:
            answer: Any = getattr(office, method)(*arguments)
        except DaifiError as error:
            answer = error
        pipe.send((answer, time.thread_time() - began))


class SeatHostProcess:
    """A running seat host, and the transport that reaches it.

    Args:
        dated: its replica refuses blocks from the future.

    Attributes:
        busy_s: CPU seconds its answers have taken so far.
    """

    def __init__(self, genesis: Genesis, folder: Path, keys: Path, *, dated: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, genesis.canonical(), folder, keys, dated), daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()
        self._one = ThreadPoolExecutor(1, "seats")
        self.busy_s = 0.0

    def certifier(self, committee: Committee) -> BlockCertifier:
        """What a ledger service asks."""
        return BlockCertifier([self], committee)

    def close(self) -> None:
        """End the process."""
        self._one.shutdown()
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self._pipe.send((method, arguments))
        answer, busy_s = self._pipe.recv()
        self.busy_s += busy_s
        if isinstance(answer, DaifiError):
            raise answer
        return answer

    async def _ask(self, method: str, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._one, self._call, method, arguments)

    async def certify(self, header: bytes, block: bytes) -> CertifyReply:
        """See ``SeatTransport``; so the methods below."""
        return await self._ask("certify", header, block)

    async def propose(self, seat: int, offer: bytes) -> ProposeReply:
        return await self._ask("propose", seat, offer)

    async def resume(self, header: bytes, term: int) -> CertifyReply:
        return await self._ask("resume", header, term)

    async def skip(self, parent: bytes, round: int, term: int) -> CertifyReply:
        return await self._ask("skip", parent, round, term)

    async def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        return await self._ask("provide_blocks", blocks)

    async def commit(self, request: Any) -> Any:
        raise NotImplementedError("these seats review nothing")

    async def reveal(self, subject: bytes, commits: Sequence[bytes]) -> Any:
        raise NotImplementedError("these seats review nothing")

    async def sign(self, subject: bytes, commits: Sequence[bytes], reveals: Sequence[bytes]) -> Any:
        raise NotImplementedError("these seats review nothing")

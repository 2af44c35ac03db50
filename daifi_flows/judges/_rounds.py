"""One round over all seat hosts at once: retry the lost, stop when enough have answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from daifi_flows.errors import DaifiError
from daifi_flows.judges._messages import HostLost, SeatTransport

__all__ = ["Round", "ask_all"]

R = TypeVar("R")

BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
"""Pauses between attempts; the last repeats. Restarting an actor takes seconds (FACTS)."""

LOST_FOR_GOOD: Final = 8
"""Attempts in a row that found the process ended, not restarting, before a host is given up."""


@dataclass
class Round(Generic[R]):
    """What came of a round: one line per host that did not answer."""

    answered: int = 0
    failures: dict[int, str] = field(default_factory=lambda: {})

    def describe(self, hosts: int) -> str:
        """For an error message."""
        told = "; ".join(f"host {index}: {why}" for index, why in sorted(self.failures.items()))
        return f"{self.answered} of {hosts} seat hosts answered" + (f" ({told})" if told else "")


async def ask_all(
    hosts: Sequence[SeatTransport],
    call: Callable[[SeatTransport], Awaitable[R]],
    absorb: Callable[[int, R], None],
    patience_s: Callable[[float], float | None],
    *,
    deadline: float,
) -> Round[R]:
    """Put one question to every host concurrently.

    Args:
        call: the question.
        absorb: takes each reply as it comes, with the host's index. An error it raises is that
            host's failure.
        patience_s: given the seconds since the round began, how much longer to wait for the rest
            after the reply that was just absorbed; ``None`` while too few have answered.
        deadline: event loop time at which the round ends in any case.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    outcome: Round[R] = Round()
    tasks = {
        asyncio.ensure_future(_persist(host, call, outcome.failures, index, deadline)): index
        for index, host in enumerate(hosts)
    }
    until = deadline
    try:
        waiting = set(tasks)
        while waiting and (left := until - loop.time()) > 0:
            done, waiting = await asyncio.wait(
                waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                index = tasks[task]
                try:
                    reply = task.result()
                    outcome.failures.pop(index, None)
                    absorb(index, reply)
                except DaifiError as error:
                    outcome.failures[index] = str(error)
                    continue
                outcome.answered += 1
            more = patience_s(loop.time() - started) if done else None
            if more is not None:
                until = min(deadline, loop.time() + more)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
    return outcome


async def _persist(
    host: SeatTransport,
    call: Callable[[SeatTransport], Awaitable[R]],
    failures: dict[int, str],
    index: int,
    deadline: float,
) -> R:
    """Ask until there is an answer: a host that is away may be restarting."""
    loop = asyncio.get_running_loop()
    attempt = dead = 0
    while True:
        try:
            return await call(host)
        except HostLost as error:
            failures[index] = str(error)
            dead = dead + 1 if error.details.get("dead") else 0
            if dead >= LOST_FOR_GOOD or loop.time() >= deadline:
                raise
        await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
        attempt += 1

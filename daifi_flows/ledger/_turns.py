"""Turns at signing: one at a time for an account, over all threads and event loops of a process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

__all__ = ["Turn", "turn_of"]

_LOOK_S: Final = 0.25
"""How often a waiter looks by itself, should the wake-up have gone to a loop that died."""


class Turn:
    """A lock over all threads and event loops of this process; blocks none of them.

    A waiter is only told that it may try: it owns nothing before it resumes, so one that is
    cancelled, or whose loop is gone, never leaves the lock held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = deque()

    async def __aenter__(self) -> None:
        if not self._waiting and self._lock.acquire(blocking=False):
            return
        woken = asyncio.Event()
        me = (asyncio.get_running_loop(), woken)
        self._waiting.append(me)
        try:
            # In the queue first, then try: whoever holds the lock now wakes the queue afterwards.
            while not self._lock.acquire(blocking=False):
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await woken.wait()
                if woken.is_set():
                    woken.clear()
                    self._waiting.appendleft(me)  # a newcomer may have been faster: stay first
        except BaseException:
            self._leave(me)
            if not self._lock.locked():
                self._wake()  # the wake-up that came to this waiter was meant for the next
            raise
        self._leave(me)

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        self._wake()

    def _leave(self, me: tuple[asyncio.AbstractEventLoop, asyncio.Event]) -> None:
        with suppress(ValueError, IndexError):
            self._waiting.remove(me)

    def _wake(self) -> None:
        while self._waiting:
            try:
                loop, woken = self._waiting.popleft()
                loop.call_soon_threadsafe(woken.set)
            except (IndexError, RuntimeError):
                continue  # another thread took the last one; or that loop is closed
            return


_turns: WeakValueDictionary[tuple[int, bytes, str], Turn] = WeakValueDictionary()
_turns_guard: Final = threading.Lock()


def turn_of(ledger_id: bytes, address: str) -> Turn:
    """The one lock for an account's nonces on a ledger in this process (not its parent's)."""
    key = (os.getpid(), ledger_id, address)
    with _turns_guard:
        turn = _turns.get(key)
        if turn is None:
            turn = _turns[key] = Turn()
        return turn

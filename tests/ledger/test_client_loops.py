"""One account, many threads and event loops: every call succeeds, and no nonce is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ledger_kit import BUYER, DAI, GENESIS, STRANGER, T0, SeatsHere, make_spec

from daifi_flows.cnft import Receipt
from daifi_flows.encoding import keccak256
from daifi_flows.errors import LedgerUnavailable, TransactionRefused
from daifi_flows.ledger import LedgerClient, LedgerService, Params
from daifi_flows.ledger._turns import Turn, turn_of
from daifi_flows.ledger._tx import parse_transaction
from daifi_flows.ledger._tx.money import Transfer


class Far:
    """A port to a service on another thread's loop, a millisecond away each way."""

    def __init__(self, service: LedgerService, home: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._home = home
        self.latency_s = 0.001

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: object) -> Any:
            await asyncio.sleep(self.latency_s)
            work = getattr(self._service, method)(*args)
            answer = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._home))
            await asyncio.sleep(self.latency_s)
            return answer

        return call


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    home = asyncio.new_event_loop()
    thread = threading.Thread(target=home.run_forever, daemon=True)
    thread.start()

    def there(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, home).result(30)

    service = LedgerService(
        tmp_path / "ledger.db", GENESIS, SeatsHere(GENESIS), clock=lambda: T0 + 1
    )
    there(service.start())
    try:
        yield Far(service, home)
    finally:
        there(service.close())
        home.call_soon_threadsafe(home.stop)
        thread.join(10)
        home.close()


def in_threads(count: int, work: Callable[[int], Awaitable[Receipt]]) -> list[Receipt]:
    """``work(0)``, ``work(1)`` … at once, each on its own thread and its own event loop."""
    start = threading.Barrier(count)

    def one(number: int) -> Receipt:
        async def run() -> Receipt:
            return await work(number)

        start.wait()
        return asyncio.run(run())

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def nonces(service: LedgerService) -> list[int]:
    """What the buyer used, in the order of the blocks."""
    rows = service._store.rows(1, 10**6)
    txs = [parse_transaction(raw) for row in rows for raw in row.block.transactions]
    return [tx.nonce for tx in txs if tx.sender == BUYER.address]


@pytest.mark.parametrize("what", ["transfer", "open"])
def test_a_hundred_loops_share_one_account(far: Far, what: str) -> None:
    ledger = LedgerClient(far, GENESIS.ledger_id)
    asked: list[int] = []
    ask = far._service.enqueue

    async def enqueue(raw: bytes) -> bytes:
        asked.append(parse_transaction(raw).nonce)
        return await ask(raw)

    far._service.enqueue = enqueue

    async def work(number: int) -> Receipt:
        if what == "transfer":
            return await ledger.transfer(STRANGER.address, 1, BUYER)
        return await ledger.open_escrow(make_spec(number, max_price_wei=DAI), BUYER)

    receipts = in_threads(100, work)
    assert len({receipt.leaf.tx for receipt in receipts}) == 100
    assert nonces(far._service) == list(range(100))
    assert asked == list(range(100)), "none was signed twice"


def test_loops_that_ask_for_the_same_thing_pay_once(far: Far) -> None:
    ledger = LedgerClient(far, GENESIS.ledger_id)
    spec = make_spec(7)
    receipts = in_threads(20, lambda _: ledger.open_escrow(spec, BUYER))
    assert len({receipt.leaf.tx for receipt in receipts}) == 1
    assert nonces(far._service) == [0]


def test_clients_with_no_common_lock_still_all_succeed(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many processes with one key would: each call has a lock of its own."""
    monkeypatch.setattr("daifi_flows.ledger._sending.turn_of", lambda *_: Turn())
    ledger = LedgerClient(far, GENESIS.ledger_id)
    in_threads(60, lambda _: ledger.transfer(STRANGER.address, 1, BUYER))
    assert nonces(far._service) == list(range(60))


class Refuses:
    """A port whose every nonce is taken by somebody else first."""

    def __init__(self) -> None:
        self.asked = 0

    async def next_nonce(self, _: str) -> int:
        return 0

    async def params(self) -> Params:
        return Params()

    async def enqueue(self, _: bytes) -> bytes:
        self.asked += 1
        raise TransactionRefused("somebody was faster", code="bad-nonce")


async def test_patience_ends() -> None:
    port = Refuses()
    ledger = LedgerClient(port, keccak256(b"refuses"), patience_s=0.3)  # pyright: ignore
    with pytest.raises(TransactionRefused) as refused:
        await asyncio.wait_for(ledger.transfer(STRANGER.address, 1, BUYER), 10)
    assert refused.value.details["code"] == "bad-nonce"
    assert 3 < port.asked < 100


async def test_an_unknown_thing_is_refused_at_once() -> None:
    class Unknown(Refuses):
        async def enqueue(self, _: bytes) -> bytes:
            self.asked += 1
            raise TransactionRefused("no such node", code="unknown")

    port = Unknown()
    ledger = LedgerClient(port, keccak256(b"unknown"))  # pyright: ignore
    with pytest.raises(TransactionRefused):
        await ledger.transfer(STRANGER.address, 1, BUYER)
    assert port.asked == 1


async def test_what_a_restart_lost_is_sent_again() -> None:
    class Forgets(Refuses):
        async def enqueue(self, raw: bytes) -> bytes:
            assert isinstance(parse_transaction(raw), Transfer)
            self.asked += 1
            return bytes(32)

        async def wait(self, _: bytes) -> str:
            if self.asked < 3:
                raise TransactionRefused("not known here", code="unknown")
            if self.asked == 3:
                self.asked += 1
                raise LedgerUnavailable("no quorum yet")
            return "receipt"

    port = Forgets()
    ledger = LedgerClient(port, keccak256(b"forgets"))  # pyright: ignore
    assert await ledger.transfer(STRANGER.address, 1, BUYER) == "receipt"
    assert port.asked == 4


# The lock itself


def test_one_lock_for_an_account_of_a_ledger() -> None:
    one = turn_of(b"ledger", "a")
    assert turn_of(b"ledger", "a") is one
    assert turn_of(b"ledger", "b") is not one and turn_of(b"other", "a") is not one


async def test_a_cancelled_waiter_leaves_the_lock_free() -> None:
    turn = Turn()
    order: list[int] = []

    async def take(number: int) -> None:
        async with turn:
            order.append(number)

    async with turn:
        waiting = [asyncio.create_task(take(i)) for i in range(4)]
        await asyncio.sleep(0.01)
        waiting[1].cancel()
        await asyncio.sleep(0.01)
    # The first was just woken and has not run: its turn must pass to the third.
    waiting[0].cancel()
    async with asyncio.timeout(0.2):  # sooner than a waiter looks by itself
        done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in done] == [True, True, False, False]
    assert order == [2, 3]
    assert not turn._lock.locked() and not turn._waiting


async def test_a_cancelled_holder_releases(far: Far) -> None:
    ledger = LedgerClient(far, GENESIS.ledger_id)
    far.latency_s = 0.05
    holder = asyncio.create_task(ledger.transfer(STRANGER.address, 1, BUYER))
    await asyncio.sleep(0.02)
    assert turn_of(GENESIS.ledger_id, BUYER.address)._lock.locked()
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    assert holder.cancelled()
    far.latency_s = 0.001
    await asyncio.wait_for(ledger.transfer(STRANGER.address, 1, BUYER), 10)


def test_calls_cancelled_on_many_loops_leave_the_rest_unharmed(far: Far) -> None:
    """Cancelled before, in and after their turn, every other one of sixty."""
    ledger = LedgerClient(far, GENESIS.ledger_id, patience_s=20)

    async def work(number: int) -> Any:
        call = asyncio.create_task(ledger.transfer(STRANGER.address, 1, BUYER))
        if number % 2:
            await asyncio.sleep(number * 0.003)
            call.cancel()
        (answer,) = await asyncio.gather(call, return_exceptions=True)
        return answer

    answers = in_threads(60, work)
    assert all(isinstance(answer, Receipt) for answer in answers[::2])
    assert any(isinstance(answer, asyncio.CancelledError) for answer in answers[1::2])
    assert not turn_of(GENESIS.ledger_id, BUYER.address)._lock.locked()
    used = nonces(far._service)
    assert used == list(range(len(used))) and len(used) >= 30


async def test_a_loop_that_died_while_it_waited_or_held_is_passed_over() -> None:
    turn = Turn()

    async def take() -> None:
        async with turn:
            await asyncio.sleep(3600)

    def dead_loop() -> None:
        """Runs until its task waits, then closes with the task unfinished."""
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # "task was destroyed", on purpose
        task = loop.create_task(take())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        assert not task.done()

    async with turn:
        await asyncio.to_thread(dead_loop)
    async with asyncio.timeout(5), turn:
        pass
    await asyncio.to_thread(dead_loop)  # this one held it
    gc.collect()
    async with asyncio.timeout(5), turn:
        pass

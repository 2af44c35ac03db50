"""The ledger as a real Ray actor, killed while callers wait for it."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import ledger_kinds as t
import pytest
import ray
from ledger_kit import (
    BUYER,
    DAI,
    GENESIS,
    NODE,
    PROOF_CID,
    STRANGER,
    attest,
    info_of,
    make_header,
    make_spec,
)

from daifi_flows.cnft import Receipt
from daifi_flows.errors import (
    InsufficientFunds,
    LedgerCorrupted,
    LedgerUnavailable,
    TransactionRefused,
)
from daifi_flows.ledger import (
    Follower,
    LedgerService,
    RayLedger,
    Settlement,
    audit,
    verify_state,
)
from daifi_flows.ledger._state import account_key
from daifi_flows.ledger.actor import MAX_WAITS

pytestmark = pytest.mark.slow
DEADLINE_MS = time.time_ns() // 1_000_000 + 3_600_000
"""The actor has the real clock."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A small Ray on this machine, unless one is running already."""
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


def seats():
    """A certifier that reaches its seats from inside the actor's own process.

    Made in a function so that it is pickled by value: workers cannot import tests.
    """
    folder = str(Path(__file__).parent)

    class Seats:
        here = None

        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)
            if self.here is None:
                import sys

                sys.path.insert(0, folder)
                from ledger_kit import GENESIS, SeatsHere

                self.here = SeatsHere(GENESIS)
            return getattr(self.here, name)

    return Seats()


def stalled():
    """A certifier whose seats never answer."""

    class Silent:
        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)

            async def never(*_):
                import asyncio

                await asyncio.Event().wait()

            return never

    return Silent()


def payment(wei: int) -> bytes:
    tx = t.Transfer(sender=BUYER.address, nonce=0, to=STRANGER.address, amount_wei=wei)
    return tx.signed(BUYER, GENESIS.ledger_id).encode()


async def settle_one(ledger: Settlement, number: int) -> Receipt:
    spec = make_spec(number, deadline_ms=DEADLINE_MS)
    await ledger.open_escrow(spec, BUYER)
    await ledger.assign(spec.task_id, NODE.address, 2 * DAI, BUYER)
    await ledger.commit(spec.task_id, make_header(spec), PROOF_CID, BUYER)
    return await ledger.settle(attest(spec), bytes(32), BUYER)


@pytest.fixture
async def ledger(cluster: None, tmp_path: Path):
    ledger = RayLedger.start(
        tmp_path / "ledger.db",
        GENESIS,
        seats(),
        name=f"ledger-{uuid.uuid4().hex}",
        namespace="ledger-tests",
    )
    yield ledger
    await ledger.close()


async def test_an_actor_killed_in_mid_flight_loses_and_repeats_nothing(
    ledger: RayLedger, tmp_path: Path
) -> None:
    assert isinstance(ledger, Settlement)
    await asyncio.gather(ledger.register(info_of(NODE), NODE), ledger.stake(10 * DAI, NODE))
    work: list[asyncio.Task[Receipt]] = []
    gifts: list[asyncio.Task[Receipt]] = []
    killed: set[int] = set()
    for turn in range(2):
        work += [asyncio.create_task(settle_one(ledger, 4 * turn + i)) for i in range(4)]
        gifts += [asyncio.create_task(ledger.transfer(STRANGER.address, 1, NODE)) for _ in range(4)]
        await asyncio.sleep(0.02)
        health = await ledger.health()
        assert not all(task.done() for task in work)
        killed.add(health.pid)
        os.kill(health.pid, signal.SIGKILL)
    receipts = await asyncio.gather(*work)
    await asyncio.gather(*gifts)
    assert len(killed) == 2 and (await ledger.health()).pid not in killed
    assert len({receipt.leaf.token_id for receipt in receipts}) == 8
    assert await settle_one(ledger, 0) == receipts[0]
    assert (await ledger.account(STRANGER.address)).balance_wei == 8
    supply = await ledger.supply()
    assert supply.conserved and supply.treasury_wei == 8 * 2 * DAI // 20
    metrics = await ledger.metrics()
    assert metrics["pending_transactions"] == 0 and metrics["height"] > 0
    blocks = await ledger.history(1)
    assert len(blocks) == metrics["height"]
    proof = await ledger.prove(receipts[0].leaf.tx)
    proof.verify(GENESIS.committee)
    entry = await ledger.prove_entry(account_key(STRANGER.address))
    assert verify_state(
        entry.header.state_root, account_key(STRANGER.address), entry.value, entry.proof
    )
    follower = Follower(tmp_path / "copy.db", GENESIS, ledger, poll_s=0.05)
    await follower.start()
    await follower.reach(metrics["height"])
    assert await follower.supply() == await ledger.supply()
    await follower.close()
    report = audit(tmp_path / "ledger.db")
    assert report.tasks == {"settled": 8} and report.supply == supply


async def test_refusals_cross_ray_with_their_type_and_details(ledger: RayLedger) -> None:
    with pytest.raises(InsufficientFunds) as refused:
        await ledger.transfer(BUYER.address, 5, STRANGER)
    assert type(refused.value) is InsufficientFunds
    assert refused.value.details == {
        "code": "insufficient-funds",
        "balance_wei": 0,
        "needed_wei": 5,
    }
    with pytest.raises(TransactionRefused, match="never opened"):
        await ledger.cancel(bytes(32), BUYER)
    assert (await ledger.head())[0].height == 0
    assert await ledger.committee() == GENESIS.committee


async def test_a_second_client_finds_the_actor_by_name(cluster: None, tmp_path: Path) -> None:
    name = f"ledger-{uuid.uuid4().hex}"
    options = {"name": name, "namespace": "ledger-tests"}
    first = RayLedger.start(tmp_path / "a.db", GENESIS, seats(), **options)
    await first.transfer(STRANGER.address, 3, BUYER)
    second = pickle.loads(
        pickle.dumps(RayLedger.connect(name, GENESIS.ledger_id, namespace="ledger-tests"))
    )
    assert (await second.account(STRANGER.address)).balance_wei == 3
    with pytest.raises(LedgerUnavailable, match="already running"):
        RayLedger.start(tmp_path / "b.db", GENESIS, seats(), **options)
    await first.close()
    with pytest.raises(LedgerUnavailable):
        RayLedger.connect("no-such-ledger", GENESIS.ledger_id, namespace="ledger-tests")


async def test_a_damaged_file_is_the_callers_error_not_a_restart_loop(
    cluster: None, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"garbage " * 1000)
    ledger = RayLedger.start(path, GENESIS, seats())
    for _ in range(2):
        with pytest.raises(LedgerCorrupted, match="backup"):
            await ledger.head()
    await ledger.close()
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        await RayLedger(ledger.handle, GENESIS.ledger_id, patience_s=0).head()


async def test_reads_are_answered_however_many_wait(cluster: None, tmp_path: Path) -> None:
    ledger = RayLedger.start(tmp_path / "ledger.db", GENESIS, stalled())
    port = ledger._ray_port
    tx = await port.enqueue(payment(1))
    too_many = 50
    waits = [asyncio.create_task(port.wait(tx)) for _ in range(MAX_WAITS + too_many)]
    done, waiting = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for refused in done:
        error = refused.exception()
        assert type(error) is LedgerUnavailable and error.details["waiting"] == MAX_WAITS
        assert error.details["retry_after_ms"] > 0
    assert (await ledger.health()).pending == 1
    assert (await ledger.account(STRANGER.address)).balance_wei == 0
    assert await port.enqueue(payment(1)) == tx, "a transaction is still taken"
    assert len([wait for wait in waiting if not wait.done()]) > MAX_WAITS // 2
    await ledger.handle.close.remote()
    errors = await asyncio.gather(*waits, return_exceptions=True)
    assert {type(error) for error in errors} == {LedgerUnavailable}
    assert len([error for error in errors if "waiting" in error.details]) >= too_many  # pyright: ignore
    await ledger.close()


async def test_a_closed_actor_does_not_open_the_file_again(
    ledger: RayLedger, tmp_path: Path
) -> None:
    receipt = await ledger.transfer(STRANGER.address, 3, BUYER)
    port = ledger._ray_port
    await ledger.handle.close.remote()
    for call in (port.health(), port.wait(receipt.leaf.tx), port.enqueue(payment(1))):
        with pytest.raises(LedgerUnavailable, match="closed") as refused:
            await call
        assert refused.value.details["stopped"]
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.transfer(STRANGER.address, 1, BUYER)
    heir = LedgerService(tmp_path / "ledger.db", GENESIS, seats())
    await heir.start()  # refused while another process has the file open
    assert (await heir.account(STRANGER.address)).balance_wei == 3
    await heir.close()


async def test_a_ledger_closed_before_its_first_call_makes_no_file(
    cluster: None, tmp_path: Path
) -> None:
    ledger = RayLedger.start(tmp_path / "ledger.db", GENESIS, seats())
    await ledger.handle.close.remote()
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.health()
    assert not (tmp_path / "ledger.db").exists()
    await ledger.close()

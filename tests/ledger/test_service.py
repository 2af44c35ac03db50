"""The running ledger: blocks, certificates, the file, restarts, damage, and stalls."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_kit import (
    BUILDER,
    BUYER,
    COMMITTEE,
    DAI,
    GENESIS,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    T0,
    SeatsHere,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
    reseal,
)

from daifi_flows.cnft import BlockHeader, Decision, Receipt, token_id_of
from daifi_flows.encoding import keccak256
from daifi_flows.errors import (
    InsufficientFunds,
    LedgerCorrupted,
    LedgerError,
    LedgerUnavailable,
    OutOfSync,
    TransactionRefused,
)
from daifi_flows.ledger import (
    LedgerClient,
    LedgerService,
    Replica,
    Settlement,
    TaskState,
    audit,
)
from daifi_flows.ledger._blocks import Block, certificate_valid
from daifi_flows.ledger._store import Store
from daifi_flows.ledger._store_schema import certificate_check
from daifi_flows.ledger._trie import Trie
from daifi_flows.merkle import verify_merkle

META = keccak256(b"metadata")


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = T0 + 1

    def __call__(self) -> int:
        return self.now


@asynccontextmanager
async def running(
    path: Path, certifier: object = None, clock: Callable[[], int] | None = None, **options: float
) -> AsyncIterator[tuple[LedgerClient, LedgerService]]:
    service = LedgerService(
        path,
        GENESIS,
        certifier or SeatsHere(GENESIS),  # pyright: ignore
        clock=clock or Clock(),
        builder=BUILDER,
        **options,  # pyright: ignore
    )
    await service.start()
    try:
        yield LedgerClient(service, GENESIS.ledger_id, patience_s=10), service
    finally:
        await service.close(grace_s=0.2)


async def settle_one(ledger: Settlement, number: int = 0, **changes: object) -> Receipt:
    """A task from open to settled; every call repeated, as a restarted caller would."""
    spec = make_spec(number, **changes)
    task = spec.task_id
    header = make_header(spec)
    for call in (
        lambda: ledger.open_escrow(spec, BUYER),
        lambda: ledger.assign(task, NODE.address, 2 * DAI, BUYER),
        lambda: ledger.commit(task, header, PROOF_CID, NODE),
    ):
        first = await call()
        assert await call() == first
    return await ledger.settle(attest(spec), META, BUYER)


async def with_node(ledger: Settlement) -> None:
    await asyncio.gather(ledger.register(info_of(NODE), NODE), ledger.stake(100 * DAI, NODE))


def check_receipt(receipt: Receipt) -> None:
    """What a bundle's verifier checks."""
    leaf = receipt.leaf.canonical()
    assert verify_merkle(
        receipt.header.receipt_root, leaf, receipt.index, receipt.size, receipt.path
    )
    assert certificate_valid(COMMITTEE, receipt.header.digest, receipt.certificate)
    assert receipt.header.ledger_id == GENESIS.ledger_id


async def test_a_task_settles_and_every_call_is_idempotent(tmp_path: Path) -> None:
    async with running(tmp_path / "ledger.db") as (ledger, _):
        assert isinstance(ledger, Settlement)
        await with_node(ledger)
        receipt = await settle_one(ledger)
        check_receipt(receipt)
        spec = make_spec(0)
        supply = await ledger.supply()
        # Another aggregation of the same finding is the same finding.
        assert await ledger.settle(attest(spec, signers=range(7, 21)), META, BUYER) == receipt
        assert await ledger.open_escrow(spec, BUYER)
        assert await ledger.supply() == supply
        with pytest.raises(TransactionRefused) as refused:
            await ledger.settle(attest(spec), bytes(32), BUYER)
        assert refused.value.details["code"] == "duplicate"

        finding, again = await ledger.attestation_receipt(spec.task_id)
        assert finding == attest(spec) and again == receipt
        token = await ledger.token(token_id_of(spec.task_id))
        assert token is not None and token.owner == BUYER.address
        effect = await ledger.effect(token.token_id, META, BUYER)
        check_receipt(effect)
        assert await ledger.effect(token.token_id, META, BUYER) == effect
        with pytest.raises(TransactionRefused):
            await ledger.effect(token.token_id, bytes(32), BUYER)
        assert [node.address for node in await ledger.nodes()] == [NODE.address]
        assert await ledger.committee() == COMMITTEE
        assert (await ledger.supply()).conserved


async def test_a_rejected_step_is_rerouted_and_its_calls_are_idempotent(tmp_path: Path) -> None:
    async with running(tmp_path / "ledger.db") as (ledger, _):
        await with_node(ledger)
        await asyncio.gather(ledger.register(info_of(OTHER), OTHER), ledger.stake(DAI, OTHER))
        spec = make_spec()
        task = spec.task_id
        await ledger.open_escrow(spec, BUYER)
        await ledger.assign(task, NODE.address, 2 * DAI, BUYER)
        await ledger.commit(task, make_header(spec), PROOF_CID, BUYER)
        finding = attest(spec, Decision.REJECTED)
        slashed = await ledger.reject(finding, BUYER)
        assert await ledger.reject(finding, BUYER) == slashed
        assert (await ledger.account(NODE.address)).stake_wei == 75 * DAI
        await ledger.assign(task, OTHER.address, DAI, BUYER)
        released = await ledger.release(task, BUYER)
        assert await ledger.release(task, BUYER) == released
        assert (await ledger.task(task)).attempt == 2  # pyright: ignore
        cancelled = await ledger.cancel(task, BUYER)
        assert await ledger.cancel(task, BUYER) == cancelled
        assert (await ledger.task(task)).state is TaskState.CANCELLED  # pyright: ignore


async def test_many_callers_share_blocks(tmp_path: Path) -> None:
    certifier = SeatsHere(GENESIS)
    path = tmp_path / "ledger.db"
    async with running(path, certifier) as (ledger, service):
        await with_node(ledger)
        parent = await settle_one(ledger)
        parents = (parent.leaf.token_id,)
        receipts = await asyncio.gather(
            *(settle_one(ledger, i, parents=parents) for i in range(1, 25))
        )
        for receipt in receipts:
            check_receipt(receipt)
        height = (await service.health()).height
        assert height < 40, "24 concurrent tasks of 4 transactions each need few blocks"
    report = audit(path)
    assert report.height == height and report.tasks == {"settled": 25}
    assert report.supply.conserved and report.journaled is None
    assert report.jsonable()["supply_conserved"] is True


async def test_two_clients_may_sign_for_one_account(tmp_path: Path) -> None:
    async with running(tmp_path / "ledger.db") as (one, service):
        two = LedgerClient(service, GENESIS.ledger_id)
        await asyncio.gather(*(c.transfer(STRANGER.address, 1, BUYER) for c in (one, two) * 10))
        assert (await one.account(STRANGER.address)).balance_wei == 20


async def test_refusals_are_immediate_and_change_nothing(tmp_path: Path) -> None:
    class Never:
        async def certify(self, *_: object) -> Sequence[tuple[int, bytes]]:
            raise AssertionError("nothing to certify")

    async with running(tmp_path / "ledger.db", Never()) as (ledger, service):
        with pytest.raises(InsufficientFunds):
            await ledger.transfer(BUYER.address, 1, STRANGER)
        for raw in (b"", b"junk", b"\xa0", bytes(100_000)):
            with pytest.raises(TransactionRefused):
                await service.submit(raw)
        with pytest.raises(TransactionRefused, match="never opened"):
            await ledger.release(META, BUYER)
        assert await service.health() == (await service.health())._replace(pending=0, height=0)


async def test_a_restart_is_exactly_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with running(path) as (ledger, service):
        await with_node(ledger)
        receipt = await settle_one(ledger)
        head, entries = await ledger.head(), await service.entries()
    async with running(path) as (ledger, service):
        assert await ledger.head() == head and await service.entries() == entries
        assert await ledger.settle(attest(make_spec(0)), META, BUYER) == receipt
        await ledger.transfer(STRANGER.address, 1, BUYER)
    assert audit(path).height == head[0].height + 1


async def test_a_fresh_ledger_restarts_and_audits(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for _ in range(2):
        async with running(path) as (ledger, _):
            assert (await ledger.head())[0].height == 0
    assert audit(path).height == 0


# Certification


class Flaky(SeatsHere):
    """Too few seats, garbage, and exceptions, until ``heal``."""

    healed = False

    async def certify(self, header, block, history):  # pyright: ignore
        good = await super().certify(header, block, history)
        if self.healed:
            # Garbage beside a quorum does not hurt.
            one = good[0][1]
            bad = [(15, bytes(96), b""), (16, one, one), (99, one, one), (-1, b"", b"")]
            return [*good[:15], *bad]
        turn = len(self.asked) % 3
        if turn == 0:
            raise RuntimeError("a seat host died")
        return good[:13] if turn == 1 else [*good[:13], (13, *good[0][1:])]


async def test_a_stalled_block_waits_for_its_quorum_and_reads_go_on(tmp_path: Path) -> None:
    certifier = Flaky(GENESIS)
    path = tmp_path / "ledger.db"
    async with running(path, certifier, wait_timeout_s=0.5) as (ledger, service):
        sending = asyncio.create_task(ledger.transfer(STRANGER.address, 5, BUYER))
        while len(certifier.asked) < 4:
            await asyncio.sleep(0.02)
        assert (await ledger.account(STRANGER.address)).balance_wei == 0
        health = await service.health()
        assert health.pending == 1 and health.stalled_reason
        tx = next(iter(service._waiters))
        with pytest.raises(LedgerUnavailable, match="may still become final"):
            await service.wait(tx)
        certifier.healed = True
        receipt = await sending
        assert receipt.certificate.signers == (1 << 15) - 1
        assert (await ledger.account(STRANGER.address)).balance_wei == 5
        assert set(certifier.asked) == {1}


async def test_a_damaged_entry_leaves_no_empty_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No seat would sign it, and nothing after it could become final."""
    held = asyncio.Event()

    class Held(SeatsHere):
        async def certify(self, *args: Any) -> Any:
            await held.wait()
            return await super().certify(*args)

    def damaged(*_: object, **__: object) -> None:
        raise LedgerCorrupted("damaged")

    async with running(tmp_path / "a.db", Held(GENESIS)) as (ledger, service):
        first = asyncio.create_task(ledger.transfer(STRANGER.address, 1, BUYER))
        while not service._chain.pending or not service._chain.pending[0].proposal:
            await asyncio.sleep(0.01)
        with monkeypatch.context() as patch:
            patch.setattr(service._chain.machine, "execute", damaged)
            with pytest.raises(LedgerCorrupted):
                await ledger.transfer(STRANGER.address, 2, NODE)
        held.set()
        await first
        assert not service._chain.pending
        await ledger.transfer(STRANGER.address, 1, BUYER)


async def test_an_uncertified_block_is_proposed_again_in_a_new_term(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    seen: list[bytes] = []

    class Spy(SeatsHere):
        async def certify(self, header: BlockHeader, block, history):  # pyright: ignore
            seen.append(block)
            partials = await super().certify(header, block, history)
            return partials if len(seen) != 2 else (await asyncio.sleep(3600), [])[1]

    async with running(path, Spy(GENESIS)) as (ledger, service):
        await ledger.transfer(STRANGER.address, 1, BUYER)
        sending = asyncio.create_task(ledger.transfer(STRANGER.address, 2, BUYER))
        while len(seen) < 2:
            await asyncio.sleep(0.01)
        queued = asyncio.create_task(ledger.transfer(STRANGER.address, 4, NODE))
        await asyncio.sleep(0.05)
        assert (await service.health()).pending == 2
    for lost in (sending, queued):
        with pytest.raises(LedgerUnavailable):
            await lost
    assert audit(path).journaled == 2
    clock = Clock()
    clock.now += 1_000_000
    async with running(path, Spy(GENESIS), clock) as (ledger, service):
        # The journaled transfer becomes final by itself; the one never journaled is gone.
        while (await ledger.account(STRANGER.address)).balance_wei != 3:
            await asyncio.sleep(0.01)
        assert (await service.health()).height == 2
    again, first = (Block.from_canonical(each) for each in (seen[2], seen[1]))
    assert again.model_copy(update={"term": first.term}) == first and again.term > first.term
    assert audit(path).journaled is None


async def test_time_passes_for_a_block_that_waits(tmp_path: Path) -> None:
    clock, gate = Clock(), asyncio.Event()

    class Gated(SeatsHere):
        async def certify(self, header: BlockHeader, block, history):  # pyright: ignore
            await gate.wait()
            return await super().certify(header, block, history)

    async with running(tmp_path / "ledger.db", Gated(GENESIS), clock) as (ledger, _):
        spec = make_spec()
        calls = [asyncio.create_task(ledger.open_escrow(spec, BUYER))]
        await asyncio.sleep(0.05)
        calls.append(asyncio.create_task(ledger.transfer(STRANGER.address, 1, NODE)))
        await asyncio.sleep(0.05)
        clock.now = spec.deadline_ms
        calls.append(asyncio.create_task(ledger.expire(spec.task_id, STRANGER)))
        await asyncio.sleep(0.05)
        gate.set()
        opened, moved, expired = await asyncio.gather(*calls)
        heights = [r.header.height for r in (opened, moved, expired)]
        assert heights == [1, 2, 3] and expired.header.timestamp_ms == spec.deadline_ms


# Validators


async def proposals(path: Path, count: int) -> tuple[list[bytes], Sequence[bytes]]:
    """Blocks as proposed and as certified."""
    seen: list[bytes] = []

    class Spy(SeatsHere):
        async def certify(self, header: BlockHeader, block, history):  # pyright: ignore
            seen.append(block)
            return await super().certify(header, block, history)

    async with running(path, Spy(GENESIS)) as (ledger, service):
        for _ in range(count):
            await ledger.transfer(STRANGER.address, 1, BUYER)
        return seen, await service.history(1)


async def test_a_replica_follows_proposals_and_catches_up(tmp_path: Path) -> None:
    blocks, certified = await proposals(tmp_path / "ledger.db", 4)
    follower, late = Replica(GENESIS), Replica(GENESIS)
    for block in blocks:
        digest = follower.check(block)
        assert digest == Block.from_canonical(block).header.digest == follower.check(block)
    assert follower.height == 3
    with pytest.raises(OutOfSync) as behind:
        late.check(blocks[3])
    assert behind.value.details["from_height"] == 1
    with pytest.raises(OutOfSync):
        late.catch_up(certified[1:])
    late.catch_up(certified[:3])
    late.catch_up(certified[:2])
    assert late.check(blocks[3]) == follower.check(blocks[3])
    assert late.check(blocks[0]) == Block.from_canonical(blocks[0]).header.digest
    assert late.fingerprint == follower.fingerprint
    late.catch_up(certified)
    assert late.height == 4


async def test_a_replica_signs_one_block_a_height(tmp_path: Path) -> None:
    (honest,), _ = await proposals(tmp_path / "a.db", 1)
    clock = Clock()
    clock.now += 5
    seen: list[bytes] = []

    class Spy(SeatsHere):
        async def certify(self, header: BlockHeader, block, history):  # pyright: ignore
            seen.append(block)
            return await super().certify(header, block, history)

    async with running(tmp_path / "b.db", Spy(GENESIS), clock) as (ledger, service):
        await ledger.transfer(STRANGER.address, 1, BUYER)
        other = await service.history(1)
    replica = Replica(GENESIS)
    replica.check(honest)
    with pytest.raises(LedgerError, match="signed already"):
        replica.check(seen[0])
    # What a quorum certified is final, whatever this seat signed before.
    replica.catch_up(other)
    assert replica.height == 1
    with pytest.raises(LedgerError, match="conflicts"):
        replica.check(honest)


async def test_a_replica_refuses_blocks_that_break_rules(tmp_path: Path) -> None:
    blocks, certified = await proposals(tmp_path / "ledger.db", 1)
    block = Block.from_canonical(blocks[0])

    def changed(**header: object) -> bytes:
        return reseal(block, **header).canonical()

    for wrong in (
        changed(state_root=META),
        changed(receipt_root=META),
        changed(tx_root=META),
        changed(parent=META),
        changed(ledger_id=META),
        changed(proposer=BUYER.address),
        changed(builder=BUYER.address),
        changed(beacon=META),
        changed(round=1),
        changed(height=2),
        changed(history_root=META),
        changed(epoch=2),
        changed(committee=META),
        changed(timestamp_ms=T0 - 1),
        block.model_copy(update={"transactions": ()}).canonical(),
        block.model_copy(update={"transactions": block.transactions * 2}).canonical(),
        block.model_copy(update={"transactions": (b"junk",)}).canonical(),
        b"junk",
    ):
        replica = Replica(GENESIS)
        with pytest.raises(LedgerError):
            replica.check(wrong)
        assert replica.check(blocks[0]) == block.header.digest  # and it goes on
    with pytest.raises(LedgerError, match="future"):
        Replica(GENESIS, clock=lambda: T0 - 120_000).check(blocks[0])
    with pytest.raises(LedgerError):
        Replica(make_genesis(salt=META)).check(blocks[0])
    forged = certified[0].replace(b"signers", b"signerz")
    for bad in (forged, b"", certified[0][:-1]):
        with pytest.raises(LedgerError):
            Replica(GENESIS).catch_up([bad])


@given(data=st.binary(max_size=200))
def test_a_replica_survives_any_bytes(data: bytes) -> None:
    with pytest.raises(LedgerError):
        REPLICA.check(data)
    with pytest.raises(LedgerError):
        REPLICA.catch_up([data])


REPLICA = Replica(GENESIS)


@given(
    entries=st.dictionaries(st.binary(max_size=4), st.binary(max_size=4), max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_the_state_root_does_not_depend_on_order(
    entries: dict[bytes, bytes], order: random.Random
) -> None:
    shuffled = list(entries.items())
    order.shuffle(shuffled)
    trie = Trie()
    for key, value in shuffled:
        trie = trie.update({key: b"before" + value}).update({key: value})
    assert trie.root == Trie().update(entries).root
    for key in entries:
        assert trie.update({key: b"changed"}).root != trie.root


# The file


@pytest.fixture
async def closed(tmp_path: Path) -> Path:
    """A ledger with a few blocks, closed, everything in its one file."""
    path = tmp_path / "ledger.db"
    async with running(path) as (ledger, _):
        await with_node(ledger)
        await settle_one(ledger)
    assert not path.with_name("ledger.db-wal").exists()
    return path


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE certificates SET certificate = x'00' WHERE height = 5", "at height 5"),
        ("DELETE FROM certificates WHERE height = 5", "its last block is not its head"),
        ("DELETE FROM blocks WHERE height = 5", ""),
        ("DELETE FROM blocks", ""),
        ("UPDATE blocks SET link = x'00' WHERE height = 5", "at height 5"),
        ("DELETE FROM buckets WHERE bucket = (SELECT min(bucket) FROM buckets)", "does not match"),
        ("UPDATE buckets SET hash = zeroblob(32)", "does not match"),
        ("UPDATE buckets SET kind = 7", "out of range"),
        ("DELETE FROM history", "history"),
        ("UPDATE meta SET value = x'a0' WHERE key = 'genesis'", "checksum"),
        ("UPDATE meta SET value = x'a0' WHERE key = 'head'", "checksum"),
        ("DELETE FROM meta WHERE key = 'head'", ""),
        ("DELETE FROM meta", "which ledger"),
        ("DROP TABLE state", ""),
        ("DROP TABLE buckets", ""),
    ],
)
async def test_damage_at_the_head_is_named_at_once(closed: Path, statement: str, why: str) -> None:
    _damage(closed, statement)
    for use in (lambda: audit(closed), lambda: _open(closed)):
        with pytest.raises(LedgerCorrupted) as damaged:
            result = use()
            if asyncio.iscoroutine(result):
                await result
                await _read_all(closed)
        assert "\n" not in str(damaged.value) and "backup" in str(damaged.value)
    assert why in str(damaged.value)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE blocks SET block = block || x'00' WHERE height = 3", "at height 3"),
        ("UPDATE certificates SET certificate = x'00' WHERE height = 2", "at height 2"),
        ("DELETE FROM certificates WHERE height = 2", "at height 2"),
        ("UPDATE blocks SET receipts = x'80' WHERE height = 4", "at height 4"),
        ("UPDATE blocks SET link = x'00' WHERE height = 3", "at height 3"),
        ("DELETE FROM blocks WHERE height = 2", "block 2 is missing"),
        ("DELETE FROM blocks WHERE height = 1", "block 1 is missing"),
        ("DELETE FROM state WHERE key = (SELECT min(key) FROM state)", "state"),
        ("UPDATE state SET value = x'a0'", "state"),
        ("UPDATE state SET key = x'a0'", "state"),
        ("UPDATE txs SET height = 1", "transaction"),
        ("DELETE FROM nodes", "nodes"),
        ("DELETE FROM marks", "marks"),
    ],
)
async def test_damage_further_back_is_named_when_it_is_read(
    closed: Path, statement: str, why: str
) -> None:
    _damage(closed, statement)
    with pytest.raises(LedgerCorrupted) as damaged:
        audit(closed)
    assert "\n" not in str(damaged.value) and "restore" in str(damaged.value)
    if "nodes" not in statement and "marks" not in statement:  # what a lookup lacks only it tells
        with pytest.raises(LedgerCorrupted) as damaged:
            await _read_all(closed)
        assert why in str(damaged.value)


def _damage(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


async def _read_all(path: Path) -> None:
    """Everything that a ledger is asked for, one by one."""
    async with running(path) as (ledger, service):
        await service.history(1)
        for address in (BUYER.address, NODE.address, OTHER.address, STRANGER.address):
            await ledger.account(address)
        await ledger.task(make_spec(0).task_id)
        await service.attestation_receipt(make_spec(0).task_id)
        await ledger.supply()
        await ledger.nodes()
        await service.entries()


async def _open(path: Path) -> None:
    async with running(path):
        pass


async def test_a_forged_history_does_not_pass_the_audit(closed: Path) -> None:
    """Checksums are no defence against someone who can compute them; the replay is."""
    store = Store(closed, GENESIS)
    rows = list(store.rows(1, 100))
    for row, certificate in ((rows[2], rows[1].certificate), (rows[3], None)):
        assert certificate != row.certificate
        for forged in (certificate, row.certificate):
            if forged is None:
                store._db.execute("DELETE FROM certificates WHERE height = ?", (row.height,))
            else:
                encoded = forged.canonical()
                check = certificate_check(store.link_at(row.height), row.height, encoded)
                store._db.execute(
                    "INSERT OR REPLACE INTO certificates VALUES (?, ?, ?)",
                    (row.height, encoded, check),
                )
            if forged is certificate:
                with pytest.raises(LedgerCorrupted) as damaged:
                    audit(closed)
                assert damaged.value.details["height"] in (row.height, row.height + 1)
    audit(closed)
    for table in ("txs", "marks", "nodes"):
        store._db.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM {table}")
        store._db.execute(f"DELETE FROM {table}")
        with pytest.raises(LedgerCorrupted, match=table):
            audit(closed)
        store._db.execute(f"INSERT INTO {table} SELECT * FROM kept")
        store._db.execute("DROP TABLE kept")
        audit(closed)
    store.close()


async def test_any_flipped_byte_is_noticed_or_harmless(closed: Path) -> None:
    clean = closed.read_bytes()
    before = audit(closed)
    draw = random.Random(7)
    noticed = 0
    for _ in range(60):
        at = draw.randrange(len(clean))
        damaged = bytearray(clean)
        damaged[at] ^= 1 << draw.randrange(8)
        closed.write_bytes(damaged)
        for name in ("-wal", "-shm"):
            closed.with_name(closed.name + name).unlink(missing_ok=True)
        try:
            report = audit(closed)
        except LedgerError as error:
            noticed += 1
            assert "\n" not in str(error)
        else:
            assert report == before
    assert noticed > 10  # most of a small file is unused space


async def test_what_cannot_be_opened_is_said_plainly(closed: Path, tmp_path: Path) -> None:
    async with running(closed):
        with pytest.raises(LedgerUnavailable, match="in use by another process"):
            await _open(closed)
        assert audit(closed).height > 0  # reading is allowed
    with pytest.raises(LedgerError, match="no ledger file"):
        audit(tmp_path / "nowhere.db")
    text = tmp_path / "notes.db"
    text.write_text("not a database, but long enough to look at " * 40)
    for use in (lambda: Store(text, GENESIS), lambda: audit(text)):
        with pytest.raises(LedgerCorrupted):
            use()
    with pytest.raises(LedgerError, match="belongs to ledger"):
        Store(closed, make_genesis(salt=META))
    with pytest.raises(LedgerUnavailable):
        Store(tmp_path / "notes.db" / "ledger.db", GENESIS)

"""Followers: a checked copy, reads from it, taking over, and writers that were believed dead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from ledger_kit import BUILDER, BUYER, DAI, GENESIS, NODE, STRANGER, T0, SeatsHere, info_of

from daifi_flows.errors import LedgerError, LedgerUnavailable
from daifi_flows.ledger import Follower, LedgerClient, LedgerService, Replica, audit, verify_state
from daifi_flows.ledger._blocks import CertifiedBlock
from daifi_flows.ledger._snapshot import snapshots_in
from daifi_flows.ledger._state import account_key


async def leader(path: Path, seats: SeatsHere, **options: object) -> LedgerService:
    service = LedgerService(path, GENESIS, seats, clock=lambda: T0 + 1, builder=BUILDER, **options)  # pyright: ignore
    await service.start()
    return service


async def pay(service: LedgerService, count: int) -> None:
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=10)
    for _ in range(count):
        await client.transfer(STRANGER.address, 1, BUYER)


def follower(path: Path, source: object, **options: object) -> Follower:
    return Follower(path, GENESIS, source, poll_s=0.01, clock=lambda: T0 + 1, **options)  # pyright: ignore


async def test_a_follower_is_a_copy_and_serves_the_same_reads(tmp_path: Path) -> None:
    service = await leader(tmp_path / "a.db", SeatsHere(GENESIS))
    await pay(service, 3)
    copy = follower(tmp_path / "b.db", service)
    await copy.start()
    await LedgerClient(service, GENESIS.ledger_id).register(info_of(NODE), NODE)
    await pay(service, 2)
    async with asyncio.timeout(120):
        await copy.reach(6)
    assert await copy.head() == await service.head()
    assert await copy.entries() == await service.entries()
    assert await copy.nodes() == await service.nodes() and await copy.nodes()
    assert await copy.supply() == await service.supply()
    assert await copy.history(2) == await service.history(2)
    tx = (await service.history(5))[0]
    receipt = next(iter(CertifiedBlock.from_canonical(tx).block.transactions))
    assert receipt
    for each in (service, copy):
        found = await each.prove_entry(account_key(STRANGER.address))
        assert found.value is not None
        root = found.header.state_root
        assert verify_state(root, account_key(STRANGER.address), found.value, found.proof)
        none = await each.prove_entry(account_key("0x" + "77" * 20))
        assert none.value is None
        assert verify_state(root, account_key("0x" + "77" * 20), None, none.proof)
    health = await copy.health()
    assert health.height == 6 and health.stalled_reason == "" and copy.silent_ms is not None
    await copy.close()
    await service.close()
    one, two = audit(tmp_path / "a.db"), audit(tmp_path / "b.db")
    assert (one.head, one.state_root, one.supply) == (two.head, two.state_root, two.supply)


async def test_a_follower_starts_again_where_it_was(tmp_path: Path) -> None:
    service = await leader(tmp_path / "a.db", SeatsHere(GENESIS))
    await pay(service, 2)
    for height in (2, 4):
        copy = follower(tmp_path / "b.db", service)
        await copy.start()
        async with asyncio.timeout(120):
            await copy.reach(height)
        await copy.close()
        await pay(service, 2)
    await service.close()
    assert audit(tmp_path / "b.db").height == 4


class Lying:
    """A source that changes what it passes on."""

    def __init__(self, blocks: Sequence[bytes]) -> None:
        self.blocks = list(blocks)

    async def history(self, from_height: int) -> Sequence[bytes]:
        return self.blocks[from_height - 1 :]


async def test_a_follower_believes_only_what_is_certified_and_right(tmp_path: Path) -> None:
    service = await leader(tmp_path / "a.db", SeatsHere(GENESIS))
    await pay(service, 3)
    good = list(await service.history(1))
    await service.close()
    first, second = (CertifiedBlock.from_canonical(each) for each in good[:2])
    lies = [
        [b"junk"],
        [good[1]],  # a gap
        [CertifiedBlock(block=first.block, certificate=second.certificate).canonical()],
        [
            CertifiedBlock(
                block=first.block.model_copy(update={"transactions": second.block.transactions}),
                certificate=first.certificate,
            ).canonical()
        ],
        [good[0], good[2]],
        [
            good[0],
            CertifiedBlock(
                block=second.block.model_copy(update={"justify": second.certificate}),
                certificate=second.certificate,
            ).canonical(),
        ],
    ]
    source = Lying([])
    copy = follower(tmp_path / "b.db", source)
    await copy.start()
    copy._task.cancel()
    for lie in lies:
        source.blocks = lie
        with pytest.raises(LedgerError):
            await copy.fetch() or await copy.fetch()
        assert copy.height <= 1
    source.blocks = good
    while await copy.fetch():
        pass
    assert copy.height == 3
    await copy.close()
    assert audit(tmp_path / "b.db").height == 3


async def test_a_follower_takes_over_what_seats_signed(tmp_path: Path) -> None:
    """The leader dies after seats signed a block; its follower makes just that block final."""
    seats = SeatsHere(GENESIS)
    service = await leader(tmp_path / "a.db", seats)
    copy = follower(tmp_path / "b.db", service)
    await copy.start()
    await pay(service, 3)
    async with asyncio.timeout(120):
        await copy.reach(3)
    real, signed = seats.certify, asyncio.Event()

    async def sign_and_lose(*args: object) -> object:
        await real(*args)  # pyright: ignore
        signed.set()
        return await asyncio.Event().wait()

    seats.certify = sign_and_lose  # pyright: ignore
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=1)
    lost = asyncio.create_task(client.transfer(STRANGER.address, 40, BUYER))
    await signed.wait()
    seats.certify = real  # pyright: ignore
    await service.close(grace_s=0)
    with pytest.raises(LedgerUnavailable):
        await lost
    new = await copy.take_over(seats, clock=lambda: T0 + 1, builder=BUILDER)
    await LedgerClient(new, GENESIS.ledger_id, patience_s=10).transfer(STRANGER.address, 500, NODE)
    assert (await new.account(STRANGER.address)).balance_wei == 3 + 40 + 500
    height = (await new.head())[0].height
    assert height == 5
    # The old writer's file follows the new one; its own journaled block was the same.
    old = follower(tmp_path / "a.db", new)
    await old.start()
    async with asyncio.timeout(120):
        await old.reach(height)
    assert await old.head() == await new.head()
    await old.close()
    await new.close()
    assert audit(tmp_path / "a.db").head == audit(tmp_path / "b.db").head


async def test_what_was_acknowledged_is_there_right_after_a_take_over(tmp_path: Path) -> None:
    seats = SeatsHere(GENESIS)
    old = await leader(tmp_path / "a.db", seats)
    await pay(old, 1)
    copy = follower(tmp_path / "b.db", old)
    await copy.start()
    async with asyncio.timeout(120):
        await copy.reach(1)
    copy._task.cancel()  # cut off: it never hears of the next block
    await pay(old, 1)
    await old.close()
    new = await copy.take_over(seats, clock=lambda: T0 + 1)
    async with asyncio.timeout(30):
        while (await new.head())[0].height < 2:  # and nobody sends anything
            await asyncio.sleep(0.01)
    assert (await new.account(STRANGER.address)).balance_wei == 2
    await new.close()


async def test_a_term_from_the_future_keeps_nobody_from_leading(tmp_path: Path) -> None:
    """A clock that was wrong once, or a source that made the term up."""
    seats = SeatsHere(GENESIS, replica=Replica(GENESIS, lambda: T0 + 1))
    wrong = LedgerService(tmp_path / "a.db", GENESIS, seats, clock=lambda: T0 + 10**11)
    await wrong.start()
    await wrong.close()
    old = await leader(tmp_path / "a.db", seats)
    await pay(old, 1)

    class Lying:
        async def history(self, from_height: int) -> list[bytes]:
            found = [CertifiedBlock.from_canonical(raw) for raw in await old.history(from_height)]
            term = {"term": 2**63 - 1}
            blocks = [each.block.model_copy(update=term) for each in found]
            return [
                each.model_copy(update={"block": block}).canonical()
                for each, block in zip(found, blocks, strict=True)
            ]

    copy = follower(tmp_path / "b.db", Lying())
    await copy.start()
    async with asyncio.timeout(120):
        await copy.reach(1)
    await old.close()
    new = await copy.take_over(seats, clock=lambda: T0 + 1)
    async with asyncio.timeout(30):
        await pay(new, 1)
    await new.close()
    assert audit(tmp_path / "b.db").height == 2


async def test_who_asks_for_blocks_at_once_gets_each_of_them_once(tmp_path: Path) -> None:
    service = await leader(tmp_path / "a.db", SeatsHere(GENESIS))
    await pay(service, 2)
    copy = follower(tmp_path / "b.db", service)
    await copy.start()
    await asyncio.gather(*(copy.fetch() for _ in range(3)))
    assert copy.height == 2
    await copy.close()
    await service.close()
    assert audit(tmp_path / "b.db").height == 2


async def test_who_is_cancelled_while_starting_leaves_the_file_free(tmp_path: Path) -> None:
    service = LedgerService(tmp_path / "a.db", GENESIS, SeatsHere(GENESIS))
    for starting in (service, follower(tmp_path / "b.db", service)):
        task = asyncio.create_task(starting.start())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await starting.start()
        await starting.close()


async def test_two_writers_never_fork_and_the_older_term_stops(tmp_path: Path) -> None:
    seats = SeatsHere(GENESIS)
    old = await leader(tmp_path / "a.db", seats)
    copy = follower(tmp_path / "b.db", old)
    await copy.start()
    await pay(old, 2)
    async with asyncio.timeout(120):
        await copy.reach(2)
    new = await copy.take_over(seats, clock=lambda: T0 + 1, builder=BUILDER)
    assert (await new.metrics())["term"] > (await old.metrics())["term"]
    await pay(new, 1)
    with pytest.raises(LedgerUnavailable):
        await LedgerClient(old, GENESIS.ledger_id, patience_s=2).transfer(
            STRANGER.address, 7 * DAI, NODE
        )
    await pay(new, 1)
    assert (await old.head())[0].height == 2 and (await new.head())[0].height == 4
    await old.close(grace_s=0)
    again = follower(tmp_path / "a.db", new)
    await again.start()
    async with asyncio.timeout(120):
        await again.reach(4)
    assert (await again.account(STRANGER.address)).balance_wei == 4
    await again.close()
    await new.close()
    assert audit(tmp_path / "a.db").head == audit(tmp_path / "b.db").head


async def test_an_old_term_is_refused_and_junk_brings_no_new_one(tmp_path: Path) -> None:
    service = await leader(tmp_path / "a.db", SeatsHere(GENESIS))
    await pay(service, 2)
    blocks = [CertifiedBlock.from_canonical(raw).block for raw in await service.history(1)]
    await service.close()
    replica = Replica(GENESIS)
    term = blocks[0].term
    junk = blocks[0].model_copy(update={"term": 2**62, "transactions": (b"junk",)})
    with pytest.raises(LedgerError, match="breaks a rule"):
        replica.check(junk.canonical())
    digest = replica.check(blocks[0].canonical())
    newer = blocks[0].model_copy(update={"term": term + 5})
    assert replica.check(newer.canonical()) == digest
    for stale in (blocks[0], blocks[1]):
        with pytest.raises(LedgerError, match="is over") as refused:
            replica.check(stale.canonical())
        assert refused.value.details["fenced_by"] == term + 5
    assert replica.check(blocks[1].model_copy(update={"term": term + 5}).canonical())


async def test_a_follower_and_a_replica_start_from_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    service = await leader(path, SeatsHere(GENESIS), snapshot_every=2, snapshots=2)
    await LedgerClient(service, GENESIS.ledger_id).register(info_of(NODE), NODE)
    for _ in range(6):
        await pay(service, 1)
        if service._snapshotting is not None:
            await service._snapshotting
    assert (await service.metrics())["snapshots"] == 3
    folder = LedgerService.snapshot_folder(path)
    assert [each.name for each in snapshots_in(folder)] == [
        "000000000006.snapshot",
        "000000000004.snapshot",
    ]
    replica = Replica(GENESIS, snapshots=folder)
    assert replica.height == 6
    replica.catch_up(await service.history(7))
    late = Replica(GENESIS)
    late.catch_up(await service.history(1))
    assert replica.fingerprint == late.fingerprint

    copy = follower(tmp_path / "b.db", service, snapshot=snapshots_in(folder)[1])
    await copy.start()
    async with asyncio.timeout(120):
        await copy.reach(7)
    assert await copy.entries() == await service.entries()
    assert await copy.nodes() == await service.nodes() and await copy.nodes()
    assert await copy.history(5) == await service.history(5)
    last = next(reversed(service._receipts[7]))
    assert await copy.receipt(last.leaf.tx) == last
    (await copy.prove(last.leaf.tx)).verify(GENESIS.committee)
    with pytest.raises(LedgerUnavailable, match="after 4 only"):
        await copy.history(4)
    with pytest.raises(LedgerError, match="snapshot"):
        await copy.take_over(SeatsHere(GENESIS))
    await copy.close()
    with pytest.raises(LedgerError, match="snapshot"):
        await leader(tmp_path / "b.db", SeatsHere(GENESIS))
    again = follower(tmp_path / "b.db", service)
    await again.start()
    assert again.height == 7
    await again.close()
    await service.close()
    partial = audit(path, from_height=6)
    assert (partial.first, partial.height) == (5, 7)
    whole = audit(path)
    assert (whole.first, whole.state_root, whole.supply) == (1, partial.state_root, partial.supply)

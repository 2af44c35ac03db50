"""A ledger whose real seats make way for others: shares handed on, the same group key signs on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Committee, NodeInfo, QuorumCertificate, Seat
from daifi_flows.epochs import Committees
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._certifier import BlockCertifier
from daifi_flows.judges._keygen_client import HandedOn, hand_on, make_group_key, retire_seats
from daifi_flows.judges._office import SeatOffice
from daifi_flows.judges._seat import SeatKeys, bare_committee
from daifi_flows.judges._succession import SuccessiveCertifier
from daifi_flows.keys import Account, verify_bls_aggregate
from daifi_flows.ledger import (
    Elections,
    Genesis,
    LedgerClient,
    LedgerService,
    Params,
    Replica,
    audit,
    committees_in,
    prove_node_key,
)

DAI = 10**18
T0 = 1_700_000_000_000
BUYER = Account.from_seed(b"buyer")
BUILDER = Account.from_seed(b"builder")
GONE = Account.from_seed(b"gone")


@dataclass
class World:
    """How seats and a ledger are run: in this process, or on Ray.

    Attributes:
        start: hosts of a committee whose keys lie in a folder, with a replica of the ledger once
            there is one.
        open: a ledger on a file; opened again, it begins where the file ends.
        wait_until: until it is so late, Unix milliseconds.
    """

    now_ms: Callable[[], int]
    start: Callable[[Committee, Path, Genesis | None], list[Any]]
    open: Callable[[Path, Genesis], Awaitable[LedgerClient]]
    wait_until: Callable[[int], Awaitable[None]]
    history: Callable[[int], Awaitable[Sequence[bytes]]] = field(init=False)


class Desk:
    """A transport to an office in this process. A call runs in a thread, as at a host."""

    def __init__(self, office: SeatOffice) -> None:
        self.office = office

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            return await asyncio.to_thread(getattr(self.office, name), *arguments)

        return call


@asynccontextmanager
async def here() -> AsyncGenerator[World]:
    now, opened, hosts = [T0 + 1], list[LedgerService](), dict[bytes, list[Any]]()

    def start(committee: Committee, folder: Path, genesis: Genesis | None) -> list[Any]:
        hosts[committee.digest] = [
            Desk(
                SeatOffice(
                    committee,
                    seats,
                    folder,
                    reference_factory=lambda: pytest.fail("nothing is reviewed here"),
                    validator_factory=None if genesis is None else partial(Replica, genesis),
                    workdir=folder / "work",
                )
            )
            for seats in ((0, 1), (2, 3))
        ]
        return hosts[committee.digest]

    async def open_(path: Path, genesis: Genesis) -> LedgerClient:
        def reach(committee: Committee) -> BlockCertifier:
            return BlockCertifier(hosts[committee.digest], committee)

        for service in opened:
            await service.close()
        seats = SuccessiveCertifier(genesis.committee, reach)
        service = LedgerService(path, genesis, seats, clock=lambda: now[0], builder=BUILDER)
        await service.start()
        opened.append(service)
        world.history = service.history
        return LedgerClient(service, genesis.ledger_id, patience_s=10)

    async def wait_until(ms: int) -> None:
        now[0] = max(now[0], ms)

    world = World(lambda: now[0], start, open_, wait_until)
    yield world
    await opened[-1].close()


@asynccontextmanager
async def on_ray() -> AsyncGenerator[World]:
    import ray

    from daifi_flows.judges.actor import RayCertifier, RaySeats, named_hosts, start_seat_hosts
    from daifi_flows.ledger.actor import RayLedger

    running, ledgers = list[Any](), list[RayLedger]()
    namespace = ray.get_runtime_context().namespace

    def start(committee: Committee, folder: Path, genesis: Genesis | None) -> list[Any]:
        named: dict[str, Any] = {} if genesis is None else {"name": f"seats-{committee.epoch}"}
        hosts = start_seat_hosts(
            committee,
            folder,
            reference_factory=lambda: None,  # pyright: ignore
            validator_factory=None if genesis is None else partial(Replica, genesis),
            workdir=folder / "work",
            hosts=2,
            namespace=namespace,
            **named,
        )
        running.extend(hosts)
        return [RaySeats(host) for host in hosts]

    async def open_(path: Path, genesis: Genesis) -> LedgerClient:
        if ledgers:
            ray.kill(ledgers[0].handle, no_restart=False)
            return ledgers[0]
        certifier = RayCertifier(
            lambda: named_hosts("seats-0", namespace, 2),
            genesis.committee,
            successors=lambda later: named_hosts(f"seats-{later.epoch}", namespace, 2),
        )
        ledger = RayLedger.start(path, genesis, certifier, builder=BUILDER)
        running.append(ledger.handle)
        ledgers.append(ledger)
        world.history = ledger.history
        return ledger

    async def wait_until(ms: int) -> None:
        await asyncio.sleep(max(0, ms - time.time_ns() // 1_000_000 + 1) / 1000)

    world = World(lambda: time.time_ns() // 1_000_000, start, open_, wait_until)
    try:
        yield world
    finally:
        for handle in running:
            ray.kill(handle)


async def test_the_seats_that_were_drawn_take_over_with_the_same_group_key(tmp_path: Path) -> None:
    async with here() as world:
        await take_over(world, tmp_path)
    audit(tmp_path / "ledger.db")


@pytest.mark.slow
async def test_hosts_on_ray_take_over(ray_cluster: None, tmp_path: Path) -> None:
    async with on_ray() as world:
        await take_over(world, tmp_path)
    audit(tmp_path / "ledger.db")


async def take_over(world: World, folder: Path) -> None:
    """Seats make a key and certify a ledger; others are drawn, get its shares, and go on."""
    first_keys, second_keys, path = folder / "first", folder / "second", folder / "ledger.db"
    bare = bare_committee(first_keys, 4)
    makers = world.start(bare, first_keys, None)
    first = await make_group_key(makers, bare, ledger_id=bare.digest)
    # Five nodes stand for the next committee.
    nodes = [SeatKeys.load(folder / "nodes", index) for index in range(5)]
    rules = Params()
    genesis = Genesis.create(
        salt=bytes(32),
        timestamp_ms=world.now_ms() - 1,
        allocations=[
            (each, 1_000 * DAI) for each in (BUYER.address, *(n.account.address for n in nodes))
        ],
        committee=first,
        params=rules.model_copy(
            update={"committee": rules.committee.model_copy(update={"epoch_ms": 1_000})}
        ),
    )
    old_hosts = world.start(first, first_keys, genesis)
    ledger = await world.open(path, genesis)
    elections = Elections(ledger)
    for node in nodes:
        address = node.account.address
        info = NodeInfo(
            name="n", address=address, device="cpu", engines=("function",), price_wei=DAI,
            bls_public=node.bls.public, bls_possession=prove_node_key(node.bls, address),
        )  # fmt: skip
        await ledger.register(info, node.account)
        await ledger.stake(200 * DAI, node.account)
        await elections.offer(100 * DAI, node.account)
    await world.wait_until(await elections.due_ms())
    await elections.close_roll(BUYER)
    roll = await elections.draw(BUYER)

    with_theirs = seated_as_drawn(roll, nodes, second_keys, first)
    drawn = await elections.elected()  # with the proofs that are on the ledger
    for ours, own in zip(drawn.seats, with_theirs.seats, strict=True):
        assert ours.model_copy(update={"possession": own.possession}) == own != ours
    new_hosts = world.start(drawn, second_keys, None)

    async def share_anew() -> HandedOn:
        return await hand_on(
            old_hosts, first, new_hosts, drawn,
            ledger_id=genesis.ledger_id, draw=roll.digest, grace_s=1.0,
        )  # fmt: skip

    # The seats' replicas learn that the draw is final from the next block.
    with pytest.raises(CommitteeError, match="no quorum"):
        await share_anew()
    await ledger.transfer(GONE.address, 1, BUYER)
    done = await share_anew()
    second = done.committee
    assert second.group_key == first.group_key

    # Now they start as a committee, with a replica, and take office.
    world.start(second, second_keys, genesis)
    assert await retire_seats(old_hosts, done) == 0
    receipt = await elections.hand_over(second, done.certificate, BUYER)
    assert receipt.header.committee == first.digest
    await ledger.transfer(GONE.address, 1, BUYER)
    paid = await ledger.transfer(GONE.address, 1, BUYER)
    header, certificate = paid.header, paid.certificate
    assert (header.epoch, header.committee) == (1, second.digest)
    assert signed_by(second, header.digest, certificate)
    assert not signed_by(first, header.digest, certificate)
    assert header.beacon != bytes(32)

    # The old seats see it on their own copies, and forget their shares.
    for host in old_hosts:
        await host.provide_blocks(await world.history(1))
    assert await retire_seats(old_hosts, done) == 4
    assert not list(first_keys.glob("*.share"))
    ledger = await world.open(path, genesis)
    await ledger.transfer(GONE.address, 1, BUYER)
    anchor, chain = committees_in(path)
    assert anchor == first
    assert Committees(first, chain.handovers).last == second


def seated_as_drawn(
    roll: Any, nodes: Sequence[SeatKeys], folder: Path, before: Committee
) -> Committee:
    """The drawn seats with the old group key and no shares; their keys go to a new folder."""
    seats: list[Seat] = []
    folder.mkdir()
    for index, entrant in enumerate(roll.elected):
        (node,) = (each for each in nodes if each.account.address == entrant.candidate.account)
        for kind in ("bls", "account"):
            source = folder.parent / "nodes" / f"seat-{node.index:02d}.{kind}"
            (folder / f"seat-{index:02d}.{kind}").write_bytes(source.read_bytes())
        drawn = {"operator": entrant.candidate.operator, "weight": entrant.candidate.weight}
        seats.append(node.seat().model_copy(update={"index": index, **drawn}))
    return Committee(epoch=roll.epoch, seats=tuple(seats), group_key=before.group_key)


def signed_by(committee: Committee, digest: bytes, certificate: QuorumCertificate) -> bool:
    publics = [seat.public for seat in committee.signers(certificate.signers)]
    message = QuorumCertificate.message(digest)
    return verify_bls_aggregate(publics, message, certificate.signature)

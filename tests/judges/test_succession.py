"""A ledger whose real seats make way for others: shares handed on, the same group key signs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
    Replica,
    audit,
    committees_in,
    prove_node_key,
)

DAI = 10**18
T0 = 1_700_000_000_000
BUYER = Account.from_seed(b"buyer")
BUILDER = Account.from_seed(b"builder")


class Desk:
    """A transport to an office in this process. A call runs in a thread, as at a host."""

    def __init__(self, office: SeatOffice) -> None:
        self.office = office

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            return await asyncio.to_thread(getattr(self.office, name), *arguments)

        return call


def desks(committee: Committee, folder: Path, genesis: Genesis | None) -> list[Any]:
    """Two hosts of two seats; with a replica of the ledger where there is one."""
    return [
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


async def test_the_seats_that_were_drawn_take_over_with_the_same_group_key(tmp_path: Path) -> None:
    first_keys, path = tmp_path / "first", tmp_path / "ledger.db"
    bare = bare_committee(first_keys, 4)
    first = await make_group_key(desks(bare, first_keys, None), bare, ledger_id=bare.digest)

    # Five nodes stand for the next committee; each keeps its keys in a folder of its own.
    nodes = [SeatKeys.load(tmp_path / "nodes", index) for index in range(5)]
    genesis = Genesis.create(
        salt=bytes(32),
        timestamp_ms=T0,
        allocations=[
            (each, 1_000 * DAI) for each in (BUYER.address, *(n.account.address for n in nodes))
        ],
        committee=first,
    )
    now = [T0 + 1]
    hosts: dict[Committee, list[Any]] = {}

    def reach(committee: Committee) -> BlockCertifier:
        return BlockCertifier(hosts[committee], committee)

    seats = SuccessiveCertifier(first, reach)
    service = LedgerService(path, genesis, seats, clock=lambda: now[0], builder=BUILDER)
    old_desks = hosts[first] = desks(first, first_keys, genesis)
    await service.start()
    try:
        client = LedgerClient(service, genesis.ledger_id, patience_s=10)
        elections = Elections(client)
        for node in nodes:
            address = node.account.address
            info = NodeInfo(
                name="n", address=address, device="cpu", engines=("function",), price_wei=DAI,
                bls_public=node.bls.public, bls_possession=prove_node_key(node.bls, address),
            )  # fmt: skip
            await client.register(info, node.account)
            await client.stake(200 * DAI, node.account)
            await elections.offer(100 * DAI, node.account)
        now[0] = await elections.due_ms()
        await elections.close_roll(BUYER)
        roll = await elections.draw(BUYER)

        second_keys = tmp_path / "second"
        drawn = seated_as_drawn(roll, nodes, second_keys, first)
        new_desks = desks(drawn, second_keys, None)

        async def share_anew() -> HandedOn:
            return await hand_on(
                old_desks, first, new_desks, drawn,
                ledger_id=genesis.ledger_id, draw=roll.digest, grace_s=1.0,
            )  # fmt: skip

        # The seats' replicas learn that the draw is final from the next block.
        with pytest.raises(CommitteeError, match="no quorum"):
            await share_anew()
        await client.transfer(BUILDER.address, 1, BUYER)
        done = await share_anew()
        second = done.committee
        assert second.group_key == first.group_key

        # Now they start as a committee, with a replica, and take office.
        hosts[second] = desks(second, second_keys, genesis)
        assert await retire_seats(old_desks, done) == 0
        receipt = await elections.hand_over(second, done.certificate, BUYER)
        assert receipt.header.committee == first.digest
        await client.transfer(BUILDER.address, 1, BUYER)
        await client.transfer(BUILDER.address, 1, BUYER)
        header, certificate = await service.head()
        assert (header.epoch, header.committee) == (1, second.digest)
        assert certificate is not None and signed_by(second, header.digest, certificate)
        assert not signed_by(first, header.digest, certificate)
        assert header.beacon != bytes(32)

        # The old seats see it on their own copies, and forget their shares.
        for desk in old_desks:
            await desk.provide_blocks(await service.history(1))
        assert await retire_seats(old_desks, done) == 4
        assert not list(first_keys.glob("*.share"))
        await client.transfer(BUILDER.address, 1, BUYER)
    finally:
        await service.close()
    assert audit(path).height > header.height
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
        seats.append(
            node.seat().model_copy(
                update={
                    "index": index,
                    "operator": entrant.candidate.operator,
                    "weight": entrant.candidate.weight,
                }
            )
        )
    return Committee(epoch=roll.epoch, seats=tuple(seats), group_key=before.group_key)


def signed_by(committee: Committee, digest: bytes, certificate: QuorumCertificate) -> bool:
    publics = [seat.public for seat in committee.signers(certificate.signers)]
    message = QuorumCertificate.message(digest)
    return verify_bls_aggregate(publics, message, certificate.signature)

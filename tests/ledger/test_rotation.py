"""A running ledger whose committee changes: certificates, replicas, followers, copies, audits."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from committee_bench import (
    ACCOUNTS,
    CANDIDATES,
    EPOCH_MS,
    GENESIS,
    SeatsThatChange,
    candidate_info,
    drawn_committee,
    handed_over,
)
from ledger_kit import (
    BUILDER,
    BUYER,
    COMMITTEE,
    DAI,
    NODE,
    PROOF_CID,
    STRANGER,
    T0,
    attest,
    info_of,
    make_header,
    make_spec,
)
from typer.testing import CliRunner

from daifi_flows._home import read_committee, read_handovers
from daifi_flows.cli import app
from daifi_flows.cnft import QuorumCertificate
from daifi_flows.epochs import CommitteeChain, Committees
from daifi_flows.errors import (
    ConfigError,
    EncodingError,
    LedgerCorrupted,
    LedgerError,
    LedgerUnavailable,
    TransactionRefused,
)
from daifi_flows.keys import Account
from daifi_flows.ledger import (
    Elections,
    Follower,
    LedgerClient,
    LedgerService,
    Replica,
    audit,
    export_ledger,
    import_ledger,
)
from daifi_flows.ledger._auction import Bid, Proposal
from daifi_flows.ledger._blocks import CertifiedBlock, certificate_valid
from daifi_flows.ledger._snapshot import open_snapshot, snapshots_in, take_snapshot
from daifi_flows.ledger._tx.committee import HandOver
from daifi_flows.sortition import check_draw
from daifi_flows.verify import verify_attestation, verify_receipt


class World:
    """A service, its seats, a client and a clock that tests move."""

    def __init__(self, path: Path, seats: SeatsThatChange | None = None, **options: object) -> None:
        self.path, self.now = path, T0 + 1
        self.seats = seats or SeatsThatChange(GENESIS)
        self.options: dict[str, object] = {"builder": BUILDER, "snapshot_every": 0, **options}

    async def __aenter__(self) -> World:
        await self.start()
        return self

    async def start(self) -> None:
        self.service = LedgerService(
            self.path,
            GENESIS,
            self.seats,
            clock=lambda: self.now,
            **self.options,  # pyright: ignore
        )
        await self.service.start()
        self.client = LedgerClient(self.service, GENESIS.ledger_id, patience_s=10)
        self.elections = Elections(self.client)

    async def __aexit__(self, *_: object) -> None:
        await self.service.close()

    @property
    def base(self):
        return self.service._chain.base

    async def pay(self, count: int = 1) -> None:
        for _ in range(count):
            await self.client.transfer(STRANGER.address, 1, BUYER)

    async def offer_all(self) -> None:
        async def offer(index: int, account: Account) -> None:
            await self.client.register(candidate_info(index), account)
            await self.client.stake(200 * DAI, account)
            await self.elections.offer((101 + index) * DAI, account)

        await asyncio.gather(*(offer(*each) for each in enumerate(CANDIDATES)))

    async def draw(self) -> None:
        self.now = max(self.now, await self.elections.due_ms())
        await self.elections.close_roll(BUYER)
        await self.elections.draw(BUYER)

    async def hand_over(self):
        fields = handed_over(self.base)
        return await self.elections.hand_over(fields["committee"], fields["certificate"], BUYER)

    async def rotate(self) -> None:
        await self.draw()
        await self.hand_over()


async def test_committees_take_turns_on_a_running_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with World(path) as world:
        service = world.service
        await world.offer_all()
        assert len(await world.elections.candidates()) == 30
        await world.pay()
        assert await service.committee() == COMMITTEE
        await world.draw()
        roll = await world.elections.roll()
        assert roll is not None and len(roll.drawn) == 21
        found = roll.draw(roll.beacon)
        assert check_draw(found, root=roll.root, beacon=roll.beacon, seats=21, per_operator=3)
        receipt = await world.hand_over()
        # The block with the handover is the old committee's, the next one is the new one's.
        assert receipt.header.epoch == 1 and receipt.header.committee == COMMITTEE.digest
        second = await service.committee()
        assert second == drawn_committee(roll) and second.epoch == 2
        await world.pay()
        header, certificate = await service.head()
        assert (header.epoch, header.committee) == (2, second.digest)
        assert certificate is not None
        assert certificate_valid(second, header.digest, certificate)
        assert not certificate_valid(COMMITTEE, header.digest, certificate)
        assert header.proposer in {seat.account for seat in second.seats}
        # The chain of handovers says what the draw follows from: no list, no ledger is needed.
        (handover,) = (await service.handovers()).handovers
        said = handover.draw
        assert check_draw(
            found,
            root=said.root,
            beacon=said.beacon,
            seats=said.seats,
            per_operator=said.per_operator,
        )
        assert [pick.account for pick in found.picks] == [s.account for s in second.seats]
        (after_roll, _) = await service.certified_header(said.height + 1) or (None, None)
        assert after_roll is not None and after_roll.beacon == said.beacon
        assert await service.certified_header(10_000) is None
        await world.elections.withdraw(CANDIDATES[0])
        assert len(await world.elections.candidates()) == 29
        await world.rotate()
        await world.pay(2)
        assert (await service.committee()).epoch == 3
        assert await service.committee_of(1) == COMMITTEE
        assert await service.committee_of(2) == second
        assert await service.committee_of(4) is None
        height = (await service.head())[0].height
        assert (await service.supply()).conserved
    assert audit(path).height == height


@pytest.fixture
async def rotated(tmp_path: Path):
    """Two handovers, with blocks and a snapshot after each."""
    async with World(tmp_path / "ledger.db") as world:
        await world.offer_all()
        folder = LedgerService.snapshot_folder(world.path)
        await world.draw()
        await world.hand_over()
        take_snapshot(world.path, folder, keep=9)  # its block is still the old committee's
        await world.pay(2)
        take_snapshot(world.path, folder, keep=9)
        await world.rotate()
        await world.pay(2)
        take_snapshot(world.path, folder, keep=9)
        yield world


async def test_a_restart_goes_on_with_the_committee_in_office(rotated: World) -> None:
    await rotated.service.close()
    await rotated.start()
    assert (await rotated.service.committee()).epoch == 3
    await rotated.pay()
    await rotated.rotate()
    await rotated.service.close()
    # Seats that start anew catch up from genesis, through every committee.
    rotated.seats = SeatsThatChange(GENESIS)
    await rotated.start()
    await rotated.pay()
    assert (await rotated.service.head())[0].epoch == 4
    assert (await rotated.service.health()).stalled_reason == ""
    await rotated.service.close()
    assert audit(rotated.path).journaled is None
    await rotated.start()


async def test_followers_replicas_and_copies_cross_handovers(
    rotated: World, tmp_path: Path
) -> None:
    service, folder = rotated.service, LedgerService.snapshot_folder(rotated.path)
    head = await service.head()
    whole = Follower(tmp_path / "copy.db", GENESIS, service, poll_s=0.01)
    await whole.start()
    await whole.reach(head[0].height)
    assert await whole.head() == head and await whole.committee() == await service.committee()
    assert await whole.handovers() == await service.handovers()
    await whole.close()
    assert audit(tmp_path / "copy.db").head == head[0].digest
    for number, path in enumerate(snapshots_in(folder)):
        late = Follower(tmp_path / f"late{number}.db", GENESIS, service, poll_s=0.01, snapshot=path)
        await late.start()
        await late.reach(head[0].height)
        assert await late.head() == head
        await late.close()
    replica = Replica(GENESIS)
    replica.catch_up(await service.history(1))
    started = Replica(GENESIS, snapshots=folder)
    assert started.height > 1
    started.catch_up(await service.history(started.height + 1))
    assert started.height == replica.height == head[0].height
    assert started.fingerprint == replica.fingerprint
    export_ledger(rotated.path, tmp_path / "ledger.jsonl")
    imported = import_ledger(tmp_path / "ledger.jsonl", tmp_path / "again.db", GENESIS.ledger_id)
    assert imported.head == head[0].digest
    report = audit(rotated.path, from_height=head[0].height)
    assert 1 < report.first <= head[0].height == report.height


async def test_a_follower_takes_over_after_a_handover(rotated: World, tmp_path: Path) -> None:
    copy = Follower(tmp_path / "copy.db", GENESIS, rotated.service, poll_s=0.01)
    await copy.start()
    await copy.reach((await rotated.service.head())[0].height)
    await rotated.service.close()
    service = await copy.take_over(rotated.seats, builder=BUILDER, clock=lambda: rotated.now)
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=10)
    await client.transfer(STRANGER.address, 1, BUYER)
    assert (await service.head())[0].epoch == 3
    await service.close()
    rotated.path = tmp_path / "copy.db"
    await rotated.start()


async def test_light_proofs_hold_across_epochs_by_the_handovers(rotated: World) -> None:
    service = rotated.service
    chain = await service.handovers()
    assert [each.committee.epoch for each in chain.handovers] == [2, 3]
    assert CommitteeChain.from_json(chain.to_json()) == chain
    trusted = Committees(GENESIS.committee, chain.handovers)
    assert trusted.last == await service.committee()
    blocks = [CertifiedBlock.from_canonical(raw) for raw in await service.history(1)]
    assert {each.block.header.epoch for each in blocks} == {1, 2, 3}
    for each in blocks:
        header = each.block.header
        committee = trusted.certifying(header)
        assert certificate_valid(committee, header.digest, each.certificate)
    proof = await service.prove((await rotated.client.transfer(STRANGER.address, 1, BUYER)).leaf.tx)
    proof.verify(trusted)
    proof.verify(await service.committee())
    with pytest.raises(EncodingError, match="handovers"):
        proof.verify(GENESIS.committee)  # it says what is missing
    second = trusted.of(2)
    newer = await service.handovers(after=2)
    proof.verify(Committees(second, newer.handovers))
    proof.verify(Committees(second, chain.handovers))


async def test_a_snapshot_is_believed_only_with_its_handovers(
    rotated: World, tmp_path: Path
) -> None:
    """Its state names its own committee: without the chain anybody could make one."""
    newest = snapshots_in(LedgerService.snapshot_folder(rotated.path))[0]
    with open_snapshot(newest, GENESIS) as snapshot:
        assert sum(1 for _ in snapshot.entries()) == snapshot.count
    raw = newest.read_bytes()
    chain = await rotated.service.handovers()
    for number, handover in enumerate(chain.handovers):
        signature = handover.certificate.signature
        assert raw.count(signature) >= 2  # in the chain, and in the state
        forged = tmp_path / f"{number}.snapshot"
        forged.write_bytes(raw.replace(signature, bytes(96), 1))
        with pytest.raises(LedgerCorrupted), open_snapshot(forged, GENESIS):
            pass


async def test_the_file_s_head_needs_the_handovers_too(rotated: World) -> None:
    """A record of a committee that is lost or changed is noticed at the start."""
    import sqlite3

    from daifi_flows.encoding import keccak256
    from daifi_flows.ledger._committees import committee_key

    await rotated.service.close()
    with sqlite3.connect(rotated.path) as db:
        (kept,) = db.execute(
            "SELECT value FROM state WHERE path = ?", (keccak256(committee_key(2)),)
        ).fetchone()
    for value in (None, kept.replace(b"certificate", b"certificatf")):
        with sqlite3.connect(rotated.path) as db:
            db.execute(
                "UPDATE state SET value = ? WHERE path = ?",
                (value or b"", keccak256(committee_key(2))),
            )
        with pytest.raises(LedgerError):
            await rotated.start()
    with sqlite3.connect(rotated.path) as db:
        db.execute("UPDATE state SET value = ? WHERE path = ?", (kept, keccak256(committee_key(2))))
    await rotated.start()


async def test_blocks_of_a_committee_that_left_are_not_taken(rotated: World) -> None:
    service, chain = rotated.service, await rotated.service.handovers()
    second = chain.handovers[0].committee
    blocks = list(await service.history(1))
    last = CertifiedBlock.from_canonical(blocks[-1])
    from committee_bench import aggregated

    stale = aggregated(second, QuorumCertificate.message(last.block.header.digest))
    forged = CertifiedBlock(block=last.block, certificate=stale).canonical()
    replica = Replica(GENESIS)
    replica.catch_up(blocks[:-1])
    with pytest.raises(LedgerError, match="no valid certificate"):
        replica.catch_up([forged])
    replica.catch_up(blocks[-1:])


async def test_a_block_names_the_committee_in_office(rotated: World) -> None:
    """Whatever builder and proposer sign, no seat signs a header of another epoch."""
    blocks = [CertifiedBlock.from_canonical(raw) for raw in await rotated.service.history(1)]
    first = next(each for each in blocks if each.block.header.epoch == 2)
    number = first.block.header.height
    replica = Replica(GENESIS)
    replica.catch_up([each.canonical() for each in blocks[: number - 1]])
    block, header = first.block, first.block.header
    third = blocks[-1].block.header
    for claimed in (
        {"epoch": 1, "committee": COMMITTEE.digest},
        {"epoch": 1},
        {"committee": COMMITTEE.digest},
        {"epoch": 3, "committee": third.committee},
    ):
        changed = header.model_copy(update=claimed)
        bid = Bid.sign(changed, block.seal.bid_wei, BUILDER)
        proposal = Proposal.sign(changed, ACCOUNTS[changed.proposer])
        signed = {"builder": bid.signature, "proposer": proposal.signature}
        seal = block.seal.model_copy(update=signed)
        lie = block.model_copy(update={"header": changed, "seal": seal})
        with pytest.raises(LedgerError, match="claims a wrong"):
            replica.check(lie.canonical())
    assert replica.check(block.canonical()) == header.digest


async def test_without_a_handover_the_old_committee_goes_on(tmp_path: Path) -> None:
    async with World(tmp_path / "ledger.db") as world:
        await world.offer_all()
        await world.draw()
        await world.pay(2)
        world.now += 10 * EPOCH_MS
        await world.pay()
        assert (await world.service.head())[0].epoch == 1
        await world.draw()  # anew
        await world.rotate()
        await world.pay()
        assert (await world.service.head())[0].epoch == 2
    assert audit(world.path).tasks == {}


async def test_a_review_under_way_in_a_handover_is_settled_after_it(tmp_path: Path) -> None:
    async with World(tmp_path / "ledger.db") as world:
        await world.offer_all()
        await world.draw()
        ledger = world.client
        await ledger.register(info_of(NODE), NODE)
        await ledger.stake(50 * DAI, NODE)
        spec = make_spec(deadline_ms=world.now + 60_000)
        await ledger.open_escrow(spec, BUYER)
        await ledger.assign(spec.task_id, NODE.address, 2 * DAI, BUYER)
        await ledger.commit(spec.task_id, make_header(spec), PROOF_CID, BUYER)
        found = attest(spec, ledger_id=GENESIS.ledger_id)  # the first committee's
        await world.hand_over()
        receipt = await ledger.settle(found, bytes(32), BUYER)
        assert receipt.header.epoch == 2
        paid = {payment.to for payment in receipt.leaf.payments if payment.reason == "committee"}
        assert paid <= {seat.account for seat in COMMITTEE.seats} and paid
        # What an auditor gets: an attestation of one epoch in a block of the next.
        attestation, settled = await ledger.attestation_receipt(spec.task_id) or (None, None)
        assert attestation is not None and settled is not None
        known = Committees(COMMITTEE, (await world.service.handovers()).handovers)
        assert verify_attestation(attestation, known.of(attestation.epoch)) == 14
        verify_receipt(settled, known)
    assert audit(world.path).tasks == {"settled": 1}


async def test_the_new_seats_pass_over_one_another(rotated: World) -> None:
    """Rounds after a handover are the new committee's to skip, and audits check that they did."""
    await rotated.draw()
    await rotated.hand_over()
    rotated.seats.silent = set(range(21)) - {5}
    await rotated.pay()
    header = (await rotated.service.head())[0]
    fourth = await rotated.service.committee()
    assert header.epoch == 4 and header.proposer == fourth.seats[5].account
    rotated.seats.silent = set()
    assert audit(rotated.path).head == header.digest


async def test_a_handover_sent_twice_has_one_receipt(rotated: World) -> None:
    await rotated.draw()
    fields = handed_over(rotated.base)
    first = await rotated.client.submit(HandOver, BUYER, fields)
    again = await rotated.client.submit(HandOver, CANDIDATES[0], fields)
    assert again.leaf == first.leaf
    other = aggregated_by_others(fields)
    with pytest.raises(TransactionRefused) as caught:
        await rotated.client.submit(HandOver, BUYER, other)
    assert caught.value.details["code"] == "duplicate"


def aggregated_by_others(fields: dict[str, object]) -> dict[str, object]:
    certificate = fields["certificate"]
    assert isinstance(certificate, QuorumCertificate)
    return {**fields, "certificate": certificate.model_copy(update={"signers": 2**21 - 1})}


async def test_seats_without_the_new_shares_stop_the_ledger_and_new_ones_start_it(
    rotated: World,
) -> None:
    """A committee in office that cannot sign is a liveness fault, and nothing is lost by it."""
    await rotated.rotate()

    class Gone(SeatsThatChange):
        async def certify(self, header, block, history):
            return []

        async def resume(self, header, term, history):
            return [], [], []

    await rotated.service.close()
    rotated.seats = Gone(GENESIS)
    rotated.options["wait_timeout_s"] = 0.5
    await rotated.start()
    raw_client = LedgerClient(rotated.service, GENESIS.ledger_id, patience_s=0.5)
    with pytest.raises(LedgerUnavailable):
        await raw_client.transfer(STRANGER.address, 1, BUYER)
    await rotated.service.close()
    rotated.seats = SeatsThatChange(GENESIS)
    rotated.options.pop("wait_timeout_s")
    await rotated.start()
    await rotated.pay()
    assert (await rotated.service.head())[0].epoch == 4


async def test_the_command_line_writes_the_chain_of_committees(
    rotated: World, tmp_path: Path
) -> None:
    out = tmp_path / "keys"
    done = CliRunner().invoke(
        app, ["ledger", "committees", str(out), "--ledger", str(rotated.path), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["last"]["epoch"] == 3
    first, chain = read_committee(out / "committee.json"), read_handovers(out / "handovers.json")
    assert first == COMMITTEE and chain == await rotated.service.handovers()
    assert Committees(first, chain.handovers).last == await rotated.service.committee()
    (out / "handovers.json").write_text("{}}")
    with pytest.raises(ConfigError, match="damaged"):
        read_handovers(out / "handovers.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_handovers(out / "nothing.json")

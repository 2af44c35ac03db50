"""Getting blocks proposed: silent proposers, other builders, restarts; and seals that lie."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ledger_kinds as t
import pytest
from ledger_kit import (
    BUILDER,
    BUYER,
    COMMITTEE,
    DAI,
    DEALING,
    GENESIS,
    NODE,
    OTHER,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    STRANGER,
    T0,
    SeatsHere,
    reseal,
)

from daifi_flows.cnft import QuorumCertificate, beacon_message, skip_message
from daifi_flows.encoding import keccak256
from daifi_flows.errors import LedgerError, LedgerUnavailable, OutOfSync, TransactionRefused
from daifi_flows.keys import Account, aggregate_bls
from daifi_flows.ledger import LedgerClient, LedgerService, Replica, audit
from daifi_flows.ledger._auction import Bid, FaultKind
from daifi_flows.ledger._blocks import MAX_BLOCK_TXS, Block, CertifiedBlock
from daifi_flows.ledger._builder import Builder
from daifi_flows.ledger._certifier import collect_resumed
from daifi_flows.ledger._chain import Chain
from daifi_flows.ledger._proposer import beacon_of
from daifi_flows.ledger._seal import Offer, Seal, open_slot
from daifi_flows.merkle import merkle_root
from daifi_flows.threshold import combine_shares

RIVAL = Account.from_seed(b"rival builder")


def clock() -> int:
    return T0 + 1


@asynccontextmanager
async def running(
    path: Path, certifier: SeatsHere | None = None, **options: Any
) -> AsyncIterator[tuple[LedgerClient, LedgerService]]:
    certifier = certifier or SeatsHere(GENESIS)
    service = LedgerService(
        path, GENESIS, certifier, **({"clock": clock, "builder": BUILDER} | options)
    )
    await service.start()
    try:
        yield LedgerClient(service, GENESIS.ledger_id, patience_s=10), service
    finally:
        await service.close()


def transfer(sender: Account, wei: int, nonce: int = 0) -> bytes:
    tx = t.Transfer(sender=sender.address, nonce=nonce, to=STRANGER.address, amount_wei=wei)
    return tx.signed(sender, GENESIS.ledger_id).encode()


async def blocks_of(service: LedgerService) -> list[Block]:
    return [CertifiedBlock.from_canonical(raw).block for raw in await service.history(1)]


async def test_every_block_is_by_the_seat_that_was_drawn(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db") as (ledger, service):
        for _ in range(6):
            await ledger.transfer(STRANGER.address, 1, BUYER)
        blocks = await blocks_of(service)
    proposers = {block.header.proposer for block in blocks}
    assert proposers <= {account.address for account in SEAT_ACCOUNTS} and len(proposers) > 1
    for block in blocks:
        parent = block.header.parent
        shares = {i: DEALING.secrets[i].sign(beacon_message(parent)) for i in range(7, 21)}
        assert block.seal.beacon == combine_shares(shares), "whoever signs, it is the same"
        assert block.header.beacon == beacon_of(block.seal.beacon)
        assert block.header.builder == BUILDER.address and block.header.round == 0
    assert audit(tmp_path / "a.db").height == 6


async def test_silent_proposers_are_passed_over(tmp_path: Path) -> None:
    certifier = SeatsHere(GENESIS, silent=set(range(15)))
    async with running(tmp_path / "a.db", certifier) as (ledger, service):
        for _ in range(4):
            await ledger.transfer(STRANGER.address, 1, BUYER)
        blocks, certified = await blocks_of(service), await service.history(1)
    talking = {account.address for account in SEAT_ACCOUNTS[15:]}
    assert {block.header.proposer for block in blocks} <= talking
    rounds = [block.header.round for block in blocks]
    assert max(rounds) > 0
    assert all((block.seal.skip is None) == (block.header.round == 0) for block in blocks)
    assert audit(tmp_path / "a.db").height == 4
    late = Replica(GENESIS)
    late.catch_up(certified)
    assert late.height == 4


async def test_a_round_that_seats_passed_over_is_not_proposed_in_after_a_restart(
    tmp_path: Path,
) -> None:
    class Lost(SeatsHere):
        """After passing over round 0, the seats cannot be reached."""

        async def propose(self, *args: Any) -> Any:
            raise LedgerUnavailable("away")

        async def skip(self, *args: Any) -> Any:
            await super().skip(*args)
            raise LedgerUnavailable("away")

    first = Lost(GENESIS)
    async with running(tmp_path / "a.db", first) as (ledger, _):
        sending = asyncio.create_task(ledger.transfer(STRANGER.address, 1, BUYER))
        while not first.passed:
            await asyncio.sleep(0.01)
    with pytest.raises(LedgerUnavailable):
        await sending
    again = SeatsHere(GENESIS, passed=dict(first.passed))
    async with running(tmp_path / "a.db", again) as (ledger, _):
        receipt = await ledger.transfer(STRANGER.address, 1, BUYER)
    assert receipt.header.round == first.passed[1] + 1


async def test_a_new_leader_goes_on_with_the_block_that_seats_signed(tmp_path: Path) -> None:
    """The first leader's disk is lost after some seats signed; nothing forks."""

    class Partial(SeatsHere):
        async def certify(self, *args: Any) -> Any:
            return (await super().certify(*args))[:9]

    seats = Partial(GENESIS)
    async with running(tmp_path / "lost.db", seats) as (ledger, _):
        sending = asyncio.create_task(ledger.transfer(STRANGER.address, 7, BUYER))
        while not seats.asked:
            await asyncio.sleep(0.01)
    with pytest.raises(LedgerUnavailable):
        await sending
    assert seats.replica is not None
    heir = SeatsHere(GENESIS, replica=seats.replica, proposed=dict(seats.proposed))
    async with running(tmp_path / "new.db", heir) as (ledger, _):
        receipt = await ledger.transfer(STRANGER.address, 1, NODE)
        assert (await ledger.account(STRANGER.address)).balance_wei == 8
        assert receipt.header.height == 2
    assert audit(tmp_path / "new.db").height == 2


async def test_a_request_that_a_new_leader_was_sent_again_is_done_once(tmp_path: Path) -> None:
    """Its first transaction is in the block that seats signed, the second has another nonce."""

    def paying(request: bytes, wei: int, nonce: int) -> bytes:
        to, sender = STRANGER.address, BUYER.address
        tx = t.Transfer(sender=sender, nonce=nonce, to=to, amount_wei=wei, request=request)
        return tx.signed(BUYER, GENESIS.ledger_id).encode()

    class Partial(SeatsHere):
        async def certify(self, *args: Any) -> Any:
            return (await super().certify(*args))[:9]

    one, two = bytes([1]) * 32, bytes([2]) * 32
    seats = Partial(GENESIS)
    async with running(tmp_path / "lost.db", seats) as (_, service):
        first = await service.enqueue(paying(one, 7, 0))
        while not seats.asked:
            await asyncio.sleep(0.01)
    heir = SeatsHere(GENESIS, replica=seats.replica, proposed=dict(seats.proposed))
    async with running(tmp_path / "new.db", heir) as (ledger, service):
        sent = [
            await service.enqueue(paying(two, 100, 0)),
            await service.enqueue(paying(one, 7, 1)),
        ]
        for tx in sent:
            with pytest.raises(TransactionRefused):
                await service.wait(tx)
        again = await service.enqueue(paying(one, 7, 1))
        assert again == first and (await service.wait(again)).leaf.tx == first
        assert (await ledger.account(STRANGER.address)).balance_wei == 7


async def test_a_leader_that_was_replaced_gets_nothing_signed_and_stops(tmp_path: Path) -> None:
    """What the new one was told by the seats stays so: the old one cannot split them after."""
    seats = SeatsHere(GENESIS)
    async with running(tmp_path / "old.db", seats) as (_, old):
        receipt = await old.submit(transfer(BUYER, 1))
        newer = T0 + 10**6
        told = await collect_resumed(seats, COMMITTEE, receipt.header, newer, old.history)
        assert (told.passed, told.blocks) == (None, [])
        with pytest.raises(LedgerError, match="start it again as a follower"):
            await old.submit(transfer(BUYER, 1, 1))
        assert not seats.passed and seats.asked == [1], "nobody signed or passed over anything"


def test_a_term_from_the_future_fences_nobody() -> None:
    replica = Replica(GENESIS, clock=clock)
    with pytest.raises(LedgerError, match="in the future"):
        replica.confirm(replica._head, clock() + 10**6)
    replica.confirm(replica._head, clock())
    block = first_block(replica)
    with pytest.raises(LedgerError, match="in the future"):
        replica.check(block.model_copy(update={"term": clock() + 10**6}).canonical())


@pytest.mark.parametrize("claim", [2**20 - 2, 2**20, 2**40])
async def test_one_seats_word_does_not_use_up_the_rounds(tmp_path: Path, claim: int) -> None:
    class Lying(SeatsHere):
        async def resume(self, *args: Any) -> Any:
            shares, passed, blocks = await super().resume(*args)
            return shares, [*passed, claim], blocks

    async with running(tmp_path / "a.db", Lying(GENESIS)) as (ledger, _):
        assert (await ledger.transfer(STRANGER.address, 1, BUYER)).header.round == 0


@pytest.mark.parametrize("answer", [(0, b""), (0, bytes(65)), None, ()])
async def test_a_drawn_seat_that_answers_nonsense_is_passed_over(
    tmp_path: Path, answer: Any
) -> None:
    class Lying(SeatsHere):
        first = -1

        async def propose(self, seat: int, offer: bytes, history: Any) -> Any:
            if self.first in (-1, seat):
                self.first = seat
                digest = Offer.from_canonical(offer).bids[0].header.digest
                return (digest, answer[1]) if answer else answer
            return await super().propose(seat, offer, history)

    async with running(tmp_path / "a.db", Lying(GENESIS)) as (ledger, _):
        assert (await ledger.transfer(STRANGER.address, 1, BUYER)).header.round == 1


async def test_a_block_that_a_host_shows_carries_the_leaders_own_word_for_its_parent(
    tmp_path: Path,
) -> None:
    """A block's hash does not bind the parent's certificate that comes with it."""

    class Partial(SeatsHere):
        async def certify(self, header: Any, *args: Any) -> Any:
            found = await super().certify(header, *args)
            return found[:9] if header.height == 2 else found

    class Lying(SeatsHere):
        async def resume(self, *args: Any) -> Any:
            shares, passed, blocks = await super().resume(*args)
            bare = [
                Block.from_canonical(raw).model_copy(update={"justify": None}) for raw in blocks
            ]
            return shares, passed, [block.canonical() for block in bare]

    path, seats = tmp_path / "a.db", Partial(GENESIS)
    async with running(path, seats) as (ledger, service):
        await ledger.transfer(STRANGER.address, 1, BUYER)
        await service.backup(tmp_path / "b.db")
        sending = asyncio.create_task(ledger.transfer(STRANGER.address, 7, BUYER))
        while 2 not in seats.asked:
            await asyncio.sleep(0.01)
    with pytest.raises(LedgerUnavailable):
        await sending
    heir = Lying(GENESIS, replica=seats.replica, proposed=dict(seats.proposed))
    async with running(tmp_path / "b.db", heir) as (ledger, _):
        await ledger.transfer(STRANGER.address, 1, NODE)
        assert (await ledger.account(STRANGER.address)).balance_wei == 9
    assert audit(tmp_path / "b.db").height == 3


def test_a_seat_shows_the_block_that_it_executed() -> None:
    replica, block = Replica(GENESIS), first_block(Replica(GENESIS))
    digest = replica.check(block.canonical())
    hollow = block.model_copy(update={"transactions": (b"junk",), "term": block.term + 1})
    assert replica.check(hollow.canonical()) == digest, "it was signed: the same again"
    assert replica.signed_after(replica._head.digest) == block.canonical()


def first_block(replica: Replica) -> Block:
    chain = Chain(GENESIS)
    chain.add(transfer(BUYER, 1), clock())
    message = beacon_message(replica._head.digest)
    beacon = combine_shares({i: DEALING.secrets[i].sign(message) for i in range(14)})
    chain.close(chain.slot(beacon, 0), BUILDER.address, 0)
    chain.seal(Seal(beacon=beacon, builder=bytes(65), proposer=bytes(65)), clock())
    return reseal(Block.from_canonical(chain.pending[0].proposal))


# Builders


class Hostile:
    """Bids for a block that is none."""

    def __init__(self, body: list[bytes], **wrong: Any) -> None:
        self._body, self._wrong = body, wrong

    async def bid(self, slot: Any) -> Bid:
        parent = slot.parent
        named = {
            "height": parent.height + 1, "parent": parent.digest, "beacon": slot.beacon,
            "round": slot.round, "proposer": slot.proposer, "builder": NODE.address,
            "tx_root": merkle_root(self._body), "timestamp_ms": clock(),
        }  # fmt: skip
        return Bid.sign(parent.model_copy(update=named | self._wrong), 1, NODE)

    async def body(self, block_hash: bytes) -> list[bytes]:
        return self._body


async def test_a_body_that_is_no_block_is_passed_over(tmp_path: Path) -> None:
    too_many = Hostile([number.to_bytes(2, "big") for number in range(MAX_BLOCK_TXS + 1)])
    async with running(tmp_path / "a.db", builders=[too_many]) as (ledger, service):
        receipt = await ledger.transfer(STRANGER.address, 1, BUYER)
        assert receipt.header.round == 1 and receipt.header.builder == BUILDER.address
        assert [(fault.kind, fault.who) for fault in service.faults] == [
            (FaultKind.BROKEN_RULE, NODE.address)
        ]


async def test_what_is_no_bid_or_from_the_future_is_not_offered(tmp_path: Path) -> None:
    class NoBid(Hostile):
        async def bid(self, slot: Any) -> Any:
            return {"bid_wei": 1}

    late = Hostile([transfer(NODE, 1)], timestamp_ms=clock() + 10**9)
    async with running(tmp_path / "a.db", builders=[NoBid([]), late]) as (ledger, _):
        assert (await ledger.transfer(STRANGER.address, 1, BUYER)).header.round == 0


async def test_the_builder_pays_its_bid_to_the_proposer(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", builder=OTHER, bid_wei=DAI) as (ledger, service):
        receipts = await asyncio.gather(
            *(ledger.transfer(STRANGER.address, 1, who) for who in (BUYER, NODE))
        )
        await ledger.transfer(STRANGER.address, 1, BUYER)
        blocks = await blocks_of(service)
        paid = sum(block.seal.bid_wei for block in blocks)
        assert paid == len(blocks) * DAI
        assert (await ledger.account(OTHER.address)).balance_wei == 200 * DAI - paid
        for proposer in {block.header.proposer for block in blocks}:
            mine = sum(b.header.proposer == proposer for b in blocks)
            assert (await ledger.account(proposer)).balance_wei == mine * DAI
        supply = await ledger.supply()
        assert supply.conserved and len({r.header.height for r in receipts}) <= 2
    assert audit(tmp_path / "a.db").supply.conserved


async def test_transactions_that_came_after_a_paid_block_are_executed_again(
    tmp_path: Path,
) -> None:
    """They were executed before it was known whom the builder pays."""
    gate = asyncio.Event()

    class Gated(SeatsHere):
        async def propose(self, *args: Any) -> Any:
            await gate.wait()
            return await super().propose(*args)

    path = tmp_path / "a.db"
    async with running(path, Gated(GENESIS), builder=OTHER, bid_wei=DAI) as (ledger, service):
        first = asyncio.create_task(ledger.transfer(STRANGER.address, 1, BUYER))
        await asyncio.sleep(0.05)
        # All that the builder has: it fits only while the bid is not paid.
        greedy = await service.enqueue(transfer(OTHER, 200 * DAI))
        fine = await service.enqueue(transfer(NODE, 3))
        gate.set()
        await first
        with pytest.raises(TransactionRefused, match="fund it"):
            await service.wait(greedy)
        await service.wait(fine)
        assert (await ledger.account(STRANGER.address)).balance_wei == 4
    assert audit(path).supply.conserved


async def rival(bid_wei: int, *raws: bytes) -> Builder:
    builder = Builder(GENESIS, NODE, bid_wei, clock)
    for raw in raws:
        builder.add(raw)
    return builder


async def test_another_builder_wins_with_a_higher_bid(tmp_path: Path) -> None:
    other = await rival(5, transfer(NODE, 10), transfer(BUYER, 20))
    path = tmp_path / "a.db"
    async with running(path, builder=OTHER, bid_wei=4, builders=[other]) as (ledger, service):
        receipt = await ledger.transfer(STRANGER.address, 1, OTHER)
        first, second = await blocks_of(service)
        assert (first.header.builder, second.header.builder) == (NODE.address, OTHER.address)
        assert len(first.transactions) == 2 and receipt.header.height == 2
        assert first.seal.bid_wei == 5
        assert (await ledger.account(NODE.address)).balance_wei == 200 * DAI - 15
        # The rival lags now: its bids are for a block that is final.
        await ledger.transfer(STRANGER.address, 1, OTHER)
        other.follow(await service.history(1))
        assert other.height == 3
    assert audit(path).height == 3


async def test_a_transaction_that_two_builders_have_is_settled_once(tmp_path: Path) -> None:
    same = transfer(BUYER, 20)
    other = await rival(5, same)
    async with running(tmp_path / "a.db", builders=[other]) as (ledger, service):
        receipt = await service.submit(same)
        (block,) = await blocks_of(service)
        assert receipt.header.builder == NODE.address and block.transactions == (same,)
        assert (await ledger.account(STRANGER.address)).balance_wei == 20
        assert (await service.health()).pending == 0


async def test_who_is_refused_on_top_of_the_winners_block_is_told(tmp_path: Path) -> None:
    other = await rival(5, transfer(BUYER, 20))
    async with running(tmp_path / "a.db", builders=[other]) as (_, service):
        with pytest.raises(TransactionRefused) as refused:
            await service.submit(transfer(BUYER, 30))
        assert refused.value.details["code"] == "bad-nonce"


@pytest.mark.parametrize("how", ["never", "another", "raises", "breaks a rule"])
async def test_a_builder_that_does_not_show_its_body_is_passed_over(
    tmp_path: Path, how: str
) -> None:
    other = await rival(5, transfer(NODE, 10))

    class Withholding:
        bids = 0

        async def bid(self, slot: Any) -> Bid | None:
            self.bids += 1
            bid = await other.bid(slot)
            if how == "breaks a rule" and bid is not None:
                wrong = bid.header.model_copy(update={"state_root": keccak256(b"wrong")})
                return Bid.sign(wrong, bid.bid_wei, NODE)
            return bid

        async def body(self, block_hash: bytes) -> Any:
            if how == "never":
                await asyncio.sleep(60)
            if how == "raises":
                raise RuntimeError("no")
            return [transfer(NODE, 11 if how == "another" else 10)]

    port = Withholding()
    async with running(tmp_path / "a.db", builders=[port]) as (ledger, service):
        receipt = await ledger.transfer(STRANGER.address, 1, BUYER)
        assert receipt.header.builder == BUILDER.address and receipt.header.round == 1
        (fault,) = service.faults
        kind = FaultKind.BROKEN_RULE if how == "breaks a rule" else FaultKind.WITHHELD
        assert (fault.kind, fault.who) == (kind, NODE.address)
        assert port.bids == 2


async def test_builders_that_fail_or_dawdle_hold_nobody_up(tmp_path: Path) -> None:
    class Failing:
        async def bid(self, slot: Any) -> Bid | None:
            raise RuntimeError("no")

        async def body(self, block_hash: bytes) -> Any:
            raise AssertionError("it never won")

    class Slow(Failing):
        async def bid(self, slot: Any) -> Bid | None:
            await asyncio.sleep(60)
            return None

    builders = [Failing(), Slow()]
    async with running(tmp_path / "a.db", builders=builders) as (ledger, _):
        assert (await ledger.transfer(STRANGER.address, 1, BUYER)).header.round == 0


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_builders_and_seats_do_the_chain_is_sound(tmp_path: Path, seed: int) -> None:
    """Rivals bid at random and sometimes hide their bodies, seats fall silent, leaders restart."""
    draw, path, sent = random.Random(seed), tmp_path / "a.db", 0
    for _ in range(3):
        silent = set(draw.sample(range(21), draw.randint(0, 12)))
        port = await rival(0)
        async with running(
            path, SeatsHere(GENESIS, silent=silent), builder=OTHER, bid_wei=2, builders=[port]
        ) as (ledger, service):
            for _ in range(4):
                port.follow(await service.history(port.height + 1))
                port._bid_wei = draw.choice([0, 1, 3, 4])
                if draw.random() < 0.6:
                    nonce = await service.next_nonce(NODE.address)
                    port.add(transfer(NODE, 1, nonce))
                if draw.random() < 0.3:
                    port._bodies = Hidden()
                before = (await ledger.account(STRANGER.address)).balance_wei
                await ledger.transfer(STRANGER.address, 100, BUYER)
                sent += 100
                after = (await ledger.account(STRANGER.address)).balance_wei
                assert after - before in (100, 101), "a rival's transaction came along, or not"
                port._bodies = {}
            certified = await service.history(1)
    report = audit(path)
    assert report.supply.conserved and report.height >= 12
    late = Replica(GENESIS)
    late.catch_up(certified)
    assert late.height == report.height
    assert late._base.account(STRANGER.address).balance_wei // 100 * 100 == sent


class Hidden(dict[bytes, tuple[bytes, ...]]):
    """Bodies that are never found again."""

    def __setitem__(self, key: bytes, value: tuple[bytes, ...]) -> None:
        pass


# Seals that lie


@pytest.fixture
async def sealed(tmp_path: Path) -> tuple[Block, QuorumCertificate]:
    async with running(tmp_path / "a.db", builder=OTHER, bid_wei=3) as (ledger, service):
        await ledger.transfer(STRANGER.address, 1, BUYER)
        certified = CertifiedBlock.from_canonical((await service.history(1))[0])
        return certified.block, certified.certificate


def beacon_after(parent: bytes, seats: range) -> bytes:
    return combine_shares({i: DEALING.secrets[i].sign(beacon_message(parent)) for i in seats})


def skip_by(parent: bytes, round: int, seats: range) -> QuorumCertificate:
    message = skip_message(parent, round)
    signature = aggregate_bls([SEAT_KEYS[i].sign(message) for i in seats])
    return QuorumCertificate(signers=sum(1 << i for i in seats), signature=signature)


def lies(block: Block) -> dict[str, tuple[Block, str]]:
    """Blocks that seats must not sign, each signed by everyone it names."""
    header, seal = block.header, block.seal
    parent = header.parent

    def with_seal(signer: Account = OTHER, head: dict[str, Any] | None = None, **changes: Any):
        changed = block.model_copy(update={"seal": seal.model_copy(update=changes)})
        return reseal(changed, signer, **(head or {}))

    colluding = beacon_after(parent, range(13))
    other = next(a.address for a in SEAT_ACCOUNTS if a.address != header.proposer)
    return {
        "a beacon of 13 seats": (
            with_seal(beacon=colluding, head={"beacon": beacon_of(colluding)}),
            "group key did not sign",
        ),
        "a beacon of another parent": (
            with_seal(beacon=beacon_after(keccak256(b"x"), range(14))),
            "group key did not sign",
        ),
        "a chosen beacon beside the signed one": (
            reseal(block, OTHER, beacon=keccak256(b"mine")),
            "beacon",
        ),
        "a proposer that was not drawn": (reseal(block, OTHER, proposer=other), "drawn was"),
        "a later round that nobody passed to": (
            reseal(block, OTHER, round=1),
            "no quorum passed over",
        ),
        "a skip by 13 seats": (
            with_seal(skip=skip_by(parent, 0, range(13)), head={"round": 1}),
            "no quorum passed over",
        ),
        "a skip of another round": (
            with_seal(skip=skip_by(parent, 1, range(14)), head={"round": 1}),
            "no quorum passed over",
        ),
        "a skip of another height": (
            with_seal(skip=skip_by(keccak256(b"x"), 0, range(14)), head={"round": 1}),
            "no quorum passed over",
        ),
        "a skip before round 0": (with_seal(skip=skip_by(parent, 0, range(14))), "before its"),
        "a builder that did not sign": (reseal(block, BUYER), "not signed by its builder"),
        "a bid that is not the signed one": (
            block.model_copy(update={"seal": seal.model_copy(update={"bid_wei": 2})}),
            "not signed by its builder",
        ),
        "a bid that is not paid": (with_seal(bid_wei=2), "wrong state root"),
        "a bid beyond the builder's means": (with_seal(bid_wei=10**30), "bid"),
        "a proposer that did not sign": (
            block.model_copy(update={"seal": seal.model_copy(update={"proposer": bytes(65)})}),
            "not signed by its proposer",
        ),
        "another order of transactions": (
            block.model_copy(update={"transactions": block.transactions[::-1] * 2}),
            "",
        ),
    }


async def test_no_seat_signs_a_block_with_a_lying_seal(
    sealed: tuple[Block, QuorumCertificate],
) -> None:
    block, _ = sealed
    for name, (lie, why) in lies(block).items():
        replica = Replica(GENESIS)
        with pytest.raises(LedgerError) as refused:
            replica.check(lie.canonical())
        assert why.replace("state root", "state_root") in str(refused.value), name
        assert replica.check(block.canonical()) == block.header.digest, name


async def test_a_seat_moves_on_to_a_round_that_a_quorum_passed_to(
    sealed: tuple[Block, QuorumCertificate],
) -> None:
    block, certificate = sealed
    replica = Replica(GENESIS)
    replica.check(block.canonical())
    parent, state = replica._head, replica._base
    slot = open_slot(parent, state, block.seal.beacon, 1)
    seal = block.seal.model_copy(
        update={"skip": skip_by(parent.digest, 0, range(7, 21)), "bid_wei": 0}
    )
    later = reseal(block.model_copy(update={"seal": seal}), OTHER, round=1, proposer=slot.proposer)
    with pytest.raises(LedgerError, match="wrong state_root"):
        replica.check(later.canonical())  # its state root has the bid of round 0 in it
    free = _without_bid(later)
    assert replica.check(free.canonical()) == free.header.digest
    with pytest.raises(LedgerError, match="signed already"):
        replica.check(block.canonical())
    # The other was final after all (more than f seats lied): what is certified is followed.
    certified = CertifiedBlock(block=block, certificate=certificate)
    replica.catch_up([certified.canonical()])
    assert replica.confirm(block.header, block.term) is None
    with pytest.raises(LedgerError, match="conflicts"):
        replica.check(free.canonical())


def _without_bid(block: Block) -> Block:
    from daifi_flows.ledger._blocks import build
    from daifi_flows.ledger._machine import BlockEnv
    from daifi_flows.ledger._state import Layer
    from daifi_flows.ledger._tx import parse_transaction
    from daifi_flows.merkle import MountainRange

    fresh = Replica(GENESIS)
    layer = Layer(fresh._base)
    env = BlockEnv(block.header.timestamp_ms, 1)
    receipts = [
        fresh._machine.execute(layer, parse_transaction(raw), env, size=len(raw))
        for raw in block.transactions
    ]
    slot = open_slot(fresh._head, fresh._base, block.seal.beacon, block.header.round)
    candidate = build(
        slot, fresh._trie, MountainRange(), layer, builder=OTHER.address, bid_wei=0,
        transactions=block.transactions, receipts=receipts,
        timestamp_ms=block.header.timestamp_ms,
    )  # fmt: skip
    return reseal(block, OTHER, state_root=candidate.header.state_root)


# What a drawn proposer signs


def offer_of(block: Block, **changes: Any) -> bytes:
    bid = Bid(header=block.header, bid_wei=block.seal.bid_wei, signature=block.seal.builder)
    values = {"justify": block.justify, "beacon": block.seal.beacon, "bids": (bid,)}
    return Offer.model_validate(values | changes).canonical()


async def test_a_proposer_signs_only_in_its_turn(
    sealed: tuple[Block, QuorumCertificate],
) -> None:
    block, certificate = sealed
    replica, header = Replica(GENESIS, clock=clock), block.header
    assert replica.choose(offer_of(block), header.proposer) == header
    other = next(a.address for a in SEAT_ACCOUNTS if a.address != header.proposer)
    unsigned = Bid(header=header, bid_wei=3, signature=bytes(65))
    wrong: list[tuple[bytes, str, str]] = [
        (offer_of(block), other, "is drawn"),
        (offer_of(block, beacon=beacon_after(header.parent, range(13))), header.proposer, "group"),
        (offer_of(block, bids=(unsigned,)), header.proposer, "builder did not sign"),
        (b"junk", header.proposer, "cannot be read"),
        (offer_of(reseal(block, OTHER, timestamp_ms=T0 + 200_000)), header.proposer, "future"),
        (offer_of(reseal(block, OTHER, parent=keccak256(b"x"))), header.proposer, "parent"),
    ]
    for offer, account, why in wrong:
        with pytest.raises(LedgerError, match=why):
            replica.choose(offer, account)
    ahead, now = reseal(block, OTHER, timestamp_ms=T0 + 200_000), Bid.sign(header, 3, OTHER)
    both = (Bid(header=ahead.header, bid_wei=3, signature=ahead.seal.builder), now)
    assert replica.choose(offer_of(block, bids=both), header.proposer) == header
    with pytest.raises(OutOfSync):
        replica.choose(offer_of(reseal(block, OTHER, height=2)), header.proposer)
    replica.catch_up([CertifiedBlock(block=block, certificate=certificate).canonical()])
    with pytest.raises(LedgerError, match="final already"):
        replica.choose(offer_of(block), header.proposer)


def test_the_slot_follows_from_the_state_alone() -> None:
    fresh = Replica(GENESIS)
    signature = beacon_after(fresh._head.digest, range(14))
    seats = [open_slot(fresh._head, fresh._base, signature, r).seat for r in range(21)]
    assert sorted(seats) == list(range(21))
    with pytest.raises(LedgerError, match="no round"):
        open_slot(fresh._head, fresh._base, signature, -1)

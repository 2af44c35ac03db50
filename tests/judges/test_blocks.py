"""What seats say about blocks: one word each, on disk first; and the certifier that asks them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import (
    BlockHeader,
    QuorumCertificate,
    beacon_message,
    proposal_digest,
    skip_message,
)
from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError, LedgerError
from daifi_flows.judges import SeatKeys, make_committee
from daifi_flows.judges._blocks import ROUND_S, BlockOffice
from daifi_flows.judges._byzantine import traitors
from daifi_flows.judges._certifier import BlockCertifier
from daifi_flows.judges._journal import KEPT_HEIGHTS, SHOWN_BLOCKS, Journal
from daifi_flows.judges._messages import CertifyReply, HostLost
from daifi_flows.keys import Account, recover_address, verify_bls
from daifi_flows.threshold import recover_signature, shares_sound

LEDGER = keccak256(b"ledger")
KINDS = ("bls", "account", "share")
PROPOSER = Account.from_seed(b"p").address


def header(height: int = 5, round: int = 0, body: int = 0) -> BlockHeader:
    zero = bytes(32)
    return BlockHeader(
        ledger_id=LEDGER, height=height, parent=zero, tx_root=body.to_bytes(32, "big"),
        receipt_root=zero, state_root=zero, history_root=zero, history_size=0, timestamp_ms=0,
        proposer=PROPOSER, builder=PROPOSER, beacon=zero, round=round, epoch=0, committee=zero,
    )  # fmt: skip


class Careless:
    """A validator that agrees to every header: what the journal allows is what is left."""

    signed = b""

    def check(self, block: bytes) -> bytes:
        self.signed = block
        return BlockHeader.from_canonical(block).digest

    def choose(self, offer: bytes, account: str) -> BlockHeader:
        if offer == b"no bids":
            raise LedgerError("no bid can win")
        return BlockHeader.from_canonical(offer)

    def confirm(self, header: BlockHeader, term: int) -> None:
        if term < 5:
            raise LedgerError("an old writer", fenced_by=5)
        if header.height > 8:
            raise LedgerError("behind", from_height=8)

    def signed_after(self, parent: bytes) -> bytes:
        return self.signed

    def catch_up(self, blocks: Sequence[bytes]) -> None: ...


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def office_of(seats: Any, tmp_path: Path) -> Callable[..., BlockOffice]:
    def make(
        indices: Sequence[int] = range(21), byzantine: dict[int, str] | None = None,
        clock: Clock | None = None,
    ) -> BlockOffice:  # fmt: skip
        keys = {index: seats.keys(index) for index in indices}
        return BlockOffice(
            seats.committee, keys, traitors(keys, byzantine or {}),
            Journal(tmp_path / "seats.sqlite"), Careless, clock or Clock(),
        )  # fmt: skip

    return make


def certify(office: BlockOffice, head: BlockHeader) -> tuple[int, ...]:
    reply = office.certify(head.canonical(), head.canonical())
    return tuple(index for index, _ in reply.partials)


def skip(office: BlockOffice, round: int) -> tuple[int, ...]:
    """Seats that pass over rounds of block 5 up to this one, without the wait."""
    parent = header(4).canonical()
    office.skip(parent, round, 5)
    office._clock.now += ROUND_S  # pyright: ignore
    return tuple(index for index, _ in office.skip(parent, round, 5).partials)


ALL = tuple(range(21))


def test_a_signature_comes_with_a_share_of_the_next_beacon(office_of: Any, seats: Any) -> None:
    reply = office_of().certify(header().canonical(), header().canonical())
    committee, digest = seats.committee, header().digest
    for index, partial in reply.partials:
        public = committee.seats[index].public
        assert verify_bls(public, QuorumCertificate.message(digest), partial)
    publics = [seat.share for seat in committee.seats]
    signature = recover_signature(
        committee.group_key, publics, 14, beacon_message(digest), dict(reply.shares)
    )
    assert verify_bls(committee.group_key, beacon_message(digest), signature)
    again = office_of(range(7, 21)).resume(header().canonical(), 5)
    assert dict(again.shares) == dict(reply.shares[7:])


def test_a_seat_signs_one_hash_a_height_and_round_across_restarts(office_of: Any) -> None:
    assert certify(office_of(), header(body=1)) == ALL
    assert certify(office_of(), header(body=1)) == ALL
    other = office_of().certify(header(body=2).canonical(), header(body=2).canonical())
    assert other.partials == () and other.shares == () and other.refused
    assert certify(office_of(), header(round=1, body=2)) == ALL, "a quorum passed over round 0"
    assert certify(office_of(), header(body=1)) == (), "never back to an earlier round"


def test_grinding_the_beacon_gets_no_second_share(office_of: Any) -> None:
    """A proposer tries bodies until the next draw is its own: seats share for one only."""
    office = office_of()
    shared = [
        body
        for body in range(50)
        if office.certify(header(body=body).canonical(), header(body=body).canonical()).shares
    ]
    assert shared == [0]


def test_a_seat_that_passed_over_a_round_signs_none_of_its_blocks(office_of: Any) -> None:
    office = office_of(range(10))
    assert skip(office, 1) == tuple(range(10))
    for round in (0, 1):
        assert certify(office_of(), header(round=round)) == tuple(range(10, 21))
    assert certify(office_of(), header(round=2)) == ALL


def test_a_seat_that_signed_a_block_does_not_pass_over_its_round(office_of: Any) -> None:
    assert certify(office_of(range(8)), header(round=1)) == tuple(range(8))
    assert skip(office_of(), 0) == ALL, "the signed block is of a later round"
    assert skip(office_of(), 1) == tuple(range(8, 21))
    assert skip(office_of(), 3) == tuple(range(8, 21))


def test_a_proposer_is_waited_for_before_it_is_passed_over(office_of: Any, seats: Any) -> None:
    clock = Clock()
    office, parent = office_of(clock=clock), header(4)
    assert office.skip(parent.canonical(), 0, 5).wait_s == pytest.approx(ROUND_S)
    clock.now += ROUND_S / 2
    assert office.skip(parent.canonical(), 0, 5).wait_s == pytest.approx(ROUND_S / 2)
    clock.now += ROUND_S / 2
    reply = office.skip(parent.canonical(), 0, 5)
    assert reply.wait_s is None
    message = skip_message(parent.digest, 0)
    for index, partial in reply.partials:
        assert verify_bls(seats.committee.seats[index].public, message, partial)
    assert office.skip(parent.canonical(), 1, 5).wait_s == pytest.approx(ROUND_S), "each round anew"
    assert office.skip(parent.canonical(), -1, 5).refused
    for round in range(2, 200):
        assert office.skip(parent.canonical(), round, 5).wait_s == pytest.approx(ROUND_S)
    assert len(office._asked) == 64
    assert office.resume(parent.canonical(), 5).passed == 0


def test_a_drawn_seat_proposes_one_header_a_height_and_round(office_of: Any, seats: Any) -> None:
    reply = office_of().propose(3, header(body=1).canonical())
    assert reply.block_hash == header(body=1).digest
    signer = recover_address(proposal_digest(reply.block_hash), reply.signature)
    assert signer == seats.committee.seats[3].account
    again = office_of(range(7)).propose(3, header(body=1).canonical())
    assert again == reply
    assert "proposed another block" in office_of().propose(3, header(body=2).canonical()).refused
    assert office_of().propose(3, header(round=1, body=2).canonical()).signature
    assert office_of().propose(3, header(height=6, body=2).canonical()).signature
    assert office_of().propose(4, header(body=2).canonical()).signature, "each seat for itself"


def test_what_a_seat_does_not_propose(office_of: Any) -> None:
    assert office_of(range(7)).propose(9, header().canonical()).absent
    assert "no bid can win" in office_of().propose(1, b"no bids").refused
    assert office_of(byzantine={1: "silent"}).propose(1, header().canonical()).refused


def test_far_older_heights_are_never_signed_again(office_of: Any) -> None:
    office = office_of()
    certify(office, header(KEPT_HEIGHTS + 10))
    assert certify(office, header(10)) == ()
    assert certify(office, header(11)) == ALL


def test_who_begins_to_propose_learns_of_a_signed_block(office_of: Any) -> None:
    office = office_of()
    assert office.resume(header(4).canonical(), 5).block == b""
    certify(office, header())
    reply = office.resume(header(4).canonical(), 5)
    assert reply.block == header().canonical() and reply.passed is None
    assert office.resume(header(9).canonical(), 5).needs_from == 8


def after(parent: BlockHeader, round: int = 0, body: int = 0) -> BlockHeader:
    return header(parent.height + 1, round, body).model_copy(update={"parent": parent.digest})


def test_a_signed_block_is_shown_after_all_hosts_restarted(office_of: Any) -> None:
    block = after(header(4))
    certify(office_of(range(14)), block)
    for seats in (range(7), range(7, 21)):
        assert office_of(seats).resume(header(4).canonical(), 5).block == block.canonical()
    assert office_of(range(14, 21)).resume(header(4).canonical(), 5).block == b"", (
        "not signed there"
    )
    assert office_of().resume(header(3).canonical(), 5).block == b"", "not on top of this one"
    assert certify(office_of(), block) == ALL, "and it can be finished"


def test_the_latest_rounds_block_is_shown(office_of: Any) -> None:
    first, second = after(header(4), body=1), after(header(4), round=1, body=2)
    certify(office_of(), first)
    certify(office_of(range(7)), second)
    assert office_of().resume(header(4).canonical(), 5).block == second.canonical()
    assert office_of(range(7, 21)).resume(header(4).canonical(), 5).block == first.canonical()


def test_a_block_that_the_seats_did_not_sign_does_not_hide_the_one_they_did(
    office_of: Any,
) -> None:
    signed, other = after(header(4), body=1), after(header(4), body=2)
    certify(office_of(), signed)
    office = office_of()
    assert certify(office, other) == ()
    assert office.resume(header(4).canonical(), 5).block == signed.canonical()


def test_bytes_that_were_not_checked_are_not_kept(office_of: Any) -> None:
    class Executing(Careless):
        """Like a replica: what it gave out before it does not look at again."""

        def check(self, block: bytes) -> bytes:
            self.signed = self.signed or block
            return BlockHeader.from_canonical(self.signed).digest

    block, office = after(header(4)), office_of()
    office._validator = Executing()
    office._validator.check(block.canonical())
    assert office.certify(block.canonical(), b"junk").partials
    assert office_of().resume(header(4).canonical(), 5).block == block.canonical()


def test_only_the_newest_signed_blocks_are_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "seats.sqlite")

    def sign(seats: Sequence[int], height: int, body: int) -> bytes:
        digest = keccak256(bytes([height, body]))
        parent = bytes([height - 1]) * 32
        assert journal.may_sign_block(
            seats, LEDGER, height, 0, digest, parent=parent, block=digest * 9
        ) == tuple(seats)
        return digest * 9

    def shown(height: int, seats: Sequence[int] = ALL) -> bytes:
        return journal.signed_after(seats, LEDGER, bytes([height - 1]) * 32)

    def kept() -> int:
        return journal._database.read("SELECT COUNT(*) FROM block", ())[0][0]

    blocks = {height: sign(ALL, height, 0) for height in range(1, 10)}
    assert kept() == 2 and shown(7) == b""
    assert shown(8) == blocks[8] and shown(9) == blocks[9]
    for seat in range(13):
        sign([seat], 10, seat)
    assert kept() == 1 + SHOWN_BLOCKS
    most = sign(range(13, 21), 10, 99)
    assert kept() == 1 + SHOWN_BLOCKS and shown(10, range(13, 21)) == most
    late = journal.may_sign_block([30], LEDGER, 5, 0, bytes(32), parent=bytes(32), block=b"x")
    assert late == (30,) and kept() == 1 + SHOWN_BLOCKS, "an old height's is not kept"


# The certifier


class Local:
    """A transport to seats in this process."""

    def __init__(self, office: BlockOffice) -> None:
        self.office = office
        self.down = False

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            if self.down:
                raise HostLost("down")
            return await asyncio.to_thread(getattr(self.office, name), *arguments)

        return call


async def history(start: int) -> list[bytes]:
    return []


@pytest.fixture
def hosts(office_of: Any) -> list[Local]:
    liars = dict.fromkeys(range(3), "always-reject") | {20: "silent"}
    return [Local(office_of(range(n * 7, n * 7 + 7), liars)) for n in range(3)]


async def test_the_seat_is_asked_where_it_is(hosts: list[Local], seats: Any) -> None:
    certifier = BlockCertifier(hosts, seats.committee, timeout_s=5)  # pyright: ignore
    for seat in (9, 9, 0):
        block_hash, signature = await certifier.propose(seat, header().canonical(), history)
        signer = recover_address(proposal_digest(block_hash), signature)
        assert signer == seats.committee.seats[seat].account
    with pytest.raises(CommitteeError, match="silent"):
        await certifier.propose(20, header().canonical(), history)
    with pytest.raises(CommitteeError, match="no host has it"):
        await certifier.propose(50, header().canonical(), history)
    hosts[1].down = True
    with pytest.raises(CommitteeError, match="down"):
        await certifier.propose(9, header().canonical(), history)
    assert (await certifier.propose(0, header().canonical(), history))[0] == header().digest


async def test_skips_are_collected_and_liars_left_out(hosts: list[Local], seats: Any) -> None:
    for host in hosts:
        host.office._clock = asyncio.get_running_loop().time
    certifier = BlockCertifier(hosts, seats.committee, timeout_s=10)  # pyright: ignore
    partials = await certifier.skip(header(4), 0, 5, history)
    assert [index for index, _ in partials] == list(range(3, 20))
    shares, passed, blocks = await certifier.resume(header(4), 5, history)
    assert [index for index, _ in shares] == list(range(3, 20))
    assert passed == [0, 0, 0] and blocks == []


async def test_what_was_signed_is_shown_to_the_next_leader(hosts: list[Local], seats: Any) -> None:
    certifier = BlockCertifier(hosts[:2], seats.committee, timeout_s=1)  # pyright: ignore
    await certifier.certify(header(), header().canonical(), history)
    everyone = BlockCertifier(hosts, seats.committee, timeout_s=5)  # pyright: ignore
    _, _, blocks = await everyone.resume(header(4), 5, history)
    assert blocks == [header().canonical()]


async def test_a_host_speaks_for_its_own_seats_only(hosts: list[Local], seats: Any) -> None:
    """Whoever answers first must not fill the places of others' shares of the beacon."""

    class Greedy(Local):
        def __getattr__(self, name: str) -> Any:
            async def call(*arguments: Any) -> Any:
                reply = getattr(self.office, name)(*arguments)
                return replace(reply, shares=tuple((i, bytes(96)) for i in range(21)))

            return call

    everyone = [Greedy(hosts[0].office), *hosts[1:]]
    certifier = BlockCertifier(everyone, seats.committee, timeout_s=5)  # pyright: ignore
    shares, _, _ = await certifier.resume(header(4), 5, history)
    assert [index for index, _ in shares] == list(range(7, 20))
    signed = await certifier.certify(header(), header().canonical(), history)
    assert [index for index, _, share in signed if share not in (b"", bytes(96))] == list(
        range(7, 20)
    )


@pytest.mark.parametrize("answer", ["nothing", "a word", "wrong kinds", "needs"])
async def test_an_answer_that_makes_no_sense_spoils_no_other(
    hosts: list[Local], seats: Any, answer: str
) -> None:
    class Raving(Local):
        def __getattr__(self, name: str) -> Any:
            async def call(*_: Any) -> Any:
                if answer in ("nothing", "a word"):
                    return None if answer == "nothing" else answer
                if answer == "needs":
                    return CertifyReply(needs_from="all")  # pyright: ignore
                wrong: Any = ((None, 5), "x", (1,))
                return CertifyReply(wrong, wrong, passed="x", block=5)  # pyright: ignore

            return call

    everyone = [Raving(hosts[0].office), *hosts[1:]]
    certifier = BlockCertifier(everyone, seats.committee, timeout_s=0.5)  # pyright: ignore
    certified = await certifier.certify(header(), header().canonical(), history)
    assert [index for index, _, _ in certified] == list(range(7, 20))
    shares, passed, blocks = await certifier.resume(header(4), 5, history)
    assert [index for index, _ in shares] == list(range(7, 20))
    assert passed == [] and blocks == [header().canonical()]


async def test_a_writer_that_was_replaced_is_told(hosts: list[Local], seats: Any) -> None:
    certifier = BlockCertifier(hosts, seats.committee, timeout_s=5)  # pyright: ignore
    for ask in (
        lambda: certifier.resume(header(4), 4, history),
        lambda: certifier.skip(header(4), 0, 4, history),
    ):
        with pytest.raises(LedgerError) as refused:
            await ask()
        assert refused.value.details["fenced_by"] == 5


# Keys


def test_a_committees_group_key_is_dealt_once(tmp_path: Path) -> None:
    first = make_committee(tmp_path, 7)
    assert make_committee(tmp_path, 7) == first
    assert first.group_key is not None
    shares = tuple(seat.share for seat in first.seats if seat.share is not None)
    assert shares_sound(first.group_key, shares, first.quorum)
    assert not shares_sound(first.group_key, shares, first.quorum - 1)
    for seat in first.seats:
        keys = SeatKeys.load(tmp_path, seat.index)
        assert keys.share is not None and keys.share.public == seat.share
        assert keys.seat() == seat
    names = ["dealer", *(f"seat-{i:02d}.{kind}" for i in range(7) for kind in KINDS)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_another_epoch_or_size_has_another_group_key(tmp_path: Path) -> None:
    keys = {make_committee(tmp_path, n, epoch).group_key for n, epoch in ((7, 0), (7, 1), (4, 0))}
    assert len(keys) == 3


def test_a_seat_without_a_share_certifies_and_gives_none(tmp_path: Path) -> None:
    keys = SeatKeys.load(tmp_path / "alone", 0)
    assert keys.share is None and keys.seat().share is None
    office = BlockOffice(
        make_committee(tmp_path / "all", 4), {0: keys}, {}, Journal(tmp_path / "j.sqlite"), Careless
    )
    reply = office.certify(header().canonical(), header().canonical())
    assert len(reply.partials) == 1 and reply.shares == ()

"""A host's seats without Ray: votes, restarts, refusals, blocks; and the client over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import (
    BlockHeader,
    Content,
    Decision,
    QuorumCertificate,
    Subject,
    VoteChoice,
    VoteCommit,
    VoteReveal,
    beacon_message,
)
from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError, LedgerError
from daifi_flows.judges import HostLost, SeatOffice
from daifi_flows.judges._certifier import BlockCertifier
from daifi_flows.judges._client import ReviewClient
from daifi_flows.judges._messages import CertifyReply, CommitReply, RevealReply, SignReply
from daifi_flows.keys import Account, verify_bls, verify_bls_aggregate


class Local:
    """A transport to seats in this process that can lose calls and restart its host."""

    def __init__(self, make: Callable[[], SeatOffice]) -> None:
        self.make = make
        self.office = make()
        self.lose: list[str] = []
        self.down = False
        self.restarts = 0

    async def _call(self, name: str, *arguments: Any) -> Any:
        if self.down:
            raise HostLost("down")
        if name in self.lose:
            self.lose.remove(name)
            self.office.close()
            self.office = self.make()
            self.restarts += 1
            raise HostLost("restarting")
        return await asyncio.to_thread(getattr(self.office, name), *arguments)

    async def commit(self, request: Any) -> CommitReply:
        return await self._call("commit", request)

    async def reveal(self, subject: bytes, commits: Sequence[bytes]) -> RevealReply:
        return await self._call("reveal", subject, commits)

    async def sign(
        self, subject: bytes, commits: Sequence[bytes], reveals: Sequence[bytes]
    ) -> SignReply:
        return await self._call("sign", subject, commits, reveals)

    async def certify(self, header: bytes, block: bytes) -> CertifyReply:
        return await self._call("certify", header, block)

    async def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        return await self._call("provide_blocks", blocks)


@pytest.fixture
def office_of(seats: Any, tmp_path: Path, doubling: Any) -> Any:
    made: list[SeatOffice] = []

    def make(
        indices: Sequence[int] = range(21), *, folder: str = "work", reference: Any = None,
        **options: Any,
    ) -> SeatOffice:  # fmt: skip
        office = SeatOffice(
            seats.committee,
            list(indices),
            seats.folder,
            reference_factory=reference or doubling(),
            validator_factory=options.pop("validator", None),
            workdir=tmp_path / folder,
            **options,
        )
        made.append(office)
        return office

    yield make
    for office in made:
        office.close()


@pytest.fixture
def hosts_of(office_of: Any) -> Any:
    def make(count: int, **options: Any) -> list[Local]:
        return [
            Local(lambda n=n: office_of(range(n * 21 // count, (n + 1) * 21 // count), **options))
            for n in range(count)
        ]

    return make


def votes_of(reply: CommitReply, office: SeatOffice, subject: Subject) -> list[VoteReveal]:
    reveals = office.reveal(subject.canonical(), reply.commits).reveals
    return [VoteReveal.from_canonical(item) for item in reveals]


# One host


@pytest.mark.parametrize(
    ("output", "missing", "choice"),
    [
        (42, False, VoteChoice.ACCEPT),
        (43, False, VoteChoice.REJECT),
        (42, True, VoteChoice.ABSTAIN),
    ],
)
def test_every_seat_votes_what_the_re_execution_says(
    office_of: Any, request_of: Any, doubling: Any, output: int, missing: bool, choice: VoteChoice
) -> None:
    office, request = office_of(reference=doubling(missing=missing)), request_of(output)
    reply = office.commit(request)
    assert len(reply.commits) == 21
    votes = votes_of(reply, office, Subject.of(request))
    assert {reveal.vote.findings[0].decision for reveal in votes} == {choice}
    assert len({reveal.salt for reveal in votes}) == 21


def test_a_reference_that_cannot_be_made_abstains(office_of: Any, request_of: Any) -> None:
    def broken() -> Any:
        raise OSError("no such file")

    office, request = office_of(reference=broken), request_of(43)
    (vote, *_) = votes_of(office.commit(request), office, Subject.of(request))
    assert vote.vote.findings[0].decision is VoteChoice.ABSTAIN
    assert "no such file" in vote.vote.findings[0].reason


def test_seats_of_one_host_share_one_re_execution(
    office_of: Any, request_of: Any, doubling: Any, tmp_path: Path
) -> None:
    office = office_of(reference=doubling(count=tmp_path / "count"))
    request = request_of()
    assert office.commit(request) == office.commit(request)
    assert (tmp_path / "count").read_text() == "x"


def test_a_restarted_host_repeats_its_words_though_its_model_changed(
    office_of: Any, request_of: Any, doubling: Any
) -> None:
    request = request_of()
    subject = Subject.of(request).canonical()
    before, after = office_of(), office_of(reference=doubling(answer=0))
    told = before.commit(request)
    assert after.commit(request).commits == told.commits
    opened = before.reveal(subject, told.commits)
    assert after.reveal(subject, told.commits) == opened
    signed = before.sign(subject, told.commits, opened.reveals)
    assert after.sign(subject, told.commits, opened.reveals) == signed
    resumed = after.commit(request)
    assert (resumed.locked, resumed.signed) == (told.commits, opened.reveals)


def test_votes_are_opened_against_one_set_of_commits_only(office_of: Any, request_of: Any) -> None:
    office, request = office_of(), request_of()
    subject, commits = Subject.of(request).canonical(), office.commit(request).commits
    assert not office.reveal(subject, commits[:13]).reveals  # no quorum yet
    assert len(office.reveal(subject, commits[:15]).reveals) == 15
    assert not office.reveal(subject, commits).reveals[15:]  # 15 to 20 came too late
    again = office.reveal(subject, commits[:14])
    assert again.refused and not again.reveals


def test_a_seat_signs_one_outcome_and_only_one_that_counts_its_vote(
    office_of: Any, request_of: Any, seats: Any
) -> None:
    office, request = office_of(), request_of()
    subject, commits = Subject.of(request), office.commit(request).commits
    reveals = office.reveal(subject.canonical(), commits).reveals
    part = office.sign(subject.canonical(), commits, reveals[:14])
    assert sorted(index for index, _ in part.partials) == list(range(14))
    message = subject.message(Decision.ACCEPTED, 1_000_000)
    for index, partial in part.partials:
        assert verify_bls(seats.committee.seats[index].public, message, partial)
    rest = office.sign(subject.canonical(), commits, reveals)
    assert sorted(index for index, _ in rest.partials) == list(range(14, 21))
    fewer = office.sign(subject.canonical(), commits, reveals[:13])
    assert fewer.refused and not fewer.partials


def test_nothing_is_signed_about_a_review_that_was_not_voted_on(
    office_of: Any, request_of: Any
) -> None:
    other = office_of(folder="elsewhere")
    request = request_of()
    subject, commits = Subject.of(request).canonical(), other.commit(request).commits
    reveals = other.reveal(subject, commits).reveals
    office = office_of(folder="fresh")
    assert not office.reveal(subject, commits).reveals
    assert not office.sign(subject, commits, reveals).partials
    moved = Subject.of(request).model_copy(update={"node": Account.from_seed(b"x").address})
    assert not other.sign(moved.canonical(), commits, reveals).partials


def test_a_request_with_a_strangers_committee_is_refused(
    office_of: Any, request_of: Any, seats_of: Any, seats: Any
) -> None:
    with pytest.raises(CommitteeError, match="another committee"):
        office_of().commit(request_of(committee=seats_of(4).committee))
    with pytest.raises(CommitteeError, match="key of seat 0"):
        SeatOffice(
            seats.committee, [0], seats_of(4).folder, reference_factory=dict, workdir=Path(),
            validator_factory=None,
        )  # fmt: skip


def test_a_wrong_input_is_the_requesters_fault(office_of: Any, request_of: Any) -> None:
    from dataclasses import replace

    request = replace(request_of(), input=Content.json_value({"args": {"n": 1}}, bytes(32)))
    with pytest.raises(CommitteeError, match="input"):
        office_of().commit(request)


@pytest.mark.parametrize("rubbish", [b"", b"\xff", b"\xa0", bytes(5000)])
def test_rubbish_messages_are_typed_errors(office_of: Any, request_of: Any, rubbish: bytes) -> None:
    from daifi_flows.errors import EncodingError

    office, subject = office_of(), Subject.of(request_of()).canonical()
    for call in (
        lambda: office.reveal(rubbish, []),
        lambda: office.reveal(subject, [rubbish]),
        lambda: office.sign(subject, [], [rubbish]),
        lambda: office.certify(rubbish, b""),
    ):
        with pytest.raises(EncodingError):
            call()


def test_votes_fit_the_message_limit(office_of: Any, request_of: Any) -> None:
    def wordy() -> Any:
        raise OSError("💥" * 1000)

    office, request = office_of(reference=wordy), request_of()
    reply = office.commit(request)
    assert all(len(commit) < 1000 for commit in reply.commits)
    assert len(votes_of(reply, office, Subject.of(request))) == 21


# Blocks


class Chain:
    """A block validator: block N is b"N", good when every earlier one was provided."""

    def __init__(self) -> None:
        self.height = 0

    def check(self, block: bytes) -> bytes:
        if block == b"bad":
            raise LedgerError("the block breaks a rule")
        if int(block) > self.height + 1:
            raise LedgerError("behind", from_height=self.height + 1)
        return header(int(block)).digest

    def signed_after(self, parent: bytes) -> bytes:
        return b""

    def catch_up(self, blocks: Sequence[bytes]) -> None:
        self.height = int(blocks[-1])


def header(height: int, timestamp_ms: int = 0) -> BlockHeader:
    zero = bytes(32)
    return BlockHeader(
        ledger_id=zero, height=height, parent=zero, tx_root=zero, receipt_root=zero,
        state_root=zero, timestamp_ms=timestamp_ms, proposer=Account.from_seed(b"p").address,
        builder=Account.from_seed(b"p").address,
        beacon=zero, round=0,
        epoch=0, committee=zero, history_root=zero, history_size=0,
    )  # fmt: skip


def test_a_seat_signs_one_block_a_height_across_restarts(office_of: Any) -> None:
    class Careless(Chain):
        def check(self, block: bytes) -> bytes:
            return header(5, int(block)).digest

    def ask(stamp: int) -> CertifyReply:
        office = office_of(validator=Careless)  # each time a restarted host
        return office.certify(header(5, stamp).canonical(), b"%d" % stamp)

    first = ask(1)
    assert len(first.partials) == 21
    assert ask(2).partials == () and "was signed here" in str(ask(2).refused)
    assert ask(1) == first


def test_seats_packed_into_other_hosts_remember_what_they_signed(office_of: Any) -> None:
    class Careless(Chain):
        def check(self, block: bytes) -> bytes:
            return header(5, int(block)).digest

    assert office_of(range(21), validator=Careless).certify(header(5, 1).canonical(), b"1").partials
    split = office_of(range(7), validator=Careless)
    assert not split.certify(header(5, 2).canonical(), b"2").partials


def test_a_block_that_breaks_a_rule_or_belies_its_header_is_refused(office_of: Any) -> None:
    office = office_of(validator=Chain)
    assert "breaks a rule" in str(office.certify(header(1).canonical(), b"bad").refused)
    reply = office.certify(header(1, 7).canonical(), b"1")
    assert reply.refused and not reply.partials
    assert office_of(folder="none").certify(header(1).canonical(), b"1").refused


async def test_lagging_hosts_catch_up_page_by_page(hosts_of: Any, seats: Any) -> None:
    asked: list[int] = []

    async def history(start: int) -> list[bytes]:
        asked.append(start)
        return [b"%d" % height for height in range(start, min(start + 4, 12))]

    hosts = hosts_of(2, validator=Chain)
    certifier = BlockCertifier(hosts, seats.committee, timeout_s=20)
    partials = await certifier.certify(header(12), b"12", history)
    assert sorted(asked) == [1, 1, 5, 5, 9, 9]
    message = QuorumCertificate.message(header(12).digest)
    assert [index for index, _, _ in partials] == list(range(21))
    for index, signature, share in partials:
        assert verify_bls(seats.committee.seats[index].public, message, signature)
        assert verify_bls(
            seats.committee.seats[index].share, beacon_message(header(12).digest), share
        )


async def test_bad_block_signatures_are_dropped_and_a_restarting_host_is_waited_for(
    hosts_of: Any, seats: Any
) -> None:
    async def history(start: int) -> list[bytes]:
        raise AssertionError("nobody lags")

    liars = dict.fromkeys(range(6), "always-reject")
    hosts = hosts_of(3, validator=Chain, byzantine=liars)
    hosts[1].lose = ["certify", "certify"]
    certifier = BlockCertifier(hosts, seats.committee, timeout_s=20)
    partials = await certifier.certify(header(1), b"1", history)
    assert hosts[1].restarts == 2
    assert [index for index, _, _ in partials] == list(range(6, 21))
    hosts[2].down = True
    short = BlockCertifier(hosts, seats.committee, timeout_s=0.5)
    assert len(await short.certify(header(1), b"1", history)) == 8  # the ledger wants 14


# The client


def check(attestation: Any, committee: Any, decision: Decision) -> None:
    signers = committee.signers(attestation.signers)
    assert len(signers) >= committee.quorum
    assert verify_bls_aggregate(
        [seat.public for seat in signers], attestation.message(), attestation.signature
    )
    assert attestation.decision is decision


@pytest.mark.parametrize(
    ("output", "missing", "decision"),
    [
        (42, False, Decision.ACCEPTED),
        (41, False, Decision.REJECTED),
        (42, True, Decision.UNPROVEN),
    ],
)
async def test_a_review_ends_in_one_attestation(
    hosts_of: Any, request_of: Any, doubling: Any, seats: Any, output: int, missing: bool,
    decision: Decision,
) -> None:  # fmt: skip
    request = request_of(output)
    client = ReviewClient(hosts_of(3, reference=doubling(missing=missing)), seats.committee)
    attestation, report = await client.review(request)
    check(attestation, seats.committee, decision)
    assert attestation.output_cid == request.result.output.cid
    assert attestation.proof_cid == request.result.proof.cid
    assert (report.decision, report.missing, report.signers) == (decision, 0, 21)
    assert report.reason
    again, _ = await client.review(request)
    assert again == attestation


BEHAVIOURS = ["always-accept", "always-reject", "silent", "equivocate", "copy"]


@pytest.mark.parametrize("output", [42, 41])
@pytest.mark.parametrize("behaviour", [*BEHAVIOURS, "mixed"])
async def test_six_byzantine_seats_change_nothing(
    hosts_of: Any, request_of: Any, seats: Any, behaviour: str, output: int
) -> None:
    names = [behaviour] * 6 if behaviour != "mixed" else [*BEHAVIOURS, "copy"]
    traitors = dict(zip((0, 3, 7, 8, 15, 20), names, strict=True))
    client = ReviewClient(hosts_of(3, byzantine=traitors), seats.committee, grace_s=0.5)
    attestation, report = await client.review(request_of(output))
    check(attestation, seats.committee, Decision.ACCEPTED if output == 42 else Decision.REJECTED)
    found = {(proof.kind, proof.seat) for proof in report.evidence}
    expected = {"equivocate": "equivocation", "copy": "copy"}
    assert found == {(expected[b], s) for s, b in traitors.items() if b in expected}
    honest = 21 - len(traitors)
    assert (report.accepts if output == 42 else report.rejects) >= honest
    report_json = report.jsonable()
    assert report_json["seats"][1]["signed"] is True and len(report_json["seats"]) == 21


async def test_more_traitors_than_tolerated_can_only_stop_this_review(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    hosts = hosts_of(1, byzantine=dict.fromkeys(range(8), "always-reject"))
    with pytest.raises(CommitteeError, match="13 seats signed"):
        # 13 honest seats sign "unproven", the 8 sign a rejection that the tally does not hold
        await ReviewClient(hosts, seats.committee, timeout_s=1).review(request_of())


@pytest.mark.parametrize("lost", ["commit", "reveal", "sign"])
async def test_a_host_that_restarts_in_any_round_is_waited_for(
    hosts_of: Any, request_of: Any, seats: Any, lost: str
) -> None:
    hosts = hosts_of(1)
    hosts[0].lose = [lost, lost]
    attestation, report = await ReviewClient(hosts, seats.committee).review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert hosts[0].restarts == 2 and report.signers == 21


async def test_a_lost_host_is_done_without_when_a_quorum_is_left(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    hosts = hosts_of(3)
    hosts[2].down = True
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, report = await client.review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert (report.accepts, report.missing) == (14, 7)
    hosts[2].down = False  # back again: it finds the same attestation, and cannot add a vote
    again, report = await client.review(request_of())
    assert again == attestation and report.missing == 7


async def test_without_a_quorum_the_error_says_who_is_away(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    hosts = hosts_of(3)
    hosts[0].down = hosts[2].down = True
    with pytest.raises(CommitteeError, match=r"7 of 21 seats voted.*host 0: down; host 2: down"):
        await ReviewClient(hosts, seats.committee, timeout_s=0.5).review(request_of())
    hosts[0].down = hosts[2].down = False
    attestation, report = await ReviewClient(hosts, seats.committee).review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert report.missing == 0


@pytest.mark.parametrize("stage", ["reveal", "sign"])
async def test_a_new_client_goes_on_where_one_died(
    hosts_of: Any, request_of: Any, seats: Any, stage: str
) -> None:
    """The first client reached two of three hosts in the stage, with fewer commits, and died."""
    hosts, request = hosts_of(3), request_of()
    subject = Subject.of(request).canonical()
    commits = [c for host in hosts[:2] for c in host.office.commit(request).commits]
    reveals = [r for host in hosts[:2] for r in host.office.reveal(subject, commits).reveals]
    if stage == "sign":
        hosts[0].office.sign(subject, commits, reveals)
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, report = await client.review(request)
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert report.accepts == 14


async def test_rubbish_from_one_host_does_not_stop_the_others(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    class Rubbish(Local):
        async def commit(self, request: Any) -> CommitReply:
            return CommitReply((0,), (b"\xff", b"", bytes(9999)) * 999, locked=(b"x",), signed=())

        async def reveal(self, subject: bytes, commits: Sequence[bytes]) -> RevealReply:
            return RevealReply((b"\xff", bytes(9999)))

        async def sign(self, *arguments: Any) -> SignReply:
            return SignReply(((-1, b""), (0, b"short"), (99, bytes(96)), (1, bytes(96))))

    hosts = hosts_of(3)
    hosts[0] = Rubbish(hosts[0].make)
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, report = await client.review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert attestation.signers >> 7 == (1 << 14) - 1 and not attestation.signers & 0x7F
    assert {item.kind for item in report.dropped} >= {"unknown-seat", "bad-partial"}


async def test_a_review_of_another_committee_is_refused(
    hosts_of: Any, request_of: Any, seats: Any, seats_of: Any
) -> None:
    with pytest.raises(CommitteeError, match="another committee"):
        client = ReviewClient(hosts_of(1), seats.committee)
        await client.review(request_of(committee=seats_of(4).committee))


def test_commit_messages_bind_seat_task_and_proof(office_of: Any, request_of: Any) -> None:
    commits = [VoteCommit.from_canonical(c) for c in office_of().commit(request_of()).commits]
    others = [VoteCommit.from_canonical(c) for c in office_of().commit(request_of(nonce=1)).commits]
    assert len({keccak256(c.message()) for c in commits + others}) == 42

"""A host's seats without Ray: votes, restarts, refusals, blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from review_kit import Script, committed

from daifi_flows.cnft import (
    FULL_WAVE,
    Basis,
    BlockHeader,
    Content,
    Decision,
    QuorumCertificate,
    VoteChoice,
    VoteReveal,
    beacon_message,
)
from daifi_flows.errors import CommitteeError, DaifiError, LedgerError
from daifi_flows.judges import SeatOffice
from daifi_flows.judges._certifier import BlockCertifier
from daifi_flows.judges._messages import CertifyReply, pack
from daifi_flows.judges._record import Record, look_of
from daifi_flows.keys import Account, verify_bls


def votes_of(script: Script) -> list[VoteReveal]:
    return list(script.state.reveal_set(full=False) + script.state.reveal_set(full=True))


# One host


@pytest.mark.parametrize(
    ("output", "missing", "choice"),
    [
        (42, False, VoteChoice.ACCEPT),
        (43, False, VoteChoice.REJECT),
        (42, True, VoteChoice.ABSTAIN),
    ],
)
def test_every_seat_that_is_asked_votes_what_the_re_execution_says(
    office_of: Any, request_of: Any, doubling: Any, output: int, missing: bool, choice: VoteChoice
) -> None:
    script = Script(request_of(output), [office_of(reference=doubling(missing=missing))])
    script.open()
    (reply,) = script.commit()
    assert len(reply.commits) == 7
    script.reveal()
    votes = votes_of(script)
    assert {reveal.vote.findings[0].decision for reveal in votes} == {choice}
    assert len({reveal.salt for reveal in votes}) == 7
    assert {reveal.vote.seat for reveal in votes} == set(script.state.first_asked[0])


def test_a_reference_that_cannot_be_made_abstains(office_of: Any, request_of: Any) -> None:
    def broken() -> Any:
        raise OSError("no such file 💥" * 100)

    script = Script(request_of(43), [office_of(reference=broken)])
    script.open()
    script.commit()
    script.reveal()
    (finding,) = votes_of(script)[0].vote.findings
    assert finding.decision is VoteChoice.ABSTAIN
    assert "no such file" in finding.reason and finding.panel == ()


def test_seats_of_one_host_share_one_re_execution_in_all_waves(
    office_of: Any, request_of: Any, doubling: Any, tmp_path: Path
) -> None:
    office = office_of(reference=doubling(count=tmp_path / "count"))
    script = Script(request_of(41), [office])
    script.open()
    assert script.commit() == script.commit()
    script.reveal()
    script.commit(FULL_WAVE, script.state.full_asked)
    script.reveal(full=True)
    assert script.state.tally().decision is Decision.REJECTED
    assert (tmp_path / "count").read_text() == "x"
    again = Script(request_of(41), [office_of(reference=doubling(count=tmp_path / "count"))])
    again.open()
    again.commit()  # a restarted host finds its seats' findings in the journal
    again.commit(FULL_WAVE, script.state.full_asked)
    assert (tmp_path / "count").read_text() == "x"


def test_a_restarted_host_repeats_its_words_though_its_model_changed(
    office_of: Any, request_of: Any, doubling: Any
) -> None:
    before = Script(request_of(), [office_of()])
    after = Script(request_of(), [office_of(reference=doubling(answer=0))])
    assert before.open() == after.open()
    assert before.commit() == after.commit()
    assert before.reveal() == after.reveal()
    assert before.sign() == after.sign()
    (resumed,) = after.open()
    assert resumed.signed == pack(before.record)
    assert resumed.locked == (pack(look_of(before.state.commit_set(full=False))), b"")


def test_a_seat_is_bound_to_one_proof_of_an_attempt(office_of: Any, request_of: Any) -> None:
    """Whoever tries several outputs for a convenient draw gets one draw."""
    office = office_of()
    first, second = Script(request_of(42), [office]), Script(request_of(41), [office])
    first.case = replace(first.case)
    assert first.subject.task_id == second.subject.task_id
    assert len(first.open()[0].shares) == 21
    (told,) = second.open()
    assert not told.shares and "another proof" in str(told.refused)
    other = Script(request_of(41, attempt=1), [office])
    assert len(other.open()[0].shares) == 21


def test_votes_are_opened_against_one_set_of_commits_only(office_of: Any, request_of: Any) -> None:
    script = Script(request_of(), [office_of()])
    script.open()
    asked = dict.fromkeys(range(10), (0,))
    script.commit(asked=asked)
    commits = script.state.commit_set(full=False)
    assert len(commits) == 10
    (few,) = script.reveal(commits[:6])
    assert few.refused and not few.reveals  # not f+1 yet
    assert len(script.reveal(commits[:8])[0].reveals) == 8
    assert len(script.reveal(commits)[0].reveals) == 2  # those that opened against no other set
    (again,) = script.reveal(commits[:7])
    assert again.refused and not again.reveals
    script.commit(wave=1, asked={20: (0,), 0: (0,)})
    late = [commit for commit in script.state.commit_set(full=False) if commit.wave == 1]
    assert [commit.seat for commit in late] == [20]  # seat 0 has read others' votes already


def test_seats_whose_votes_came_late_or_not_at_all_sign_what_they_agree_with(
    office_of: Any, request_of: Any, seats: Any
) -> None:
    script = Script(request_of(), [office_of()])
    script.open()
    script.commit(asked=dict.fromkeys(range(9), (0,)))
    script.reveal()
    record, (look,) = script.record, script.record.looks
    fewer = look.model_copy(update={"reveals": look.reveals[:7]})
    (part,) = script.sign(Record(beacon=record.beacon, looks=(fewer,)))
    assert sorted(index for index, _ in part.partials) == list(range(21))
    message = script.subject.message(Decision.ACCEPTED, 1_000_000)
    for index, partial in part.partials:
        assert verify_bls(seats.committee.seats[index].public, message, partial)
    assert script.sign() == [part]  # the same outcome
    few = look_of(script.state.commit_set(full=False)[:7], look.reveals[:7])
    (other,) = script.sign(Record(beacon=record.beacon, looks=(few,)))
    # Nine have opened their votes against another set than this one.
    assert sorted(index for index, _ in other.partials) == list(range(9, 21))


def test_no_second_outcome_is_signed(office_of: Any, request_of: Any, doubling: Any) -> None:
    """A client that keeps accepting votes back gets nothing signed that says something else."""
    blind = office_of(range(14, 21), folder="blind", reference=doubling(missing=True))
    offices = [office_of(range(14)), blind]
    script = Script(request_of(), offices)
    script.open()
    script.commit(asked=dict.fromkeys(range(7), (0,)))
    script.reveal()
    assert sum(len(reply.partials) for reply in script.sign()) == 21
    other = Script(request_of(), offices)
    other.state = other.state.with_beacon(script.state.beacon or b"")
    other.state = other.state.add_commits(script.state.commit_set(full=False)).close_commits()
    for reveal in script.state.reveal_set(full=False)[:3]:
        other.state = other.state.add_reveal(reveal)
    other.state = other.state.close_reveals()
    other.commit(FULL_WAVE, dict.fromkeys(range(7, 21), (0,)))
    other.reveal(full=True)
    assert other.state.tally().decision is Decision.UNPROVEN
    assert all(reply.refused and not reply.partials for reply in other.sign())


def test_a_late_accuser_does_not_sign_what_leaves_it_out(
    office_of: Any, request_of: Any, doubling: Any
) -> None:
    """Seven lenient seats accept on one host; the others, on another host, know better."""
    request = request_of(43)
    fair = office_of(range(10, 21), folder="fair")
    lenient = office_of(range(10), folder="lenient", reference=doubling(answer=43))
    script = Script(request, [lenient, fair])
    script.open()
    fair.commit(
        script.subject_bytes, script.state.beacon or b"", 0, {10: (0,), 11: (0,)}, script.case
    )
    script.commit(asked=dict.fromkeys(range(7), (0,)))
    script.reveal()
    assert script.state.tally().decision is Decision.ACCEPTED
    theirs, others = script.sign()
    assert len(theirs.partials) == 10
    assert {index for index, _ in others.partials} == set(range(12, 21))


def test_nothing_is_signed_about_an_open_outcome_or_by_strangers_words(
    office_of: Any, request_of: Any
) -> None:
    script = Script(request_of(41), [office_of()])
    script.open()
    script.commit()
    script.reveal()
    with pytest.raises(CommitteeError, match="leaves the outcome open"):
        script.sign()
    moved = script.subject.model_copy(update={"node": Account.from_seed(b"x").address})
    with pytest.raises(CommitteeError, match="another task, output or node"):
        office_of().sign(moved.canonical(), script.docket_bytes, pack(script.record))


def test_a_request_with_a_strangers_committee_is_refused(
    office_of: Any, request_of: Any, seats_of: Any, seats: Any
) -> None:
    with pytest.raises(CommitteeError, match="another committee"):
        Script(request_of(committee=seats_of(4).committee), [office_of()]).open()
    with pytest.raises(CommitteeError, match="key of seat 0"):
        SeatOffice(
            seats.committee, [0], seats_of(4).folder, reference_factory=dict, workdir=Path(),
            validator_factory=None,
        )  # fmt: skip


def test_seats_say_nothing_after_the_deadline(office_of: Any, request_of: Any) -> None:
    now = [1000]
    office = office_of(clock_ms=lambda: now[0])
    script = Script(request_of(deadline_ms=1000), [office])
    script.open()
    script.commit()
    now[0] = 1001
    for step in (script.open, script.commit, script.reveal, script.sign):
        with pytest.raises(CommitteeError, match="deadline has passed"):
            step()


def test_a_wrong_input_is_the_requesters_fault(office_of: Any, request_of: Any) -> None:
    request = replace(request_of(), input=Content.json_value({"args": {"n": 1}}, bytes(32)))
    script = Script(request, [office_of()])
    script.open()
    with pytest.raises(CommitteeError, match="input"):
        script.commit()


def test_a_node_that_did_not_sign_the_proof_is_not_judged(office_of: Any, request_of: Any) -> None:
    request = request_of()
    proof = request.result.proof.model_copy(
        update={"signature": Account.from_seed(b"x").sign(bytes(32))}
    )
    forged = replace(request, result=request.result.model_copy(update={"proof": proof}))
    with pytest.raises(CommitteeError, match="not signed by the node"):
        Script(forged, [office_of()]).open()


FORGERIES: list[tuple[str, Any]] = [
    ("another review rate", lambda r: {"leaf": r.leaf.model_copy(update={"review_ppm": 1})}),
    ("another commit", lambda r: {"leaf": r.leaf.model_copy(update={"attempt": 1})}),
    ("another commit", lambda r: {"leaf": r.leaf.model_copy(update={"content": bytes(32)})}),
    ("another commit", lambda r: {"leaf": r.leaf.model_copy(update={"kind": "settle"})}),
    ("another commit", lambda r: {"leaf": r.leaf.model_copy(update={"task_id": bytes(32)})}),
    ("another commit", lambda r: {"header": r.header.model_copy(update={"ledger_id": bytes(32)})}),
    ("not certified", lambda r: {"leaf": r.leaf.model_copy(update={"sender": BUYER})}),
    ("not certified", lambda r: {"index": r.index + 1}),
    ("not certified", lambda r: {"path": r.path[1:]}),
    ("not certified", lambda r: {"header": r.header.model_copy(update={"height": 8})}),
    ("not certified", lambda r: {"certificate": r.certificate.model_copy(update={"signers": 127})}),
    ("no receipt", None),
]
BUYER = Account.from_seed(b"buyer").address


@pytest.mark.parametrize(("told", "change"), FORGERIES)
def test_no_review_is_waived_without_the_ledgers_word(
    office_of: Any, request_of: Any, seats: Any, told: str, change: Any
) -> None:
    request = request_of(41)
    receipt = committed(request, seats, 0)
    script = Script(replace(request, committed=receipt), [office_of()])
    changed = None if change is None else receipt.model_copy(update=change(receipt))
    forged = pack(script.case.docket.model_copy(update={"committed": changed}))
    with pytest.raises(CommitteeError, match=told):
        script.offices[0].open(script.subject_bytes, forged)
    record = Record(beacon=bytes(96))
    with pytest.raises(CommitteeError, match=told):
        script.offices[0].sign(script.subject_bytes, forged, pack(record))
    script.open()
    assert not script.state.drawn
    (signed,) = script.sign()
    message = script.subject.message(Decision.ACCEPTED, 0, Basis.WAIVED)
    assert len(signed.partials) == 21
    for index, partial in signed.partials[:2]:
        assert verify_bls(seats.committee.seats[index].public, message, partial)
    with pytest.raises(CommitteeError, match="has not drawn"):
        script.commit(asked={0: (0,)})


def test_a_waiver_needs_the_groups_own_beacon(office_of: Any, request_of: Any, seats: Any) -> None:
    request = request_of(41)
    script = Script(replace(request, committed=committed(request, seats, 500_000)), [office_of()])
    script.open()
    for beacon in (bytes(96), b"\xc0" + bytes(95), seats.keys(0).bls.sign(b"x")):
        with pytest.raises(CommitteeError, match="not signed by the committee's group"):
            script.sign(Record(beacon=beacon))
    if script.state.drawn:
        with pytest.raises(CommitteeError, match="leaves the outcome open"):
            script.sign(Record(beacon=script.state.beacon or b""))


RUBBISH = [b"", b"\xff", b"\xa0", bytes(5000), bytes(3_000_000)]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=["empty", "ff", "map", "zeros", "megabytes"])
def test_rubbish_messages_are_typed_errors(office_of: Any, request_of: Any, rubbish: bytes) -> None:
    office, script = office_of(), Script(request_of(), [office_of()])
    script.open()
    subject, docket = script.subject_bytes, script.docket_bytes
    beacon = script.state.beacon
    for call in (
        lambda: office.open(rubbish, docket),
        lambda: office.open(subject, rubbish),
        lambda: office.commit(rubbish, beacon, 0, {}, script.case),
        lambda: office.commit(subject, rubbish, 0, {}, script.case),
        lambda: office.reveal(rubbish, b""),
        lambda: office.reveal(subject, rubbish),
        lambda: office.sign(subject, docket, rubbish),
        lambda: office.sign(subject, rubbish, b""),
        lambda: office.certify(rubbish, b""),
    ):
        with pytest.raises(DaifiError):
            call()


def test_a_bomb_of_deflated_zeros_is_refused(office_of: Any, request_of: Any) -> None:
    import zlib

    script = Script(request_of(), [office_of()])
    with pytest.raises(DaifiError, match="too large"):
        script.offices[0].reveal(script.subject_bytes, zlib.compress(bytes(64 << 20)))


def test_chunks_and_waves_that_do_not_exist_are_not_voted_on(
    office_of: Any, request_of: Any
) -> None:
    script = Script(request_of(), [office_of()])
    script.open()
    (reply,) = script.commit(asked={0: (7, -1), 1: (), 99: (0,), -1: (0,)})
    assert not reply.commits
    with pytest.raises(CommitteeError, match="no wave"):
        script.commit(wave=FULL_WAVE + 1)


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

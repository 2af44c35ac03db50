"""Clients, and hosts, that make a review come to nothing: seats must not help them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from review_kit import Local, Script, check

from daifi_flows.cnft import FULL_WAVE, Decision, VoteCommit
from daifi_flows.errors import CommitteeError
from daifi_flows.judges import ReviewState, _rounds
from daifi_flows.judges._client import ReviewClient
from daifi_flows.judges._messages import OpenReply, pack
from daifi_flows.judges._record import Look, Record, look_of


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rounds, "BACKOFF_S", (0.01,))


@pytest.mark.parametrize("output", [42, 41])
def test_nothing_is_unproven_that_nobody_was_asked_about(
    office_of: Any, request_of: Any, output: int
) -> None:
    """Else any client ends a review without a vote: no honest node is paid, no cheat slashed."""
    script = Script(request_of(output), [office_of()])
    script.open()
    for looks in ((Look(), Look()), (Look(),), ()):
        with pytest.raises(CommitteeError, match="leaves the outcome open"):
            script.sign(Record(beacon=script.state.beacon or b"", looks=looks))
    script.commit()
    hidden = look_of(script.state.commit_set(full=False))
    with pytest.raises(CommitteeError, match="leaves the outcome open"):
        script.sign(Record(beacon=script.state.beacon or b"", looks=(hidden, Look())))


def test_all_seats_means_a_quorum_of_them(office_of: Any, request_of: Any) -> None:
    script = Script(request_of(41), [office_of()])
    script.open()
    script.commit()
    script.reveal()
    asked = dict(list(script.state.full_asked.items())[:6])  # 13 with those that looked first
    script.commit(FULL_WAVE, asked)
    script.reveal(full=True)
    assert script.state.tally().decision is Decision.UNPROVEN
    with pytest.raises(CommitteeError, match="leaves the outcome open"):
        script.sign()


def test_looks_come_in_their_order_and_none_too_many(office_of: Any, request_of: Any) -> None:
    """A seat that opened its vote against one set must not sign what follows from another."""
    script = Script(request_of(), [office_of()])
    script.open()
    script.commit(asked=dict.fromkeys(range(9), (0,)))
    script.reveal()
    (look,) = script.record.looks
    few = look_of(script.state.commit_set(full=False)[:7], look.reveals[:7])
    beacon = script.state.beacon or b""
    for looks in ((few, look), (look, look), (look, Look())):
        with pytest.raises(CommitteeError, match="look"):
            script.sign(Record(beacon=beacon, looks=looks))


def test_a_subject_names_the_committees_own_epoch(
    office_of: Any, request_of: Any, seats: Any
) -> None:
    """Else a seat of two committees in a row could be had to sign two findings of one epoch."""
    script = Script(request_of(), [office_of()])
    moved = script.subject.model_copy(update={"epoch": seats.committee.epoch + 1})
    with pytest.raises(CommitteeError, match="epoch"):
        office_of().open(moved.canonical(), script.docket_bytes)


class Teller(Local):
    """One seat whose host tells of a review that never was."""

    script: Script
    tale: str

    async def open(self, subject: bytes, docket: bytes) -> OpenReply:
        reply = await super().open(subject, docket)
        beacon = self.script.state.beacon or b""
        if self.tale == "signed":
            record = Record(beacon=beacon, looks=(Look(), Look()))
            return OpenReply(reply.seats, reply.shares, signed=pack(record))
        index = reply.seats[0]
        keys = self.office.keys[index]
        vote = keys.vote(self.script.subject, FULL_WAVE, [_accept()])
        commit: VoteCommit = keys.commit(vote, bytes(32))
        return OpenReply(reply.seats, reply.shares, (b"", pack(look_of([commit]))))


def _accept() -> Any:
    from daifi_flows.cnft import ChunkFinding, VoteChoice

    return ChunkFinding(chunk=0, decision=VoteChoice.ACCEPT, confidence_ppm=1_000_000)


@pytest.mark.parametrize("tale", ["signed", "locked"])
async def test_one_seat_cannot_end_a_review_by_telling_of_an_earlier_one(
    office_of: Any, hosts_of: Any, request_of: Any, seats: Any, tale: str
) -> None:
    request = request_of(41)
    hosts: list[Local] = [
        Local(lambda n=n: office_of(range(n * 10, n * 10 + 10))) for n in range(2)
    ]
    teller = Teller(lambda: office_of([20]))
    teller.tale, teller.script = tale, Script(request, [each.office for each in hosts])
    teller.script.open()
    client = ReviewClient([teller, *hosts], seats.committee, grace_s=0.3, timeout_s=60)
    attestation, _ = await client.review(request)
    check(attestation, seats.committee, Decision.REJECTED)


@pytest.mark.parametrize("change", ["payload", "signature"])
def test_a_forged_proof_beside_the_nodes_header_accuses_nobody(
    office_of: Any, request_of: Any, change: str
) -> None:
    """Else a buyer that commits its content id has an honest node slashed."""
    request = request_of(42)
    script = Script(request, [office_of()])
    proof = request.result.proof
    value = b"another" if change == "payload" else bytes(65)
    forged = proof.model_copy(update={change: value})
    script.subject = script.subject.model_copy(update={"proof_cid": forged.cid})
    script.subject_bytes = script.subject.canonical()
    script.state = ReviewState.start(script.subject, request.committee)
    script.case = replace(script.case, proof=forged)
    with pytest.raises(CommitteeError, match=r"another proof|the proof is not the one"):
        script.open()
        script.commit()


def test_seats_take_part_for_the_proofs_own_name_alone(office_of: Any, request_of: Any) -> None:
    """Else a node waits for its commit, has seats draw for a name of no proof, and is then either
    paid for what no dispute can name, or not reviewed."""
    script = Script(request_of(42), [office_of()])
    junk = script.subject.model_copy(update={"proof_cid": script.subject.output_cid})
    with pytest.raises(CommitteeError, match="another proof"):
        office_of().open(junk.canonical(), script.docket_bytes)
    again = script.case.proof.model_copy(update={"signature": bytes(65)})
    assert again.cid == script.case.proof.cid == script.case.docket.header.cid


async def test_a_host_that_says_it_has_endless_seats_holds_nobody_up(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    class Endless(Local):
        async def open(self, subject: bytes, docket: bytes) -> OpenReply:
            reply = await super().open(subject, docket)
            many: Any = range(10**15)
            return OpenReply(many, reply.shares)

    hosts = hosts_of(3)
    hosts[0] = Endless(hosts[0].make)
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, _ = await client.review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)

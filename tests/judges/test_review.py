"""The client over seat hosts in this process: attacks, losses, restarts, what it all weighs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from review_kit import Local, Script, Weather, check, committed

from daifi_flows.cnft import FULL_WAVE, Basis, Decision, VoteChoice, VoteCommit
from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError
from daifi_flows.judges import HostLost, _rounds, make_committee
from daifi_flows.judges._byzantine import BEHAVIOURS
from daifi_flows.judges._client import ReviewClient
from daifi_flows.judges._database import Database
from daifi_flows.judges._messages import (
    Case,
    CommitReply,
    OpenReply,
    RevealReply,
    SignReply,
    pack,
    subject_of,
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rounds, "BACKOFF_S", (0.01,))


@pytest.mark.parametrize(
    ("output", "missing", "decision", "waves"),
    [
        (42, False, Decision.ACCEPTED, 1),
        (41, False, Decision.REJECTED, 2),
        (42, True, Decision.UNPROVEN, 2),
    ],
)
async def test_a_review_ends_in_one_attestation(
    hosts_of: Any, request_of: Any, doubling: Any, seats: Any, output: int, missing: bool,
    decision: Decision, waves: int,
) -> None:  # fmt: skip
    request = request_of(output)
    client = ReviewClient(hosts_of(3, reference=doubling(missing=missing)), seats.committee)
    attestation, report = await client.review(request)
    check(attestation, seats.committee, decision)
    assert attestation.basis is Basis.REVIEWED
    assert attestation.output_cid == request.result.output.cid
    assert attestation.proof_cid == request.result.proof.cid
    assert (report.decision, report.missing, report.signers) == (decision, 0, 21)
    assert (report.waves, report.drawn, report.review_ppm) == (waves, 1, 1_000_000)
    assert len(report.chunks[0].findings) == (7 if waves == 1 else 21)
    assert report.reason
    again, _ = await client.review(request)
    assert again == attestation


@pytest.mark.parametrize("output", [42, 41])
@pytest.mark.parametrize("behaviour", [*BEHAVIOURS, "mixed"])
async def test_six_byzantine_seats_change_nothing(
    hosts_of: Any, request_of: Any, seats: Any, behaviour: str, output: int
) -> None:
    names = [behaviour] * 6 if behaviour != "mixed" else list(BEHAVIOURS[1:7])
    traitors = dict(zip((0, 3, 7, 8, 15, 20), names, strict=True))
    client = ReviewClient(hosts_of(3, byzantine=traitors), seats.committee, grace_s=0.3)
    attestation, report = await client.review(request_of(output))
    check(attestation, seats.committee, Decision.ACCEPTED if output == 42 else Decision.REJECTED)
    asked = set(report.chunks[0].asked)
    found = {(proof.kind, proof.seat) for proof in report.evidence}
    expected = {("equivocation", s) for s in asked if traitors.get(s) == "equivocate"}
    copies = {(kind, seat) for kind, seat in found if kind == "copy"}
    assert copies <= {("copy", s) for s in asked if traitors.get(s) == "copy"}
    if output == 42:
        accusers = {f.seat for f in report.chunks[0].findings if f.decision is VoteChoice.REJECT}
        assert accusers <= traitors.keys()
        expected |= {("false-accusation", seat) for seat in accusers}
    else:
        lenient = {f.seat for f in report.chunks[0].findings if f.decision is VoteChoice.ACCEPT}
        assert lenient <= traitors.keys()
        expected |= {("false-acceptance", seat) for seat in lenient}
    assert found - copies == expected
    bad = {item.seat for item in report.dropped if item.kind == "bad-share"}
    assert bad <= {s for s, b in traitors.items() if b == "wrong-share"}
    chunk = report.chunks[0]
    assert (chunk.accepts if output == 42 else chunk.rejects) >= (7 if not chunk.full else 15)
    assert len(report.jsonable()["seats"]) == 21


async def test_a_silent_seat_is_replaced_and_nothing_else_changes(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    request = request_of()
    script = Script(request, [hosts_of(1)[0].office])
    script.open()
    order = script.state.first_asked[0]
    hosts = hosts_of(21, byzantine=dict.fromkeys(order[:2], "silent"), folder="other")
    client = ReviewClient(hosts, seats.committee, grace_s=0.2)
    attestation, report = await client.review(request)
    check(attestation, seats.committee, Decision.ACCEPTED)
    (chunk,) = report.chunks
    assert set(chunk.replaced) == set(chunk.silent) == set(order[:2])
    assert (report.waves, chunk.full, chunk.accepts, report.missing) == (2, 0, 7, 2)
    assert {finding.wave for finding in chunk.findings} == {0, 1}


async def test_only_the_assigned_hosts_re_execute(
    hosts_of: Any, request_of: Any, seats: Any, doubling: Any, tmp_path: Any
) -> None:
    count = tmp_path / "count"
    hosts = hosts_of(21, reference=doubling(count=count))
    attestation, report = await ReviewClient(hosts, seats.committee).review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert count.read_text() == "x" * 7
    assert {n for n, host in enumerate(hosts) if "commit" in host.calls} == set(
        report.chunks[0].asked
    )


async def test_more_traitors_than_tolerated_can_only_stop_this_review(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    hosts = hosts_of(1, byzantine=dict.fromkeys(range(8), "always-reject"))
    with pytest.raises(CommitteeError, match="13 seats signed"):
        # 13 honest seats sign "unproven", the 8 sign a rejection that the tally does not hold
        await ReviewClient(hosts, seats.committee, timeout_s=1).review(request_of())


@pytest.mark.parametrize("lost", ["open", "commit", "reveal", "sign"])
async def test_a_host_that_restarts_in_any_round_is_waited_for(
    hosts_of: Any, request_of: Any, seats: Any, lost: str
) -> None:
    hosts = hosts_of(1)
    hosts[0].lose = [lost, lost]
    attestation, report = await ReviewClient(hosts, seats.committee).review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert hosts[0].restarts == 2 and report.signers == 21


@pytest.mark.parametrize("output", [42, 41])
async def test_a_lost_host_is_done_without_when_a_quorum_is_left(
    hosts_of: Any, request_of: Any, seats: Any, output: int
) -> None:
    hosts = hosts_of(3)
    hosts[2].down = True
    client = ReviewClient(hosts, seats.committee, grace_s=0.3, timeout_s=10)
    attestation, report = await client.review(request_of(output))
    check(attestation, seats.committee, Decision.ACCEPTED if output == 42 else Decision.REJECTED)
    chunk = report.chunks[0]
    assert (chunk.accepts, chunk.rejects) == ((7, 0) if output == 42 else (0, 14))
    hosts[2].down = False  # back again: it finds the same attestation, and cannot add a vote
    again, report = await client.review(request_of(output))
    assert again.message() == attestation.message() and again.signers.bit_count() == 21


async def test_without_a_quorum_the_error_says_who_is_away(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    hosts = hosts_of(3)
    hosts[0].down = hosts[2].down = True
    with pytest.raises(CommitteeError, match=r"7 of 21 seats take.*host 0: down; host 2: down"):
        await ReviewClient(hosts, seats.committee, timeout_s=0.5).review(request_of())
    hosts[0].down = hosts[2].down = False
    attestation, report = await ReviewClient(hosts, seats.committee).review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert report.missing == 0


@pytest.mark.parametrize("stage", ["reveal", "sign"])
@pytest.mark.parametrize("output", [42, 41])
async def test_a_new_client_goes_on_where_one_died(
    hosts_of: Any, request_of: Any, seats: Any, stage: str, output: int
) -> None:
    """The first client reached two of three hosts in the stage, and died."""
    hosts, request = hosts_of(3), request_of(output)
    script = Script(request, [host.office for host in hosts[:2]])
    script.open()
    asked = dict.fromkeys(range(4, 12), (0,))
    script.commit(asked=asked)
    script.reveal()
    if output == 41:
        script.commit(FULL_WAVE, script.state.full_asked)
        script.reveal(full=True)
    if stage == "sign":
        script.offices[0].sign(script.subject_bytes, script.docket_bytes, _packed(script))
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, report = await client.review(request)
    check(attestation, seats.committee, Decision.ACCEPTED if output == 42 else Decision.REJECTED)
    chunk = report.chunks[0]
    assert max(chunk.accepts, chunk.rejects) == (8 if output == 42 else 14)


def _packed(script: Script) -> bytes:
    from daifi_flows.judges._messages import pack

    return pack(script.record)


async def test_rubbish_from_one_host_does_not_stop_the_others(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    class Rubbish(Local):
        async def open(self, subject: bytes, docket: bytes) -> OpenReply:
            shares = tuple((seat, bytes(96)) for seat in range(-1, 40))
            return OpenReply(tuple(range(40)), shares, (b"x", bytes(999)), b"\xff")

        async def commit(self, *arguments: Any) -> CommitReply:
            return CommitReply((b"\xff", b"", bytes(9999)) * 999)

        async def reveal(self, subject: bytes, look: bytes) -> RevealReply:
            return RevealReply((b"\xff", bytes(9999)))

        async def sign(self, *arguments: Any) -> SignReply:
            return SignReply(((-1, b""), (0, b"short"), (99, bytes(96)), (1, bytes(96))))

    hosts = hosts_of(3)
    hosts[0] = Rubbish(hosts[0].make)
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, report = await client.review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert attestation.signers >> 7 == (1 << 14) - 1 and not attestation.signers & 0x7F
    kinds = {item.kind for item in report.dropped}
    assert kinds >= {"unknown-seat", "bad-partial", "bad-share"}


@pytest.mark.parametrize("variant", range(3))
async def test_nonsense_of_other_types_is_that_hosts_failure_alone(
    hosts_of: Any, request_of: Any, seats: Any, variant: int
) -> None:
    opened: list[int] = []

    class Nonsense(Local):
        async def open(self, *arguments: Any) -> Any:
            opened.append(0)
            return [
                OpenReply(("x",), ((None, 3), 7), None, 5),  # type: ignore[arg-type]
                OpenReply((), ((0, 3), ("a", b"")), (b"", []), b""),  # type: ignore[arg-type]
                OpenReply((0, 3**99), ((0, None), (1, [])), (b"x", b"x"), b"x"),  # type: ignore[arg-type]
            ][variant]

        async def commit(self, *arguments: Any) -> Any:
            return "commit"

        async def reveal(self, *arguments: Any) -> Any:
            return RevealReply((None, 3))  # type: ignore[arg-type]

        async def sign(self, *arguments: Any) -> Any:
            return SignReply(((1,), ("a", b"b"), (0, None)))  # type: ignore[arg-type]

    hosts = hosts_of(3)
    hosts[0] = Nonsense(hosts[0].make)
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, _ = await client.review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)


async def test_a_seat_that_answers_for_another_task_is_not_counted(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    other = request_of(nonce=1)

    class Crossed(Local):
        """Says about this task what its seats said about another."""

        async def commit(self, *arguments: Any) -> CommitReply:
            script = Script(other, [self.office])
            with_share = Script(other, [host.office for host in hosts[1:]] + [self.office])
            with_share.open()
            script.state = with_share.state
            return script.commit(asked=dict.fromkeys(range(7), (0,)))[0]

    hosts = hosts_of(3)
    hosts[0] = Crossed(hosts[0].make)
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    attestation, report = await client.review(request_of())
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert not {finding.seat for finding in report.chunks[0].findings} & set(range(7))
    if set(report.chunks[0].asked) & set(range(7)):
        assert "wrong-task" in {item.kind for item in report.dropped}


async def test_a_review_of_another_committee_is_refused(
    hosts_of: Any, request_of: Any, seats: Any, seats_of: Any
) -> None:
    with pytest.raises(CommitteeError, match="another committee"):
        client = ReviewClient(hosts_of(1), seats.committee)
        await client.review(request_of(committee=seats_of(4).committee))


async def test_past_the_deadline_the_error_says_so(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    client = ReviewClient(hosts_of(2), seats.committee)
    with pytest.raises(CommitteeError, match="deadline has passed"):
        await client.review(request_of(deadline_ms=1))


@pytest.mark.parametrize("seed", range(6))
async def test_loss_delay_and_duplicates_change_nothing_but_time(
    hosts_of: Any, request_of: Any, seats: Any, seed: int
) -> None:
    """15 honest seats, six that are silent or lie, each on a host of its own, in bad weather."""
    names = ["silent", "always-reject", "equivocate", "reject-falsely", "silent", "copy"]
    places = sorted(range(21), key=lambda seat: keccak256(bytes([seed, seat])))[:6]
    traitors = dict(zip(places, names, strict=True))
    weather = Weather(loss=0.2, duplicates=0.3, delay_s=0.02, seed=seed)
    hosts = hosts_of(21, byzantine=traitors, weather=weather)
    client = ReviewClient(hosts, seats.committee, grace_s=1.0, timeout_s=60)
    attestation, _ = await client.review(request_of(nonce=seed))
    check(attestation, seats.committee, Decision.ACCEPTED)


@pytest.mark.parametrize(("output", "waves"), [(42, 1), (41, 2)])
async def test_a_seat_is_sent_and_sends_ten_kilobytes_at_most(
    hosts_of: Any, request_of: Any, seats: Any, output: int, waves: int
) -> None:
    """Each seat on a host of its own, with the certified receipt of a block of 1,000; the case of
    those that re-execute (input, output, proof, materials) is not counted."""
    request = request_of(output)
    hosts = hosts_of(21)
    request = replace(request, committed=committed(request, seats, 1_000_000))
    _, report = await ReviewClient(hosts, seats.committee).review(request)
    assert report.waves == waves
    per_seat = [sum((host.sent + host.received).values()) for host in hosts]
    assert max(per_seat) <= 10_000
    assert min(per_seat) > 1_000


# The lottery


async def test_what_is_not_drawn_is_signed_unseen(
    hosts_of: Any, request_of: Any, seats: Any, doubling: Any, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    request = request_of(41)  # wrong, and nobody looks
    request = replace(request, committed=committed(request, seats, 0))
    hosts = hosts_of(3, reference=doubling(count=count))
    attestation, report = await ReviewClient(hosts, seats.committee).review(request)
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert (attestation.basis, attestation.confidence_ppm) == (Basis.WAIVED, 0)
    assert not count.exists() and not any("commit" in host.calls for host in hosts)
    assert (report.basis, report.drawn, report.review_ppm) == (Basis.WAIVED, 0, 0)
    assert report.chunks == () and report.waves == 0 and "did not draw" in report.reason
    again, _ = await ReviewClient(hosts, seats.committee).review(request)
    assert again == attestation


async def test_what_is_drawn_is_reviewed_whatever_its_rate(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    for nonce in range(3):
        request = request_of(nonce=nonce)
        request = replace(request, committed=committed(request, seats, 999_999))
        attestation, report = await ReviewClient(hosts_of(3), seats.committee).review(request)
        assert attestation.basis is Basis.REVIEWED and report.review_ppm == 999_999


def replica(certifier: Any) -> Any:
    """A copy of a ledger that knows one other committee."""

    class Replica:
        def certifier_of(self, header: Any) -> Any:
            return certifier if certifier and header.committee == certifier.digest else None

    return Replica


async def test_a_receipt_of_an_earlier_committee_means_a_full_review(
    hosts_of: Any, request_of: Any, seats: Any, tmp_path: Path
) -> None:
    before = type(seats)(tmp_path, make_committee(tmp_path, 21, 3))
    request = request_of()
    request = replace(request, committed=committed(request, before, 0))
    known = hosts_of(3, folder="known", validator=replica(before.committee))
    attestation, report = await ReviewClient(known, seats.committee).review(request)
    assert attestation.basis is Basis.REVIEWED and report.review_ppm == 1_000_000
    for name, validator in (("none", None), ("unknown", replica(None))):
        hosts = hosts_of(3, folder=name, validator=validator)
        with pytest.raises(CommitteeError, match="which committee was to certify"):
            await ReviewClient(hosts, seats.committee).review(request)


async def test_seats_with_a_ledger_look_at_nothing_before_its_commit(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    """A node could have outputs reviewed until one passes, and commit only to that."""
    client = ReviewClient(hosts_of(3, validator=replica(None)), seats.committee)
    request = request_of()
    with pytest.raises(CommitteeError, match="commit to it on the ledger first"):
        await client.review(request)
    receipt = committed(request, seats, 1_000_000)
    attestation, _ = await client.review(replace(request, committed=receipt))
    check(attestation, seats.committee, Decision.ACCEPTED)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"chunks": 2}, "another number of parts"),
        ({"operator": "0x" + "11" * 20}, "another operator"),
        ({"review_ppm": 999_999}, "another review rate"),
    ],
)
def test_what_was_committed_fixes_what_a_review_is_about(
    office_of: Any, request_of: Any, seats: Any, lie: dict[str, Any], why: str
) -> None:
    """Whoever comes first can not bind seats to a subject that nobody else would ask about."""
    request = request_of()
    request = replace(request, committed=committed(request, seats, 1_000_000))
    subject = subject_of(request)
    docket = pack(Case.of(request).docket)
    forged = type(subject).from_plain(subject.plain() | lie)
    office = office_of()
    with pytest.raises(CommitteeError, match=why):
        office.open(forged.canonical(), docket)
    assert office.open(subject.canonical(), docket).refused is None


async def test_a_node_that_runs_seats_is_judged_by_others(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    request = replace(request_of(), operator=seats.committee.seats[5].account)
    attestation, report = await ReviewClient(hosts_of(3), seats.committee).review(request)
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert report.conflicted == () and 5 not in report.chunks[0].asked
    assert report.seats[5].signed  # what others found it may sign


async def test_two_clients_at_once_get_one_finding(
    hosts_of: Any, request_of: Any, seats: Any
) -> None:
    hosts = hosts_of(3)
    clients: Sequence[ReviewClient] = [ReviewClient(hosts, seats.committee) for _ in range(2)]
    both = await asyncio.gather(*(client.review(request_of()) for client in clients))
    assert both[0][0].message() == both[1][0].message()


# Killed at any instant


class Crashing:
    """Kills a host before or after a chosen write of its journal, by raising like a dead actor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = 0
        self.at = -1
        self.after = False
        plain = Database.transaction
        crashing = self

        @contextmanager
        def transaction(database: Database) -> Any:
            number, crashing.writes = crashing.writes, crashing.writes + 1
            if number == crashing.at and not crashing.after:
                raise HostLost("killed before it wrote")
            with plain(database) as db:
                yield db
            if number == crashing.at and crashing.after:
                raise HostLost("killed after it wrote")

        monkeypatch.setattr(Database, "transaction", transaction)


@pytest.mark.parametrize("output", [42, 41])
async def test_killed_at_any_write_a_host_keeps_its_words(
    hosts_of: Any, request_of: Any, seats: Any, doubling: Any, output: int,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """After each kill the host has another model, which finds something else: it must not say it.
    Every word that leaves the host is written down and compared."""
    crashing = Crashing(monkeypatch)
    flipped = doubling(answer=output)  # finds the wrong output right
    right = Decision.ACCEPTED if output == 42 else Decision.REJECTED

    class Recording(Local):
        words: dict[Any, set[bytes]]

        async def _call(self, name: str, *arguments: Any) -> Any:
            try:
                reply = await asyncio.to_thread(getattr(self.office, name), *arguments)
            except HostLost:
                self.office.close()
                self.office = self.make()
                self.restarts += 1
                raise
            for item in getattr(reply, "commits", ()):
                commit = VoteCommit.from_canonical(item)
                self.words.setdefault(("commit", commit.seat, commit.wave), set()).add(item)
            for index, partial in getattr(reply, "partials", ()):
                self.words.setdefault(("partial", index), set()).add(partial)
            for index, share in getattr(reply, "shares", ()):
                self.words.setdefault(("share", index), set()).add(share)
            return reply

    async def run(folder: str) -> tuple[Recording, Any]:
        made: list[int] = []

        def make() -> Any:
            made.append(0)
            changed = len(made) > 1 and voted(host)
            return host_makers[0 if not changed else 1]()

        def voted(host: Any) -> bool:
            return any(kind[0] == "commit" for kind in host.words) if host is not None else False

        offices = hosts_of(1, folder=folder), hosts_of(1, folder=folder, reference=flipped)
        host_makers = [each[0].make for each in offices]
        host: Any = None
        host = Recording(make)
        host.words = {}
        client = ReviewClient([host], seats.committee, timeout_s=20)
        attestation, _ = await client.review(request_of(output))
        return host, attestation

    _, attestation = await run("calm")
    check(attestation, seats.committee, right)
    writes = crashing.writes
    assert writes >= 4
    for number in range(writes):
        for after in (False, True):
            crashing.writes, crashing.at, crashing.after = 0, number, after
            host, attestation = await run(f"work-{number}-{after}")
            check(attestation, seats.committee, right)
            assert host.restarts == 1
            assert all(len(said) == 1 for said in host.words.values())

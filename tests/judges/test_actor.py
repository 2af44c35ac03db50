"""Real seat hosts on Ray: a review with traitors, kills, and blocks certified meanwhile."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from review_kit import check, committed

from daifi_flows.cnft import BlockHeader, Decision, QuorumCertificate
from daifi_flows.errors import CommitteeError
from daifi_flows.judges import ReviewState, make_committee, subject_of
from daifi_flows.judges._messages import Case, pack
from daifi_flows.judges.actor import CommitteeClient, RayCertifier, start_seat_hosts
from daifi_flows.keys import Account, verify_bls

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(ray_cluster: None) -> None:
    """The session's Ray."""


@pytest.fixture
def start(cluster: None, seats: Any, tmp_path: Path, doubling: Any) -> Any:
    started: list[Any] = []

    def make(count: int, *, reference: Any = None, **options: Any) -> list[Any]:
        hosts = start_seat_hosts(
            seats.committee,
            seats.folder,
            reference_factory=reference or doubling(),
            validator_factory=options.pop("validator", None),
            workdir=tmp_path / "seats",
            hosts=count,
            **options,
        )
        started.extend(hosts)
        return hosts

    yield make
    for host in started:
        ray.kill(host)


async def answer_of(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of a host that may be restarting: it is asked until it is up."""
    until = time.monotonic() + 60
    while True:
        try:
            return await call()
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(0.2)


def header(height: int) -> BlockHeader:
    zero = bytes(32)
    return BlockHeader(
        ledger_id=zero, height=height, parent=zero, tx_root=zero, receipt_root=zero,
        state_root=zero, timestamp_ms=0, proposer=Account.from_seed(b"p").address,
        builder=Account.from_seed(b"p").address,
        beacon=zero, round=0, epoch=0,
        committee=zero, history_root=zero, history_size=0,
    )  # fmt: skip


def chain_factory() -> Any:
    """A block validator: every block is its header's digest; block 9 needs history."""
    digests = {height: header(height).digest for height in range(10)}

    class Chain:
        def __init__(self) -> None:
            self.height = 0

        def check(self, block: bytes) -> bytes:
            from daifi_flows.errors import LedgerError

            if int(block) > self.height + 1:
                raise LedgerError("behind", from_height=self.height + 1)
            return digests[int(block)]

        def signed_after(self, parent: bytes) -> bytes:
            return b""

        def catch_up(self, blocks: Sequence[bytes]) -> None:
            self.height = int(blocks[-1])

    return Chain


async def history(start: int) -> list[bytes]:
    return [b"%d" % height for height in range(start, 9)]


@pytest.mark.parametrize(("output", "decision"), [(42, "accepted"), (41, "rejected")])
async def test_a_review_with_six_traitors_on_three_hosts(
    start: Any, seats: Any, request_of: Any, output: int, decision: str
) -> None:
    traitors = {
        0: "wrong-share", 5: "always-reject", 9: "silent", 11: "equivocate", 14: "copy",
        20: "reject-falsely",
    }  # fmt: skip
    hosts = start(3, byzantine=traitors)
    client = CommitteeClient(hosts, seats.committee, grace_s=3.0)
    attestation, report = await client.review(request_of(output))
    check(attestation, seats.committee, Decision(decision))
    assert {proof.seat for proof in report.evidence} <= traitors.keys()
    assert pickle.loads(pickle.dumps(report)) == report


async def test_killed_between_commit_and_reveal_the_review_finishes(
    start: Any, seats: Any, request_of: Any
) -> None:
    """One host holds all seats: without its journal the votes would be gone."""
    (host,) = start(1)
    request = request_of()
    subject, case = subject_of(request), Case.of(request)
    state = ReviewState.start(subject, seats.committee)
    opened = await host.open.remote(subject.canonical(), pack(case.docket))
    for index, share in opened.shares:
        state = state.add_share(index, share)
    asked = dict.fromkeys(state.first_asked[0], (0,))
    arguments = (subject.canonical(), state.beacon, 0, asked, case)
    reply = await host.commit.remote(*arguments)
    before = (await host.ping.remote())["pid"]
    ray.kill(host, no_restart=False)
    client = CommitteeClient([host], seats.committee, timeout_s=120)
    attestation, report = await client.review(request)
    check(attestation, seats.committee, Decision.ACCEPTED)
    async with asyncio.timeout(60):  # a kill takes effect when Ray comes to it
        while (await answer_of(host.ping.remote))["pid"] == before:
            await asyncio.sleep(0.1)
    assert report.chunks[0].accepts == 7 and not report.evidence
    again = await answer_of(lambda: host.commit.remote(*arguments))
    assert again.commits == reply.commits


async def test_killed_while_it_re_executes_the_review_finishes(
    start: Any, seats: Any, request_of: Any, doubling: Any, tmp_path: Path
) -> None:
    gate, count = tmp_path / "gate", tmp_path / "count"
    hosts = start(2, reference=doubling(wait_for=gate, count=count))
    client = CommitteeClient(hosts, seats.committee, timeout_s=120)
    review = asyncio.ensure_future(client.review(request_of()))
    while not count.exists() or len(count.read_text()) < 2:
        assert not review.done(), review.exception()
        await asyncio.sleep(0.05)
    ray.kill(hosts[0], no_restart=False)
    gate.touch()
    attestation, report = await review
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert report.missing == 0


async def test_blocks_are_certified_while_a_review_runs(
    start: Any, seats: Any, request_of: Any, doubling: Any, tmp_path: Path
) -> None:
    gate, count = tmp_path / "gate", tmp_path / "count"
    hosts = start(2, reference=doubling(wait_for=gate, count=count), validator=chain_factory())
    certifier = RayCertifier(hosts, seats.committee)
    client = CommitteeClient(hosts, seats.committee, timeout_s=120)
    request = request_of()
    request = replace(request, committed=committed(request, seats, 1_000_000))
    review = asyncio.ensure_future(client.review(request))
    while not count.exists():
        assert not review.done(), review.exception()
        await asyncio.sleep(0.05)
    partials = await certifier.certify(header(1), b"1", history)
    assert len(partials) == 21 and not review.done()
    gate.touch()
    attestation, _ = await review
    check(attestation, seats.committee, Decision.ACCEPTED)


async def test_a_restarted_host_catches_up_and_certifies_from_another_process(
    start: Any, seats: Any
) -> None:
    """The certifier crosses Ray, as it does into the ledger's actor."""
    hosts = start(2, validator=chain_factory())
    await asyncio.gather(*(host.ping.remote() for host in hosts))
    ray.kill(hosts[1], no_restart=False)

    class Proposer:
        def __init__(self, certifier: RayCertifier, head: BlockHeader) -> None:
            self.certifier, self.head = certifier, head

        async def propose(self) -> Any:
            async def blocks(start: int) -> list[bytes]:
                return [b"%d" % height for height in range(start, 9)]

            return await self.certifier.certify(self.head, b"9", blocks)

    proposer = ray.remote(Proposer).options(num_cpus=0).remote(
        RayCertifier(hosts, seats.committee), header(9)
    )  # fmt: skip
    partials = await proposer.propose.remote()
    ray.kill(proposer)
    message = QuorumCertificate.message(header(9).digest)
    assert len(partials) >= 14
    for index, signature, _ in partials:
        assert verify_bls(seats.committee.seats[index].public, message, signature)


async def test_errors_cross_ray_as_this_packages(
    start: Any, seats: Any, request_of: Any, seats_of: Any
) -> None:
    hosts = start(1)
    await hosts[0].warm.remote()
    stranger = seats_of(4).committee
    client = CommitteeClient(hosts, stranger, timeout_s=60)
    with pytest.raises(CommitteeError, match=r"0 of 4 seats take part.*another committee"):
        await client.review(request_of(committee=stranger))
    with pytest.raises(CommitteeError, match="cannot be spread"):
        start(22)


async def test_a_later_committee_reviews_after_a_handover(
    cluster: None, seats: Any, request_of: Any, tmp_path: Path, doubling: Any
) -> None:
    folder = tmp_path / "later"
    later = make_committee(folder, 4, epoch=seats.committee.epoch + 1)
    hosts = start_seat_hosts(
        later, folder, reference_factory=doubling(), validator_factory=None,
        workdir=tmp_path / "later-seats", hosts=1,
    )  # fmt: skip
    asked: list[int] = []

    def successors(committee: Any) -> Any:
        asked.append(committee.epoch)
        return hosts

    try:
        client = CommitteeClient([], seats.committee, successors=successors, timeout_s=60)
        for attempt in range(2):
            attestation, _ = await client.review(request_of(attempt=attempt, committee=later))
            check(attestation, later, Decision.ACCEPTED)
            assert attestation.epoch == later.epoch
        assert asked == [later.epoch]
        with pytest.raises(CommitteeError, match="another committee"):
            await client.review(request_of())
    finally:
        ray.kill(hosts[0])

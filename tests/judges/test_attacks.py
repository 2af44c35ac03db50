"""One table of attacks, played on the reducer, on seats in this process, and on real seat hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from attack_table import ATTACKS, Attack, Outcome, judge, play

from daifi_flows.cnft import VoteChoice
from daifi_flows.judges import ReviewReport
from daifi_flows.judges._client import ReviewClient

NAMES = [attack.name for attack in ATTACKS]


def outcome_of(attestation: Any, report: ReviewReport) -> Outcome:
    (chunk,) = report.chunks
    return Outcome(
        attestation,
        report.evidence,
        frozenset(chunk.asked),
        frozenset(f.seat for f in chunk.findings if f.decision is VoteChoice.REJECT),
    )


@pytest.mark.parametrize("nonce", range(3))
@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_on_the_reducer(attack: Attack, nonce: int, request_of: Any, seats: Any) -> None:
    judge(attack, play(attack, request_of(attack.output, nonce=nonce), seats), seats)


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
async def test_on_seats_in_this_process(
    attack: Attack, hosts: int, hosts_of: Any, request_of: Any, seats: Any
) -> None:
    client = ReviewClient(hosts_of(hosts, byzantine=attack.traitors), seats.committee, grace_s=0.3)
    attestation, report = await client.review(request_of(attack.output))
    judge(attack, outcome_of(attestation, report), seats)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
async def test_on_real_seat_hosts(
    attack: Attack, ray_cluster: None, request_of: Any, seats: Any, doubling: Any, tmp_path: Path
) -> None:
    from daifi_flows.judges.actor import CommitteeClient, start_seat_hosts

    hosts = start_seat_hosts(
        seats.committee, seats.folder, reference_factory=doubling(), validator_factory=None,
        workdir=tmp_path / "seats", hosts=2, byzantine=attack.traitors,
    )  # fmt: skip
    try:
        client = CommitteeClient(hosts, seats.committee, grace_s=3.0)
        attestation, report = await client.review(request_of(attack.output))
        judge(attack, outcome_of(attestation, report), seats)
    finally:
        for host in hosts:
            ray.kill(host)

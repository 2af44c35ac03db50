"""Disputes and batches over real seat hosts on Ray, one of them killed on the way."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from daifi_flows.cnft import ReviewRequest
from daifi_flows.dispute import DisputeFinding
from daifi_flows.encoding import cid_sha256
from daifi_flows.errors import CommitteeError
from daifi_flows.judges.actor import CommitteeClient, start_seat_hosts
from daifi_flows.keys import Account, verify_bls_aggregate
from daifi_flows.rollup import Batch, BatchStatement, Leaf

pytestmark = pytest.mark.slow


def leaf_of(request: ReviewRequest) -> Leaf:
    proof = request.result.proof
    return Leaf(
        task_id=request.spec.task_id,
        node=proof.node,
        owner="0x" + "0" * 40,
        model=request.spec.model.digest,
        output=cid_sha256(proof.statement.output_cid)[1],
        amount_wei=1,
        flops=proof.statement.usage.flops,
    )


async def test_seat_hosts_answer_about_disputes_and_batches(
    ray_cluster: None, seats: Any, request_of: Any, tmp_path: Any, doubling: Any
) -> None:
    hosts = start_seat_hosts(
        seats.committee,
        seats.folder,
        reference_factory=doubling(),
        validator_factory=None,
        workdir=tmp_path / "seats",
        hosts=3,
        byzantine={0: "always-accept", 7: "always-reject", 14: "silent"},
    )
    try:
        client = CommitteeClient(hosts, seats.committee, timeout_s=120)
        upheld = await client.dispute(request_of(43))
        assert upheld is not None and upheld.finding is DisputeFinding.UPHELD
        ray.kill(hosts[0], no_restart=False)  # it restarts with the same words
        dismissed = await client.dispute(request_of(42, nonce=1))
        assert dismissed is not None and dismissed.finding is DisputeFinding.DISMISSED

        operator = Account.from_seed(b"operator")
        requests = {r.spec.task_id: r for r in (request_of(42, nonce=n) for n in range(2, 5))}

        async def fetch(leaf: Leaf) -> ReviewRequest:
            return requests[leaf.task_id]

        async def attested(batch: Batch) -> bool:
            statement = BatchStatement(
                ledger_id=request_of().ledger_id,
                epoch=seats.committee.epoch,
                operator=operator.address,
                root=batch.root,
                count=batch.count,
                total_wei=batch.total_wei,
                submit_by_ms=1,
            )
            found = await client.batch(statement, operator, batch, fetch)
            publics = [seat.public for seat in seats.committee.signers(found.signers)]
            return len(publics) >= 14 and verify_bls_aggregate(
                publics, statement.message(), found.signature
            )

        assert await attested(Batch.of(map(leaf_of, requests.values())))
        wrong = request_of(43, nonce=9)
        requests[wrong.spec.task_id] = wrong
        with pytest.raises(CommitteeError, match="is wrong"):
            await attested(Batch.of(map(leaf_of, requests.values())))
    finally:
        for host in hosts:
            ray.kill(host)

"""Audits and canaries on a real fabric: nodes, seats and ledger on Ray."""

from __future__ import annotations

import asyncio

from daifi_flows import Fabric
from daifi_flows._canaries import CanaryOutcome
from daifi_flows._step import StepRequest
from daifi_flows.cnft import Basis, Content, Sampling


def test_reviewed_work_is_not_audited_and_serves_as_a_canary(fabric: Fabric) -> None:
    request = StepRequest(
        name="reason",
        kind="reason",
        model=fabric.resolve_llm(),
        input=Content.json_value(
            {
                "messages": [{"role": "user", "content": "Name a city in France."}],
                "context_tokens": 256,
            }
        ),
        salt_key=b"\x51" * 32,
        scheme="token-difr",
        sampling=Sampling(max_tokens=12),
    )
    token = asyncio.run(fabric.run(request))
    assert token.attestation.basis is Basis.REVIEWED  # the node is new
    audited = asyncio.run(fabric.audit_work())
    assert token.task_id not in {audit.task_id for audit in audited}
    (report,) = asyncio.run(fabric.send_canaries(1))
    # Whatever step of the session it repeats: an honest node agrees, or differs in a token.
    assert report.outcome in (CanaryOutcome.AGREES, CanaryOutcome.REVIEWED)
    assert report.node == token.attestation.node

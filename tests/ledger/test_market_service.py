"""Bids, disputes and evidence through a running ledger: what is asked twice happens once."""

from __future__ import annotations

from pathlib import Path

import ledger_kinds as t
import pytest
from ledger_bench import META
from ledger_kit import (
    BUILDER,
    BUYER,
    DAI,
    GENESIS,
    NODE,
    OTHER,
    PROOF_CID,
    SEAT_KEYS,
    T0,
    SeatsHere,
    attest,
    info_of,
    make_header,
    make_spec,
)
from market_bench import BID_MS, REVEAL_MS, SALT, other_header

from daifi_flows.cnft import token_id_of
from daifi_flows.dispute import DisputeAttestation, DisputeFinding, DisputeStatement
from daifi_flows.encoding import cid_of
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account, aggregate_bls
from daifi_flows.ledger import LedgerClient, LedgerService, TaskState, audit, bid_commitment


def _finding(spec, finding: DisputeFinding, seats: range) -> DisputeAttestation:
    statement = DisputeStatement(
        ledger_id=GENESIS.ledger_id,
        epoch=1,
        task_id=spec.task_id,
        number=0,
        attempt=0,
        node=NODE.address,
        output_cid=cid_of(b"output"),
        proof_cid=PROOF_CID,
        finding=finding,
    )
    return DisputeAttestation(
        epoch=1,
        finding=finding,
        signers=sum(1 << i for i in seats),
        signature=aggregate_bls([SEAT_KEYS[i].sign(statement.message()) for i in seats]),
    )


async def test_what_is_asked_twice_happens_once(tmp_path: Path) -> None:
    now = T0 + 1
    service = LedgerService(
        tmp_path / "ledger.db", GENESIS, SeatsHere(GENESIS), clock=lambda: now, builder=BUILDER
    )
    await service.start()
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=10)
    spec = make_spec()
    task = {"task_id": spec.task_id}
    attempt = task | {"attempt": 0}

    async def send(kind: type[t.Transaction], who: Account, **fields: object):
        """Send it, and again: a client that does not know whether it was heard."""
        first = await client.submit(kind, who, fields)
        again = await client.submit(kind, who, fields)
        assert again.leaf.tx == first.leaf.tx, kind.kind
        return first

    async def refused(kind: type[t.Transaction], who: Account, **fields: object) -> str:
        with pytest.raises(TransactionRefused) as caught:
            await client.submit(kind, who, fields)
        return caught.value.details["code"]

    try:
        for node in (NODE, OTHER):
            await send(t.Register, node, info=info_of(node))
            await client.submit(t.Stake, node, {"amount_wei": 100 * DAI})
        await send(t.Open, BUYER, spec=spec, bid_ms=BID_MS, reveal_ms=REVEAL_MS)
        terms = {"price_wei": DAI, "eta_ms": 1_000}
        sealed = {
            node: bid_commitment(
                GENESIS.ledger_id, spec.task_id, attempt=0, node=node.address, salt=SALT, **terms
            )
            for node in (NODE, OTHER)
        }
        await send(t.Bid, NODE, **attempt, commitment=sealed[NODE])
        await send(t.Bid, OTHER, **attempt, commitment=sealed[OTHER])
        assert await refused(t.Bid, OTHER, **attempt, commitment=META) == "duplicate"
        now += BID_MS
        await send(t.RevealBid, NODE, **attempt, **terms, salt=SALT)
        await send(t.RevealBid, OTHER, **attempt, **terms, salt=SALT)
        await send(t.Assign, BUYER, **attempt, node=NODE.address, price_wei=DAI)
        commit = attempt | {"proof_cid": PROOF_CID}
        await send(t.Commit, NODE, **commit, header=make_header(spec))
        await send(t.Settle, BUYER, attestation=attest(spec), metadata=META)
        claim = task | {"number": 0, "bond_wei": DAI, "evidence": META}
        await send(t.Dispute, OTHER, **claim)
        assert await refused(t.Dispute, BUYER, **claim) == "duplicate"
        upheld, twin = (_finding(spec, DisputeFinding.UPHELD, range(k, k + 14)) for k in (0, 5))
        against = _finding(spec, DisputeFinding.DISMISSED, range(14))
        place = task | {"number": 0}
        first = await client.submit(t.ResolveDispute, OTHER, place | {"attestation": upheld})
        again = await client.submit(t.ResolveDispute, BUYER, place | {"attestation": twin})
        assert again.leaf.tx == first.leaf.tx
        assert await refused(t.ResolveDispute, NODE, **place, attestation=against) == "duplicate"
        pair = [
            t.Commit(sender=NODE.address, nonce=0, **commit, header=header).signed(
                NODE, GENESIS.ledger_id
            )
            for header in (make_header(spec), other_header(spec))
        ]
        shown = await client.submit(
            t.ProofEquivocation, OTHER, {"first": pair[0], "second": pair[1]}
        )
        turned = await client.submit(
            t.ProofEquivocation, BUYER, {"first": pair[1], "second": pair[0]}
        )
        assert turned.leaf.tx == shown.leaf.tx
        record = await client.task(spec.task_id)
        token = await client.token(token_id_of(spec.task_id))
        assert record is not None and record.state is TaskState.REVOKED
        assert token is not None and token.disproven == 1
        supply = await client.supply()
        assert supply.conserved and supply.escrows_wei == 0
        assert (await client.account(NODE.address)).stake_wei == 100 * DAI * 3 // 4 // 2
    finally:
        await service.close(grace_s=0.2)
    assert audit(tmp_path / "ledger.db").tasks == {"revoked": 1}

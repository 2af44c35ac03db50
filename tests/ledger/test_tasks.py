"""What each transaction on a task does to it and to money."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_bench import META, Bench
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
    NODE,
    OTHER,
    PROOF_CID,
    SEAT_ACCOUNTS,
    STRANGER,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
)

from daifi_flows.cnft import PPM, Decision, Review, token_id_of
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Params, TaskState
from daifi_flows.ledger._params import FeeParams, SlashingParams


def test_settling_splits_the_price_refunds_the_rest_and_mints() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.COMMITTED)
    before, node_before = bench.balance(BUYER), bench.balance(NODE)
    receipt = bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)

    price = 2 * DAI
    seat = price * 100_000 // PPM // 14
    treasury = price * 50_000 // PPM
    assert bench.balance(BUYER) == before + 3 * DAI
    assert bench.balance(NODE) == node_before
    assert bench.state.account(NODE.address).locked_wei == price - 14 * seat - treasury
    assert bench.state.supply().locked_wei == price - 14 * seat - treasury
    assert [bench.balance(a) for a in SEAT_ACCOUNTS] == [seat] * 14 + [0] * 7
    assert bench.state.supply().treasury_wei == treasury
    assert sum(p.amount_wei for p in receipt.payments) == 5 * DAI
    assert {p.reason for p in receipt.payments} == {"node", "committee", "treasury", "refund"}

    task, token = bench.state.task(spec.task_id), bench.state.token(token_id_of(spec.task_id))
    assert task is not None and task.state is TaskState.SETTLED and task.escrow_wei == 0
    assert token is not None and token.owner == BUYER.address and token.content == META
    assert receipt.token_id == token.token_id and receipt.node == NODE.address
    assert receipt.attestation == keccak256(attest(spec).canonical())
    assert bench.state.account(NODE.address).reputation_ppm == 2 * PPM // 3


def test_owners_of_parents_get_royalties() -> None:
    bench = Bench()
    parents = tuple(
        token_id_of(bench.reach(TaskState.SETTLED, make_spec(i)).task_id) for i in range(2)
    )
    spec = bench.reach(TaskState.COMMITTED, make_spec(9, parents=parents))
    receipt = bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)
    royalties = [p for p in receipt.payments if p.reason == "royalty"]
    assert [(p.to, p.amount_wei) for p in royalties] == [(BUYER.address, DAI // 20)] * 2


@given(
    price=st.integers(min_value=0, max_value=5 * DAI),
    fees=st.tuples(*[st.integers(min_value=0, max_value=166_666)] * 3),
    signers=st.integers(min_value=14, max_value=21),
)
def test_a_price_is_split_to_the_last_wei(price: int, fees, signers: int) -> None:
    split = FeeParams(
        committee_ppm=fees[0], treasury_ppm=fees[1], royalty_ppm=fees[2], fee_per_byte_wei=0
    )
    genesis = make_genesis(params=Params(fees=split))
    bench = Bench(genesis)
    bench.do(t.Register, NODE, info=info_of(NODE, 0))
    bench.do(t.Stake, NODE, amount_wei=DAI)
    spec = bench.reach(TaskState.COMMITTED, price=price)
    finding = attest(spec, ledger_id=genesis.ledger_id, signers=range(signers))
    receipt = bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    paid = {p.reason: 0 for p in receipt.payments}
    for payment in receipt.payments:
        paid[payment.reason] += payment.amount_wei
    assert sum(paid.values()) - paid.get("refund", 0) == price
    assert paid.get("refund", 0) == 5 * DAI - price
    assert paid.get("committee", 0) <= price * fees[0] // PPM
    assert paid.get("node", 0) >= price - price * sum(fees) // PPM


def test_rejection_slashes_bars_and_reopens() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, Decision.REJECTED)
    receipt = bench.do(t.Reject, STRANGER, attestation=finding)
    slashed = 25 * DAI
    assert sum(p.amount_wei for p in receipt.payments if p.reason == "slash") == slashed
    node, task = bench.state.account(NODE.address), bench.state.task(spec.task_id)
    assert node.stake_wei == 75 * DAI and node.rejected == 1
    assert bench.balance(STRANGER) == slashed // 10
    assert bench.state.supply().burned_wei == slashed * 4 // 10
    assert task is not None and task.state is TaskState.OPEN and task.attempt == 1
    assert task.barred == (NODE.address,) and task.escrow_wei == 5 * DAI
    with pytest.raises(TransactionRefused) as refused:
        bench.assign(spec)
    assert refused.value.details["code"] == "bad-role"
    # The step goes on with another node, and the old attestation is worthless.
    bench.do(t.Register, OTHER, info=info_of(OTHER))
    bench.do(t.Stake, OTHER, amount_wei=DAI)
    bench.assign(spec, OTHER)
    bench.commit(spec, OTHER)
    with pytest.raises(TransactionRefused, match="another attempt"):
        bench.do(t.Reject, STRANGER, attestation=finding)
    good = attest(spec, attempt=1, node=OTHER.address)
    bench.do(t.Settle, BUYER, attestation=good, metadata=META)


def test_a_slash_never_takes_more_than_half() -> None:
    with pytest.raises(ValueError, match="500000"):
        SlashingParams(rejected_ppm=500_001)
    bench = Bench(
        make_genesis(params=Params(fees=FREE, slashing=SlashingParams(rejected_ppm=500_000)))
    )
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, Decision.REJECTED, ledger_id=bench.machine.ledger_id)
    # A node that reports itself wins nothing back.
    receipt = bench.do(t.Reject, NODE, attestation=finding)
    assert bench.state.account(NODE.address).stake_wei == 50 * DAI
    assert NODE.address not in {p.to for p in receipt.payments}


ELSEWHERE = cid_of(b"nothing")


@pytest.mark.parametrize(("first", "second"), [(BUYER, NODE), (NODE, BUYER)])
@pytest.mark.parametrize("decision", [Decision.ACCEPTED, Decision.REJECTED])
def test_a_false_content_id_cannot_hide_a_proof(first, second, decision: Decision) -> None:
    """Not from the node that wants to be paid, and not from the buyer who wants it slashed."""
    bench = Bench()
    spec = bench.reach(TaskState.ASSIGNED)
    fields = {"task_id": spec.task_id, "attempt": 0, "header": make_header(spec)}
    bench.now = spec.deadline_ms - 1
    bench.do(t.Commit, first, **fields, proof_cid=ELSEWHERE)
    answered = bench.state.task(spec.task_id).answered_ms
    kind, extra = (
        (t.Settle, {"metadata": META}) if decision is Decision.ACCEPTED else (t.Reject, {})
    )
    with pytest.raises(TransactionRefused, match="another proof"):
        bench.do(kind, second, attestation=attest(spec, decision), **extra)
    bench.now = spec.deadline_ms + 1
    bench.do(t.Commit, second, **fields, proof_cid=PROOF_CID)
    task = bench.state.task(spec.task_id)
    assert (task.proof_cid, task.other_cid) == (ELSEWHERE, PROOF_CID)
    assert task.answered_ms == answered
    bench.do(kind, second, attestation=attest(spec, decision), **extra)
    task = bench.state.task(spec.task_id)
    if decision is Decision.ACCEPTED:
        assert task.state is TaskState.SETTLED and task.proof_cid == PROOF_CID
    else:
        assert task.state is TaskState.OPEN and task.committer is task.other_cid is None


def test_a_content_id_is_given_once_by_each_and_for_one_proof() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.ASSIGNED)
    fields = {"task_id": spec.task_id, "attempt": 0, "proof_cid": ELSEWHERE}
    header = make_header(spec)
    bench.do(t.Commit, BUYER, **fields, header=header)

    def refused(who: Account, **changes: object) -> str:
        with pytest.raises(TransactionRefused) as caught:
            bench.do(t.Commit, who, **(fields | {"header": header} | changes))
        return caught.value.details["code"]

    assert refused(BUYER, proof_cid=PROOF_CID) == "bad-state"
    assert refused(STRANGER, proof_cid=PROOF_CID) == "bad-role"
    assert refused(NODE, header=make_header(spec, output_cid=cid_of(b"better"))) == "bad-field"
    assert refused(NODE, attempt=1) == "bad-state"
    bench.do(t.Commit, NODE, **fields, header=header)  # the same again: it agrees
    assert {refused(who, proof_cid=PROOF_CID) for who in (BUYER, NODE)} == {"bad-state"}
    marks = {bench.make(t.Commit, who, **fields, header=header).mark() for who in (BUYER, NODE)}
    assert len(marks) == 2  # so that each one's repeat is answered with its own receipt


def test_unproven_refunds_and_slashes_nobody() -> None:
    bench = Bench()
    before = bench.balance(BUYER)
    spec = bench.reach(TaskState.COMMITTED)
    bench.do(t.Unproven, STRANGER, attestation=attest(spec, Decision.UNPROVEN, confidence_ppm=0))
    assert bench.balance(BUYER) == before
    assert bench.state.account(NODE.address).stake_wei == 100 * DAI
    assert bench.state.task(spec.task_id).state is TaskState.UNPROVEN


def test_release_costs_an_attempt_and_attempts_are_bounded() -> None:
    bench = Bench()
    spec = make_spec(review=Review(attempts=2))
    bench.reach(TaskState.OPEN, spec)
    for attempt in range(2):
        bench.assign(spec)
        bench.do(t.Release, BUYER, task_id=spec.task_id, attempt=attempt)
    with pytest.raises(TransactionRefused, match="all 2 attempts are spent"):
        bench.assign(spec)
    before = bench.balance(BUYER)
    bench.do(t.Cancel, BUYER, task_id=spec.task_id)
    assert bench.balance(BUYER) == before + 5 * DAI
    assert bench.state.account(NODE.address).stake_wei == 100 * DAI


@pytest.mark.parametrize(
    ("state", "late_ms"),
    [(TaskState.OPEN, 0), (TaskState.ASSIGNED, 0), (TaskState.COMMITTED, 60_000)],
)
def test_expiry_refunds_after_the_deadline_and_not_before(state: TaskState, late_ms: int) -> None:
    bench = Bench()
    before = bench.balance(BUYER)
    spec = bench.reach(state)
    bench.now = spec.deadline_ms + late_ms - 1
    with pytest.raises(TransactionRefused, match="expires at"):
        bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    bench.now += 1
    bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    assert bench.balance(BUYER) == before
    assert bench.state.task(spec.task_id).state is TaskState.EXPIRED


def test_an_effect_is_committed_once_by_the_owner() -> None:
    bench = Bench()
    token = token_id_of(bench.reach(TaskState.SETTLED).task_id)
    with pytest.raises(TransactionRefused, match="only the holder"):
        bench.do(t.Effect, STRANGER, token_id=token, effect=META)
    receipt = bench.do(t.Effect, BUYER, token_id=token, effect=META)
    assert receipt.content == META and bench.state.token(token).effect == META
    with pytest.raises(TransactionRefused, match="already committed"):
        bench.do(t.Effect, BUYER, token_id=token, effect=bytes(32))

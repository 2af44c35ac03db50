"""Being a node: offers, keys, stake that unbonds, pay that is locked, and slashes that reach it."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from ledger_bench import META, Bench, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
    NODE,
    OTHER,
    STRANGER,
    attest,
    info_of,
    make_genesis,
    make_spec,
)
from market_bench import Market

from daifi_flows.cnft import PPM, Decision
from daifi_flows.dispute import DisputeFinding
from daifi_flows.encoding import keccak256
from daifi_flows.errors import InsufficientFunds, TransactionRefused
from daifi_flows.keys import BlsKey
from daifi_flows.ledger import Params, TaskState
from daifi_flows.ledger._economics import Fault
from daifi_flows.ledger._nodes import BlsKeyRecord, bls_key_key, prove_node_key
from daifi_flows.ledger._params import (
    DisputeParams,
    ParamsRecord,
    RewardParams,
    SlashingParams,
    StakingParams,
    TaskParams,
)
from daifi_flows.ledger._rules._context import Context
from daifi_flows.ledger._rules._stakes import lock, seize, slash
from daifi_flows.ledger._state import Layer
from daifi_flows.ledger._tranches import Tranche, due_ms

DAY = 24 * 3_600_000
WEEK = 7 * DAY
CHALLENGE = 600_000
PRICE = 2 * DAI
SHARE = PRICE - 14 * (PRICE // 10 // 14) - PRICE // 20
KEY, OTHER_KEY = BlsKey.from_seed(b"node key"), BlsKey.from_seed(b"other node key")


def refusal(bench: Bench, code: str, kind: type[t.Transaction], who, **fields: object) -> str:
    """Check that it is refused with this code and changes nothing; what it says."""
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as refused:
        bench.do(kind, who, **fields)
    assert refused.value.details["code"] == code
    assert snapshot(bench.state) == before
    return str(refused.value)


def context(bench: Bench) -> Context:
    """What a rule would get."""
    return Context(
        genesis=bench.machine.genesis,
        ledger_id=bench.machine.ledger_id,
        layer=Layer(bench.state),
        now_ms=bench.now,
        height=1,
    )


def with_key(node, key: BlsKey, proof: bytes | None = None):
    proof = prove_node_key(key, node.address) if proof is None else proof
    return info_of(node).model_copy(update={"bls_public": key.public, "bls_possession": proof})


# Stake and unbonding


def test_unstaked_money_unbonds_and_is_withdrawn_by_anybody() -> None:
    bench = Bench()
    bench.do(t.Stake, NODE, amount_wei=100 * DAI)
    receipt = bench.do(t.Unstake, NODE, amount_wei=30 * DAI)
    assert [(p.reason, p.amount_wei) for p in receipt.payments] == [("unstake", 30 * DAI)]
    due = due_ms(bench.now, WEEK)
    account = bench.state.account(NODE.address)
    assert account.stake_wei == 70 * DAI
    assert account.unbonding == (Tranche(due_ms=due, amount_wei=30 * DAI),)
    assert bench.state.supply().unbonding_wei == 30 * DAI

    bench.now = due - 1
    assert str(due) in refusal(bench, "bad-state", t.Withdraw, STRANGER, holder=NODE.address)
    bench.now = due
    receipt = bench.do(t.Withdraw, STRANGER, holder=NODE.address)
    assert [(p.to, p.reason, p.amount_wei) for p in receipt.payments] == [
        (NODE.address, "unbonded", 30 * DAI)
    ]
    assert bench.balance(NODE) == 130 * DAI
    assert bench.state.supply().unbonding_wei == 0
    said = refusal(bench, "bad-state", t.Withdraw, NODE, holder=NODE.address)
    assert "none waits" in said


@pytest.mark.parametrize("amount", [0, 100 * DAI + 1])
def test_only_what_is_at_stake_can_be_unstaked(amount: int) -> None:
    bench = Bench()
    bench.do(t.Stake, NODE, amount_wei=100 * DAI)
    code = "insufficient-funds" if amount else "bad-field"
    refusal(bench, code, t.Unstake, NODE, amount_wei=amount)
    refusal(bench, code, t.Unstake, STRANGER, amount_wei=amount)


def test_unbonding_stake_does_not_count_for_assignment() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.OPEN)
    bench.do(t.Unstake, NODE, amount_wei=99 * DAI + 1)
    with pytest.raises(TransactionRefused, match="wei at stake and needs"):
        bench.assign(spec)


def test_withdrawing_pays_its_own_fee_from_what_is_due() -> None:
    """The fee's debit already moves what is due; the withdrawal still counts as one."""
    bench = Bench(make_genesis(params=Params()))
    bench.do(t.Stake, NODE, amount_wei=199 * DAI)
    bench.do(t.Unstake, NODE, amount_wei=10 * DAI)
    left = bench.balance(NODE)
    bench.do(t.Transfer, NODE, to=BUYER.address, amount_wei=left - 400 * 10**9)
    bench.now = due_ms(bench.now, WEEK)
    receipt = bench.do(t.Withdraw, NODE, holder=NODE.address)
    assert [p.amount_wei for p in receipt.payments] == [10 * DAI]


def test_money_that_is_due_can_be_spent_without_withdrawing() -> None:
    bench = Bench()
    bench.reach(TaskState.SETTLED, price=PRICE)
    bench.do(t.Unstake, NODE, amount_wei=50 * DAI)
    everything = 150 * DAI + SHARE
    bench.now += WEEK
    with pytest.raises(InsufficientFunds):
        bench.do(t.Transfer, NODE, to=BUYER.address, amount_wei=everything)
    bench.now += WEEK // 8
    bench.do(t.Transfer, NODE, to=BUYER.address, amount_wei=everything)
    account = bench.state.account(NODE.address)
    assert (account.balance_wei, account.unbonding, account.locked) == (0, (), ())


# Locked pay


def test_pay_is_locked_while_the_output_can_be_challenged() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.SETTLED, price=PRICE)
    due = due_ms(bench.now, CHALLENGE)
    account, task = bench.state.account(NODE.address), bench.state.task(spec.task_id)
    assert account.balance_wei == 100 * DAI
    assert account.locked == (Tranche(due_ms=due, amount_wei=SHARE),)
    assert task is not None and (task.earned_wei, task.settled_ms) == (SHARE, bench.now)
    bench.now = due - 1
    refusal(bench, "bad-state", t.Withdraw, NODE, holder=NODE.address)
    bench.now = due
    receipt = bench.do(t.Withdraw, BUYER, holder=NODE.address)
    assert [(p.reason, p.amount_wei) for p in receipt.payments] == [("unlocked", SHARE)]
    assert bench.balance(NODE) == 100 * DAI + SHARE
    assert bench.state.supply().locked_wei == 0


def test_without_a_challenge_window_pay_is_free_at_once() -> None:
    params = Params(fees=FREE, rewards=RewardParams(challenge_ms=0))
    bench = Bench(make_genesis(params=params))
    spec = bench.reach(TaskState.COMMITTED, price=PRICE)
    finding = attest(spec, ledger_id=bench.machine.ledger_id)
    bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    assert bench.balance(NODE) == 100 * DAI + SHARE


def test_locked_pay_can_be_taken_back() -> None:
    bench = Bench()
    ctx = context(bench)
    (payment,) = lock(ctx, NODE.address, 70, "node")
    assert (payment.to, payment.amount_wei, payment.reason) == (NODE.address, 70, "node")
    assert lock(ctx, NODE.address, 0, "node") == ()
    assert seize(ctx, NODE.address, 50) == 50
    assert ctx.account(NODE.address).locked_wei == 20
    assert seize(ctx, NODE.address, 50) == 20
    assert ctx.account(NODE.address).locked == ()
    assert seize(ctx, NODE.address, 50) == 0


# Slashes


@pytest.mark.parametrize("fault", list(Fault))
def test_each_fault_takes_its_fraction_of_stake_and_unbonding(fault: Fault) -> None:
    bench = Bench()
    bench.do(t.Stake, NODE, amount_wei=100 * DAI)
    bench.do(t.Unstake, NODE, amount_wei=40 * DAI)
    bench.now += 2 * DAY
    bench.do(t.Unstake, NODE, amount_wei=10 * DAI + 1)
    ctx = context(bench)
    fraction = SlashingParams().fraction_ppm(fault)
    assert 0 < fraction <= PPM // 2
    payments = slash(ctx, NODE.address, fault, STRANGER.address)
    parts = [50 * DAI - 1, 40 * DAI, 10 * DAI + 1]
    losses = [part * fraction // PPM for part in parts]
    account = ctx.account(NODE.address)
    assert account.stake_wei == parts[0] - losses[0]
    assert [part.amount_wei for part in account.unbonding] == [
        parts[1] - losses[1],
        parts[2] - losses[2],
    ]
    total = sum(losses)
    assert {p.reason for p in payments} == {"slash"}
    assert sum(p.amount_wei for p in payments) == total
    assert ctx.account(STRANGER.address).balance_wei == total // 10
    assert ctx.layer.supply().burned_wei == total * 4 // 10
    assert ctx.layer.supply().treasury_wei == total - total // 10 - total * 4 // 10


def test_who_reports_itself_gets_nothing_back() -> None:
    bench = Bench()
    bench.do(t.Stake, NODE, amount_wei=100 * DAI)
    ctx = context(bench)
    slash(ctx, NODE.address, Fault.EQUIVOCATION, NODE.address)
    assert ctx.account(NODE.address).balance_wei == 100 * DAI
    assert ctx.layer.supply().treasury_wei == 30 * DAI
    assert ctx.layer.supply().burned_wei == 20 * DAI


def test_a_rejection_reaches_unbonding_but_not_what_is_due() -> None:
    bench = Bench()
    bench.do(t.Register, NODE, info=info_of(NODE))
    bench.do(t.Stake, NODE, amount_wei=100 * DAI)
    bench.do(t.Unstake, NODE, amount_wei=20 * DAI)
    bench.now = due_ms(bench.now, WEEK)
    bench.do(t.Unstake, NODE, amount_wei=40 * DAI)
    spec = bench.reach(TaskState.COMMITTED, make_spec(deadline_ms=bench.now + 3_600_000))
    receipt = bench.do(t.Reject, BUYER, attestation=attest(spec, Decision.REJECTED))
    account = bench.state.account(NODE.address).at(bench.now)
    assert sum(p.amount_wei for p in receipt.payments if p.reason == "slash") == 20 * DAI
    assert (account.stake_wei, account.unbonding_wei) == (30 * DAI, 30 * DAI)
    assert account.balance_wei == 120 * DAI
    assert (account.rejected, account.reputation_ppm) == (1, PPM // 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"equivocation_ppm": 500_001},
        {"false_accusation_ppm": 500_001},
        {"rollup_fraud_ppm": 500_001},
        {"unanswered_ppm": 500_001},
        {"reporter_ppm": 600_000, "burn_ppm": 400_001},
    ],
)
def test_no_slash_is_over_a_half_or_split_into_more_than_all(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"500000|more than there is"):
        SlashingParams.model_validate(fields)


def test_stake_cannot_leave_before_what_it_vouches_for() -> None:
    with pytest.raises(ValueError, match="stake could leave"):
        Params(
            staking=StakingParams(unbonding_ms=660_000 - 1),
            rewards=RewardParams(challenge_ms=600_000),
            tasks=TaskParams(settle_grace_ms=60_000),
            disputes=DisputeParams(evidence_ms=60_000),
        )
    with pytest.raises(ValueError, match="stake could leave"):
        Params(
            staking=StakingParams(unbonding_ms=DAY),
            disputes=DisputeParams(evidence_ms=DAY + 1),
        )


def cut(bench: Bench) -> None:
    """Governance makes all of these as short as they may be."""
    params = bench.state.params()
    short = params.model_copy(
        update={
            "staking": params.staking.model_copy(update={"unbonding_ms": 60_000}),
            "rewards": params.rewards.model_copy(update={"challenge_ms": 0}),
            "tasks": params.tasks.model_copy(update={"settle_grace_ms": 0}),
            "disputes": params.disputes.model_copy(update={"evidence_ms": 60_000}),
        }
    )
    assert Params.from_plain(short.plain()) == short
    bench.state.apply({b"p": ParamsRecord(params=short)})


def test_shorter_unbonding_lets_no_stake_go_that_vouches_already() -> None:
    bench = Market()
    spec = bench.reach(TaskState.SETTLED)
    assigned = bench.now
    cut(bench)
    bench.do(t.Unstake, NODE, amount_wei=50 * DAI)
    assert [each.due_ms for each in bench.state.account(NODE.address).unbonding] == [
        assigned + WEEK
    ]
    bench.do(t.Unstake, OTHER, amount_wei=50 * DAI)  # it vouches for nothing
    bench.now += 80_000
    assert bench.state.account(OTHER.address).at(bench.now).unbonding == ()
    bench.run(bench.dispute_tx(spec, OTHER))
    receipt = bench.resolve(spec, DisputeFinding.UPHELD)
    assert sum(p.amount_wei for p in receipt.payments if p.reason == "slash") == 25 * DAI
    bench.now = assigned + WEEK
    assert bench.state.account(NODE.address).at(bench.now).unbonding == ()


def test_shorter_unbonding_takes_no_pay_away() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.COMMITTED)
    cut(bench)
    bench.now = spec.deadline_ms - 1  # later than the new unbonding
    bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=bytes(32))
    assert bench.state.task(spec.task_id).state is TaskState.SETTLED


def test_a_task_longer_than_unbonding_is_not_assigned() -> None:
    bench = Bench()
    last = bench.now + WEEK - Params().vouching_ms
    bench.assign(bench.reach(TaskState.OPEN, make_spec(1, deadline_ms=last)))
    spec = bench.reach(TaskState.OPEN, make_spec(2, deadline_ms=last + 1))
    with pytest.raises(TransactionRefused, match="set an earlier deadline") as refused:
        bench.assign(spec)
    assert refused.value.details["code"] == "bad-field"


# Offers and keys


def test_a_retired_node_is_not_assigned_and_keeps_its_stake() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.OPEN)
    bench.do(t.Retire, NODE)
    assert bench.state.account(NODE.address).registered is None
    assert bench.state.account(NODE.address).stake_wei == 100 * DAI
    with pytest.raises(TransactionRefused, match="not registered"):
        bench.assign(spec)
    refusal(bench, "unknown", t.Retire, NODE)
    bench.do(t.Register, NODE, info=info_of(NODE))
    bench.assign(spec)


def test_a_node_that_retires_finishes_its_task() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.ASSIGNED, price=PRICE)
    bench.do(t.Retire, NODE)
    bench.commit(spec)
    bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)
    assert bench.state.account(NODE.address).locked_wei == SHARE


def test_a_bls_key_belongs_to_one_node_until_it_lets_go() -> None:
    bench = Bench()
    bench.do(t.Register, NODE, info=with_key(NODE, KEY))
    held = bench.state.find(BlsKeyRecord, bls_key_key(KEY.public))
    assert held is not None and held.owner == NODE.address
    bench.do(t.Register, NODE, info=with_key(NODE, KEY))  # its own key, once more
    said = refusal(bench, "duplicate", t.Register, OTHER, info=with_key(OTHER, KEY))
    assert NODE.address in said
    bench.do(t.Register, NODE, info=with_key(NODE, OTHER_KEY))
    bench.do(t.Register, OTHER, info=with_key(OTHER, KEY))
    bench.do(t.Retire, NODE)
    assert bench.state.find(BlsKeyRecord, bls_key_key(OTHER_KEY.public)) is None
    bench.do(t.Register, OTHER, info=info_of(OTHER))
    assert bench.state.find(BlsKeyRecord, bls_key_key(KEY.public)) is None


def test_a_copied_proof_registers_nobody_elses_key() -> None:
    bench = Bench()
    copied = with_key(OTHER, KEY, prove_node_key(KEY, NODE.address))
    refusal(bench, "bad-signature", t.Register, OTHER, info=copied)
    bench.do(t.Register, NODE, info=with_key(NODE, KEY))
    bench.do(t.Retire, NODE)  # its proof is public by now
    refusal(bench, "bad-signature", t.Register, OTHER, info=copied)


@pytest.mark.parametrize(
    ("code", "info"),
    [
        ("bad-signature", with_key(NODE, KEY, prove_node_key(OTHER_KEY, NODE.address))),
        ("bad-signature", with_key(NODE, KEY, KEY.prove_possession())),
        ("bad-signature", with_key(NODE, KEY, bytes(96))),
        ("bad-field", info_of(NODE).model_copy(update={"bls_public": KEY.public})),
        (
            "bad-field",
            info_of(NODE).model_copy(update={"bls_possession": bytes(96)}),
        ),
        ("bad-field", info_of(NODE).model_copy(update={"models": (keccak256(b"m"),) * 2})),
        ("bad-role", info_of(OTHER)),
    ],
)
def test_a_bad_offer_is_refused(code: str, info) -> None:
    bench = Bench()
    bench.do(t.Register, NODE, info=with_key(NODE, OTHER_KEY))
    refusal(bench, code, t.Register, NODE, info=info)


def test_offers_and_their_withdrawal_share_a_mark() -> None:
    """So that an offer made again after retiring is a new one, not an old one repeated."""
    register = t.Register(sender=NODE.address, nonce=0, info=info_of(NODE))
    retire = t.Retire(sender=NODE.address, nonce=1)
    assert register.mark() == retire.mark() and retire.repeatable
    assert register.intent() != retire.intent()


def test_a_node_is_only_given_models_it_offers() -> None:
    bench = Bench()
    spec = bench.reach(TaskState.OPEN)
    other = info_of(NODE).model_copy(update={"models": (keccak256(b"another model"),)})
    bench.do(t.Register, NODE, info=other)
    with pytest.raises(TransactionRefused, match="does not offer the task's model") as refused:
        bench.assign(spec)
    assert refused.value.details["code"] == "bad-role"
    both = other.model_copy(update={"models": (*other.models, spec.model.digest)})
    bench.do(t.Register, NODE, info=both)
    bench.assign(spec)

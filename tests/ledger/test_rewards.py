"""Epochs of emission, rewards and the price index, against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import ledger_kinds as t
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_bench import META, Bench, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    T0,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
)

from daifi_flows.cnft import PPM, Decision, Usage
from daifi_flows.errors import LedgerError, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Genesis, Params, TaskState
from daifi_flows.ledger import _economics as economics
from daifi_flows.ledger._epochs import (
    EpochRecord,
    NodeEpochRecord,
    ScheduleRecord,
    epoch_key,
    node_epoch_key,
)
from daifi_flows.ledger._params import ParamsRecord, PriceParams, RewardParams
from daifi_flows.ledger._rules import _work
from daifi_flows.ledger._rules._context import Context
from daifi_flows.ledger._state import Layer, supply_of

HOUR = 3_600_000
CHALLENGE = 600_000
SUPPLY = 1_400 * DAI
PRICE = 2 * DAI
TERA = 10**12


def genesis_with(params: Params, **changes: object) -> Genesis:
    fields = make_genesis(params=params).model_dump() | changes
    return Genesis.from_plain(fields)


class Work(Bench):
    """A bench on which nodes do work of a stated size."""

    tasks = 0

    def offer(self, *nodes: Account) -> None:
        for node in nodes:
            self.do(t.Register, node, info=info_of(node))
            self.do(t.Stake, node, amount_wei=10 * DAI)

    def execute(
        self,
        node: Account = NODE,
        flops: int = TERA,
        wait_ms: int = 0,
        price: int = PRICE,
        decision: Decision = Decision.ACCEPTED,
    ):
        """One task from opening to the committee's decision; its id."""
        self.tasks += 1
        spec = make_spec(self.tasks, deadline_ms=self.now + HOUR, max_price_wei=price)
        self.do(t.Open, BUYER, spec=spec)
        self.assign(spec, node, price)
        self.now += wait_ms
        header = make_header(spec, node, usage=Usage(flops=flops))
        fields = {"task_id": spec.task_id, "attempt": 0, "proof_cid": PROOF_CID}
        self.do(t.Commit, BUYER, **fields, header=header)
        finding = attest(spec, decision, ledger_id=self.machine.ledger_id, node=node.address)
        if decision is Decision.ACCEPTED:
            self.do(t.Settle, BUYER, attestation=finding, metadata=META)
        else:
            self.do(t.Reject, BUYER, attestation=finding)
        return spec.task_id

    def context(self) -> Context:
        """What a rule would get, writing straight to the state."""
        return Context(
            genesis=self.machine.genesis,
            ledger_id=self.machine.ledger_id,
            layer=Layer(self.state),
            now_ms=self.now,
            height=1,
        )

    def part(self, node: Account, epoch: int = 0) -> NodeEpochRecord:
        found = self.state.find(NodeEpochRecord, node_epoch_key(node.address, epoch))
        assert found is not None
        return found

    def pool(self, epoch: int = 0) -> EpochRecord:
        found = self.state.find(EpochRecord, epoch_key(epoch))
        assert found is not None
        return found

    def refusal(self, code: str, kind: type[t.Transaction], **fields: object) -> str:
        before = snapshot(self.state)
        with pytest.raises(TransactionRefused) as refused:
            self.do(kind, STRANGER, **fields)
        assert refused.value.details["code"] == code
        assert snapshot(self.state) == before
        return str(refused.value)


def emission(epoch: int, rate: int = RewardParams().lambda_ppb, total: int = SUPPLY) -> int:
    """E(start) − E(end)."""
    left = [economics.yet_to_issue_wei(total, rate, (epoch + i) * HOUR) for i in (0, 1)]
    return left[0] - left[1]


def test_an_epoch_is_issued_and_shared_by_the_papers_formula() -> None:
    work = Work()
    work.offer(NODE, OTHER)
    waits = {NODE.address: [1_000, 9_000, 5_000], OTHER.address: [2_000, 2_000]}
    flops = {NODE.address: [3 * TERA, TERA, 5 * 10**9], OTHER.address: [2 * TERA, 123_456_789]}
    for node in (NODE, OTHER):
        for wait, flop in zip(waits[node.address], flops[node.address], strict=True):
            work.execute(node, flop, wait)

    weights: dict[str, int] = {}
    params = RewardParams()
    for node in (NODE, OTHER):
        times, n = waits[node.address], len(waits[node.address])
        mean = Fraction(sum(times), n)
        sigma = int(sum((time - mean) ** 2 for time in times) / n)
        done = sum(flop // 10**6 for flop in flops[node.address])
        standing = work.state.account(node.address).standing
        # All accepted, and seconds hardly fade evidence that halves in a month.
        assert abs(standing.reputation_ppm - PPM * (n + 1) // (n + 2)) <= 1
        rep = Fraction(standing.reputation_ppm, PPM)
        gamma = Fraction(PPM // 2 + standing.reputation_ppm // 2, PPM)
        compute = done * (1 - Fraction(sigma, params.tau_ms2)) + params.beta_mflop * rep
        weights[node.address] = int(compute * gamma)
        assert work.part(node).weight == weights[node.address]
        assert work.part(node).mflop == done
        assert work.part(node).latency.variance_ms2 == sigma
    pool = work.pool()
    assert pool.weights == sum(weights.values())
    assert pool.nodes == 2
    assert pool.emission_wei == emission(0) > 0

    work.now = T0 + HOUR + CHALLENGE
    before = work.state.supply()
    work.do(t.CloseEpoch, STRANGER, epoch=0)
    after = work.state.supply()
    assert after.issued_wei == before.issued_wei + emission(0)
    assert work.pool().pool_wei == emission(0)

    paid = 0
    for node in (NODE, OTHER):
        balance = work.state.account(node.address).at(work.now).balance_wei
        receipt = work.do(t.ClaimReward, STRANGER, epoch=0, node=node.address)
        exact = Fraction(emission(0) * weights[node.address], sum(weights.values()))
        reward = work.balance(node) - balance
        assert reward == exact.numerator // exact.denominator > 0
        assert receipt.node == node.address
        assert receipt.payments[0].amount_wei == reward
        assert receipt.payments[0].reason == "reward"
        paid += reward
        assert work.state.find(NodeEpochRecord, node_epoch_key(node.address, 0)) is None
    dust = emission(0) - paid
    assert 0 <= dust < 2
    assert work.state.supply().treasury_wei == after.treasury_wei + dust
    assert work.state.find(EpochRecord, epoch_key(0)) is None


@pytest.mark.parametrize(
    ("code", "kind", "after_ms", "closed", "fields"),
    [
        ("unknown", "CloseEpoch", 2 * HOUR, False, {"epoch": 1}),
        ("bad-state", "CloseEpoch", 0, False, {"epoch": 0}),
        ("bad-state", "CloseEpoch", HOUR, False, {"epoch": 0}),
        ("bad-state", "CloseEpoch", HOUR + CHALLENGE - 1, False, {"epoch": 0}),
        ("duplicate", "CloseEpoch", HOUR + CHALLENGE, True, {"epoch": 0}),
        ("bad-state", "ClaimReward", 9 * HOUR, False, {"epoch": 0, "node": NODE.address}),
        ("unknown", "ClaimReward", 9 * HOUR, True, {"epoch": 0, "node": OTHER.address}),
        ("unknown", "ClaimReward", 9 * HOUR, True, {"epoch": 1, "node": NODE.address}),
    ],
)
def test_closing_and_claiming_have_their_time(
    code: str, kind: str, after_ms: int, closed: bool, fields: dict[str, object]
) -> None:
    work = Work()
    work.offer(NODE)
    work.execute()
    if closed:
        work.now = T0 + HOUR + CHALLENGE
        work.do(t.CloseEpoch, STRANGER, epoch=0)
    work.now = max(work.now, T0 + after_ms)
    work.refusal(code, getattr(t, kind), **fields)


def test_a_reward_is_claimed_once() -> None:
    work = Work()
    work.offer(NODE, OTHER)
    work.execute(NODE)
    work.execute(OTHER)
    work.now = T0 + HOUR + CHALLENGE
    work.do(t.CloseEpoch, STRANGER, epoch=0)
    work.do(t.ClaimReward, NODE, epoch=0, node=NODE.address)
    work.refusal("unknown", t.ClaimReward, epoch=0, node=NODE.address)
    work.do(t.ClaimReward, NODE, epoch=0, node=OTHER.address)
    work.refusal("unknown", t.CloseEpoch, epoch=0)


def test_an_epoch_without_weight_issues_nothing() -> None:
    params = Params(fees=FREE, rewards=RewardParams(alpha_ppm=0, beta_mflop=0))
    work = Work(make_genesis(params=params))
    work.offer(NODE)
    work.execute()
    work.now = T0 + HOUR + CHALLENGE
    work.do(t.CloseEpoch, STRANGER, epoch=0)
    assert work.state.supply().issued_wei == SUPPLY
    receipt = work.do(t.ClaimReward, STRANGER, epoch=0, node=NODE.address)
    assert receipt.payments == ()
    assert work.state.find(EpochRecord, epoch_key(0)) is None


def test_work_counts_in_the_epoch_in_which_it_is_settled() -> None:
    work = Work()
    work.offer(NODE)
    work.now = T0 + 3 * HOUR - 1
    work.execute(flops=TERA)
    work.now = T0 + 3 * HOUR
    work.execute(flops=2 * TERA)
    assert [work.part(NODE, epoch).mflop for epoch in (2, 3)] == [10**6, 2 * 10**6]
    assert [work.pool(epoch).emission_wei for epoch in (2, 3)] == [emission(2), emission(3)]
    assert [work.pool(epoch).ends_ms for epoch in (2, 3)] == [T0 + 3 * HOUR, T0 + 4 * HOUR]
    # Idle epochs 0 and 1 have no record: what they would have issued is never issued.
    work.refusal("unknown", t.CloseEpoch, epoch=0)


def test_no_more_work_counts_than_was_paid_for() -> None:
    work = Work()
    work.offer(NODE)
    work.execute(flops=2**62, price=PRICE)
    assert work.part(NODE).mflop == PRICE * 10**9 // 10**15


def test_no_node_is_believed_to_be_faster_than_the_bound() -> None:
    params = Params(fees=FREE, rewards=RewardParams(node_gflops=1))
    work = Work(make_genesis(params=params))
    work.offer(NODE)
    most = HOUR  # a gigaFLOP a second for an hour, in megaFLOP
    work.execute(flops=3 * TERA)
    assert work.part(NODE).mflop == 3 * 10**6 < most
    work.execute(flops=TERA)
    work.execute(flops=TERA)
    assert work.part(NODE).mflop == most
    assert work.state.account(NODE.address).standing.mflop == most
    schedule = work.state.find(ScheduleRecord, ScheduleRecord.prefix)
    assert schedule is not None and schedule.used_mflop == most


def test_a_rejection_lowers_the_weight_of_work_already_done() -> None:
    work = Work()
    work.offer(NODE)
    work.execute()
    before = work.part(NODE).weight
    work.execute(decision=Decision.REJECTED)
    after = work.part(NODE)
    assert after.weight < before
    assert work.pool().weights == after.weight
    assert work.state.account(NODE.address).reputation_ppm == PPM // 2
    # A node that did nothing else in the epoch has nothing to weigh.
    work.offer(OTHER)
    work.execute(OTHER, decision=Decision.REJECTED)
    assert work.pool().nodes == 1


# Disputes


def test_a_disputed_output_holds_the_claim_and_a_wrong_one_forfeits_it() -> None:
    work = Work()
    work.offer(NODE, OTHER)
    work.execute(NODE)
    work.execute(OTHER)
    ctx = work.context()
    _work.hold_reward(ctx, NODE.address, 0)
    ctx.layer.merge_down()
    work.now = T0 + HOUR + CHALLENGE
    work.do(t.CloseEpoch, STRANGER, epoch=0)
    assert "disputed" in work.refusal("bad-state", t.ClaimReward, epoch=0, node=NODE.address)
    ctx = work.context()
    _work.forfeit_reward(ctx, NODE.address, 0)
    _work.let_go_reward(ctx, NODE.address, 0)
    ctx.layer.merge_down()
    assert work.do(t.ClaimReward, STRANGER, epoch=0, node=NODE.address).payments == ()
    treasury = work.state.supply().treasury_wei
    work.do(t.ClaimReward, STRANGER, epoch=0, node=OTHER.address)
    left = work.state.supply().treasury_wei - treasury
    assert abs(left - emission(0) // 2) < 2 + emission(0) // 10**6


def test_what_is_forfeited_before_closing_goes_to_the_others() -> None:
    work = Work()
    work.offer(NODE, OTHER)
    work.execute(NODE)
    work.execute(OTHER)
    ctx = work.context()
    _work.hold_reward(ctx, NODE.address, 0)
    _work.forfeit_reward(ctx, NODE.address, 0)
    _work.let_go_reward(ctx, NODE.address, 0)
    ctx.layer.merge_down()
    work.execute(NODE)  # more work in the same epoch changes nothing
    assert work.part(NODE).weight == 0
    assert work.pool().weights == work.part(OTHER).weight
    work.now = T0 + HOUR + CHALLENGE
    work.do(t.CloseEpoch, STRANGER, epoch=0)
    receipt = work.do(t.ClaimReward, STRANGER, epoch=0, node=OTHER.address)
    assert receipt.payments[0].amount_wei == emission(0)


def test_a_dispute_that_stayed_open_delays_the_claim() -> None:
    work = Work()
    work.offer(NODE)
    work.execute()
    work.now = T0 + HOUR + CHALLENGE
    work.do(t.CloseEpoch, STRANGER, epoch=0)
    ctx = work.context()
    _work.delay_reward(ctx, NODE.address, 0, work.now + 5)
    _work.delay_reward(ctx, NODE.address, 0, work.now + 3)  # never sooner
    ctx.layer.merge_down()
    work.now += 4
    said = work.refusal("bad-state", t.ClaimReward, epoch=0, node=NODE.address)
    assert str(work.now + 1) in said
    work.now += 1
    work.do(t.ClaimReward, STRANGER, epoch=0, node=NODE.address)


def test_holding_what_is_not_there_changes_nothing() -> None:
    work = Work()
    ctx = work.context()
    for change in (_work.hold_reward, _work.let_go_reward, _work.forfeit_reward):
        change(ctx, NODE.address, 0)
    _work.delay_reward(ctx, NODE.address, 0, 10)
    assert ctx.layer.changes == {}


# A new λ, other totals


def test_a_new_lambda_counts_from_the_next_epoch_with_work() -> None:
    work = Work()
    work.offer(NODE)
    work.execute()
    rate = 3 * RewardParams().lambda_ppb
    params = Params(fees=FREE, rewards=RewardParams(lambda_ppb=rate))
    work.state.apply({ParamsRecord.prefix: ParamsRecord(params=params)})
    work.execute()
    assert work.pool(0).emission_wei == emission(0)
    work.now = T0 + 5 * HOUR + 1
    work.execute()
    left = economics.yet_to_issue_wei(SUPPLY, RewardParams().lambda_ppb, 5 * HOUR)
    assert work.pool(5).emission_wei == emission(0, rate, left)
    work.now = T0 + 6 * HOUR + 1
    work.execute()
    assert work.pool(6).emission_wei == emission(1, rate, left)
    schedule = work.state.find(ScheduleRecord, ScheduleRecord.prefix)
    assert schedule is not None
    assert (schedule.since_ms, schedule.left_wei) == (T0 + 5 * HOUR, left)


def test_genesis_may_name_what_is_issued_over_time() -> None:
    for emitted in (0, 7 * DAI):
        genesis = genesis_with(Params(fees=FREE), emission_wei=emitted)
        work = Work(genesis)
        work.offer(NODE)
        work.execute()
        assert work.pool().emission_wei == emission(0, total=emitted)
    with pytest.raises(LedgerError, match="set emission_wei"):
        genesis_with(Params(), emission_wei=2**128).check()


# Prices


BUSY = Params(fees=FREE, prices=PriceParams(capacity_gflops=1))
"""A network whose target, half a gigaFLOP a second, is 1.8 teraFLOP an hour."""


def index_of(work: Work) -> int:
    return _work.price_index_ppm(work.context())


def test_asks_rise_when_more_than_the_target_is_used_and_fall_when_less() -> None:
    work = Work(make_genesis(params=BUSY))
    work.offer(NODE)
    for _ in range(4):
        work.execute(flops=TERA)
        assert index_of(work) == PPM  # it moves between epochs only
    work.now = T0 + HOUR
    assert index_of(work) == 1_125_000
    spec = work.reach(TaskState.OPEN, make_spec(77, deadline_ms=work.now + HOUR))
    with pytest.raises(TransactionRefused, match="price index of 1125000 ppm") as refused:
        work.assign(spec, NODE, 1_125 * DAI // 1_000 - 1)
    assert refused.value.details["code"] == "bad-field"
    work.assign(spec, NODE, 1_125 * DAI // 1_000)
    work.execute(flops=int(2.7 * TERA))  # one and a half times the target
    work.now = T0 + 2 * HOUR
    assert index_of(work) == 1_125_000 * 1_062_500 // PPM
    work.execute(flops=0)
    work.now = T0 + 3 * HOUR
    assert index_of(work) == 1_195_312 - 1_195_312 // 8
    work.now = T0 + 4 * HOUR
    assert index_of(work) == PPM


def test_the_index_of_a_long_idle_time_is_the_floor() -> None:
    work = Work(make_genesis(params=BUSY))
    work.offer(NODE)
    for hour in range(3):
        work.now = T0 + hour * HOUR
        work.execute(flops=5 * TERA, price=5 * DAI)
    work.now = T0 + 3 * HOUR
    assert index_of(work) == 1_125_000**3 // PPM**2
    work.now = T0 + 10**6 * HOUR
    assert index_of(work) == PPM


# Everything together


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([NODE, OTHER]),
            st.sampled_from([0, 10**6 - 1, 10**9, TERA, 2**60]),
            st.sampled_from([0, 5_000, 40 * 60_000]),
            st.sampled_from([True, True, True, False]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_is_done_no_more_than_the_schedule_is_issued(work_done) -> None:
    work = Work()
    work.offer(NODE, OTHER)
    for node, flops, wait, good in work_done:
        decision = Decision.ACCEPTED if good else Decision.REJECTED
        work.execute(node, flops, wait, decision=decision)
    epochs = [r.epoch for _, r in work.state.items() if isinstance(r, EpochRecord)]
    for epoch in epochs:
        parts = [
            record
            for _, record in work.state.items()
            if isinstance(record, NodeEpochRecord) and record.epoch == epoch
        ]
        assert work.pool(epoch).weights == sum(part.weight for part in parts)
        assert work.pool(epoch).nodes == len(parts)
    work.now += 2 * HOUR
    for epoch in epochs:
        work.do(t.CloseEpoch, STRANGER, epoch=epoch)
        for node in (NODE, OTHER):
            if work.state.find(NodeEpochRecord, node_epoch_key(node.address, epoch)) is not None:
                work.do(t.ClaimReward, STRANGER, epoch=epoch, node=node.address)
    supply = work.state.supply()
    assert supply == supply_of(work.state)
    elapsed = (max(epochs, default=0) + 1) * HOUR
    left = economics.yet_to_issue_wei(SUPPLY, RewardParams().lambda_ppb, elapsed)
    assert 0 <= supply.issued_wei - SUPPLY <= SUPPLY - left
    kinds = {type(record) for _, record in work.state.items()}
    assert not kinds & {EpochRecord, NodeEpochRecord}

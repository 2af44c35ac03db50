"""How often an execution is reviewed, and what it means that one was, or was not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import ledger_kinds as t
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_bench import META
from ledger_kit import (
    BUYER,
    COMMITTEE,
    DAI,
    FREE,
    GENESIS,
    NODE,
    OTHER,
    PROOF_CID,
    SEAT_ACCOUNTS,
    STRANGER,
    T0,
    attest,
    make_genesis,
    make_header,
    make_spec,
    waived,
)
from market_bench import STAKE, Market, other_header

from daifi_flows.cnft import PPM, Decision, Review, TaskSpec, TxReceipt, Usage
from daifi_flows.dispute import DisputeFinding
from daifi_flows.encoding import cid_of
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Genesis, Params, TaskState
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._economics import EVIDENCE_ONE
from daifi_flows.ledger._epochs import NodeEpochRecord, node_epoch_key
from daifi_flows.ledger._params import RewardParams, SlashingParams, StakingParams
from daifi_flows.ledger._standing import SeatStanding, Standing
from daifi_flows.review_rate import ReviewTerms, review_ppm

TERMS = ReviewTerms()
PRICE = 2 * DAI
DAY = 86_400_000
HALF_LIFE = StakingParams().half_life_ms


class Reviews(Market):
    """A market on which NODE was reviewed often, and found good."""

    def __init__(self, params: Params | None = None, *, veteran: bool = True) -> None:
        super().__init__(make_genesis(params=params) if params is not None else None)
        if veteran:
            self.vouch(NODE)

    def vouch(self, node: Account, accepted: int = 100) -> None:
        account = self.state.account(node.address)
        standing = Standing(accepted_e6=accepted * EVIDENCE_ONE, at_ms=self.now)
        update = {"standing": standing, "reviewed": accepted}
        self.state.apply({account.key(): account.model_copy(update=update)})

    def committed(self, number: int = 0, price: int = PRICE, **changes: object) -> TaskSpec:
        """A task that NODE has answered."""
        return self.reach(TaskState.COMMITTED, make_spec(number, **changes), price=price)

    def rate_of(self, spec: TaskSpec) -> int:
        return self.state.task(spec.task_id).review_ppm

    def rate(self, number: int = 0, price: int = PRICE, **changes: object) -> int:
        return self.rate_of(self.committed(number, price, **changes))

    def attested(self, spec: TaskSpec, attestation) -> TxReceipt:
        return self.do(t.Settle, NODE, attestation=attestation, metadata=META)

    def waived(self, spec: TaskSpec) -> TxReceipt:
        return self.attested(spec, waived(spec, ledger_id=self.machine.ledger_id))

    def reviewed(self, spec: TaskSpec, **changes: object) -> TxReceipt:
        return self.attested(spec, attest(spec, ledger_id=self.machine.ledger_id, **changes))

    def standing(self) -> Standing:
        return self.state.account(NODE.address).standing

    def seats(self) -> list[SeatStanding | None]:
        return [self.state.account(account.address).seat for account in SEAT_ACCOUNTS]


def expected(reach_wei: int = STAKE, price: int = PRICE, exposed_wei: int = 0) -> int:
    """The formula, for the bench's veteran a moment after its last review."""
    return review_ppm(
        price_wei=price,
        reach_wei=reach_wei,
        slash_ppm=SlashingParams().rejected_ppm,
        reputation_ppm=101 * PPM // 102,
        reviewed=100,
        exposed_wei=exposed_wei,
        terms=TERMS,
    )


def test_a_commit_fixes_the_rate_and_its_receipt_says_which_proof_it_is_of() -> None:
    bench = Reviews()
    spec = bench.reach(TaskState.ASSIGNED)
    header = make_header(spec)
    fields = {"task_id": spec.task_id, "attempt": 0, "proof_cid": PROOF_CID, "header": header}
    leaf = bench.do(t.Commit, BUYER, **fields)
    assert leaf.review_ppm == bench.rate_of(spec) == expected() < PPM
    place = {"task_id": spec.task_id, "attempt": 0, "node": NODE.address, "proof": header.digest()}
    assert leaf.commits(**place)
    wrong = {
        "task_id": META,
        "attempt": 1,
        "node": OTHER.address,
        "proof": other_header(spec).digest(),
    }
    for name, value in wrong.items():
        assert not leaf.commits(**(place | {name: value})), name
    # The second commit is about the same proof, so it says the same.
    bench.vouch(NODE, accepted=0)
    second = bench.do(t.Commit, NODE, **(fields | {"proof_cid": cid_of(b"elsewhere")}))
    assert second.commits(**place) and second.review_ppm == leaf.review_ppm
    assert not bench.reviewed(spec).commits(**place)


@pytest.mark.parametrize(
    ("accepted", "always"),
    [(0, True), (TERMS.probation - 1, True), (TERMS.probation, False)],
)
def test_a_new_node_is_always_reviewed(accepted: int, always: bool) -> None:
    bench = Reviews(veteran=False)
    spec = bench.reach(TaskState.ASSIGNED)
    bench.vouch(NODE, accepted)
    bench.commit(spec)
    assert (bench.rate_of(spec) == PPM) is always


def test_reviews_of_long_ago_do_not_count() -> None:
    bench = Reviews(veteran=False)
    bench.vouch(NODE, 2 * TERMS.probation - 1)
    bench.now += HALF_LIFE
    assert bench.rate(deadline_ms=bench.now + DAY) == PPM


@pytest.mark.parametrize(("price", "always"), [(10 * DAI, False), (10 * DAI + 1, True)])
def test_a_large_price_is_always_reviewed(price: int, always: bool) -> None:
    bench = Reviews()
    spec = bench.committed(price=price, max_price_wei=20 * DAI)
    assert (bench.rate_of(spec) == PPM) is always


def test_a_buyer_may_ask_for_a_review() -> None:
    assert Reviews().rate(review=Review(attempts=3, always=1)) == PPM


def test_what_only_its_node_has_is_always_reviewed() -> None:
    """It could settle by itself what the lottery lets pass, and show nobody what it draws."""
    bench = Reviews()
    spec = bench.reach(TaskState.ASSIGNED)
    header = make_header(spec)
    fields = {"task_id": spec.task_id, "attempt": 0, "proof_cid": PROOF_CID, "header": header}
    bench.do(t.Commit, NODE, **fields)
    assert bench.rate_of(spec) == PPM
    assert bench.do(t.Commit, BUYER, **fields).review_ppm == PPM  # a buyer that comes second
    found = waived(spec, ledger_id=bench.machine.ledger_id)
    tx = bench.make(t.Settle, NODE, attestation=found, metadata=META)
    assert bench.refused(tx) == "bad-field"
    bench.reviewed(spec)


@pytest.mark.parametrize(("left_ms", "always"), [(60_000, False), (59_999, True)])
def test_an_answer_in_the_last_minute_is_always_reviewed(left_ms: int, always: bool) -> None:
    """A review would not end in time, a waived one would: being drawn were of no consequence."""
    bench = Reviews()
    spec = bench.reach(TaskState.ASSIGNED)
    bench.now = spec.deadline_ms - left_ms
    bench.vouch(NODE)
    bench.commit(spec)
    assert (bench.rate_of(spec) == PPM) is always


def test_what_nobody_could_challenge_is_always_reviewed() -> None:
    rewards = RewardParams(challenge_ms=0)
    assert Reviews(Params(fees=FREE, rewards=rewards)).rate() == PPM


def test_a_node_whose_output_is_disputed_is_always_reviewed() -> None:
    bench = Reviews()
    first, second = bench.committed(1), bench.committed(2)
    for spec in (first, second):
        bench.reviewed(spec)
        bench.run(bench.dispute_tx(spec, OTHER))
    assert bench.rate(3) == PPM
    bench.resolve(first, DisputeFinding.DISMISSED)
    assert bench.rate(4) == PPM
    bench.resolve(second, DisputeFinding.UNDECIDED)
    assert bench.rate(5) < PPM
    assert bench.state.account(NODE.address).disputed == 0


def test_a_rejection_puts_a_node_back_on_probation() -> None:
    bench = Reviews()
    spec = bench.committed()
    bench.do(t.Reject, STRANGER, attestation=attest(spec, Decision.REJECTED))
    for number in range(1, TERMS.probation + 1):
        spec = bench.committed(number)
        assert bench.rate_of(spec) == PPM
        bench.reviewed(spec)
    assert bench.rate(99) < PPM


@pytest.mark.parametrize("how", ["unproven", "expired"])
def test_an_answer_without_a_finding_puts_its_node_back_on_probation(how: str) -> None:
    """Who is drawn for a review could else show nothing and try again; its standing stays."""
    bench = Reviews()
    spec = bench.committed()
    before = bench.standing()
    (_unproven if how == "unproven" else _expire)(bench, spec)
    assert bench.standing() == before
    assert bench.rate(1, deadline_ms=bench.now + DAY) == PPM


def test_who_did_not_commit_is_not_on_probation() -> None:
    bench = Reviews()
    _expire(bench, bench.reach(TaskState.ASSIGNED))
    assert bench.rate(1, deadline_ms=bench.now + DAY) < PPM


def test_work_that_was_only_sampled_ends_no_probation() -> None:
    """A batch's leaves speak for a node, but a node could have many made for itself."""
    bench = Reviews()
    account = bench.state.account(NODE.address)
    bench.state.apply({account.key(): account.model_copy(update={"reviewed": 0})})
    assert bench.rate() == PPM


def test_stake_vouches_for_everything_under_way_at_once() -> None:
    bench = Reviews()
    alone = bench.committed(0)
    beside = bench.committed(1, price=DAI)
    third = bench.committed(2)
    assert bench.rate_of(alone) == expected()
    assert bench.rate_of(beside) == expected(price=DAI, exposed_wei=PRICE)
    assert bench.rate_of(third) == expected(exposed_wei=3 * DAI) > expected()


def _settle(bench: Reviews, spec: TaskSpec) -> None:
    bench.reviewed(spec)


def _reject(bench: Reviews, spec: TaskSpec) -> None:
    bench.do(t.Reject, STRANGER, attestation=attest(spec, Decision.REJECTED))


def _unproven(bench: Reviews, spec: TaskSpec) -> None:
    bench.do(t.Unproven, STRANGER, attestation=attest(spec, Decision.UNPROVEN))


def _expire(bench: Reviews, spec: TaskSpec) -> None:
    bench.now = spec.deadline_ms + 60_000
    bench.do(t.Expire, STRANGER, task_id=spec.task_id)


def _release(bench: Reviews, spec: TaskSpec) -> None:
    bench.do(t.Release, NODE, task_id=spec.task_id, attempt=0)


def _cancel(bench: Reviews, spec: TaskSpec) -> None:
    bench.do(t.Cancel, BUYER, task_id=spec.task_id)


@pytest.mark.parametrize(
    ("state", "leave"),
    [
        (TaskState.COMMITTED, _settle),
        (TaskState.COMMITTED, _reject),
        (TaskState.COMMITTED, _unproven),
        (TaskState.COMMITTED, _expire),
        (TaskState.ASSIGNED, _expire),
        (TaskState.ASSIGNED, _release),
        (TaskState.ASSIGNED, _cancel),
    ],
)
def test_whatever_ends_a_task_frees_its_part(state: TaskState, leave: Callable) -> None:
    bench = Reviews()
    spec = bench.reach(state)
    account = bench.state.account(NODE.address)
    assert account.engaged_wei == PRICE and account.bonded_wei > 0
    leave(bench, spec)
    account = bench.state.account(NODE.address)
    assert account.engaged_wei == 0 and account.bonded_wei == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_node_that_does_not_answer_what_it_bid_for_is_free_too(late: bool) -> None:
    bench = Reviews()
    spec = bench.won()
    assert bench.state.account(NODE.address).engaged_wei == DAI
    if late:
        bench.now = spec.deadline_ms - 1
        _release(bench, spec)
    else:
        bench.now = spec.deadline_ms
        _expire(bench, spec)
    account = bench.state.account(NODE.address)
    assert account.engaged_wei == 0 and account.bonded_wei == 0 and account.stake_wei < STAKE


@pytest.mark.parametrize("early", [True, False])
def test_of_the_unbonding_counts_what_a_slash_will_still_reach(early: bool) -> None:
    """Unstaked before the task it may be free before its last dispute ends; after, it is not."""
    bench = Reviews()
    account = bench.state.account(NODE.address)
    if early:
        bench.do(t.Unstake, NODE, amount_wei=50 * DAI)
        bench.now += bench.state.params().staking.unbonding_ms // 2
        bench.vouch(NODE)
    spec = bench.reach(TaskState.ASSIGNED, make_spec(deadline_ms=bench.now + 60_000))
    if not early:
        bench.do(t.Unstake, NODE, amount_wei=50 * DAI)
    bench.commit(spec)
    account = bench.state.account(NODE.address)
    assert account.unbonding_wei == 50 * DAI
    reach_wei = STAKE // 2 if early else STAKE
    assert bench.rate_of(spec) == expected(reach_wei)


def test_a_waived_review_pays_as_any_and_locks_it() -> None:
    bench, other = Reviews(), Reviews()
    spec = bench.committed()
    assert other.committed() == spec
    mine, theirs = bench.waived(spec), other.reviewed(spec)
    assert mine.payments == theirs.payments and mine.token_id == theirs.token_id
    task = bench.state.task(spec.task_id)
    assert task.waived == 1 and other.state.task(spec.task_id).waived == 0
    assert bench.locked(NODE) == task.earned_wei > 0
    bench.now = task.challenge_until_ms - 1
    assert bench.locked(NODE) == task.earned_wei


def test_a_waived_review_says_nothing_about_node_or_seats() -> None:
    bench = Reviews()
    spec = bench.committed()
    before, accepted = bench.standing(), bench.state.account(NODE.address).accepted
    bench.waived(spec)
    assert bench.standing() == before
    assert bench.state.account(NODE.address).accepted == accepted
    assert bench.seats() == [None] * 21


@pytest.mark.parametrize(
    ("rate", "changes", "why"),
    [
        (PPM, {}, "always reviewed"),
        (20_000, {"confidence_ppm": 1}, "confidence 0"),
        (20_000, {"decision": Decision.REJECTED}, "another decision"),
        (20_000, {"decision": Decision.UNPROVEN}, "another decision"),
    ],
)
def test_a_review_is_waived_only_where_it_may_be(rate: int, changes: dict, why: str) -> None:
    bench = Reviews()
    spec = bench.committed()
    task = bench.state.task(spec.task_id)
    bench.state.apply({task.key(): task.model_copy(update={"review_ppm": rate})})
    fields = {"ledger_id": bench.machine.ledger_id} | changes
    tx = bench.make(t.Settle, NODE, attestation=waived(spec, **fields), metadata=META)
    assert bench.refused(tx) == "bad-field"
    with pytest.raises(Exception, match=why):
        bench.run(tx)


@pytest.mark.parametrize(
    ("kind", "decision"), [(t.Reject, Decision.REJECTED), (t.Unproven, Decision.UNPROVEN)]
)
def test_nobody_is_judged_unseen(kind: type[t.Transaction], decision: Decision) -> None:
    bench = Reviews()
    spec = bench.committed()
    finding = waived(spec, decision=decision)
    assert bench.refused(bench.make(kind, STRANGER, attestation=finding)) == "bad-field"


def test_a_waived_review_is_about_one_attempt_and_proof() -> None:
    bench = Reviews()
    spec = bench.committed()
    for changes in ({"attempt": 1}, {"proof_cid": cid_of(b"x")}, {"node": OTHER.address}):
        tx = bench.make(t.Settle, NODE, attestation=waived(spec, **changes), metadata=META)
        assert bench.refused(tx) == "bad-field"
    tx = waived(spec, signers=range(13))
    assert bench.refused(bench.make(t.Settle, NODE, attestation=tx, metadata=META)) == (
        "bad-signature"
    )


def test_a_full_review_settles_whatever_the_rate() -> None:
    bench = Reviews()
    spec = bench.committed()
    assert bench.rate_of(spec) < PPM
    before = bench.standing()
    bench.reviewed(spec)
    assert bench.standing().accepted_e6 == before.accepted_e6 + EVIDENCE_ONE


def _epoch(bench: Reviews) -> NodeEpochRecord:
    found = bench.state.find(NodeEpochRecord, node_epoch_key(NODE.address, 0))
    assert found is not None
    return found


def test_rewards_are_for_verified_work_which_counts_once() -> None:
    """Nobody earns by work that it would not show, nor by asking for reviews that were not drawn:
    they would else count as many times as they were unlikely."""
    bench = Reviews()
    work = 7_000_000
    for number, settle in enumerate((bench.waived, bench.reviewed)):
        spec = bench.reach(TaskState.ASSIGNED, make_spec(number))
        header = make_header(spec, usage=Usage(flops=work * 10**6))
        fields = {"task_id": spec.task_id, "attempt": 0, "proof_cid": PROOF_CID, "header": header}
        bench.do(t.Commit, BUYER, **fields)
        before = _epoch(bench).mflop if number else 0
        assert bench.rate_of(spec) < PPM
        settle(spec)
        counts = number * work
        assert _epoch(bench).mflop == before + counts
        assert bench.standing().mflop == counts


def test_the_epoch_of_unseen_work_is_not_paid_before_it_stood() -> None:
    bench = Reviews()
    spec = bench.committed()
    bench.waived(spec)
    part, task = _epoch(bench), bench.state.task(spec.task_id)
    assert part.weight > 0 and part.free_ms == task.challenge_until_ms
    bench.now = T0 + bench.machine.genesis.epoch_ms + 600_000
    bench.do(t.CloseEpoch, STRANGER, epoch=0)
    assert bench.do(t.ClaimReward, STRANGER, node=NODE.address, epoch=0).payments


def test_no_reward_before_the_window_ends_even_if_governance_shortens_it() -> None:
    bench = Reviews()
    bench.now = T0 + bench.machine.genesis.epoch_ms - 1
    bench.vouch(NODE)
    bench.waived(bench.committed(deadline_ms=bench.now + 60_000))
    until_ms = _epoch(bench).free_ms
    record = bench.state.get(b"p")
    rewards = record.params.rewards.model_copy(update={"challenge_ms": 1})
    params = record.params.model_copy(update={"rewards": rewards})
    bench.state.apply({b"p": record.model_copy(update={"params": params})})
    bench.now += 10
    bench.do(t.CloseEpoch, STRANGER, epoch=0)
    claim = {"node": NODE.address, "epoch": 0}
    assert bench.refused(bench.make(t.ClaimReward, STRANGER, **claim)) == "bad-state"
    bench.now = until_ms
    bench.do(t.ClaimReward, STRANGER, **claim)


def test_unseen_work_that_is_disproven_costs_pay_stake_and_reward() -> None:
    bench = Reviews()
    free = bench.free(NODE)
    spec = bench.committed()
    bench.waived(spec)
    bench.run(bench.dispute_tx(spec, OTHER))
    bench.resolve(spec, DisputeFinding.UPHELD)
    slash = SlashingParams().rejected_ppm
    assert bench.stake_of(NODE) == STAKE - STAKE * slash // PPM
    assert bench.locked(NODE) == 0 and bench.free(NODE) == free
    assert _epoch(bench).weight == 0 and _epoch(bench).forfeited == 1
    assert bench.standing().rejected_e6 == EVIDENCE_ONE


def test_unseen_work_that_is_reviewed_later_speaks_for_its_node() -> None:
    for settle, more in ((Reviews.waived, EVIDENCE_ONE), (Reviews.reviewed, 0)):
        bench = Reviews()
        spec = bench.committed()
        settle(bench, spec)
        before = bench.standing().accepted_e6
        bench.run(bench.dispute_tx(spec, OTHER))
        bench.resolve(spec, DisputeFinding.DISMISSED)
        assert bench.standing().accepted_e6 == before + more


@settings(max_examples=40, deadline=None)
@given(
    price=st.integers(1, 10 * DAI),
    others=st.lists(st.integers(1, 5 * DAI), max_size=3),
    stake=st.integers(DAI, STAKE),
)
def test_whatever_may_go_unseen_costs_more_than_it_brings(
    price: int, others: list[int], stake: int
) -> None:
    """Found out with probability (1 − r)·p, a node loses its pay and its price's share of what
    one slash takes of its stake: exactly more than it saves."""
    bench = Reviews()
    bench.do(t.Unstake, NODE, amount_wei=STAKE - stake) if stake < STAKE else None
    bench.now += 2 * DAY  # what was unstaked will be out of reach too early to count
    bench.vouch(NODE)
    terms = {"max_price_wei": 10 * DAI, "deadline_ms": bench.now + 1_000}
    for number, other in enumerate(others):
        bench.reach(TaskState.ASSIGNED, make_spec(number, **terms), price=max(other, DAI))
    price = max(price, DAI)
    rate = bench.rate(9, price, **terms)
    if rate == PPM:
        return
    under_way = price + sum(max(other, DAI) for other in others)
    slash = Fraction(stake * SlashingParams().rejected_ppm * price, PPM * under_way)
    found_out = Fraction(PPM - TERMS.miss_ppm, PPM) * Fraction(rate, PPM)
    saved = Fraction(TERMS.saving_ppm, PPM) * price
    assert found_out * (price + slash) > saved
    # Who is buyer and node in one has the pay back when it is found out, and still loses.
    assert found_out * slash > saved


ACTS: dict[str, Callable[[Reviews, TaskSpec], object]] = {
    "assign": lambda b, s: b.assign(s, NODE, PRICE),
    "commit": lambda b, s: b.commit(s),
    "settle": lambda b, s: b.reviewed(s, attempt=b.state.task(s.task_id).attempt),
    "waive": lambda b, s: b.attested(s, waived(s, attempt=b.state.task(s.task_id).attempt)),
    "reject": _reject,
    "unproven": _unproven,
    "release": _release,
    "cancel": _cancel,
    "expire": lambda b, s: b.do(t.Expire, STRANGER, task_id=s.task_id),
    "dispute": lambda b, s: b.run(
        b.dispute_tx(s, OTHER, number=b.state.task(s.task_id).disputes, bond_wei=2 * DAI)
    ),
    "uphold": lambda b, s: _decide(b, s, DisputeFinding.UPHELD),
    "dismiss": lambda b, s: _decide(b, s, DisputeFinding.DISMISSED),
    "undecided": lambda b, s: _decide(b, s, DisputeFinding.UNDECIDED),
    "give up": lambda b, s: b.do(
        t.ExpireDispute, STRANGER, task_id=s.task_id, number=_number(b, s)
    ),
}


def _decide(bench: Reviews, spec: TaskSpec, finding: DisputeFinding) -> None:
    number, attempt = _number(bench, spec), bench.state.task(spec.task_id).attempt
    signed = bench.finding(spec, finding, number=number, attempt=attempt)
    bench.run(bench.resolve_tx(spec, signed, number=number))


def _number(bench: Reviews, spec: TaskSpec) -> int:
    return max(bench.state.task(spec.task_id).disputes - 1, 0)


REACHED = [TaskState.OPEN, TaskState.ASSIGNED, TaskState.COMMITTED, TaskState.SETTLED]


@settings(max_examples=60, deadline=None)
@given(
    reached=st.lists(st.sampled_from(REACHED), min_size=3, max_size=3),
    acts=st.lists(
        st.tuples(
            st.sampled_from(list(ACTS)), st.integers(0, 2), st.sampled_from([0, 0, 1_000, 700_000])
        ),
        max_size=40,
    ),
)
def test_what_an_account_vouches_for_is_what_its_tasks_say(reached, acts) -> None:
    """Whatever happens in whatever order: its engagements, its bonds, its disputes."""
    bench = Reviews()
    specs = [bench.reach(state, make_spec(number)) for number, state in enumerate(reached)]
    for act, number, wait_ms in acts:
        bench.now += wait_ms
        try:
            ACTS[act](bench, specs[number])
        except TransactionRefused:
            continue
        found = [bench.state.task(spec.task_id) for spec in specs]
        tasks = [task for task in found if task.node == NODE.address]
        busy = [task for task in tasks if task.state.value in ("assigned", "committed")]
        account = bench.state.account(NODE.address)
        assert account.engaged_wei == sum(task.price_wei for task in busy)
        assert account.bonded_wei == sum(task.bond_wei for task in busy)
        open_disputes = [
            task
            for task in tasks
            if bench.state.find(DisputeRecord, dispute_key(task.task_id)) is not None
        ]
        assert account.disputed == len(open_disputes)
        if act == "commit" and open_disputes:
            assert bench.rate_of(specs[number]) == PPM
        if act == "waive":
            assert bench.state.task(specs[number].task_id).waived == 1


# Seats


def test_seats_stand_by_what_they_signed_and_little_by_what_they_missed() -> None:
    bench = Reviews()
    bench.reviewed(bench.committed(0), signers=range(14))
    bench.reviewed(bench.committed(1), signers=range(7, 21))
    served, missed = EVIDENCE_ONE, EVIDENCE_ONE // 10
    stood = [(seat.served_e6, seat.missed_e6) for seat in bench.seats() if seat is not None]
    assert stood == [(served, missed)] * 7 + [(2 * served, 0)] * 7 + [(served, missed)] * 7
    ppm = [bench.state.account(each.address).seat_reputation_ppm for each in SEAT_ACCOUNTS]
    assert ppm[0] == PPM * 2 * 10 // 31 and ppm[10] == PPM * 3 // 4
    # One silence costs less than one service earns, however often both happen.
    assert Fraction(ppm[0], PPM) > Fraction(1, 2)


@pytest.mark.parametrize(
    ("kind", "decision", "counts"),
    [(t.Reject, Decision.REJECTED, 1), (t.Unproven, Decision.UNPROVEN, 0)],
)
def test_a_rejection_is_service_and_what_is_unproven_moves_nothing(
    kind: type[t.Transaction], decision: Decision, counts: int
) -> None:
    bench = Reviews()
    spec = bench.committed()
    bench.do(kind, STRANGER, attestation=attest(spec, decision))
    seats = bench.seats()
    if not counts:
        assert seats == [None] * 21
    else:
        assert [seat.served_e6 for seat in seats] == [EVIDENCE_ONE] * 14 + [0] * 7


def test_only_who_signs_is_paid() -> None:
    bench = Reviews()
    spec = bench.committed()
    signers = (0, 2, *range(9, 21))
    receipt = bench.reviewed(spec, signers=signers)
    fees = [payment for payment in receipt.payments if payment.reason == "committee"]
    assert [fee.to for fee in fees] == [SEAT_ACCOUNTS[i].address for i in signers]
    each = PRICE * FREE.committee_ppm // PPM // 14
    assert {fee.amount_wei for fee in fees} == {each}
    assert [bench.balance(account) for account in SEAT_ACCOUNTS] == [
        each if i in signers else 0 for i in range(21)
    ]


def test_an_account_with_several_seats_stands_by_all_of_them() -> None:
    seats = [
        seat.model_copy(update={"account": OTHER.address}) if seat.index in (0, 20) else seat
        for seat in COMMITTEE.seats
    ]
    committee = COMMITTEE.model_copy(update={"seats": tuple(seats)})
    genesis = GENESIS.model_copy(update={"committee": committee})
    bench = _on(genesis)
    spec = bench.committed()
    before = bench.balance(OTHER)
    bench.reviewed(spec, signers=range(14))
    account = bench.state.account(OTHER.address)
    assert (account.seat.served_e6, account.seat.missed_e6) == (EVIDENCE_ONE, EVIDENCE_ONE // 10)
    assert bench.balance(OTHER) == before + PRICE * FREE.committee_ppm // PPM // 14
    assert account.standing == Standing()  # a seat's standing is not its node's


def _on(genesis: Genesis) -> Reviews:
    bench = Reviews.__new__(Reviews)
    Market.__init__(bench, genesis)
    bench.vouch(NODE)
    return bench


@given(
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 4 * HALF_LIFE)), max_size=12),
    part_ppm=st.integers(0, PPM),
)
def test_a_seats_reputation_is_the_beta_posterior_of_fading_evidence(
    events: list[tuple[bool, int]], part_ppm: int
) -> None:
    standing, now = SeatStanding(at_ms=T0), T0
    served = missed = 0.0
    for signed, wait in events:
        now += wait
        fade = 0.5 ** (wait / HALF_LIFE)
        served, missed = served * fade, missed * fade
        standing = standing.at(now, HALF_LIFE)
        standing = standing.with_served() if signed else standing.with_missed(part_ppm)
        served, missed = served + signed, missed + (not signed) * part_ppm / PPM
    wanted = (served + 1) / (served + missed + 2)
    assert abs(standing.reputation_ppm / PPM - wanted) < 2e-5
    assert standing.at(T0 - 1, HALF_LIFE) == standing


def test_a_seats_evidence_fades_to_nothing_and_stays_in_63_bits() -> None:
    standing = SeatStanding(at_ms=T0).with_served().with_missed(100_000)
    later = standing.at(T0 + HALF_LIFE, HALF_LIFE)
    assert (later.served_e6, later.missed_e6) == (EVIDENCE_ONE // 2, EVIDENCE_ONE // 20)
    assert standing.at(T0 + 400 * HALF_LIFE, HALF_LIFE).reputation_ppm == PPM // 2
    full = SeatStanding(served_e6=2**63 - 1, missed_e6=2**63 - 1)
    assert full.with_served().with_missed(PPM) == full

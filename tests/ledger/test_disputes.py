"""Disputes about settled outputs: what is held, who gets it, and that it ends."""

from __future__ import annotations

from collections.abc import Callable

import ledger_kinds as t
import pytest
from ledger_bench import META
from ledger_kit import BUYER, DAI, FREE, NODE, OTHER, STRANGER, attest, make_genesis
from ledger_kit import make_spec as spec_of
from market_bench import STAKE, Market

from daifi_flows.cnft import PPM, token_id_of
from daifi_flows.dispute import MAX_DISPUTES, DisputeFinding
from daifi_flows.encoding import cid_of
from daifi_flows.ledger import Params, TaskState
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._epochs import NodeEpochRecord, node_epoch_key
from daifi_flows.ledger._params import (
    BidParams,
    DisputeParams,
    RewardParams,
    StakingParams,
    TaskParams,
)

UPHELD, DISMISSED, UNDECIDED = DisputeFinding
CHALLENGE, ANSWER = 600_000, 600_000
BOND = 2 * DAI
"""The bench's price is 2 DAi, and a challenger puts up as much."""
PAY = 2 * DAI - 14 * (2 * DAI // 10 // 14) - 2 * DAI // 20


def running(bench: Market, spec) -> DisputeRecord | None:
    return bench.state.find(DisputeRecord, dispute_key(spec.task_id))


def part(bench: Market) -> NodeEpochRecord:
    found = bench.state.find(NodeEpochRecord, node_epoch_key(NODE.address, 0))
    assert found is not None
    return found


def test_a_dispute_holds_the_bond_the_pay_and_the_reward() -> None:
    bench = Market()
    funds = bench.balance(OTHER)
    spec = bench.disputed()
    supply = bench.state.supply()
    assert bench.balance(OTHER) == funds - BOND
    assert bench.locked(NODE) == 0 and part(bench).held == 1
    assert (supply.escrows_wei, supply.locked_wei) == (BOND, PAY)
    record = running(bench, spec)
    assert record is not None
    assert (record.challenger, record.held_wei, record.bond_wei) == (OTHER.address, PAY, BOND)
    assert record.due_ms == bench.now + ANSWER and record.evidence == META
    task = bench.state.task(spec.task_id)
    assert task.state is TaskState.SETTLED and task.disputes == 1


def test_an_upheld_dispute_takes_stake_pay_and_reward_and_marks_the_token() -> None:
    bench = Market()
    before, funds = bench.balance(OTHER), bench.balance(BUYER)
    spec = bench.disputed()
    receipt = bench.resolve(spec, UPHELD)
    slashed = STAKE // 4
    assert bench.stake_of(NODE) == STAKE - slashed and bench.locked(NODE) == 0
    assert sum(p.amount_wei for p in receipt.payments if p.reason == "slash") == slashed
    assert bench.balance(OTHER) == before + slashed // 10
    assert bench.balance(BUYER) == funds - 2 * DAI + PAY
    account = bench.state.account(NODE.address)
    assert (account.accepted, account.rejected) == (1, 1)
    assert (part(bench).forfeited, part(bench).held, part(bench).weight) == (1, 0, 0)
    token = bench.state.token(token_id_of(spec.task_id))
    assert token.disproven == 1 and token.owner == BUYER.address
    assert bench.state.task(spec.task_id).state is TaskState.REVOKED
    assert running(bench, spec) is None
    assert receipt.token_id == token.token_id and receipt.node == NODE.address
    assert bench.refused(bench.dispute_tx(spec, OTHER, number=1)) == "bad-state"


@pytest.mark.parametrize("node_ppm", [0, 333_333, PPM])
def test_a_dismissed_dispute_pays_the_node_and_closes_the_question(node_ppm: int) -> None:
    disputes = DisputeParams(node_ppm=node_ppm)
    bench = Market(make_genesis(params=Params(fees=FREE, disputes=disputes)))
    before = bench.balance(NODE)
    spec = settled(bench)
    treasury, other = bench.state.supply().treasury_wei, bench.balance(OTHER)
    bond = BOND + 1
    bench.run(bench.dispute_tx(spec, OTHER, bond_wei=bond))
    bench.resolve(spec, DISMISSED)
    share = bond * node_ppm // PPM
    assert bench.balance(NODE) == before + PAY + share  # free at once: nobody can dispute it now
    assert bench.state.supply().treasury_wei == treasury + bond - share
    assert bench.balance(OTHER) == other - bond
    assert bench.stake_of(NODE) == STAKE and part(bench).held == part(bench).forfeited == 0
    assert bench.state.token(token_id_of(spec.task_id)).disproven == 0
    assert bench.refused(bench.dispute_tx(spec, STRANGER, number=1)) == "expired"


def settled(bench: Market, spec=None):
    """Settled on whatever ledger the bench runs."""
    spec = bench.reach(TaskState.COMMITTED, spec)
    finding = attest(spec, ledger_id=bench.machine.ledger_id)
    bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    return spec


@pytest.mark.parametrize("how", ["undecided", "no answer"])
def test_without_a_finding_everybody_gets_their_own_back(how: str) -> None:
    bench = Market()
    funds = bench.balance(NODE), bench.balance(OTHER)
    spec = bench.disputed()
    if how == "undecided":
        bench.resolve(spec, UNDECIDED)
    else:
        bench.now += ANSWER - 1
        early = bench.make(t.ExpireDispute, STRANGER, task_id=spec.task_id, number=0)
        assert bench.refused(early) == "bad-state"
        bench.now += 1
        bench.do(t.ExpireDispute, STRANGER, task_id=spec.task_id, number=0)
    assert bench.balance(OTHER) == funds[1] and bench.stake_of(NODE) == STAKE
    assert bench.locked(NODE) == PAY and part(bench).held == 0
    assert bench.state.supply().escrows_wei == 0 and running(bench, spec) is None
    bench.now += 2 * CHALLENGE
    assert bench.free(NODE) == funds[0] + PAY


def test_a_friends_dispute_does_not_use_up_the_time_to_challenge() -> None:
    bench = Market()
    spec = bench.reach(TaskState.SETTLED)
    settled_ms = bench.now
    bench.now += 100_000
    bench.run(bench.dispute_tx(spec, NODE))
    bench.now += ANSWER + 50_000
    bench.do(t.ExpireDispute, NODE, task_id=spec.task_id, number=0)
    until = bench.state.task(spec.task_id).challenge_until_ms
    assert until == settled_ms + CHALLENGE + ANSWER + 50_000
    bench.now = until - 1
    assert bench.locked(NODE) == PAY
    bench.run(bench.dispute_tx(spec, OTHER, number=1))
    bench.resolve(spec, UPHELD, number=1)
    assert bench.stake_of(NODE) == STAKE * 3 // 4


def test_an_output_is_disputed_so_often_and_no_more() -> None:
    bench = Market()
    spec = bench.reach(TaskState.SETTLED)
    for number in range(MAX_DISPUTES):
        bench.run(bench.dispute_tx(spec, OTHER, number=number))
        bench.resolve(spec, UNDECIDED, number=number)
    assert bench.refused(bench.dispute_tx(spec, OTHER, number=MAX_DISPUTES)) == "bad-state"


@pytest.mark.parametrize(("offset_ms", "code"), [(CHALLENGE - 1, None), (CHALLENGE, "expired")])
def test_an_output_is_challenged_in_its_window(offset_ms: int, code: str | None) -> None:
    bench = Market()
    spec = bench.reach(TaskState.SETTLED)
    bench.now += offset_ms
    assert bench.locked(NODE) == PAY  # still there to be held
    tx = bench.dispute_tx(spec, OTHER)
    if code is None:
        bench.run(tx)
        assert running(bench, spec).held_wei == PAY
    else:
        assert bench.refused(tx) == code


def test_where_nothing_can_be_challenged_everything_is_final() -> None:
    params = Params(fees=FREE, rewards=RewardParams(challenge_ms=0))
    bench = Market(make_genesis(params=params))
    spec = settled(bench)
    assert bench.refused(bench.dispute_tx(spec, OTHER)) == "expired"


@pytest.mark.parametrize(
    ("params", "price", "least"),
    [
        (DisputeParams(), 2 * DAI, 2 * DAI),
        (DisputeParams(), DAI, DAI),
        (DisputeParams(min_bond_wei=5 * DAI), DAI, 5 * DAI),
        (DisputeParams(min_bond_wei=1, bond_ppm=1), DAI + 1, 10**12 + 1),
    ],
)
def test_a_challenger_puts_up_what_a_review_costs(params, price: int, least: int) -> None:
    bench = Market(make_genesis(params=Params(fees=FREE, disputes=params)))
    spec = bench.reach(TaskState.COMMITTED, price=price)
    finding = attest(spec, ledger_id=bench.machine.ledger_id)
    bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    assert bench.refused(bench.dispute_tx(spec, OTHER, bond_wei=least - 1)) == "bad-field"
    bench.run(bench.dispute_tx(spec, OTHER, bond_wei=least))


def test_a_node_that_accuses_itself_gets_no_reporters_share() -> None:
    bench = Market()
    before = bench.balance(NODE)
    spec = bench.disputed(challenger=NODE)
    bench.resolve(spec, UPHELD)
    assert bench.balance(NODE) == before and bench.stake_of(NODE) == STAKE * 3 // 4


def test_stake_stays_in_reach_until_the_last_dispute_is_decided() -> None:
    unbonding = 60_000 + CHALLENGE + MAX_DISPUTES * ANSWER
    terms = DisputeParams(evidence_ms=unbonding)
    with pytest.raises(ValueError, match="stake could leave"):
        Params(disputes=terms, staking=StakingParams(unbonding_ms=unbonding - 1))
    params = Params(fees=FREE, disputes=terms, staking=StakingParams(unbonding_ms=unbonding))
    bench = Market(make_genesis(params=params))
    spec = spec_of(deadline_ms=bench.now + 1_000)
    bench.do(t.Open, BUYER, spec=spec)
    assert bench.refused(bench.assign_tx(spec, NODE, DAI)) == "bad-field"


@pytest.mark.parametrize(("spare_ms", "code"), [(0, None), (-1, "expired")])
def test_nothing_settles_that_stake_no_longer_vouches_for(spare_ms: int, code: str | None) -> None:
    bench = Market()
    spec = bench.reach(TaskState.COMMITTED)
    params = bench.state.params()
    bench.now += params.staking.unbonding_ms - params.disputing_ms - spare_ms
    tx = bench.make(t.Settle, BUYER, attestation=attest(spec), metadata=META)
    if code is None:
        bench.run(tx)
    else:
        assert bench.refused(tx) == code
        bench.do(t.Expire, STRANGER, task_id=spec.task_id)


@pytest.mark.parametrize(
    ("group", "field", "least", "most"),
    [
        (BidParams, "deposit_wei", 0, 10**24),
        (BidParams, "max_bids", 1, 64),
        (BidParams, "min_window_ms", 1, 86_400_000),
        (TaskParams, "bond_ppm", 0, PPM),
        (TaskParams, "notice_ms", 0, 86_400_000),
        (DisputeParams, "min_bond_wei", 1, 10**24),
        (DisputeParams, "bond_ppm", 0, 10 * PPM),
        (DisputeParams, "node_ppm", 0, PPM),
        (DisputeParams, "answer_ms", 1_000, 7 * 86_400_000),
        (DisputeParams, "evidence_ms", 60_000, 30 * 86_400_000),
    ],
)
def test_terms_have_hard_bounds(group, field: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(group.model_validate({field: value}), field) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ValueError, match=field):
            group.model_validate({field: value})


def test_pay_for_other_outputs_is_not_held() -> None:
    bench = Market()
    first = bench.reach(TaskState.SETTLED, spec_of(1))
    second = bench.reach(TaskState.SETTLED, spec_of(2))
    bench.run(bench.dispute_tx(first, OTHER))
    assert bench.locked(NODE) == PAY
    bench.run(bench.dispute_tx(second, OTHER))
    assert bench.locked(NODE) == 0 and part(bench).held == 2
    bench.resolve(first, DISMISSED)
    bench.resolve(second, UPHELD)
    assert part(bench).held == 0 and part(bench).forfeited == 1


def test_a_finding_that_comes_late_counts_until_the_dispute_expires() -> None:
    bench = Market()
    spec = bench.disputed()
    bench.now += 10 * ANSWER
    bench.resolve(spec, UPHELD)
    late = bench.make(t.ExpireDispute, STRANGER, task_id=spec.task_id, number=0)
    assert bench.refused(late) == "unknown"


Attack = Callable[[Market], t.Transaction]


def _open(**fields: object) -> Attack:
    return lambda b: b.dispute_tx(b.reach(TaskState.SETTLED), OTHER, **fields)


def _resolve(number: int = 0, **changes: object) -> Attack:
    def attack(bench: Market) -> t.Transaction:
        spec = bench.disputed()
        return bench.resolve_tx(spec, bench.finding(spec, UPHELD, **changes), number=number)

    return attack


def _altered(**changes: object) -> Attack:
    def attack(bench: Market) -> t.Transaction:
        spec = bench.disputed()
        finding = bench.finding(spec, DISMISSED).model_copy(update=changes)
        return bench.resolve_tx(spec, finding)

    return attack


def _replayed(bench: Market) -> t.Transaction:
    """The first dispute's finding, brought to the second."""
    spec = bench.disputed()
    finding = bench.finding(spec, UPHELD)
    bench.resolve(spec, UNDECIDED)
    bench.run(bench.dispute_tx(spec, OTHER, number=1))
    return bench.resolve_tx(spec, finding, number=1)


def _second(bench: Market) -> t.Transaction:
    return bench.dispute_tx(bench.disputed(), BUYER, number=1)


def _twice(bench: Market) -> t.Transaction:
    spec = bench.disputed()
    finding = bench.finding(spec, DISMISSED)
    bench.run(bench.resolve_tx(spec, finding))
    return bench.resolve_tx(spec, finding)


ATTACKS: list[tuple[str, str, Attack]] = [
    ("a second dispute while one runs", "duplicate", _second),
    ("another number", "bad-state", _open(number=1)),
    ("too small a bond", "bad-field", _open(bond_wei=BOND - 1)),
    ("more than the challenger has", "insufficient-funds", _open(bond_wei=1_000 * DAI)),
    ("a task nobody opened", "unknown", _open(task_id=META)),
    (
        "an output that is not settled",
        "bad-state",
        lambda b: b.dispute_tx(b.reach(TaskState.COMMITTED), OTHER),
    ),
    ("13 signers", "bad-signature", _resolve(signers=range(13))),
    ("another ledger", "bad-signature", _resolve(ledger_id=META)),
    ("another epoch", "bad-field", _resolve(epoch=2)),
    ("another task's finding", "bad-signature", _resolve(task_id=META)),
    ("another attempt", "bad-signature", _resolve(attempt=1)),
    ("another node", "bad-signature", _resolve(node=OTHER.address)),
    ("another output", "bad-signature", _resolve(output_cid=cid_of(b"x"))),
    ("another proof", "bad-signature", _resolve(proof_cid=cid_of(b"x"))),
    ("another dispute's number", "bad-state", _resolve(number=1)),
    ("a finding for another number", "bad-signature", _replayed),
    ("a finding turned around", "bad-signature", _altered(finding=UPHELD)),
    ("a bitmap of other seats", "bad-signature", _altered(signers=((1 << 14) - 1) << 1)),
    ("a bit beyond the committee", "bad-field", _altered(signers=1 << 21)),
    ("deciding twice", "unknown", _twice),
    (
        "expiring what nobody disputed",
        "unknown",
        lambda b: b.make(
            t.ExpireDispute, STRANGER, task_id=b.reach(TaskState.SETTLED).task_id, number=0
        ),
    ),
    (
        "expiring another dispute",
        "bad-state",
        lambda b: b.make(t.ExpireDispute, STRANGER, task_id=b.disputed().task_id, number=1),
    ),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in ATTACKS]
)
def test_attacks_on_disputes_are_refused(code: str, attack: Attack) -> None:
    bench = Market()
    assert bench.refused(attack(bench)) == code


def test_who_asks_again_is_told_what_happened_and_who_comes_second_is_not() -> None:
    """The marks under which a service finds a repeat."""
    bench = Market()
    spec = bench.reach(TaskState.SETTLED)
    mine, again = (bench.dispute_tx(spec, OTHER, nonce=n) for n in (0, 7))
    yours = bench.dispute_tx(spec, BUYER)
    assert mine.mark() == again.mark() and mine.intent() == again.intent()
    assert mine.mark() != yours.mark()
    bench.run(bench.dispute_tx(spec, OTHER))
    one, other = (bench.finding(spec, UPHELD, signers=range(k, k + 14)) for k in (0, 3))
    first, second = bench.resolve_tx(spec, one), bench.resolve_tx(spec, other, OTHER)
    assert first.mark() == second.mark() and first.intent() == second.intent()
    against = bench.resolve_tx(spec, bench.finding(spec, DISMISSED))
    assert against.mark() == first.mark() and against.intent() != first.intent()

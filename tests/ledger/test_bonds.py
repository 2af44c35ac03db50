"""Bonds: what an assignment holds of a node's stake, and when a node loses of it."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from ledger_bench import META
from ledger_kit import BUYER, DAI, FREE, NODE, OTHER, STRANGER, attest, make_genesis
from ledger_kit import make_spec as spec_of
from market_bench import BID_MS, REVEAL_MS, STAKE, Market

from daifi_flows.cnft import PPM, Decision
from daifi_flows.ledger import Params, TaskState
from daifi_flows.ledger._params import SlashingParams, TaskParams

NOTICE = 30_000
BOND = 2 * DAI // 20
"""Of the bench's price of 2 DAi."""


def end(bench: Market, spec, how: str) -> None:
    """Bring an assigned task on, by the way it leaves its node."""
    task_id = spec.task_id
    if how in ("settle", "reject", "unproven", "expire the committed"):
        bench.commit(spec)
    if how == "settle":
        bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)
    elif how == "reject":
        bench.do(t.Reject, STRANGER, attestation=attest(spec, Decision.REJECTED))
    elif how == "unproven":
        bench.do(t.Unproven, STRANGER, attestation=attest(spec, Decision.UNPROVEN))
    elif how == "release by the buyer":
        bench.do(t.Release, BUYER, task_id=task_id, attempt=0)
    elif how == "release by the node":
        bench.do(t.Release, NODE, task_id=task_id, attempt=0)
    elif how == "cancel":
        bench.do(t.Cancel, BUYER, task_id=task_id)
    else:
        bench.now = spec.deadline_ms + 60_000
        bench.do(t.Expire, STRANGER, task_id=task_id)


ENDS = [
    "settle",
    "reject",
    "unproven",
    "release by the buyer",
    "release by the node",
    "cancel",
    "expire the committed",
    "expire the assigned",
]


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("auction", [False, True], ids=["direct", "auction"])
def test_every_way_out_of_an_assignment_frees_the_bond(how: str, auction: bool) -> None:
    bench = Market()
    spec = bench.won(price=2 * DAI) if auction else bench.reach(TaskState.ASSIGNED)
    assert bench.bonded(NODE) == bench.state.task(spec.task_id).bond_wei == BOND
    assert bench.stake_of(NODE) == STAKE
    end(bench, spec, how)
    assert bench.bonded(NODE) == bench.state.task(spec.task_id).bond_wei == 0
    lost = {"reject": STAKE // 4, "expire the assigned": BOND // 2 if auction else 0}
    assert bench.stake_of(NODE) == STAKE - lost.get(how, 0)


def test_bonded_stake_cannot_be_unstaked() -> None:
    bench = Market()
    spec = bench.reach(TaskState.ASSIGNED)
    over = bench.make(t.Unstake, NODE, amount_wei=STAKE - BOND + 1)
    assert bench.refused(over) == "insufficient-funds"
    bench.do(t.Unstake, NODE, amount_wei=STAKE - BOND)
    assert bench.stake_of(NODE) == BOND
    bench.do(t.Release, NODE, task_id=spec.task_id, attempt=0)
    bench.do(t.Unstake, NODE, amount_wei=BOND)


def test_stake_vouches_for_as_many_tasks_as_it_can() -> None:
    bench = Market()
    bench.do(t.Unstake, NODE, amount_wei=STAKE - DAI)
    specs = [spec_of(i) for i in range(5)]
    for spec in specs:
        bench.do(t.Open, BUYER, spec=spec)
    for spec in specs[:4]:  # 5 % of 5 DAi each
        bench.assign(spec, NODE, 5 * DAI)
    assert bench.refused(bench.assign_tx(specs[4], NODE, 5 * DAI)) == "bad-role"
    bench.do(t.Release, BUYER, task_id=specs[0].task_id, attempt=0)
    bench.assign(specs[4], NODE, 5 * DAI)


def test_a_slash_reaches_bonded_stake() -> None:
    bench = Market(make_genesis(params=Params(fees=FREE, tasks=TaskParams(bond_ppm=PPM))))
    bench.do(t.Unstake, NODE, amount_wei=STAKE - 8 * DAI)
    bench.now += 8 * 86_400_000
    deadline = bench.now + 3_600_000
    one, two = (spec_of(i, max_price_wei=4 * DAI, deadline_ms=deadline) for i in range(2))
    for spec in (one, two):
        bench.do(t.Open, BUYER, spec=spec)
        bench.assign(spec, NODE, 4 * DAI)
    bench.commit(one)
    finding = attest(one, Decision.REJECTED, ledger_id=bench.machine.ledger_id)
    bench.do(t.Reject, STRANGER, attestation=finding)
    account = bench.state.account(NODE.address)
    assert (account.stake_wei, account.bonded_wei, account.free_stake_wei) == (
        6 * DAI,
        4 * DAI,
        2 * DAI,
    )
    bench.do(t.Cancel, BUYER, task_id=two.task_id)
    assert bench.state.account(NODE.address).free_stake_wei == 6 * DAI


def test_silence_after_a_bid_costs_half_of_the_bond() -> None:
    bench = Market()
    spec = bench.won(price=2 * DAI)
    funds = bench.balance(BUYER)
    bench.now = spec.deadline_ms
    receipt = bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    lost = BOND // 2
    assert receipt.node == NODE.address
    assert sum(p.amount_wei for p in receipt.payments if p.reason == "slash") == lost
    assert bench.stake_of(NODE) == STAKE - lost
    assert bench.balance(STRANGER) == lost // 10
    assert bench.state.supply().burned_wei == lost * 4 // 10
    assert bench.balance(BUYER) == funds + 5 * DAI
    assert bench.state.account(NODE.address).rejected == 0  # late is not wrong


def test_a_bond_that_slashes_ate_costs_no_more_than_half_of_what_is_left() -> None:
    genesis = make_genesis(
        params=Params(
            fees=FREE,
            tasks=TaskParams(bond_ppm=PPM),
            slashing=SlashingParams(rejected_ppm=500_000),
        )
    )
    bench = Market(genesis)
    bench.do(t.Unstake, NODE, amount_wei=STAKE - 10 * DAI)
    other = spec_of(9)
    bench.do(t.Open, BUYER, spec=other)
    bench.assign(other, NODE, 5 * DAI)
    spec = bench.won(price=5 * DAI)
    bench.commit(other)
    finding = attest(other, Decision.REJECTED, ledger_id=genesis.ledger_id)
    bench.do(t.Reject, BUYER, attestation=finding)
    other = spec_of(10)
    bench.do(t.Stake, NODE, amount_wei=5 * DAI)
    bench.do(t.Open, BUYER, spec=other)
    bench.assign(other, NODE, 5 * DAI)
    bench.commit(other)
    finding = attest(other, Decision.REJECTED, ledger_id=genesis.ledger_id)
    bench.do(t.Reject, BUYER, attestation=finding)
    before = bench.stake_of(NODE)
    assert before == 5 * DAI
    bench.now = spec.deadline_ms
    bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    assert bench.stake_of(NODE) == before - 5 * DAI // 2
    assert bench.bonded(NODE) == 0


@pytest.mark.parametrize(
    ("left_ms", "eta_ms", "loses"),
    [
        (2 * NOTICE, 1, True),
        (2 * NOTICE - 1, 1, False),
        (100_000, 100_000, True),
        (100_000, 100_001, False),
    ],
    ids=["just time to decline", "no time to decline", "just in time", "promised more time"],
)
def test_a_buyer_who_assigns_too_late_has_only_itself_to_blame(left_ms, eta_ms, loses) -> None:
    bench = Market()
    spec = bench.open()
    bench.bid(spec, NODE, 2 * DAI, eta_ms)
    bench.now += BID_MS
    bench.reveal(spec, NODE, 2 * DAI, eta_ms)
    bench.now = spec.deadline_ms - left_ms
    bench.assign(spec, NODE, 2 * DAI)
    bench.now = spec.deadline_ms
    bench.do(t.Expire, BUYER, task_id=spec.task_id)
    assert bench.stake_of(NODE) == STAKE - (BOND // 2 if loses else 0)


@pytest.mark.parametrize(
    ("wait_ms", "loses"),
    [(REVEAL_MS, True), (REVEAL_MS + NOTICE, True), (1 + REVEAL_MS + NOTICE, False)],
)
def test_the_longest_promise_can_be_broken(wait_ms: int, loses: bool) -> None:
    """It counts as if the buyer had assigned the task ``NOTICE`` after the auction."""
    bench = Market()
    spec = bench.open()
    longest = spec.deadline_ms - bench.now - BID_MS - REVEAL_MS
    bench.bid(spec, NODE, 2 * DAI, longest)
    bench.now += BID_MS
    bench.reveal(spec, NODE, 2 * DAI, longest)
    bench.now += wait_ms
    bench.assign(spec, NODE, 2 * DAI)
    bench.now = spec.deadline_ms
    bench.do(t.Expire, BUYER, task_id=spec.task_id)
    assert bench.stake_of(NODE) == STAKE - (BOND // 2 if loses else 0)


def test_no_bid_promises_an_answer_after_the_deadline() -> None:
    bench = Market()
    spec = bench.open()
    longest = spec.deadline_ms - bench.now - BID_MS - REVEAL_MS
    promises = ((NODE, longest + 1), (OTHER, 2**62))
    for node, eta in promises:
        bench.bid(spec, node, DAI, eta)
    bench.now += BID_MS
    for node, eta in promises:
        assert bench.refused(bench.reveal_tx(spec, node, DAI, eta)) == "bad-field"


@pytest.mark.parametrize(
    ("who", "left_ms", "loses"),
    [
        (NODE, NOTICE, False),
        (NODE, NOTICE - 1, True),
        (NODE, -1, True),
        (BUYER, NOTICE - 1, False),
        (BUYER, -1, False),
    ],
)
def test_a_node_gives_a_task_back_in_time_or_pays(who, left_ms: int, loses: bool) -> None:
    bench = Market()
    spec = bench.won(price=2 * DAI)
    bench.now = spec.deadline_ms - left_ms
    bench.do(t.Release, who, task_id=spec.task_id, attempt=0)
    assert bench.stake_of(NODE) == STAKE - (BOND // 2 if loses else 0)
    assert bench.bonded(NODE) == 0


def test_a_node_that_expires_its_own_task_gets_no_reporters_share() -> None:
    bench = Market()
    spec = bench.won(price=2 * DAI)
    before = bench.balance(NODE)
    bench.now = spec.deadline_ms
    bench.do(t.Expire, NODE, task_id=spec.task_id)
    assert bench.balance(NODE) == before and bench.stake_of(NODE) == STAKE - BOND // 2


def test_a_directly_assigned_node_loses_nothing_by_silence() -> None:
    """The work reaches it outside of the ledger: the buyer may never have sent it."""
    bench = Market()
    spec = bench.reach(TaskState.ASSIGNED, node=OTHER)
    bench.now = spec.deadline_ms
    bench.do(t.Expire, BUYER, task_id=spec.task_id)
    assert bench.stake_of(OTHER) == STAKE and bench.bonded(OTHER) == 0


def test_a_bidder_that_gives_up_cannot_use_up_the_attempts() -> None:
    bench = Market()
    spec = bench.won(price=2 * DAI)
    bench.do(t.Release, NODE, task_id=spec.task_id, attempt=0)
    assert bench.stake_of(NODE) == STAKE
    assert bench.refused(bench.bid_tx(spec, NODE)) == "bad-role"
    bench.bid(spec, OTHER)
    bench.now += BID_MS
    bench.reveal(spec, OTHER)
    bench.assign(spec, OTHER, DAI)
    # Whom the buyer takes it from may bid again, and who was assigned directly may come back.
    bench.do(t.Release, BUYER, task_id=spec.task_id, attempt=1)
    bench.bid(spec, OTHER)
    direct = bench.reach(TaskState.ASSIGNED, spec_of(1))
    bench.do(t.Release, NODE, task_id=direct.task_id, attempt=0)
    bench.assign(direct, NODE)

"""Sealed bids: windows, deposits, who can be assigned, and what front-running wins (nothing)."""

from __future__ import annotations

from collections.abc import Callable

import ledger_kinds as t
import pytest
from ledger_bench import META
from ledger_kit import BUYER, DAI, FREE, NODE, OTHER, STRANGER, attest, info_of, make_genesis
from ledger_kit import make_spec as spec_of
from market_bench import BID_MS, REVEAL_MS, SALT, STAKE, T0, Market

from daifi_flows.cnft import Decision, Review
from daifi_flows.encoding import keccak256
from daifi_flows.keys import Account
from daifi_flows.ledger import Params, TaskState
from daifi_flows.ledger._bids import AuctionRecord, auction_key, bid_commitment
from daifi_flows.ledger._params import BidParams

DEPOSIT = 10**16


def auction(bench: Market, spec) -> AuctionRecord | None:
    return bench.state.find(AuctionRecord, auction_key(spec.task_id))


def test_a_bid_commits_to_everything_it_says() -> None:
    said = {
        "ledger_id": b"\x01" * 32,
        "task_id": b"\x02" * 32,
        "attempt": 3,
        "node": NODE.address,
        "price_wei": 4,
        "eta_ms": 5,
        "salt": b"\x06" * 32,
    }
    raw = (
        b"daifi/bid/1" + b"\x01" * 32 + b"\x02" * 32 + bytes(7) + b"\x03"
        + bytes.fromhex(NODE.address[2:]) + bytes(31) + b"\x04" + bytes(7) + b"\x05" + b"\x06" * 32
    )  # fmt: skip
    assert bid_commitment(**said) == keccak256(raw)
    other = {
        "ledger_id": META,
        "task_id": META,
        "attempt": 4,
        "node": OTHER.address,
        "price_wei": 5,
        "eta_ms": 6,
        "salt": META,
    }
    changed = {bid_commitment(**(said | {key: other[key]})) for key in said}
    assert len(changed | {bid_commitment(**said)}) == len(said) + 1


def test_the_buyer_takes_a_revealed_bid_at_its_price() -> None:
    bench = Market()
    spec = bench.open()
    funds = bench.balance(NODE), bench.balance(OTHER)
    bench.bid(spec, NODE, 3 * DAI, 20_000)
    bench.bid(spec, OTHER, 2 * DAI, 40_000)
    assert bench.balance(NODE) == funds[0] - DEPOSIT
    assert bench.state.supply().escrows_wei == 5 * DAI + 2 * DEPOSIT
    bench.now = T0 + 1 + BID_MS
    receipt = bench.reveal(spec, OTHER, 2 * DAI, 40_000)
    assert [(p.to, p.amount_wei, p.reason) for p in receipt.payments] == [
        (OTHER.address, DEPOSIT, "deposit")
    ]
    bench.reveal(spec, NODE, 3 * DAI, 20_000)
    assert (bench.balance(NODE), bench.balance(OTHER)) == funds
    # First price, and not the cheapest: the buyer knows why.
    assert bench.refused(bench.assign_tx(spec, NODE, 2 * DAI)) == "bad-field"
    bench.assign(spec, NODE, 3 * DAI)
    task = bench.state.task(spec.task_id)
    assert (task.node, task.price_wei, task.eta_ms) == (NODE.address, 3 * DAI, 20_000)
    assert auction(bench, spec) is None
    bench.commit(spec)
    bench.do(t.Settle, BUYER, attestation=attest(spec), metadata=META)
    assert bench.state.supply().escrows_wei == 0


def test_a_bid_is_not_bound_to_the_registered_ask() -> None:
    bench = Market()
    bench.do(t.Register, NODE, info=info_of(NODE, 4 * DAI))
    bench.won(price=1)
    assert bench.state.task(spec_of().task_id).price_wei == 1


def test_a_task_without_an_auction_is_assigned_as_ever() -> None:
    bench = Market()
    spec = bench.reach(TaskState.OPEN)
    assert bench.refused(bench.bid_tx(spec, NODE)) == "bad-state"
    bench.assign(spec, OTHER, DAI)
    assert bench.state.task(spec.task_id).eta_ms == 0


def test_a_node_may_refuse_what_it_did_not_bid_for() -> None:
    bench = Market()
    bench.do(t.Register, NODE, info=info_of(NODE).model_copy(update={"direct": 0}))
    spec = bench.reach(TaskState.OPEN, spec_of(1))
    assert bench.refused(bench.assign_tx(spec, NODE, DAI)) == "bad-role"
    bench.won(spec_of(2))


@pytest.mark.parametrize(
    ("bid_ms", "reveal_ms", "deadline_ms", "fits"),
    [
        (0, 0, 1, True),
        (1_000, 0, 10**6, False),
        (0, 1_000, 10**6, False),
        (999, 1_000, 10**6, False),
        (1_000, 999, 10**6, False),
        (1_000, 1_000, 10**6, True),
        (1_000, 1_000, 2_001, True),
        (1_000, 1_000, 2_000, False),
    ],
)
def test_an_auction_has_time_to_bid_and_reveal(bid_ms, reveal_ms, deadline_ms, fits) -> None:
    bench = Market()
    spec = spec_of(deadline_ms=bench.now + deadline_ms)
    tx = bench.make(t.Open, BUYER, spec=spec, bid_ms=bid_ms, reveal_ms=reveal_ms)
    if fits:
        bench.run(tx)
        assert (auction(bench, spec) is not None) == (bid_ms > 0)
    else:
        assert bench.refused(tx) == "bad-field"


@pytest.mark.parametrize(
    ("offset_ms", "bid", "reveal", "assign"),
    [
        (0, True, "bad-state", "bad-state"),
        (BID_MS - 1, True, "bad-state", "bad-state"),
        (BID_MS, "expired", True, "bad-state"),
        (BID_MS + REVEAL_MS - 1, "expired", True, "bad-state"),
        (BID_MS + REVEAL_MS, "expired", "expired", True),
    ],
)
def test_each_thing_has_its_window(offset_ms: int, bid, reveal, assign) -> None:
    for wanted, tx_of in (
        (bid, lambda b, s: b.bid_tx(s, OTHER)),
        (reveal, lambda b, s: b.reveal_tx(s, NODE)),
        (assign, lambda b, s: b.assign_tx(s, OTHER, DAI)),
    ):
        bench = Market()
        spec = bench.open()
        bench.bid(spec, NODE)
        bench.now = T0 + 1 + offset_ms
        tx = tx_of(bench, spec)
        if wanted is True:
            bench.run(tx)
        else:
            assert bench.refused(tx) == wanted


def test_nobody_waits_for_reveals_that_cannot_come() -> None:
    bench = Market()
    bid_for, not_bid_for = bench.open(spec_of(1)), bench.open(spec_of(2))
    bench.bid(bid_for, NODE)
    bench.now = T0 + 1 + BID_MS
    bench.assign(not_bid_for, OTHER, DAI)
    bench.reveal(bid_for, NODE)
    bench.assign(bid_for, NODE, DAI)
    tasks = [bench.state.task(spec.task_id) for spec in (not_bid_for, bid_for)]
    assert [task.node for task in tasks] == [OTHER.address, NODE.address]


def test_an_unrevealed_deposit_goes_to_the_treasury_and_binds_nobody() -> None:
    bench = Market()
    spec = bench.open()
    before = bench.balance(NODE)
    bench.bid(spec, NODE)
    bench.now = T0 + 1 + BID_MS + REVEAL_MS
    receipt = bench.run(bench.assign_tx(spec, OTHER, DAI))
    assert [(p.amount_wei, p.reason) for p in receipt.payments] == [(DEPOSIT, "unrevealed")]
    assert bench.state.supply().treasury_wei == DEPOSIT
    assert bench.balance(NODE) == before - DEPOSIT


def test_while_a_bid_stands_the_buyer_cannot_go_around_it() -> None:
    bench = Market()
    spec = bench.open()
    bench.bid(spec, NODE)
    bench.now = T0 + 1 + BID_MS
    bench.reveal(spec, NODE)
    assert bench.refused(bench.assign_tx(spec, OTHER, DAI)) == "bad-role"
    # A bidder who cannot be given the task any more does not hold it up.
    bench.do(t.Retire, NODE)
    assert bench.refused(bench.assign_tx(spec, NODE, DAI)) == "unknown"
    bench.assign(spec, OTHER, DAI)


def test_a_bid_the_nodes_stake_cannot_vouch_for_binds_nobody() -> None:
    bench = Market()
    bench.do(t.Unstake, NODE, amount_wei=STAKE - DAI)
    filler = spec_of(1, max_price_wei=18 * DAI)
    bench.do(t.Open, BUYER, spec=filler)
    bench.assign(filler, NODE, 18 * DAI)  # bonds 0.9 of the 1 DAi left
    spec = bench.open(spec_of(2))
    bench.bid(spec, NODE, 3 * DAI)
    bench.now += BID_MS
    bench.reveal(spec, NODE, 3 * DAI)
    assert bench.refused(bench.assign_tx(spec, NODE, 3 * DAI)) == "bad-role"
    bench.assign(spec, OTHER, DAI)


@pytest.mark.parametrize(("offset_ms", "back"), [(BID_MS, True), (BID_MS + REVEAL_MS, False)])
@pytest.mark.parametrize("end", ["cancel", "expire"])
def test_who_had_no_time_to_reveal_gets_the_deposit_back(
    offset_ms: int, back: bool, end: str
) -> None:
    bench = Market()
    spec = bench.open()
    before = bench.balance(NODE)
    bench.bid(spec, NODE)
    bench.now = T0 + 1 + offset_ms
    if end == "cancel":
        bench.do(t.Cancel, BUYER, task_id=spec.task_id)
    else:
        bench.now, back = spec.deadline_ms, False
        bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    assert bench.balance(NODE) == before - (0 if back else DEPOSIT)
    assert bench.state.supply().treasury_wei == (0 if back else DEPOSIT)
    assert bench.state.supply().escrows_wei == 0 and auction(bench, spec) is None


def test_each_attempt_has_its_own_auction() -> None:
    bench = Market()
    spec = bench.won()
    bench.do(t.Release, BUYER, task_id=spec.task_id, attempt=0)
    opened = bench.now
    assert auction(bench, spec).bids_until_ms == opened + BID_MS
    stale = bench.sealed(spec, NODE, attempt=0)
    bench.run(bench.bid_tx(spec, NODE, commitment=stale))  # sealed: nobody can tell
    bench.bid(spec, OTHER, 2 * DAI)
    bench.now += BID_MS
    assert bench.refused(bench.reveal_tx(spec, NODE)) == "bad-field"
    assert bench.refused(bench.reveal_tx(spec, NODE, attempt=0)) == "bad-state"
    bench.reveal(spec, OTHER, 2 * DAI)
    bench.now += REVEAL_MS
    bench.assign(spec, OTHER, 2 * DAI)
    bench.commit(spec, OTHER)
    finding = attest(spec, Decision.REJECTED, attempt=1, node=OTHER.address)
    bench.do(t.Reject, STRANGER, attestation=finding)
    assert bench.refused(bench.bid_tx(spec, OTHER)) == "bad-role"  # barred
    bench.bid(spec, NODE)


def test_a_late_attempt_without_time_for_an_auction_is_assigned_directly() -> None:
    bench = Market()
    spec = bench.won()
    bench.now = spec.deadline_ms - BID_MS - REVEAL_MS
    bench.do(t.Release, BUYER, task_id=spec.task_id, attempt=0)
    assert auction(bench, spec) is None
    assert bench.refused(bench.bid_tx(spec, NODE)) == "bad-state"
    bench.assign(spec, OTHER, DAI)


def test_nobody_bids_for_a_task_whose_attempts_are_spent() -> None:
    bench = Market()
    spec = bench.won(spec_of(review=Review(attempts=1)))
    bench.do(t.Release, BUYER, task_id=spec.task_id, attempt=0)
    assert bench.refused(bench.bid_tx(spec, NODE)) == "bad-state"
    bench.do(t.Cancel, BUYER, task_id=spec.task_id)


def test_bids_on_a_task_are_bounded() -> None:
    bench = Market(make_genesis(params=Params(fees=FREE, bids=BidParams(max_bids=1))))
    spec = bench.open()
    bench.bid(spec, NODE)
    assert bench.refused(bench.bid_tx(spec, OTHER)) == "bad-state"
    with pytest.raises(ValueError, match="64"):
        BidParams(max_bids=65)


def _copied(bench: Market, spec) -> t.Transaction:
    """OTHER copies NODE's commitment, gets in first, and then knows its opening."""
    stolen = bench.sealed(spec, NODE)
    bench.run(bench.bid_tx(spec, OTHER, commitment=stolen))
    bench.bid(spec, NODE)  # the copy does not keep its author out
    bench.now += BID_MS
    bench.reveal(spec, NODE)
    return bench.reveal_tx(spec, OTHER)


def _revealing(who: Account, **fields) -> Callable[[Market, object], t.Transaction]:
    def attack(bench: Market, spec) -> t.Transaction:
        bench.bid(spec, NODE)
        bench.now += BID_MS
        return bench.reveal_tx(spec, who, **fields)

    return attack


def _revealed_twice(bench: Market, spec) -> t.Transaction:
    bench.bid(spec, NODE)
    bench.now += BID_MS
    bench.reveal(spec, NODE)
    return bench.reveal_tx(spec, NODE)


def _bid_twice(bench: Market, spec) -> t.Transaction:
    bench.bid(spec, NODE)
    return bench.bid_tx(spec, NODE)


def _bid_after_reveals_are_seen(bench: Market, spec) -> t.Transaction:
    bench.bid(spec, NODE)
    bench.now += BID_MS
    bench.reveal(spec, NODE)
    return bench.bid_tx(spec, OTHER, commitment=bench.sealed(spec, OTHER, DAI - 1))


def _over_maximum(bench: Market, spec) -> t.Transaction:
    bench.bid(spec, NODE, 5 * DAI + 1)
    bench.now += BID_MS
    return bench.reveal_tx(spec, NODE, 5 * DAI + 1)


def _without_a_time(bench: Market, spec) -> t.Transaction:
    bench.bid(spec, NODE, eta=0)
    bench.now += BID_MS
    return bench.reveal_tx(spec, NODE, eta=0)


def _unstaked(bench: Market, spec) -> t.Transaction:
    bench.do(t.Unstake, NODE, amount_wei=STAKE - DAI + 1)
    return bench.bid_tx(spec, NODE)


def _penniless(bench: Market, spec) -> t.Transaction:
    bench.do(t.Transfer, NODE, to=BUYER.address, amount_wei=bench.balance(NODE))
    return bench.bid_tx(spec, NODE)


def _on_an_assigned_task(bench: Market, spec) -> t.Transaction:
    bench.now += BID_MS
    bench.assign(spec, NODE, DAI)
    return bench.bid_tx(spec, OTHER)


ATTACKS: list[tuple[str, str, Callable[[Market, object], t.Transaction]]] = [
    ("a copied commitment", "bad-field", _copied),
    ("revealing another's bid", "unknown", _revealing(OTHER)),
    ("revealing another price", "bad-field", _revealing(NODE, price=DAI - 1)),
    ("revealing another time", "bad-field", _revealing(NODE, eta=999)),
    ("revealing with another salt", "bad-field", _revealing(NODE, salt=META)),
    ("revealing for another attempt", "bad-state", _revealing(NODE, attempt=1)),
    ("revealing for a task nobody opened", "unknown", _revealing(NODE, task_id=META)),
    ("revealing twice", "unknown", _revealed_twice),
    ("a bid under a revealed one", "expired", _bid_after_reveals_are_seen),
    ("bidding twice", "duplicate", _bid_twice),
    ("a bid over the maximum", "bad-field", _over_maximum),
    ("a bid without a time", "bad-field", _without_a_time),
    ("a bidder nobody registered", "bad-role", lambda b, s: b.bid_tx(s, STRANGER)),
    ("a bidder without stake", "bad-role", _unstaked),
    ("a bidder without the deposit", "insufficient-funds", _penniless),
    ("a bid on the next attempt", "bad-state", lambda b, s: b.bid_tx(s, NODE, attempt=1)),
    ("a bid on a task that is assigned", "bad-state", _on_an_assigned_task),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in ATTACKS]
)
def test_front_running_and_cheating_are_refused(code: str, attack) -> None:
    bench = Market()
    spec = bench.open()
    assert bench.refused(attack(bench, spec)) == code


def test_a_bid_is_worthless_on_another_ledger() -> None:
    bench = Market()
    spec = bench.open()
    foreign = bid_commitment(
        META, spec.task_id, attempt=0, node=NODE.address, price_wei=DAI, eta_ms=1_000, salt=SALT
    )
    bench.run(bench.bid_tx(spec, NODE, commitment=foreign))
    bench.now += BID_MS
    assert bench.refused(bench.reveal_tx(spec, NODE)) == "bad-field"

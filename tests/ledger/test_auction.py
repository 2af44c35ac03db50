"""Proposer–builder separation, case by case: bids, blind proposals, bodies, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import ledger_kinds as t
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_bench import Bench
from ledger_kit import BUYER, COMMITTEE, DAI, GENESIS, NODE, SEAT_ACCOUNTS, STRANGER, T0

from daifi_flows.cnft import BlockHeader
from daifi_flows.encoding import keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger._auction import (
    Auction,
    Bid,
    DoubleProposal,
    FaultKind,
    Proposal,
    Slot,
    best_bid,
    bid_fault,
)
from daifi_flows.merkle import merkle_root

BUILDERS = [Account.from_seed(b"builder%d" % i) for i in range(4)]
PROPOSER = Account.from_seed(b"drawn")
NEXT = Account.from_seed(b"drawn next")
BODIES = [tuple(b"tx %d of builder %d" % (n, i) for n in range(3)) for i in range(4)]
RICH = 10**30


def header_of(on: BlockHeader | None, tx_root: object, builder: str, **changes: object):
    values: dict[str, object] = {
        "ledger_id": keccak256(b"ledger"),
        "height": 8 if on is not None else 7,
        "parent": on.digest if on is not None else bytes(32),
        "tx_root": tx_root,
        "receipt_root": keccak256(b"receipts %r" % tx_root),
        "state_root": keccak256(b"state %r" % tx_root),
        "history_root": bytes(32),
        "history_size": 0,
        "timestamp_ms": 1_000,
        "proposer": PROPOSER.address,
        "builder": builder,
        "beacon": keccak256(b"beacon") if on is not None else bytes(32),
        "round": 0,
        "epoch": 1,
        "committee": keccak256(b"committee"),
    }
    known = {name: values[name] for name in BlockHeader.model_fields if name in values}
    return BlockHeader.model_validate(known | changes)


PARENT = header_of(None, merkle_root([b"t"]), BUILDERS[0].address)
SLOT = Slot(
    parent=PARENT,
    beacon=keccak256(b"beacon"),
    round=0,
    proposer=PROPOSER.address,
    seat=0,
    epoch=PARENT.epoch,
    committee=PARENT.committee,
)

NEXT_SLOT = replace(SLOT, round=1, proposer=NEXT.address)


def bid_of(i: int, bid_wei: int, body: tuple[bytes, ...] | None = None, **changes: object) -> Bid:
    tx_root = changes.pop("tx_root", merkle_root(body or BODIES[i]))
    header = header_of(PARENT, tx_root, BUILDERS[i].address, **changes)
    return Bid.sign(header, bid_wei, BUILDERS[i])


BIDS = [bid_of(i, wei) for i, wei in enumerate((5, 9, 7, 0))]


def auction(*bids: Bid) -> Auction:
    state = Auction(SLOT)
    for bid in bids:
        state = state.add_bid(bid, RICH)
    return state


def kinds(state: Auction) -> list[FaultKind]:
    return [fault.kind for fault in state.faults]


def test_the_highest_bid_wins_and_its_body_is_the_block() -> None:
    state = auction(*BIDS)
    assert state.best == BIDS[1]
    state = state.add_proposal(Proposal.sign(BIDS[1].header, PROPOSER))
    assert state.proposal is not None and state.body is None
    state = state.add_body(BODIES[1])
    assert state.body == BODIES[1] and state.faults == ()


@given(order=st.permutations(range(4)), twice=st.lists(st.integers(0, 3)))
def test_the_winner_does_not_depend_on_the_order_of_arrival(
    order: list[int], twice: list[int]
) -> None:
    assert auction(*(BIDS[i] for i in [*order, *twice])).best == BIDS[1]


@given(order=st.permutations(range(4)))
def test_equal_bids_are_decided_by_the_beacon(order: list[int]) -> None:
    equal = [bid_of(i, 3) for i in range(4)]
    winner = best_bid(SLOT, [equal[i] for i in order])
    assert winner == best_bid(SLOT, equal)
    beacons = [replace(SLOT, beacon=keccak256(b"%d" % i)) for i in range(40)]
    winners = [best_bid(slot, equal) for slot in beacons]
    assert {w.header.builder for w in winners if w} == {b.address for b in BUILDERS}


def test_a_builder_may_raise_its_bid_but_not_lower_it() -> None:
    raised = bid_of(3, 20)
    assert auction(*BIDS, raised).best == raised
    assert auction(*BIDS, bid_of(1, 8)).best == BIDS[1]


def test_no_bids_no_winner() -> None:
    assert auction().best is None


OTHER = keccak256(b"other")
BAD_HEADERS: list[tuple[str, dict[str, object]]] = [
    ("ledger id", {"ledger_id": OTHER}),
    ("height", {"height": 9}),
    ("parent", {"parent": OTHER}),
    ("epoch", {"epoch": 2}),
    ("committee", {"committee": OTHER}),
    ("beacon", {"beacon": OTHER}),
    ("round", {"round": 1}),
    ("proposer", {"proposer": BUILDERS[0].address}),
    ("dated before", {"timestamp_ms": 999}),
]


@pytest.mark.parametrize(("why", "changes"), BAD_HEADERS, ids=[why for why, _ in BAD_HEADERS])
def test_a_signed_bid_for_another_block_is_kept_as_a_fault(
    why: str, changes: dict[str, object]
) -> None:
    bad = bid_of(2, 100, **changes)
    state = auction(BIDS[0], bad, bad)
    assert state.best == BIDS[0]
    assert kinds(state) == [FaultKind.BAD_BID]
    assert why in state.faults[0].why and state.faults[0].evidence == bad


def test_a_bid_beyond_its_builders_balance_is_a_fault() -> None:
    state = Auction(SLOT).add_bid(bid_of(0, 11), balance_wei=10)
    assert state.best is None and kinds(state) == [FaultKind.BAD_BID]


@pytest.mark.parametrize(
    "forged",
    [
        BIDS[0].model_copy(update={"bid_wei": 50}),
        Bid.sign(BIDS[0].header, 50, BUILDERS[1]),
        BIDS[0].model_copy(update={"signature": bytes(65), "bid_wei": 50}),
        BIDS[0].model_copy(update={"header": BIDS[1].header, "bid_wei": 50}),
    ],
    ids=["raised by another", "signed by another", "unsigned", "another's header"],
)
def test_a_forged_bid_accuses_nobody(forged: Bid) -> None:
    state = auction(BIDS[1], forged)
    assert state.best == BIDS[1] and state.faults == ()
    assert bid_fault(SLOT, forged, RICH) == "its builder did not sign it"


def test_only_the_drawn_proposer_can_propose() -> None:
    state = auction(*BIDS)
    header = BIDS[1].header
    for stranger in (
        Proposal.sign(header, BUILDERS[1]),
        Proposal(header=header, signature=bytes(65)),
        Proposal.sign(bid_of(1, 9, proposer=NEXT.address).header, NEXT),
    ):
        state = state.add_proposal(stranger)
        assert state.proposal is None and state.faults == ()


def test_a_header_nobody_bid_for_is_not_taken() -> None:
    own = Proposal.sign(bid_of(2, 0, body=BODIES[3]).header, PROPOSER)
    state = auction(BIDS[0]).add_proposal(own)
    assert state.proposal is None and kinds(state) == [FaultKind.BAD_PROPOSAL]


def test_a_proposer_that_signs_two_headers_convicts_itself() -> None:
    state = auction(*BIDS)
    first, second = (Proposal.sign(BIDS[i].header, PROPOSER) for i in (1, 2))
    state = state.add_proposal(first).add_proposal(first)
    assert state.faults == ()
    state = state.add_proposal(second)
    assert state.proposal == first, "the first counts"
    assert kinds(state) == [FaultKind.DOUBLE_PROPOSAL]
    evidence = state.faults[0].evidence
    assert isinstance(evidence, DoubleProposal)
    assert evidence.proposer == PROPOSER.address
    assert DoubleProposal.from_canonical(evidence.canonical()).proposer == PROPOSER.address


def test_a_proposer_that_builds_on_two_parents_convicts_itself() -> None:
    fork = bid_of(1, 9, parent=OTHER).header
    evidence = DoubleProposal(
        first=Proposal.sign(BIDS[1].header, PROPOSER), second=Proposal.sign(fork, PROPOSER)
    )
    assert evidence.proposer == PROPOSER.address


def seats_bench() -> tuple[Bench, Account]:
    """A ledger on which seat 3 has 100 DAi at stake."""
    here, seat = Bench(), SEAT_ACCOUNTS[3]
    here.do(t.Transfer, BUYER, to=seat.address, amount_wei=100 * DAI)
    here.do(t.Stake, seat, amount_wei=100 * DAI)
    return here, seat


def of_seat(seat: Account, **changes: object) -> Proposal:
    values = {
        "ledger_id": GENESIS.ledger_id,
        "committee": COMMITTEE.digest,
        "proposer": seat.address,
        "timestamp_ms": T0,
    }
    return Proposal.sign(bid_of(1, 9, **(values | changes)).header, seat)


def test_two_proposals_of_one_round_cost_half_of_the_stake_once() -> None:
    here, seat = seats_bench()
    pair = {"first": of_seat(seat), "second": of_seat(seat, tx_root=OTHER)}
    receipt = here.do(t.ProposalEquivocation, STRANGER, **pair)
    assert receipt.node == seat.address
    assert here.state.account(seat.address).stake_wei == 50 * DAI
    assert here.balance(STRANGER) == 5 * DAI, "a tenth of what was lost"
    for again in (pair, {"first": pair["second"], "second": of_seat(seat, state_root=OTHER)}):
        with pytest.raises(TransactionRefused, match="already shown"):
            here.do(t.ProposalEquivocation, NODE, **again)


def test_what_costs_a_proposer_nothing() -> None:
    here, seat = seats_bench()
    one, late = of_seat(seat), here.now + here.state.params().disputes.evidence_ms
    other = of_seat(seat, tx_root=OTHER)
    forged = other.model_copy(update={"signature": one.signature})
    stranger = [of_seat(NODE, tx_root=root) for root in (OTHER, bytes(32))]
    cases = [
        ("bad-field", one, one),
        ("bad-field", one, of_seat(seat, tx_root=OTHER, round=1)),
        ("bad-field", one, of_seat(seat, tx_root=OTHER, height=9)),
        ("bad-field", one, of_seat(seat, tx_root=OTHER, ledger_id=OTHER)),
        ("bad-field", one, of_seat(SEAT_ACCOUNTS[4], tx_root=OTHER)),
        ("bad-signature", one, forged),
        ("bad-role", *stranger),
        ("bad-state", *[of_seat(seat, tx_root=root, height=11) for root in (OTHER, bytes(32))]),
    ]
    for code, first, second in cases:
        with pytest.raises(TransactionRefused) as refused:
            here.do(t.ProposalEquivocation, STRANGER, first=first, second=second)
        assert refused.value.details["code"] == code
    here.now = late
    with pytest.raises(TransactionRefused, match="evidence of this counted"):
        here.do(t.ProposalEquivocation, STRANGER, first=one, second=other)
    assert here.state.account(seat.address).stake_wei == 100 * DAI


NOT_EVIDENCE = {
    "the same header twice": (BIDS[1].header, BIDS[1].header, PROPOSER),
    "two rounds": (BIDS[1].header, bid_of(2, 1, round=1).header, PROPOSER),
    "two heights": (BIDS[1].header, bid_of(2, 1, height=9).header, PROPOSER),
    "two ledgers": (BIDS[1].header, bid_of(2, 1, ledger_id=OTHER).header, PROPOSER),
    "signed by another": (BIDS[1].header, BIDS[2].header, NEXT),
}


@pytest.mark.parametrize("case", NOT_EVIDENCE.values(), ids=NOT_EVIDENCE.keys())
def test_what_does_not_convict_a_proposer(case: tuple[BlockHeader, BlockHeader, Account]) -> None:
    one, two, second_signer = case
    evidence = DoubleProposal(
        first=Proposal.sign(one, PROPOSER), second=Proposal.sign(two, second_signer)
    )
    assert evidence.proposer is None


def test_a_proposer_cannot_reorder_or_replace_a_body() -> None:
    state = auction(*BIDS).add_proposal(Proposal.sign(BIDS[1].header, PROPOSER))
    for wrong in (BODIES[1][::-1], BODIES[2], BODIES[1][:-1], (*BODIES[1], b"mine"), ()):
        assert state.add_body(wrong) == state
    assert state.add_body(BODIES[1]).add_body(BODIES[2]).body == BODIES[1]


def test_a_builder_that_does_not_show_its_body_is_passed_over() -> None:
    state = auction(*BIDS).add_proposal(Proposal.sign(BIDS[1].header, PROPOSER))
    state = state.next_round(NEXT_SLOT)
    assert kinds(state) == [FaultKind.WITHHELD] and state.faults[0].who == BUILDERS[1].address
    again = [bid_of(i, 9, round=1, proposer=NEXT.address) for i in (1, 2)]
    for bid in again:
        state = state.add_bid(bid, RICH)
    assert state.best == again[1], "the builder that withheld is barred at this height"
    state = state.add_proposal(Proposal.sign(again[1].header, NEXT)).add_body(BODIES[2])
    assert state.body == BODIES[2]


def test_a_builder_whose_block_breaks_a_rule_is_passed_over() -> None:
    state = auction(*BIDS).break_rule("too early")
    assert state.faults == ()
    state = state.add_proposal(Proposal.sign(BIDS[1].header, PROPOSER)).add_body(BODIES[1])
    state = state.break_rule("wrong state_root")
    assert kinds(state) == [FaultKind.BROKEN_RULE]
    assert state.proposal is None and state.barred == {BUILDERS[1].address}
    assert kinds(state.next_round(NEXT_SLOT)) == [FaultKind.BROKEN_RULE]


def test_a_silent_proposer_costs_no_builder_its_place() -> None:
    state = auction(*BIDS).next_round(NEXT_SLOT)
    assert state.faults == () and state.barred == frozenset()
    assert state.slot.round == 1 and state.best is None
    late = Proposal.sign(BIDS[1].header, PROPOSER)
    assert state.add_proposal(late) == state, "its round is over"


def test_bids_after_the_proposal_change_nothing() -> None:
    state = auction(BIDS[0]).add_proposal(Proposal.sign(BIDS[0].header, PROPOSER))
    assert state.add_bid(BIDS[1], RICH) == state


def test_a_body_before_the_proposal_changes_nothing() -> None:
    assert auction(*BIDS).add_body(BODIES[1]).body is None

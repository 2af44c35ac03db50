"""Attacks on the election of committees by those that were in office before."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from committee_bench import (
    BUYER,
    REDRAW_MS,
    CommitteeBench,
    certified_header,
    drawn_committee,
    handed_over,
)
from ledger_bench import snapshot

from daifi_flows.cnft import Committee
from daifi_flows.encoding import keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import check_seat_possession


def refused(bench: CommitteeBench, kind, **fields: object) -> str:
    """With which code it is refused; it changes nothing."""
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as caught:
        bench.do(kind, BUYER, **fields)
    assert snapshot(bench.state) == before
    return caught.value.details["code"]


def test_a_committee_that_left_draws_no_other() -> None:
    """A quorum of it, with keys it still has, could sign any beacon: whichever seats its own."""
    bench = CommitteeBench()
    first = bench.state.committee()
    bench.rotate()
    height = bench.close().height + 1
    bench.height = height + 1
    chosen = certified_header(first, height, beacon=keccak256(b"a convenient one"))
    assert refused(bench, t.DrawSeats, **chosen) == "bad-field"
    bench.do(t.DrawSeats, BUYER, **certified_header(bench.state.committee(), height))
    assert bench.roll().drawn


def left(bench: CommitteeBench) -> Committee:
    second = bench.rotate()
    bench.rotate()
    return second


@pytest.mark.parametrize("ahead", [1, 1_000, 2**40])
def test_a_late_block_far_ahead_is_late_all_the_same(ahead: int) -> None:
    """Until the chain is there the evidence would be stale, and the block fools who is away."""
    bench = CommitteeBench()
    second = left(bench)
    late = certified_header(second, bench.height + ahead, signers=(3,))
    stake_wei = bench.state.account(second.seats[3].account).stake_wei
    bench.do(t.LateCertificate, BUYER, header=late["header"], votes=late["certificate"])
    assert bench.state.account(second.seats[3].account).stake_wei < stake_wei


def registered(bench: CommitteeBench, proof_of: int) -> Committee:
    """The drawn committee; the seats' proofs are those of accounts so many places on."""
    new = drawn_committee(bench.roll())
    proofs = [bench.state.account(seat.account).registered.bls_possession for seat in new.seats]
    seats = tuple(
        seat.model_copy(update={"possession": proofs[(seat.index + proof_of) % len(proofs)]})
        for seat in new.seats
    )
    return new.model_copy(update={"seats": seats})


def test_a_drawn_node_cannot_hold_up_the_handover_by_keeping_its_proof() -> None:
    """That it holds its key it has shown when it registered; one in 21 could else stop them all."""
    bench = CommitteeBench()
    bench.draw()
    others = registered(bench, proof_of=1)
    assert refused(bench, t.HandOver, **handed_over(bench.state, others)) == "bad-field"
    new = registered(bench, proof_of=0)
    first = new.seats[0]
    assert check_seat_possession(first.public, first.account, first.possession)
    assert not check_seat_possession(first.public, BUYER.address, first.possession)
    bench.do(t.HandOver, BUYER, **handed_over(bench.state, new))
    assert bench.state.committee() == new


def test_who_holds_handovers_back_waits_twice_as_long_for_each_draw() -> None:
    """It could else throw draws away, one an hour, until one suits it."""
    bench = CommitteeBench(offers=22)
    closed = bench.close().closed_ms
    for doublings in (0, 1, 2, 3, 4, 5, 6, 6):
        bench.now = closed + (REDRAW_MS << doublings) - 1
        assert refused(bench, t.CloseRoll, epoch=2) == "bad-state"
        bench.now += 1
        bench.do(t.CloseRoll, BUYER, epoch=2)
        closed = bench.roll().closed_ms
    bench.height += 1
    bench.do(
        t.DrawSeats, BUYER, **certified_header(bench.state.committee(), bench.roll().height + 1)
    )
    bench.do(t.HandOver, BUYER, **handed_over(bench.state))
    assert bench.close().tries == 0  # the next epoch's is another

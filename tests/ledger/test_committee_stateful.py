"""Random histories of candidates, rolls, draws and handovers, beside a model of who is where."""

from __future__ import annotations

from typing import Any

import ledger_kinds as t
from committee_bench import (
    CANDIDATE_KEYS,
    CANDIDATES,
    GRACE_MS,
    CommitteeBench,
    candidate_info,
    certified_header,
    drawn_committee,
    genesis_with,
    handed_over,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ledger_kit import BUYER, COMMITTEE, DAI, DEALING

from daifi_flows.cnft import Committee
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import Committees, Handover, committee_fault
from daifi_flows.errors import TransactionRefused
from daifi_flows.ledger._committees import CandidateList
from daifi_flows.ledger._economics import Fault
from daifi_flows.ledger._rules._context import Context
from daifi_flows.ledger._rules._stakes import slash
from daifi_flows.ledger._rules.committee import held_pledge_wei
from daifi_flows.ledger._state import Layer
from daifi_flows.sortition import check_draw
from daifi_flows.threshold import deal

SEATS = 4
_DEALT = deal(b"four seats".ljust(32), SEATS, 3)
FOUR = Committee(
    epoch=COMMITTEE.epoch,
    seats=tuple(
        seat.model_copy(update={"share": _DEALT.shares[seat.index]})
        for seat in COMMITTEE.seats[:SEATS]
    ),
    group_key=_DEALT.group_key,
)
EPOCH_MS, REDRAW_MS = 20_000, 5_000
GENESIS = genesis_with(FOUR, epoch_ms=EPOCH_MS, redraw_ms=REDRAW_MS)
PEOPLE = st.integers(0, 7)


def shared_again(new: Committee) -> Committee:
    """Other shares of the four seats' key, for each epoch. Who knows a polynomial of degree two
    that has the secret at 0 knows others: the same plus a multiple of x."""
    order = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
    from daifi_flows.keys import BlsKey

    shares = [
        BlsKey(
            (
                (int.from_bytes(_DEALT.secrets[i].secret, "big") + 7 * new.epoch * (i + 1)) % order
            ).to_bytes(32, "big")
        ).public
        for i in range(SEATS)
    ]
    seats = tuple(seat.model_copy(update={"share": shares[seat.index]}) for seat in new.seats)
    return new.model_copy(update={"seats": seats, "group_key": _DEALT.group_key})


class Committees4(RuleBasedStateMachine):
    """Eight candidates, four seats."""

    @initialize()
    def begin(self) -> None:
        self.bench = CommitteeBench(GENESIS, offers=0)
        self.chain: list[Handover] = []
        self.offers: dict[int, int] = {}
        """Model: whose offer stands, and what it pledged."""
        self.roll: dict[int, int] | None = None
        """Model: who is on the roll that is open, with what pledge then."""
        self.drawn: list[int] | None = None
        for index in range(8):
            account = CANDIDATES[index]
            self.bench.do(t.Register, account, info=candidate_info(index))
            self.bench.do(t.Stake, account, amount_wei=400 * DAI)
            if index < 6:
                self.offer(index, 100 + index)

    def attempt(self, kind: Any, index: int, **fields: object) -> bool:
        account = CANDIDATES[index] if index >= 0 else BUYER
        try:
            self.bench.do(kind, account, **fields)
        except TransactionRefused:
            return False
        return True

    def stake(self, index: int) -> int:
        return self.bench.state.account(CANDIDATES[index].address).stake_wei

    def seated(self) -> set[int]:
        accounts = {seat.account for seat in self.bench.state.committee().seats}
        return {index for index in range(8) if CANDIDATES[index].address in accounts}

    def needed(self, index: int) -> bool:
        way = self.drawn if self.drawn is not None else self.roll or ()
        return index in self.seated() or index in way

    @rule(index=PEOPLE, dai=st.integers(50, 500))
    def offer(self, index: int, dai: int) -> None:
        before = self.pledge(index)
        allowed = (
            dai >= 100
            and self.stake(index) >= dai * DAI
            and not (self.needed(index) and dai * DAI < before)
        )
        assert self.attempt(t.OfferSeat, index, pledge_wei=dai * DAI) == allowed
        if allowed:
            self.offers[index] = dai * DAI

    def pledge(self, index: int) -> int:
        from daifi_flows.ledger._committees import CandidateRecord, candidate_key

        found = self.bench.state.find(CandidateRecord, candidate_key(CANDIDATES[index].address))
        return found.pledge_wei if found is not None else 0

    @rule(index=PEOPLE)
    def withdraw(self, index: int) -> None:
        assert self.attempt(t.WithdrawOffer, index) == (index in self.offers)
        self.offers.pop(index, None)

    @rule(index=PEOPLE, dai=st.integers(1, 400))
    def unstake(self, index: int, dai: int) -> None:
        held = self.pledge(index) if index in self.offers or self.needed(index) else 0
        stake = self.stake(index)
        allowed = stake >= dai * DAI and stake - dai * DAI >= held
        assert self.attempt(t.Unstake, index, amount_wei=dai * DAI) == allowed

    @rule(index=PEOPLE, dai=st.integers(1, 100))
    def add_stake(self, index: int, dai: int) -> None:
        self.attempt(t.Stake, index, amount_wei=dai * DAI)

    @rule(index=PEOPLE)
    def slashed(self, index: int) -> None:
        """A slash reaches what is pledged."""
        layer = Layer(self.bench.state)
        ctx = Context(GENESIS, GENESIS.ledger_id, layer, self.bench.now, self.bench.height)
        before = self.stake(index)
        slash(ctx, CANDIDATES[index].address, Fault.REJECTED, BUYER.address)
        lost = before - layer.account(CANDIDATES[index].address).stake_wei
        unbonding = self.bench.state.account(CANDIDATES[index].address).unbonding_wei
        lost_u = unbonding - layer.account(CANDIDATES[index].address).unbonding_wei
        supply = layer.supply()
        gained = (
            layer.account(BUYER.address).balance_wei
            - self.bench.state.account(BUYER.address).balance_wei
        )
        layer.put(
            supply.model_copy(
                update={
                    "stakes_wei": supply.stakes_wei - lost,
                    "unbonding_wei": supply.unbonding_wei - lost_u,
                    "balances_wei": supply.balances_wei + gained,
                }
            )
        )
        layer.merge_down()

    @rule(index=PEOPLE, fresh=st.booleans())
    def leave_or_change_key(self, index: int, fresh: bool) -> None:
        """Neither while it may be needed; the key comes back at once where it goes."""
        free = index not in self.offers and not self.needed(index)
        account, info = CANDIDATES[index], candidate_info(index)
        if fresh:
            bare = info.model_copy(update={"bls_public": None, "bls_possession": None})
            done = self.attempt(t.Register, index, info=bare)
        else:
            done = self.attempt(t.Retire, index)
        assert done == free
        if done:
            self.bench.do(t.Register, account, info=info)

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.bench.now += seconds * 1_000
        self.bench.height += 1

    @rule()
    def close(self) -> None:
        state, now = self.bench.state, self.bench.now
        office = state.in_office()
        due = office.since_ms + EPOCH_MS
        if self.roll is not None:
            due = max(due, self.bench.roll().redraw_due_ms(REDRAW_MS))
        able = {i: p for i, p in self.offers.items() if min(p, self.stake(i)) >= 100 * DAI}
        allowed = now >= due and len(able) >= SEATS
        assert self.attempt(t.CloseRoll, -1, epoch=office.committee.epoch + 1) == allowed
        if allowed:
            self.roll, self.drawn = able, None
            found = {e.candidate.account for e in self.bench.roll().entrants}
            assert found == {CANDIDATES[i].address for i in able}

    @precondition(lambda self: len(self.offers) >= SEATS)
    @rule(luck=st.integers(0, 5))
    def take_turns(self, luck: int) -> None:
        """All of it in a row, when it can be."""
        self.bench.now += EPOCH_MS
        self.close()
        if self.roll is not None:
            self.draw(luck)
            self.hand_over((0, 1, 2))

    @precondition(lambda self: self.roll is not None)
    @rule(luck=st.integers(0, 5))
    def draw(self, luck: int) -> None:
        roll = self.bench.roll()
        beacon = keccak256(b"luck%d/%d" % (luck, roll.height))
        header = certified_header(
            self.bench.state.committee(),
            roll.height + 1,
            beacon=beacon,
            ledger_id=GENESIS.ledger_id,
        )
        self.bench.height = max(self.bench.height, roll.height + 2)  # that block is final
        assert self.attempt(t.DrawSeats, -1, **header) == (self.drawn is None)
        if self.drawn is None:
            roll = self.bench.roll()
            accounts = [account.address for account in CANDIDATES]
            self.drawn = [accounts.index(account) for account in roll.drawn]
            assert check_draw(
                roll.draw(beacon), root=roll.root, beacon=beacon, seats=SEATS, per_operator=1
            )

    @precondition(lambda self: self.roll is not None)
    @rule(signers=st.sampled_from([(0, 1, 2), (0, 1, 2, 3), (1, 2), (3,)]))
    def hand_over(self, signers: tuple[int, ...]) -> None:
        roll, before = self.bench.roll(), self.bench.state.in_office()
        if self.drawn is None:
            pretended = tuple(e.candidate.account for e in roll.entrants[:SEATS])
            roll = roll.model_copy(update={"drawn": pretended})
        new = shared_again(drawn_committee(roll))
        fields = handed_over(self.bench.state, new, signers=signers, ledger_id=GENESIS.ledger_id)
        allowed = self.drawn is not None and len(signers) >= 3
        done = self.attempt(t.HandOver, -1, **fields)
        assert done == allowed
        if done:
            self.roll = self.drawn = None
            office = self.bench.state.in_office()
            self.chain.append(office.handover(GENESIS.ledger_id))
            assert office.committee == new and office.since_height == self.bench.height
            left = {s.account for s in before.committee.seats} - {s.account for s in new.seats}
            params = self.bench.state.params()
            for address in left:
                account = self.bench.state.account(address)
                if account.stake_wei:
                    assert account.vouching_until_ms >= (
                        self.bench.now + GRACE_MS + params.vouching_ms
                    )
            self.bench.height += 1

    @invariant()
    def one_committee_is_in_office_and_the_chain_leads_to_it(self) -> None:
        if not hasattr(self, "bench"):
            return
        state = self.bench.state
        committee = state.committee()
        assert committee.epoch == FOUR.epoch + len(self.chain)
        known = Committees(FOUR, self.chain)
        assert known.last == committee and committee_fault(committee) is None
        assert committee.group_key == FOUR.group_key
        for epoch in range(FOUR.epoch, committee.epoch + 1):
            found = state.seated_in(epoch)
            assert found is not None and found.committee == known.of(epoch)
            assert bool(found.left_ms) == (epoch < committee.epoch)
        assert state.seated_in(committee.epoch + 1) is None

    @invariant()
    def offers_and_pledges_are_those_of_the_model(self) -> None:
        if not hasattr(self, "bench"):
            return
        state = self.bench.state
        found = state.find(CandidateList, CandidateList.prefix)
        names = {CANDIDATES[i].address for i in self.offers}
        assert set(found.addresses if found is not None else ()) == names
        layer = Layer(state)
        ctx = Context(GENESIS, GENESIS.ledger_id, layer, self.bench.now, self.bench.height)
        for index in range(8):
            held = held_pledge_wei(ctx, CANDIDATES[index].address)
            expected = index in self.offers or self.needed(index)
            assert bool(held) == expected, f"candidate {index} holds {held}"
            if expected:
                info = state.account(CANDIDATES[index].address).registered
                assert info is not None and info.bls_public == CANDIDATE_KEYS[index].public


assert DEALING.group_key != FOUR.group_key
Committees4.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestCommittees = Committees4.TestCase

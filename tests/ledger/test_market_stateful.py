"""Random trades, merges and reuse of tokens, against a plain model."""

from __future__ import annotations

import ledger_kinds as t
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ledger_bench import snapshot
from ledger_kit import (
    BUYER,
    DAI,
    OTHER,
    STRANGER,
    T0,
    make_spec,
)
from token_bench import TokenBench

from daifi_flows.cnft import PPM, token_id_of
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger._market import ListingRecord
from daifi_flows.ledger._origins import reference_id_of, royalties
from daifi_flows.ledger._records import TokenRecord
from daifi_flows.ledger._state import supply_of

ROYALTY, SALE = 25_000, 10_000  # ppm
PEOPLE = [BUYER, OTHER, STRANGER]
people = st.sampled_from(PEOPLE)
numbers = st.integers(min_value=0, max_value=5)
prices = st.sampled_from([0, 1, 39, DAI, 7 * DAI + 3, 900 * DAI])
EXPIRY = T0 + 10_000


class Market(RuleBasedStateMachine):
    """Six tokens and what is made of them, against a plain model: owner, listing, approval."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = TokenBench()
        self.tokens = [self.bench.mint(i) for i in range(6)]
        self.owner = dict.fromkeys(self.tokens, BUYER)
        self.creators = {token: {BUYER.address: 1} for token in self.tokens}
        self.listing: dict[bytes, tuple[int, int]] = {}
        self.approved: dict[bytes, Account] = {}
        self.operators: set[tuple[str, str]] = set()
        self.frozen: set[bytes] = set()
        self.depth = dict.fromkeys(self.tokens, 0)
        self.references: set[bytes] = set()
        self.nonce = 1000

    def attempt(self, allowed: bool, kind: type[t.Transaction], who: Account, **fields) -> bool:
        before = snapshot(self.bench.state)
        try:
            self.bench.do(kind, who, **fields)
        except TransactionRefused:
            assert not allowed, f"{kind.kind} should have passed"
            assert snapshot(self.bench.state) == before
        else:
            assert allowed, f"{kind.kind} should have been refused"
        return allowed

    def pick(self, number: int) -> bytes:
        return self.tokens[-1 - number]

    def acts_for(self, who: Account, token: bytes) -> bool:
        owner = self.owner[token]
        return who is owner or (owner.address, who.address) in self.operators

    def moved(self, token: bytes, to: Account) -> None:
        self.owner[token] = to
        self.listing.pop(token, None)
        self.approved.pop(token, None)

    @rule()
    def pass_time(self) -> None:
        self.bench.now += 4_000

    @rule(who=people, number=numbers, to=people)
    def transfer(self, who: Account, number: int, to: Account) -> None:
        token = self.pick(number)
        allowed = token not in self.frozen and (
            self.acts_for(who, token) or self.approved.get(token) is who
        )
        fields = {"token_id": token, "owner": self.owner[token].address, "to": to.address}
        if self.attempt(allowed, t.SafeTransferToken, who, **fields):
            self.moved(token, to)

    @rule(who=people, number=numbers, to=people)
    def approve(self, who: Account, number: int, to: Account) -> None:
        token = self.pick(number)
        allowed = (
            token not in self.frozen and self.acts_for(who, token) and to is not self.owner[token]
        )
        if self.attempt(allowed, t.Approve, who, token_id=token, approved=to.address):
            self.approved[token] = to

    @rule(who=people, operator=people, on=st.booleans())
    def operate(self, who: Account, operator: Account, on: bool) -> None:
        pair = (who.address, operator.address)
        if on:
            if self.attempt(who is not operator, t.SetOperator, who, operator=pair[1]):
                self.operators.add(pair)
        elif self.attempt(pair in self.operators, t.UnsetOperator, who, operator=pair[1]):
            self.operators.remove(pair)

    @rule(who=people, number=numbers, price=prices, until=st.sampled_from([0, EXPIRY]))
    def list_token(self, who: Account, number: int, price: int, until: int) -> None:
        token = self.pick(number)
        allowed = (
            price > 0
            and token not in self.frozen
            and self.acts_for(who, token)
            and (until == 0 or until > self.bench.now)
        )
        fields = {"token_id": token, "price_wei": price, "expires_ms": until}
        if self.attempt(allowed, t.ListToken, who, **fields):
            self.listing[token] = (price, until)

    @rule(who=people, number=numbers)
    def unlist(self, who: Account, number: int) -> None:
        token = self.pick(number)
        allowed = token in self.listing and self.acts_for(who, token)
        if self.attempt(allowed, t.UnlistToken, who, token_id=token):
            del self.listing[token]

    @rule(who=people, number=numbers, off=st.sampled_from([0, 0, 0, 1]))
    def buy(self, who: Account, number: int, off: int) -> None:
        token = self.pick(number)
        seller, (price, until) = self.owner[token], self.listing.get(token, (1, 0))
        allowed = (
            token in self.listing
            and off == 0
            and who is not seller
            and (until == 0 or until >= self.bench.now)
            and self.bench.balance(who) >= price
        )
        before = {a.address: self.bench.balance(a) for a in PEOPLE}
        fields = {"token_id": token, "seller": seller.address, "price_wei": price + off}
        if self.attempt(allowed, t.Buy, who, **fields):
            royalty, fee = price * ROYALTY // PPM, price * SALE // PPM
            record = self.bench.state.token(token)
            assert sum(royalties(price, record.royalty_ppm, record.payees)) == royalty
            before[who.address] -= price
            before[seller.address] += price - royalty - fee
            before[BUYER.address] += royalty  # who made every first token
            assert before == {a.address: self.bench.balance(a) for a in PEOPLE}
            self.moved(token, who)

    @rule(who=people, some=st.lists(numbers, min_size=2, max_size=3))
    def merge(self, who: Account, some: list[int]) -> None:
        tokens = tuple(self.pick(number) for number in some)
        allowed = len(set(tokens)) == len(tokens) and all(
            token not in self.frozen
            and token not in self.references
            and self.owner[token] is who
            and self.depth[token] < 8
            for token in tokens
        )
        if any(token in self.references for token in tokens):
            return  # allowed too, and without a model here
        if self.attempt(allowed, t.Merge, who, tokens=tokens):
            made = t.Merge(sender=who.address, nonce=0, tokens=tokens)
            token = token_id_of(made.merge_id)
            for parent in tokens:
                self.frozen.add(parent)
                self.listing.pop(parent, None)
                self.approved.pop(parent, None)
            self.tokens.append(token)
            self.owner[token] = who
            self.depth[token] = 1 + max(self.depth[parent] for parent in tokens)

    @rule(who=people, number=numbers)
    def reuse(self, who: Account, number: int) -> None:
        of = self.pick(number)
        record = self.bench.state.token(of)
        self.nonce += 1
        spec = make_spec(self.nonce, buyer=who.address)
        allowed = record.origin is not None and record.of is None
        allowed &= self.bench.balance(who) >= DAI // 5
        if self.attempt(allowed, t.FlashAttest, who, of=of, spec=spec, fee_wei=DAI // 5):
            token = reference_id_of(spec.task_id)
            self.tokens.append(token)
            self.owner[token] = who
            self.depth[token] = 0
            self.references.add(token)

    @invariant()
    def every_token_has_one_owner_and_none_is_lost(self) -> None:
        state = self.bench.state
        records = {
            noun.token_id: noun for _, noun in state.items() if isinstance(noun, TokenRecord)
        }
        assert set(records) == set(self.tokens)
        listings = {
            noun.token_id: noun for _, noun in state.items() if isinstance(noun, ListingRecord)
        }
        assert set(listings) == set(self.listing)
        for token, record in records.items():
            assert record.owner == self.owner[token].address
            assert (record.merged_into is not None) == (token in self.frozen)
            assert record.approved == getattr(self.approved.get(token), "address", None)
            assert sum(share.part_ppm for share in record.payees) == PPM
        for token, listing in listings.items():
            assert listing.seller == records[token].owner and token not in self.frozen
        supply = state.supply()
        assert supply.conserved and supply == supply_of(state)


Market.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestMarket = Market.TestCase

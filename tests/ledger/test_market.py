"""The market: who is paid what, what a buyer is safe from, and random trades against a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ledger_kinds as t
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ledger_bench import META, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    GENESIS,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    T0,
    TREASURY,
    SeatsHere,
    attest,
    info_of,
    make_header,
    make_spec,
)
from token_bench import TokenBench

from daifi_flows.cnft import PPM, token_id_of
from daifi_flows.encoding import keccak256
from daifi_flows.errors import InsufficientFunds, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import LedgerClient, LedgerService, audit
from daifi_flows.ledger._market import ListingRecord, listing_key
from daifi_flows.ledger._origins import reference_id_of, royalties
from daifi_flows.ledger._records import TokenRecord
from daifi_flows.ledger._state import supply_of

ROYALTY, SALE = 25_000, 10_000  # ppm


def _listed(bench: TokenBench, price: int = DAI, **more: object) -> bytes:
    token = bench.mint(0)
    bench.do(t.ListToken, BUYER, token_id=token, price_wei=price, **more)
    return token


def _buy(bench: TokenBench, who: Account, token: bytes, **changes: object) -> t.Transaction:
    fields = {"token_id": token, "seller": BUYER.address, "price_wei": DAI} | changes
    return bench.make(t.Buy, who, **fields)


def _listing(bench: TokenBench, token: bytes) -> ListingRecord | None:
    return bench.state.find(ListingRecord, listing_key(token))


def test_a_sale_pays_seller_creator_lineage_and_treasury() -> None:
    bench = TokenBench()
    parent = bench.mint(0)  # the buyer's
    token = bench.mint(1, buyer=STRANGER, parents=(parent,))
    fields = {"token_id": token, "owner": STRANGER.address, "to": OTHER.address}
    bench.do(t.TransferToken, STRANGER, **fields)
    price = 10 * DAI + 7
    bench.do(t.ListToken, OTHER, token_id=token, price_wei=price)
    before = {a.address: bench.balance(a) for a in bench.people}
    treasury = bench.state.supply().treasury_wei
    receipt = bench.run(_buy(bench, NODE, token, seller=OTHER.address, price_wei=price))

    royalty = price * ROYALTY // PPM
    lineage = royalty // 2
    fee = price * SALE // PPM
    assert [(p.to, p.amount_wei, p.reason) for p in receipt.payments] == [
        (OTHER.address, price - royalty - fee, "sale"),
        (STRANGER.address, royalty - lineage, "royalty"),
        (BUYER.address, lineage, "royalty"),
        (TREASURY.address, fee, "treasury"),
    ]
    moved = {a.address: bench.balance(a) - before[a.address] for a in bench.people}
    assert moved == {
        NODE.address: -price,
        OTHER.address: price - royalty - fee,
        STRANGER.address: royalty - lineage,
        BUYER.address: lineage,
    }
    assert bench.state.supply().treasury_wei == treasury + fee
    assert bench.owner(token) == NODE.address and _listing(bench, token) is None


def test_an_offer_can_be_changed_and_taken_back() -> None:
    bench = TokenBench()
    token = _listed(bench)
    bench.do(t.ListToken, BUYER, token_id=token, price_wei=2 * DAI)
    with pytest.raises(TransactionRefused, match="for sale by"):
        bench.run(_buy(bench, STRANGER, token))
    bench.do(t.UnlistToken, BUYER, token_id=token)
    with pytest.raises(TransactionRefused, match="not for sale"):
        bench.run(_buy(bench, STRANGER, token, price_wei=2 * DAI))


def test_an_operator_sells_for_the_owner_and_the_owner_is_paid() -> None:
    bench = TokenBench()
    token = bench.mint(0)
    bench.do(t.SetOperator, BUYER, operator=OTHER.address)
    bench.do(t.ListToken, OTHER, token_id=token, price_wei=DAI)
    before = bench.balance(BUYER), bench.balance(OTHER)
    bench.run(_buy(bench, STRANGER, token))
    # The buyer is its own token's creator: sale and royalty are its.
    assert bench.balance(BUYER) == before[0] + DAI - DAI * SALE // PPM
    assert bench.balance(OTHER) == before[1]


@pytest.mark.parametrize("how", ["transfer", "merge"])
def test_a_listing_ends_when_the_token_goes(how: str) -> None:
    bench = TokenBench()
    token, other = _listed(bench), bench.mint(1)
    if how == "transfer":
        fields = {"token_id": token, "owner": BUYER.address, "to": OTHER.address}
        bench.do(t.TransferToken, BUYER, **fields)
    else:
        bench.do(t.Merge, BUYER, tokens=(token, other))
    assert _listing(bench, token) is None


def test_a_listing_holds_to_its_last_millisecond() -> None:
    bench = TokenBench()
    token = _listed(bench, expires_ms=bench.now + 5)
    bench.now += 6
    with pytest.raises(TransactionRefused) as refused:
        bench.run(_buy(bench, STRANGER, token))
    assert refused.value.details["code"] == "expired"
    bench.now -= 1
    bench.run(_buy(bench, STRANGER, token))


def test_a_merged_token_cannot_be_approved_away_from_its_listing() -> None:
    """An approval given before a sale does not survive it."""
    bench = TokenBench()
    token = _listed(bench)
    bench.do(t.Approve, BUYER, token_id=token, approved=OTHER.address)
    bench.run(_buy(bench, STRANGER, token))
    fields = {"token_id": token, "owner": STRANGER.address, "to": OTHER.address}
    with pytest.raises(TransactionRefused, match="neither the owner"):
        bench.do(t.TransferToken, OTHER, **fields)


# Attacks

Attack = Callable[[TokenBench], t.Transaction]


def _on_sale(who: Account = STRANGER, **changes: object) -> Attack:
    return lambda bench: _buy(bench, who, _listed(bench), **changes)


def _listing_of(who: Account, **changes: object) -> Attack:
    def attack(bench: TokenBench) -> t.Transaction:
        fields = {"token_id": bench.mint(0), "price_wei": DAI} | changes
        return bench.make(t.ListToken, who, **fields)

    return attack


def _resold_under_the_buyer(bench: TokenBench) -> t.Transaction:
    """The token was bought by another, who lists it dearer, before this purchase runs."""
    token = _listed(bench)
    bench.run(_buy(bench, OTHER, token))
    bench.do(t.ListToken, OTHER, token_id=token, price_wei=100 * DAI)
    return _buy(bench, STRANGER, token)


def _same_price_other_seller(bench: TokenBench) -> t.Transaction:
    token = _listed(bench)
    bench.run(_buy(bench, OTHER, token))
    bench.do(t.ListToken, OTHER, token_id=token, price_wei=DAI)
    return _buy(bench, STRANGER, token)


def _bought_twice(bench: TokenBench) -> t.Transaction:
    token = _listed(bench)
    bench.run(_buy(bench, STRANGER, token))
    return _buy(bench, OTHER, token)


def _disproved_on_sale(bench: TokenBench) -> t.Transaction:
    token = _listed(bench)
    key = b"n" + token
    bench.state.entries[key] = bench.state.entries[key].model_copy(update={"disproven": 1})
    return _buy(bench, STRANGER, token)


def _unlist(who: Account) -> Attack:
    return lambda bench: bench.make(t.UnlistToken, who, token_id=_listed(bench))


ATTACKS: list[tuple[str, str, Attack]] = [
    ("paying less", "bad-state", _on_sale(price_wei=DAI - 1)),
    ("paying more", "bad-state", _on_sale(price_wei=DAI + 1)),
    ("paying another seller", "bad-state", _on_sale(seller=NODE.address)),
    ("a price raised before the purchase", "bad-state", _resold_under_the_buyer),
    ("another seller at the same price", "bad-state", _same_price_other_seller),
    ("buying what is sold", "unknown", _bought_twice),
    ("buying one's own", "bad-role", _on_sale(BUYER)),
    ("buying without money", "insufficient-funds", _on_sale(Account.from_seed(b"poor"))),
    ("buying what was proven wrong", "bad-state", _disproved_on_sale),
    ("buying what is not for sale", "unknown", lambda b: _buy(b, STRANGER, b.mint(0))),
    ("listing another's token", "bad-role", _listing_of(STRANGER)),
    ("listing for nothing", "bad-field", _listing_of(BUYER, price_wei=0)),
    ("listing what was never minted", "unknown", _listing_of(BUYER, token_id=META)),
    ("listing into the past", "expired", _listing_of(BUYER, expires_ms=T0 + 1)),
    ("unlisting another's token", "bad-role", _unlist(STRANGER)),
    (
        "unlisting what is not listed",
        "unknown",
        lambda b: b.make(t.UnlistToken, BUYER, token_id=b.mint(0)),
    ),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in ATTACKS]
)
def test_attacks_are_refused_and_change_nothing(code: str, attack: Attack) -> None:
    bench = TokenBench()
    tx = attack(bench)
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as refused:
        bench.run(tx)
    assert refused.value.details["code"] == code
    assert isinstance(refused.value, InsufficientFunds) == (code == "insufficient-funds")
    assert snapshot(bench.state) == before


# Random trades

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


# Through a running ledger


async def test_tokens_move_and_are_reused_once_through_a_client(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    service = LedgerService(path, GENESIS, SeatsHere(GENESIS), clock=lambda: T0 + 1)
    await service.start()
    try:
        ledger = LedgerClient(service, GENESIS.ledger_id, patience_s=10)
        await ledger.register(info_of(NODE), NODE)
        await ledger.stake(100 * DAI, NODE)
        spec = make_spec(0)
        await ledger.open_escrow(spec, BUYER)
        await ledger.assign(spec.task_id, NODE.address, 2 * DAI, BUYER)
        await ledger.commit(spec.task_id, make_header(spec), PROOF_CID, NODE)
        await ledger.settle(attest(spec), META, BUYER)
        token = token_id_of(spec.task_id)

        again = make_spec(1, buyer=NODE.address)
        receipt = await ledger.flash_attest(token, again, NODE)
        assert receipt.leaf.of == token and receipt.leaf.task_id == again.task_id
        # Asked again after the price has changed, it is still the same thing.
        await ledger.submit(t.PriceReuse, BUYER, {"token_id": token, "fee_wei": 5})
        assert await ledger.flash_attest(token, again, NODE) == receipt
        with pytest.raises(TransactionRefused, match="never minted"):
            await ledger.flash_attest(META, again, NODE)

        key = listing_key(token)
        assert await ledger.record(ListingRecord, key) is None
        await ledger.submit(t.ListToken, BUYER, {"token_id": token, "price_wei": DAI})
        listing = await ledger.record(ListingRecord, key)
        assert listing is not None and listing.price_wei == DAI
        assert await ledger.record(TokenRecord, key) is None

        request = keccak256(b"give it away")
        moved = await ledger.transfer_token(token, NODE.address, BUYER, request=request)
        assert await ledger.transfer_token(token, NODE.address, BUYER, request=request) == moved
        found = await ledger.token(token)
        assert found is not None and found.owner == NODE.address
        with pytest.raises(TransactionRefused, match="belongs to"):
            await ledger.transfer_token(token, NODE.address, BUYER)
    finally:
        await service.close()
    report = audit(path)
    assert report.height > 0

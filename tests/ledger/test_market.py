"""The market: who is paid what, and what a buyer is safe from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ledger_kinds as t
import pytest
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
from daifi_flows.ledger._records import TokenRecord

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


def test_an_approval_does_not_survive_a_sale() -> None:
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
        # Of a token that was merged and sold, the seller's price is not asked any more.
        reference = receipt.leaf.token_id
        await ledger.transfer_token(reference, BUYER.address, NODE)
        merged = await ledger.submit(t.Merge, BUYER, {"tokens": (token, reference)})
        third = await ledger.flash_attest(token, make_spec(2, buyer=NODE.address), NODE)
        assert sum(payment.amount_wei for payment in third.leaf.payments) == 5
        await ledger.transfer_token(merged.leaf.token_id, NODE.address, BUYER)
        fourth = await ledger.flash_attest(token, make_spec(3, buyer=NODE.address), NODE)
        assert sum(payment.amount_wei for payment in fourth.leaf.payments) == DAI // 5
        await ledger.transfer_token(merged.leaf.token_id, BUYER.address, NODE)
        token = merged.leaf.token_id

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

"""cNFTs as property: who may move them, merging, repeating and reusing executions."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_bench import META
from ledger_kit import BUYER, DAI, NODE, OTHER, STRANGER, T0, TREASURY, attest, make_spec
from token_bench import ANSWER, DIFFERENT, NEW, SAME_SALTED_AGAIN, TokenBench

from daifi_flows.cnft import PPM, ModelRef, Review, token_id_of
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import TaskState
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._origins import (
    Share,
    TokenKind,
    merged_shares,
    reference_id_of,
    royalties,
    shares_at_mint,
    work_of,
)
from daifi_flows.ledger._records import ZERO_ADDRESS
from daifi_flows.ledger._rules.tokens import MAX_MERGE_DEPTH
from daifi_flows.ledger._tokens import ReproductionRecord, reproduction_key


def _send(bench: TokenBench, sender: Account, token: bytes, to: Account, **more: object) -> None:
    kind = more.pop("kind", t.TransferToken)
    owner = more.pop("owner", bench.owner(token))
    bench.do(kind, sender, token_id=token, owner=owner, to=to.address)  # pyright: ignore


# Moving


def test_the_owner_an_approved_address_and_an_operator_can_move_a_token() -> None:
    bench = TokenBench()
    token = bench.mint(0)
    _send(bench, BUYER, token, NODE)
    assert bench.owner(token) == NODE.address
    bench.do(t.Approve, NODE, token_id=token, approved=OTHER.address)
    _send(bench, OTHER, token, STRANGER)
    bench.do(t.SetOperator, STRANGER, operator=OTHER.address)
    _send(bench, OTHER, token, BUYER)
    assert bench.owner(token) == BUYER.address


def test_an_approval_ends_when_the_token_moves_and_an_operator_when_told() -> None:
    bench = TokenBench()
    token = bench.mint(0)
    bench.do(t.Approve, BUYER, token_id=token, approved=OTHER.address)
    _send(bench, BUYER, token, NODE)
    _send(bench, NODE, token, BUYER)
    with pytest.raises(TransactionRefused, match="neither the owner"):
        _send(bench, OTHER, token, OTHER)
    bench.do(t.Approve, BUYER, token_id=token, approved=OTHER.address)
    bench.do(t.Approve, BUYER, token_id=token, approved=ZERO_ADDRESS)
    with pytest.raises(TransactionRefused, match="neither the owner"):
        _send(bench, OTHER, token, OTHER)
    bench.do(t.SetOperator, BUYER, operator=OTHER.address)
    bench.do(t.UnsetOperator, BUYER, operator=OTHER.address)
    with pytest.raises(TransactionRefused, match="neither the owner"):
        _send(bench, OTHER, token, OTHER)
    assert bench.owner(token) == BUYER.address


def test_an_operator_acts_for_one_owner_only() -> None:
    bench = TokenBench()
    token = bench.mint(0)
    bench.do(t.SetOperator, BUYER, operator=OTHER.address)
    _send(bench, OTHER, token, NODE)
    with pytest.raises(TransactionRefused, match="neither the owner"):
        _send(bench, OTHER, token, OTHER)


def test_a_safe_transfer_reaches_only_who_has_signed_before() -> None:
    bench = TokenBench()
    token = bench.mint(0)
    bench.do(t.Transfer, BUYER, to=NEW.address, amount_wei=1)  # money alone shows no key
    with pytest.raises(TransactionRefused, match="never signed") as refused:
        _send(bench, BUYER, token, NEW, kind=t.SafeTransferToken)
    assert refused.value.details["code"] == "bad-role"
    bench.do(t.Transfer, NEW, to=NEW.address, amount_wei=1)
    _send(bench, BUYER, token, NEW, kind=t.SafeTransferToken)
    assert bench.owner(token) == NEW.address


def test_a_plain_transfer_reaches_any_address() -> None:
    bench = TokenBench()
    token = bench.mint(0)
    _send(bench, BUYER, token, NEW)
    assert bench.owner(token) == NEW.address


# Royalties fixed at mint

_ADDRESSES = [BUYER.address, NODE.address, OTHER.address, STRANGER.address]


@given(
    creator=st.sampled_from(_ADDRESSES),
    owners=st.lists(st.sampled_from(_ADDRESSES), max_size=64),
    lineage=st.integers(min_value=0, max_value=PPM),
    rate=st.integers(min_value=0, max_value=PPM // 10),
    sale=st.integers(min_value=0, max_value=2**128),
)
def test_a_royalty_is_shared_to_the_last_wei(creator, owners, lineage, rate, sale) -> None:
    shares = shares_at_mint(creator, owners, lineage)
    assert sum(share.part_ppm for share in shares) == PPM
    assert len({share.payee for share in shares}) == len(shares)
    assert sum(royalties(sale, rate, shares)) == sale * rate // PPM


@given(
    st.lists(
        st.lists(st.sampled_from(_ADDRESSES), max_size=3).map(
            lambda owners: shares_at_mint(STRANGER.address, owners, 500_000)
        ),
        min_size=2,
        max_size=64,
    )
)
def test_a_merge_keeps_every_payee_its_part(parents) -> None:
    shares = merged_shares(parents)
    assert sum(share.part_ppm for share in shares) == PPM
    for payee in _ADDRESSES:
        before = sum(s.part_ppm for shares in parents for s in shares if s.payee == payee)
        after = sum(s.part_ppm for s in shares if s.payee == payee)
        assert 0 <= after - before // len(parents) <= len(_ADDRESSES)


def test_a_token_without_payees_owes_no_royalty() -> None:
    assert merged_shares([(), ()]) == ()
    assert royalties(DAI, 100_000, ()) == ()


def test_a_new_tokens_royalty_goes_to_its_creator_and_its_parents_owners() -> None:
    bench = TokenBench()
    first, second = bench.mint(0), bench.mint(1)
    _send(bench, BUYER, second, NODE)
    child = bench.state.token(bench.mint(2, buyer=STRANGER, parents=(first, second)))
    assert child is not None
    assert child.royalty_ppm == 25_000
    assert child.payees == (
        Share(payee=STRANGER.address, part_ppm=500_000),
        Share(payee=BUYER.address, part_ppm=250_000),
        Share(payee=NODE.address, part_ppm=250_000),
    )
    # Fixed: it does not follow the parents.
    _send(bench, NODE, second, OTHER)
    assert bench.state.token(child.token_id) == child
    assert child.royalty_info(DAI) == (
        (STRANGER.address, DAI // 80),
        (BUYER.address, DAI // 160),
        (NODE.address, DAI // 160),
    )


# Merging


def test_a_merge_mints_one_token_and_freezes_its_parents() -> None:
    bench = TokenBench()
    tokens = tuple(bench.mint(i) for i in range(3))
    before = bench.balance(BUYER)
    receipt = bench.do(t.Merge, BUYER, tokens=tokens)
    assert receipt.attestation is None and receipt.payments == ()
    merged = bench.state.token(receipt.token_id)
    parents = [bench.state.token(token) for token in tokens]
    assert merged is not None and merged.owner == BUYER.address and merged.parents == tokens
    assert merged.kind is TokenKind.MERGED and merged.origin is None
    assert merged.task_id == tagged_hash("daifi/merge/1", list(tokens))
    assert merged.token_id == token_id_of(merged.task_id)
    assert merged.content == tagged_hash("daifi/merged/1", [p.content for p in parents])
    assert all(parent.merged_into == merged.token_id for parent in parents)
    assert bench.balance(BUYER) == before
    for token in tokens:
        with pytest.raises(TransactionRefused, match="was merged into"):
            _send(bench, BUYER, token, NODE)
        with pytest.raises(TransactionRefused, match="was merged into"):
            bench.do(t.ListToken, BUYER, token_id=token, price_wei=1)


def test_what_a_merged_token_earns_follows_the_new_one() -> None:
    bench = TokenBench()
    tokens = tuple(bench.mint(i) for i in range(2))
    merged = bench.do(t.Merge, BUYER, tokens=tokens).token_id
    _send(bench, BUYER, merged, STRANGER)
    before = bench.balance(STRANGER)
    bench.mint(7, buyer=BUYER, parents=(tokens[0],))
    assert bench.balance(STRANGER) == before + DAI // 10  # 5% of 2 DAi
    spec = make_spec(8)
    bench.do(t.FlashAttest, BUYER, of=tokens[1], spec=spec, fee_wei=DAI // 5)
    assert bench.balance(STRANGER) == before + DAI // 10 + DAI // 5 * 95 // 100


def test_who_sold_a_merged_token_has_no_say_about_its_parents() -> None:
    bench = TokenBench()
    original = bench.mint(5)
    tokens = (bench.mint(0), bench.mint(1, node=OTHER))
    merged = bench.do(t.Merge, BUYER, tokens=tokens).token_id
    _send(bench, BUYER, merged, STRANGER)
    effect = {"token_id": tokens[0], "effect": META}
    repetition = {"original": original, "again": tokens[1]}
    for kind, fields in ((t.Effect, effect), (t.Reproduce, repetition)):
        with pytest.raises(TransactionRefused, match=f"only the .*holder {STRANGER.address}"):
            bench.do(kind, BUYER, **fields)
        bench.do(kind, STRANGER, **fields)
    assert bench.state.token(tokens[0]).effect == META
    assert bench.state.token(original).reproductions == 1


def test_merging_bought_tokens_leaves_their_creators_the_royalty() -> None:
    bench = TokenBench()
    tokens = tuple(bench.mint(i) for i in range(2))
    for token in tokens:
        _send(bench, BUYER, token, STRANGER)
    receipt = bench.do(t.Merge, STRANGER, tokens=tokens)
    merged = bench.state.token(receipt.token_id)
    assert merged.payees == (Share(payee=BUYER.address, part_ppm=PPM),)
    assert merged.royalty_ppm == 25_000


def test_merges_are_bounded_in_depth() -> None:
    bench = TokenBench()
    token = bench.mint(0)
    for i in range(MAX_MERGE_DEPTH):
        token = bench.do(t.Merge, BUYER, tokens=(token, bench.mint(1 + i))).token_id
    assert bench.state.token(token).depth == MAX_MERGE_DEPTH
    last = bench.mint(99)
    with pytest.raises(TransactionRefused, match="at most 8 times"):
        bench.do(t.Merge, BUYER, tokens=(token, last))


# Reuse


def test_a_flash_attest_mints_a_reference_for_a_fee_and_binds_it_all() -> None:
    bench = TokenBench()
    of = bench.mint(0)
    original = bench.state.token(of)
    spec = make_spec(1, buyer=STRANGER.address, deadline_ms=T0 + 50, max_price_wei=DAI)
    before = {a: bench.balance(a) for a in (BUYER, STRANGER)}
    treasury = bench.state.supply().treasury_wei
    fee = DAI // 5  # 10% of 2 DAi
    receipt = bench.do(t.FlashAttest, STRANGER, of=of, spec=spec, fee_wei=fee)
    assert (receipt.of, receipt.task_id) == (of, spec.task_id)
    assert receipt.attestation == original.origin.attestation
    assert (receipt.content, receipt.node) == (original.content, NODE.address)
    assert [(p.to, p.amount_wei, p.reason) for p in receipt.payments] == [
        (BUYER.address, fee * 95 // 100, "reuse"),
        (TREASURY.address, fee * 5 // 100, "treasury"),
    ]
    assert bench.balance(STRANGER) == before[STRANGER] - fee
    assert bench.balance(BUYER) == before[BUYER] + fee * 95 // 100
    assert bench.state.supply().treasury_wei == treasury + fee * 5 // 100
    token = bench.state.token(receipt.token_id)
    assert token.token_id == reference_id_of(spec.task_id)
    assert token.kind is TokenKind.REFERENCE and token.of == of
    assert token.owner == STRANGER.address and token.origin == original.origin
    assert bench.state.task(spec.task_id) is None


def test_the_owner_prices_reuse_until_the_token_moves() -> None:
    bench = TokenBench()
    of = bench.mint(0)
    bench.do(t.PriceReuse, BUYER, token_id=of, fee_wei=7)
    spec = make_spec(1, buyer=STRANGER.address)
    with pytest.raises(TransactionRefused, match="costs 7 wei"):
        bench.do(t.FlashAttest, STRANGER, of=of, spec=spec, fee_wei=DAI // 5)
    bench.do(t.FlashAttest, STRANGER, of=of, spec=spec, fee_wei=7)
    _send(bench, BUYER, of, OTHER)
    spec = make_spec(2, buyer=STRANGER.address)
    bench.do(t.FlashAttest, STRANGER, of=of, spec=spec, fee_wei=DAI // 5)


def test_a_price_for_reuse_ends_with_the_sale_of_what_the_token_went_into() -> None:
    bench = TokenBench()
    tokens = tuple(bench.mint(i) for i in range(2))
    merged = bench.do(t.Merge, BUYER, tokens=tokens).token_id
    bench.do(t.PriceReuse, BUYER, token_id=tokens[0], fee_wei=0)
    reuse = {"of": tokens[0], "fee_wei": 0}
    bench.do(t.FlashAttest, BUYER, **reuse, spec=make_spec(5))
    _send(bench, BUYER, merged, STRANGER)
    # Who sold it cannot reuse it for nothing, nor let anybody else.
    for number, who in ((6, BUYER), (7, OTHER)):
        spec = make_spec(number, buyer=who.address)
        with pytest.raises(TransactionRefused, match=f"costs {DAI // 5} wei"):
            bench.do(t.FlashAttest, who, **reuse, spec=spec)
    bench.do(t.PriceReuse, STRANGER, token_id=tokens[0], fee_wei=9)
    bench.do(t.FlashAttest, BUYER, of=tokens[0], fee_wei=9, spec=make_spec(8))


def test_work_is_the_spec_without_its_terms() -> None:
    spec = make_spec(0)
    for terms in (
        {"buyer": STRANGER.address},
        {"deadline_ms": 1},
        {"max_price_wei": 1},
    ):
        assert work_of(make_spec(5, **terms)) == work_of(spec)
    model = ModelRef(name="m", digest=META, engine="function", precision="exact")
    for asked in (
        {"model": model},
        {"kind": "other"},
        {"scheme": "zk"},
        {"parents": (META,)},
        {"review": Review(min_confidence_ppm=1)},
    ):
        assert work_of(make_spec(0, **asked)) != work_of(spec)


# Repetition


@pytest.mark.parametrize("salted_again", [False, True])
def test_a_repetition_with_the_same_output_is_counted(salted_again: bool) -> None:
    bench = TokenBench()
    output = SAME_SALTED_AGAIN if salted_again else ANSWER
    first, again = bench.mint(0), bench.mint(1, node=OTHER, output=output)
    shown = (
        {"original_output": ANSWER.canonical(), "again_output": output.canonical()}
        if salted_again
        else {}
    )
    receipt = bench.do(t.Reproduce, BUYER, original=first, again=again, **shown)
    assert (receipt.of, receipt.token_id, receipt.node) == (first, again, OTHER.address)
    assert bench.state.token(first).reproductions == 1
    record = bench.state.find(ReproductionRecord, reproduction_key(first, OTHER.address))
    assert record.agrees == 1 and record.again == again and record.reporter == BUYER.address
    with pytest.raises(TransactionRefused, match="already repeated"):
        bench.do(t.Reproduce, BUYER, original=first, again=again, **shown)


def _contradict(bench: TokenBench, **more: object) -> tuple[bytes, t.Transaction]:
    first, again = bench.mint(0), bench.mint(1, node=OTHER, output=DIFFERENT)
    shown = {"original_output": ANSWER.canonical(), "again_output": DIFFERENT.canonical()}
    fields = {"original": first, "again": again, **shown, **more}
    return first, bench.make(t.Contradict, BUYER, **fields)


def test_a_repetition_with_another_output_opens_a_dispute() -> None:
    bench = TokenBench()
    first, tx = _contradict(bench, bond_wei=2 * DAI)
    with pytest.raises(TransactionRefused, match="send contradict"):
        shown = {"original_output": tx.original_output, "again_output": tx.again_output}
        bench.do(t.Reproduce, BUYER, original=first, again=tx.again, **shown)
    before = bench.balance(BUYER)
    bench.run(tx)
    assert bench.state.token(first).reproductions == 0
    record = bench.state.find(ReproductionRecord, reproduction_key(first, OTHER.address))
    assert record.agrees == 0
    dispute = bench.state.find(DisputeRecord, dispute_key(make_spec(0).task_id))
    assert dispute.challenger == BUYER.address and dispute.bond_wei == 2 * DAI
    assert bench.balance(BUYER) == before - 2 * DAI


def test_a_contradiction_that_comes_late_or_second_is_only_recorded() -> None:
    bench = TokenBench()
    _, tx = _contradict(bench, bond_wei=2 * DAI)
    bench.now = bench.state.task(make_spec(0).task_id).challenge_until_ms
    before = bench.balance(BUYER)
    bench.run(tx)
    assert bench.state.find(DisputeRecord, dispute_key(make_spec(0).task_id)) is None
    assert bench.balance(BUYER) == before

    bench = TokenBench()
    _, tx = _contradict(bench)
    fields = {"task_id": make_spec(0).task_id, "number": 0, "evidence": META, "bond_wei": 2 * DAI}
    bench.do(t.Dispute, OTHER, **fields)
    bench.run(tx)
    dispute = bench.state.find(DisputeRecord, dispute_key(make_spec(0).task_id))
    assert dispute.challenger == OTHER.address


def test_a_dispute_needs_its_bond() -> None:
    bench = TokenBench()
    _, tx = _contradict(bench)
    with pytest.raises(TransactionRefused, match="the bond is 0 wei"):
        bench.run(tx)


def test_a_task_mints_one_token_even_if_a_batch_was_first() -> None:
    """A task can be open here and a leaf of a batch; whoever is second mints nothing."""
    bench = TokenBench()
    spec = bench.reach(TaskState.COMMITTED, make_spec(0))
    leaf = bench.state.token(bench.mint(1)).model_copy(
        update={"token_id": token_id_of(spec.task_id), "task_id": spec.task_id, "origin": None}
    )
    bench.state.entries[leaf.key()] = leaf
    finding = attest(spec, ledger_id=bench.machine.ledger_id)
    with pytest.raises(TransactionRefused, match="token minted") as refused:
        bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    assert refused.value.details["code"] == "duplicate"
    assert bench.state.token(leaf.token_id) == leaf

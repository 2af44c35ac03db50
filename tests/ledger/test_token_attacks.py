"""What nobody can do with tokens: each attempt is refused with its code, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import ledger_kinds as t
import pytest
from ledger_bench import META, snapshot
from ledger_kit import BUYER, DAI, NODE, OTHER, STRANGER, T0, make_spec
from token_bench import ANSWER, DIFFERENT, NEW, SALT, SAME_SALTED_AGAIN, TokenBench

from daifi_flows.cnft import Content, Review
from daifi_flows.encoding import keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger._governance import ModelListing, ModelRecord
from daifi_flows.ledger._records import ZERO_ADDRESS
from daifi_flows.ledger._tx.tokens import MAX_OPENING_BYTES

Attack = Callable[[TokenBench], t.Transaction]


def _move(sender: Account, **changes: object) -> Attack:
    def attack(bench: TokenBench) -> t.Transaction:
        fields = {"token_id": bench.mint(0), "owner": BUYER.address, "to": NODE.address}
        return bench.make(t.TransferToken, sender, **(fields | changes))

    return attack


def _on(kind: str, sender: Account, **fields: object) -> Attack:
    def attack(bench: TokenBench) -> t.Transaction:
        return bench.make(getattr(t, kind), sender, **({"token_id": bench.mint(0)} | fields))

    return attack


def _merge(count: int = 2, sender: Account = BUYER, **changes: object) -> Attack:
    def attack(bench: TokenBench) -> t.Transaction:
        tokens = tuple(bench.mint(i) for i in range(count))
        return bench.make(t.Merge, sender, **({"tokens": tokens} | changes))

    return attack


def _merge_one_twice(bench: TokenBench) -> t.Transaction:
    token = bench.mint(0)
    return bench.make(t.Merge, BUYER, tokens=(token, token))


def _merge_again(bench: TokenBench) -> t.Transaction:
    tokens = (bench.mint(0), bench.mint(1))
    bench.do(t.Merge, BUYER, tokens=tokens)
    return bench.make(t.Merge, BUYER, tokens=tokens)


def _flash(sender: Account = STRANGER, fee: int = DAI // 5, **changes: object) -> Attack:
    def attack(bench: TokenBench) -> t.Transaction:
        of = bench.mint(0)
        spec = make_spec(1, **({"buyer": STRANGER.address} | changes))  # pyright: ignore
        return bench.make(t.FlashAttest, sender, of=of, spec=spec, fee_wei=fee)

    return attack


def _flash_twice(bench: TokenBench) -> t.Transaction:
    tx = _flash()(bench)
    bench.run(tx)
    return bench.make(t.FlashAttest, STRANGER, of=tx.of, spec=tx.spec, fee_wei=tx.fee_wei)


def _flash_on_a_denied_model(bench: TokenBench) -> t.Transaction:
    tx = _flash()(bench)
    denied = ModelRecord(digest=tx.spec.model.digest, listing=ModelListing.DENY)
    bench.state.entries[denied.key()] = denied
    return tx


def _flash_a_settled_task(bench: TokenBench) -> t.Transaction:
    of = bench.mint(0)
    bench.mint(1)
    return bench.make(t.FlashAttest, BUYER, of=of, spec=make_spec(1), fee_wei=DAI // 5)


def _flash_a_reference(bench: TokenBench) -> t.Transaction:
    tx = _flash()(bench)
    of = bench.run(tx).token_id
    spec = make_spec(2, buyer=STRANGER.address)
    return bench.make(t.FlashAttest, STRANGER, of=of, spec=spec, fee_wei=DAI // 5)


def _sell_a_reference(bench: TokenBench) -> t.Transaction:
    token = bench.run(_flash()(bench)).token_id
    return bench.make(t.ListToken, STRANGER, token_id=token, price_wei=DAI)


def _disproved(attack: Attack) -> Attack:
    def after(bench: TokenBench) -> t.Transaction:
        tx = attack(bench)
        for key, record in list(bench.state.entries.items()):
            if key[:1] == b"n":
                bench.state.entries[key] = record.model_copy(update={"disproven": 1})
        return tx

    return after


def _repeat(
    name: str,
    *,
    node: Account = OTHER,
    sender: Account = BUYER,
    output: Content = DIFFERENT,
    shown: tuple[Content | bytes, Content | bytes] | None = None,
    **changes: object,
) -> Attack:
    def attack(bench: TokenBench) -> t.Transaction:
        first = bench.mint(0)
        again = bench.mint(1, node=node, output=output, **changes)
        raw = [
            content.canonical() if isinstance(content, Content) else content
            for content in shown or ()
        ]
        opened: dict[str, object] = dict(
            zip(("original_output", "again_output"), raw, strict=False)
        )
        if name == "Contradict":
            opened["bond_wei"] = 2 * DAI
        return bench.make(getattr(t, name), sender, original=first, again=again, **opened)

    return attack


def _disputed(attack: Attack) -> Attack:
    """The output of task 0 is challenged before the transaction runs."""

    def after(bench: TokenBench) -> t.Transaction:
        tx = attack(bench)
        fields = {"number": 0, "evidence": META, "bond_wei": 2 * DAI}
        bench.do(t.Dispute, OTHER, task_id=make_spec(0).task_id, **fields)
        return tx

    return after


_TOO_LONG = Content(media_type="a/b", data=bytes(MAX_OPENING_BYTES), salt=SALT)

ATTACKS: list[tuple[str, str, Attack]] = [
    ("moving another's token", "bad-role", _move(STRANGER)),
    ("moving the wrong owner's token", "bad-role", _move(BUYER, owner=NODE.address)),
    ("moving to nobody", "bad-field", _move(BUYER, to=ZERO_ADDRESS)),
    ("moving what was never minted", "unknown", _move(BUYER, token_id=META)),
    ("approving another's token", "bad-role", _on("Approve", NODE, approved=NODE.address)),
    ("approving the owner", "bad-field", _on("Approve", BUYER, approved=BUYER.address)),
    (
        "being one's own operator",
        "bad-field",
        lambda b: b.make(t.SetOperator, BUYER, operator=BUYER.address),
    ),
    (
        "ending rights never given",
        "unknown",
        lambda b: b.make(t.UnsetOperator, BUYER, operator=NODE.address),
    ),
    ("merging another's tokens", "bad-role", _merge(sender=STRANGER)),
    ("merging a token with itself", "bad-field", _merge_one_twice),
    ("merging what was merged", "bad-state", _merge_again),
    ("merging what was never minted", "unknown", _merge(tokens=(META, keccak256(META)))),
    ("merging what was proven wrong", "bad-state", _disproved(_merge())),
    ("pricing another's token", "bad-role", _on("PriceReuse", NODE, fee_wei=1)),
    ("reusing for another", "bad-role", _flash(buyer=BUYER.address)),
    ("paying less for reuse", "bad-state", _flash(fee=DAI // 5 - 1)),
    ("paying more for reuse", "bad-state", _flash(fee=DAI // 5 + 1)),
    ("reusing over one's own limit", "bad-field", _flash(max_price_wei=DAI // 5 - 1)),
    ("reusing other work", "bad-field", _flash(kind="other")),
    ("reusing with a weaker review", "bad-field", _flash(review=Review(min_confidence_ppm=1))),
    ("reusing for a task that is over", "expired", _flash(deadline_ms=T0)),
    ("reusing twice for one task", "duplicate", _flash_twice),
    ("reusing for a settled task", "duplicate", _flash_a_settled_task),
    ("reusing a model that was denied since", "model-barred", _flash_on_a_denied_model),
    ("reusing a reference", "bad-state", _flash_a_reference),
    ("reusing what was proven wrong", "bad-state", _disproved(_flash())),
    ("reusing what is disputed", "bad-state", _disputed(_flash())),
    ("merging what is disputed", "bad-state", _disputed(_merge())),
    (
        "selling what is disputed",
        "bad-state",
        _disputed(_on("ListToken", BUYER, price_wei=DAI)),
    ),
    ("selling what reuses a disputed output", "bad-state", _disputed(_sell_a_reference)),
    ("reusing with no money", "insufficient-funds", _flash(sender=NEW, buyer=NEW.address)),
    ("another's repetition", "bad-role", _repeat("Contradict", sender=STRANGER)),
    ("repeating one's own execution", "bad-role", _repeat("Reproduce", node=NODE, output=ANSWER)),
    ("repeating other work", "bad-field", _repeat("Reproduce", kind="other", output=ANSWER)),
    ("contradicting without contents", "bad-field", _repeat("Contradict")),
    (
        "contradicting what agrees",
        "bad-field",
        _repeat("Contradict", output=SAME_SALTED_AGAIN, shown=(ANSWER, SAME_SALTED_AGAIN)),
    ),
    ("contradicting equal commitments", "bad-field", _repeat("Contradict", output=ANSWER)),
    (
        "contents for equal commitments",
        "bad-field",
        _repeat("Reproduce", output=ANSWER, shown=(ANSWER, ANSWER)),
    ),
    (
        "another's content shown",
        "bad-field",
        _repeat("Contradict", shown=(SAME_SALTED_AGAIN, DIFFERENT)),
    ),
    ("no content shown", "bad-field", _repeat("Contradict", shown=(ANSWER, b"\xa0"))),
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
    assert snapshot(bench.state) == before


def test_sizes_are_bounded_on_the_wire() -> None:
    with pytest.raises(ValueError, match="at most 64"):
        t.Merge(sender=BUYER.address, nonce=0, tokens=(META,) * 65)
    with pytest.raises(ValueError, match="at least 2"):
        t.Merge(sender=BUYER.address, nonce=0, tokens=(META,))
    with pytest.raises(ValueError, match=f"at most {MAX_OPENING_BYTES}"):
        t.Contradict(
            sender=BUYER.address,
            nonce=0,
            original=META,
            again=META,
            original_output=_TOO_LONG.canonical(),
        )

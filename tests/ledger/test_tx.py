"""Signed transactions: EIP-712, one encoding, and hostile bytes."""

from __future__ import annotations

from typing import Annotated, ClassVar

import ledger_kinds as t
import pytest
from eth_account import Account as EthAccount
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st
from ledger_bench import META
from ledger_kit import (
    BUYER,
    GENESIS,
    NODE,
    STRANGER,
)
from pydantic import Field

from daifi_flows.cnft import (
    Address,
    Bytes32,
    Decision,
    Label,
    Noun,
    Ppm,
    Raw,
    Uint,
    Wei,
)
from daifi_flows.encoding import canonical
from daifi_flows.errors import TransactionRefused
from daifi_flows.ledger._eip712 import members

EXAMPLES = [t.example(kind).signed(BUYER, GENESIS.ledger_id) for kind in t.KINDS.values()]


each_kind = pytest.mark.parametrize("tx", [pytest.param(tx, id=tx.kind) for tx in EXAMPLES])


@each_kind
def test_it_is_signed_as_a_wallet_would_sign_it(tx: t.Transaction) -> None:
    message = encode_typed_data(full_message=tx.typed_data(GENESIS.ledger_id))
    wallet = EthAccount.sign_message(message, BUYER.secret)
    assert bytes(wallet.message_hash) == tx.digest(GENESIS.ledger_id)
    signed = tx.model_copy(update={"signature": bytes(wallet.signature)})
    assert signed.check_signature(GENESIS.ledger_id) == tx.digest(GENESIS.ledger_id)


@each_kind
def test_it_has_one_encoding(tx: t.Transaction) -> None:
    assert t.parse_transaction(tx.encode()) == tx
    shorter = {**tx.plain(), "kind": tx.kind}
    del shorter["request"]  # a field left to its default is another spelling of the same thing
    with pytest.raises(TransactionRefused, match="canonical form"):
        t.parse_transaction(canonical(shorter))


@each_kind
def test_it_is_bound_to_every_field_and_to_its_ledger(tx: t.Transaction) -> None:
    """The signature covers whatever a relay could change; the intent only what is asked."""
    digest, intent = tx.digest(GENESIS.ledger_id), tx.intent()
    envelope = {
        "sender": STRANGER.address,
        "nonce": 8,
        "valid_until_ms": 1,
        "max_fee_wei": 1,
        "request": META,
    }
    for field, value in envelope.items():
        other = tx.model_copy(update={field: value})
        assert other.digest(GENESIS.ledger_id) != digest, field
        assert other.intent() == intent, field
    assert tx.digest(META) != digest
    assert tx.model_copy(update={"signature": bytes(65)}).digest(GENESIS.ledger_id) == digest
    names = [member.name for member in members(type(tx))]
    assert names[:5] == ["sender", "nonce", "validUntilMs", "maxFee", "request"]
    assert len(names) == len(set(names)) == len(type(tx).model_fields) - 1


def test_no_two_kinds_ask_for_the_same_thing() -> None:
    assert len({tx.intent() for tx in EXAMPLES}) == len(EXAMPLES)


def test_kinds_share_a_mark_only_on_purpose() -> None:
    """Those of one base, of which one may happen; and those that may happen again."""
    by_mark: dict[bytes, list[type[t.Transaction]]] = {}
    for tx in EXAMPLES:
        if (mark := tx.mark()) is not None and not tx.repeatable:
            by_mark.setdefault(mark, []).append(type(tx))
    for kinds in by_mark.values():
        assert len({kind.mark for kind in kinds}) == 1, kinds


def test_a_request_is_its_senders_own() -> None:
    tx = EXAMPLES[0]
    other = tx.model_copy(update={"sender": STRANGER.address})
    assert tx.request_mark() in tx.marks()
    assert tx.request_mark() != other.request_mark()
    assert tx.model_copy(update={"request": bytes(32)}).request_mark() is None


class _Part(Noun):
    size: Uint


class _Arrays(t.Transaction):
    """Every shape a field may have."""

    kind: ClassVar[str] = "arrays"
    payees: tuple[Address, ...]
    amounts_wei: tuple[Wei, ...]
    counts: tuple[Uint, ...]
    digests: tuple[Bytes32, ...]
    names: Annotated[tuple[Label, ...], Field(max_length=4)]
    blobs: tuple[Raw, ...]
    parts: tuple[_Part, ...]
    decision: Decision
    share_ppm: Ppm


@pytest.mark.parametrize("count", [0, 1, 3])
def test_arrays_are_signed_as_a_wallet_would_sign_them(count: int) -> None:
    tx = _Arrays(
        sender=BUYER.address,
        nonce=0,
        payees=(NODE.address,) * count,
        amounts_wei=(2**255,) * count,
        counts=tuple(range(count)),
        digests=(META,) * count,
        names=("é",) * count,
        blobs=(b"\x00\x01",) * count,
        parts=(_Part(size=5),) * count,
        decision=Decision.UNPROVEN,
        share_ppm=7,
    )
    assert tx.type_text().endswith(
        "address[] payees,uint256[] amounts,uint64[] counts,bytes32[] digests,string[] names,"
        "bytes[] blobs,bytes[] parts,string decision,uint64 sharePpm)"
    )
    message = encode_typed_data(full_message=tx.typed_data(GENESIS.ledger_id))
    wallet = EthAccount.sign_message(message, BUYER.secret)
    assert bytes(wallet.message_hash) == tx.digest(GENESIS.ledger_id)


def test_a_field_without_a_typed_form_cannot_be_signed() -> None:
    class Optional(t.Transaction):
        kind: ClassVar[str] = "optional"
        to: Address | None = None

    class Pair(t.Transaction):
        kind: ClassVar[str] = "pair"
        both: tuple[Uint, Uint] = (1, 2)

    for wrong in (Optional, Pair):
        with pytest.raises(TypeError, match="EIP-712"):
            wrong(sender=BUYER.address, nonce=0).digest(META)


@given(data=st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with pytest.raises(TransactionRefused):
        t.parse_transaction(data)


_WIRE = [tx.encode() for tx in EXAMPLES]


@given(
    wire=st.sampled_from(_WIRE),
    at=st.integers(min_value=0, max_value=10_000),
    byte=st.integers(min_value=0, max_value=255),
)
def test_a_changed_byte_is_refused_or_breaks_the_signature(wire: bytes, at: int, byte: int) -> None:
    at %= len(wire)
    changed = wire[:at] + bytes([byte]) + wire[at + 1 :]
    if changed == wire:
        return
    with pytest.raises(TransactionRefused) as refused:
        t.parse_transaction(changed).check_signature(GENESIS.ledger_id)
    assert refused.value.details["code"] in ("bad-field", "bad-signature")


@pytest.mark.parametrize(
    "data",
    [
        canonical({"kind": "transfer"}),
        canonical({"kind": "mint", "sender": BUYER.address}),
        canonical({"kind": 5}),
        canonical([1]),
        b"\xa1" * 70_000,
        canonical({"kind": "transfer", "filler": bytes(70_000)}),
        b"\x81" * 10_000 + b"\x00",
    ],
)
def test_hostile_wire_forms_are_refused(data: bytes) -> None:
    with pytest.raises(TransactionRefused) as refused:
        t.parse_transaction(data)
    assert refused.value.details["code"] == "bad-field"

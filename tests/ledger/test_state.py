"""Layers of changes over a base: what is seen, removed, dropped and merged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_kit import BUYER, DAI, GENESIS, NODE

from daifi_flows.encoding import keccak256
from daifi_flows.errors import LedgerCorrupted
from daifi_flows.ledger import AccountRecord, Params, SupplyReport, TokenRecord
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._params import ParamsRecord
from daifi_flows.ledger._records import BUCKETS, Record
from daifi_flows.ledger._state import (
    RECORDS,
    Layer,
    MemoryBase,
    account_key,
    decode_entry,
    supply_of,
)
from daifi_flows.ledger._trie import Trie


def token(number: int, content: int = 0) -> TokenRecord:
    return TokenRecord(
        token_id=number.to_bytes(32, "big"),
        owner=BUYER.address,
        parents=(),
        task_id=bytes(32),
        content=content.to_bytes(32, "big"),
    )


def test_every_kind_of_record_has_its_own_prefix() -> None:
    prefixes = [kind.prefix for kind in RECORDS]
    assert all(len(prefix) == 1 for prefix in prefixes)
    assert len(set(prefixes)) == len(prefixes)


def test_a_removed_record_is_gone_through_all_layers_until_it_is_put_again() -> None:
    base = MemoryBase()
    base.apply({token(1).key(): token(1)})
    middle = Layer(base)
    middle.remove(token(1).key())
    top = Layer(middle)
    assert base.token(token(1).token_id) is not None
    assert middle.token(token(1).token_id) is None and top.token(token(1).token_id) is None
    assert dict(top.items()) == {}
    top.put(token(1, content=2))
    assert top.token(token(1).token_id) == token(1, content=2)
    assert middle.encoded_changes() == {token(1).key(): None}
    top.merge_down()
    assert middle.encoded_changes() == {token(1).key(): token(1, content=2).canonical()}
    middle.remove(token(1).key())
    middle.merge_down()
    assert base.entries == {} and middle.changes == {}


def test_removing_what_is_not_there_is_nothing() -> None:
    base = MemoryBase()
    layer = Layer(base)
    layer.put(token(1))
    layer.remove(token(1).key())
    assert Trie().update(layer.encoded_changes()).root == Trie().root
    layer.merge_down()
    assert base.entries == {}


@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 5), st.integers(0, 3)),
            st.tuples(st.just("remove"), st.integers(0, 5), st.just(0)),
            st.sampled_from([("push", 0, 0), ("merge", 0, 0), ("drop", 0, 0)]),
        ),
        max_size=40,
    )
)
def test_layers_are_a_stack_of_dictionaries(script: list[tuple[str, int, int]]) -> None:
    """The reference is a list of whole copies; the root follows from the entries alone."""
    base = MemoryBase({token(number).key(): token(number) for number in range(3)})
    layers = [Layer(base)]
    copies: list[dict[bytes, Record]] = [dict(base.entries)]
    for what, number, content in script:
        match what:
            case "put":
                layers[-1].put(token(number, content))
                copies[-1][token(number).key()] = token(number, content)
            case "remove":
                layers[-1].remove(token(number).key())
                copies[-1].pop(token(number).key(), None)
            case "push":
                layers.append(Layer(layers[-1]))
                copies.append(dict(copies[-1]))
            case _ if len(layers) > 1:
                gone, copy = layers.pop(), copies.pop()
                if what == "merge":
                    gone.merge_down()
                    copies[-1] = copy
        assert dict(layers[-1].items()) == copies[-1]
        for each in range(6):
            assert layers[-1].get(token(each).key()) == copies[-1].get(token(each).key())
    expected, before = copies[-1], Trie().update(base.encoded())
    while len(layers) > 1:
        layers.pop().merge_down()
    after = before.update(layers[0].encoded_changes())
    layers[0].merge_down()
    assert base.entries == expected
    assert after.root == Trie().update(base.encoded()).root


def test_a_state_that_lost_its_supply_or_parameters_says_so() -> None:
    for read in (MemoryBase().supply, MemoryBase().params):
        with pytest.raises(LedgerCorrupted, match="backup"):
            read()


def test_genesis_puts_money_and_parameters_into_the_state() -> None:
    state = Machine(GENESIS).genesis_state()
    assert state.params() == GENESIS.params
    assert state.supply() == supply_of(state)
    assert state.supply().issued_wei == state.supply().balances_wei == 1_400 * DAI
    assert state.account(NODE.address).balance_wei == 200 * DAI


def test_every_bucket_counts_towards_conservation() -> None:
    for bucket in (*BUCKETS, "treasury", "burned"):
        report = SupplyReport.model_validate({"issued_wei": 5, f"{bucket}_wei": 5})
        assert report.conserved
        assert not report.model_copy(update={f"{bucket}_wei": 4}).conserved


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b""),
        (b"\xff" + bytes(32), b""),
        (token(1).key(), b"\xa0"),
        (token(2).key(), token(1).canonical()),
        (account_key(NODE.address), AccountRecord(address=BUYER.address).canonical()),
        (b"p" + bytes(1), ParamsRecord(params=Params()).canonical()),
    ],
)
def test_an_entry_that_is_not_what_its_key_says_is_damage(key: bytes, value: bytes) -> None:
    with pytest.raises(LedgerCorrupted, match="backup"):
        decode_entry(key, value)


def test_entries_survive_their_encoding() -> None:
    state = Machine(GENESIS).genesis_state()
    state.apply({token(1).key(): token(1, content=int.from_bytes(keccak256(b"x"), "big"))})
    assert {key: decode_entry(key, value) for key, value in state.encoded().items()} == dict(
        state.items()
    )

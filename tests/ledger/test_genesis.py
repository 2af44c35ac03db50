"""What a ledger starts from."""

from __future__ import annotations

import pytest
from ledger_kit import (
    BUYER,
    COMMITTEE,
    DEALING,
    GENESIS,
    NODE,
    T0,
    make_genesis,
)

from daifi_flows.errors import EncodingError, LedgerError
from daifi_flows.ledger import Genesis, Params
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._params import FeeParams
from daifi_flows.threshold import deal


def test_genesis_needs_possession_of_each_seat_key() -> None:
    seats = COMMITTEE.seats
    stolen = seats[1].model_copy(update={"possession": seats[0].possession})
    for wrong, why in (
        ((seats[0], stolen, *seats[2:]), "proof of possession"),
        ((seats[0], seats[0].model_copy(update={"index": 1}), *seats[2:]), "share a BLS key"),
        (seats[1:], "numbered"),
    ):
        committee = COMMITTEE.model_copy(update={"seats": wrong})
        with pytest.raises(LedgerError, match=why):
            Machine(GENESIS.model_copy(update={"committee": committee}))


def test_genesis_needs_a_group_key_shared_among_all_seats() -> None:
    seats = COMMITTEE.seats
    other = deal(b"another dealer".ljust(32), 21, 14)
    low = deal(b"a lower threshold".ljust(32), 21, 13)
    shares = [
        tuple(
            seat.model_copy(update={"share": share})
            for seat, share in zip(seats, each, strict=True)
        )
        for each in ([*other.shares[:1], *DEALING.shares[1:]], [None, *DEALING.shares[1:]],
                     DEALING.shares[::-1], low.shares)
    ]  # fmt: skip
    for changes in (
        {"group_key": None},
        {"group_key": other.group_key},
        {"seats": shares[0]},
        {"seats": shares[1]},
        {"seats": shares[2]},
        {"group_key": low.group_key, "seats": shares[3]},
    ):
        committee = COMMITTEE.model_copy(update=changes)
        with pytest.raises(LedgerError, match="group key"):
            Machine(GENESIS.model_copy(update={"committee": committee}))


def test_the_ledger_id_commits_to_the_whole_genesis() -> None:
    ids = {
        GENESIS.ledger_id,
        make_genesis(salt=b"\x01" * 32).ledger_id,
        make_genesis(params=Params(fees=FeeParams(treasury_ppm=1))).ledger_id,
        GENESIS.model_copy(update={"allocations": GENESIS.allocations[:1]}).ledger_id,
        GENESIS.model_copy(update={"timestamp_ms": T0 + 1}).ledger_id,
    }
    assert len(ids) == 5


def test_genesis_refuses_impossible_money() -> None:
    common = {"salt": bytes(32), "timestamp_ms": T0, "committee": COMMITTEE}
    for allocations in (
        [(BUYER.address, 1), (BUYER.address, 1)],
        [(BUYER.address, 2**255), (NODE.address, 2**255)],
    ):
        with pytest.raises(LedgerError):
            Genesis.create(allocations=allocations, **common)  # pyright: ignore
    with pytest.raises(EncodingError):
        Genesis.create(allocations=[(BUYER.address, -1)], **common)  # pyright: ignore
    nearly_all = [(BUYER.address, 2**256 - 10)]
    Genesis.create(allocations=nearly_all, emission_wei=9, **common)  # pyright: ignore
    with pytest.raises(LedgerError):
        Genesis.create(allocations=nearly_all, emission_wei=10, **common)  # pyright: ignore

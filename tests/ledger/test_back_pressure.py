"""Large transactions: how many bytes go into a block, and how many wait."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from ledger_kit import BUYER, GENESIS, NODE, T0

from daifi_flows.errors import LedgerUnavailable
from daifi_flows.ledger import _chain
from daifi_flows.ledger._chain import Chain


def transfer(nonce: int) -> bytes:
    tx = t.Transfer(sender=BUYER.address, nonce=nonce, to=NODE.address, amount_wei=1)
    return tx.signed(BUYER, GENESIS.ledger_id).encode()


SIZE = max(len(transfer(nonce)) for nonce in range(8))


def test_a_block_is_full_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chain, "MAX_BODY_BYTES", 3 * SIZE)
    chain = Chain(GENESIS)
    for nonce in range(1, 8):
        chain.add(transfer(nonce - 1), T0 + 1)
    assert [len(block.raw) for block in chain.pending] == [3, 3, 1]
    assert all(block.size == sum(map(len, block.raw)) for block in chain.pending)


def test_callers_wait_when_too_many_bytes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chain, "MAX_PENDING_BYTES", 3 * SIZE)
    chain = Chain(GENESIS)
    for nonce in range(3):
        chain.add(transfer(nonce), T0 + 1)
    with pytest.raises(LedgerUnavailable):
        chain.add(transfer(3), T0 + 1)
    assert len(chain.queued) == 3


def test_the_largest_transactions_fit_into_a_block() -> None:
    largest = max(kind.max_bytes for kind in t.KINDS.values())
    assert largest <= _chain.MAX_BODY_BYTES <= _chain.MAX_PENDING_BYTES

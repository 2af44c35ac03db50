"""Sending transactions: signed with the next nonce, signed again when it was taken, never twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from daifi_flows.cnft import Attestation, BlockHeader, Committee, QuorumCertificate, Receipt
from daifi_flows.epochs import CommitteeChain
from daifi_flows.errors import LedgerError, LedgerUnavailable, TransactionRefused
from daifi_flows.history import HistoryProof
from daifi_flows.keys import Account
from daifi_flows.ledger._params import Params
from daifi_flows.ledger._records import (
    AccountRecord,
    LedgerHealth,
    Record,
    SupplyReport,
    TaskRecord,
    TokenRecord,
)
from daifi_flows.ledger._turns import turn_of
from daifi_flows.ledger._tx import NO_REQUEST, Transaction

__all__ = ["Port", "Sender"]

_BACKOFF_S: Final = (0.01, 1.0)
"""The first and the longest pause before a transaction is signed again, less a random part."""

_VALID_MS: Final = 600_000
"""How long a signed transaction is good for: beyond any wait of ours, and clocks may differ."""
_FEE_MARGIN: Final = 2
"""A transaction pays up to this many times today's fee: governance may raise it meanwhile."""


class Port(Protocol):
    """How a client reaches a :class:`~daifi_flows.ledger.LedgerService` (which is one itself)."""

    async def enqueue(self, raw: bytes) -> bytes: ...
    async def wait(self, tx_id: bytes) -> Receipt: ...
    async def next_nonce(self, address: str) -> int: ...
    async def params(self) -> Params: ...
    async def head(self) -> tuple[BlockHeader, QuorumCertificate | None]: ...
    async def committee(self) -> Committee: ...
    async def committee_of(self, epoch: int) -> Committee | None: ...
    async def handovers(self, after: int = 0) -> CommitteeChain: ...
    async def certified_header(
        self, height: int
    ) -> tuple[BlockHeader, QuorumCertificate] | None: ...
    async def account(self, address: str) -> AccountRecord: ...
    async def task(self, task_id: bytes) -> TaskRecord | None: ...
    async def token(self, token_id: bytes) -> TokenRecord | None: ...
    async def record(self, key: bytes) -> Record | None: ...
    async def supply(self) -> SupplyReport: ...
    async def quote(self, node: str) -> int: ...
    async def nodes(self) -> tuple[AccountRecord, ...]: ...
    async def attestation_receipt(self, task_id: bytes) -> tuple[Attestation, Receipt] | None: ...
    async def prove(self, tx_id: bytes) -> HistoryProof: ...
    async def health(self) -> LedgerHealth: ...


class Sender:
    """Sends one ledger's transactions; see :class:`~daifi_flows.ledger.LedgerClient`."""

    def __init__(self, port: Port, ledger_id: bytes, *, patience_s: float = 60.0) -> None:
        self._port = port
        self._ledger_id = ledger_id
        self._patience_s = patience_s
        self._fee_per_byte_wei: int | None = None

    async def submit(
        self,
        kind: type[Transaction],
        account: Account,
        fields: Mapping[str, Any],
        request: bytes = NO_REQUEST,
    ) -> Receipt:
        """Sign a transaction of any kind with the next nonce, send it, and wait until it is final.

        Args:
            fields: what the kind adds to every transaction's own fields.
            request: 32 bytes; repeating a call with the same one is answered with the first
                call's receipt.

        A signed transaction is re-signed with another nonce only when the ledger has refused the
        first one's, and always under the same request id: so it can never take effect twice.
        """
        terms: dict[str, Any] = {"sender": account.address, "request": request, **fields}
        turn = turn_of(self._ledger_id, account.address)
        give_up: float | None = None
        refused: LedgerError
        pause_s, longest_s = _BACKOFF_S
        while True:
            try:
                async with turn:
                    if self._fee_per_byte_wei is None:
                        self._fee_per_byte_wei = (await self._port.params()).fees.fee_per_byte_wei
                    terms["nonce"] = await self._port.next_nonce(account.address)
                    terms["valid_until_ms"] = time.time_ns() // 1_000_000 + _VALID_MS
                    tx = self._limited(kind(**terms)).signed(account, self._ledger_id)
                    tx_id = await self._port.enqueue(tx.encode())
            except TransactionRefused as error:
                code = error.details.get("code")
                if code == "fee-too-high":
                    self._fee_per_byte_wei = None  # it was raised: read it again
                elif code != "bad-nonce":
                    raise
                refused = error  # another process signs for this account too
            except LedgerUnavailable as error:
                if "retry_after_ms" not in error.details:
                    raise
                refused = error  # too many transactions wait there
                await asyncio.sleep(error.details["retry_after_ms"] / 1000)
            else:
                try:
                    return await self._wait(tx_id)
                except TransactionRefused as error:
                    refused = error  # the ledger restarted before it journaled this: send again
            now = time.monotonic()
            give_up = now + self._patience_s if give_up is None else give_up
            if now >= give_up:
                raise refused
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, longest_s)

    def _limited(self, tx: Transaction) -> Transaction:
        """With a limit on its fee: amounts have one length, so the limit does not change it."""
        fee_wei = (self._fee_per_byte_wei or 0) * len(tx.encode())
        return tx.model_copy(update={"max_fee_wei": fee_wei * _FEE_MARGIN})

    async def _wait(self, tx_id: bytes) -> Receipt:
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                return await self._port.wait(tx_id)
            except LedgerUnavailable as error:
                if error.details.get("stopped") or time.monotonic() >= give_up:
                    raise
                pause_s = error.details.get("retry_after_ms", 200) / 1000
                await asyncio.sleep(random.uniform(pause_s, 2 * pause_s))

"""Signed transactions: what they say and how they are read. What they do is in ``_rules``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple, Self, cast

from daifi_flows.encoding import decode_cbor
from daifi_flows.errors import EncodingError, TransactionRefused
from daifi_flows.ledger._tx import (
    bids,
    committee,
    disputes,
    evidence,
    governance,
    lease,
    market,
    money,
    nodes,
    rewards,
    rollup,
    sealed,
    tasks,
    tokens,
)
from daifi_flows.ledger._tx._base import MAX_TX_BYTES, NO_REQUEST, Transaction

__all__ = ["KINDS", "MAX_TX_BYTES", "NO_REQUEST", "Incoming", "Transaction", "parse_transaction"]

_FAMILIES: Final = (
    bids,
    committee,
    disputes,
    evidence,
    governance,
    lease,
    market,
    money,
    nodes,
    rewards,
    rollup,
    sealed,
    tasks,
    tokens,
)
KINDS: Final[dict[str, type[Transaction]]] = {
    kind.kind: kind for family in _FAMILIES for kind in family.KINDS
}
"""Every kind of transaction, by its name on the wire."""
assert len(KINDS) == sum(len(family.KINDS) for family in _FAMILIES), "two kinds share a name"
_LARGEST: Final = max(kind.max_bytes for kind in KINDS.values())


def parse_transaction(data: bytes) -> Transaction:
    """Parse a stranger's bytes; the signature is not checked here.

    Raises:
        TransactionRefused: ``bad-field``: too large, not canonical, unknown kind or fields.
    """
    return _parse_small(data) if len(data) <= _SMALL else _parse(data)


def _parse(data: bytes) -> Transaction:
    try:
        value = decode_cbor(data, max_bytes=_LARGEST)
        if not isinstance(value, dict):
            raise EncodingError("a transaction is a map")
        body = cast("dict[str, Any]", value)
        kind = body.pop("kind", None)
        found = KINDS.get(kind) if isinstance(kind, str) else None
        if found is None:
            raise EncodingError(f"unknown kind {str(kind)[:40]!r}")
        if len(data) > found.max_bytes:
            raise EncodingError(f"{len(data)} bytes are over the limit of {found.max_bytes}")
        transaction = found.from_plain(body)
        if transaction.encode() != data:
            raise EncodingError("not in canonical form")
    except (EncodingError, RecursionError) as error:
        raise TransactionRefused(
            f"the transaction cannot be read: {error}", code="bad-field"
        ) from error
    return transaction


_SMALL: Final = 4_096
"""Longest transaction that is remembered: executing a block and indexing it parse it twice."""
_parse_small = lru_cache(maxsize=2_048)(_parse)


class Incoming(NamedTuple):
    """A stranger's transaction, and what follows from its bytes; worked out once.

    Attributes:
        raw: its wire form.
        tx_id: its digest on the ledger; the signature is not checked.
        marks, intent: see :class:`Transaction`.
    """

    raw: bytes
    tx: Transaction
    tx_id: bytes
    marks: tuple[bytes, ...]
    intent: bytes

    @classmethod
    def read(cls, raw: bytes, ledger_id: bytes) -> Self:
        """Parse a transaction (see :func:`parse_transaction`)."""
        tx = parse_transaction(raw)
        return cls(raw, tx, tx.digest(ledger_id), tx.marks(), tx.intent())

"""Leases: money and capacity borrowed and paid for within one transaction (white paper 2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, cast

from pydantic import Field

from daifi_flows.cnft import Address, Raw, Uint, Wei
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, TransactionRefused
from daifi_flows.ledger._tx._base import Transaction
from daifi_flows.ledger._tx.market import Buy, ListToken, UnlistToken
from daifi_flows.ledger._tx.money import Transfer
from daifi_flows.ledger._tx.tasks import Assign, Cancel, Open
from daifi_flows.ledger._tx.tokens import (
    Approve,
    FlashAttest,
    Merge,
    PriceReuse,
    SafeTransferToken,
    TransferToken,
)

__all__ = [
    "ACTIONS",
    "KINDS",
    "MAX_ACTIONS",
    "EndOffer",
    "Lease",
    "OfferCapacity",
    "PoolDeposit",
    "PoolWithdraw",
    "action_of",
    "read_action",
]

MAX_ACTIONS: Final = 16
_MAX_ACTION_BYTES: Final = 20 * 1024
ACTIONS: Final[dict[str, type[Transaction]]] = {
    kind.kind: kind
    for kind in (
        Approve,
        Assign,
        Buy,
        Cancel,
        FlashAttest,
        ListToken,
        Merge,
        Open,
        PriceReuse,
        SafeTransferToken,
        Transfer,
        TransferToken,
        UnlistToken,
    )
}
"""What may happen within a lease. Nothing that trusts a balance beyond the transaction (stakes,
votes, bids), nothing that asks others' signatures, no pool: while money is lent, its shares look
cheap; and no lease within a lease."""


class PoolDeposit(Transaction):
    """Lend money out: buy shares of the pool.

    Attributes:
        least_shares_wei: refused when it would buy fewer shares.
    """

    kind: ClassVar[str] = "pool-deposit"
    amount_wei: Wei
    least_shares_wei: Wei = 0


class PoolWithdraw(Transaction):
    """Take money and the fees it earned back: return shares to the pool.

    Attributes:
        least_wei: refused when it would be paid less.
    """

    kind: ClassVar[str] = "pool-withdraw"
    shares_wei: Wei
    least_wei: Wei = 0


class OfferCapacity(Transaction):
    """Lease out capacity of the sender, a node; replaces what it offered before.

    Attributes:
        mflop: megaFLOP, no more than its verified work that has not faded.
        task_mflop: the least of it that one task takes, 1 or more: so that nobody leases a crumb
            and gives the node many tasks for it.
        tflop_wei: price for 10¹² floating-point operations.
        until_ms: end of the offer, Unix milliseconds.
    """

    kind: ClassVar[str] = "offer-capacity"
    mflop: Uint
    task_mflop: Uint
    tflop_wei: Wei
    until_ms: Uint


class EndOffer(Transaction):
    """Take the sender's offer of capacity back."""

    kind: ClassVar[str] = "end-offer"


class Lease(Transaction):
    """Borrow money, capacity or both, act, and pay: all of it, or nothing happens.

    Attributes:
        credit_wei: money to borrow from the pool for the time of the actions; 0: none.
        node: whose capacity to lease; the zero address: nobody's.
        mflop: how much of it; 0 exactly when no node is named.
        price_wei: what that costs, as the node's offer says: the least that the tasks assigned to
            the node pay together. Each takes the offer's least part of the capacity, and pays it.
        actions: what to do, each made by :func:`action_of`. They have no signature of their own:
            the sender's over this transaction covers their bytes.
    """

    kind: ClassVar[str] = "lease"
    credit_wei: Wei
    node: Address
    mflop: Uint
    price_wei: Wei
    actions: Annotated[
        tuple[Annotated[Raw, Field(max_length=_MAX_ACTION_BYTES)], ...],
        Field(min_length=1, max_length=MAX_ACTIONS),
    ]


def action_of(tx: Transaction) -> bytes:
    """A transaction as an action of a lease: its kind and what its kind adds, in DAG-CBOR.

    The lease's sender is the sender; nonce, validity, fee, request and signature are the lease's.
    """
    plain = tx.plain()
    own = {name: plain[name] for name in plain if name not in Transaction.model_fields}
    return canonical({"kind": tx.kind, **own})


def read_action(
    data: bytes,
    sender: str,
    kinds: Mapping[str, type[Transaction]] = ACTIONS,
    where: str = "lease",
    max_bytes: int = _MAX_ACTION_BYTES,
) -> Transaction:
    """The transaction that ``sender`` asks for in an action of its lease, or of what else holds
    actions.

    Raises:
        TransactionRefused: ``bad-field``: not canonical, of a kind that is not allowed there, or
            with a sender, nonce or signature of its own.
    """
    try:
        value = decode_canonical(data, max_bytes=max_bytes)
        if not isinstance(value, dict):
            raise EncodingError("an action is a map")
        body = cast("dict[str, Any]", value)
        name = body.pop("kind", None)
        kind = kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            raise EncodingError(f"{str(name)[:40]!r} is no kind of action")
        foreign = sorted(set(body) & set(Transaction.model_fields))
        if foreign:
            raise EncodingError(f"an action has no {foreign[0]} of its own")
        action = kind.from_plain({**body, "sender": sender, "nonce": 0})
        if action_of(action) != data:
            raise EncodingError("not in canonical form")
    except (EncodingError, RecursionError) as error:
        raise TransactionRefused(
            f"an action of the {where} cannot be read: {error}", code="bad-field"
        ) from error
    return action


KINDS: Final[tuple[type[Transaction], ...]] = (
    PoolDeposit,
    PoolWithdraw,
    OfferCapacity,
    EndOffer,
    Lease,
)

"""Records of leases: the lending pool, its providers' shares, and capacity on offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.cnft import PPM, Address, Uint, Wei
from daifi_flows.ledger._records import Record

__all__ = [
    "VIRTUAL_WEI",
    "OfferRecord",
    "PoolRecord",
    "ProviderRecord",
    "lease_fee_wei",
    "offer_key",
    "provider_key",
]

VIRTUAL_WEI: Final = 10**6
"""Money and shares that the pool counts as there from the start, in wei and in shares.

Who inflates the price of a share to round later deposits away (the first depositor's attack on
ERC-4626 vaults) loses to these shares a million times what it can take from a deposit.
"""
_MFLOP_PER_TFLOP: Final = 10**6


class PoolRecord(Record):
    """The lending pool: money that leases borrow. One record.

    Deposits and withdrawals are rounded down, so that the price of a share, (cash + V) / (shares
    + V) with V = :data:`VIRTUAL_WEI`, never falls; fees raise it.

    Attributes:
        cash_wei: all the providers' money.
        shares_wei: all shares; one costs one wei at first.
    """

    prefix: ClassVar[bytes] = b"y"
    cash_wei: Wei = 0
    shares_wei: Wei = 0

    def key(self) -> bytes:
        return self.prefix

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"escrows": self.cash_wei}

    def shares_for_wei(self, amount_wei: int) -> int:
        """Shares that a deposit buys, rounded down."""
        return amount_wei * (self.shares_wei + VIRTUAL_WEI) // (self.cash_wei + VIRTUAL_WEI)

    def worth_wei(self, shares_wei: int) -> int:
        """What shares are paid back with, rounded down; of all shares never more than there is."""
        return shares_wei * (self.cash_wei + VIRTUAL_WEI) // (self.shares_wei + VIRTUAL_WEI)


class ProviderRecord(Record):
    """One provider's shares of the pool; gone when it has none."""

    prefix: ClassVar[bytes] = b"z"
    provider: Address
    shares_wei: Wei

    def key(self) -> bytes:
        return provider_key(self.provider)


class OfferRecord(Record):
    """Capacity that a node leases out.

    Attributes:
        mflop: how much is left, megaFLOP.
        task_mflop: the least of it that one task takes.
        tflop_wei: its price for 10¹² floating-point operations.
        until_ms: not leased in blocks dated later than this.
    """

    prefix: ClassVar[bytes] = b"c"
    node: Address
    mflop: Uint
    task_mflop: Uint
    tflop_wei: Wei
    until_ms: Uint

    def key(self) -> bytes:
        return offer_key(self.node)

    def cost_wei(self, mflop: int) -> int:
        """What so much of it costs, rounded up."""
        return -(-mflop * self.tflop_wei // _MFLOP_PER_TFLOP)


def lease_fee_wei(amount_wei: int, fee_ppm: int) -> int:
    """Fee on borrowed money, rounded up: borrowing is never free."""
    return -(-amount_wei * fee_ppm // PPM)


def provider_key(provider: str) -> bytes:
    """State key of a provider's shares."""
    return ProviderRecord.prefix + bytes.fromhex(provider[2:])


def offer_key(node: str) -> bytes:
    """State key of a node's offered capacity."""
    return OfferRecord.prefix + bytes.fromhex(node[2:])

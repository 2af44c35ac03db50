"""Records of sealed transactions: commitments that wait for their reveal, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from daifi_flows.cnft import Address, Bytes32, Uint, Wei
from daifi_flows.ledger._records import Record

__all__ = ["SealedCount", "SealedRecord", "sealed_key"]


class SealedRecord(Record):
    """A commitment; it leaves the state when it is revealed or has lapsed.

    Attributes:
        number: its place among all commitments ever made.
        height: of the block it is in; it can be revealed in a later one.
    """

    prefix: ClassVar[bytes] = b"h"
    holder: Address
    commitment: Bytes32
    deposit_wei: Wei
    expires_ms: Uint
    number: Uint
    height: Uint

    def key(self) -> bytes:
        return sealed_key(self.holder, self.commitment)

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"escrows": self.deposit_wei}


class SealedCount(Record):
    """How many commitments there ever were."""

    prefix: ClassVar[bytes] = b"H"
    count: Uint = 0

    def key(self) -> bytes:
        return self.prefix


def sealed_key(holder: str, commitment: bytes) -> bytes:
    """State key of a commitment. It is the holder's own: a copy of it by another is another's."""
    return SealedRecord.prefix + bytes.fromhex(holder[2:]) + commitment

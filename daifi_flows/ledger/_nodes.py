"""Records of nodes beside their accounts: whose a registered BLS key is."""

from __future__ import annotations

from typing import ClassVar

from daifi_flows.cnft import Address, Bytes48
from daifi_flows.ledger._records import Record

__all__ = ["BlsKeyRecord", "bls_key_key"]


class BlsKeyRecord(Record):
    """The one node that a BLS public key is registered for.

    A proof of possession can be copied from the chain, so it does not tell its maker from
    whoever read it; that a key has one owner does.
    """

    prefix: ClassVar[bytes] = b"k"
    public: Bytes48
    owner: Address

    def key(self) -> bytes:
        return bls_key_key(self.public)


def bls_key_key(public: bytes) -> bytes:
    """State key of a registered BLS key."""
    return BlsKeyRecord.prefix + public

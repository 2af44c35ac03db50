"""Nodes beside their accounts: whose a registered BLS key is, and how it is proven."""

from __future__ import annotations

from typing import ClassVar

from daifi_flows.cnft import Address, Bytes48
from daifi_flows.keys import BlsKey, possession_message, verify_bls
from daifi_flows.ledger._records import Record

__all__ = ["BlsKeyRecord", "bls_key_key", "node_key_proven", "prove_node_key"]


class BlsKeyRecord(Record):
    """The one node that a BLS public key is registered for."""

    prefix: ClassVar[bytes] = b"k"
    public: Bytes48
    owner: Address

    def key(self) -> bytes:
        return bls_key_key(self.public)


def bls_key_key(public: bytes) -> bytes:
    """State key of a registered BLS key."""
    return BlsKeyRecord.prefix + public


def prove_node_key(key: BlsKey, address: str) -> bytes:
    """What a node registers its BLS key with, 96 bytes: the key's signature over

    ``"daifi/possession/1" ‖ public key ‖ address``

    A proof of possession that names nobody could be copied from the chain, or from a transaction
    on its way there, and the key be registered for whoever copied it. A seat that its account
    registered is proven by this; others by :meth:`~daifi_flows.keys.BlsKey.prove_possession`.
    """
    return key.sign(possession_message(key.public, address))


def node_key_proven(public: bytes, address: str, proof: bytes) -> bool:
    """Whether ``proof`` shows that who holds ``public``'s secret registers it for an account."""
    return verify_bls(public, possession_message(public, address), proof)

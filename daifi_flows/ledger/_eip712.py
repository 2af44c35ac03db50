"""Typed-data hashing (EIP-712): the ledger's domain and the words of a struct.

Hand-built because it is on the path of every transaction; tests compare it with eth_account.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from daifi_flows.encoding import keccak256

__all__ = ["domain_separator", "word"]

_DOMAIN_TYPE: Final = b"EIP712Domain(string name,string version,bytes32 salt)"


@lru_cache(maxsize=64)
def domain_separator(ledger_id: bytes) -> bytes:
    """Hash of the domain ``name "daifi", version "1", salt ledger_id``, 32 bytes."""
    return keccak256(keccak256(_DOMAIN_TYPE) + keccak256(b"daifi") + keccak256(b"1") + ledger_id)


def word(kind: str, value: Any) -> bytes:
    """One 32-byte word of EIP-712's encodeData."""
    match kind:
        case "address":
            return bytes(12) + bytes.fromhex(value[2:])
        case "uint64" | "uint256":
            return int(value).to_bytes(32, "big")
        case "bytes32":
            return bytes(value)
        case "bytes":
            return keccak256(bytes(value))
        case "string":
            return keccak256(str(value).encode())
        case "string[]":
            return keccak256(b"".join(keccak256(item.encode()) for item in value))
        case _:
            raise AssertionError(f"no encoding for EIP-712 type {kind}")

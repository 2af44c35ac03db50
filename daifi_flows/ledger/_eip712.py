"""Typed-data hashing (EIP-712): the ledger's domain, and structs derived from a noun's fields.

Hand-built because it is on the path of every transaction; tests compare it with eth_account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, get_args, get_origin

from annotated_types import MaxLen, MinLen

from daifi_flows.cnft import Address, Noun
from daifi_flows.encoding import keccak256

__all__ = ["Member", "domain_separator", "members"]

_DOMAIN_TYPE: Final = b"EIP712Domain(string name,string version,bytes32 salt)"
_ADDRESS: Final = get_args(Address)[1]
"""What tells an address from any other text."""


@lru_cache(maxsize=64)
def domain_separator(ledger_id: bytes) -> bytes:
    """Hash of the domain ``name "daifi", version "1", salt ledger_id``, 32 bytes."""
    return keccak256(keccak256(_DOMAIN_TYPE) + keccak256(b"daifi") + keccak256(b"1") + ledger_id)


class Member(NamedTuple):
    """One member of a struct.

    ``word`` gives the 32 bytes of encodeData for a value; ``wallet`` the value as a wallet takes
    it in ``eth_signTypedData_v4``.
    """

    field: str
    name: str
    type: str
    word: Callable[[Any], bytes]
    wallet: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _address(value: str) -> bytes:
    return bytes(12) + bytes.fromhex(value[2:])


def _uint(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _text(value: str) -> bytes:
    return keccak256(str(value).encode())


def _noun(value: Noun) -> bytes:
    return keccak256(value.canonical())


_Atom: TypeAlias = tuple[str, Callable[[Any], bytes], Callable[[Any], Any]]


def _atom(field: str, annotation: Any, bounds: Sequence[Any]) -> _Atom:
    """EIP-712 type, word and wallet form of one field's annotation.

    Raises:
        TypeError: the annotation has no typed-data form.
    """
    if get_origin(annotation) is Annotated:
        annotation, *bounds = get_args(annotation)
    if get_origin(annotation) is tuple:
        inner, *rest = get_args(annotation)
        if rest != [...]:
            raise TypeError(f"{field}: a fixed tuple has no EIP-712 type; use a noun")
        kind, word, wallet = _atom(field, inner, ())
        return (
            f"{kind}[]",
            lambda items: keccak256(b"".join(word(item) for item in items)),
            lambda items: [wallet(item) for item in items],
        )
    if not isinstance(annotation, type):
        raise TypeError(f"{field}: {annotation} has no EIP-712 type; if optional, use a zero value")
    if issubclass(annotation, Noun):
        return "bytes", _noun, lambda noun: noun.canonical()
    if issubclass(annotation, Enum):
        return "string", _text, lambda value: value.value
    if issubclass(annotation, str):
        return ("address", _address, _same) if _ADDRESS in bounds else ("string", _text, _same)
    if issubclass(annotation, int):
        return ("uint256" if field.endswith("_wei") else "uint64"), _uint, _same
    if issubclass(annotation, bytes):
        return ("bytes32", _same, _same) if _is_32(bounds) else ("bytes", keccak256, _same)
    raise TypeError(f"{field}: {annotation} has no EIP-712 type")


def _is_32(bounds: Sequence[Any]) -> bool:
    found: list[Any] = []
    for bound in bounds:
        found += getattr(bound, "metadata", [bound])
    return MinLen(32) in found and MaxLen(32) in found


def _camel(field: str) -> str:
    first, *rest = field.removesuffix("_wei").split("_")
    return first + "".join(part.capitalize() for part in rest)


@lru_cache(maxsize=256)
def members(noun: type[Noun]) -> tuple[Member, ...]:
    """The struct's members: all fields but ``signature``, in the order they are declared.

    ``Address`` is ``address``, ``*_wei`` are ``uint256``, other integers ``uint64``, ``Bytes32``
    is ``bytes32``, texts are ``string``, other byte strings ``bytes``, a noun is ``bytes`` (its
    canonical form), tuples are arrays. Names are in camel case without ``_wei``.

    Raises:
        TypeError: a field has no typed-data form.
    """
    return tuple(
        Member(field, _camel(field), *_atom(field, info.annotation, info.metadata))
        for field, info in noun.model_fields.items()
        if field != "signature"
    )

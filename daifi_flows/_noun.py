"""What every noun is built from: checked field types, one canonical encoding, one JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from daifi_flows.encoding import (
    MAX_CBOR_BYTES,
    canonical,
    checksum_address,
    cid_sha256,
    decode_cbor,
)
from daifi_flows.errors import EncodingError

__all__ = [
    "PPM",
    "Address",
    "Bytes32",
    "Bytes48",
    "Bytes65",
    "Bytes96",
    "Cid",
    "Label",
    "Noun",
    "Ppm",
    "Raw",
    "Uint",
    "Wei",
]

PPM: Final = 1_000_000
"""One, in parts per million."""


def _from_hex(value: Any) -> Any:
    if isinstance(value, str):
        if not value.startswith("0x") or value != value.lower():
            raise ValueError("bytes in JSON are lower-case hex with a 0x prefix")
        return bytes.fromhex(value[2:])
    return value


def _to_wei(value: Any) -> Any:
    if isinstance(value, bytes):
        if len(value) != 32:
            raise ValueError("an amount is 32 bytes, big-endian")
        return int.from_bytes(value, "big")
    if isinstance(value, str):
        if not value.isdecimal() or str(int(value)) != value:
            raise ValueError("an amount in JSON is a decimal text")
        return int(value)
    return value


@lru_cache(maxsize=16_384)  # most addresses come again; together 4 MB
def _checksummed(value: str) -> str:
    try:
        right = checksum_address(bytes.fromhex(value[2:]))
    except ValueError:
        right = ""
    if value != right or len(value) != 42:
        raise ValueError("an address is 0x and 40 hex digits with its EIP-55 checksum")
    return value


@lru_cache(maxsize=8_192)
def _canonical_cid(value: str) -> str:
    try:
        cid_sha256(value)
    except EncodingError as error:
        raise ValueError(str(error)) from error
    return value


Uint = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Ppm = Annotated[int, Field(ge=0, le=PPM, strict=True)]
Wei = Annotated[int, BeforeValidator(_to_wei), Field(ge=0, lt=2**256, strict=True)]
Raw = Annotated[bytes, BeforeValidator(_from_hex), Field(strict=True)]
Bytes32 = Annotated[bytes, BeforeValidator(_from_hex), Field(min_length=32, max_length=32)]
Bytes48 = Annotated[bytes, BeforeValidator(_from_hex), Field(min_length=48, max_length=48)]
Bytes65 = Annotated[bytes, BeforeValidator(_from_hex), Field(min_length=65, max_length=65)]
Bytes96 = Annotated[bytes, BeforeValidator(_from_hex), Field(min_length=96, max_length=96)]
Address = Annotated[str, AfterValidator(_checksummed)]
Cid = Annotated[str, AfterValidator(_canonical_cid)]
Label = Annotated[str, Field(min_length=1, max_length=256)]


class Noun(BaseModel):
    """Base of every shared value: immutable, no unknown fields, one encoding."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="hex")

    max_canonical_bytes: ClassVar[int] = MAX_CBOR_BYTES
    """Largest encoding that :meth:`from_canonical` parses when it is not told otherwise."""

    def plain(self) -> dict[str, Any]:
        """Maps, lists, integers, bytes and text, ready for :func:`encoding.canonical`."""
        values, found = self.__dict__, dict[str, Any]()
        for name, is_wei in _names(type(self)):
            value = values[name]
            kind = type(value)
            if kind is bytes or kind is str:
                found[name] = value
            elif kind is int:
                found[name] = value.to_bytes(32, "big") if is_wei else value
            elif value is not None:
                found[name] = _plain(name, value)
        return found

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed, which are not checked (as pydantic's, but sooner)."""
        if deep or self.__pydantic_extra__ is not None:
            return super().model_copy(update=update, deep=deep)
        copied = object.__new__(type(self))
        _set(copied, "__dict__", {**self.__dict__, **(update or {})})
        # Shared: a set of its own would be half of a record's memory. Nothing here asks which
        # fields were given and which are defaults.
        _set(copied, "__pydantic_fields_set__", self.__pydantic_fields_set__)
        _set(copied, "__pydantic_extra__", None)
        _set(copied, "__pydantic_private__", None)
        return copied

    def canonical(self) -> bytes:
        """The DAG-CBOR that is hashed and signed."""
        return canonical(self.plain())

    @classmethod
    def from_canonical(cls, data: bytes, *, max_bytes: int | None = None) -> Self:
        """Parse what :meth:`canonical` wrote; anything else is refused.

        Raises:
            EncodingError: not canonical, or not this noun.
        """
        limit = cls.max_canonical_bytes if max_bytes is None else max_bytes
        noun = cls.from_plain(decode_cbor(data, max_bytes=limit))
        if noun.canonical() != data:
            raise EncodingError(f"not the canonical form of a {cls.__name__}")
        return noun

    @classmethod
    def from_plain(cls, value: Any) -> Self:
        """Build from maps and lists, hex or bytes.

        Raises:
            EncodingError: a field is missing, unknown or out of range.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "value"
            raise EncodingError(f"not a {cls.__name__}: {where}: {first['msg']}") from error

    def jsonable(self) -> dict[str, Any]:
        """The same value as JSON types: hex for bytes, decimal text for wei."""
        return {
            name: _jsonable(name, value)
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }


_set: Final = object.__setattr__  # nouns refuse to be changed


@lru_cache(maxsize=1024)
def _names(noun: type[Noun]) -> tuple[tuple[str, bool], ...]:
    """A noun's fields, and which of them are amounts."""
    return tuple((name, name.endswith("_wei")) for name in noun.model_fields)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Noun):
        return value.plain()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain(name, item) for item in value]
    if isinstance(value, int) and name.endswith("_wei"):
        return value.to_bytes(32, "big")
    return value


def _jsonable(name: str, value: Any) -> Any:
    if isinstance(value, Noun):
        return value.jsonable()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple | list):
        return [_jsonable(name, item) for item in value]
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, int) and name.endswith("_wei"):
        return str(value)
    return value

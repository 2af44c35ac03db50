"""Canonical bytes, hashes and content ids.

Everything that is hashed or signed is DAG-CBOR (https://ipld.io/specs/codecs/dag-cbor/) of maps,
lists, integers, byte strings and text: no floats, no booleans, no nulls, so that two honest
implementations can never disagree on a byte. Files a person reads (``metadata.json``) use one
canonical JSON form with the same rule. Content ids are CIDv1 with sha2-256 in base32.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Final, cast

import libipld
import tiny_keccak

from daifi_flows.errors import EncodingError

__all__ = [
    "MAX_CBOR_BYTES",
    "canonical",
    "canonical_json",
    "canonical_list",
    "checksum_address",
    "cid_of",
    "cid_sha256",
    "decode_canonical",
    "decode_canonical_json",
    "decode_cbor",
    "keccak256",
    "parse_json",
    "sha256",
    "tagged_hash",
]

MAX_CBOR_BYTES: Final = 64 * 1024 * 1024
"""Largest canonical object decoded from a stranger, in bytes."""

_CODECS: Final = {"raw": 0x55, "dag-pb": 0x70, "dag-cbor": 0x71}


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as used by Ethereum (not SHA3-256), 32 bytes."""
    return tiny_keccak.keccak256(data)


def sha256(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def tagged_hash(tag: str, value: Any) -> bytes:
    """``keccak256(tag ‖ dag-cbor(value))``: domain-separated digest of a canonical value.

    >>> tagged_hash("daifi/task/1", {"a": 1}).hex()[:8]
    'c9951644'
    """
    return keccak256(tag.encode() + canonical(value))


_ATOMS: Final = frozenset({int, str, bytes})
_TEXT: Final = frozenset({str})
_DEEPEST: Final = 64


def _check_plain(value: Any, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise EncodingError(f"value is nested deeper than {_DEEPEST} levels; flatten it")
    if isinstance(value, bool) or value is None or isinstance(value, float):
        raise EncodingError(
            f"{type(value).__name__} {value!r} cannot be hashed: use integers, bytes and text"
        )
    if isinstance(value, int | str | bytes):
        return
    if isinstance(value, dict):
        found = cast("dict[Any, Any]", value)
        # Most maps and lists hold nothing but atoms: a C loop each finds that out.
        if not _TEXT.issuperset(map(type, found)):
            for key in found:
                if not isinstance(key, str):
                    raise EncodingError(f"map key {key!r} is not text")
        items = found.values()
    elif isinstance(value, list | tuple):
        items = cast("list[Any]", value)
    else:
        raise EncodingError(
            f"{type(value).__name__} cannot be hashed: use integers, bytes and text"
        )
    if depth < _DEEPEST and _ATOMS.issuperset(map(type, items)):
        return
    for item in items:
        if depth == _DEEPEST or type(item) not in _ATOMS:
            _check_plain(item, depth + 1)


def canonical(value: Any) -> bytes:
    """DAG-CBOR of maps, lists, integers, bytes and text.

    Raises:
        EncodingError: the value holds a float, boolean, null, a 65-bit integer, or another type.
    """
    _check_plain(value)
    try:
        data = libipld.encode_dag_cbor(value)
    except (ValueError, OverflowError, TypeError) as error:
        raise EncodingError(f"value cannot be encoded as DAG-CBOR: {error}") from error
    return _encode(value) if _TAG in data and _LINK.search(data) else data


# libipld writes a link (tag 42) for bytes that happen to parse as a CID: one hash or signature in
# a few thousand. Ours are bytes, and any other encoder writes them so.
_TAG: Final = b"\xd8\x2a"
_LINK: Final = re.compile(
    rb"\xd8\x2a(?:[\x40-\x57]|\x58.|\x59..|\x5a.{4})\x00[\x01\x12]", re.DOTALL
)


def _encode(value: Any) -> bytes:
    """DAG-CBOR of a value that passed :func:`_check_plain`, links unknown."""
    match value:
        case int():
            return _head(0, value) if value >= 0 else _head(1, -1 - value)
        case bytes():
            return _head(2, len(value)) + value
        case str():
            text = value.encode()
            return _head(3, len(text)) + text
        case dict():
            found = cast("dict[str, Any]", value)
            keys = sorted((len(key.encode()), key.encode(), key) for key in found)
            items = b"".join(_encode(key) + _encode(found[key]) for _, _, key in keys)
            return _head(5, len(found)) + items
        case _:
            return _head(4, len(value)) + b"".join(map(_encode, value))


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    width = next(width for width in (1, 2, 4, 8) if argument < 1 << 8 * width)
    return bytes([major << 5 | 23 + width.bit_length()]) + argument.to_bytes(width, "big")


def canonical_list(items: Sequence[bytes]) -> bytes:
    """DAG-CBOR of a list whose items are encoded already.

    >>> canonical_list([canonical(1), canonical("a")]) == canonical([1, "a"])
    True
    """
    count = len(items)
    if count < 24:
        head = bytes([0x80 | count])
    elif count < 1 << 8:
        head = bytes([0x98, count])
    elif count < 1 << 16:
        head = b"\x99" + count.to_bytes(2, "big")
    else:
        head = b"\x9a" + count.to_bytes(4, "big")
    return head + b"".join(items)


# Libraries of this field raise Python's recursion limit (torch._dynamo, py_ecc), and then a nested
# object of 50 kB overflows the C stack of a parser and kills the process. So nesting is bounded
# before parsing. Few brackets cannot nest deeply: only then is the object walked.
_SHALLOW: Final = 1_000
_MAX_ITEMS: Final = 250_000
"""An empty list takes one byte of CBOR, 64 of memory and a microsecond: items are bounded as well
as bytes. The most there is to say is a corpus of 20,000 passages and 147,456 token ids."""
_CBOR_CONTAINERS: Final = bytes(range(0x80, 0xDC))
_JSON_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def _bound_cbor(data: bytes) -> None:
    """Refuse CBOR nested deeper than any parser's stack holds, or with too many items. Malformed
    bytes pass: the parser, which goes the same way, refuses them."""
    if len(data) <= _MAX_ITEMS:  # else it is walked anyway, byte strings in one step
        brackets = len(data) - len(data.translate(None, _CBOR_CONTAINERS))
        if brackets <= _SHALLOW:
            return
    open_items: list[int] = []
    at = items = 0
    while at < len(data):
        items += 1
        if items > _MAX_ITEMS:
            raise EncodingError(f"object has more than {_MAX_ITEMS} items")
        major, short = data[at] >> 5, data[at] & 31
        at += 1
        if short < 24:
            argument = short
        elif short < 28:
            width = 1 << (short - 24)
            argument = int.from_bytes(data[at : at + width], "big")
            at += width
        else:
            return
        if major in (2, 3):
            at += argument
        elif major >= 4 and major < 7:
            open_items.append({4: argument, 5: 2 * argument, 6: 1}[major])
            if len(open_items) > _SHALLOW:
                raise EncodingError(f"object is nested deeper than {_SHALLOW} levels")
            if argument:
                continue
        while open_items:
            if open_items[-1] > 1:
                open_items[-1] -= 1
                break
            open_items.pop()
        if not open_items:
            return


def _bound_json(data: bytes) -> None:
    """The same for JSON."""
    if data.count(b"[") + data.count(b"{") <= _SHALLOW:
        return
    depth = 0
    for token in _JSON_TOKENS.finditer(data):
        first = data[token.start()]
        depth += (first in b"[{") - (first in b"]}")
        if depth > _SHALLOW:
            raise EncodingError(f"JSON is nested deeper than {_SHALLOW} levels")


def parse_json(data: bytes) -> Any:
    """A stranger's JSON, in any spelling, nested no deeper than 1,000 levels.

    Raises:
        EncodingError: not UTF-8, not JSON, or too deep.
    """
    _bound_json(data)
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"not JSON: {error}") from error


def decode_canonical(data: bytes, *, max_bytes: int = MAX_CBOR_BYTES) -> Any:
    """Parse exactly one canonical object; any other byte string is refused.

    Raises:
        EncodingError: too large, truncated, trailing bytes, not canonical, or forbidden types.
    """
    value = decode_cbor(data, max_bytes=max_bytes)
    if canonical(value) != data:
        raise EncodingError("not canonical DAG-CBOR: it encodes differently")
    return value


def decode_cbor(data: bytes, *, max_bytes: int = MAX_CBOR_BYTES) -> Any:
    """The same for callers that encode what they made of it, and compare that with ``data``: what
    is not canonical or has forbidden types may pass here.

    Raises:
        EncodingError: too large, truncated, trailing bytes, or too deep.
    """
    if len(data) > max_bytes:
        raise EncodingError(f"object of {len(data)} bytes is over the limit of {max_bytes}")
    _bound_cbor(data)
    try:
        return libipld.decode_dag_cbor(bytes(data))
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise EncodingError(f"not canonical DAG-CBOR: {error}") from error


def checksum_address(raw: bytes) -> str:
    """Text of a 20-byte address with the EIP-55 checksum.

    >>> checksum_address(bytes.fromhex("97bda08bdb4ccd6e3dfb2a6db55f424a6cf4d759"))
    '0x97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d759'
    """
    digits = raw.hex()
    marks = keccak256(digits.encode()).hex()
    cased = (d.upper() if m > "7" else d for d, m in zip(digits, marks, strict=False))
    return "0x" + "".join(cased)


def canonical_json(value: Any) -> bytes:
    """One JSON text per value: sorted keys, no spaces, UTF-8, finite numbers, a final newline."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return (text + "\n").encode()
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise EncodingError(f"value cannot be written as canonical JSON: {error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise EncodingError("JSON object repeats a key")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise EncodingError(f"JSON holds {name}, which is not a number")


def decode_canonical_json(data: bytes, *, max_bytes: int = MAX_CBOR_BYTES) -> Any:
    """Parse JSON that must be byte for byte what :func:`canonical_json` writes.

    Raises:
        EncodingError: too large, not UTF-8, not JSON, or another spelling of the same value.
    """
    if len(data) > max_bytes:
        raise EncodingError(f"JSON of {len(data)} bytes is over the limit of {max_bytes}")
    _bound_json(data)
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"not JSON: {error}") from error
    if canonical_json(value) != data:
        raise EncodingError("not canonical JSON: it is spelt differently")
    return value


def cid_of(data: bytes, codec: str = "raw") -> str:
    """CIDv1 (sha2-256, base32 lower case) of a block.

    >>> cid_of(b"")
    'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'
    """
    raw = bytes([0x01, _CODECS[codec], 0x12, 0x20]) + sha256(data)
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


def cid_sha256(cid: str) -> tuple[str, bytes]:
    """Codec name and sha2-256 digest of a CIDv1 text.

    Raises:
        EncodingError: not a canonical CIDv1/sha2-256/base32 text with a known codec.
    """
    if len(cid) != 59 or not cid.startswith("b"):
        raise EncodingError(f"{cid[:80]!r} is not a CIDv1 in base32 with sha2-256")
    body = cid[1:].upper()
    try:
        raw = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError as error:
        raise EncodingError(f"{cid!r} is not base32") from error
    names = {code: name for name, code in _CODECS.items()}
    if raw[0] != 1 or raw[1] not in names or raw[2:4] != b"\x12\x20" or len(raw) != 36:
        raise EncodingError(f"{cid!r} is not a CIDv1 with sha2-256 and a known codec")
    if "b" + base64.b32encode(raw).decode().lower().rstrip("=") != cid:
        raise EncodingError(f"{cid!r} is not in canonical form")
    return names[raw[1]], raw[4:]

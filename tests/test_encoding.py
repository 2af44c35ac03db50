"""Canonical bytes: one value, one spelling; everything else is refused."""

import json
import subprocess
import sys

import libipld
import pytest
from Crypto.Hash import keccak as pycryptodome
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows._noun import Address, Noun
from daifi_flows.encoding import (
    _LINK,
    _encode,
    canonical,
    canonical_json,
    canonical_list,
    checksum_address,
    cid_of,
    cid_sha256,
    decode_canonical,
    decode_canonical_json,
    keccak256,
    sha256,
    tagged_hash,
)
from daifi_flows.errors import EncodingError


class Named(Noun):
    address: Address


plain = st.recursive(
    st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 65_535, 65_536])
def test_a_list_of_encoded_items_is_the_list_encoded(count: int) -> None:
    items = [number % 300 for number in range(count)]
    assert canonical_list([canonical(item) for item in items]) == canonical(items)


@given(plain)
def test_canonical_round_trips_every_plain_value(value: object) -> None:
    assert decode_canonical(canonical(value)) == value


@given(plain)
def test_our_own_encoder_writes_what_the_library_writes(value: object) -> None:
    library = libipld.encode_dag_cbor(value)
    assert _encode(value) == library or _LINK.search(library)


LIKE_A_CID = [
    b"\x01\x55\x12\x20" + bytes(32),
    b"\x12\x20" + bytes(32),
    bytes.fromhex("015b212b222d2e8c8bd4e0a0034f0e281bb511f9b991d14419a39d1bfa449abc")
    + bytes.fromhex("1484a9b017a70310a8584c3838be7a6adf1ad9f125506fa9f487f983996db4bd1c"),
]
"""The last is a signature that a test's key once made."""


@pytest.mark.parametrize("data", LIKE_A_CID)
def test_bytes_that_look_like_a_content_id_are_bytes_like_any(data: bytes) -> None:
    """Else a hash or a signature in a few thousand would be spelt unlike all others, and another
    implementation would come to another digest."""
    assert libipld.encode_dag_cbor(data)[:2] == b"\xd8\x2a", "the library spells it as a link"
    head = bytes([0x58, len(data)])
    assert canonical(data) == head + data
    assert canonical({"a": [data, 1]}) == b"\xa1\x61a\x82" + head + data + b"\x01"
    assert decode_canonical(canonical([data])) == [data]
    with pytest.raises(EncodingError):
        decode_canonical(libipld.encode_dag_cbor(data))


@given(st.sampled_from([b"\x01", b"\x12\x20"]), st.binary(max_size=80))
def test_all_bytes_are_spelt_alike(start: bytes, rest: bytes) -> None:
    data = start + rest
    head = bytes([0x40 | len(data)]) if len(data) < 24 else bytes([0x58, len(data)])
    assert canonical(data) == head + data


@given(st.binary(max_size=64))
def test_random_bytes_decode_to_their_own_spelling_or_are_refused(data: bytes) -> None:
    try:
        value = decode_canonical(data)
    except EncodingError:
        return
    assert canonical(value) == data


@pytest.mark.parametrize(
    "value",
    [1.5, True, None, {"a": [1, 0.0]}, {1: "a"}, 2**64, -(2**64) - 1, {1, 2}, object()],
)
def test_what_two_machines_could_spell_differently_is_refused(value: object) -> None:
    with pytest.raises(EncodingError):
        canonical(value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("indefinite length", b"\x9f\xff"),
        ("long form of a short integer", b"\x18\x01"),
        ("keys out of order", b"\xa2\x61b\x01\x61a\x01"),
        ("repeated key", b"\xa2\x61a\x01\x61a\x01"),
        ("trailing byte", b"\x01\x01"),
        ("float", b"\xfb" + b"\x00" * 8),
        ("true", b"\xf5"),
        ("null", b"\xf6"),
        ("ten gigabyte length", b"\x5b\x00\x00\x00\x02\x54\x0b\xe4\x00"),
        ("deep nesting", b"\x81" * 100_000 + b"\x01"),
        ("empty", b""),
    ],
)
def test_foreign_cbor_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(EncodingError):
        decode_canonical(data)


def test_objects_over_the_limit_are_refused_before_parsing() -> None:
    with pytest.raises(EncodingError, match="over the limit"):
        decode_canonical(canonical(b"x" * 100), max_bytes=50)


@given(
    st.recursive(
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=10,
    )
)
def test_json_round_trips_and_has_one_spelling(value: object) -> None:
    try:
        data = canonical_json(value)
    except EncodingError:  # lone surrogates are not UTF-8
        return
    assert decode_canonical_json(data) == value
    pretty = json.dumps(value, indent=1).encode()
    if pretty != data:
        with pytest.raises(EncodingError):
            decode_canonical_json(pretty)


@pytest.mark.parametrize(
    "data",
    [b'{"a":1,"a":1}\n', b"NaN\n", b"Infinity\n", b"1", b" 1\n", b"\xff\n", b"[" * 100_000],
)
def test_foreign_json_is_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        decode_canonical_json(data)


def test_cids_match_the_field() -> None:
    # The CID of the empty raw block, as every IPFS tool prints it.
    assert cid_of(b"") == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert cid_sha256(cid_of(b"x", "dag-cbor")) == ("dag-cbor", sha256(b"x"))


@given(st.text(max_size=80))
def test_random_text_is_no_cid(text: str) -> None:
    with pytest.raises(EncodingError):
        cid_sha256(text)


def test_keccak_is_ethereums() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"").hex() == empty


@given(st.integers(0, 700), st.integers(0, 255))
def test_keccak_agrees_with_another_implementation(length: int, byte: int) -> None:
    data = bytes((byte + i) % 256 for i in range(length))
    assert keccak256(data) == pycryptodome.new(data=data, digest_bits=256).digest()


def test_tags_separate_domains() -> None:
    assert tagged_hash("a", {"x": 1}) != tagged_hash("b", {"x": 1})


@pytest.mark.parametrize(
    "data",
    [
        b"\x81" * 200_000 + b"\x01",
        b"\xa1\x61a" * 100_000 + b"\x01",
        b"\xd8\x2a" * 100_000 + b"\x01",
        b"\x82\x01" * 100_000 + b"\x01",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'["\\"[",' * 100_000,
    ],
    ids=["lists", "maps", "tags", "pairs", "json lists", "json maps", "json strings"],
)
def test_deep_nesting_cannot_kill_a_process_with_a_high_recursion_limit(data: bytes) -> None:
    """torch and others raise the limit; the parsers' C stacks do not grow with it."""
    code = (
        "import sys; sys.setrecursionlimit(10**7)\n"
        "from daifi_flows.encoding import decode_canonical, decode_canonical_json, parse_json\n"
        "from daifi_flows.errors import EncodingError\n"
        "data = sys.stdin.buffer.read()\n"
        "for parse in (decode_canonical, decode_canonical_json, parse_json):\n"
        "    try: parse(data)\n"
        "    except EncodingError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.split() == [b"refused"] * 3


def test_wide_objects_are_not_deep_ones() -> None:
    wide = {"list": [[1, b"x"]] * 5_000, "text": "[{" * 5_000}
    assert decode_canonical(canonical(wide)) == wide
    flat = {"list": [[1]] * 5_000, "text": "[{" * 5_000}
    assert decode_canonical_json(canonical_json(flat)) == flat


@given(st.binary(min_size=20, max_size=20))
def test_an_address_has_the_checksum_that_ethereum_gives_it(raw: bytes) -> None:
    assert checksum_address(raw) == to_checksum_address(raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "0x97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d75",
        "0x97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d75900",
        "0x97bda08bdb4ccd6e3dfb2a6db55f424a6cf4d759",
        "0X97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d759",
        "97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d759",
        "0x97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d 59",
        "0x97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d75G",
    ],
)
def test_an_address_has_one_spelling(text: str) -> None:
    Named(address="0x97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d759")
    with pytest.raises(EncodingError):
        Named.from_plain({"address": text})

"""Hostile variants of honest bytes, and a meter of what handling them costs.

Two sources for every honest encoding: :func:`catalogue`, the same variants on every run, and
:func:`mutations`, a hypothesis strategy. ``make fuzz`` runs far more of the latter, and there the
meter also holds every input to its limits of time and memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from daifi_flows.encoding import decode_canonical
from daifi_flows.errors import EncodingError
from daifi_flows.proofs import Outcome, Verdict

LONG = "DAIFI_FUZZ_CASES" in os.environ
CASES = int(os.environ.get("DAIFI_FUZZ_CASES", "60"))
MAX_SECONDS = 1.0
MAX_MIB = 100.0
CORPUS = Path(__file__).with_name("corpus")
CLEAR_REFS = Path("/proc/self/clear_refs")
T = TypeVar("T")
FOUND = Path(os.environ.get("DAIFI_FUZZ_FOUND", "runs/fuzz"))


def cases(share: float = 1.0) -> settings:
    """Hypothesis settings: ``share`` of the run's examples, for targets that cost more."""
    return settings(
        max_examples=max(10, round(CASES * share)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


# What an input may cost


def _status(field: str) -> float:
    """A memory field of this process in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return math.nan


def _worked() -> float:
    """Processor seconds of this process and its ended children: what others do does not count."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def metered(target: str, data: bytes, run: Callable[[], T]) -> T:
    """What ``run`` gives; fails when it takes more than a second or 100 MiB above what was held.

    Only in long runs: a shared machine makes timed assertions in the test suite unreliable. There,
    what is over a limit is tried twice more. The input lies in ``runs/fuzz/TARGET.current``
    meanwhile, for the case that the process dies of it; one that fails is kept as
    ``runs/fuzz/TARGET/HASH.bin``.
    """
    if not LONG:
        return run()
    FOUND.mkdir(parents=True, exist_ok=True)
    current = FOUND / f"{target}.current"
    current.write_bytes(data)
    try:
        costs: list[str] = []
        while len(costs) < 3:
            CLEAR_REFS.write_text("5")  # the peak starts from here
            before, started, worked = _status("VmRSS"), time.perf_counter(), _worked()
            result = run()
            waited, mib = time.perf_counter() - started, _status("VmHWM") - before
            seconds = min(waited, _worked() - worked) if waited < 10 else waited
            if seconds <= MAX_SECONDS and mib <= MAX_MIB:
                current.unlink()
                return result
            costs.append(f"{seconds:.2f} s and {mib:.0f} MiB")
        raise TooDear(f"{target}, {len(data)} bytes: {'; '.join(costs)}")
    except BaseException:
        keep = FOUND / target
        keep.mkdir(exist_ok=True)
        (keep / f"{sha256(data).hexdigest()[:12]}.bin").write_bytes(data)
        raise


class TooDear(AssertionError):
    """An input cost more than the limits allow."""


def settle(verdict: Verdict, *allowed: Outcome) -> Verdict:
    """The verdict, when it is one of ``allowed`` (``INVALID`` alone by default) and was meant.

    ``verify_proof`` turns whatever a scheme raises into ``CANNOT_TELL``: that is its last line of
    defence, and a bug of the scheme.
    """
    assert isinstance(verdict, Verdict)
    assert not verdict.reason.startswith("verification failed here"), verdict.reason
    assert verdict.outcome in (allowed or (Outcome.INVALID,)), verdict
    assert 0 <= verdict.confidence_ppm <= 1_000_000
    assert len(verdict.reason) < 2_000
    return verdict


@dataclass(frozen=True)
class Target:
    """Something that reads a stranger's bytes.

    Attributes:
        honest: what an honest party sends.
        feed: hands over other bytes; returns quietly when they were refused as they should be,
            raises anything else when not.
    """

    name: str
    honest: bytes
    feed: Callable[[bytes], None]

    def attack(self, data: bytes) -> None:
        """Feed hostile bytes, metered."""
        if data == self.honest:
            return
        metered(self.name, data, lambda: self.feed(data))


# CBOR that no honest encoder writes


@dataclass(frozen=True)
class Raw:
    """Bytes to put in place as they are."""

    data: bytes

    def __repr__(self) -> str:
        return f"Raw({self.data[:12].hex()}…{len(self.data)})"


@dataclass(frozen=True)
class Pairs:
    """A map with keys in this order, repeated ones included."""

    items: tuple[tuple[Any, Any], ...]


def head(major: int, argument: int, width: int | None = None) -> bytes:
    """A CBOR header (RFC 8949 section 3); ``width`` bytes of argument even where fewer do."""
    if width is None:
        if argument < 24:
            return bytes([major << 5 | argument])
        width = next(w for w in (1, 2, 4, 8) if argument < 1 << 8 * w)
    return bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[width]]) + argument.to_bytes(
        width, "big"
    )


def lax_cbor(value: Any) -> bytes:
    """CBOR of anything, canonical or not."""
    if isinstance(value, Raw):
        return value.data
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, int):
        major, size = (0, value) if value >= 0 else (1, -1 - value)
        if size < 1 << 64:
            return head(major, size)
        text = size.to_bytes((size.bit_length() + 7) // 8, "big")
        return head(6, 2 + major) + head(2, len(text)) + text
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return head(3, len(text)) + text
    if isinstance(value, list | tuple):
        return head(4, len(value)) + b"".join(map(lax_cbor, value))
    if isinstance(value, dict):
        value = Pairs(tuple(value.items()))
    assert isinstance(value, Pairs)
    return head(5, len(value.items)) + b"".join(
        lax_cbor(key) + lax_cbor(item) for key, item in value.items
    )


_LINK = bytes([0x00, 0x01, 0x71, 0x12, 0x20]) + bytes(32)
TEN_GB = 10**10

HEADERS: dict[str, bytes] = {
    "10 GB of bytes": head(2, TEN_GB),
    "10 GB of text": head(3, TEN_GB),
    "10 G items": head(4, TEN_GB),
    "10 G pairs": head(5, TEN_GB),
    "2^64-1 bytes": head(2, 2**64 - 1),
    "2^64-1 items": head(4, 2**64 - 1),
    "2^63 pairs": head(5, 2**63),
    "4 GB of bytes": head(2, 2**32 - 1),
    "bytes of no stated length": b"\x5f\x41\x00\xff",
    "items of no stated number": b"\x9f\x00\xff",
    "pairs of no stated number": b"\xbf\x61a\x00\xff",
    "a lone break": b"\xff",
    "a reserved header": b"\x1c",
    "undefined": b"\xf7",
    "simple(255)": b"\xf8\xff",
    "half float": b"\xf9\x7e\x00",
    "single float": b"\xfa\x7f\x80\x00\x00",
    "a link": b"\xd8\x2a" + head(2, len(_LINK)) + _LINK,
    "an empty link": b"\xd8\x2a\x40",
    "a link to 10 GB": b"\xd8\x2a" + head(2, TEN_GB),
    "another tag": b"\xc0\x61a",
    "a number of 1000 bytes": b"\xc2" + head(2, 1000) + b"\xff" * 1000,
    "an integer in nine bytes": head(0, 1, 8),
    "a length in nine bytes": head(2, 1, 8) + b"\0",
    "text that is not UTF-8": b"\x62\xff\xfe",
    "a surrogate in text": b"\x63\xed\xa0\x80",
}

BOMBS: dict[str, bytes] = {
    "5,000 nested lists": b"\x81" * 5_000,
    "999 nested lists": b"\x81" * 999 + b"\x00",
    "60 nested lists": b"\x81" * 60 + b"\x00",
    "400,000 nested lists": b"\x81" * 400_000,
    "5,000 nested maps": b"\xa1\x61a" * 5_000,
    "5,000 nested tags": b"\xd8\x2a" * 5_000,
    "700,000 empty lists": head(4, 700_000) + b"\x80" * 700_000,
    "700,000 empty maps": head(4, 700_000) + b"\xa0" * 700_000,
    "1,000,000 lists too few": head(4, 2_000_000) + b"\x80" * 1_000_000,
    "30,000 keys": head(5, 30_000) + b"".join(b"\x64" + b"%04x" % i + b"\0" for i in range(30_000)),
    "a megabyte of zeros in a list": head(4, 10**6) + bytes(10**6),
}

VALUES: tuple[Any, ...] = (
    -1,
    0,
    1,
    255,
    65_497,
    2**20,
    2**31,
    2**53 + 1,
    2**63,
    2**64 - 1,
    -(2**64),
    2**300,
    0.5,
    1.0,
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    1e308,
    True,
    None,
    b"",
    b"\0",
    b"\0" * 32,
    b"\xff" * 32,
    b"\0" * 258,
    bytes(100_000),
    "",
    "1",
    "\0",
    "é" * 1_000,
    [],
    [0] * 1_000,
    [[0]],
    [[]],
    {},
    {"": 0},
    {"prompt_tokens": []},
)

Path_ = tuple[Any, ...]


def paths(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where something can be replaced: of long lists the first, middle and last."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*at, key))
    elif isinstance(value, list) and value:
        for index in sorted({0, len(value) // 2, len(value) - 1}):
            yield from paths(value[index], (*at, index))


def replaced(value: Any, path: Path_, change: Callable[[Any], Any]) -> Any:
    """A copy of ``value`` with ``change`` made at ``path``."""
    if not path:
        return change(value)
    first, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {k: replaced(v, rest, change) if k == first else v for k, v in value.items()}
    return [replaced(v, rest, change) if i == first else v for i, v in enumerate(value)]


def _reshapes(value: Any) -> Iterator[tuple[str, Any]]:
    """A value of the same type, out of shape."""
    if isinstance(value, bytes):
        yield from {
            "zeroed": bytes(len(value)),
            "all ones": b"\xff" * len(value),
            "one byte less": value[:-1],
            "one byte more": value + b"\0",
            "32 bytes less": value[:-32],
            "32 bytes more": value + bytes(32),
            "doubled": value * 2,
            "backwards": value[::-1],
        }.items()
    elif isinstance(value, str):
        yield from {"longer": value + "\0", "upper": value.upper()}.items()
    elif isinstance(value, list):
        yield from {
            "one item less": value[:-1],
            "one item more": value + value[-1:],
            "10,000 items": (value * 10_000)[:10_000],
            "backwards": value[::-1],
        }.items()
    elif isinstance(value, dict):
        pairs = tuple(value.items())
        yield "an unknown key", value | {"zz": 0}
        yield "keys backwards", Pairs(pairs[::-1])
        for key, item in pairs:
            yield f"without {key}", {k: v for k, v in value.items() if k != key}
            yield f"{key} twice", Pairs((*pairs, (key, item)))
            yield (
                f"{key} as bytes",
                Pairs(tuple((k.encode() if k == key else k, v) for k, v in pairs)),
            )
    elif type(value) is int:
        yield "in nine bytes", Raw(head(0 if value >= 0 else 1, abs(value), 8))
        yield "as a float", float(value)
        yield "as text", str(value)
        yield "one more", value + 1
        yield "negated", -value


def _bytes_variants(honest: bytes) -> Iterator[tuple[str, bytes]]:
    size = len(honest)
    yield "nothing", b""
    for length in sorted({1, 32, 64, 258, 4096, size, size + 1}):
        yield f"{length} zeros", bytes(length)
        yield f"{length} ones", b"\xff" * length
    yield "a megabyte of zeros", bytes(1 << 20)
    yield "a megabyte of ones", b"\xff" * (1 << 20)
    for keep in sorted({1, 2, size // 3, size // 2, size - 32, size - 1} & set(range(size))):
        yield f"the first {keep} bytes", honest[:keep]
    yield "without its first byte", honest[1:]
    for more in (b"\0", b"\xff", bytes(32), honest):
        yield f"{len(more)} bytes appended", honest + more
    for at in sorted({size * i // 16 for i in range(16)}):
        flipped = bytearray(honest)
        if flipped:
            flipped[at] ^= 1 << at % 8
            yield f"byte {at} flipped", bytes(flipped)


def catalogue(honest: bytes) -> Iterator[tuple[str, bytes]]:
    """The same hostile variants on every run, named. CBOR-aware where ``honest`` is CBOR."""
    yield from _bytes_variants(honest)
    yield from HEADERS.items()
    yield from BOMBS.items()
    try:
        tree = decode_canonical(honest)
    except EncodingError:
        return
    for path in paths(tree):
        where = "/".join(map(str, path)) or "top"
        for value in VALUES:
            text = repr(value)
            yield f"{where} = {text[:40]}", lax_cbor(replaced(tree, path, lambda _, v=value: v))
        for name, data in HEADERS.items():
            yield (
                f"{where} = {name}",
                lax_cbor(replaced(tree, path, lambda _, d=data: Raw(d))),
            )
        shapes: list[tuple[str, Any]] = []
        replaced(tree, path, lambda old, into=shapes: into.extend(_reshapes(old)))
        for name, new in shapes:
            yield f"{where} {name}", lax_cbor(replaced(tree, path, lambda _, n=new: n))


def json_catalogue(honest: bytes) -> Iterator[tuple[str, bytes]]:
    """The same for JSON."""
    yield from _bytes_variants(honest)
    yield "nested lists", b"[" * 100_000
    yield "nested maps", b'{"a":' * 50_000
    yield "999 nested lists", b"[" * 999 + b"]" * 999 + b"\n"
    yield "a long number", b"9" * 100_000 + b"\n"
    yield "a long fraction", b"0." + b"1" * 100_000 + b"\n"
    yield "a large exponent", b"1e999999999\n"
    yield "an exponent to zero", b"1e-999999999\n"
    yield "not a number", b"NaN\n"
    yield "infinity", b"-Infinity\n"
    yield "a byte order mark", b"\xef\xbb\xbf" + honest
    yield "a million lists", b"[" + b"[]," * 333_333 + b"[]]\n"
    yield "a million zeros", b"[" + b"0," * 500_000 + b"0]\n"
    yield "eight megabytes of lists", b"[" + b"[]," * 2_700_000 + b"[]]\n"
    yield "eight megabytes in a map", b'{"outputs":{"y":[' + b"[]," * 2_700_000 + b"[]]}}\n"
    yield "the same as inputs", b'{"inputs":{"x":[' + b"[]," * 2_700_000 + b"[]]}}\n"
    yield "spaces", honest.replace(b":", b": ")
    yield "no final newline", honest.rstrip(b"\n")
    try:
        tree = json.loads(honest)
    except ValueError:
        return
    for path in paths(tree):
        where = "/".join(map(str, path)) or "top"
        for value in (*VALUES, "\ud800", 10**4_000):
            if isinstance(value, bytes):
                continue
            new = replaced(tree, path, lambda _, v=value: v)
            yield f"{where} = {repr(value)[:40]}", lax_json(new)
        shapes: list[tuple[str, Any]] = []
        replaced(tree, path, lambda old, into=shapes: into.extend(_reshapes(old)))
        for name, new in shapes:
            if not isinstance(new, Pairs | Raw | bytes):
                yield f"{where} {name}", lax_json(replaced(tree, path, lambda _, n=new: n))


def lax_json(value: Any) -> bytes:
    """Canonical spelling, but NaN, infinities and lone surrogates go through."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return (text + "\n").encode("utf-8", "surrogatepass")


# The same, drawn


@st.composite
def mutations(draw: st.DrawFn, honest: bytes) -> bytes:
    """Hostile bytes near an honest encoding, or far from it."""
    kind = draw(st.sampled_from(["tree", "tree", "flip", "splice", "cut", "repeat", "random"]))
    if kind == "tree":
        try:
            tree = decode_canonical(honest)
        except EncodingError:
            kind = "flip"
        else:
            for _ in range(draw(st.integers(1, 3))):
                path = draw(st.sampled_from(list(paths(tree))))
                new = draw(_values)
                tree = replaced(tree, path, lambda _, n=new: n)
                if not isinstance(tree, dict | list):
                    break
            return lax_cbor(tree)
    if kind == "random" or not honest:
        return draw(st.binary(max_size=600))
    data = bytearray(honest)
    if kind == "flip":
        for _ in range(draw(st.integers(1, 8))):
            data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
    elif kind == "splice":
        at = draw(st.integers(0, len(data)))
        part = draw(st.sampled_from([*HEADERS.values()]) | st.binary(min_size=1, max_size=40))
        data[at : at + draw(st.sampled_from([0, len(part)]))] = part
    elif kind == "cut":
        start = draw(st.integers(0, len(data)))
        del data[start : start + draw(st.integers(1, 64))]
    else:
        start = draw(st.integers(0, len(data) - 1))
        part = data[start : start + draw(st.integers(1, 64))]
        data[start:start] = part * draw(st.integers(1, 20))
    return bytes(data)


_values = st.recursive(
    st.sampled_from(VALUES)
    | st.sampled_from([*HEADERS.values()]).map(Raw)
    | st.integers(-(2**70), 2**70)
    | st.binary(max_size=300)
    | st.text(max_size=20)
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.lists(st.tuples(st.text(max_size=3), inner), max_size=4).map(
            lambda pairs: Pairs(tuple(pairs))
        )
    ),
    max_leaves=8,
)


@st.composite
def json_mutations(draw: st.DrawFn, honest: bytes) -> bytes:
    """Hostile JSON near an honest text."""
    if draw(st.booleans()):
        tree = json.loads(honest)
        for _ in range(draw(st.integers(1, 3))):
            path = draw(st.sampled_from(list(paths(tree))))
            new = draw(_json_values)
            tree = replaced(tree, path, lambda _, n=new: n)
            if not isinstance(tree, dict | list):
                break
        return lax_json(tree)
    data = bytearray(honest)
    at = draw(st.integers(0, len(data)))
    part = draw(st.binary(max_size=8) | st.sampled_from([b"[", b"{", b'"', b"1e999", b"NaN", b"-"]))
    data[at : at + draw(st.integers(0, 8))] = part
    return bytes(data)


_json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([value for value in VALUES if not isinstance(value, bytes)]),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)

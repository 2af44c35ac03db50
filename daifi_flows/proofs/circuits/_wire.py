"""How many parts an ONNX file has, before protobuf makes an object of each.

An empty node takes two bytes of the file and a hundred of memory: 8 MiB would take 800.
"""

from __future__ import annotations

from typing import Final

from daifi_flows.errors import EncodingError

__all__ = ["check_wire"]

MAX_PARTS: Final = 1 << 16
MAX_OTHER_BYTES: Final = 1 << 16
"""Of messages that no model needs which can be proven: they are not looked into."""

_OTHER: Final = "other"
_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 8: "flat", 14: "flat", 20: _OTHER, 25: _OTHER, 26: _OTHER},
    "graph": {
        **{1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
        **{14: _OTHER, 15: _OTHER, 16: "flat"},
    },
    "node": {5: "attribute", 9: "flat", 10: _OTHER},
    "attribute": {
        **{5: "tensor", 6: _OTHER, 10: "tensor", 11: _OTHER},
        **{14: _OTHER, 15: _OTHER, 22: _OTHER, 23: _OTHER},
    },
    "tensor": {3: _OTHER, 13: "flat", 16: "flat"},
    "value": {2: "type", 4: "flat"},
    "type": {1: "shaped", 4: _OTHER, 5: _OTHER, 7: _OTHER, 8: _OTHER, 9: _OTHER},
    "shaped": {2: "shape"},
    "shape": {1: "flat"},
    "flat": {},
}
"""Which fields of each message hold messages themselves (onnx.proto, IR version 13)."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_wire(data: bytes) -> None:
    """Refuse an ONNX file with more parts than a model has that can be proven.

    Raises:
        EncodingError: so many fields, so many bytes of other messages, or no protobuf at all.
    """
    parts = other = 0
    todo: list[tuple[str, int, int]] = [("model", 0, len(data))]
    while todo:
        kind, at, end = todo.pop()
        messages = _MESSAGES[kind]
        while at < end:
            parts += 1
            if parts > MAX_PARTS:
                raise EncodingError(f"the model has over {MAX_PARTS} parts")
            key, at = _varint(data, at, end)
            wire, inside = key & 7, messages.get(key >> 3)
            if wire == _VARINT:
                _, at = _varint(data, at, end)
                continue
            if wire == _BYTES:
                size, at = _varint(data, at, end)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise EncodingError("the model is not an ONNX file: it has groups")
            if size > end - at:
                raise EncodingError("the model is not an ONNX file: it is cut off")
            if inside == _OTHER:
                other += size
            elif inside is not None and wire == _BYTES:
                todo.append((inside, at, at + size))
            at += size
    if other > MAX_OTHER_BYTES:
        raise EncodingError(f"the model has over {MAX_OTHER_BYTES} bytes of unused messages")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise EncodingError("the model is not an ONNX file: a number does not end")

"""What a step is asked to do: the model, the content, the spec a buyer signs."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from pydantic import Field

from daifi_flows._noun import PPM, Address, Bytes32, Cid, Label, Noun, Ppm, Raw, Uint, Wei
from daifi_flows.encoding import canonical_json, cid_of, keccak256, parse_json, tagged_hash
from daifi_flows.errors import EncodingError

__all__ = [
    "Content",
    "ModelRef",
    "Review",
    "Sampling",
    "TaskSpec",
    "token_id_of",
]


class ModelRef(Noun):
    """Which weights, run how. ``digest`` is the Merkle root over the model's files."""

    name: Label
    digest: Bytes32
    engine: Label
    precision: Label


class Sampling(Noun):
    """Token t is ``argmax(logits / temperature + gumbel(seed, t))``; plain argmax at 0.

    Attributes:
        top_k: draw from the most probable ``top_k`` tokens only; absent: from all.
        top_p_ppm: draw from the fewest tokens whose probability reaches this share (nucleus
            sampling, Holtzman et al., arXiv 1904.09751); absent: from all.
    """

    temperature_ppm: Uint = 0
    seed: Uint = 0
    max_tokens: Uint = 96
    top_k: Annotated[int, Field(ge=1, lt=2**31, strict=True)] | None = None
    top_p_ppm: Annotated[int, Field(ge=1, le=PPM, strict=True)] | None = None


class Review(Noun):
    """How strictly a step is checked.

    Attributes:
        attempts: bounds how many nodes may try.
        always: 1: the committee reviews whatever comes of it; absent: as often as the ledger's
            review rate says (:mod:`daifi_flows.review_rate`).
    """

    min_confidence_ppm: Ppm = 990_000
    attempts: Annotated[int, Field(ge=1, le=16, strict=True)] = 3
    always: Annotated[int, Field(ge=1, le=1, strict=True)] | None = None


class Content(Noun):
    """An input or output: typed bytes with a salt, so that its CID is a hiding commitment."""

    media_type: Label
    data: Raw
    salt: Bytes32

    @classmethod
    def text(cls, value: str, salt: bytes | None = None) -> Content:
        """UTF-8 text."""
        salt = salt if salt is not None else secrets.token_bytes(32)
        return cls(media_type="text/plain;charset=utf-8", data=value.encode(), salt=salt)

    @classmethod
    def json_value(cls, value: Any, salt: bytes | None = None) -> Content:
        """Any JSON value, in its canonical spelling (finite floats allowed).

        Raises:
            EncodingError: the value is not JSON.
        """
        salt = salt if salt is not None else secrets.token_bytes(32)
        return cls(media_type="application/json", data=canonical_json(value), salt=salt)

    @property
    def cid(self) -> str:
        """CIDv1 of the salted block."""
        return cid_of(self.canonical(), "dag-cbor")

    def value(self) -> Any:
        """The text, the JSON value, or the bytes.

        Raises:
            EncodingError: the bytes are not what the media type says.
        """
        try:
            if self.media_type == "application/json":
                return parse_json(self.data)
            if self.media_type.startswith("text/"):
                return self.data.decode()
        except (ValueError, EncodingError) as error:
            raise EncodingError(f"content is not valid {self.media_type}: {error}") from error
        return self.data


class TaskSpec(Noun):
    """Everything that fixes what a step must compute, and the terms the buyer signs."""

    kind: Label
    model: ModelRef
    input_cid: Cid
    sampling: Sampling | None = None
    parents: tuple[Bytes32, ...] = ()
    scheme: Label
    review: Review = Review()
    max_price_wei: Wei
    deadline_ms: Uint
    buyer: Address
    nonce: Bytes32

    @property
    def task_id(self) -> bytes:
        """``keccak256("daifi/task/1" ‖ dag-cbor(spec))``."""
        return tagged_hash("daifi/task/1", self.plain())


def token_id_of(task_id: bytes) -> bytes:
    """The cNFT's id (an ERC-721 uint256, big-endian) that settling ``task_id`` mints."""
    return keccak256(b"daifi/token/1" + task_id)

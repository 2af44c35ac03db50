"""What a node answers: output, proof and the manifest of its model; and the node itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from daifi_flows._noun import (
    Address,
    Bytes32,
    Bytes48,
    Bytes65,
    Bytes96,
    Cid,
    Label,
    Noun,
    Raw,
    Uint,
    Wei,
)
from daifi_flows.cnft._tasks import Content, ModelRef
from daifi_flows.encoding import canonical, cid_of, keccak256, tagged_hash
from daifi_flows.merkle import merkle_root

__all__ = [
    "Execution",
    "Materials",
    "ModelFile",
    "ModelManifest",
    "NodeInfo",
    "NodeResult",
    "Proof",
    "ProofHeader",
    "Statement",
    "Usage",
    "manifest_digest",
    "model_digest",
    "proof_digest",
]


class Usage(Noun):
    """Resources spent: tokens, floating-point operations, wall milliseconds on the node."""

    prompt_tokens: Uint = 0
    output_tokens: Uint = 0
    flops: Uint = 0
    duration_ms: Uint = 0


class Statement(Noun):
    """What a proof is about. ``transcript`` commits to the scheme's own trace."""

    task_id: Bytes32
    model_digest: Bytes32
    input_cid: Cid
    output_cid: Cid
    transcript: Bytes32
    usage: Usage


class ProofHeader(Noun):
    """A proof without its payload: what the ledger records. ``node`` signed :meth:`digest`."""

    scheme: Label
    statement: Statement
    payload_hash: Bytes32
    node: Address
    signature: Bytes65

    def digest(self) -> bytes:
        """What the node signs, 32 bytes."""
        return proof_digest(self.scheme, self.statement, self.payload_hash, self.node)

    @property
    def cid(self) -> str:
        """Content id of what the node signed: who has the header can tell it, and nobody can make
        a second one of the same proof by signing it again."""
        said = _proof_fields(self.scheme, self.statement, self.payload_hash, self.node)
        return cid_of(canonical(said), "dag-cbor")


def proof_digest(scheme: str, statement: Statement, payload_hash: bytes, node: str) -> bytes:
    """``keccak256("daifi/proof/1" ‖ dag-cbor(header without signature))``."""
    return tagged_hash("daifi/proof/1", _proof_fields(scheme, statement, payload_hash, node))


def _proof_fields(
    scheme: str, statement: Statement, payload_hash: bytes, node: str
) -> dict[str, Any]:
    return {
        "scheme": scheme,
        "statement": statement.plain(),
        "payload_hash": payload_hash,
        "node": node,
    }


class Proof(Noun):
    """A statement, the scheme's payload and the node's signature over both."""

    max_canonical_bytes: ClassVar[int] = (1 << 20) + 4096
    """The largest payload (``proofs.MAX_PAYLOAD_BYTES``), and the rest of the proof."""

    scheme: Label
    statement: Statement
    payload: Raw
    node: Address
    signature: Bytes65

    @property
    def header(self) -> ProofHeader:
        """The proof with its payload replaced by its hash."""
        return ProofHeader(
            scheme=self.scheme,
            statement=self.statement,
            payload_hash=keccak256(self.payload),
            node=self.node,
            signature=self.signature,
        )

    @property
    def cid(self) -> str:
        """CIDv1 that names the proof; see :attr:`ProofHeader.cid`."""
        return self.header.cid


class ModelFile(Noun):
    """One file of a model."""

    path: Label
    size: Uint
    sha256: Bytes32


class ModelManifest(Noun):
    """A signed list of a model's files: the bundle's ``model_attestation``.

    The model's digest is the Merkle root over the canonical form of ``files``, sorted by path.
    """

    model: ModelRef
    files: Annotated[tuple[ModelFile, ...], Field(min_length=1, max_length=4096)]
    signer: Address
    signature: Bytes65

    def digest(self) -> bytes:
        """What the signer signs, 32 bytes."""
        return manifest_digest(self.model, self.files, self.signer)


def model_digest(files: tuple[ModelFile, ...]) -> bytes:
    """Merkle root over a model's files, sorted by path, 32 bytes."""
    ordered = sorted(files, key=lambda file: file.path)
    return merkle_root([file.canonical() for file in ordered])


def manifest_digest(model: ModelRef, files: tuple[ModelFile, ...], signer: str) -> bytes:
    """``keccak256("daifi/model/1" ‖ dag-cbor(manifest without signature))``."""
    return tagged_hash(
        "daifi/model/1",
        {
            "model": model.plain(),
            "files": [file.plain() for file in files],
            "signer": signer,
        },
    )


class NodeResult(Noun):
    """What comes back from a node."""

    output: Content
    proof: Proof
    manifest: ModelManifest


class NodeInfo(Noun):
    """A node as the router sees it.

    Attributes:
        price_wei: flat price for one step, in wei.
        models: digests of the models it offers; empty: any that its engines load.
        direct: 1 when buyers may give it tasks that it did not bid for, else 0.
        bls_public: its BLS key, with which it can sit on a committee.
        bls_possession: proof that it holds that key, for its address (``ledger.prove_node_key``).
        operator: who runs it, by its own word; absent: its own address.
    """

    name: Label
    address: Address
    device: Label
    engines: tuple[str, ...]
    price_wei: Wei
    models: Annotated[tuple[Bytes32, ...], Field(max_length=256)] = ()
    direct: Annotated[int, Field(ge=0, le=1, strict=True)] = 1
    bls_public: Bytes48 | None = None
    bls_possession: Bytes96 | None = None
    operator: Address | None = None


@dataclass(frozen=True)
class Execution:
    """What an engine returns inside a node: output, usage, and the evidence a proof needs.

    ``evidence`` is the scheme's business: ``prompt_tokens`` and ``output_tokens`` (lists of int)
    for token-difr, with ``activations`` (float32 ``[output, width]``: the last hidden states that
    gave the output tokens) for toploc, ``onnx`` (bytes) and ``input`` (a float array) for zk,
    nothing for digest.
    """

    output: Content
    usage: Usage
    evidence: Mapping[str, Any] = field(default_factory=lambda: {})


@dataclass(frozen=True)
class Materials:
    """What a step needs beside its input: content-addressed blobs, and a user's function.

    ``blobs`` maps a raw CID to its bytes (whoever uses one checks it). ``function`` crosses only
    Ray's own transport, from the flow's author to the author's own cluster. ``private`` is for the
    node that runs the step alone: seats are not shown it, and no bundle holds it.
    """

    blobs: Mapping[str, bytes] = field(default_factory=lambda: {})
    function: Callable[..., Any] | None = None
    private: bytes | None = None

    @property
    def shown(self) -> Materials:
        """What seats may see: all but ``private``."""
        return replace(self, private=None)

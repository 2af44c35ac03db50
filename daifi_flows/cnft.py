"""The nouns every room shares: frozen, strict, and canonical to the byte.

Units are in the names: ``*_wei`` (uint256), ``*_ppm`` (0 to 1,000,000), ``*_ms`` (Unix
milliseconds). A noun has two encodings and each is unique:

* ``canonical()``: DAG-CBOR, what is hashed and signed. Absent optional fields are left out,
  ``*_wei`` amounts are 32-byte big-endian strings (DAG-CBOR integers end at 64 bits).
* ``jsonable()``: for ``metadata.json`` and people: bytes as ``0x…`` hex, amounts as decimal text.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from daifi_flows._noun import (
    PPM,
    Address,
    Bytes32,
    Bytes48,
    Bytes65,
    Bytes96,
    Cid,
    Label,
    Noun,
    Ppm,
    Raw,
    Uint,
    Wei,
)
from daifi_flows.encoding import (
    canonical,
    canonical_json,
    cid_of,
    keccak256,
    parse_json,
    tagged_hash,
)
from daifi_flows.errors import EncodingError
from daifi_flows.merkle import merkle_root

__all__ = [
    "PPM",
    "Address",
    "Attestation",
    "BlockHeader",
    "Bytes32",
    "Bytes48",
    "Bytes65",
    "Bytes96",
    "Cid",
    "Committee",
    "ComputeNFT",
    "Content",
    "CoreMetadata",
    "Decision",
    "Execution",
    "Label",
    "Materials",
    "ModelFile",
    "ModelManifest",
    "ModelRef",
    "NodeInfo",
    "NodeResult",
    "Noun",
    "Payment",
    "Ppm",
    "Proof",
    "ProofHeader",
    "QuorumCertificate",
    "Raw",
    "Receipt",
    "Review",
    "ReviewRequest",
    "Sampling",
    "Seat",
    "Statement",
    "TaskSpec",
    "TxReceipt",
    "Uint",
    "Usage",
    "Vote",
    "VoteChoice",
    "VoteCommit",
    "VoteReveal",
    "Wei",
    "attestation_message",
    "beacon_message",
    "manifest_digest",
    "model_digest",
    "proof_digest",
    "proposal_digest",
    "skip_message",
    "token_id_of",
]

# What a step is asked to do


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
    """How strictly a step is checked. ``attempts`` bounds how many nodes may try."""

    min_confidence_ppm: Ppm = 990_000
    attempts: Annotated[int, Field(ge=1, le=16, strict=True)] = 3


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


# What a node answers


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


def proof_digest(scheme: str, statement: Statement, payload_hash: bytes, node: str) -> bytes:
    """``keccak256("daifi/proof/1" ‖ dag-cbor(header without signature))``."""
    return tagged_hash(
        "daifi/proof/1",
        {
            "scheme": scheme,
            "statement": statement.plain(),
            "payload_hash": payload_hash,
            "node": node,
        },
    )


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
        """CIDv1 of the whole proof."""
        return cid_of(self.canonical(), "dag-cbor")


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


# The committee


class Decision(StrEnum):
    """What the committee found. Unproven is not cheating: refunded, nobody slashed."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNPROVEN = "unproven"


class VoteChoice(StrEnum):
    """What one seat found."""

    ACCEPT = "accept"
    REJECT = "reject"
    ABSTAIN = "abstain"


class Seat(Noun):
    """One of the committee's seats: BLS public key with proof of possession, payee account."""

    index: Annotated[int, Field(ge=0, lt=63, strict=True)]
    public: Bytes48
    possession: Bytes96
    account: Address
    share: Bytes48 | None = None
    """Public share of the committee's group key; who certifies no blocks has none."""


class Committee(Noun):
    """The seats of an epoch. n = 21, f = 6, quorum 14 by default (DESIGN: two quorums of 13
    could share only Byzantine seats)."""

    epoch: Uint
    seats: tuple[Seat, ...]
    group_key: Bytes48 | None = None
    """Under which a quorum of shares makes one signature: the ledger's beacon."""

    @property
    def faults(self) -> int:
        """f: how many Byzantine seats are tolerated, ⌊(n−1)/3⌋."""
        return (len(self.seats) - 1) // 3

    @property
    def quorum(self) -> int:
        """⌊(n+f)/2⌋ + 1."""
        return (len(self.seats) + self.faults) // 2 + 1

    @property
    def digest(self) -> bytes:
        """What block headers commit to."""
        return tagged_hash("daifi/committee/1", self.plain())

    def signers(self, bitmap: int) -> tuple[Seat, ...]:
        """Seats whose bit is set.

        Raises:
            EncodingError: a bit beyond the last seat is set.
        """
        if bitmap >> len(self.seats):
            raise EncodingError("the signer bitmap names a seat the committee does not have")
        return tuple(seat for seat in self.seats if bitmap >> seat.index & 1)


class Vote(Noun):
    """One seat's finding. ``reason`` is data for people, never interpreted."""

    seat: Uint
    task_id: Bytes32
    proof_cid: Cid
    decision: VoteChoice
    confidence_ppm: Ppm
    reason: Annotated[str, Field(max_length=500)] = ""

    def commitment(self, salt: bytes) -> bytes:
        """Salted hash sent in the first round, 32 bytes."""
        return tagged_hash("daifi/vote/1", {"vote": self.plain(), "salt": salt})


class VoteCommit(Noun):
    """Round one: a seat binds itself to a vote nobody can read or copy."""

    seat: Uint
    task_id: Bytes32
    proof_cid: Cid
    commitment: Bytes32
    signature: Bytes96

    def message(self) -> bytes:
        """What the seat's BLS key signs."""
        return b"daifi/vote-commit/1" + canonical(
            {
                "seat": self.seat,
                "task_id": self.task_id,
                "proof_cid": self.proof_cid,
                "commitment": self.commitment,
            }
        )


class VoteReveal(Noun):
    """Round two: the vote and the salt that open the commitment."""

    vote: Vote
    salt: Bytes32


class Attestation(Noun):
    """The committee's signed finding on one execution of one task."""

    ledger_id: Bytes32
    epoch: Uint
    task_id: Bytes32
    attempt: Uint
    node: Address
    output_cid: Cid
    proof_cid: Cid
    decision: Decision
    confidence_ppm: Ppm
    signers: Uint
    signature: Bytes96

    def message(self) -> bytes:
        """What every signing seat signed: all fields but the bitmap and the signature."""
        return attestation_message(
            ledger_id=self.ledger_id,
            epoch=self.epoch,
            task_id=self.task_id,
            attempt=self.attempt,
            node=self.node,
            output_cid=self.output_cid,
            proof_cid=self.proof_cid,
            decision=self.decision,
            confidence_ppm=self.confidence_ppm,
        )


def attestation_message(
    *,
    ledger_id: bytes,
    epoch: int,
    task_id: bytes,
    attempt: int,
    node: str,
    output_cid: str,
    proof_cid: str,
    decision: Decision,
    confidence_ppm: int,
) -> bytes:
    """Canonical bytes of an attestation, bound to ledger, epoch, task, attempt and node."""
    return b"daifi/attestation/1" + canonical(
        {
            "ledger_id": ledger_id,
            "epoch": epoch,
            "task_id": task_id,
            "attempt": attempt,
            "node": node,
            "output_cid": output_cid,
            "proof_cid": proof_cid,
            "decision": decision.value,
            "confidence_ppm": confidence_ppm,
        }
    )


@dataclass(frozen=True)
class ReviewRequest:
    """What the committee is asked: did this node's result come from this spec?"""

    ledger_id: bytes
    committee: Committee
    spec: TaskSpec
    attempt: int
    input: Content
    result: NodeResult
    materials: Materials = field(default_factory=Materials)


# The ledger's public face


class Payment(Noun):
    """Money that moved: to whom, how much, why (``node``, ``committee``, ``treasury``,
    ``refund``, ``slash``, ``royalty``)."""

    to: Address
    amount_wei: Wei
    reason: Label


class TxReceipt(Noun):
    """What one transaction did; the leaf under a block's receipt root."""

    tx: Bytes32
    kind: Label
    sender: Address
    fee_wei: Wei = 0
    """What the sender paid for the transaction itself, to the treasury."""
    task_id: Bytes32 | None = None
    token_id: Bytes32 | None = None
    of: Bytes32 | None = None
    """The earlier token that ``token_id`` reuses or repeats."""
    node: Address | None = None
    attestation: Bytes32 | None = None
    """Keccak-256 of the canonical attestation that was applied."""
    content: Bytes32 | None = None
    """Digest of the bundle's core metadata (settle) or of the effect (effect)."""
    payments: tuple[Payment, ...] = ()


class BlockHeader(Noun):
    """A block's commitments. Final at once: 14 of 21 seats sign :meth:`digest`.

    Attributes:
        proposer: account of the seat that was drawn in ``round`` from ``beacon``.
        builder: who filled the block, and pays the proposer what it bid for that.
        beacon: Keccak-256 of the group's signature over :func:`beacon_message` of ``parent``.
        round: how many drawn proposers of this height were passed over.
    """

    ledger_id: Bytes32
    height: Uint
    parent: Bytes32
    tx_root: Bytes32
    receipt_root: Bytes32
    state_root: Bytes32
    timestamp_ms: Uint
    proposer: Address
    builder: Address
    beacon: Bytes32
    round: Uint
    epoch: Uint
    committee: Bytes32
    history_root: Bytes32
    """Root of the mountain range over the receipts of all blocks up to this one."""
    history_size: Uint
    """How many receipts that is."""

    @property
    def digest(self) -> bytes:
        """Block hash, 32 bytes."""
        return tagged_hash("daifi/block/1", self.plain())


def beacon_message(block_hash: bytes) -> bytes:
    """What holders of the group key sign about a final block: it gives the next one's beacon."""
    return b"daifi/beacon/1" + block_hash


def proposal_digest(block_hash: bytes) -> bytes:
    """What a drawn proposer signs with its account to propose a block, 32 bytes."""
    return keccak256(b"daifi/propose/1" + block_hash)


def skip_message(parent: bytes, round: int) -> bytes:
    """What a seat signs to pass over the proposers of the block after ``parent`` up to ``round``:
    it has signed no block of theirs and never will."""
    return b"daifi/skip/1" + parent + round.to_bytes(8, "big")


class QuorumCertificate(Noun):
    """Signer bitmap and one aggregate BLS signature over a block hash."""

    signers: Uint
    signature: Bytes96

    @staticmethod
    def message(block_hash: bytes) -> bytes:
        """What a seat signs to make a block final."""
        return b"daifi/qc/1" + block_hash


class Receipt(Noun):
    """Inclusion of one transaction receipt in one certified block."""

    header: BlockHeader
    certificate: QuorumCertificate
    leaf: TxReceipt
    index: Uint
    size: Uint
    path: Annotated[tuple[Bytes32, ...], Field(max_length=64)]


# The bundle


class CoreMetadata(Noun):
    """The part of ``metadata.json`` that the settlement transaction commits to."""

    name: Label
    spec: TaskSpec
    node: Address
    usage: Usage
    timestamp_ms: Uint
    output_cid: Cid
    output_encryption: Label
    """``none``, or ``x25519-sealed-box``: output and proof envelope are sealed to the buyer."""
    output_file_cid: Cid
    proof_cid: Cid
    proof_file_cid: Cid
    manifest_cid: Cid
    has_effect: Annotated[int, Field(ge=0, le=1, strict=True)] = 0
    """1 when an action follows settlement, whose result gets a receipt of its own."""

    @property
    def digest(self) -> bytes:
        """What the settlement transaction and its receipt carry."""
        return tagged_hash("daifi/metadata/1", self.plain())


@dataclass(frozen=True)
class ComputeNFT:
    """One verified, settled step: what a ``cnft_task`` returns and later steps build on.

    ``output`` is the step's plain Python value. Passing a cNFT to another step records it as
    that step's parent.
    """

    token_id: bytes
    task_id: bytes
    name: str
    owner: str
    parents: tuple[bytes, ...]
    spec: TaskSpec
    output: Any
    attestation: Attestation
    receipt: Receipt
    bundle: Path
    bundle_cid: str
    proof_bytes: int
    effect: Any = None
    """What a step's after-settlement action returned (``act``: the tool's return value)."""
    timings_ms: Mapping[str, int] = field(default_factory=lambda: {})
    attempts: tuple[Mapping[str, Any], ...] = ()
    """Executions that failed before this one: ``node``, ``reason``, ``slashed_wei``."""

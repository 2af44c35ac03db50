"""The nouns every room shares: frozen, strict, and canonical to the byte.

Units are in the names: ``*_wei`` (uint256), ``*_ppm`` (0 to 1,000,000), ``*_ms`` (Unix
milliseconds). A noun has two encodings and each is unique:

* ``canonical()``: DAG-CBOR, what is hashed and signed. Absent optional fields are left out,
  ``*_wei`` amounts are 32-byte big-endian strings (DAG-CBOR integers end at 64 bits).
* ``jsonable()``: for ``metadata.json`` and people: bytes as ``0x…`` hex, amounts as decimal text.
"""

from __future__ import annotations

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
from daifi_flows.cnft._blocks import (
    BlockHeader,
    Payment,
    QuorumCertificate,
    Receipt,
    TxReceipt,
    beacon_message,
    proposal_digest,
    skip_message,
)
from daifi_flows.cnft._committee import Committee, Decision, Seat, VoteChoice
from daifi_flows.cnft._results import (
    Execution,
    Materials,
    ModelFile,
    ModelManifest,
    NodeInfo,
    NodeResult,
    Proof,
    ProofHeader,
    Statement,
    Usage,
    manifest_digest,
    model_digest,
    proof_digest,
)
from daifi_flows.cnft._reviews import (
    FULL_WAVE,
    MAX_CHUNKS,
    Attestation,
    Basis,
    ChunkFinding,
    ReviewRequest,
    Subject,
    Vote,
    VoteCommit,
    VoteReveal,
    attestation_message,
)
from daifi_flows.cnft._tasks import Content, ModelRef, Review, Sampling, TaskSpec, token_id_of
from daifi_flows.cnft._tokens import ComputeNFT, CoreMetadata

__all__ = [
    "FULL_WAVE",
    "MAX_CHUNKS",
    "PPM",
    "Address",
    "Attestation",
    "Basis",
    "BlockHeader",
    "Bytes32",
    "Bytes48",
    "Bytes65",
    "Bytes96",
    "ChunkFinding",
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
    "Subject",
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

"""A settled step: the metadata its token commits to, and the cNFT itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from daifi_flows._noun import Address, Bytes32, Cid, Label, Noun, Uint
from daifi_flows.cnft._blocks import Receipt
from daifi_flows.cnft._results import Usage
from daifi_flows.cnft._reviews import Attestation
from daifi_flows.cnft._tasks import TaskSpec
from daifi_flows.encoding import tagged_hash

__all__ = [
    "ComputeNFT",
    "CoreMetadata",
]


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
    report: Bytes32 | None = None
    """Digest of the account of the committee's review, which lies in ``metadata.json``."""
    operator: Address | None = None
    """Who runs the node by its own word, where that is not ``node``: seats of theirs were left out
    of the review."""
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
    report: Mapping[str, Any] | None = None
    """The account of the committee's review, as in the bundle: which seats checked what, what the
    judges saw, why the decision fell."""
    effect: Any = None
    """What a step's after-settlement action returned (``act``: the tool's return value)."""
    timings_ms: Mapping[str, int] = field(default_factory=lambda: {})
    attempts: tuple[Mapping[str, Any], ...] = ()
    """Executions that failed before this one: ``node``, ``reason``, ``slashed_wei``."""

"""What passes in a review: the request, votes in two rounds, the attestation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from daifi_flows._noun import Address, Bytes32, Bytes96, Cid, Noun, Ppm, Uint
from daifi_flows.cnft._committee import Committee, Decision, VoteChoice
from daifi_flows.cnft._results import Materials, NodeResult
from daifi_flows.cnft._tasks import Content, TaskSpec
from daifi_flows.encoding import canonical, tagged_hash

__all__ = [
    "Attestation",
    "ReviewRequest",
    "Vote",
    "VoteCommit",
    "VoteReveal",
    "attestation_message",
]


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

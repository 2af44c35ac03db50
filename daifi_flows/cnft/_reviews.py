"""What passes in a review: the request, its subject, votes in two rounds, the attestation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from daifi_flows._noun import PPM, Address, Bytes32, Bytes96, Cid, Noun, Ppm, Uint
from daifi_flows.cnft._blocks import Receipt
from daifi_flows.cnft._committee import Committee, Decision, VoteChoice
from daifi_flows.cnft._results import Materials, NodeResult
from daifi_flows.cnft._tasks import Content, TaskSpec
from daifi_flows.encoding import canonical, tagged_hash

__all__ = [
    "FULL_WAVE",
    "MAX_CHUNKS",
    "SURE_PPM",
    "Attestation",
    "Basis",
    "ChunkFinding",
    "ReviewRequest",
    "Subject",
    "Vote",
    "VoteCommit",
    "VoteReveal",
    "attestation_message",
]

MAX_CHUNKS: Final = 64
"""Most parts an output is checked in."""

FULL_WAVE: Final = 7
"""The wave in which all seats are asked about a disputed chunk. Wave 0 asks the first f+1 seats of
each chunk, and those between replace seats that stayed silent."""


SURE_PPM: Final = 999_000
"""Confidence of a rejection from which on whoever accepted the output is at fault: that was no
matter of rounding."""


class Basis(StrEnum):
    """What an attestation rests on: seats' votes, or the lottery that asked for none."""

    REVIEWED = "reviewed"
    WAIVED = "waived"


class Subject(Noun):
    """What one review is about: everything an attestation binds, and how it is to be checked.

    Attributes:
        committee: digest of the committee that reviews.
        min_confidence_ppm: under which an output is not accepted.
        chunks: in how many parts the output is checked.
        review_ppm: how likely it is reviewed at all: what the certified receipt of the node's
            commit says, and one (10^6) where there is no receipt.
        deadline_ms: the task's: after it seats say nothing more.
        operator: who runs the node, where that is not ``node``: their seats do not judge it.
    """

    ledger_id: Bytes32
    committee: Bytes32
    epoch: Uint
    task_id: Bytes32
    attempt: Uint
    node: Address
    output_cid: Cid
    proof_cid: Cid
    min_confidence_ppm: Ppm
    deadline_ms: Uint
    chunks: Annotated[int, Field(ge=1, le=MAX_CHUNKS, strict=True)] = 1
    review_ppm: Ppm = PPM
    operator: Address | None = None

    @classmethod
    def of(cls, request: ReviewRequest, chunks: int = 1) -> Subject:
        """The subject of a review request whose output is checked in so many parts."""
        proof, receipt, committee = request.result.proof, request.committed, request.committee
        recorded = None
        # What was committed under an earlier committee is not drawn for by this one.
        if receipt is not None and receipt.header.epoch == committee.epoch:
            recorded = receipt.leaf.review_ppm
        return cls(
            ledger_id=request.ledger_id,
            committee=committee.digest,
            epoch=committee.epoch,
            task_id=request.spec.task_id,
            attempt=request.attempt,
            node=proof.node,
            output_cid=proof.statement.output_cid,
            proof_cid=proof.cid,
            min_confidence_ppm=request.spec.review.min_confidence_ppm,
            deadline_ms=request.spec.deadline_ms,
            chunks=chunks,
            review_ppm=PPM if recorded is None else recorded,
            operator=request.operator if receipt is None else receipt.leaf.operator,
        )

    @classmethod
    def settled(
        cls,
        attestation: Attestation,
        spec: TaskSpec,
        committee: bytes,
        *,
        chunks: int,
        review_ppm: int,
        operator: str | None,
    ) -> Subject:
        """The subject of the review that ended in an attestation.

        Args:
            committee: digest of the committee that signed.
        """
        return cls(
            ledger_id=attestation.ledger_id,
            committee=committee,
            epoch=attestation.epoch,
            task_id=attestation.task_id,
            attempt=attestation.attempt,
            node=attestation.node,
            output_cid=attestation.output_cid,
            proof_cid=attestation.proof_cid,
            min_confidence_ppm=spec.review.min_confidence_ppm,
            deadline_ms=spec.deadline_ms,
            chunks=chunks,
            review_ppm=review_ppm,
            operator=operator,
        )

    @property
    def digest(self) -> bytes:
        """What votes name, 32 bytes."""
        return tagged_hash("daifi/subject/1", self.plain())

    def beacon_message(self) -> bytes:
        """What holders of the group key sign to draw whether, and who, reviews this."""
        return b"daifi/review-beacon/1" + self.digest

    def message(
        self, decision: Decision, confidence_ppm: int, basis: Basis = Basis.REVIEWED
    ) -> bytes:
        """The bytes every honest seat signs for this outcome."""
        return attestation_message(
            ledger_id=self.ledger_id,
            epoch=self.epoch,
            task_id=self.task_id,
            attempt=self.attempt,
            node=self.node,
            output_cid=self.output_cid,
            proof_cid=self.proof_cid,
            decision=decision,
            confidence_ppm=confidence_ppm,
            basis=basis,
        )


class ChunkFinding(Noun):
    """What a seat found in one chunk. ``reason`` is data for people, never interpreted.

    Attributes:
        panel: the judge panel's features in ppm, in the panel's own order; empty where the panel
            saw nothing.
    """

    chunk: Annotated[int, Field(ge=0, lt=MAX_CHUNKS, strict=True)]
    decision: VoteChoice
    confidence_ppm: Ppm
    reason: Annotated[str, Field(max_length=200)] = ""
    panel: Annotated[tuple[Uint, ...], Field(max_length=24)] = ()


class Vote(Noun):
    """One seat's findings in one wave of a review; ``subject`` is a :attr:`Subject.digest`."""

    seat: Uint
    subject: Bytes32
    wave: Annotated[int, Field(ge=0, le=FULL_WAVE, strict=True)]
    findings: Annotated[tuple[ChunkFinding, ...], Field(min_length=1, max_length=MAX_CHUNKS)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        chunks = [finding.chunk for finding in self.findings]
        if chunks != sorted(set(chunks)):
            raise ValueError("findings are in the order of their chunks, each chunk once")
        return self

    def commitment(self, salt: bytes) -> bytes:
        """Salted hash sent in the first round, 32 bytes."""
        return tagged_hash("daifi/vote/1", {"vote": self.plain(), "salt": salt})


class VoteCommit(Noun):
    """A seat binds itself to a vote nobody can read or copy."""

    seat: Uint
    subject: Bytes32
    wave: Annotated[int, Field(ge=0, le=FULL_WAVE, strict=True)]
    commitment: Bytes32
    signature: Bytes96

    def message(self) -> bytes:
        """What the seat's BLS key signs."""
        return b"daifi/vote-commit/1" + canonical(
            {
                "seat": self.seat,
                "subject": self.subject,
                "wave": self.wave,
                "commitment": self.commitment,
            }
        )


class VoteReveal(Noun):
    """The vote and the salt that open a commitment."""

    vote: Vote
    salt: Bytes32


class Attestation(Noun):
    """The committee's signed finding on one execution of one task.

    Attributes:
        basis: ``waived`` where the review lottery did not draw this execution: accepted unseen,
            with confidence 0.
    """

    ledger_id: Bytes32
    epoch: Uint
    task_id: Bytes32
    attempt: Uint
    node: Address
    output_cid: Cid
    proof_cid: Cid
    decision: Decision
    confidence_ppm: Ppm
    basis: Basis = Basis.REVIEWED
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
            basis=self.basis,
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
    basis: Basis = Basis.REVIEWED,
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
            "basis": basis.value,
        }
    )


@dataclass(frozen=True)
class ReviewRequest:
    """What the committee is asked: did this node's result come from this spec?

    Attributes:
        committed: the certified receipt of the node's commit, which records how likely the work is
            reviewed; without it every review is a full one.
        operator: who runs the node, where that is not the node itself.
    """

    ledger_id: bytes
    committee: Committee
    spec: TaskSpec
    attempt: int
    input: Content
    result: NodeResult
    materials: Materials = field(default_factory=Materials)
    committed: Receipt | None = None
    operator: str | None = None

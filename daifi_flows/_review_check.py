"""What an auditor can say of a review: what its attestation rests on, and whether that was allowed.

An output that was not looked at is accepted where the receipt of the node's commit records a review
rate below one and the committee's beacon, a threshold signature over what was to be reviewed, did
not draw it. Both are in the bundle and are checked here. Who checked what, and what the judges saw,
is told by an account of the client's that the settlement commits to: the seats did not sign it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daifi_flows._review_text import read_report
from daifi_flows._step import percent
from daifi_flows.bundle import Metadata, report_digest
from daifi_flows.cnft import PPM, Basis, Committee, Proof, Subject
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import Committees
from daifi_flows.errors import BundleError, CommitteeError
from daifi_flows.history import verify_receipt
from daifi_flows.keys import verify_bls
from daifi_flows.proofs import spans_of
from daifi_flows.review_rate import drawn_for_review

if TYPE_CHECKING:
    from daifi_flows.judges import ReviewReport

__all__ = ["check_review"]


def check_review(metadata: Metadata, proof: Proof, trusted: Committee | Committees | None) -> str:
    """What the attestation of a bundle rests on, in one line.

    Args:
        proof: the bundle's own.

    Raises:
        BundleError, EncodingError: something is wrong.
        CommitteeError: nothing is wrong as far as it can be told; the message says what is missing.
    """
    spec, attestation = metadata.core.spec, metadata.attestation
    waived = attestation.basis is Basis.WAIVED
    report, rate = _report(metadata), _rate(metadata, proof)
    if waived and rate == PPM:
        raise BundleError("the output was not looked at, and no receipt allows that")
    if waived and spec.review.always is not None:
        raise BundleError("the output was not looked at, and the task asks for a review")
    if report is not None and not _tells_of(report, metadata, rate):
        raise BundleError("the account of the review is not of what the seats signed")
    if trusted is None:
        raise CommitteeError("no committee keys at hand: give --committee FILE")
    trusted = Committees.trusting(trusted)
    if metadata.committed is not None:
        verify_receipt(metadata.committed, trusted)
    if report is not None:
        _check_draw(report, metadata, proof, rate, trusted.of(attestation.epoch))
    if waived and report is None:
        raise CommitteeError(f"not drawn at a rate of {percent(rate)}, but the draw is not shown")
    if waived:
        return f"not drawn at a rate of {percent(rate)}, as the committee's beacon shows"
    if report is None:
        return f"reviewed, at a rate of {percent(rate)}; no account came with the bundle"
    checked = sum(1 for seat in report.seats if seat.checked)
    parts = f"{len(report.chunks)} parts" if len(report.chunks) > 1 else "the output"
    return (
        f"reviewed, at a rate of {percent(rate)}; by the client's account {checked} seats checked "
        f"{parts}: {_line(report.reason)}"
    )


def _report(metadata: Metadata) -> ReviewReport | None:
    core, text = metadata.core, metadata.report_json
    if text is None:
        if core.report is not None:
            raise BundleError("the account of the review is missing")
        return None
    if core.report != report_digest(core.spec.task_id, text):
        raise BundleError("the account of the review is not the settled one")
    return read_report(text)


def _rate(metadata: Metadata, proof: Proof) -> int:
    """How likely the work was to be reviewed, in ppm, by the receipt of the node's commit."""
    receipt, attestation = metadata.committed, metadata.attestation
    if receipt is None:
        return PPM
    if receipt.leaf.review_ppm is None or not receipt.leaf.commits(
        task_id=metadata.core.spec.task_id,
        attempt=attestation.attempt,
        node=attestation.node,
        proof=proof.header.digest(),
    ):
        raise BundleError("the receipt of the commit is of another execution")
    if receipt.header.ledger_id != attestation.ledger_id:
        raise BundleError("the receipt of the commit is bound to another ledger")
    return receipt.leaf.review_ppm


def _tells_of(report: ReviewReport, metadata: Metadata, rate: int) -> bool:
    """Whether the account is of the review that the attestation ended."""
    signed = metadata.attestation
    return (
        (report.task_id, report.proof_cid) == (signed.task_id, signed.proof_cid)
        and (report.decision, report.basis) == (signed.decision, signed.basis)
        and (report.confidence_ppm, report.review_ppm) == (signed.confidence_ppm, rate)
        and bool(report.drawn) == (signed.basis is Basis.REVIEWED)
    )


def _check_draw(
    report: ReviewReport, metadata: Metadata, proof: Proof, rate: int, committee: Committee
) -> None:
    """Whether the group's signature over what was to be reviewed gives the draw that is told."""
    core, attestation = metadata.core, metadata.attestation
    if committee.group_key is None:
        raise CommitteeError("the committee at hand has no group key to check the draw with")
    subject = Subject.settled(
        attestation,
        core.spec,
        committee.digest,
        chunks=len(spans_of(proof)),
        review_ppm=rate,
        operator=core.operator,
    )
    if not verify_bls(committee.group_key, subject.beacon_message(), report.beacon):
        raise BundleError("the beacon in the account is not the committee's word on this work")
    if drawn_for_review(keccak256(report.beacon), rate) != bool(report.drawn):
        raise BundleError("the beacon drew the work otherwise than the account tells")


def _line(text: str) -> str:
    """A stranger's words as one line."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())

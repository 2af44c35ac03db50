"""What seats ask of a case before they take part in its review."""

from __future__ import annotations

from collections.abc import Callable

from daifi_flows.cnft import PPM, BlockHeader, Committee, Subject
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import EncodingError, KeyMaterialError
from daifi_flows.history import verify_receipt
from daifi_flows.judges._messages import Docket
from daifi_flows.keys import recover_address
from daifi_flows.proofs import spans_of

__all__ = ["Certifier", "docket_fault", "execution_of"]

Certifier = Callable[[BlockHeader], Committee | None]
"""The committee of an earlier epoch that was to certify a block, by the ledger's own state."""


def execution_of(subject: Subject) -> bytes:
    """Names what a seat is bound to one subject of, 32 bytes.

    The committee is part of it: who sits on two in a row may begin anew after a handover, which
    draws a second time, and once an epoch.
    """
    return tagged_hash(
        "daifi/execution/1",
        {
            "ledger_id": subject.ledger_id,
            "committee": subject.committee,
            "task_id": subject.task_id,
            "attempt": subject.attempt,
            "node": subject.node,
        },
    )


def docket_fault(
    subject: Subject, docket: Docket, committee: Committee, earlier: Certifier | None = None
) -> str | None:
    """Why seats take no part: the docket does not show the node bound to the subject's proof, or
    the ledger that its review may be waived.

    Args:
        earlier: absent where the committee certifies no ledger. Where it does, nothing is reviewed
            before the node has committed to it there: else a node could have an output looked at,
            and commit only if that passes.
    """
    spec, header, receipt = docket.spec, docket.header, docket.committed
    said = (spec.task_id, spec.review.min_confidence_ppm, spec.deadline_ms)
    if said != (subject.task_id, subject.min_confidence_ppm, subject.deadline_ms):
        return "it is about another task"
    statement = header.statement
    if (statement.task_id, statement.output_cid, header.node) != (
        subject.task_id,
        subject.output_cid,
        subject.node,
    ):
        return "the proof is about another task, output or node"
    if subject.chunks != len(spans_of(header)):
        return "the output is checked in another number of parts"
    if subject.proof_cid != header.cid:  # else its review, and later ones, are of no proof at all
        return "the subject names another proof than the node's"
    digest = header.digest()
    try:
        signer = recover_address(digest, header.signature)
    except KeyMaterialError as error:
        return f"the node's signature is malformed: {error}"
    if signer != header.node:
        return "the proof was not signed by the node it names"
    if receipt is None:
        if earlier is None and subject.review_ppm == PPM:
            return None
        return "there is no receipt of the node's commit: commit to it on the ledger first"
    by_this = receipt.header.epoch == committee.epoch
    if subject.review_ppm != (receipt.leaf.review_ppm if by_this else PPM):
        return "the receipt says another review rate"
    if receipt.leaf.operator != subject.operator:
        return "the ledger knows another operator of the node"
    if receipt.header.ledger_id != subject.ledger_id or not receipt.leaf.commits(
        task_id=subject.task_id, attempt=subject.attempt, node=subject.node, proof=digest
    ):
        return "the receipt is of another commit"
    certifier = committee
    if not by_this:
        found = earlier(receipt.header) if earlier is not None else None
        if found is None:
            return "nothing here shows which committee was to certify the receipt's block"
        certifier = found
    try:
        verify_receipt(receipt, certifier)
    except EncodingError as error:
        return f"the receipt of the node's commit is not certified: {error}"
    return None

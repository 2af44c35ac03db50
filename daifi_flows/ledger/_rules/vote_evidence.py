"""Evidence about votes in a review: two where one is allowed, a copied one, a false one.

A seat binds itself to a vote with a signature over a salted hash, and opens it when all are bound.
The signature and the opening are all that evidence needs, and only their seat can make them: a
vote names its seat, and what an honest seat signs opens to its own vote alone.

- *Two votes.* An honest seat signs one commitment in a wave of a review; its journal sees to that.
- *A copy.* A seat that repeats another's commitment votes without having checked anything. The
  vote that it opens to names the other seat, whatever the copier knew of it.
- *A false accusation.* A reject makes all seats check an output again, so rejecting at random must
  cost something. It counts only against what stood: the same review's quorum accepted, the ledger
  paid, and nobody can dispute it any more. It costs far less than a lie that only a liar can tell
  (``slashing.false_accusation_ppm``): a seat whose machine computes otherwise than twenty others
  could come to it.
- *A false acceptance.* A seat that accepts everything unseen saves the work of checking, and is
  caught only by what is wrong. It costs as much as a false accusation, and counts only where the
  quorum that rejected was sure (:data:`~daifi_flows.cnft.SURE_PPM`) and the output was one part:
  an attestation does not say which of several was wrong. A borderline output, which a node could
  craft to divide honest seats, convicts nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from daifi_flows.cnft import (
    SURE_PPM,
    Attestation,
    Basis,
    Committee,
    Decision,
    Seat,
    Subject,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.keys import verify_bls
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._economics import Fault
from daifi_flows.ledger._records import TaskRecord, TaskState
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._offences import (
    punish,
    require_committee,
    require_fresh,
    require_fresh_task,
    require_given,
    same,
)
from daifi_flows.ledger._rules._quorum import require_quorum
from daifi_flows.ledger._rules._tasks import require_task
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.evidence import (
    FalseAcceptance,
    FalseAccusation,
    VoteCopy,
    VoteEquivocation,
)

__all__ = ["RULES"]


def vote_equivocation(ctx: Context, tx: VoteEquivocation) -> Facts:
    """Slash a seat that bound itself to two votes in one wave of a review."""
    first, second = tx.first, tx.second
    same(("seat", first.seat, second.seat), ("wave", first.wave, second.wave))
    if first.commitment == second.commitment:
        refuse("bad-field", "both are the same commitment: signing it twice is no offence")
    committee = _require_review(ctx, tx.subject)
    _require_given(ctx, tx.subject)
    seat = _seat(committee, first.seat)
    for commit in (first, second):
        _require_bound(tx.subject, seat, commit)
    place = {"subject": tx.subject.digest, "wave": first.wave}
    return _convict(ctx, tx, seat, "vote", place, Fault.EQUIVOCATION)


def vote_copy(ctx: Context, tx: VoteCopy) -> Facts:
    """Slash a seat that bound itself to a vote which names another seat."""
    _require_opens(tx.copied, tx.opening)
    if tx.opening.vote.seat == tx.copied.seat:
        refuse("bad-field", "the vote is the seat's own: opening it shows no offence")
    committee = _require_review(ctx, tx.subject)
    _require_given(ctx, tx.subject)
    seat = _seat(committee, tx.copied.seat)
    _require_bound(tx.subject, seat, tx.copied)
    place = {"subject": tx.subject.digest, "wave": tx.copied.wave}
    return _convict(ctx, tx, seat, "copy", place, Fault.EQUIVOCATION)


def false_accusation(ctx: Context, tx: FalseAccusation) -> Facts:
    """Slash a seat that rejected a part of what its committee accepted, once that is final."""
    subject, vote = tx.subject, tx.opening.vote
    _require_opens(tx.accusation, tx.opening)
    same(
        ("seat", vote.seat, tx.accusation.seat),
        ("subject", vote.subject, tx.accusation.subject),
        ("wave", vote.wave, tx.accusation.wave),
    )
    if all(finding.decision is not VoteChoice.REJECT for finding in vote.findings):
        refuse("bad-field", "the vote rejects nothing: it accuses nobody")
    if any(finding.chunk >= subject.chunks for finding in vote.findings):
        refuse("bad-field", "the vote is about parts that the output does not have")
    committee = _require_review(ctx, subject)
    _require_stood(ctx, subject)
    seat = _seat(committee, tx.accusation.seat)
    _require_bound(subject, seat, tx.accusation)
    _require_found(committee, subject, tx.attestation, Decision.ACCEPTED)
    place = {
        "task_id": subject.task_id,
        "attempt": subject.attempt,
        "node": subject.node,
        "proof_cid": subject.proof_cid,
    }
    return _convict(ctx, tx, seat, "accusation", place, Fault.FALSE_ACCUSATION)


def false_acceptance(ctx: Context, tx: FalseAcceptance) -> Facts:
    """Slash a seat that accepted what its committee was sure is wrong."""
    subject, vote = tx.subject, tx.opening.vote
    _require_opens(tx.acceptance, tx.opening)
    same(
        ("seat", vote.seat, tx.acceptance.seat),
        ("subject", vote.subject, tx.acceptance.subject),
        ("wave", vote.wave, tx.acceptance.wave),
    )
    if subject.chunks != 1:
        refuse("bad-field", "the output has several parts: which was wrong, the finding says not")
    if [finding.decision for finding in vote.findings] != [VoteChoice.ACCEPT]:
        refuse("bad-field", "the vote accepts nothing")
    committee = _require_review(ctx, subject)
    _require_given(ctx, subject)
    seat = _seat(committee, tx.acceptance.seat)
    _require_bound(subject, seat, tx.acceptance)
    _require_found(committee, subject, tx.attestation, Decision.REJECTED)
    if tx.attestation.confidence_ppm < SURE_PPM:
        refuse(
            "bad-field",
            f"the quorum was sure to {tx.attestation.confidence_ppm} ppm only; whoever saw it "
            f"otherwise is at fault from {SURE_PPM} on",
        )
    place = {"subject": subject.digest}
    return _convict(ctx, tx, seat, "acceptance", place, Fault.FALSE_ACCUSATION)


def _require_review(ctx: Context, subject: Subject) -> Committee:
    """The committee that a review was before."""
    same(("ledger", subject.ledger_id, ctx.ledger_id))
    committee = require_committee(ctx, subject.epoch)
    same(("committee", subject.committee, committee.digest))
    return committee


def _require_given(ctx: Context, subject: Subject) -> None:
    task = require_fresh_task(ctx, subject.task_id)
    require_given(task, subject.attempt, subject.node)


def _require_stood(ctx: Context, subject: Subject) -> TaskRecord:
    """Refuse what was not settled after a review, and what may still be found wrong."""
    task = require_task(ctx, subject.task_id)
    if task.state is not TaskState.SETTLED or task.waived:
        refuse("bad-state", "the output was not reviewed, accepted and paid: nothing is against it")
    assert task.proof is not None, "a settled task has a proof"
    same(
        ("attempt", subject.attempt, task.attempt),
        ("node", subject.node, task.node),
        ("output", subject.output_cid, task.proof.statement.output_cid),
        ("proof", subject.proof_cid, task.proof_cid),
        ("least confidence", subject.min_confidence_ppm, task.spec.review.min_confidence_ppm),
    )
    if ctx.now_ms < task.challenge_until_ms:
        refuse(
            "bad-state",
            f"the seat may still be proven right: the output can be disputed until "
            f"{task.challenge_until_ms} ms",
        )
    if ctx.layer.find(DisputeRecord, dispute_key(task.task_id)) is not None:
        refuse("bad-state", "the seat may still be proven right: the output is disputed")
    require_fresh(ctx, max(task.spec.deadline_ms, task.challenge_until_ms))
    return task


def _seat(committee: Committee, index: int) -> Seat:
    if index >= len(committee.seats):
        refuse("bad-field", f"the committee has no seat {index}")
    return committee.seats[index]


def _require_bound(subject: Subject, seat: Seat, commit: VoteCommit) -> None:
    """Refuse a commitment to a vote on something else, or that the seat did not sign."""
    same(("subject", commit.subject, subject.digest))
    if not verify_bls(seat.public, commit.message(), commit.signature):
        refuse("bad-signature", f"seat {seat.index} did not sign the commitment to a vote")


def _require_opens(commit: VoteCommit, opening: VoteReveal) -> None:
    if opening.vote.commitment(opening.salt) != commit.commitment:
        refuse("bad-field", "the vote does not open the commitment")


def _require_found(
    committee: Committee, subject: Subject, finding: Attestation, decision: Decision
) -> None:
    same(
        ("ledger", finding.ledger_id, subject.ledger_id),
        ("epoch", finding.epoch, subject.epoch),
        ("task", finding.task_id, subject.task_id),
        ("attempt", finding.attempt, subject.attempt),
        ("node", finding.node, subject.node),
        ("output", finding.output_cid, subject.output_cid),
        ("proof", finding.proof_cid, subject.proof_cid),
    )
    if finding.decision is not decision or finding.basis is not Basis.REVIEWED:
        refuse("bad-field", f"the seats' finding is not a review that ended {decision.value}")
    require_quorum(committee, finding.signers, finding.message(), finding.signature)


def _convict(
    ctx: Context,
    tx: VoteEquivocation | VoteCopy | FalseAccusation | FalseAcceptance,
    seat: Seat,
    what: str,
    place: Mapping[str, Any],
    fault: Fault,
) -> Facts:
    payments = punish(ctx, what, place, seat.account, tx.sender, fault)
    if payments is None:
        refuse("duplicate", "this offence was already shown")
    return {
        "task_id": tx.subject.task_id,
        "node": seat.account,
        "content": tx.pair(),
        "payments": payments,
    }


RULES: Final[Mapping[type[Transaction], Rule]] = {
    VoteEquivocation: vote_equivocation,
    VoteCopy: vote_copy,
    FalseAccusation: false_accusation,
    FalseAcceptance: false_acceptance,
}

"""Evidence of equivocation: both statements are checked here, and their signer is slashed.

An account is slashed once for each place in which its key may say one thing: a height and round,
a finding about one execution, an attempt of a task. More pairs of statements of the same place
show nothing new. So nobody may show its own offence in advance, while it has nothing to lose:
evidence is about a height that the chain has reached, or an attempt that the node was given. What
an honest seat or node never signs twice:

- a seat signs one block a height and round (its journal sees to that);
- a seat signs one finding about one *proof* of an execution. Two findings about two proofs are no
  offence: whoever asks the committee may show it two;
- a drawn seat signs one header as proposer a height and round (its journal again);
- a node signs one *commit* an attempt. Two proof headers alone are no offence: a header names no
  attempt, and a buyer who calls a node twice gets two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from daifi_flows.cnft import BlockHeader, Payment, QuorumCertificate, Seat
from daifi_flows.errors import KeyMaterialError, TransactionRefused
from daifi_flows.keys import recover_address
from daifi_flows.ledger._auction import DoubleProposal
from daifi_flows.ledger._rules import vote_evidence
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._offences import (
    punish,
    require_accused,
    require_committee,
    require_fresh,
    require_fresh_task,
    require_given,
    require_signatures,
    same,
)
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.evidence import (
    AttestationEquivocation,
    BlockEquivocation,
    ProofEquivocation,
    ProposalEquivocation,
)
from daifi_flows.ledger._tx.tasks import Commit

__all__ = ["RULES"]


def block_equivocation(ctx: Context, tx: BlockEquivocation) -> Facts:
    """Slash the seats that signed two blocks of one height and round."""
    first, second = tx.first, tx.second
    committee = require_committee(ctx, first.epoch)
    for header in (first, second):
        same(
            ("ledger", header.ledger_id, ctx.ledger_id),
            ("epoch", header.epoch, committee.epoch),
            ("committee", header.committee, committee.digest),
        )
    same(("height", first.height, second.height), ("round", first.round, second.round))
    if first.digest == second.digest:
        refuse("bad-field", "both headers are the same block: signing it twice is no offence")
    _require_reached(ctx, first)
    # The later of the two: a seat could date its second block back.
    require_fresh(ctx, max(first.timestamp_ms, second.timestamp_ms))
    seats = require_accused(committee, tx.accused)
    for header, votes in ((first, tx.first_votes), (second, tx.second_votes)):
        message = QuorumCertificate.message(header.digest)
        require_signatures(committee, votes.signers, message, votes.signature)
    return _punish_seats(ctx, tx, seats, "block", {"height": first.height, "round": first.round})


def attestation_equivocation(ctx: Context, tx: AttestationEquivocation) -> Facts:
    """Slash the seats that signed two findings about one proof of one attempt of a task."""
    first, second = tx.first, tx.second
    committee = require_committee(ctx, first.epoch)
    for finding in (first, second):
        same(
            ("ledger", finding.ledger_id, ctx.ledger_id),
            ("epoch", finding.epoch, committee.epoch),
        )
    same(
        ("task", first.task_id, second.task_id),
        ("attempt", first.attempt, second.attempt),
        ("node", first.node, second.node),
        ("output", first.output_cid, second.output_cid),
        ("proof", first.proof_cid, second.proof_cid),
    )
    if first.message() == second.message():
        refuse("bad-field", "both findings are the same: signing it twice is no offence")
    require_fresh_task(ctx, first.task_id)
    seats = require_accused(committee, tx.accused)
    for finding in (first, second):
        require_signatures(committee, finding.signers, finding.message(), finding.signature)
    place = {
        "task_id": first.task_id,
        "attempt": first.attempt,
        "node": first.node,
        "proof_cid": first.proof_cid,
    }
    facts = _punish_seats(ctx, tx, seats, "attestation", place)
    return {**facts, "task_id": first.task_id}


def proof_equivocation(ctx: Context, tx: ProofEquivocation) -> Facts:
    """Slash a node that committed itself to two proofs in one attempt of a task."""
    first, second = tx.first, tx.second
    same(
        ("node", first.sender, second.sender),
        ("task", first.task_id, second.task_id),
        ("attempt", first.attempt, second.attempt),
    )
    if first.header.digest() == second.header.digest():
        refuse("bad-field", "both are the same proof: committing to it twice is no offence")
    task = require_fresh_task(ctx, first.task_id)
    for commit in (first, second):
        commit.check_signature(ctx.ledger_id)
        _require_header(commit)
    require_given(task, first.attempt, first.sender)
    account = ctx.account(first.sender)
    if account.stake_wei + account.unbonding_wei == 0:
        refuse("bad-state", f"{first.sender} has nothing at stake that could be taken")
    place = {"task_id": first.task_id, "attempt": first.attempt, "node": first.sender}
    payments = punish(ctx, "proof", place, first.sender, tx.sender)
    if payments is None:
        refuse("duplicate", "this offence was already shown")
    return {"task_id": first.task_id, "node": first.sender, "payments": payments}


def proposal_equivocation(ctx: Context, tx: ProposalEquivocation) -> Facts:
    """Slash a drawn proposer that signed two headers of one height and round."""
    first, second = tx.first.header, tx.second.header
    committee = require_committee(ctx, first.epoch)
    for header in (first, second):
        same(
            ("ledger", header.ledger_id, ctx.ledger_id),
            ("committee", header.committee, committee.digest),
        )
    same(
        ("height", first.height, second.height),
        ("round", first.round, second.round),
        ("proposer", first.proposer, second.proposer),
    )
    if first == second:
        refuse("bad-field", "both headers are the same block: signing it twice is no offence")
    if DoubleProposal(first=tx.first, second=tx.second).proposer is None:
        refuse("bad-signature", f"proposer {first.proposer} did not sign both headers")
    if all(seat.account != first.proposer for seat in committee.seats):
        refuse("bad-role", f"{first.proposer} has no seat, so it never proposes")
    _require_reached(ctx, first)
    require_fresh(ctx, max(first.timestamp_ms, second.timestamp_ms))
    place = {"height": first.height, "round": first.round}
    payments = punish(ctx, "proposal", place, first.proposer, tx.sender)
    if payments is None:
        refuse("duplicate", "this offence was already shown")
    return {"node": first.proposer, "content": tx.pair(), "payments": payments}


def _require_reached(ctx: Context, header: BlockHeader) -> None:
    if header.height > ctx.height:
        refuse("bad-state", f"this can be shown from block {header.height} on")


def _require_header(commit: Commit) -> None:
    header = commit.header
    same(
        ("node", header.node, commit.sender),
        ("task", header.statement.task_id, commit.task_id),
    )
    try:
        signer = recover_address(header.digest(), header.signature)
    except KeyMaterialError as error:
        raise TransactionRefused(
            f"the proof header is not signed: {error}", code="bad-signature"
        ) from error
    if signer != header.node:
        refuse("bad-signature", f"the proof header was not signed by node {header.node}")


def _punish_seats(
    ctx: Context,
    tx: BlockEquivocation | AttestationEquivocation,
    seats: tuple[Seat, ...],
    what: str,
    where: Mapping[str, Any],
) -> Facts:
    """Slash what the seats' accounts have at stake; a seat without any is only written down."""
    payments: tuple[Payment, ...] = ()
    punished: list[Seat] = []
    for seat in seats:
        # An account with several seats is one offender: it loses half, as several accounts would.
        paid = punish(ctx, what, where, seat.account, tx.sender)
        if paid is not None:
            payments += paid
            punished.append(seat)
    if not punished:
        refuse("duplicate", "these offences were already shown")
    return {"node": punished[0].account, "content": tx.pair(), "payments": payments}


RULES: Final[Mapping[type[Transaction], Rule]] = {
    BlockEquivocation: block_equivocation,
    AttestationEquivocation: attestation_equivocation,
    ProofEquivocation: proof_equivocation,
    ProposalEquivocation: proposal_equivocation,
    **vote_evidence.RULES,
}

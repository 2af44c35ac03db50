"""Governance: stake-weighted votes, and the agent that executes what passed.

The agent is the machine itself: at the beginning of each block it looks at the one agenda record,
and executes what is due. Nobody has to be asked, nobody can hold it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import PPM, TaskSpec
from daifi_flows.errors import EncodingError
from daifi_flows.ledger._governance import (
    MAX_OPEN,
    MAX_VOTES,
    AgendaEntry,
    AgendaRecord,
    Ballot,
    Choice,
    ModelListing,
    ModelRecord,
    Outcome,
    ProposalRecord,
    VoterRecord,
    changed_params,
    model_key,
    proposal_id,
    proposal_key,
    voter_key,
)
from daifi_flows.ledger._params import ParamsRecord
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.governance import CancelProposal, CastVote, Propose

__all__ = ["RULES", "check_model", "check_policy", "held_stake_wei", "run_agenda"]

_PER_BLOCK: Final = 4
"""Most proposals executed at the beginning of one block; the rest wait for the next."""


def propose(ctx: Context, tx: Propose) -> Facts:
    """Open a vote. Whatever could not be executed today is refused today."""
    if not tx.changes and not tx.models:
        refuse("bad-field", "the proposal changes nothing; name parameters or models")
    _check_once("parameter", [f"{change.group}.{change.field}" for change in tx.changes])
    _check_once("model", [change.digest.hex() for change in tx.models])
    try:
        changed_params(ctx.params, tx.changes, _money_wei(ctx))
    except EncodingError as error:
        refuse("bad-field", f"the proposal cannot be executed: {error}")
    agenda = _agenda(ctx)
    if len(agenda.entries) >= MAX_OPEN:
        refuse("bad-state", f"{MAX_OPEN} proposals are open; wait until one is decided")
    rules = ctx.params.governance
    ctx.debit(tx.sender, rules.deposit_wei)
    proposal = ProposalRecord(
        id=proposal_id(tx.sender, tx.nonce),
        proposer=tx.sender,
        title=tx.title,
        changes=tx.changes,
        models=tx.models,
        opened_ms=ctx.now_ms,
        ends_ms=ctx.now_ms + rules.voting_ms,
        due_ms=ctx.now_ms + rules.voting_ms + rules.timelock_ms,
        deposit_wei=rules.deposit_wei,
        electorate_wei=ctx.layer.supply().stakes_wei,
        turnout_wei=-(-_money_wei(ctx) * rules.turnout_ppm // PPM),
        quorum_ppm=rules.quorum_ppm,
        majority_ppm=rules.majority_ppm,
    )
    ctx.layer.put(proposal)
    entry = AgendaEntry(due_ms=proposal.due_ms, proposal=proposal.id)
    entries = sorted((*agenda.entries, entry), key=lambda each: (each.due_ms, each.proposal))
    ctx.layer.put(AgendaRecord(entries=tuple(entries)))
    return {"content": proposal.id}


def cast_vote(ctx: Context, tx: CastVote) -> Facts:
    """Count the sender's whole stake once; it cannot leave before the vote has ended."""
    proposal = _require_open(ctx, tx.proposal)
    stake_wei = ctx.account(tx.sender).stake_wei
    if stake_wei == 0:
        refuse("bad-role", f"{tx.sender} has nothing at stake; only stakes vote")
    voter = ctx.layer.find(VoterRecord, voter_key(tx.sender)) or VoterRecord(voter=tx.sender)
    ballots = voter.open_at(ctx.now_ms)
    if any(ballot.proposal == tx.proposal for ballot in ballots):
        refuse("duplicate", f"{tx.sender} has voted on this proposal; a vote is for good")
    if len(ballots) >= MAX_VOTES:
        refuse("bad-state", f"{tx.sender} has voted on {MAX_VOTES} open proposals; wait for one")
    ballot = Ballot(proposal=tx.proposal, ends_ms=proposal.ends_ms, weight_wei=stake_wei)
    ctx.layer.put(VoterRecord(voter=tx.sender, ballots=(*ballots, ballot)))
    tally = {
        Choice.FOR: "for_wei",
        Choice.AGAINST: "against_wei",
        Choice.ABSTAIN: "abstain_wei",
    }[tx.choice]
    update = {
        tally: getattr(proposal, tally) + stake_wei,
        "electorate_wei": max(proposal.electorate_wei, ctx.layer.supply().stakes_wei),
    }
    ctx.layer.put(proposal.model_copy(update=update))
    return {"content": proposal.id}


def cancel_proposal(ctx: Context, tx: CancelProposal) -> Facts:
    """End the sender's proposal; of the deposit the part of the voting time that is left comes
    back: who takes a place on the agenda pays for how long."""
    proposal = _require_open(ctx, tx.proposal)
    if proposal.proposer != tx.sender:
        refuse("bad-role", f"only {proposal.proposer} can cancel this proposal")
    _leave_agenda(ctx, proposal.id)
    ctx.layer.put(proposal.model_copy(update={"outcome": Outcome.CANCELLED, "deposit_wei": 0}))
    whole_ms = proposal.ends_ms - proposal.opened_ms
    back_wei = proposal.deposit_wei * (proposal.ends_ms - ctx.now_ms) // whole_ms
    payments = ctx.credit(tx.sender, back_wei, "deposit")
    payments += ctx.to_treasury(proposal.deposit_wei - back_wei, "deposit")
    return {"content": proposal.id, "payments": payments}


def run_agenda(ctx: Context) -> None:
    """Decide what is due, the earliest first; called once, before a block's transactions."""
    due = [entry for entry in _agenda(ctx).entries if entry.due_ms <= ctx.now_ms]
    for entry in due[:_PER_BLOCK]:
        proposal = ctx.layer.find(ProposalRecord, proposal_key(entry.proposal))
        assert proposal is not None, "what is on the agenda is in the state"
        _leave_agenda(ctx, proposal.id)
        if proposal.has_quorum:
            ctx.credit(proposal.proposer, proposal.deposit_wei, "deposit")
        else:
            ctx.to_treasury(proposal.deposit_wei, "deposit")
        outcome = _execute(ctx, proposal)
        ctx.layer.put(proposal.model_copy(update={"outcome": outcome, "deposit_wei": 0}))


def _execute(ctx: Context, proposal: ProposalRecord) -> Outcome:
    if not proposal.has_quorum:
        return Outcome.NO_QUORUM
    if not proposal.passed:
        return Outcome.DEFEATED
    try:
        params = changed_params(ctx.params, proposal.changes, _money_wei(ctx))
    except EncodingError:  # what this one relied on has changed
        return Outcome.IMPOSSIBLE
    ctx.layer.put(ParamsRecord(params=params))
    for change in proposal.models:
        if change.listing is ModelListing.NONE:
            ctx.layer.remove(model_key(change.digest))
        else:
            ctx.layer.put(ModelRecord(digest=change.digest, listing=change.listing))
    return Outcome.EXECUTED


def _money_wei(ctx: Context) -> int:
    """All money there is."""
    supply = ctx.layer.supply()
    return supply.issued_wei - supply.burned_wei


def held_stake_wei(ctx: Context, address: str) -> int:
    """Stake of an account that has voted on a proposal which is still open."""
    voter = ctx.layer.find(VoterRecord, voter_key(address))
    return 0 if voter is None else voter.held_wei(ctx.now_ms)


def check_policy(ctx: Context, spec: TaskSpec) -> None:
    """Refuse a task on a model that governance does not allow, or that asks the committee for
    less than governance does.

    Raises:
        TransactionRefused: ``model-barred``, or ``bad-field``.
    """
    params = ctx.params
    check_model(ctx, spec.model.digest, spec.model.name)
    least_ppm, most = params.committee.min_confidence_ppm, params.committee.max_attempts
    if spec.review.min_confidence_ppm < least_ppm:
        refuse("bad-field", f"a task asks for a confidence of {least_ppm} ppm at least")
    if spec.review.attempts > most:
        refuse("bad-field", f"a task has at most {most} attempts")


def check_model(ctx: Context, digest: bytes, name: str) -> None:
    """Refuse a model that governance does not allow.

    Raises:
        TransactionRefused: ``model-barred``.
    """
    policy = ctx.layer.find(ModelRecord, model_key(digest))
    if policy is not None and policy.listing is ModelListing.DENY:
        refuse("model-barred", f"governance denies model {name}; choose another")
    if policy is None and ctx.params.governance.whitelist_only:
        refuse("model-barred", f"governance has not allowed model {name}; choose another")


def _require_open(ctx: Context, id: bytes) -> ProposalRecord:
    proposal = ctx.layer.find(ProposalRecord, proposal_key(id))
    if proposal is None:
        refuse("unknown", f"there is no proposal {id.hex()}")
    if proposal.outcome is not Outcome.OPEN or proposal.ends_ms <= ctx.now_ms:
        refuse("bad-state", f"the vote on proposal {id.hex()} has ended")
    return proposal


def _agenda(ctx: Context) -> AgendaRecord:
    return ctx.layer.find(AgendaRecord, AgendaRecord.prefix) or AgendaRecord()


def _leave_agenda(ctx: Context, id: bytes) -> None:
    left = tuple(entry for entry in _agenda(ctx).entries if entry.proposal != id)
    if left:
        ctx.layer.put(AgendaRecord(entries=left))
    else:
        ctx.layer.remove(AgendaRecord.prefix)


def _check_once(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        refuse("bad-field", f"the proposal changes one {what} twice; say it once")


RULES: Final[Mapping[type[Transaction], Rule]] = {
    Propose: propose,
    CastVote: cast_vote,
    CancelProposal: cancel_proposal,
}

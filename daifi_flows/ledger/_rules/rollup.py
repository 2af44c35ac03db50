"""Batches: what each leaf pays and mints, and what a wrong leaf costs the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import PPM, Basis, Decision, token_id_of
from daifi_flows.encoding import cid_sha256, keccak256
from daifi_flows.errors import EncodingError, TransactionRefused
from daifi_flows.ledger._economics import Fault, split_price, split_slash
from daifi_flows.ledger._records import ZERO_ADDRESS, TaskState
from daifi_flows.ledger._rollups import (
    WORD_LEAVES,
    ClaimedWord,
    RollupCount,
    RollupRecord,
    rollup_key,
    word_key,
    word_keys,
)
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._minting import mint
from daifi_flows.ledger._rules._quorum import require_quorum
from daifi_flows.ledger._rules._stakes import is_node
from daifi_flows.ledger._rules._work import record_work
from daifi_flows.ledger._rules.governance import check_model
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.rollup import (
    ClaimLeaf,
    CloseBatch,
    FinaliseBatch,
    ProveDuplicate,
    ProveRejected,
    ProveSettled,
    SubmitBatch,
)
from daifi_flows.rollup import Batch, Leaf, LeafProof

__all__ = ["RULES"]


def submit_batch(ctx: Context, tx: SubmitBatch) -> Facts:
    """Check every leaf, pay the committee and the treasury, hold the rest and the bond.

    The committee's and the treasury's shares are of the total, rounded down; they are not given
    back when a leaf is proven wrong.
    """
    params, committee = ctx.params, ctx.attesting(tx.attestation.epoch)
    if tx.submit_by_ms <= ctx.now_ms:
        refuse(
            "expired",
            f"the batch was to be submitted before {tx.submit_by_ms} ms and it is {ctx.now_ms} ms "
            "on this ledger; have it attested again",
        )
    challenge_until_ms = ctx.now_ms + params.rollup.challenge_ms
    claim_until_ms = challenge_until_ms + params.rollup.claim_ms
    if tx.submit_by_ms > claim_until_ms:
        refuse(
            "bad-field",
            f"the batch may be submitted until {tx.submit_by_ms} ms, and it is forgotten from "
            f"{claim_until_ms} ms on: have it attested for a shorter time",
        )
    if ctx.layer.find(RollupRecord, rollup_key(tx.root)) is not None:
        refuse("duplicate", f"batch {tx.root.hex()} was already submitted")
    least_wei = max(params.rollup.min_bond_wei, -(-tx.total_wei * params.rollup.bond_ppm // PPM))
    if tx.bond_wei < least_wei:
        refuse("bad-field", f"the bond is {tx.bond_wei} wei; this batch needs {least_wei}")
    # Before the leaves: a submission that nobody attested or can pay for costs no hashing.
    seats = require_quorum(
        committee,
        tx.attestation.signers,
        tx.statement(ctx.ledger_id).message(),
        tx.attestation.signature,
    )
    ctx.debit(tx.sender, tx.total_wei + tx.bond_wei)
    try:
        batch = Batch(tx.leaves)
    except EncodingError as error:
        raise TransactionRefused(str(error), code="bad-field") from error
    if batch.total_wei != tx.total_wei:
        refuse("bad-field", f"the leaves add up to {batch.total_wei} wei, not {tx.total_wei}")
    if batch.root != tx.root:
        refuse("bad-field", f"the leaves' root is {batch.root.hex()}, not {tx.root.hex()}")
    for digest in batch.models:
        check_model(ctx, digest, digest.hex())
    split = split_price(
        tx.total_wei,
        seats=len(seats),
        parents=0,
        committee_ppm=params.fees.committee_ppm,
        royalty_ppm=0,
        treasury_ppm=params.fees.treasury_ppm,
    )
    payments = ctx.to_treasury(split.treasury_wei, "treasury")
    for seat in seats:
        payments += ctx.credit(seat.account, split.seat_wei, "committee")
    before = ctx.layer.find(RollupCount, RollupCount.prefix) or RollupCount()
    ctx.layer.put(RollupCount(batches=before.batches + 1))
    ctx.layer.put(
        RollupRecord(
            root=tx.root,
            number=before.batches,
            operator=tx.sender,
            count=batch.count,
            escrow_wei=split.node_wei,
            bond_wei=tx.bond_wei,
            cut_ppm=params.fees.committee_ppm + params.fees.treasury_ppm,
            submitted_ms=ctx.now_ms,
            challenge_until_ms=challenge_until_ms,
            claim_until_ms=claim_until_ms,
        )
    )
    attestation = keccak256(tx.attestation.canonical())
    return {"content": tx.root, "attestation": attestation, "payments": payments}


def _require_batch(ctx: Context, root: bytes) -> RollupRecord:
    batch = ctx.layer.find(RollupRecord, rollup_key(root))
    if batch is None:
        refuse(
            "unknown",
            f"batch {root.hex()} is not here: never submitted, proven wrong, or closed",
        )
    return batch


def _require_leaf(batch: RollupRecord, proof: LeafProof) -> Leaf:
    if not proof.verify(batch.root, batch.count):
        refuse(
            "bad-proof",
            f"the proof does not show leaf {proof.index} of batch {batch.root.hex()}; build it "
            "from the batch's leaves",
        )
    return Leaf.decode(proof.leaf)


def claim_leaf(ctx: Context, tx: ClaimLeaf) -> Facts:
    """Pay the node its price less the committee's and the treasury's shares, rounded up; mint the
    token of a leaf that names an owner.

    The work counts only for who is a node by now, with something at stake: a leaf may name anybody.
    """
    batch = _require_batch(ctx, tx.batch)
    if ctx.now_ms < batch.challenge_until_ms:
        refuse(
            "bad-state",
            f"leaves of this batch can be proven wrong until {batch.challenge_until_ms} ms; it is "
            f"{ctx.now_ms} ms on this ledger: claim after that",
        )
    if ctx.now_ms >= batch.claim_until_ms:
        refuse("expired", f"leaves of this batch could be claimed until {batch.claim_until_ms} ms")
    leaf, index = _require_leaf(batch, tx.proof), tx.proof.index
    number = index // WORD_LEAVES
    word = ctx.layer.find(ClaimedWord, word_key(batch.root, number))
    word = word or ClaimedWord(root=batch.root, word=number)
    if word.claimed(index):
        refuse("duplicate", f"leaf {index} of batch {batch.root.hex()} was already claimed")
    token_id = token_id_of(leaf.task_id)
    if ctx.layer.token(token_id) is not None:
        refuse("duplicate", f"task {leaf.task_id.hex()} is already settled elsewhere")
    if leaf.node == ZERO_ADDRESS:
        refuse("bad-field", f"leaf {index} names no node: nobody can be paid for it")
    ctx.layer.put(word.with_claimed(index))
    paid_wei = leaf.amount_wei - -(-leaf.amount_wei * batch.cut_ppm // PPM)
    ctx.layer.put(batch.model_copy(update={"escrow_wei": batch.escrow_wei - paid_wei}))
    facts: dict[str, object] = {
        "task_id": leaf.task_id,
        "node": leaf.node,
        "content": keccak256(tx.proof.leaf),
        "payments": ctx.credit(leaf.node, paid_wei, "node"),
    }
    if is_node(ctx, leaf.node):
        record_work(ctx, leaf.node, flop=leaf.flops, paid_wei=leaf.amount_wei)
    if leaf.owner != ZERO_ADDRESS:
        mint(
            ctx,
            task_id=leaf.task_id,
            owner=leaf.owner,
            parents=(),
            content=keccak256(tx.proof.leaf),
            origin=None,
        )
        facts["token_id"] = token_id
    return facts


# Proofs of fraud


def _require_challengeable(ctx: Context, root: bytes) -> RollupRecord:
    batch = _require_batch(ctx, root)
    if ctx.now_ms >= batch.challenge_until_ms:
        refuse(
            "expired",
            f"leaves of this batch could be proven wrong until {batch.challenge_until_ms} ms",
        )
    return batch


def _revert(ctx: Context, batch: RollupRecord, leaf: Leaf, reporter: str) -> Facts:
    """End the batch: nobody has claimed from it yet, so all its money goes back; the bond is cut
    as for any fault, and the rest of it goes back too."""
    slashing = ctx.params.slashing
    slashed_wei = batch.bond_wei * slashing.fraction_ppm(Fault.ROLLUP_FRAUD) // PPM
    # An operator that reports itself must not win part of its own slash back.
    split = split_slash(
        slashed_wei,
        reporter_ppm=slashing.reporter_ppm if reporter != batch.operator else 0,
        burn_ppm=slashing.burn_ppm,
    )
    ctx.layer.remove(batch.key())
    payments = ctx.credit(reporter, split.reporter_wei, "slash")
    payments += ctx.burn(split.burned_wei, "slash")
    payments += ctx.to_treasury(split.treasury_wei, "slash")
    back_wei = batch.escrow_wei + batch.bond_wei - slashed_wei
    payments += ctx.credit(batch.operator, back_wei, "refund")
    return {"task_id": leaf.task_id, "content": batch.root, "payments": payments}


def _require_notice(ctx: Context, batch: RollupRecord, leaf: Leaf, since_ms: int) -> None:
    """Refuse to convict an operator of what it could not have seen on the ledger in time."""
    before_ms = batch.submitted_ms - ctx.params.rollup.notice_ms
    if since_ms >= before_ms:
        refuse(
            "bad-proof",
            f"task {leaf.task_id.hex()} is elsewhere since {since_ms} ms; the operator had to know "
            f"only what was there before {before_ms} ms, and the leaf is not paid twice anyway",
        )


def prove_duplicate(ctx: Context, tx: ProveDuplicate) -> Facts:
    """The later of two batches that settle one task is wrong, if its operator could see the
    earlier one."""
    batch = _require_challengeable(ctx, tx.batch)
    earlier = _require_batch(ctx, tx.earlier)
    if earlier.number >= batch.number:
        refuse("bad-field", f"batch {tx.earlier.hex()} is not earlier than {tx.batch.hex()}")
    leaf, other = _require_leaf(batch, tx.proof), _require_leaf(earlier, tx.earlier_proof)
    if leaf.task_id != other.task_id:
        refuse("bad-proof", "the two leaves are about different tasks")
    _require_notice(ctx, batch, leaf, earlier.submitted_ms)
    return _revert(ctx, batch, leaf, tx.sender)


def prove_settled(ctx: Context, tx: ProveSettled) -> Facts:
    """A task that was settled well before the batch must not be in it."""
    batch = _require_challengeable(ctx, tx.batch)
    leaf = _require_leaf(batch, tx.proof)
    task, token = ctx.layer.task(leaf.task_id), ctx.layer.token(token_id_of(leaf.task_id))
    if task is not None and task.state is TaskState.SETTLED:
        settled_ms = task.settled_ms
    elif token is not None:
        settled_ms = token.minted_ms
    else:
        refuse("bad-proof", f"task {leaf.task_id.hex()} is not settled on this ledger")
    _require_notice(ctx, batch, leaf, settled_ms)
    return _revert(ctx, batch, leaf, tx.sender)


def prove_rejected(ctx: Context, tx: ProveRejected) -> Facts:
    """A leaf is wrong whose very answer the committee rejected."""
    batch = _require_challengeable(ctx, tx.batch)
    leaf, attestation = _require_leaf(batch, tx.proof), tx.attestation
    committee = ctx.attesting(attestation.epoch)
    for name, claimed, wanted in (
        ("ledger", attestation.ledger_id, ctx.ledger_id),
        ("task", attestation.task_id, leaf.task_id),
        ("node", attestation.node, leaf.node),
        ("output", cid_sha256(attestation.output_cid)[1], leaf.output),
        ("decision", attestation.decision, Decision.REJECTED),
        ("basis", attestation.basis, Basis.REVIEWED),
    ):
        if claimed != wanted:
            refuse("bad-field", f"the attestation is about another {name} than the leaf")
    require_quorum(committee, attestation.signers, attestation.message(), attestation.signature)
    facts = _revert(ctx, batch, leaf, tx.sender)
    return {**facts, "node": leaf.node, "attestation": keccak256(attestation.canonical())}


# Endings


def finalise_batch(ctx: Context, tx: FinaliseBatch) -> Facts:
    """Give the bond back once no leaf can be proven wrong any more."""
    batch = _require_batch(ctx, tx.batch)
    if ctx.now_ms < batch.challenge_until_ms:
        refuse(
            "bad-state",
            f"leaves of this batch can be proven wrong until {batch.challenge_until_ms} ms; it is "
            f"{ctx.now_ms} ms on this ledger",
        )
    if batch.bond_wei == 0:
        refuse("duplicate", f"batch {tx.batch.hex()} is already final")
    ctx.layer.put(batch.model_copy(update={"bond_wei": 0}))
    return {"content": tx.batch, "payments": ctx.credit(batch.operator, batch.bond_wei, "refund")}


def close_batch(ctx: Context, tx: CloseBatch) -> Facts:
    """Give back what nobody claimed, and forget the batch."""
    batch = _require_batch(ctx, tx.batch)
    if ctx.now_ms < batch.claim_until_ms:
        refuse(
            "bad-state",
            f"leaves of this batch can be claimed until {batch.claim_until_ms} ms; it is "
            f"{ctx.now_ms} ms on this ledger",
        )
    ctx.layer.remove(batch.key())
    for key in word_keys(batch.root, batch.count):
        if ctx.layer.get(key) is not None:
            ctx.layer.remove(key)
    payments = ctx.credit(batch.operator, batch.escrow_wei + batch.bond_wei, "refund")
    return {"content": tx.batch, "payments": payments}


RULES: Final[Mapping[type[Transaction], Rule]] = {
    SubmitBatch: submit_batch,
    ClaimLeaf: claim_leaf,
    ProveDuplicate: prove_duplicate,
    ProveSettled: prove_settled,
    ProveRejected: prove_rejected,
    FinaliseBatch: finalise_batch,
    CloseBatch: close_batch,
}

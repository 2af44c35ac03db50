"""Executions used again: flash attests, and repetitions by other nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import Content, token_id_of
from daifi_flows.dispute import MAX_DISPUTES
from daifi_flows.encoding import cid_of, tagged_hash
from daifi_flows.errors import EncodingError, TransactionRefused
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._economics import royalty_wei
from daifi_flows.ledger._origins import Origin, TokenKind, reference_id_of, work_of
from daifi_flows.ledger._records import TaskRecord, TaskState, TokenRecord
from daifi_flows.ledger._rules._context import Context, Facts, Rule, refuse
from daifi_flows.ledger._rules._minting import (
    holder_of,
    require_not_disproven,
    require_sound,
    require_token,
)
from daifi_flows.ledger._rules.disputes import dispute
from daifi_flows.ledger._rules.governance import check_policy
from daifi_flows.ledger._tokens import ReproductionRecord, reproduction_key
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.disputes import Dispute
from daifi_flows.ledger._tx.tokens import (
    MAX_OPENING_BYTES,
    Contradict,
    FlashAttest,
    PriceReuse,
    Reproduce,
)

__all__ = ["RULES"]

_MAX_SPEC_BYTES: Final = 16 * 1024


def _require_origin(token: TokenRecord) -> Origin:
    if token.kind is not TokenKind.EXECUTED or token.origin is None:
        instead = "" if token.of is None else f"; name {token.of.hex()}, which it reuses"
        refuse(
            "bad-state",
            f"token {token.token_id.hex()} is {token.kind} and vouches for no execution of a "
            f"known spec{instead}",
        )
    return token.origin


def price_reuse(ctx: Context, tx: PriceReuse) -> Facts:
    """Set what a flash attest of the token costs."""
    token = require_token(ctx, tx.token_id)
    _require_origin(token)
    if holder_of(ctx.layer, token) != tx.sender:
        refuse("bad-role", f"only the holder {holder_of(ctx.layer, token)} can price this token")
    update = {"reuse_fee_wei": tx.fee_wei, "priced_by": tx.sender}
    ctx.layer.put(token.model_copy(update=update))
    return {"token_id": token.token_id}


def flash_attest(ctx: Context, tx: FlashAttest) -> Facts:
    """Mint a reference to an executed token for a new task of the same work, for a fee.

    The attestation stays the first one's: the receipt binds it and the original token to the new
    task, and the fee to its payee.
    """
    spec, task_id = tx.spec, tx.spec.task_id
    if spec.buyer != tx.sender:
        refuse("bad-role", f"only the buyer {spec.buyer} can have this task attested")
    if len(spec.canonical()) > _MAX_SPEC_BYTES:
        refuse("bad-field", f"the task's spec is over {_MAX_SPEC_BYTES} bytes")
    token_id = reference_id_of(task_id)
    minted = any(ctx.layer.token(each) is not None for each in (token_id, token_id_of(task_id)))
    if minted or ctx.layer.task(task_id) is not None:
        refuse("duplicate", f"task {task_id.hex()} is already on this ledger; draw another nonce")
    if spec.deadline_ms <= ctx.now_ms:
        refuse("expired", "the task's deadline has already passed; set a later one")
    check_policy(ctx, spec)
    original = require_token(ctx, tx.of)
    origin = _require_origin(original)
    require_sound(ctx, original)
    if work_of(spec) != origin.work:
        refuse(
            "bad-field",
            "the task asks for other work than the token holds: all of the spec must be the same "
            "but buyer, nonce, deadline and highest price",
        )
    params = ctx.params
    holder = holder_of(ctx.layer, original)
    asked_wei = original.fee_to_reuse_wei(params.tokens.reuse_ppm, holder)
    if tx.fee_wei != asked_wei:
        refuse("bad-state", f"reusing this token costs {asked_wei} wei, not {tx.fee_wei}")
    if asked_wei > spec.max_price_wei:
        refuse("bad-field", f"the fee is over the task's highest price of {spec.max_price_wei} wei")
    ctx.debit(tx.sender, asked_wei)
    treasury_wei = royalty_wei(asked_wei, params.fees.treasury_ppm)
    payments = ctx.credit(holder, asked_wei - treasury_wei, "reuse")
    payments += ctx.to_treasury(treasury_wei, "treasury")
    reference = TokenRecord(
        token_id=token_id,
        owner=tx.sender,
        parents=spec.parents,
        task_id=task_id,
        content=original.content,
        minted_ms=ctx.now_ms,
        kind=TokenKind.REFERENCE,
        origin=origin,
        royalty_ppm=original.royalty_ppm,
        payees=original.payees,
        of=original.token_id,
    )
    ctx.layer.put(reference)
    return {
        "task_id": task_id,
        "token_id": token_id,
        "of": original.token_id,
        "node": origin.node,
        "attestation": origin.attestation,
        "content": original.content,
        "payments": payments,
    }


def _opened(name: str, opening: bytes, cid: str) -> Content:
    if cid_of(opening, "dag-cbor") != cid:
        refuse("bad-field", f"the {name} output shown is not what its execution committed to")
    try:
        return Content.from_canonical(opening, max_bytes=MAX_OPENING_BYTES)
    except EncodingError as error:
        raise TransactionRefused(
            f"the {name} output shown is no content: {error}", code="bad-field"
        ) from error


def _agree(tx: Reproduce | Contradict, original: Origin, again: Origin) -> bool:
    """Whether two outputs hold the same bytes.

    Outputs are salted commitments: equal ones agree; of different ones the contents tell.
    """
    if original.output_cid == again.output_cid:
        if tx.original_output or tx.again_output:
            refuse("bad-field", "the commitments are equal; show no contents")
        return True
    first = _opened("original's", tx.original_output, original.output_cid)
    second = _opened("repetition's", tx.again_output, again.output_cid)
    return (first.media_type, first.data) == (second.media_type, second.data)


def _repeat(ctx: Context, tx: Reproduce | Contradict, *, agrees: bool) -> Facts:
    original, again = require_token(ctx, tx.original), require_token(ctx, tx.again)
    first, second = _require_origin(original), _require_origin(again)
    holder = holder_of(ctx.layer, again)
    if holder != tx.sender:
        refuse("bad-role", f"only the repetition's holder {holder} can bring it")
    if first.work != second.work:
        refuse(
            "bad-field",
            "the two executions did other work: their specs may differ in buyer, nonce, deadline "
            "and highest price only",
        )
    if first.node == second.node:
        refuse("bad-role", f"both were executed by {first.node}; let another node repeat it")
    require_not_disproven(original)
    require_not_disproven(again)
    key = reproduction_key(original.token_id, second.node)
    if ctx.layer.find(ReproductionRecord, key) is not None:
        refuse("duplicate", f"node {second.node} has already repeated this token's execution")
    if _agree(tx, first, second) is not agrees:
        found = "differ" if agrees else "are the same"
        other = "contradict" if agrees else "reproduce"
        refuse("bad-field", f"the outputs {found}; send {other} instead")
    ctx.layer.put(
        ReproductionRecord(
            original=original.token_id,
            node=second.node,
            again=again.token_id,
            agrees=int(agrees),
            reporter=tx.sender,
            at_ms=ctx.now_ms,
        )
    )
    if agrees:
        count = original.reproductions + 1
        ctx.layer.put(original.model_copy(update={"reproductions": count}))
    return {
        "task_id": again.task_id,
        "token_id": again.token_id,
        "of": original.token_id,
        "node": second.node,
        "attestation": second.attestation,
        "content": original.content,
    }


def _open_to_dispute(ctx: Context, task: TaskRecord) -> bool:
    return (
        task.state is TaskState.SETTLED
        and ctx.now_ms < task.challenge_until_ms
        and task.disputes < MAX_DISPUTES
        and ctx.layer.find(DisputeRecord, dispute_key(task.task_id)) is None
    )


def reproduce(ctx: Context, tx: Reproduce) -> Facts:
    """Count one more node that got the same output."""
    return _repeat(ctx, tx, agrees=True)


def contradict(ctx: Context, tx: Contradict) -> Facts:
    """Record that a node got another output from the same work, and open the dispute about the
    original's output where one can be opened.

    Two outputs that differ show that one of them may be wrong, and where a scheme tolerates
    rounding not even that: the committee decides.
    """
    facts = _repeat(ctx, tx, agrees=False)
    task = ctx.layer.task(require_token(ctx, tx.original).task_id)
    if task is not None and _open_to_dispute(ctx, task):
        evidence = {"again": tx.again, "outputs": [tx.original_output, tx.again_output]}
        challenge = Dispute(
            sender=tx.sender,
            nonce=tx.nonce,
            task_id=task.task_id,
            number=task.disputes,
            bond_wei=tx.bond_wei,
            evidence=tagged_hash("daifi/contradiction/1", evidence),
        )
        dispute(ctx, challenge)
    return facts


RULES: Final[Mapping[type[Transaction], Rule]] = {
    PriceReuse: price_reuse,
    FlashAttest: flash_attest,
    Reproduce: reproduce,
    Contradict: contradict,
}

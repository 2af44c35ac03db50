"""What an attestation does to money: settlement, slashing and refunds, checked and exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from daifi_flows.cnft import PPM, Attestation, Decision, Payment, token_id_of
from daifi_flows.encoding import keccak256
from daifi_flows.errors import EncodingError, InsufficientFunds, TransactionRefused
from daifi_flows.keys import verify_bls_aggregate
from daifi_flows.ledger._records import (
    ZERO_ADDRESS,
    Genesis,
    TaskRecord,
    TaskState,
    TokenRecord,
)
from daifi_flows.ledger._state import Layer
from daifi_flows.ledger._transactions import Reject, Settle, Unproven

__all__ = ["credit", "debit", "refund", "reject", "reopen", "settle", "unproven"]


def _refuse(code: str, message: str) -> NoReturn:
    raise TransactionRefused(message, code=code)


def debit(layer: Layer, address: str, amount_wei: int) -> None:
    """Take money from a balance.

    Raises:
        InsufficientFunds: there is less than that.
    """
    account = layer.account(address)
    if account.balance_wei < amount_wei:
        raise InsufficientFunds(
            f"account {address} holds {account.balance_wei} wei and needs {amount_wei}; fund it",
            code="insufficient-funds",
            balance_wei=account.balance_wei,
            needed_wei=amount_wei,
        )
    layer.put_account(account.model_copy(update={"balance_wei": account.balance_wei - amount_wei}))


def credit(layer: Layer, address: str, amount_wei: int, reason: str) -> tuple[Payment, ...]:
    """Add money to a balance; the payment for the receipt (none for nothing)."""
    if amount_wei == 0:
        return ()
    account = layer.account(address)
    layer.put_account(account.model_copy(update={"balance_wei": account.balance_wei + amount_wei}))
    return (Payment(to=address, amount_wei=amount_wei, reason=reason),)


def _to_treasury(
    layer: Layer, genesis: Genesis, amount_wei: int, reason: str
) -> tuple[Payment, ...]:
    if amount_wei == 0:
        return ()
    supply = layer.supply()
    layer.put_supply(supply.model_copy(update={"treasury_wei": supply.treasury_wei + amount_wei}))
    return (Payment(to=genesis.treasury, amount_wei=amount_wei, reason=reason),)


def _burn(layer: Layer, amount_wei: int) -> tuple[Payment, ...]:
    if amount_wei == 0:
        return ()
    supply = layer.supply()
    layer.put_supply(supply.model_copy(update={"burned_wei": supply.burned_wei + amount_wei}))
    return (Payment(to=ZERO_ADDRESS, amount_wei=amount_wei, reason="slash"),)


def refund(layer: Layer, task: TaskRecord, state: TaskState) -> tuple[Payment, ...]:
    """End a task in ``state`` and give its whole escrow back to the buyer."""
    layer.put_task(task.model_copy(update={"state": state, "escrow_wei": 0}))
    return credit(layer, task.spec.buyer, task.escrow_wei, "refund")


def reopen(layer: Layer, task: TaskRecord, barred: tuple[str, ...]) -> None:
    """Back to open for the next attempt; the escrow stays."""
    layer.put_task(
        task.model_copy(
            update={
                "state": TaskState.OPEN,
                "attempt": task.attempt + 1,
                "price_wei": 0,
                "node": None,
                "proof": None,
                "proof_cid": None,
                "barred": barred,
            }
        )
    )


def _check(
    genesis: Genesis,
    ledger_id: bytes,
    task: TaskRecord,
    attestation: Attestation,
    decision: Decision,
) -> tuple[str, ...]:
    """Check an attestation against the committed proof; the signing seats' accounts.

    Raises:
        TransactionRefused: ``bad-field`` for another ledger, epoch, attempt, node, output, proof
            or decision; ``bad-signature`` for fewer than a quorum or a wrong BLS aggregate.
    """
    assert task.proof is not None, "a committed task has a proof"
    committee = genesis.committee
    for name, claimed, wanted in (
        ("ledger", attestation.ledger_id, ledger_id),
        ("epoch", attestation.epoch, committee.epoch),
        ("attempt", attestation.attempt, task.attempt),
        ("node", attestation.node, task.node),
        ("output", attestation.output_cid, task.proof.statement.output_cid),
        ("proof", attestation.proof_cid, task.proof_cid),
        ("decision", attestation.decision, decision),
    ):
        if claimed != wanted:
            _refuse("bad-field", f"the attestation is about another {name} than this transaction")
    if (
        decision is Decision.ACCEPTED
        and attestation.confidence_ppm < task.spec.review.min_confidence_ppm
    ):
        _refuse(
            "bad-field",
            f"confidence {attestation.confidence_ppm} ppm is under the task's minimum of "
            f"{task.spec.review.min_confidence_ppm}",
        )
    try:
        seats = committee.signers(attestation.signers)
    except EncodingError as error:
        raise TransactionRefused(str(error), code="bad-field") from error
    if len(seats) < committee.quorum:
        _refuse(
            "bad-signature",
            f"{len(seats)} of {len(committee.seats)} seats signed; {committee.quorum} are needed",
        )
    if not verify_bls_aggregate(
        [seat.public for seat in seats], attestation.message(), attestation.signature
    ):
        _refuse("bad-signature", "the attestation's aggregate signature does not verify")
    return tuple(seat.account for seat in seats)


def settle(
    genesis: Genesis, ledger_id: bytes, layer: Layer, task: TaskRecord, tx: Settle
) -> Mapping[str, Any]:
    """Split the price, refund the rest, mint the token.

    Committee, royalty and treasury shares are rounded down; the node gets the rest of the price.
    """
    seats = _check(genesis, ledger_id, task, tx.attestation, Decision.ACCEPTED)
    node, price, params = tx.attestation.node, task.price_wei, genesis.params
    owners = [token.owner for p in task.spec.parents if (token := layer.token(p)) is not None]
    seat_wei = price * params.committee_ppm // PPM // len(seats)
    owner_wei = price * params.royalty_ppm // PPM // len(owners) if owners else 0
    treasury_wei = price * params.treasury_ppm // PPM
    node_wei = price - seat_wei * len(seats) - owner_wei * len(owners) - treasury_wei
    payments = credit(layer, node, node_wei, "node")
    for seat in seats:
        payments += credit(layer, seat, seat_wei, "committee")
    for owner in owners:
        payments += credit(layer, owner, owner_wei, "royalty")
    payments += _to_treasury(layer, genesis, treasury_wei, "treasury")
    payments += credit(layer, task.spec.buyer, task.escrow_wei - price, "refund")

    account = layer.account(node)
    layer.put_account(account.model_copy(update={"accepted": account.accepted + 1}))
    token = TokenRecord(
        token_id=token_id_of(task.task_id),
        owner=task.spec.buyer,
        parents=task.spec.parents,
        task_id=task.task_id,
        content=tx.metadata,
    )
    layer.put_token(token)
    layer.put_task(
        task.model_copy(
            update={"state": TaskState.SETTLED, "escrow_wei": 0, "token_id": token.token_id}
        )
    )
    return {
        "task_id": task.task_id,
        "token_id": token.token_id,
        "node": node,
        "attestation": keccak256(tx.attestation.canonical()),
        "content": tx.metadata,
        "payments": payments,
    }


def reject(
    genesis: Genesis, ledger_id: bytes, layer: Layer, task: TaskRecord, tx: Reject
) -> Mapping[str, Any]:
    """Slash the node, bar it from this task, reopen the task. The sender is the reporter."""
    _check(genesis, ledger_id, task, tx.attestation, Decision.REJECTED)
    params, node = genesis.params, tx.attestation.node
    account = layer.account(node)
    slashed = account.stake_wei * params.slash_rejected_ppm // PPM
    layer.put_account(
        account.model_copy(
            update={"stake_wei": account.stake_wei - slashed, "rejected": account.rejected + 1}
        )
    )
    # A node that reports itself must not win part of its own slash back.
    reporter_wei = slashed * params.slash_reporter_ppm // PPM if tx.sender != node else 0
    burned_wei = slashed * params.slash_burn_ppm // PPM
    payments = credit(layer, tx.sender, reporter_wei, "slash")
    payments += _burn(layer, burned_wei)
    payments += _to_treasury(layer, genesis, slashed - reporter_wei - burned_wei, "slash")
    reopen(layer, task, (*task.barred, node))
    return {
        "task_id": task.task_id,
        "node": node,
        "attestation": keccak256(tx.attestation.canonical()),
        "payments": payments,
    }


def unproven(
    genesis: Genesis, ledger_id: bytes, layer: Layer, task: TaskRecord, tx: Unproven
) -> Mapping[str, Any]:
    """Refund the buyer; the node keeps its stake and its reputation."""
    _check(genesis, ledger_id, task, tx.attestation, Decision.UNPROVEN)
    payments = refund(layer, task, TaskState.UNPROVEN)
    return {
        "task_id": task.task_id,
        "node": task.node,
        "attestation": keccak256(tx.attestation.canonical()),
        "payments": payments,
    }

"""Being a node: its offer, its stake, and taking both back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daifi_flows.cnft import NodeInfo, Payment
from daifi_flows.errors import InsufficientFunds
from daifi_flows.ledger._nodes import BlsKeyRecord, bls_key_key, node_key_proven
from daifi_flows.ledger._records import AccountRecord
from daifi_flows.ledger._rules._context import Context, Facts, Rule, positive, refuse
from daifi_flows.ledger._rules.committee import held_pledge_wei
from daifi_flows.ledger._rules.governance import held_stake_wei
from daifi_flows.ledger._tranches import due_ms, matured, with_tranche
from daifi_flows.ledger._tx import Transaction
from daifi_flows.ledger._tx.nodes import Register, Retire, Stake, Unstake, Withdraw

__all__ = ["RULES"]

_MAX_ENGINES: Final = 32
_MAX_ENGINE_CHARS: Final = 64


def stake(ctx: Context, tx: Stake) -> Facts:
    """From the sender's balance to its stake."""
    positive(tx.amount_wei)
    ctx.debit(tx.sender, tx.amount_wei)
    account = ctx.account(tx.sender)
    ctx.layer.put(account.model_copy(update={"stake_wei": account.stake_wei + tx.amount_wei}))
    payment = Payment(to=tx.sender, amount_wei=tx.amount_wei, reason="stake")
    return {"node": tx.sender, "payments": (payment,)}


def register(ctx: Context, tx: Register) -> Facts:
    """Set the sender's offer as a node; its BLS key, if any, becomes its own alone."""
    info = tx.info
    if info.address != tx.sender:
        refuse("bad-role", f"node {info.address} must register itself, not {tx.sender}")
    if len(info.engines) > _MAX_ENGINES or any(
        not 0 < len(engine) <= _MAX_ENGINE_CHARS for engine in info.engines
    ):
        refuse(
            "bad-field",
            f"a node offers at most {_MAX_ENGINES} engines, each named in 1 to "
            f"{_MAX_ENGINE_CHARS} characters",
        )
    if len(set(info.models)) != len(info.models):
        refuse("bad-field", "a node names each model it offers once")
    account = ctx.account(tx.sender)
    _keep_seat_key(ctx, account, info.bls_public)
    _let_go_key(ctx, account.registered)
    _bind_key(ctx, info)
    ctx.layer.put(account.model_copy(update={"registered": info}))
    return {"node": tx.sender}


def _keep_seat_key(ctx: Context, account: AccountRecord, public: bytes | None) -> None:
    """A seat is offered, drawn and held with one key."""
    before = account.registered
    if (
        before is not None
        and before.bls_public not in (None, public)
        and held_pledge_wei(ctx, account.address)
    ):
        refuse(
            "bad-state",
            f"{account.address} offers itself for a seat, or has one, with its BLS key; withdraw "
            "the offer and wait until the seat is left",
        )


def _bind_key(ctx: Context, info: NodeInfo) -> None:
    if info.bls_public is None and info.bls_possession is None:
        return
    if info.bls_public is None or info.bls_possession is None:
        refuse("bad-field", "a BLS key and the proof of its possession come together")
    held = ctx.layer.find(BlsKeyRecord, bls_key_key(info.bls_public))
    if held is not None:
        refuse("duplicate", f"this BLS key is registered for {held.owner}; make another")
    if not node_key_proven(info.bls_public, info.address, info.bls_possession):
        refuse(
            "bad-signature",
            f"the proof does not show that the BLS key's holder registers it for {info.address}",
        )
    ctx.layer.put(BlsKeyRecord(public=info.bls_public, owner=info.address))


def _let_go_key(ctx: Context, info: NodeInfo | None) -> None:
    if info is not None and info.bls_public is not None:
        ctx.layer.remove(bls_key_key(info.bls_public))


def retire(ctx: Context, tx: Retire) -> Facts:
    """Take the sender's offer and its BLS key out of the state."""
    account = ctx.account(tx.sender)
    if account.registered is None:
        refuse("unknown", f"{tx.sender} is not registered as a node")
    _keep_seat_key(ctx, account, None)
    _let_go_key(ctx, account.registered)
    ctx.layer.put(account.model_copy(update={"registered": None}))
    return {"node": tx.sender}


def unstake(ctx: Context, tx: Unstake) -> Facts:
    """From the sender's stake to unbonding, where a slash still reaches it."""
    positive(tx.amount_wei)
    account = ctx.account(tx.sender)
    if account.free_stake_wei < tx.amount_wei:
        raise InsufficientFunds(
            f"account {tx.sender} has {account.stake_wei} wei at stake, of which "
            f"{account.free_stake_wei} vouch for no task, not {tx.amount_wei}",
            code="insufficient-funds",
            balance_wei=account.free_stake_wei,
            needed_wei=tx.amount_wei,
        )
    voted_wei = held_stake_wei(ctx, tx.sender)
    if account.stake_wei - tx.amount_wei < voted_wei:
        refuse(
            "bad-state",
            f"{voted_wei} wei of the stake of {tx.sender} voted on a proposal that is still open; "
            "they stay until its vote ends",
        )
    pledged_wei = held_pledge_wei(ctx, tx.sender)
    if account.stake_wei - tx.amount_wei < pledged_wei:
        refuse(
            "bad-state",
            f"{pledged_wei} wei of the stake of {tx.sender} are pledged for a seat on the "
            "committee; they stay until the offer is withdrawn and the seat is left",
        )
    due = max(due_ms(ctx.now_ms, ctx.params.staking.unbonding_ms), account.vouching_until_ms)
    ctx.layer.put(
        account.model_copy(
            update={
                "stake_wei": account.stake_wei - tx.amount_wei,
                "unbonding": with_tranche(account.unbonding, due, tx.amount_wei),
            }
        )
    )
    payment = Payment(to=tx.sender, amount_wei=tx.amount_wei, reason="unstake")
    return {"node": tx.sender, "payments": (payment,)}


def withdraw(ctx: Context, tx: Withdraw) -> Facts:
    """From unbonding and locked to the balance, as far as it is due."""
    # As it was before this transaction, whose fee may have moved what is due.
    before = ctx.layer.parent.account(tx.holder)
    unbonded_wei, _ = matured(before.unbonding, ctx.now_ms)
    unlocked_wei, _ = matured(before.locked, ctx.now_ms)
    if not unbonded_wei and not unlocked_wei:
        waiting = [tranche.due_ms for tranche in (*before.unbonding, *before.locked)]
        when = f"the first of it is at {min(waiting)} ms" if waiting else "none waits"
        refuse(
            "bad-state",
            f"no money of {tx.holder} is due at {ctx.now_ms} ms on this ledger; {when}",
        )
    ctx.layer.put(ctx.account(tx.holder))
    return {
        "payments": tuple(
            Payment(to=tx.holder, amount_wei=amount_wei, reason=reason)
            for amount_wei, reason in ((unbonded_wei, "unbonded"), (unlocked_wei, "unlocked"))
            if amount_wei
        )
    }


RULES: Final[Mapping[type[Transaction], Rule]] = {
    Stake: stake,
    Register: register,
    Retire: retire,
    Unstake: unstake,
    Withdraw: withdraw,
}

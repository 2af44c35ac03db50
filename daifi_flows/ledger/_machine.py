"""The state machine: what each transaction checks and changes. Pure: no clock, no I/O.

Every rule that is broken raises a typed refusal and leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from daifi_flows.cnft import (
    Noun,
    Payment,
    TxReceipt,
)
from daifi_flows.errors import KeyMaterialError, LedgerError, TransactionRefused
from daifi_flows.keys import recover_address
from daifi_flows.ledger import _attested
from daifi_flows.ledger._records import (
    AccountRecord,
    Genesis,
    SupplyReport,
    TaskRecord,
    TaskState,
)
from daifi_flows.ledger._state import Layer
from daifi_flows.ledger._transactions import (
    Assign,
    Cancel,
    Commit,
    Effect,
    Expire,
    Open,
    Register,
    Reject,
    Release,
    Settle,
    Stake,
    Transaction,
    Transfer,
    Unproven,
)

__all__ = ["MAX_PARENTS", "Machine"]

MAX_PARENTS: Final = 64
"""Most parents one task may name: each costs a royalty payment in the receipt."""
_MAX_SPEC_BYTES: Final = 16 * 1024
_MAX_ENGINES: Final = 32
_MAX_ENGINE_CHARS: Final = 64


def refuse(code: str, message: str) -> NoReturn:
    """Refuse with a stable code (see :class:`~daifi_flows.errors.TransactionRefused`)."""
    raise TransactionRefused(message, code=code)


class Machine:
    """Executes transactions of one ledger on layers of its state."""

    def __init__(self, genesis: Genesis) -> None:
        genesis.check()
        self.genesis = genesis
        self.ledger_id = genesis.ledger_id
        self.committee = genesis.committee
        self.params = genesis.params
        self._handlers: Mapping[type[Transaction], Callable[..., Mapping[str, Any]]] = {
            Transfer: self._transfer,
            Stake: self._stake,
            Register: self._register,
            Open: self._open,
            Assign: self._assign,
            Commit: self._commit,
            Release: self._release,
            Cancel: self._cancel,
            Expire: self._expire,
            Effect: self._effect,
            Settle: self._settle,
            Reject: self._reject,
            Unproven: self._unproven,
        }

    def genesis_state(self) -> Layer:
        """The state before any transaction."""
        base = Layer()
        issued = sum(item.amount_wei for item in self.genesis.allocations)
        for item in self.genesis.allocations:
            base.put_account(AccountRecord(address=item.address, balance_wei=item.amount_wei))
        base.put_supply(SupplyReport(issued_wei=issued, balances_wei=issued))
        return base

    def execute(self, state: Layer, tx: Transaction, timestamp_ms: int) -> TxReceipt:
        """Apply one transaction to ``state`` at a block's timestamp.

        Raises:
            TransactionRefused: a rule is broken; ``state`` is unchanged.
        """
        tx_id = tx.check_signature(self.ledger_id)
        layer = Layer(state)
        sender = layer.account(tx.sender)
        if tx.nonce != sender.nonce:
            refuse(
                "bad-nonce",
                f"account {tx.sender} must use nonce {sender.nonce} next, not {tx.nonce}",
            )
        layer.put_account(sender.model_copy(update={"nonce": sender.nonce + 1}))
        facts = self._handlers[type(tx)](layer, tx, timestamp_ms)
        receipt = TxReceipt(tx=tx_id, kind=tx.kind, sender=tx.sender, **facts)
        self._account_for_supply(state, layer)
        layer.merge_down()
        return receipt

    def _account_for_supply(self, before: Layer, after: Layer) -> None:
        """Bring the supply report up to date with the layer's changes; money must add up."""
        balances = stakes = escrows = 0
        for key, new in after.changes.items():
            old: Noun | None = before.get(key)
            if isinstance(new, AccountRecord):
                was = old if isinstance(old, AccountRecord) else None
                balances += new.balance_wei - (was.balance_wei if was else 0)
                stakes += new.stake_wei - (was.stake_wei if was else 0)
            elif isinstance(new, TaskRecord):
                escrows += new.escrow_wei - (old.escrow_wei if isinstance(old, TaskRecord) else 0)
        supply = after.supply()
        updated = supply.model_copy(
            update={
                "balances_wei": supply.balances_wei + balances,
                "stakes_wei": supply.stakes_wei + stakes,
                "escrows_wei": supply.escrows_wei + escrows,
            }
        )
        if not updated.conserved:  # a bug, never an input: stop before it is signed
            raise LedgerError("a transaction would not conserve supply; please report this")
        if updated != before.supply():
            after.put_supply(updated)

    # Accounts

    def _transfer(self, layer: Layer, tx: Transfer, _now: int) -> Mapping[str, Any]:
        _positive(tx.amount_wei)
        _attested.debit(layer, tx.sender, tx.amount_wei)
        payments = _attested.credit(layer, tx.to, tx.amount_wei, "transfer")
        return {"payments": payments}

    def _stake(self, layer: Layer, tx: Stake, _now: int) -> Mapping[str, Any]:
        _positive(tx.amount_wei)
        _attested.debit(layer, tx.sender, tx.amount_wei)
        account = layer.account(tx.sender)
        layer.put_account(
            account.model_copy(update={"stake_wei": account.stake_wei + tx.amount_wei})
        )
        payment = Payment(to=tx.sender, amount_wei=tx.amount_wei, reason="stake")
        return {"node": tx.sender, "payments": (payment,)}

    def _register(self, layer: Layer, tx: Register, _now: int) -> Mapping[str, Any]:
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
        account = layer.account(tx.sender)
        layer.put_account(account.model_copy(update={"registered": info}))
        return {"node": tx.sender}

    # Tasks

    def _task(self, layer: Layer, task_id: bytes) -> TaskRecord:
        task = layer.task(task_id)
        if task is None:
            refuse("unknown", f"task {task_id.hex()} was never opened on this ledger")
        return task

    def _open(self, layer: Layer, tx: Open, now: int) -> Mapping[str, Any]:
        spec = tx.spec
        if spec.buyer != tx.sender:
            refuse("bad-role", f"only the buyer {spec.buyer} can open this task")
        if layer.task(spec.task_id) is not None:
            refuse("duplicate", f"task {spec.task_id.hex()} is already open on this ledger")
        if len(spec.canonical()) > _MAX_SPEC_BYTES:
            refuse("bad-field", f"the task's spec is over {_MAX_SPEC_BYTES} bytes")
        if len(spec.parents) > MAX_PARENTS or len(set(spec.parents)) != len(spec.parents):
            refuse("bad-field", f"a task names at most {MAX_PARENTS} parents, each once")
        for parent in spec.parents:
            if layer.token(parent) is None:
                refuse("unknown", f"parent token {parent.hex()} was never minted on this ledger")
        if spec.deadline_ms <= now:
            refuse("expired", "the task's deadline has already passed; set a later one")
        _attested.debit(layer, tx.sender, spec.max_price_wei)
        layer.put_task(
            TaskRecord(
                task_id=spec.task_id,
                spec=spec,
                state=TaskState.OPEN,
                escrow_wei=spec.max_price_wei,
            )
        )
        return {"task_id": spec.task_id}

    def _assign(self, layer: Layer, tx: Assign, now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.task_id)
        _require_state(task, TaskState.OPEN)
        _require_attempt(task, tx.attempt)
        if tx.sender != task.spec.buyer:
            refuse("bad-role", f"only the buyer {task.spec.buyer} can assign this task")
        if task.attempt >= task.spec.review.attempts:
            refuse("bad-state", f"all {task.spec.review.attempts} attempts are spent; cancel it")
        if task.spec.deadline_ms <= now:
            refuse("expired", "the task's deadline has passed; expire it for a refund")
        if tx.node in task.barred:
            refuse("bad-role", f"node {tx.node} was rejected on this task; choose another")
        node = layer.account(tx.node)
        if node.registered is None:
            refuse("unknown", f"{tx.node} is not registered as a node")
        if node.stake_wei < self.params.min_stake_wei:
            refuse(
                "bad-role",
                f"node {tx.node} has {node.stake_wei} wei at stake and needs "
                f"{self.params.min_stake_wei}",
            )
        if tx.price_wei > task.escrow_wei:
            refuse(
                "bad-field",
                f"price {tx.price_wei} wei is over the task's maximum of {task.escrow_wei}",
            )
        if tx.price_wei < node.registered.price_wei:
            refuse(
                "bad-field",
                f"price {tx.price_wei} wei is under what node {tx.node} asks, "
                f"{node.registered.price_wei}",
            )
        layer.put_task(
            task.model_copy(
                update={"state": TaskState.ASSIGNED, "node": tx.node, "price_wei": tx.price_wei}
            )
        )
        return {"task_id": task.task_id, "node": tx.node}

    def _commit(self, layer: Layer, tx: Commit, now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.task_id)
        _require_state(task, TaskState.ASSIGNED)
        _require_attempt(task, tx.attempt)
        if tx.sender not in (task.spec.buyer, task.node):
            refuse("bad-role", "only the buyer or the assigned node can commit a proof")
        if task.spec.deadline_ms <= now:
            refuse("expired", "the task's deadline has passed; expire it for a refund")
        header = tx.header
        if header.node != task.node:
            refuse("bad-role", f"the proof is by {header.node}, the task was given to {task.node}")
        statement = header.statement
        for name, claimed, wanted in (
            ("task id", statement.task_id, task.task_id),
            ("model digest", statement.model_digest, task.spec.model.digest),
            ("input", statement.input_cid, task.spec.input_cid),
            ("scheme", header.scheme, task.spec.scheme),
        ):
            if claimed != wanted:
                refuse("bad-field", f"the proof's {name} is not the task's")
        try:
            signer = recover_address(header.digest(), header.signature)
        except KeyMaterialError as error:
            raise TransactionRefused(
                f"the proof header is not signed: {error}", code="bad-signature"
            ) from error
        if signer != header.node:
            refuse("bad-signature", f"the proof header was not signed by node {header.node}")
        layer.put_task(
            task.model_copy(
                update={
                    "state": TaskState.COMMITTED,
                    "proof": header,
                    "proof_cid": tx.proof_cid,
                }
            )
        )
        return {"task_id": task.task_id, "node": task.node}

    def _release(self, layer: Layer, tx: Release, _now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.task_id)
        _require_state(task, TaskState.ASSIGNED)
        _require_attempt(task, tx.attempt)
        if tx.sender not in (task.spec.buyer, task.node):
            refuse("bad-role", "only the buyer or the assigned node can release a task")
        _attested.reopen(layer, task, task.barred)
        return {"task_id": task.task_id, "node": task.node}

    def _cancel(self, layer: Layer, tx: Cancel, _now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.task_id)
        if task.state not in (TaskState.OPEN, TaskState.ASSIGNED):
            _require_state(task, TaskState.OPEN)
        if tx.sender != task.spec.buyer:
            refuse("bad-role", f"only the buyer {task.spec.buyer} can cancel this task")
        payments = _attested.refund(layer, task, TaskState.CANCELLED)
        return {"task_id": task.task_id, "payments": payments}

    def _expire(self, layer: Layer, tx: Expire, now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.task_id)
        due = task.spec.deadline_ms
        if task.state is TaskState.COMMITTED:
            # A node that has answered gets time to bring its attestation.
            due += self.params.settle_grace_ms
        elif task.state not in (TaskState.OPEN, TaskState.ASSIGNED):
            _require_state(task, TaskState.OPEN)
        if now < due:
            refuse("bad-state", f"the task expires at {due} ms; it is {now} ms on this ledger")
        payments = _attested.refund(layer, task, TaskState.EXPIRED)
        return {"task_id": task.task_id, "payments": payments}

    def _effect(self, layer: Layer, tx: Effect, _now: int) -> Mapping[str, Any]:
        token = layer.token(tx.token_id)
        if token is None:
            refuse("unknown", f"token {tx.token_id.hex()} was never minted on this ledger")
        if token.owner != tx.sender:
            refuse("bad-role", f"only the owner {token.owner} can commit this token's effect")
        if token.effect is not None:
            refuse("duplicate", "this token's effect is already committed")
        layer.put_token(token.model_copy(update={"effect": tx.effect}))
        return {"task_id": token.task_id, "token_id": token.token_id, "content": tx.effect}

    # Attested transitions

    def _settle(self, layer: Layer, tx: Settle, _now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.attestation.task_id)
        if task.state is TaskState.SETTLED:
            refuse("duplicate", f"task {task.task_id.hex()} is already settled")
        _require_state(task, TaskState.COMMITTED)
        if tx.sender not in (task.spec.buyer, task.node):
            refuse("bad-role", "only the buyer or the node can settle: the metadata is theirs")
        return _attested.settle(self.genesis, self.ledger_id, layer, task, tx)

    def _reject(self, layer: Layer, tx: Reject, _now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.attestation.task_id)
        _require_state(task, TaskState.COMMITTED)
        return _attested.reject(self.genesis, self.ledger_id, layer, task, tx)

    def _unproven(self, layer: Layer, tx: Unproven, _now: int) -> Mapping[str, Any]:
        task = self._task(layer, tx.attestation.task_id)
        _require_state(task, TaskState.COMMITTED)
        return _attested.unproven(self.genesis, self.ledger_id, layer, task, tx)


def _positive(amount_wei: int) -> None:
    if amount_wei == 0:
        refuse("bad-field", "the amount is zero; send at least 1 wei")


def _require_state(task: TaskRecord, state: TaskState) -> None:
    if task.state is not state:
        refuse("bad-state", f"task {task.task_id.hex()} is {task.state}, it must be {state}")


def _require_attempt(task: TaskRecord, attempt: int) -> None:
    if task.attempt != attempt:
        refuse("bad-state", f"the task is at attempt {task.attempt}, not {attempt}")

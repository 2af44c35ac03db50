"""The state machine: nonce, expiry, fee, the transaction's rule, supply. Pure: no clock, no I/O.

Every rule that is broken raises a typed refusal and leaves the state as it was.
"""

from __future__ import annotations

from daifi_flows.cnft import TxReceipt
from daifi_flows.errors import LedgerError
from daifi_flows.ledger._committees import CommitteeRecord, OfficeRecord
from daifi_flows.ledger._params import Genesis, ParamsRecord
from daifi_flows.ledger._records import BUCKETS, AccountRecord, SupplyReport
from daifi_flows.ledger._rules import RULES, BlockEnv, Context, refuse
from daifi_flows.ledger._rules.governance import run_agenda
from daifi_flows.ledger._state import Base, Layer, MemoryBase
from daifi_flows.ledger._tx import Transaction

__all__ = ["BlockEnv", "Machine"]


class Machine:
    """Executes transactions of one ledger on layers of its state."""

    def __init__(self, genesis: Genesis) -> None:
        genesis.check()
        self.genesis = genesis
        self.ledger_id = genesis.ledger_id

    def genesis_state(self) -> MemoryBase:
        """The state before any transaction."""
        layer = Layer(MemoryBase())
        issued = sum(item.amount_wei for item in self.genesis.allocations)
        for item in self.genesis.allocations:
            layer.put(AccountRecord(address=item.address, balance_wei=item.amount_wei))
        layer.put(SupplyReport(issued_wei=issued, balances_wei=issued))
        layer.put(ParamsRecord(params=self.genesis.params))
        committee = self.genesis.committee
        layer.put(OfficeRecord(epoch=committee.epoch))
        layer.put(
            CommitteeRecord(
                committee=committee,
                digest=committee.digest,
                since_ms=self.genesis.timestamp_ms,
                since_height=0,
            )
        )
        return MemoryBase(dict(layer.items()))

    def begin(self, state: Base, env: BlockEnv) -> None:
        """What happens at the beginning of a block, before its transactions: governance's agenda.

        Its work is bounded, and nothing is changed when nothing is due.
        """
        layer = Layer(state)
        run_agenda(self._context(layer, env))
        if layer.changes:
            _account_for_supply(state, layer)
            layer.merge_down()

    def _context(self, layer: Layer, env: BlockEnv) -> Context:
        return Context(
            genesis=self.genesis,
            ledger_id=self.ledger_id,
            layer=layer,
            now_ms=env.timestamp_ms,
            height=env.height,
        )

    def execute(
        self,
        state: Base,
        tx: Transaction,
        env: BlockEnv,
        *,
        size: int = 0,
        tx_id: bytes | None = None,
    ) -> TxReceipt:
        """Apply one transaction to ``state`` in a block.

        Args:
            size: length of the wire form in bytes, when it is at hand.
            tx_id: the transaction's digest on this ledger, when it is at hand.

        Raises:
            TransactionRefused: a rule is broken; ``state`` is unchanged.
        """
        tx_id = tx.check_signature(self.ledger_id, tx_id)
        layer = Layer(state)
        sender = layer.account(tx.sender)
        if tx.nonce != sender.nonce:
            refuse(
                "bad-nonce",
                f"account {tx.sender} must use nonce {sender.nonce} next, not {tx.nonce}",
            )
        if 0 < tx.valid_until_ms < env.timestamp_ms:
            refuse(
                "expired",
                f"the transaction was valid until {tx.valid_until_ms} ms and it is "
                f"{env.timestamp_ms} ms on this ledger; sign it again",
            )
        layer.put(sender.model_copy(update={"nonce": sender.nonce + 1}))
        ctx = self._context(layer, env)
        fee_wei = _charge(ctx, tx, size)
        facts = RULES[type(tx)](ctx, tx)
        receipt = TxReceipt(tx=tx_id, kind=tx.kind, sender=tx.sender, fee_wei=fee_wei, **facts)
        _account_for_supply(state, layer)
        layer.merge_down()
        return receipt


def _charge(ctx: Context, tx: Transaction, size: int) -> int:
    """Take the transaction's fee, in wei."""
    per_byte_wei = ctx.params.fees.fee_per_byte_wei
    if per_byte_wei == 0:
        return 0
    fee_wei = per_byte_wei * (size or len(tx.encode()))
    if fee_wei > tx.max_fee_wei:
        refuse(
            "fee-too-high",
            f"the transaction's fee is {fee_wei} wei and its sender pays at most "
            f"{tx.max_fee_wei}; raise max_fee_wei",
        )
    ctx.debit(tx.sender, fee_wei)
    ctx.to_treasury(fee_wei, "fee")
    return fee_wei


def _account_for_supply(before: Base, after: Layer) -> None:
    """Bring the supply report up to date with the layer's changes; money must add up.

    Raises:
        LedgerError: it does not. A bug, never an input: stopped before anything is kept.
    """
    moved: dict[str, int] = dict.fromkeys(BUCKETS, 0)
    for key, new in after.changes.items():
        old = before.get(key)
        if new is not None:
            for bucket, amount_wei in new.holdings.items():
                if amount_wei < 0:
                    raise LedgerError("a transaction would overdraw a record; please report this")
                moved[bucket] += amount_wei
        if old is not None:
            for bucket, amount_wei in old.holdings.items():
                moved[bucket] -= amount_wei
    if SupplyReport.prefix not in after.changes and not any(moved.values()):
        return
    supply = after.supply()
    updated = supply.model_copy(
        update={
            f"{bucket}_wei": supply.bucket(bucket) + moved_wei
            for bucket, moved_wei in moved.items()
            if moved_wei
        }
    )
    if not updated.conserved:
        raise LedgerError("a transaction would not conserve supply; please report this")
    if updated != before.supply():
        after.put(updated)
    else:
        after.changes.pop(SupplyReport.prefix, None)

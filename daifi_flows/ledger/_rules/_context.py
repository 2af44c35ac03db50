"""What every rule is given: the state, the block it runs in, and the moves of money."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeAlias

from daifi_flows.cnft import Committee, Payment
from daifi_flows.errors import InsufficientFunds, TransactionRefused
from daifi_flows.ledger._committees import CommitteeRecord
from daifi_flows.ledger._params import Genesis, Params
from daifi_flows.ledger._records import ZERO_ADDRESS, AccountRecord
from daifi_flows.ledger._state import Layer

__all__ = ["BlockEnv", "Context", "Facts", "Rule", "positive", "refuse"]

Facts: TypeAlias = Mapping[str, Any]
"""What a transaction did: fields of :class:`~daifi_flows.cnft.TxReceipt`."""
Rule: TypeAlias = Callable[["Context", Any], Facts]


def refuse(code: str, message: str) -> NoReturn:
    """Refuse with a stable code (see :class:`~daifi_flows.errors.TransactionRefused`)."""
    raise TransactionRefused(message, code=code)


def positive(amount_wei: int) -> None:
    """Refuse an amount of nothing."""
    if amount_wei == 0:
        refuse("bad-field", "the amount is zero; send at least 1 wei")


class BlockEnv(NamedTuple):
    """The block a transaction runs in: Unix milliseconds, and height. Its beacon is not here:
    transactions run before it is known, so that none can bet on it."""

    timestamp_ms: int
    height: int


@dataclass(frozen=True)
class Context:
    """One transaction's view of the ledger. What it puts into ``layer`` is dropped when the
    transaction is refused."""

    genesis: Genesis
    ledger_id: bytes
    layer: Layer
    now_ms: int
    height: int
    sealed: bool = False
    """Whether what runs was committed to before anybody could read it."""
    leased: str = ZERO_ADDRESS
    """The node whose capacity the running lease has bought: the lease checks what its tasks pay."""

    @property
    def params(self) -> Params:
        """The parameters in force."""
        return self.layer.params()

    @property
    def committee(self) -> Committee:
        """The seats in office."""
        return self.layer.committee()

    def committee_of(self, epoch: int) -> Committee:
        """The seats of an epoch up to the present one, for evidence of what they signed then.

        Raises:
            TransactionRefused: ``bad-field``: there was none.
        """
        return self._seated_in(epoch).committee

    def attesting(self, epoch: int, since_ms: int = 0) -> Committee:
        """The seats whose finding of an epoch counts now: those in office, and for a time of grace
        those that were, so that no review is lost by a handover.

        Args:
            since_ms: when the work was committed; who had left before cannot judge it.

        Raises:
            TransactionRefused: ``bad-field``: there is no such committee, or it had left before;
                ``expired``: its time of grace is over.
        """
        found = self._seated_in(epoch)
        if found.left_ms:
            if found.left_ms < since_ms:
                refuse(
                    "bad-field", f"the committee of epoch {epoch} left before this was committed"
                )
            until_ms = found.left_ms + self.params.committee.grace_ms
            if self.now_ms > until_ms:
                refuse(
                    "expired",
                    f"findings of the committee of epoch {epoch} counted until {until_ms} ms; ask "
                    f"that of epoch {self.committee.epoch}",
                )
        return found.committee

    def sat_at(self, epoch: int, time_ms: int) -> bool:
        """Whether the committee of an epoch was in office at a block's time; one was. In the block
        of a handover it was the one that leaves: the next takes over after that block."""
        found = self._seated_in(epoch)
        began = found.since_ms < time_ms or found.since_height == 0
        return began and (not found.left_ms or time_ms <= found.left_ms)

    def _seated_in(self, epoch: int) -> CommitteeRecord:
        found = self.layer.seated_in(epoch)
        if found is None:
            now = self.committee.epoch
            refuse("bad-field", f"this is of another epoch, {epoch}; the committee's is {now}")
        return found

    def account(self, address: str) -> AccountRecord:
        """An account as of now: what is no longer locked or unbonding is in its balance."""
        return self.layer.account(address).at(self.now_ms)

    def debit(self, address: str, amount_wei: int) -> None:
        """Take money from a balance.

        Raises:
            InsufficientFunds: there is less than that.
        """
        account = self.account(address)
        if account.balance_wei < amount_wei:
            raise InsufficientFunds(
                f"account {address} holds {account.balance_wei} wei and needs {amount_wei}; "
                "fund it",
                code="insufficient-funds",
                balance_wei=account.balance_wei,
                needed_wei=amount_wei,
            )
        balance_wei = account.balance_wei - amount_wei
        self.layer.put(account.model_copy(update={"balance_wei": balance_wei}))

    def credit(self, address: str, amount_wei: int, reason: str) -> tuple[Payment, ...]:
        """Add money to a balance; the payment for the receipt (none for nothing)."""
        if amount_wei == 0:
            return ()
        account = self.account(address)
        balance_wei = account.balance_wei + amount_wei
        self.layer.put(account.model_copy(update={"balance_wei": balance_wei}))
        return (Payment(to=address, amount_wei=amount_wei, reason=reason),)

    def to_treasury(self, amount_wei: int, reason: str) -> tuple[Payment, ...]:
        """Add money to the treasury."""
        if amount_wei == 0:
            return ()
        supply = self.layer.supply()
        treasury_wei = supply.treasury_wei + amount_wei
        self.layer.put(supply.model_copy(update={"treasury_wei": treasury_wei}))
        return (Payment(to=self.genesis.treasury, amount_wei=amount_wei, reason=reason),)

    def burn(self, amount_wei: int, reason: str) -> tuple[Payment, ...]:
        """Take money out of the world."""
        if amount_wei == 0:
            return ()
        supply = self.layer.supply()
        self.layer.put(supply.model_copy(update={"burned_wei": supply.burned_wei + amount_wei}))
        return (Payment(to=ZERO_ADDRESS, amount_wei=amount_wei, reason=reason),)

"""The state: accounts, tasks, tokens and supply, as layers of changes over a base.

A layer sees through to the one below it. A refused transaction drops its layer; a certified block
merges its layer down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from daifi_flows.cnft import Noun
from daifi_flows.errors import EncodingError, LedgerCorrupted
from daifi_flows.ledger._records import (
    AccountRecord,
    SupplyReport,
    TaskRecord,
    TokenRecord,
)

__all__ = ["Layer", "account_key", "decode_entry", "supply_of", "task_key", "token_key"]

SUPPLY_KEY: Final = b"supply"
_KINDS: Final[dict[int, type[Noun]]] = {
    ord("a"): AccountRecord,
    ord("t"): TaskRecord,
    ord("n"): TokenRecord,
    ord("s"): SupplyReport,
}


def account_key(address: str) -> bytes:
    """State key of an account."""
    return b"a" + bytes.fromhex(address[2:])


def task_key(task_id: bytes) -> bytes:
    """State key of a task."""
    return b"t" + task_id


def token_key(token_id: bytes) -> bytes:
    """State key of a token."""
    return b"n" + token_id


def decode_entry(key: bytes, value: bytes) -> Noun:
    """The record stored under a key.

    Raises:
        LedgerCorrupted: the key's kind is unknown or the value is not its record.
    """
    kind = _KINDS.get(key[0]) if key else None
    if kind is None:
        raise LedgerCorrupted("the ledger's state holds an entry of unknown kind: restore a backup")
    try:
        return kind.from_canonical(value)
    except EncodingError as error:
        raise LedgerCorrupted(
            f"the ledger's state holds a damaged entry ({error}): restore a backup"
        ) from error


class Layer:
    """Changes over a parent layer, or the base when there is no parent."""

    __slots__ = ("changes", "parent")

    def __init__(self, parent: Layer | None = None, changes: dict[bytes, Noun] | None = None):
        self.parent = parent
        self.changes: dict[bytes, Noun] = changes if changes is not None else {}

    def get(self, key: bytes) -> Noun | None:
        """The record under ``key``, from the topmost layer that has it."""
        layer: Layer | None = self
        while layer is not None:
            if (found := layer.changes.get(key)) is not None:
                return found
            layer = layer.parent
        return None

    def account(self, address: str) -> AccountRecord:
        """An account; zeros for an address never seen."""
        found = self.get(account_key(address))
        return found if isinstance(found, AccountRecord) else AccountRecord(address=address)

    def task(self, task_id: bytes) -> TaskRecord | None:
        """A task, if it was ever opened."""
        found = self.get(task_key(task_id))
        return found if isinstance(found, TaskRecord) else None

    def token(self, token_id: bytes) -> TokenRecord | None:
        """A token, if it was ever minted."""
        found = self.get(token_key(token_id))
        return found if isinstance(found, TokenRecord) else None

    def supply(self) -> SupplyReport:
        """Where all money is."""
        found = self.get(SUPPLY_KEY)
        if not isinstance(found, SupplyReport):
            raise LedgerCorrupted("the ledger's state has no supply record: restore a backup")
        return found

    def put_account(self, account: AccountRecord) -> None:
        """Set an account."""
        self.changes[account_key(account.address)] = account

    def put_task(self, task: TaskRecord) -> None:
        """Set a task."""
        self.changes[task_key(task.task_id)] = task

    def put_token(self, token: TokenRecord) -> None:
        """Set a token."""
        self.changes[token_key(token.token_id)] = token

    def put_supply(self, supply: SupplyReport) -> None:
        """Set the supply record."""
        self.changes[SUPPLY_KEY] = supply

    def encoded_changes(self) -> dict[bytes, bytes]:
        """This layer's own changes, as they are hashed and stored."""
        return {key: noun.canonical() for key, noun in self.changes.items()}

    def merge_down(self) -> None:
        """Move this layer's changes into its parent."""
        assert self.parent is not None, "the base has nothing below it"
        self.parent.changes.update(self.changes)
        self.changes = {}

    def items(self) -> Iterator[tuple[bytes, Noun]]:
        """Every entry visible through this layer."""
        merged: dict[bytes, Noun] = {}
        layers: list[Layer] = []
        layer: Layer | None = self
        while layer is not None:
            layers.append(layer)
            layer = layer.parent
        for each in reversed(layers):
            merged.update(each.changes)
        return iter(merged.items())


def supply_of(entries: Mapping[bytes, Noun]) -> SupplyReport:
    """Count all money from the records themselves (the stored report is kept incrementally)."""
    balances = stakes = escrows = 0
    stored: SupplyReport | None = None
    for noun in entries.values():
        if isinstance(noun, AccountRecord):
            balances += noun.balance_wei
            stakes += noun.stake_wei
        elif isinstance(noun, TaskRecord):
            escrows += noun.escrow_wei
        elif isinstance(noun, SupplyReport):
            stored = noun
    if stored is None:
        raise LedgerCorrupted("the ledger's state has no supply record: restore a backup")
    return SupplyReport(
        issued_wei=stored.issued_wei,
        burned_wei=stored.burned_wei,
        balances_wei=balances,
        stakes_wei=stakes,
        escrows_wei=escrows,
        treasury_wei=stored.treasury_wei,
    )

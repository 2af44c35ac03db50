"""Sealed transactions: committed to first, shown later, so that nobody can run in front of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from daifi_flows.cnft import Address, Bytes32, Raw, Uint, Wei
from daifi_flows.encoding import keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.ledger._tx._base import Transaction
from daifi_flows.ledger._tx.lease import ACTIONS, Lease, read_action

__all__ = ["KINDS", "SEALABLE", "Lapse", "Reveal", "Sealed", "sealed_commitment"]

_MAX_ACTION_BYTES: Final = 48 * 1024
SEALABLE: Final[dict[str, type[Transaction]]] = {**ACTIONS, Lease.kind: Lease}
"""What may travel sealed: what a lease may do, and leases."""


def sealed_commitment(sender: str, salt: bytes, action: bytes) -> bytes:
    """``keccak256("daifi/sealed/1" ‖ sender ‖ salt ‖ action)``, 32 bytes.

    ``action`` is made by ``action_of``; the salt is 32 random bytes, or anybody could try actions.
    """
    return keccak256(b"daifi/sealed/1" + bytes.fromhex(sender[2:]) + salt + action)


class Sealed(Transaction):
    """Commit to an action, with a deposit.

    Attributes:
        commitment: see :func:`sealed_commitment`.
        deposit_wei: returns with the reveal; lost when there is none.
        lasts_ms: how long it can be revealed.
    """

    kind: ClassVar[str] = "sealed"
    commitment: Bytes32
    deposit_wei: Wei
    lasts_ms: Uint

    def mark(self) -> bytes | None:
        return b"sealed/" + bytes.fromhex(self.sender[2:]) + self.commitment


class Reveal(Transaction):
    """Show a sealed action and have it done: before anything else in its block, in the order of
    the commitments.

    The sender's signature over this transaction covers the action's bytes.
    """

    kind: ClassVar[str] = "reveal"
    salt: Bytes32
    action: Annotated[Raw, Field(max_length=_MAX_ACTION_BYTES)]

    @property
    def commitment(self) -> bytes:
        """What must have been committed to."""
        return sealed_commitment(self.sender, self.salt, self.action)

    def inner(self) -> Transaction:
        """The transaction that the sender asks for.

        Raises:
            TransactionRefused: ``bad-field``: it cannot be read, or may not travel sealed.
        """
        return read_action(
            self.action, self.sender, SEALABLE, "sealed transaction", _MAX_ACTION_BYTES
        )

    def mark(self) -> bytes | None:
        """What the action does at most once: a sealed call repeats as an open one does."""
        try:
            return self.inner().mark()
        except TransactionRefused:
            return None

    def intent(self) -> bytes:
        """That of the action."""
        try:
            return self.inner().intent()
        except TransactionRefused:
            return super().intent()


class Lapse(Transaction):
    """Take the deposit of a commitment that was not revealed in time; anybody may.

    Attributes:
        holder: who committed.
    """

    kind: ClassVar[str] = "lapse"
    holder: Address
    commitment: Bytes32


KINDS: Final[tuple[type[Transaction], ...]] = (Sealed, Reveal, Lapse)

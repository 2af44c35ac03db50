"""cNFTs as property: ERC-721's moves, merging, repeating and reusing executions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from daifi_flows.cnft import Address, Bytes32, Raw, TaskSpec, Wei
from daifi_flows.encoding import canonical, keccak256, tagged_hash
from daifi_flows.ledger._tx._base import Transaction

__all__ = [
    "KINDS",
    "MAX_OPENING_BYTES",
    "Approve",
    "Contradict",
    "FlashAttest",
    "Merge",
    "PriceReuse",
    "Reproduce",
    "SafeTransferToken",
    "SetOperator",
    "TransferToken",
    "UnsetOperator",
]

MAX_OPENING_BYTES: Final = 24 * 1024
"""Largest output that can be shown on the ledger to tell whether two outputs agree."""
_Opening = Annotated[Raw, Field(max_length=MAX_OPENING_BYTES)]


class Approve(Transaction):
    """Let one address move a token (ERC-721 ``approve``); the zero address: nobody."""

    kind: ClassVar[str] = "approve"
    token_id: Bytes32
    approved: Address


class SetOperator(Transaction):
    """Let an address act for all of the sender's tokens (ERC-721 ``setApprovalForAll``)."""

    kind: ClassVar[str] = "set-operator"
    operator: Address


class UnsetOperator(Transaction):
    """Take back what :class:`SetOperator` gave."""

    kind: ClassVar[str] = "unset-operator"
    operator: Address


class TransferToken(Transaction):
    """Move a token (ERC-721 ``transferFrom``): by its owner, who it approved, or an operator.

    ``owner`` must be the owner when this runs, so that a late transaction never moves the token
    of somebody else.
    """

    kind: ClassVar[str] = "transfer-token"
    token_id: Bytes32
    owner: Address
    to: Address


class SafeTransferToken(TransferToken):
    """The same (ERC-721 ``safeTransferFrom``), only to an address that can move it on: one that
    has signed a transaction on this ledger before."""

    kind: ClassVar[str] = "safe-transfer-token"


class Merge(Transaction):
    """Make one new token of 2 to 64 of the sender's; they become its parents, for good."""

    kind: ClassVar[str] = "merge"
    tokens: Annotated[tuple[Bytes32, ...], Field(min_length=2, max_length=64)]

    @property
    def merge_id(self) -> bytes:
        """``keccak256("daifi/merge/1" ‖ dag-cbor(tokens))``: stands where others have a task."""
        return tagged_hash("daifi/merge/1", list(self.tokens))

    def mark(self) -> bytes | None:
        return b"merge/" + self.merge_id


class PriceReuse(Transaction):
    """Say what a flash attest of the sender's token costs, until it has another owner."""

    kind: ClassVar[str] = "price-reuse"
    token_id: Bytes32
    fee_wei: Wei


class FlashAttest(Transaction):
    """Take an existing token's output for a new task, without computing it again.

    Attributes:
        of: the token to reuse.
        spec: what would have been asked: as the token's own, but for buyer, nonce, deadline and
            highest price.
        fee_wei: what the sender pays: exactly what the owner asks.
    """

    kind: ClassVar[str] = "flash-attest"
    of: Bytes32
    spec: TaskSpec
    fee_wei: Wei

    def mark(self) -> bytes | None:
        return b"flash-attest/" + self.spec.task_id

    def intent(self) -> bytes:
        # Without the fee: a caller that asks again after its price has moved meant the same.
        return keccak256(self.kind.encode() + self.of + self.spec.task_id)


class _Repetition(Transaction):
    original: Bytes32
    again: Bytes32
    original_output: _Opening = b""
    again_output: _Opening = b""

    def mark(self) -> bytes | None:
        return b"repeat/" + self.original + self.again

    def intent(self) -> bytes:
        return keccak256(canonical([self.kind, self.original, self.again]))


class Reproduce(_Repetition):
    """Show that another node's execution of the same work gave the same output.

    Attributes:
        original: token of the execution that was repeated.
        again: token of the repetition; its owner is the sender.
        original_output: the original's content, which opens its salted commitment; empty where
            both commitments are equal.
        again_output: the repetition's content, or empty.
    """

    kind: ClassVar[str] = "reproduce"


class Contradict(_Repetition):
    """Show that another node's execution of the same work gave another output: the contents of
    both must be shown, since equal contents have different salted commitments.

    While the original's output can be challenged, this opens the dispute about it.

    Attributes:
        bond_wei: the bond of that dispute; not taken where none is opened.
    """

    kind: ClassVar[str] = "contradict"
    bond_wei: Wei = 0


KINDS: Final[tuple[type[Transaction], ...]] = (
    Approve,
    SetOperator,
    UnsetOperator,
    TransferToken,
    SafeTransferToken,
    Merge,
    PriceReuse,
    FlashAttest,
    Reproduce,
    Contradict,
)

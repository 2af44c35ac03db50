"""Records about tokens beside the tokens: operators of an owner, and repeated executions."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from daifi_flows.cnft import Address, Bytes32, Uint
from daifi_flows.ledger._records import Record

__all__ = ["OperatorRecord", "ReproductionRecord", "operator_key", "reproduction_key"]


class OperatorRecord(Record):
    """``operator`` may act for every token of ``owner`` (ERC-721 ``setApprovalForAll``)."""

    prefix: ClassVar[bytes] = b"o"
    owner: Address
    operator: Address

    def key(self) -> bytes:
        return operator_key(self.owner, self.operator)


class ReproductionRecord(Record):
    """One node's repetition of another's execution; each node counts once for a token.

    Attributes:
        original: token of the execution that was repeated.
        node: who repeated it.
        again: token of the repetition.
        agrees: 1 when both outputs hold the same bytes, else 0.
        reporter: who brought the two together.
        at_ms: the block's time.
    """

    prefix: ClassVar[bytes] = b"x"
    original: Bytes32
    node: Address
    again: Bytes32
    agrees: Annotated[int, Field(ge=0, le=1, strict=True)]
    reporter: Address
    at_ms: Uint

    def key(self) -> bytes:
        return reproduction_key(self.original, self.node)


def operator_key(owner: str, operator: str) -> bytes:
    """State key of an operator's record."""
    return OperatorRecord.prefix + bytes.fromhex(owner[2:]) + bytes.fromhex(operator[2:])


def reproduction_key(original: bytes, node: str) -> bytes:
    """State key of a node's repetition of a token's execution."""
    return ReproductionRecord.prefix + original + bytes.fromhex(node[2:])

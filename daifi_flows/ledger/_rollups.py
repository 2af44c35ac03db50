"""What the state keeps of a batch: its money, its times, and which leaves were claimed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from daifi_flows.cnft import Address, Bytes32, Ppm, Uint, Wei
from daifi_flows.ledger._records import Record

__all__ = [
    "WORD_LEAVES",
    "ClaimedWord",
    "RollupCount",
    "RollupRecord",
    "rollup_key",
    "word_key",
    "word_keys",
]

WORD_LEAVES: Final = 256
"""Leaves whose claims one :class:`ClaimedWord` records."""


class RollupRecord(Record):
    """One batch, until its money is all paid or back with the operator.

    Attributes:
        number: how many batches came before it.
        escrow_wei: what its leaves can still claim.
        bond_wei: the operator's; none any more once the batch is final.
        cut_ppm: part of each leaf's price that went to the committee and the treasury.
        submitted_ms: the block's time when it was submitted.
        challenge_until_ms: before this leaves can be proven wrong; from then on they are paid.
        claim_until_ms: from then on, what was not claimed goes back to the operator.
    """

    prefix: ClassVar[bytes] = b"r"
    root: Bytes32
    number: Uint
    operator: Address
    count: Uint
    escrow_wei: Wei
    bond_wei: Wei
    cut_ppm: Ppm
    submitted_ms: Uint
    challenge_until_ms: Uint
    claim_until_ms: Uint

    def key(self) -> bytes:
        return self.prefix + self.root

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"escrows": self.escrow_wei + self.bond_wei}


class ClaimedWord(Record):
    """Which of 256 leaves of a batch were claimed: leaf ``256·word + i`` is bit ``i mod 8``, from
    the lowest, of byte ``i div 8``. Absent while there is none."""

    prefix: ClassVar[bytes] = b"b"
    root: Bytes32
    word: Uint
    bits: Bytes32 = bytes(32)

    def key(self) -> bytes:
        return word_key(self.root, self.word)

    def claimed(self, index: int) -> bool:
        """Whether leaf ``index`` of the batch was claimed."""
        place = index % WORD_LEAVES
        return bool(self.bits[place // 8] >> place % 8 & 1)

    def with_claimed(self, index: int) -> ClaimedWord:
        """With leaf ``index`` of the batch claimed."""
        place = index % WORD_LEAVES
        bits = bytearray(self.bits)
        bits[place // 8] |= 1 << place % 8
        return self.model_copy(update={"bits": bytes(bits)})


class RollupCount(Record):
    """How many batches were ever submitted: what orders them. One record."""

    prefix: ClassVar[bytes] = b"q"
    batches: Uint = 0

    def key(self) -> bytes:
        return self.prefix


def rollup_key(root: bytes) -> bytes:
    """State key of a batch."""
    return RollupRecord.prefix + root


def word_key(root: bytes, word: int) -> bytes:
    """State key of the claims of 256 leaves."""
    return ClaimedWord.prefix + root + word.to_bytes(4, "big")


def word_keys(root: bytes, count: int) -> list[bytes]:
    """State keys of all claims of a batch."""
    return [word_key(root, word) for word in range(-(-count // WORD_LEAVES))]

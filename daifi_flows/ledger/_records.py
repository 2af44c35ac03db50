"""The ledger's nouns: tasks, accounts, tokens, supply, parameters and genesis."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, NamedTuple, Self

from pydantic import Field, model_validator

from daifi_flows.cnft import (
    PPM,
    Address,
    Bytes32,
    Cid,
    Committee,
    NodeInfo,
    Noun,
    Ppm,
    ProofHeader,
    TaskSpec,
    Uint,
    Wei,
)
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import LedgerError
from daifi_flows.keys import check_possession

__all__ = [
    "MAX_SLASH_PPM",
    "ZERO_ADDRESS",
    "AccountRecord",
    "Allocation",
    "Genesis",
    "LedgerHealth",
    "Params",
    "SupplyReport",
    "TaskRecord",
    "TaskState",
    "TokenRecord",
]

MAX_SLASH_PPM: Final = 500_000
"""A slash takes at most half of what a node has at stake (white paper, slashing; DESIGN)."""
ZERO_ADDRESS: Final = "0x0000000000000000000000000000000000000000"
"""Payee of burned money in receipts: nobody holds its key."""
_UINT256: Final = 2**256


class TaskState(StrEnum):
    """Where a task stands. Settled, cancelled, unproven and expired are final."""

    OPEN = "open"
    ASSIGNED = "assigned"
    COMMITTED = "committed"
    SETTLED = "settled"
    CANCELLED = "cancelled"
    UNPROVEN = "unproven"
    EXPIRED = "expired"


class TaskRecord(Noun):
    """One task: its terms, where it stands, and what is held for it.

    ``attempt`` counts executions that failed (rejected or released). ``price_wei`` is 0 until a
    node is assigned. ``barred`` nodes were rejected and cannot take this task again.
    """

    task_id: Bytes32
    spec: TaskSpec
    state: TaskState
    attempt: Uint = 0
    escrow_wei: Wei
    price_wei: Wei = 0
    node: Address | None = None
    proof: ProofHeader | None = None
    proof_cid: Cid | None = None
    barred: tuple[Address, ...] = ()
    token_id: Bytes32 | None = None


class AccountRecord(Noun):
    """Money, nonce and standing of one address. An address never seen reads as zeros."""

    address: Address
    balance_wei: Wei = 0
    nonce: Uint = 0
    stake_wei: Wei = 0
    accepted: Uint = 0
    """Executions of this node that the committee accepted."""
    rejected: Uint = 0
    registered: NodeInfo | None = None

    @property
    def reputation_ppm(self) -> int:
        """Mean of the Beta posterior over a uniform prior, (accepted+1)/(accepted+rejected+2)."""
        return (self.accepted + 1) * PPM // (self.accepted + self.rejected + 2)


class TokenRecord(Noun):
    """One cNFT. ``content`` is the digest of its bundle's core metadata; ``effect`` the digest
    of what its after-settlement action returned."""

    token_id: Bytes32
    owner: Address
    parents: tuple[Bytes32, ...]
    task_id: Bytes32
    content: Bytes32
    effect: Bytes32 | None = None


class SupplyReport(Noun):
    """Where all money is, in wei."""

    issued_wei: Wei
    burned_wei: Wei = 0
    balances_wei: Wei
    stakes_wei: Wei = 0
    escrows_wei: Wei = 0
    treasury_wei: Wei = 0

    @property
    def conserved(self) -> bool:
        """balances + stakes + escrows + treasury = issued − burned."""
        held = self.balances_wei + self.stakes_wei + self.escrows_wei + self.treasury_wei
        return held == self.issued_wei - self.burned_wei


class Params(Noun):
    """What governance may later change, within hard bounds.

    Of a settled price the committee's signing seats share ``committee_ppm`` equally, the owners
    of the parent tokens share ``royalty_ppm`` equally (nothing without parents), the treasury
    gets ``treasury_ppm``; each share is rounded down and the node gets the rest, rounding dust
    included. Of a slash, the reporter gets ``slash_reporter_ppm``, ``slash_burn_ppm`` is burned,
    and the treasury gets the rest, dust included.
    """

    slash_rejected_ppm: Annotated[int, Field(ge=0, le=MAX_SLASH_PPM, strict=True)] = 250_000
    """Part of its stake a node loses when the committee rejects its execution."""
    slash_reporter_ppm: Ppm = 100_000
    slash_burn_ppm: Ppm = 400_000
    committee_ppm: Ppm = 100_000
    treasury_ppm: Ppm = 50_000
    royalty_ppm: Ppm = 50_000
    min_stake_wei: Wei = 10**18
    """A node with less at stake cannot be assigned."""
    settle_grace_ms: Uint = 60_000
    """How long after its deadline a committed task can still be settled before it may expire."""

    @model_validator(mode="after")
    def _check_sums(self) -> Self:
        if self.committee_ppm + self.treasury_ppm + self.royalty_ppm > PPM // 2:
            raise ValueError("fees take more than half of the price")
        if self.slash_reporter_ppm + self.slash_burn_ppm > PPM:
            raise ValueError("a slash is split into more than there is")
        return self


class Allocation(Noun):
    """Money an address holds at genesis."""

    address: Address
    amount_wei: Wei


class Genesis(Noun):
    """Everything a chain starts from. Its hash is the ledger's id, so that nobody can present
    the same id with other funds, seats or rules.

    ``proposer`` names who builds blocks; ``treasury`` is the payee written in receipts for the
    treasury's share (the money itself is held apart from balances).
    """

    salt: Bytes32
    timestamp_ms: Uint
    allocations: Annotated[tuple[Allocation, ...], Field(max_length=100_000)]
    committee: Committee
    params: Params = Params()
    proposer: Address = ZERO_ADDRESS
    treasury: Address = ZERO_ADDRESS

    @classmethod
    def create(
        cls,
        *,
        salt: bytes,
        timestamp_ms: int,
        allocations: Sequence[tuple[str, int]],
        committee: Committee,
        params: Params | None = None,
        proposer: str = ZERO_ADDRESS,
        treasury: str = ZERO_ADDRESS,
    ) -> Genesis:
        """A checked genesis from ``(address, amount_wei)`` pairs.

        Raises:
            LedgerError: see :meth:`check`.
            EncodingError: a value is out of range.
        """
        genesis = cls.from_plain(
            {
                "salt": salt,
                "timestamp_ms": timestamp_ms,
                "allocations": [
                    {"address": address, "amount_wei": amount} for address, amount in allocations
                ],
                "committee": committee,
                "params": params if params is not None else Params(),
                "proposer": proposer,
                "treasury": treasury,
            }
        )
        genesis.check()
        return genesis

    @property
    def ledger_id(self) -> bytes:
        """``keccak256("daifi/genesis/1" ‖ dag-cbor(genesis))``, 32 bytes."""
        return tagged_hash("daifi/genesis/1", self.plain())

    def check(self) -> None:
        """Check what single fields cannot say.

        Raises:
            LedgerError: allocations repeat an address or overflow, seats are not numbered in
                order, share a key, or lack a valid proof of possession.
        """
        addresses = {item.address for item in self.allocations}
        if len(addresses) != len(self.allocations):
            raise LedgerError("genesis allocates to one address twice; merge the two entries")
        if sum(item.amount_wei for item in self.allocations) >= _UINT256:
            raise LedgerError("genesis issues 2^256 wei or more; allocate less")
        seats = self.committee.seats
        if not seats or [seat.index for seat in seats] != list(range(len(seats))):
            raise LedgerError("genesis committee seats must be numbered 0, 1, 2, … in order")
        if len({seat.public for seat in seats}) != len(seats):
            raise LedgerError("two seats of the genesis committee share a BLS key")
        for seat in seats:
            if not check_possession(seat.public, seat.possession):
                raise LedgerError(
                    f"seat {seat.index} of the genesis committee has no valid proof of "
                    "possession of its BLS key"
                )


class LedgerHealth(NamedTuple):
    """What a running ledger reports about itself.

    ``stalled_reason`` is empty while blocks certify, else why the last attempt failed.
    """

    pid: int
    height: int
    pending: int
    stalled_reason: str

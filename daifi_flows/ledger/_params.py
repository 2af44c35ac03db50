"""What a ledger starts from (genesis), and what governance may change within hard bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from daifi_flows.cnft import PPM, Address, Bytes32, Committee, Noun, Ppm, Uint, Wei
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import LedgerError
from daifi_flows.keys import check_possession
from daifi_flows.ledger._records import ZERO_ADDRESS, Record

__all__ = [
    "MAX_SLASH_PPM",
    "Allocation",
    "FeeParams",
    "Genesis",
    "Params",
    "ParamsRecord",
    "SlashingParams",
    "StakingParams",
    "TaskParams",
]

MAX_SLASH_PPM: Final = 500_000
"""A slash takes at most half of what a node has at stake (white paper, slashing)."""
_MAX_FEE_PER_BYTE_WEI: Final = 10**12
_UINT256: Final = 2**256


class FeeParams(Noun):
    """How prices are split, and what a transaction costs.

    Of a settled price the committee's signing seats share ``committee_ppm`` equally, the owners
    of the parent tokens share ``royalty_ppm`` equally (nothing without parents), the treasury
    gets ``treasury_ppm``; each share is rounded down and the node gets the rest, rounding dust
    included.
    """

    committee_ppm: Ppm = 100_000
    treasury_ppm: Ppm = 50_000
    royalty_ppm: Ppm = 50_000
    fee_per_byte_wei: Annotated[Wei, Field(le=_MAX_FEE_PER_BYTE_WEI)] = 10**9
    """What each byte of a signed transaction costs its sender; it goes to the treasury."""

    @model_validator(mode="after")
    def _check_sums(self) -> Self:
        if self.committee_ppm + self.treasury_ppm + self.royalty_ppm > PPM // 2:
            raise ValueError("fees take more than half of the price")
        return self


class SlashingParams(Noun):
    """What a fault costs, as parts of what a node has at stake.

    Of a slash, the reporter gets ``reporter_ppm``, ``burn_ppm`` is burned, and the treasury gets
    the rest, dust included.
    """

    rejected_ppm: Annotated[int, Field(ge=0, le=MAX_SLASH_PPM, strict=True)] = 250_000
    """Lost when the committee rejects the node's execution."""
    reporter_ppm: Ppm = 100_000
    burn_ppm: Ppm = 400_000

    @model_validator(mode="after")
    def _check_sums(self) -> Self:
        if self.reporter_ppm + self.burn_ppm > PPM:
            raise ValueError("a slash is split into more than there is")
        return self


class StakingParams(Noun):
    """What it takes to be a node."""

    min_stake_wei: Wei = 10**18
    """A node with less at stake cannot be assigned."""


class TaskParams(Noun):
    """The terms every task runs under."""

    settle_grace_ms: Uint = 60_000
    """How long after its deadline a committed task can still be settled before it may expire."""


class Params(Noun):
    """All that governance may change, by group; each field's type is its hard bound."""

    fees: FeeParams = FeeParams()
    slashing: SlashingParams = SlashingParams()
    staking: StakingParams = StakingParams()
    tasks: TaskParams = TaskParams()


class ParamsRecord(Record):
    """The parameters in force. One record, written at genesis and by governance only."""

    prefix: ClassVar[bytes] = b"p"
    params: Params

    def key(self) -> bytes:
        return self.prefix


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

"""What a ledger starts from (genesis), and what governance may change within hard bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from daifi_flows.cnft import PPM, Address, Bytes32, Committee, Noun, Ppm, Uint, Wei
from daifi_flows.dispute import MAX_DISPUTES
from daifi_flows.encoding import tagged_hash
from daifi_flows.epochs import committee_fault
from daifi_flows.errors import LedgerError
from daifi_flows.ledger._economics import Fault
from daifi_flows.ledger._policy import CommitteeParams, GovernanceParams, SealedParams
from daifi_flows.ledger._records import ZERO_ADDRESS, Record
from daifi_flows.review_rate import ReviewTerms

__all__ = [
    "MAX_SLASH_PPM",
    "Allocation",
    "BidParams",
    "DisputeParams",
    "FeeParams",
    "Genesis",
    "LeaseParams",
    "Params",
    "ParamsRecord",
    "PriceParams",
    "RewardParams",
    "RollupParams",
    "SlashingParams",
    "StakingParams",
    "TaskParams",
    "TokenParams",
]

MAX_SLASH_PPM: Final = 500_000
"""A slash takes at most half of what a node has at stake (white paper, slashing)."""
_MAX_FEE_PER_BYTE_WEI: Final = 10**12
_UINT128: Final = 2**128
_UINT256: Final = 2**256
_SECOND_MS: Final = 1_000
_MINUTE_MS: Final = 60 * _SECOND_MS
_DAY_MS: Final = 24 * 60 * _MINUTE_MS
_SlashPpm = Annotated[int, Field(ge=0, le=MAX_SLASH_PPM, strict=True)]


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
    """What a fault costs, as parts of what a node has at stake, unbonding stake included.

    Of a slash, the reporter gets ``reporter_ppm``, ``burn_ppm`` is burned, and the treasury gets
    the rest, dust included.
    """

    rejected_ppm: _SlashPpm = 250_000
    """Lost when the committee rejects the node's execution."""
    equivocation_ppm: _SlashPpm = 500_000
    """Lost by who signs two things where one is allowed, or who copies another seat's vote."""
    false_accusation_ppm: _SlashPpm = 10_000
    """Lost by a seat that voted to reject what a quorum accepted, and what stood."""
    rollup_fraud_ppm: _SlashPpm = 500_000
    """Lost by the operator of a batch with a leaf that is proven wrong."""
    unanswered_ppm: _SlashPpm = 500_000
    """Lost of its bond for the task, by a node that bid for it, got it and did not answer before
    its deadline."""
    reporter_ppm: Ppm = 100_000
    burn_ppm: Ppm = 400_000

    @model_validator(mode="after")
    def _check_sums(self) -> Self:
        if self.reporter_ppm + self.burn_ppm > PPM:
            raise ValueError("a slash is split into more than there is")
        return self

    def fraction_ppm(self, fault: Fault) -> int:
        """What a kind of fault costs."""
        match fault:
            case Fault.REJECTED:
                return self.rejected_ppm
            case Fault.EQUIVOCATION:
                return self.equivocation_ppm
            case Fault.FALSE_ACCUSATION:
                return self.false_accusation_ppm
            case Fault.ROLLUP_FRAUD:
                return self.rollup_fraud_ppm
            case Fault.UNANSWERED:
                return self.unanswered_ppm


class StakingParams(Noun):
    """What it takes to be a node."""

    min_stake_wei: Annotated[Wei, Field(le=10**24)] = 10**18
    """A node with less at stake cannot be assigned."""
    unbonding_ms: Annotated[int, Field(ge=_MINUTE_MS, le=90 * _DAY_MS, strict=True)] = 7 * _DAY_MS
    """How long unstaked money stays within reach of a slash."""
    half_life_ms: Annotated[int, Field(ge=_MINUTE_MS, le=3650 * _DAY_MS, strict=True)] = (
        30 * _DAY_MS
    )
    """In which the evidence behind a reputation halves."""


class RewardParams(Noun):
    """Emission, and how it is shared (white paper 2.2, 2.3, 3.2; see :mod:`_economics`).

    Attributes:
        lambda_ppb: λ in 10⁻⁹ a year of 365 days; the default, ln 2 / 4, halves what is left in
            four years.
        alpha_ppm: α, what verified work weighs.
        beta_mflop: β, the work an epoch that full reputation stands for, megaFLOP.
        gamma_floor_ppm: γ at no reputation.
        tau_ms2: τ, the variance of a node's latency at which its work counts nothing, ms².
        credit_wei_per_pflop: what must be paid for a petaFLOP to count; 0: nothing.
        node_gflops: the fastest a node is believed to be, 10⁹ operations a second: its work in an
            epoch counts up to that (an H100 does about a petaFLOP a second in 16 bits).
        challenge_ms: how long a settled output can be challenged, and what was paid for it is
            locked: long enough to repeat one execution.
    """

    lambda_ppb: Annotated[int, Field(ge=0, le=10**10, strict=True)] = 173_286_795
    alpha_ppm: Annotated[int, Field(ge=0, le=10 * PPM, strict=True)] = PPM
    beta_mflop: Annotated[int, Field(ge=0, le=10**12, strict=True)] = 1_000_000
    gamma_floor_ppm: Ppm = 500_000
    tau_ms2: Annotated[int, Field(ge=1, le=10**12, strict=True)] = 30_000**2
    credit_wei_per_pflop: Annotated[Wei, Field(le=10**24)] = 10**15
    node_gflops: Annotated[int, Field(ge=1, le=10**9, strict=True)] = 1_000_000
    challenge_ms: Annotated[int, Field(ge=0, le=7 * _DAY_MS, strict=True)] = 10 * _MINUTE_MS


class PriceParams(Noun):
    """How asks move with utilisation (see :func:`_economics.next_index_ppm`).

    Attributes:
        capacity_gflops: what the network can do, 10⁹ operations a second; half of it is the
            target (white paper 2.6: 10 PFLOPS at first).
        change_ppm: most change of the index in one epoch (EIP-1559: an eighth).
        ceiling_ppm: highest index.
    """

    capacity_gflops: Annotated[int, Field(ge=1, le=10**12, strict=True)] = 10_000_000
    change_ppm: Annotated[int, Field(ge=1_000, le=PPM // 2, strict=True)] = 125_000
    ceiling_ppm: Annotated[int, Field(ge=PPM, le=1_000 * PPM, strict=True)] = 16 * PPM


class RollupParams(Noun):
    """The terms of batches (white paper 2.6).

    Attributes:
        challenge_ms: how long a leaf can be proven wrong; nothing is paid before that.
        claim_ms: how long after that leaves can be claimed.
        notice_ms: how long before a batch a task must have been settled elsewhere for its leaf to
            be a fraud: what became final while the batch was under way, its operator could not
            know, and others could bring about.
        min_bond_wei: least bond of a batch.
        bond_ppm: least bond as a part of the batch's total. What fraud costs the operator is
            ``slashing.rollup_fraud_ppm`` of the bond.
    """

    challenge_ms: Annotated[int, Field(ge=_MINUTE_MS, le=30 * _DAY_MS, strict=True)] = (
        60 * _MINUTE_MS
    )
    claim_ms: Annotated[int, Field(ge=_DAY_MS, le=3650 * _DAY_MS, strict=True)] = 365 * _DAY_MS
    notice_ms: Annotated[int, Field(ge=0, le=_DAY_MS, strict=True)] = _MINUTE_MS
    min_bond_wei: Annotated[Wei, Field(ge=1, le=10**24)] = 10**18
    bond_ppm: Ppm = 500_000


class TaskParams(Noun):
    """The terms every task runs under."""

    settle_grace_ms: Uint = 60_000
    """How long after its deadline a committed task can still be settled before it may expire."""
    bond_ppm: Ppm = 50_000
    """Part of the price that an assignment bonds of the node's stake."""
    notice_ms: Annotated[int, Field(ge=0, le=_DAY_MS, strict=True)] = 30_000
    """A node that gives a task back at least this long before the deadline keeps its bond."""


class BidParams(Noun):
    """The terms of auctions of tasks.

    Attributes:
        deposit_wei: what a sealed bid deposits; back when it is revealed.
        max_bids: most bids on one attempt of a task.
        min_window_ms: shortest time to bid and shortest time to reveal: a few blocks.
    """

    deposit_wei: Annotated[Wei, Field(le=10**24)] = 10**16
    max_bids: Annotated[int, Field(ge=1, le=64, strict=True)] = 16
    min_window_ms: Annotated[int, Field(ge=1, le=_DAY_MS, strict=True)] = _SECOND_MS


class DisputeParams(Noun):
    """The terms of disputes about settled outputs, and of evidence. How long an output can be
    disputed is ``rewards.challenge_ms``.

    Attributes:
        min_bond_wei: least bond of a challenger.
        bond_ppm: least bond as a part of the task's price; in full a committee can repeat the
            execution for it.
        node_ppm: part of the bond that the node gets when the dispute is dismissed; the treasury
            gets the rest.
        answer_ms: how long the committee has before everybody gets their own back.
        evidence_ms: how long evidence of equivocation counts after the fact.
    """

    min_bond_wei: Annotated[Wei, Field(ge=1, le=10**24)] = 10**17
    bond_ppm: Annotated[int, Field(ge=0, le=10 * PPM, strict=True)] = PPM
    node_ppm: Ppm = 500_000
    answer_ms: Annotated[int, Field(ge=_SECOND_MS, le=7 * _DAY_MS, strict=True)] = 10 * _MINUTE_MS
    evidence_ms: Annotated[int, Field(ge=_MINUTE_MS, le=30 * _DAY_MS, strict=True)] = _DAY_MS


class TokenParams(Noun):
    """What a token's sale and reuse cost.

    Attributes:
        royalty_ppm: part of each sale that a new token's payees share; fixed when it is minted.
        lineage_ppm: part of that royalty for who owns the parents then; the creator's is the
            rest.
        sale_ppm: part of each sale for the treasury.
        reuse_ppm: what a flash attest costs where the owner has not said, as a part of what the
            execution cost.
    """

    royalty_ppm: Annotated[int, Field(ge=0, le=PPM // 10, strict=True)] = 25_000
    lineage_ppm: Ppm = 500_000
    sale_ppm: Annotated[int, Field(ge=0, le=PPM // 10, strict=True)] = 10_000
    reuse_ppm: Ppm = 100_000


class LeaseParams(Noun):
    """What leases cost.

    Attributes:
        credit_ppm: fee on borrowed money (Aave v2's flash-loan premium), rounded up.
        capacity_ppm: part of leased capacity's price that the node gets at once; it is not given
            back when the tasks are cancelled, so that nobody empties an offer for nothing.
    """

    credit_ppm: Annotated[int, Field(ge=1, le=PPM // 10, strict=True)] = 900
    capacity_ppm: Annotated[int, Field(ge=0, le=PPM, strict=True)] = 10_000


class Params(Noun):
    """All that governance may change, by group; each field's type is its hard bound."""

    fees: FeeParams = FeeParams()
    slashing: SlashingParams = SlashingParams()
    staking: StakingParams = StakingParams()
    tasks: TaskParams = TaskParams()
    bids: BidParams = BidParams()
    disputes: DisputeParams = DisputeParams()
    rewards: RewardParams = RewardParams()
    prices: PriceParams = PriceParams()
    review: ReviewTerms = ReviewTerms()
    rollup: RollupParams = RollupParams()
    tokens: TokenParams = TokenParams()
    leases: LeaseParams = LeaseParams()
    governance: GovernanceParams = GovernanceParams()
    committee: CommitteeParams = CommitteeParams()
    sealed: SealedParams = SealedParams()

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if self.staking.unbonding_ms < self.vouching_ms:
            raise ValueError("stake could leave before what it vouches for can be challenged")
        return self

    @property
    def vouching_ms(self) -> int:
        """How long after its deadline a task may need the node's stake: the time to settle it,
        to challenge its output, and to decide every dispute about it; and as long as evidence
        about it counts."""
        challenged_ms = self.tasks.settle_grace_ms + self.disputing_ms
        return max(challenged_ms, self.disputes.evidence_ms)

    @property
    def disputing_ms(self) -> int:
        """How long after its settlement an output may need the node's stake."""
        if self.rewards.challenge_ms == 0:
            return 0
        return self.rewards.challenge_ms + MAX_DISPUTES * self.disputes.answer_ms


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

    ``treasury`` is the payee written in receipts for the
    treasury's share (the money itself is held apart from balances).
    """

    salt: Bytes32
    timestamp_ms: Uint
    allocations: Annotated[tuple[Allocation, ...], Field(max_length=100_000)]
    committee: Committee
    params: Params = Params()
    treasury: Address = ZERO_ADDRESS
    epoch_ms: Annotated[int, Field(ge=_SECOND_MS, le=30 * _DAY_MS, strict=True)] = 60 * _MINUTE_MS
    """Length of an epoch of emission; the first starts at ``timestamp_ms``."""
    emission_wei: Wei | None = None
    """E₀, what is issued over time; absent: as much as there is at genesis."""

    @classmethod
    def create(
        cls,
        *,
        salt: bytes,
        timestamp_ms: int,
        allocations: Sequence[tuple[str, int]],
        committee: Committee,
        params: Params | None = None,
        treasury: str = ZERO_ADDRESS,
        epoch_ms: int = 60 * _MINUTE_MS,
        emission_wei: int | None = None,
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
                "treasury": treasury,
                "epoch_ms": epoch_ms,
                "emission_wei": emission_wei,
            }
        )
        genesis.check()
        return genesis

    @property
    def ledger_id(self) -> bytes:
        """``keccak256("daifi/genesis/1" ‖ dag-cbor(genesis))``, 32 bytes."""
        return tagged_hash("daifi/genesis/1", self.plain())

    @property
    def supply_wei(self) -> int:
        """What there is at genesis, in wei."""
        return sum(item.amount_wei for item in self.allocations)

    @property
    def to_issue_wei(self) -> int:
        """E₀ of white paper 3.2, in wei: the genesis supply, unless genesis says otherwise."""
        return self.supply_wei if self.emission_wei is None else self.emission_wei

    def check(self) -> None:
        """Check what single fields cannot say.

        Raises:
            LedgerError: allocations repeat an address or overflow, seats are not numbered in
                order, share a key, or lack a valid proof of possession; or the committee's group
                key is not shared among them.
        """
        addresses = {item.address for item in self.allocations}
        if len(addresses) != len(self.allocations):
            raise LedgerError("genesis allocates to one address twice; merge the two entries")
        if self.supply_wei >= _UINT256:
            raise LedgerError("genesis issues 2^256 wei or more; allocate less")
        if self.to_issue_wei >= _UINT128:
            raise LedgerError("2^128 wei or more are to be issued over time; set emission_wei")
        if self.supply_wei + self.to_issue_wei >= _UINT256:
            raise LedgerError("2^256 wei or more would be issued in the end; allocate less")
        if (fault := committee_fault(self.committee)) is not None:
            raise LedgerError(f"the genesis committee cannot certify blocks: {fault}")

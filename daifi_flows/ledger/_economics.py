"""The white paper's money formulas in integers: pure, exact about what rounding does.

Amounts are in wei, shares in parts per million (ppm), times in milliseconds. Every division
rounds down, and every function says who gets the dust. Sections are those of the white paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from daifi_flows.cnft import PPM
from daifi_flows.ledger._exponential import half_power, negative_exp

__all__ = [
    "EVIDENCE_ONE",
    "MAX_LATENCY_MS",
    "MEGA",
    "PEAK",
    "YEAR_MS",
    "Fault",
    "Latency",
    "PriceSplit",
    "SlashSplit",
    "credited_mflop",
    "decayed",
    "gamma_ppm",
    "idle_index_ppm",
    "next_index_ppm",
    "reputation_ppm",
    "reward_wei",
    "royalty_wei",
    "slash_parts",
    "split_price",
    "split_slash",
    "surged_wei",
    "weight_of",
    "yet_to_issue_wei",
]

YEAR_MS: Final = 365 * 24 * 3600 * 1000
"""A year of 365 days: the unit of time of λ."""
_BILLION: Final = 10**9
_COUNT_LIMIT: Final = 2**63 - 1
"""Largest integer in a record (a DAG-CBOR Uint); sums of work stop here."""

# Emission (3.2)


def yet_to_issue_wei(total_wei: int, lambda_ppb: int, elapsed_ms: int) -> int:
    """E(t) = E₀·e^(−λt), section 3.2: what is still to be issued after ``elapsed_ms``, in wei.

    An interval [t₁, t₂) issues E(t₁) − E(t₂), so that intervals that meet issue together exactly
    what one over both would, and nothing ever issues more than ``total_wei``. For totals under
    2^128 the result is at most the exact value and less than 2 wei under it.

    Args:
        total_wei: E₀.
        lambda_ppb: λ in 10⁻⁹ a year of 365 days.
        elapsed_ms: t.
    """
    return total_wei * negative_exp(lambda_ppb * elapsed_ms, _BILLION * YEAR_MS) >> 128


# Work and rewards (2.2, 2.3)

MEGA: Final = 10**6
"""Work is counted in whole megaFLOP (10⁶ floating-point operations)."""
MAX_LATENCY_MS: Final = 1_000_000
"""A longer wait counts as this: it keeps the squares of a million waits in 63 bits."""
_MAX_SAMPLES: Final = 1 << 20


@dataclass(frozen=True)
class Latency:
    """Sums from which the variance of waiting times follows exactly, in bounded space.

    After 2^20 samples no more are taken.
    """

    count: int = 0
    total_ms: int = 0
    squares_ms2: int = 0

    def with_sample(self, wait_ms: int) -> Self:
        """With one more wait, clipped to 0 … :data:`MAX_LATENCY_MS`."""
        if self.count >= _MAX_SAMPLES:
            return self
        wait_ms = min(max(wait_ms, 0), MAX_LATENCY_MS)
        return type(self)(
            self.count + 1, self.total_ms + wait_ms, self.squares_ms2 + wait_ms * wait_ms
        )

    @property
    def variance_ms2(self) -> int:
        """σ of section 2.3, the population variance in ms², rounded down; 0 for no samples."""
        if self.count == 0:
            return 0
        return (self.count * self.squares_ms2 - self.total_ms**2) // self.count**2


def credited_mflop(claimed_flop: int, paid_wei: int, wei_per_pflop: int) -> int:
    """Work that counts for rewards, in megaFLOP rounded down.

    The number of operations is the node's own statement, so no more of it is believed than was
    paid for: one petaFLOP (10^15) for each ``wei_per_pflop`` (0: no such limit).
    """
    claimed = claimed_flop // MEGA
    if wei_per_pflop == 0:
        return claimed
    return min(claimed, paid_wei * (10**15 // MEGA) // wei_per_pflop)


def gamma_ppm(reputation_ppm: int, floor_ppm: int) -> int:
    """γ of section 2.2, in ppm: a straight line from the floor at reputation 0 to 1 at 1.

    The paper's γ is also adjusted to difficulty. A difficulty is one factor for all nodes, and
    cancels in P_n / ΣP, so it is not kept.
    """
    return floor_ppm + (PPM - floor_ppm) * reputation_ppm // PPM


def weight_of(
    *,
    mflop: int,
    variance_ms2: int,
    tau_ms2: int,
    reputation_ppm: int,
    alpha_ppm: int,
    beta_mflop: int,
    gamma_ppm: int,
) -> int:
    """P = max(0, α·FLOPS_v·(1 − σ/τ) + β·Rep)·γ, sections 2.2 and 2.3, rounded down once.

    The unit is one megaFLOP of perfect work in the epoch. All epochs are equally long, so work
    an epoch is FLOPS_v up to one factor for all nodes. β is the work that full reputation stands
    for. Where σ is over τ the work counts against the node, down to a weight of 0.

    Args:
        mflop: verified work of the node in the epoch, megaFLOP.
        variance_ms2: σ, variance of its latency in the epoch, ms².
        tau_ms2: τ, the variance at which work counts nothing, ms², positive.
        reputation_ppm: Rep.
        alpha_ppm: α.
        beta_mflop: β.
        gamma_ppm: γ.
    """
    scaled = alpha_ppm * mflop * (tau_ms2 - variance_ms2) + beta_mflop * reputation_ppm * tau_ms2
    return min(max(0, scaled) * gamma_ppm // (PPM * PPM * tau_ms2), _COUNT_LIMIT)


def reward_wei(total_wei: int, weight: int, weights: int) -> int:
    """R_n = P_n / ΣP · R_total, section 2.2, rounded down: nodes together get at most the total.

    The dust is less than one wei for each node; the treasury gets it when the last node claims.
    """
    return total_wei * weight // weights if weights else 0


# Reputation (2.3, Bayesian-updated)

EVIDENCE_ONE: Final = 1_000_000
"""One judged execution, in the fixed point of decayed evidence."""


def decayed(evidence: Sequence[int], elapsed_ms: int, half_life_ms: int) -> tuple[int, ...]:
    """Evidence after ``elapsed_ms``: halved each ``half_life_ms``, each part rounded down."""
    factor = half_power(elapsed_ms, half_life_ms)
    return tuple(part * factor >> 128 for part in evidence)


def reputation_ppm(accepted: int, rejected: int) -> int:
    """Rep: mean of the Beta posterior over a uniform prior, in ppm rounded down.

    (a+1)/(a+r+2) with ``accepted`` and ``rejected`` in units of 1/:data:`EVIDENCE_ONE`; a node
    without evidence stands at one half, and one whose evidence decays returns there. Source:
    Jøsang and Ismail, The Beta Reputation System (2002), with exponential forgetting.
    """
    return (accepted + EVIDENCE_ONE) * PPM // (accepted + rejected + 2 * EVIDENCE_ONE)


# Slashing (2.3: economic slashing, up to 50%)


class Fault(StrEnum):
    """What a node, seat or operator can lose stake for."""

    REJECTED = "rejected"
    """The committee rejected an execution."""
    EQUIVOCATION = "equivocation"
    """Two signatures where the protocol allows one, or another's word as one's own."""
    ROLLUP_FRAUD = "rollup fraud"
    """A batch held a leaf that was proven wrong."""
    FALSE_ACCUSATION = "false accusation"
    """A seat voted to reject what a quorum accepted, and what stood."""
    UNANSWERED = "unanswered"
    """An assigned task was not answered before its deadline."""


def slash_parts(parts: Sequence[int], fraction_ppm: int) -> tuple[int, ...]:
    """What each part of a stake loses: the same fraction of each, rounded down.

    Stake and every unbonding tranche are cut alike, so that nothing is won by moving money
    between them before or after a fault, and the whole never loses over the fraction.
    """
    return tuple(part * fraction_ppm // PPM for part in parts)


@dataclass(frozen=True)
class SlashSplit:
    """Where slashed money goes; the three add up to all of it."""

    reporter_wei: int
    burned_wei: int
    treasury_wei: int


def split_slash(slashed_wei: int, *, reporter_ppm: int, burn_ppm: int) -> SlashSplit:
    """Reporter and burned shares are rounded down; the treasury gets the rest, dust included."""
    reporter = slashed_wei * reporter_ppm // PPM
    burned = slashed_wei * burn_ppm // PPM
    return SlashSplit(reporter, burned, slashed_wei - reporter - burned)


# Fees (2.5: micropayments) and royalties (4.1.2)


@dataclass(frozen=True)
class PriceSplit:
    """Shares of a settled price; each seat and each parent's owner gets the same."""

    node_wei: int
    seat_wei: int
    owner_wei: int
    treasury_wei: int


def split_price(
    price_wei: int,
    *,
    seats: int,
    parents: int,
    committee_ppm: int,
    royalty_ppm: int,
    treasury_ppm: int,
) -> PriceSplit:
    """Committee, royalty and treasury shares are rounded down a payee; the node gets the rest.

    Without parents there is no royalty, and without seats no committee share.
    """
    seat = price_wei * committee_ppm // PPM // seats if seats else 0
    owner = price_wei * royalty_ppm // PPM // parents if parents else 0
    treasury = price_wei * treasury_ppm // PPM
    node = price_wei - seat * seats - owner * parents - treasury
    return PriceSplit(node, seat, owner, treasury)


def royalty_wei(sale_wei: int, royalty_ppm: int) -> int:
    """ERC-2981 ``royaltyInfo``: a share of the sale price, rounded down."""
    return sale_wei * royalty_ppm // PPM


# Prices that move with utilisation (3.1: dynamic pay-per-inference)

PEAK: Final = 2
"""Demand over twice the target moves the price no further (EIP-1559's elasticity)."""


def next_index_ppm(
    index_ppm: int, *, used: int, target: int, change_ppm: int, ceiling_ppm: int
) -> int:
    """The price index after an epoch: EIP-1559's rule, between 1 and a ceiling.

    ``index · (1 + change · (used − target)/target)``, ``used`` counted up to twice ``target`` (so
    that one epoch changes it by at most ``change_ppm``), the change rounded down, a rise at least
    1 ppm. Nodes' asks are multiplied by it; at 1 (10⁶ ppm, the floor) an ask is what the node
    said.

    Args:
        index_ppm: the index in this epoch.
        used: work settled in this epoch, in any unit.
        target: work at which the index stays, in the same unit, positive.
        change_ppm: most change in one epoch.
        ceiling_ppm: highest index.
    """
    gap = min(used, PEAK * target) - target
    change = index_ppm * abs(gap) * change_ppm // (target * PPM)
    moved = index_ppm + max(change, 1) if gap > 0 else index_ppm - change
    return min(max(moved, PPM), ceiling_ppm)


def idle_index_ppm(index_ppm: int, *, epochs: int, change_ppm: int, ceiling_ppm: int) -> int:
    """The index after ``epochs`` epochs without any work; stops early at the floor."""
    for _ in range(epochs):
        moved = next_index_ppm(
            index_ppm, used=0, target=1, change_ppm=change_ppm, ceiling_ppm=ceiling_ppm
        )
        if moved == index_ppm:
            break
        index_ppm = moved
    return index_ppm


def surged_wei(ask_wei: int, index_ppm: int) -> int:
    """A node's ask at an index, rounded up: a node is never paid under what it asked."""
    return -(-ask_wei * index_ppm // PPM)

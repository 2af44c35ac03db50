"""The economy of reviews: what each strategy earns under the default policy, against honest work.

10,000 nodes, each with its own stake, prices, costs and pace, work through the same tasks, once
honestly and once by their strategy, with the same random numbers: the difference is what the
strategy brings. The review rate, the slash and the reputation are the ledger's (`ReviewTerms`,
`SlashingParams` and `StakingParams` as they are by default); that the vectorised rate here is the
ledger's is checked against `review_ppm` in every run. A cheat is as good as the policy fears: it
saves the whole cost of the work, and `miss_ppm` of all reviews do not see it.

Seats and colluders are reckoned exactly where the numbers are small (binomial and hypergeometric
counts), and drawn where they are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks._report import Figure
from daifi_flows._noun import PPM
from daifi_flows.ledger._params import Params
from daifi_flows.review_rate import ReviewTerms, review_ppm

__all__ = ["World", "colluding_seats", "figures", "rates", "simulate", "tail"]

DAI: Final = 10**18
NODES: Final = 10_000
TASKS: Final = 500
SEED: Final = 20_261_123
FALSE_REJECT: Final = 1e-5
"""An honest execution that is rejected when reviewed. Measured: none in 800 (docs/proofs.md), which
bounds it by 0.4 % only; what it may be at most is a figure of its own."""
SEATS, FAULTS, QUORUM, ASKED = 21, 6, 14, 7
PREFILL: Final = 0.056
"""Cost of verifying an answer, as a part of generating it (docs/proofs.md, token-difr)."""
FEES: Final = Params().fees
NODE_PART: Final = 1 - (FEES.committee_ppm + FEES.treasury_ppm) / PPM
"""What the node gets of a price, without parents."""


@dataclass(frozen=True)
class World:
    """Endowments of all nodes. Arrays are ``[nodes]``.

    Attributes:
        stake: DAi at the beginning.
        price: median price of its tasks, DAi.
        cost: of honest work, as a part of what the node is paid.
        decay: what is left of its evidence from one task to the next.
    """

    stake: np.ndarray
    price: np.ndarray
    cost: np.ndarray
    decay: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, nodes: int = NODES) -> World:
        """Stakes from the least there is to 1,000 DAi, steps of about 0.02 DAi, one task in
        minutes to hours."""
        hours = np.exp(rng.normal(np.log(0.5), 1.0, nodes))
        half_life_h = Params().staking.half_life_ms / 3_600_000
        return cls(
            stake=np.clip(np.exp(rng.normal(np.log(30), 1.5, nodes)), 1.0, 1_000.0),
            price=np.exp(rng.normal(np.log(0.02), 0.5, nodes)),
            cost=rng.uniform(0.4, 0.9, nodes),
            decay=0.5 ** (hours / half_life_h),
        )


def rates(
    price: np.ndarray,
    reach: np.ndarray,
    exposed: np.ndarray,
    reputation: np.ndarray,
    reviewed: np.ndarray,
    terms: ReviewTerms,
    slash: float,
) -> np.ndarray:
    """:func:`review_rate.review_ppm` over arrays, as parts of one; amounts in DAi."""
    miss, audit = terms.miss_ppm / PPM, terms.audit_ppm / PPM
    share = reach * price / (price + exposed)
    least = terms.saving_ppm / PPM * price / ((1 - miss) * (price + slash * share))
    spread = (terms.newcomer_margin_ppm - terms.margin_ppm) / PPM
    margin = terms.newcomer_margin_ppm / PPM - spread * reputation
    rate = np.maximum(terms.floor_ppm / PPM, (margin * least - audit) / (1 - audit))
    always = (
        (np.floor(reviewed) < terms.probation)
        | (reputation < terms.trust_ppm / PPM)
        | (price > terms.always_over_wei / DAI)
        | (reach <= 0)
    )
    return np.where(always, 1.0, np.minimum(rate, 1.0))


@dataclass(frozen=True)
class Outcome:
    """What came of a simulation. ``profit`` is ``[nodes]``, DAi a task; ``caught_at`` the number of
    cheats that each node got away with before the first that was found, NaN where none was;
    ``rate`` the mean review rate ``[nodes]`` of each in the second half."""

    profit: np.ndarray
    caught_at: np.ndarray
    rate: np.ndarray
    stake: np.ndarray


Strategy = Callable[[float, np.ndarray, np.ndarray], np.ndarray]
"""Which nodes cheat, given what part of the time has passed, the review rate that each is about to
have (it is public), and a random number for each."""


def honest(_: float, rate: np.ndarray, _chance: np.ndarray) -> np.ndarray:
    """Nobody cheats."""
    return np.zeros(rate.size, bool)


def cheating(part: float) -> Strategy:
    """Cheats on a part of all tasks."""

    def choose(_: float, _rate: np.ndarray, chance: np.ndarray) -> np.ndarray:
        return chance < part

    return choose


def patient(passed: float, rate: np.ndarray, _chance: np.ndarray) -> np.ndarray:
    """Honest for half of its life, to earn trust; then cheats on everything."""
    return np.full(rate.size, passed >= 0.5)


def picky(_: float, rate: np.ndarray, _chance: np.ndarray) -> np.ndarray:
    """Knows its review rate, and cheats only where that is lowest."""
    return rate <= 2.5 * ReviewTerms().floor_ppm / PPM


def simulate(
    world: World,
    strategy: Strategy,
    seed: int,
    *,
    found: float = 1.0,
    unpaid: float = 0.0,
    reborn: bool = False,
    audits: bool = True,
    tasks: int = TASKS,
) -> Outcome:
    """Work through all tasks.

    Args:
        found: chance that the committee, where it looks and does not miss, rejects the cheat.
        unpaid: chance that it can then only leave it unproven: no pay, no slash.
        reborn: a node that was slashed comes back under a new name, with what is left.
        audits: whether executions that were not reviewed are audited, as often as the terms say.
    """
    params = Params()
    terms, slash = params.review, params.slashing.rejected_ppm / PPM
    least_stake = params.staking.min_stake_wei / DAI
    rng = np.random.default_rng(seed)
    n = world.stake.size
    stake, accepted, rejected = world.stake.copy(), np.zeros(n), np.zeros(n)
    good = np.zeros(n)  # reviewed and accepted since the last rejection or unproven answer
    profit, worked, rate_sum = np.zeros(n), np.zeros(n), np.zeros(n)
    cheats, caught_at = np.zeros(n), np.full(n, np.nan)
    for task in range(tasks):
        price = np.clip(world.price * np.exp(rng.normal(0, 0.5, n)), 0.001, None)
        price = np.where(rng.random(n) < 0.01, 20 * price, price)
        exposed = world.price * rng.poisson(1.0, n)
        accepted, rejected = accepted * world.decay, rejected * world.decay
        reputation = (accepted + 1) / (accepted + rejected + 2)
        active = stake >= least_stake
        rate = rates(price, stake, exposed, reputation, np.minimum(good, accepted), terms, slash)
        cheat = strategy(task / tasks, rate, rng.random(n)) & active
        reviewed = rng.random(n) < rate
        audited = ~reviewed & (rng.random(n) < (terms.audit_ppm / PPM if audits else 0.0))
        seen = (reviewed | audited) & (rng.random(n) >= terms.miss_ppm / PPM)
        how = rng.random(n)
        slashed = cheat & seen & (how < found)
        lost = slashed | (cheat & seen & (how < found + unpaid))
        wrongly = ~cheat & (reviewed | audited) & (rng.random(n) < FALSE_REJECT) & active
        slashed |= wrongly
        lost |= wrongly
        pay = NODE_PART * price
        spent = np.where(cheat, 0.0, world.cost * pay)
        penalty = np.where(slashed, slash * stake, 0.0)
        profit += np.where(active, np.where(lost, 0.0, pay) - spent - penalty, 0.0)
        worked += active
        rate_sum += np.where(task >= tasks // 2, rate, 0.0)
        stake = stake - penalty
        rejected += slashed
        passed = (reviewed | audited) & ~lost & active
        accepted += passed
        good = np.where(lost, 0.0, good + passed)
        caught_at = np.where(slashed & cheat & np.isnan(caught_at), cheats, caught_at)
        cheats += cheat & ~slashed
        if reborn:
            accepted = np.where(slashed, 0.0, accepted)
            rejected = np.where(slashed, 0.0, rejected)
    return Outcome(profit / tasks, caught_at, rate_sum / (tasks - tasks // 2), stake)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % confidence interval (normal approximation)."""
    mean, half = float(values.mean()), 1.96 * float(values.std(ddof=1)) / values.size**0.5
    return mean - half, mean, mean + half


def versus(name: str, values: np.ndarray, target: str = "< 0") -> Figure:
    """A figure that counts as met only when the whole confidence interval does."""
    low, mean, high = interval(values * 1_000)
    edge = low if target.startswith(">") else high
    return Figure(name, [edge], "mDAi", target, {"mean": mean, "ci95_low": low, "ci95_high": high})


# Seats


def tail(share: float, least: int, seats: int = SEATS) -> float:
    """Chance that at least ``least`` of the seats drawn belong to who has this share of the
    weight (draws with replacement: an upper bound on the spread)."""
    return sum(
        comb(seats, k) * share**k * (1 - share) ** (seats - k) for k in range(least, seats + 1)
    )


def colluding_seats(share: float, seats: int = SEATS) -> np.ndarray:
    """Distribution of the number of colluding seats, ``[seats + 1]``."""
    return np.array(
        [comb(seats, k) * share**k * (1 - share) ** (seats - k) for k in range(seats + 1)]
    )


def shielded(colluders: int, chunks: int = 1) -> float:
    """Chance that no honest seat is among the seven that are asked about any chunk."""
    return (comb(colluders, ASKED) / comb(SEATS, ASKED)) ** chunks


def verdicts(seats: np.ndarray) -> tuple[float, float]:
    """Of cheats that an honest seat would see: how many are rejected, and how many end unproven,
    when so many seats (a distribution) accept whatever their friends do."""
    rejected = unproven = 0.0
    for count, weight in enumerate(seats):
        caught = 1 - shielded(count)
        if SEATS - count >= QUORUM:
            rejected += weight * caught
        elif count < QUORUM:
            unproven += weight * caught
    return rejected, unproven


@dataclass(frozen=True)
class SeatTerms:
    """What a seat's strategies turn on; amounts in DAi, the rest parts of one.

    Attributes:
        fee: of one task, to each seat that signs.
        work: of one chunk that it checks.
        asked: how often it is asked about a chunk, of reviewed tasks.
        false_vote: what it loses when a quorum finds the contrary of its vote.
        copied: what it loses when it copies a commitment.
    """

    stake: float
    fee: float
    work: float
    asked: float
    false_vote: float
    copied: float

    @classmethod
    def default(cls, price: float = 0.02, cost: float = 0.65) -> SeatTerms:
        """At the median step and the least pledge of a candidate."""
        params = Params()
        stake = params.committee.min_pledge_wei / DAI
        return cls(
            stake=stake,
            fee=FEES.committee_ppm / PPM * price / SEATS,
            work=PREFILL * cost * NODE_PART * price,
            asked=ASKED / SEATS,
            false_vote=params.slashing.false_accusation_ppm / PPM * stake,
            copied=params.slashing.equivocation_ppm / PPM * stake,
        )

    def honest(self, rate: float) -> float:
        """Profit a task at a mean review rate."""
        return self.fee - rate * self.asked * self.work


TRAPS: Final = 0.01
"""Part of what is reviewed that is a canary with a wrong answer, in the figures here."""


def seat_draws(rng: np.random.Generator, rate: float, reviews: int = 200_000) -> dict[str, Any]:
    """Profit of each seat strategy against an honest seat, per task, ``[seats]`` of 500 seats."""
    terms, n = SeatTerms.default(), 500
    asked = rng.binomial(reviews, rate * terms.asked, n)
    traps = rng.binomial(asked, TRAPS)
    saved = asked * terms.work
    copies = np.where(asked > 0, terms.copied, 0.0)
    return {
        "lazy": (saved - traps * terms.false_vote) / reviews,
        # Its copied commitment cannot be opened: no vote, no fee; one piece of evidence is enough.
        "copy": (saved - asked * terms.fee - copies) / reviews,
    }


def check_rates(world: World, rng: np.random.Generator, count: int = 500) -> float:
    """Largest difference between :func:`rates` and the ledger's integers."""
    terms, slash = ReviewTerms(), Params().slashing.rejected_ppm
    pick = rng.integers(0, world.stake.size, count)
    price, stake = world.price[pick], world.stake[pick]
    exposed, reputation = price * rng.poisson(1.0, count), rng.uniform(0.5, 1.0, count)
    reviewed = rng.integers(0, 100, count)
    mine = rates(price, stake, exposed, reputation, reviewed, terms, slash / PPM)
    theirs = [
        review_ppm(
            price_wei=int(price[i] * DAI),
            reach_wei=int(stake[i] * DAI),
            slash_ppm=slash,
            reputation_ppm=round(reputation[i] * PPM),
            reviewed=int(reviewed[i]),
            terms=terms,
            exposed_wei=int(exposed[i] * DAI),
        )
        for i in range(count)
    ]
    return float(np.abs(mine - np.array(theirs) / PPM).max())


def figures() -> list[Figure]:
    """All of the economy; with ``DAIFI_BENCH_PLOTS=folder`` the plots too."""
    rng = np.random.default_rng(SEED)
    world = World.draw(rng)
    wrong = check_rates(world, rng)
    if wrong > 1e-5:
        raise AssertionError(f"the simulated review rate is off by {wrong}")
    base = simulate(world, honest, SEED)
    found = [
        versus("honest nodes, profit a task", base.profit, "> 0"),
        Figure("mean review rate of honest nodes", [100 * float(base.rate.mean())], "%"),
    ]
    curve: list[tuple[float, float, float, float]] = []
    runs: dict[str, Outcome] = {}
    for part in (0.01, 0.05, 0.2, 0.5, 1.0):
        run = simulate(world, cheating(part), SEED)
        low, mean, high = interval((run.profit - base.profit) * 1_000)
        curve.append((100 * part, low, mean, high))
        runs[f"cheats on {100 * part:g} %"] = run
    runs["earns trust, then cheats on all"] = simulate(world, patient, SEED)
    runs["cheats where reviews are rarest"] = simulate(world, picky, SEED)
    runs["cheats, new name after each slash"] = simulate(world, cheating(0.2), SEED, reborn=True)
    runs["cheats on 20 %, nobody audits"] = simulate(world, cheating(0.2), SEED, audits=False)
    found += [versus(f"node {name}", run.profit - base.profit) for name, run in runs.items()]
    found.append(_best_decile(world, base, runs["cheats where reviews are rarest"]))
    small = World(np.maximum(world.stake / 10, 1.0), world.price, world.cost, world.decay**10)
    sybil = simulate(small, cheating(0.2), SEED)
    found.append(versus("node cheats on 20 %, as ten identities", sybil.profit - base.profit))
    found += _colluders(world, base)
    seats = seat_draws(rng, float(base.rate.mean()))
    found += [
        Figure(
            "honest seat, profit a task",
            [1_000 * SeatTerms.default().honest(float(base.rate.mean()))],
            "mDAi",
            "> 0",
        ),
        versus(f"seat accepts unseen, {100 * TRAPS:g} % traps", seats["lazy"]),
        versus("seat copies another's commitment", seats["copy"]),
    ]
    if (folder := os.environ.get("DAIFI_BENCH_PLOTS")) is not None:
        from benchmarks._committee_plots import draw

        draw(Path(folder), curve, runs)
    return found


def _best_decile(world: World, base: Outcome, run: Outcome) -> Figure:
    """The tenth of the nodes, by stake for each DAi of price, that cheating hurts least."""
    order = np.argsort(world.stake / world.price)
    parts = [(run.profit - base.profit)[part] for part in np.array_split(order, 10)]
    best = max(parts, key=lambda part: interval(part)[2])
    return versus("node where reviews are rarest, the tenth that fares best", best)


def _colluders(world: World, base: Outcome) -> list[Figure]:
    """Nodes whose friends sit on the committee: as many as it stands, then a third of all stake."""
    found: list[Figure] = []
    within = np.eye(SEATS + 1)[FAULTS]
    for name, seats in (
        (f"node with trust cheats on all, {FAULTS} seats collude", within),
        ("node with trust cheats on all, a fifth of all stake colludes", colluding_seats(0.2)),
        ("node with trust cheats on all, a third of all stake colludes", colluding_seats(1 / 3)),
    ):
        rejected, unproven = verdicts(seats)
        run = simulate(world, patient, SEED, found=rejected, unpaid=unproven)
        found.append(versus(name, run.profit - base.profit))
    late = simulate(world, patient, SEED, found=0.0, unpaid=1.0)
    found.append(
        versus(
            "beyond the model: cheats while friends hold 8 to 13 seats",
            late.profit - base.profit,
            "",
        )
    )
    for share in (0.1, 0.2, 1 / 3):
        found.append(
            Figure(
                f"epochs with over {FAULTS} of {SEATS} seats, {100 * share:.0f} % of stake",
                [100 * tail(share, FAULTS + 1)],
                "%",
            )
        )
    return found

"""The money formulas against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import PPM
from daifi_flows.ledger import _economics as e
from daifi_flows.ledger._exponential import ONE, half_power, negative_exp

DAI = 10**18
ULP = Fraction(1, ONE)
YEARS = e.YEAR_MS


def exact_bounds(x: Fraction) -> tuple[Fraction, Fraction]:
    """Rational bounds of e^−x, over 2^−190 of it apart at most: 1 over the series of e^x."""
    term = total = Fraction(1)
    n = 0
    while n <= 2 * x or term > total / 2**200:
        n += 1
        term = term * x / n
        total += term
    rest = term * x / (n + 1) / (1 - x / (n + 2))  # what is left is under a geometric series
    return 1 / (total + rest), 1 / total


exponents = st.one_of(
    st.fractions(min_value=0, max_value=2, max_denominator=10**12),
    st.fractions(min_value=0, max_value=100, max_denominator=1_000),
)


@given(exponents)
def test_exponential_is_at_most_exact_and_a_unit_under_it(x: Fraction) -> None:
    low, high = exact_bounds(x)
    found = negative_exp(x.numerator, x.denominator) * ULP
    assert found <= low
    assert high - found < ULP * (1 + Fraction(1, 2**60))


@pytest.mark.parametrize(
    ("numerator", "denominator", "first_bits"),
    [
        (0, 7, ONE),
        (1, 1, 0x5E2D58D8B3BCDF1ABADEC7829054F90D),  # 1/e, OEIS A068985
        (80, 1, 6141),  # 1.8048513878e-35
        (90, 1, 0),
        (10**40, 1, 0),
    ],
)
def test_exponential_has_known_values(numerator: int, denominator: int, first_bits: int) -> None:
    assert negative_exp(numerator, denominator) == first_bits


@pytest.mark.parametrize(("x", "y"), [(-1, 1), (1, 0), (1, -1)])
def test_a_growing_exponent_is_refused(x: int, y: int) -> None:
    with pytest.raises(ValueError, match="fraction"):
        negative_exp(x, y)
    with pytest.raises(ValueError, match="half-life"):
        half_power(x, y)


@given(
    st.integers(min_value=0, max_value=2**72),
    st.integers(min_value=0, max_value=2**10),
    st.integers(min_value=1, max_value=2**79),
)
def test_exponential_never_rises(numerator: int, more: int, denominator: int) -> None:
    first = negative_exp(numerator, denominator)
    assert 0 <= negative_exp(numerator + more, denominator) <= first <= ONE
    assert 0 <= half_power(numerator + more, denominator) <= half_power(numerator, denominator)


@given(st.integers(min_value=0, max_value=500), st.integers(min_value=1, max_value=24))
def test_half_power_is_the_root_of_a_power_of_two(elapsed: int, half_life: int) -> None:
    """y ≤ 2^(128 − t/T) < y + 2, both sides to the power of T: whole numbers, no rounding."""
    y = half_power(elapsed, half_life)
    exact = ONE**half_life * Fraction(1, 2**elapsed)
    assert y**half_life <= exact < (y + 2) ** half_life
    if elapsed % half_life == 0:
        assert y == ONE >> (elapsed // half_life)


# Emission

rates = st.integers(min_value=0, max_value=10**10)
totals = st.integers(min_value=0, max_value=2**128 - 1)


@given(totals, rates, st.integers(min_value=0, max_value=20 * YEARS))
def test_what_is_left_to_issue_is_exact_to_two_wei(total: int, rate: int, elapsed: int) -> None:
    left = e.yet_to_issue_wei(total, rate, elapsed)
    low, high = exact_bounds(Fraction(rate * elapsed, 10**9 * YEARS))
    assert total * low - 2 < left <= total * high


@given(
    totals,
    rates,
    st.lists(st.integers(min_value=0, max_value=300 * YEARS), min_size=2, max_size=20, unique=True),
)
def test_emission_of_epochs_adds_up_to_that_of_the_whole(
    total: int, rate: int, times: list[int]
) -> None:
    times = sorted(times)
    left = [e.yet_to_issue_wei(total, rate, time) for time in times]
    epochs = [before - after for before, after in pairwise(left)]
    assert all(epoch >= 0 for epoch in epochs)
    assert sum(epochs) == left[0] - left[-1] <= total


def test_emission_starts_with_everything_and_halves_in_ln2_over_lambda() -> None:
    total = 10**27
    assert e.yet_to_issue_wei(total, 173_286_795, 0) == total
    assert e.yet_to_issue_wei(total, 0, 10 * YEARS) == total
    halved = e.yet_to_issue_wei(total, 173_286_795, 4 * YEARS)  # λ = ln 2 / 4 years, to 10^-9
    assert abs(halved - total // 2) < total // 10**8
    assert e.yet_to_issue_wei(total, 10**9, 1_000 * YEARS) == 0


# Work and rewards


@given(st.lists(st.integers(min_value=-5, max_value=2 * e.MAX_LATENCY_MS), max_size=50))
def test_variance_is_the_exact_one_rounded_down(waits: list[int]) -> None:
    latency = e.Latency()
    for wait in waits:
        latency = latency.with_sample(wait)
    clipped = [min(max(wait, 0), e.MAX_LATENCY_MS) for wait in waits]
    if not clipped:
        assert latency.variance_ms2 == 0
        return
    mean = Fraction(sum(clipped), len(clipped))
    exact = sum((wait - mean) ** 2 for wait in clipped) / len(clipped)
    assert latency.variance_ms2 == exact.numerator // exact.denominator


def test_latency_sums_stay_in_63_bits() -> None:
    full = e.Latency(1 << 20, (1 << 20) * e.MAX_LATENCY_MS, (1 << 20) * e.MAX_LATENCY_MS**2)
    assert full.squares_ms2 < 2**63
    assert full.with_sample(5) == full


ppms = st.integers(min_value=0, max_value=PPM)


@given(
    mflop=st.integers(min_value=0, max_value=10**15),
    variance=st.integers(min_value=0, max_value=10**12),
    tau=st.integers(min_value=1, max_value=10**12),
    rep=ppms,
    alpha=st.integers(min_value=0, max_value=10 * PPM),
    beta=st.integers(min_value=0, max_value=10**9),
    gamma=ppms,
)
def test_weight_is_the_papers_formula(
    mflop: int, variance: int, tau: int, rep: int, alpha: int, beta: int, gamma: int
) -> None:
    compute = Fraction(alpha, PPM) * mflop * (1 - Fraction(variance, tau))
    standing = beta * Fraction(rep, PPM)
    exact = max(Fraction(0), compute + standing) * Fraction(gamma, PPM)
    found = e.weight_of(
        mflop=mflop,
        variance_ms2=variance,
        tau_ms2=tau,
        reputation_ppm=rep,
        alpha_ppm=alpha,
        beta_mflop=beta,
        gamma_ppm=gamma,
    )
    assert found == exact.numerator // exact.denominator


WEIGHTS = [
    # mflop, σ, rep, γ: weight with α = 1, τ = 100 ms², β = 40 megaFLOP
    ("steady and trusted", 1_000, 0, PPM, PPM, 1_040),
    ("half of τ", 1_000, 50, PPM, PPM, 540),
    ("at τ only standing counts", 1_000, 100, PPM, PPM, 40),
    ("over τ work counts against it", 30, 200, PPM, PPM, 10),
    ("far over τ it is nothing", 1_000, 200, PPM, PPM, 0),
    ("no work", 0, 0, PPM // 2, PPM, 20),
    ("γ halves all", 1_000, 0, PPM, PPM // 2, 520),
]


@pytest.mark.parametrize(
    ("mflop", "sigma", "rep", "gamma", "weight"),
    [row[1:] for row in WEIGHTS],
    ids=[row[0] for row in WEIGHTS],
)
def test_weights_by_hand(mflop: int, sigma: int, rep: int, gamma: int, weight: int) -> None:
    found = e.weight_of(
        mflop=mflop,
        variance_ms2=sigma,
        tau_ms2=100,
        reputation_ppm=rep,
        alpha_ppm=PPM,
        beta_mflop=40,
        gamma_ppm=gamma,
    )
    assert found == weight


def test_a_weight_fits_a_record() -> None:
    huge = {"mflop": 2**63 - 1, "variance_ms2": 0, "tau_ms2": 1, "reputation_ppm": PPM}
    found = e.weight_of(**huge, alpha_ppm=10 * PPM, beta_mflop=2**62, gamma_ppm=PPM)
    assert found == 2**63 - 1


@pytest.mark.parametrize(
    ("claimed", "paid", "per_pflop", "credited"),
    [
        (10**15, 10**15, 10**15, 10**9),
        (10**15, 10**14, 10**15, 10**8),  # a tenth was paid for
        (2 * 10**6 - 1, DAI, 10**15, 1),  # whole megaFLOP
        (10**18, 0, 10**15, 0),
        (10**18, 0, 0, 10**12),  # no such limit
    ],
)
def test_unpaid_work_earns_no_reward(
    claimed: int, paid: int, per_pflop: int, credited: int
) -> None:
    assert e.credited_mflop(claimed, paid, per_pflop) == credited


@given(
    st.integers(min_value=0, max_value=2**200),
    st.lists(st.integers(min_value=0, max_value=2**63 - 1), min_size=1, max_size=30),
)
def test_rewards_are_proportional_and_never_over_the_total(total: int, weights: list[int]) -> None:
    whole = sum(weights)
    rewards = [e.reward_wei(total, weight, whole) for weight in weights]
    if whole == 0:
        assert rewards == [0] * len(weights)
        return
    for weight, reward in zip(weights, rewards, strict=True):
        assert 0 <= Fraction(total * weight, whole) - reward < 1
    assert total - len(weights) < sum(rewards) <= total


# Reputation


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(min_value=0, max_value=10**9)), min_size=1, max_size=12
    )
)
def test_reputation_is_the_decayed_beta_mean(judged: list[tuple[bool, int]]) -> None:
    """Each step of decay rounds down once: 12 steps are within 12 millionths of exact evidence."""
    half_life, accepted, rejected = 10**8, 0, 0
    exact_accepted = exact_rejected = Fraction(0)
    for good, waited in judged:
        factor = Fraction(half_power(waited, half_life), ONE)
        accepted, rejected = e.decayed((accepted, rejected), waited, half_life)
        accepted += e.EVIDENCE_ONE if good else 0
        rejected += 0 if good else e.EVIDENCE_ONE
        exact_accepted = exact_accepted * factor + good
        exact_rejected = exact_rejected * factor + (not good)
    exact = (exact_accepted + 1) / (exact_accepted + exact_rejected + 2)
    assert abs(e.reputation_ppm(accepted, rejected) - exact * PPM) <= 1 + len(judged)


@pytest.mark.parametrize(
    ("accepted", "rejected", "ppm"),
    [(0, 0, 500_000), (1, 0, 666_666), (0, 1, 333_333), (98, 0, 990_000), (1, 2, 400_000)],
)
def test_reputation_by_hand(accepted: int, rejected: int, ppm: int) -> None:
    assert e.reputation_ppm(accepted * e.EVIDENCE_ONE, rejected * e.EVIDENCE_ONE) == ppm


def test_evidence_halves_and_forgetting_leads_back_to_one_half() -> None:
    assert e.decayed((8 * e.EVIDENCE_ONE, 1), 3_000, 1_000) == (e.EVIDENCE_ONE, 0)
    judged = 100 * e.EVIDENCE_ONE, 50 * e.EVIDENCE_ONE
    standing = [e.reputation_ppm(*e.decayed(judged, t, 1_000)) for t in range(0, 200_000, 500)]
    assert standing[0] == 101 * PPM // 152
    assert standing[-1] == PPM // 2


@given(ppms, ppms, ppms)
def test_gamma_rises_with_reputation_from_its_floor(floor: int, rep: int, more: int) -> None:
    gamma = e.gamma_ppm(rep, floor)
    exact = Fraction(floor) + Fraction((PPM - floor) * rep, PPM)
    assert 0 <= exact - gamma < 1
    assert e.gamma_ppm(0, floor) == floor
    assert e.gamma_ppm(PPM, floor) == PPM
    assert e.gamma_ppm(max(rep, more), floor) >= e.gamma_ppm(min(rep, more), floor)


# Slashes and fees


@given(
    st.lists(st.integers(min_value=0, max_value=2**128), max_size=12),
    st.integers(min_value=0, max_value=PPM // 2),
)
def test_every_part_of_a_stake_is_cut_alike(parts: list[int], fraction: int) -> None:
    cut = e.slash_parts(parts, fraction)
    for part, loss in zip(parts, cut, strict=True):
        assert 0 <= Fraction(part * fraction, PPM) - loss < 1
        assert 2 * loss <= part
    assert Fraction(sum(parts) * fraction, PPM) - sum(cut) < max(len(parts), 1)


@given(st.integers(min_value=0, max_value=2**128), ppms, ppms)
def test_a_slash_is_split_to_the_last_wei(slashed: int, reporter: int, burn: int) -> None:
    burn = min(burn, PPM - reporter)
    split = e.split_slash(slashed, reporter_ppm=reporter, burn_ppm=burn)
    assert split.reporter_wei + split.burned_wei + split.treasury_wei == slashed
    assert 0 <= Fraction(slashed * reporter, PPM) - split.reporter_wei < 1
    assert 0 <= Fraction(slashed * burn, PPM) - split.burned_wei < 1
    assert split.treasury_wei >= 0


@given(
    price=st.integers(min_value=0, max_value=2**128),
    shares=st.tuples(*[st.integers(min_value=0, max_value=PPM // 6)] * 3),
    seats=st.integers(min_value=0, max_value=21),
    parents=st.integers(min_value=0, max_value=64),
)
def test_a_price_is_split_to_the_last_wei(
    price: int, shares: tuple[int, int, int], seats: int, parents: int
) -> None:
    committee, royalty, treasury = shares
    split = e.split_price(
        price,
        seats=seats,
        parents=parents,
        committee_ppm=committee,
        royalty_ppm=royalty,
        treasury_ppm=treasury,
    )
    paid = split.seat_wei * seats + split.owner_wei * parents + split.treasury_wei
    assert paid + split.node_wei == price
    assert 2 * split.node_wei >= price
    for share, payees, each in (
        (committee, seats, split.seat_wei),
        (royalty, parents, split.owner_wei),
        (treasury, 1, split.treasury_wei),
    ):
        if payees:
            assert 0 <= Fraction(price * share, PPM * payees) - each < 2
        else:
            assert each == 0


@given(st.integers(min_value=0, max_value=2**200), ppms)
def test_a_royalty_is_a_share_of_the_sale_rounded_down(sale: int, share: int) -> None:
    assert 0 <= Fraction(sale * share, PPM) - e.royalty_wei(sale, share) < 1


# Prices that move with utilisation

CHANGE, CEILING = 125_000, 16 * PPM


def moved(index: int, used: int, target: int = 1_000) -> int:
    return e.next_index_ppm(index, used=used, target=target, change_ppm=CHANGE, ceiling_ppm=CEILING)


@pytest.mark.parametrize(
    ("index", "used", "after"),
    [
        (PPM, 0, PPM),  # the floor
        (PPM, 1_000, PPM),  # at target
        (PPM, 2_000, 1_125_000),  # twice the target: an eighth more
        (PPM, 10**9, 1_125_000),  # and no more than that
        (PPM, 1_500, 1_062_500),
        (PPM, 1_001, 1_000_125),
        (2 * PPM, 0, 1_750_000),
        (2 * PPM, 500, 1_875_000),
        (CEILING, 2_000, CEILING),
        (CEILING - 1, 2_000, CEILING),
    ],
)
def test_the_price_index_by_hand(index: int, used: int, after: int) -> None:
    assert moved(index, used) == after


@given(
    st.integers(min_value=PPM, max_value=CEILING),
    st.integers(min_value=0, max_value=10**20),
    st.integers(min_value=1, max_value=10**18),
)
def test_the_price_index_follows_eip_1559(index: int, used: int, target: int) -> None:
    after = moved(index, used, target)
    exact = index * (1 + Fraction(CHANGE, PPM) * Fraction(min(used, 2 * target) - target, target))
    assert abs(min(max(exact, PPM), CEILING) - after) <= 1
    assert abs(after - index) <= index * CHANGE // PPM + 1
    assert (after > index) <= (used > target)
    assert (after < index) <= (used < target)


@given(
    st.integers(min_value=PPM, max_value=CEILING),
    st.integers(min_value=0, max_value=100),
    st.integers(min_value=1_000, max_value=500_000),
)
def test_idle_epochs_together_are_idle_epochs_one_by_one(
    index: int, epochs: int, change: int
) -> None:
    one_by_one = index
    for _ in range(epochs):
        one_by_one = e.next_index_ppm(
            one_by_one, used=0, target=7, change_ppm=change, ceiling_ppm=CEILING
        )
    together = e.idle_index_ppm(index, epochs=epochs, change_ppm=change, ceiling_ppm=CEILING)
    assert together == one_by_one


def test_a_long_idle_time_costs_no_more_than_reaching_the_floor() -> None:
    after = e.idle_index_ppm(CEILING, epochs=10**15, change_ppm=1_000, ceiling_ppm=CEILING)
    assert after == PPM


@given(st.integers(min_value=0, max_value=2**128), st.integers(min_value=PPM, max_value=CEILING))
def test_a_surged_ask_is_never_under_the_ask(ask: int, index: int) -> None:
    surged = e.surged_wei(ask, index)
    assert surged >= ask
    assert 0 <= surged - Fraction(ask * index, PPM) < 1

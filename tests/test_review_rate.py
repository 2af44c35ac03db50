"""The review rate: cheating never pays, reputation and splitting buy nothing, draws are fair."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daifi_flows._noun import PPM
from daifi_flows.review_rate import (
    ReviewTerms,
    audit_rate_ppm,
    drawn_for_audit,
    drawn_for_review,
    least_rate_ppm,
    review_ppm,
)

DAI = 10**18
TERMS = ReviewTerms()
KNOWN: dict[str, Any] = {
    "price_wei": DAI // 100,
    "reach_wei": DAI,
    "slash_ppm": 250_000,
    "reputation_ppm": 900_000,
    "reviewed": 100,
    "terms": TERMS,
}

wei = st.integers(0, 10**24)
slashes = st.integers(10_000, 500_000)


@st.composite
def terms(draw: st.DrawFn) -> ReviewTerms:
    margin = draw(st.integers(PPM, 10 * PPM))
    floor = draw(st.integers(1_000, PPM))
    return ReviewTerms(
        saving_ppm=draw(st.integers(100_000, PPM)),
        miss_ppm=draw(st.integers(0, 900_000)),
        margin_ppm=margin,
        newcomer_margin_ppm=draw(st.integers(margin, 20 * PPM)),
        floor_ppm=floor,
        audit_ppm=draw(st.integers(0, min(PPM // 2, floor * (margin - PPM) // PPM))),
    )


def gain(rate: Fraction, price: int, reach: int, slash_ppm: int, terms: ReviewTerms) -> Fraction:
    """What a cheat makes on one task against honest work, exactly: C − d·(R + S)."""
    found = (1 - Fraction(terms.miss_ppm, PPM)) * rate
    saved = Fraction(terms.saving_ppm, PPM) * price
    return saved - found * (price + Fraction(reach * slash_ppm, PPM))


@given(price=wei, reach=wei, slash=slashes, reputation=st.integers(0, PPM), terms=terms())
def test_cheating_does_not_pay_even_if_nobody_audits(
    price: int, reach: int, slash: int, reputation: int, terms: ReviewTerms
) -> None:
    ppm = review_ppm(
        price_wei=price,
        reach_wei=reach,
        slash_ppm=slash,
        reputation_ppm=reputation,
        reviewed=10**6,
        terms=terms,
    )
    assert terms.floor_ppm <= ppm <= PPM
    if ppm < PPM:
        assert gain(Fraction(ppm, PPM), price, reach, slash, terms) <= 0
    else:  # reviewed always: no rate could be higher
        assert ppm == PPM


@given(price=st.integers(1, 10**24), reach=wei, slash=slashes, terms=terms())
def test_the_least_rate_is_where_cheating_stops_paying(
    price: int, reach: int, slash: int, terms: ReviewTerms
) -> None:
    least = least_rate_ppm(price_wei=price, reach_wei=reach, slash_ppm=slash, terms=terms)
    assert gain(Fraction(least, PPM), price, reach, slash, terms) <= 0
    assert gain(Fraction(least - 1, PPM), price, reach, slash, terms) > 0


@given(reputations=st.tuples(st.integers(0, PPM), st.integers(0, PPM)), reach=wei, more=wei)
def test_the_rate_falls_with_reputation_and_stake_and_rises_with_the_price(
    reputations: tuple[int, int], reach: int, more: int
) -> None:
    low, high = sorted(reputations)
    rate = review_ppm(**KNOWN | {"reputation_ppm": low, "reach_wei": reach})
    assert review_ppm(**KNOWN | {"reputation_ppm": high, "reach_wei": reach}) <= rate
    assert review_ppm(**KNOWN | {"reputation_ppm": low, "reach_wei": reach + more}) <= rate
    dearer = KNOWN["price_wei"] + more
    again = KNOWN | {"reputation_ppm": low, "reach_wei": reach, "price_wei": dearer}
    assert review_ppm(**again) >= rate


@given(reach=st.integers(DAI, 10**22), price=st.integers(1, DAI), parts=st.integers(2, 100))
def test_splitting_a_stake_over_identities_gains_nothing(
    reach: int, price: int, parts: int
) -> None:
    """Work and stake split evenly: the same money at risk for the same money in flight."""
    whole = review_ppm(
        **KNOWN | {"reach_wei": reach, "price_wei": price, "exposed_wei": price * (parts - 1)}
    )
    split = review_ppm(**KNOWN | {"reach_wei": reach // parts, "price_wei": price})
    assert split >= whole


def test_a_portfolio_of_cheats_in_flight_at_once_does_not_gain() -> None:
    """As long as each task could be deterred by some rate; each slash takes a part of what the
    ones before it left."""
    draw = random.Random(20)
    tried = 0
    for _ in range(600):
        count, slash = draw.choice((1, 2, 5, 20, 100)), draw.randrange(10_000, 500_001)
        reach = int(DAI * 10 ** draw.uniform(0, 3))
        exposed, kept, gained = 0, 1.0, 0.0
        for _ in range(count):
            price = int(DAI * 10 ** draw.uniform(-3, 0))
            task = {"price_wei": price, "slash_ppm": slash, "terms": TERMS}
            share = reach * price // (price + exposed)
            if least_rate_ppm(**task, reach_wei=share) > PPM:
                break
            known = KNOWN | task | {"reach_wei": reach, "reputation_ppm": PPM}
            ppm = review_ppm(**known | {"exposed_wei": exposed})
            found = (PPM - TERMS.miss_ppm) / PPM * ppm / PPM
            gained += price * (1 - found)
            kept *= 1 - slash / PPM * found
            exposed += price
        if exposed:
            tried += 1
            assert gained < reach * (1 - kept)
    assert tried > 300


@pytest.mark.parametrize(
    "change",
    [
        {"reviewed": TERMS.probation - 1},
        {"reputation_ppm": TERMS.trust_ppm - 1},
        {"price_wei": TERMS.always_over_wei + 1, "reach_wei": 10**30},
        {"challenged": True},
        {"reach_wei": 0},
    ],
)
def test_always_reviewed(change: dict[str, Any]) -> None:
    assert review_ppm(**KNOWN | change) == PPM
    assert review_ppm(**KNOWN) < PPM


def test_a_slash_that_takes_little_means_more_reviews() -> None:
    rates = [review_ppm(**KNOWN | {"slash_ppm": part}) for part in (500_000, 250_000, 50_000, 0)]
    assert rates == sorted(rates)
    assert rates[-1] == PPM


def test_free_work_is_reviewed_at_the_floor() -> None:
    assert review_ppm(**KNOWN | {"price_wei": 0}) == TERMS.floor_ppm


@pytest.mark.parametrize(
    "values",
    [
        {"newcomer_margin_ppm": PPM},
        {"audit_ppm": 20_001},
        {"margin_ppm": PPM, "audit_ppm": 1},
        {"floor_ppm": 0},
        {"miss_ppm": PPM},
        {"probation": -1},
        {"margin_ppm": 1.5},
    ],
)
def test_terms_out_of_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReviewTerms(**values)


def test_terms_have_one_encoding() -> None:
    assert ReviewTerms.from_canonical(TERMS.canonical()) == TERMS


def test_audits_add_to_reviews() -> None:
    assert audit_rate_ppm(review_ppm=20_000, terms=TERMS) == 29_800
    assert audit_rate_ppm(review_ppm=PPM, terms=TERMS) == PPM


@pytest.mark.parametrize("ppm", [20_000, 300_000, 900_000])
def test_draws_come_as_often_as_they_should(ppm: int) -> None:
    count = 4_000
    expected, spread = count * ppm / PPM, (count * ppm / PPM * (1 - ppm / PPM)) ** 0.5
    for draw in (
        lambda i: drawn_for_review(i.to_bytes(32, "big"), ppm),
        lambda i: drawn_for_audit(bytes(32), i.to_bytes(32, "big"), ppm),
    ):
        assert abs(sum(draw(i) for i in range(count)) - expected) < 5 * spread


def test_always_and_never_are_exact_and_a_higher_rate_draws_the_same_and_more() -> None:
    seeds = [bytes([i, j]) for i in range(20) for j in range(20)]
    assert all(drawn_for_review(seed, PPM) for seed in seeds)
    assert not any(drawn_for_review(seed, 0) for seed in seeds)
    low = {seed for seed in seeds if drawn_for_review(seed, 100_000)}
    assert low < {seed for seed in seeds if drawn_for_review(seed, 400_000)}


def test_the_two_lotteries_are_independent() -> None:
    both = sum(
        drawn_for_review(bytes([i, j]), PPM // 2) and drawn_for_audit(b"", bytes([i, j]), PPM // 2)
        for i in range(50)
        for j in range(40)
    )
    assert 400 < both < 600

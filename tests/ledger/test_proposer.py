"""The Proof-of-Compute draw: proportional, unbiased, the same for all, and nobody's to choose."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import beacon_message
from daifi_flows.encoding import keccak256
from daifi_flows.keys import verify_bls
from daifi_flows.ledger import _proposer
from daifi_flows.ledger._proposer import (
    beacon_of,
    beacon_valid,
    draw_proposer,
    proposer_weight,
)
from daifi_flows.threshold import combine_shares, deal

CHI_SQUARE_20 = 45.31
"""The 0.999 quantile at 20 degrees of freedom."""
DRAWS = 21_000


def beacons(count: int, seed: bytes = b"") -> list[bytes]:
    return [keccak256(b"beacon" + seed + i.to_bytes(4, "big")) for i in range(count)]


def chi_square(counts: Counter[int], chances: list[float], draws: int) -> float:
    return sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in enumerate(chances))


@pytest.mark.parametrize(
    "weights",
    [
        [0] * 21,
        [7] * 21,
        [proposer_weight(10**12 * i, 500_000 + 20_000 * i) for i in range(21)],
        [10**30] + [0] * 20,
    ],
    ids=["new network", "equal", "rising", "one did all"],
)
def test_seats_are_drawn_in_proportion(weights: list[int]) -> None:
    total = sum(weights)
    chances = [(w / total + 1 / 21) / 2 if total else 1 / 21 for w in weights]
    counts = Counter(draw_proposer(b, 5, 0, weights).seat for b in beacons(DRAWS))
    assert chi_square(counts, chances, DRAWS) < CHI_SQUARE_20


def test_the_second_round_is_drawn_in_proportion_among_the_others() -> None:
    weights = [3, 1, 0]
    # Halves: 3/4·1/2 + 1/6 and so on, over 24ths.
    first = [13 / 24, 7 / 24, 4 / 24]
    second = [
        sum(first[i] * first[j] / (1 - first[i]) for i in range(3) if i != j) for j in range(3)
    ]
    counts = Counter(draw_proposer(b, 5, 1, weights).seat for b in beacons(DRAWS))
    assert chi_square(counts, second, DRAWS) < 13.82  # 0.999 at 2 degrees


@given(
    weights=st.lists(st.integers(0, 2**90), min_size=1, max_size=30),
    beacon=st.binary(min_size=32, max_size=32),
    height=st.integers(0, 2**40),
)
def test_every_seat_is_drawn_once_before_any_is_drawn_again(
    weights: list[int], beacon: bytes, height: int
) -> None:
    n = len(weights)
    for start in (0, n):
        seats = [draw_proposer(beacon, height, start + r, weights).seat for r in range(n)]
        assert sorted(seats) == list(range(n))


@given(
    weights=st.lists(st.integers(0, 2**90), min_size=1, max_size=30),
    beacon=st.binary(min_size=32, max_size=32),
    round_=st.integers(0, 40),
)
def test_a_draw_can_be_repeated_from_what_it_shows(
    weights: list[int], beacon: bytes, round_: int
) -> None:
    draw = draw_proposer(beacon, 9, round_, weights)
    assert draw == draw_proposer(beacon, 9, round_, list(weights))
    below = sum(draw.weights[: draw.seat])
    assert below <= draw.point < below + draw.weights[draw.seat]


def test_draws_of_heights_and_rounds_are_not_related() -> None:
    same = beacons(2_000, b"independent")
    weights = [1] * 21
    first = [draw_proposer(b, 5, 0, weights).seat for b in same]
    for height, round_ in ((6, 0), (5, 21)):
        other = [draw_proposer(b, height, round_, weights).seat for b in same]
        agree = sum(a == b for a, b in zip(first, other, strict=True))
        assert 50 < agree < 145, "about 2,000/21 agree by chance"


def test_what_would_fold_unevenly_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    span = 2**256
    bound = span // 2 + 1  # nearly half of all hashes lie above the only whole multiple
    asked: list[bytes] = []

    def hash_(data: bytes) -> bytes:
        asked.append(data)
        return (span - 1 if len(asked) == 1 else 5).to_bytes(32, "big")

    monkeypatch.setattr(_proposer, "keccak256", hash_)
    assert _proposer._uniform(bytes(32), 1, 0, bound) == 5
    assert len(asked) == 2 and asked[0][:-1] == asked[1][:-1]


def test_reputation_scales_verified_compute() -> None:
    assert proposer_weight(10**15, 500_000) * 2 == proposer_weight(10**15, 1_000_000)
    assert proposer_weight(0, 1_000_000) == 0
    assert proposer_weight(10, 2_000_000) == proposer_weight(10, 1_000_000)


@pytest.mark.parametrize("bad", [([], 0, 0), ([1, -1], 0, 0), ([1], -1, 0), ([1], 0, -1)])
def test_impossible_draws_are_errors(bad: tuple[list[int], int, int]) -> None:
    weights, height, round_ = bad
    with pytest.raises(ValueError, match="draw"):
        draw_proposer(bytes(32), height, round_, weights)


# Grinding


DEALING = deal(b"g" * 32, 21, 14)


def sign(parent: bytes, seats: list[int]) -> bytes:
    message = beacon_message(parent)
    return combine_shares({i: DEALING.secrets[i].sign(message) for i in seats})


def test_whoever_combines_cannot_choose_the_beacon() -> None:
    parent, draw = keccak256(b"parent"), random.Random(3)
    seen = {beacon_of(sign(parent, draw.sample(range(21), 14))) for _ in range(10)}
    assert len(seen) == 1
    signature = sign(parent, list(range(14)))
    assert beacon_valid(DEALING.group_key, parent, signature)
    assert not beacon_valid(DEALING.group_key, keccak256(b"another parent"), signature)


def test_thirteen_colluding_seats_learn_nothing_by_trying_blocks() -> None:
    """A proposer with 12 friends tries contents; what it can compute does not tell the draw."""
    weights, rogue, hits, tries = [1] * 21, 0, 0, 150
    for i in range(tries):
        parent = keccak256(b"candidate" + bytes([i]))
        guess = sign(parent, list(range(13)))
        assert not verify_bls(DEALING.group_key, beacon_message(parent), guess)
        if draw_proposer(beacon_of(guess), 2, 0, weights).seat == rogue:
            true = beacon_of(sign(parent, list(range(14))))
            hits += draw_proposer(true, 2, 0, weights).seat == rogue
    assert hits <= 3, "it would be drawn after about one guess in 21"

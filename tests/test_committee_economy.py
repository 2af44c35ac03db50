"""The simulated economy: its review rate is the ledger's, its outcomes what they must be."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks._committee_economy import (
    SEED,
    World,
    cheating,
    check_rates,
    colluding_seats,
    honest,
    patient,
    simulate,
    tail,
    verdicts,
)
from benchmarks._svg import Line, Plot


@pytest.fixture(scope="module")
def world() -> World:
    return World.draw(np.random.default_rng(SEED), 600)


def test_the_simulated_review_rate_is_the_ledgers(world: World) -> None:
    assert check_rates(world, np.random.default_rng(1), 300) < 1e-5


def test_honest_nodes_earn_and_cheats_lose_the_more_they_cheat(world: World) -> None:
    base = simulate(world, honest, SEED, tasks=150)
    assert base.profit.mean() > 0 and np.isnan(base.caught_at).all()
    lost = [
        (simulate(world, cheating(part), SEED, tasks=150).profit - base.profit).mean()
        for part in (0.02, 0.2, 1.0)
    ]
    assert 0 > lost[0] > lost[1] > lost[2]
    late = simulate(world, patient, SEED, tasks=150)
    assert (late.profit - base.profit).mean() < 0
    assert not np.isnan(late.caught_at).all()


def test_a_committee_that_never_rejects_is_seen_in_the_outcome(world: World) -> None:
    """The simulation can tell a policy that does not work."""
    base = simulate(world, honest, SEED, tasks=150)
    free = simulate(world, cheating(1.0), SEED, tasks=150, found=0.0, unpaid=0.0)
    assert (free.profit - base.profit).mean() > 0 and (free.stake == world.stake).all()


def test_the_same_seed_gives_the_same_world(world: World) -> None:
    one, two = (simulate(world, cheating(0.2), 5, tasks=60) for _ in range(2))
    assert (one.profit == two.profit).all() and (one.stake == two.stake).all()


def test_six_colluding_seats_change_no_verdict_and_eight_block_it() -> None:
    exactly = np.eye(22)
    assert verdicts(exactly[6]) == (1.0, 0.0)
    rejected, unproven = verdicts(exactly[7])
    assert rejected > 0.99999 and unproven == 0.0
    rejected, unproven = verdicts(exactly[8])
    assert rejected == 0.0 and unproven > 0.9999
    assert verdicts(exactly[14]) == (0.0, 0.0)


def test_seats_of_a_share_add_up() -> None:
    for share in (0.05, 0.2, 1 / 3):
        seats = colluding_seats(share)
        assert abs(seats.sum() - 1) < 1e-12 and abs(seats[7:].sum() - tail(share, 7)) < 1e-12


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    plot = Plot("a < b", "x", "y", x_log=True, y_log=True)
    plot.lines.append(Line("one & two", [(1.0, 1.0), (10.0, 50.0)], [(0.5, 2.0), (40.0, 60.0)]))
    plot.write(tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert text.startswith("<svg") and "a &lt; b" in text and "one &amp; two" in text
    assert "nan" not in text

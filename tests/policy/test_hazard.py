"""What is learnt of a pool: from nothing, from its history, and after it has changed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from outlast.policy.hazard import Bathtub, Capped, Constant, Spell, estimate
from outlast.policy.interval import Costs, exact_s, overhead

PRIOR_S = 6 * 3600.0


def spells(random, mean_s, count):
    return [Spell(seconds, "lost") for seconds in random.exponential(mean_s, count)]


def extra_cost(per_s, mtbf_s, pause_s=2.0):
    """How much more than the optimum's costs the interval that an estimate leads to."""
    costs = Costs(pause_s, 0.0)
    ours = overhead(exact_s(pause_s, per_s), costs, 1 / mtbf_s)
    return ours / overhead(exact_s(pause_s, 1 / mtbf_s), costs, 1 / mtbf_s) - 1


@pytest.mark.parametrize(("before_s", "after_s"), [(36_000.0, 3600.0), (3600.0, 36_000.0)])
def test_ten_interruptions_after_a_tenfold_change_the_interval_costs_within_10_percent_of_the_best(
    before_s, after_s
):
    random = np.random.default_rng(5)
    extra = []
    for _ in range(300):
        history = spells(random, before_s, 30) + spells(random, after_s, 10)
        extra.append(extra_cost(estimate(history, PRIOR_S).per_s, after_s))
    assert np.mean(extra) < 0.1
    stale = [
        extra_cost(30 / sum(s.seconds for s in spells(random, before_s, 30)), after_s) for _ in range(50)
    ]
    assert np.mean(stale) > 0.3  # what it would cost not to have learnt


def test_while_nothing_changes_an_estimate_that_forgets_costs_little():
    random = np.random.default_rng(6)
    extra = [extra_cost(estimate(spells(random, 7200.0, 30), PRIOR_S).per_s, 7200.0) for _ in range(300)]
    assert np.mean(extra) < 0.05


def test_nothing_known_is_the_prior_and_a_pool_that_takes_nobody_is_trusted_more_and_more():
    assert estimate([], PRIOR_S).per_s == pytest.approx(1 / PRIOR_S)
    quiet = estimate([Spell(10 * PRIOR_S, "none")], PRIOR_S)
    assert quiet.per_s == pytest.approx(1 / (11 * PRIOR_S))
    assert (quiet.counted, quiet.seconds) == (0, 10 * PRIOR_S)


def test_an_interruption_counts_with_all_the_time_before_it_that_ended_otherwise():
    known = estimate([Spell(100.0, "none"), Spell(200.0, "lost")], 1000.0)
    assert known.per_s == pytest.approx((0.75 * 1 + 1) / (0.75 * 1000.0 + 300.0))
    assert (known.counted, known.seconds) == (1, 300.0)


def test_the_recall_is_learnt_and_forgotten_in_the_same_way():
    always = [Spell(60.0, "saved")] * 20
    assert estimate([], PRIOR_S).recall == 0.5
    assert 0.9 < estimate(always, PRIOR_S).recall < 1.0
    assert estimate([*always, *[Spell(60.0, "lost")] * 8], PRIOR_S).recall < 0.15
    assert estimate([Spell(1e6, "none")], PRIOR_S).recall == 0.5


@pytest.mark.parametrize("hazard", [Constant(1 / 7200.0), Bathtub(), Capped(1 / 7200.0)])
def test_the_mean_hazard_of_two_spans_is_that_of_the_whole(hazard):
    first, second = hazard.mean_per_s(600.0, 1200.0), hazard.mean_per_s(1200.0, 3000.0)
    assert hazard.mean_per_s(600.0, 3000.0) == pytest.approx((600 * first + 1800 * second) / 2400)


def test_a_bathtub_takes_young_machines_and_old_ones_and_none_outlives_its_end():
    hazard = Bathtub()
    young, middle, old = (hazard.mean_per_s(h * 3600.0, (h + 1) * 3600.0) for h in (0, 12, 23))
    assert young > 5 * middle
    assert old > 5 * middle
    assert hazard.mean_per_s(0.0, 30 * 3600.0) == math.inf
    random = np.random.default_rng(8)
    lives = np.interp(
        random.random(20_000), *reversed(curve(hazard))
    )  # drawn from the published formula for F, not from ours for the hazard
    share = np.mean((lives > 5 * 3600.0) & (lives < 15 * 3600.0)) / np.mean(lives > 5 * 3600.0)
    assert 1 - math.exp(-hazard.mean_per_s(5 * 3600.0, 15 * 3600.0) * 10 * 3600.0) == pytest.approx(
        share, abs=0.01
    )


def curve(hazard):
    ages = np.linspace(0.0, 25 * 3600.0, 4000)
    gone = hazard.share * (1 - np.exp(-ages / hazard.early_s) + np.exp((ages - hazard.end_s) / hazard.late_s))
    return ages, np.minimum(gone, 1.0)


def test_a_cap_is_certain():
    hazard = Capped(1 / 7200.0, cap_s=100.0)
    assert hazard.mean_per_s(0.0, 99.0) == 1 / 7200.0
    assert hazard.mean_per_s(0.0, 101.0) == math.inf

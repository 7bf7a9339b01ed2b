"""The interval between saves: its formulas against a simulation that knows none of them, and what it may never cost."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from outlast.policy.hazard import Bathtub, Capped, Constant
from outlast.policy.interval import (
    Costs,
    best_s,
    daly_s,
    exact_s,
    interval,
    overhead,
    young_s,
)

MTBFS_S = (300.0, 1800.0, 4 * 3600.0, 48 * 3600.0)
PAUSES_S = (0.1, 2.0, 20.0)
RECALLS = (0.0, 0.5, 0.9)
LIFETIMES = 15_000
GRID = np.geomspace(1.0, 12 * 3600.0, 80)


def simulated(seconds, costs, mtbf_s, recall, *, seed=1):
    """Time lost per second of work that stays, over machines that live for a random time; one value per interval.

    Each lives, trains for the interval, stands still for the pause, and so on. What is durable counts; a notice saves the rest too.
    """
    random = np.random.default_rng(seed)
    lives = random.exponential(mtbf_s, LIFETIMES)
    warned = random.random(LIFETIMES) < recall
    lost = []
    for each in np.atleast_1d(seconds):
        period = each + costs.pause_s
        saves = np.floor(np.maximum(lives - costs.upload_s, 0.0) / period)
        begun = np.floor(lives / period)
        trained = begun * each + np.minimum(lives - begun * period, each)
        kept = np.where(warned, trained, saves * each)
        lost.append(lives.sum() / max(kept.sum(), 1e-9) - 1)
    return np.array(lost)


@pytest.mark.parametrize("mtbf_s", MTBFS_S)
def test_auto_costs_at_most_3_percent_more_than_the_best_of_all_intervals(mtbf_s):
    for pause_s, recall in itertools.product(PAUSES_S, RECALLS):
        costs = Costs(pause_s, 1.0, recall=recall)
        chosen = interval(costs, Constant(1 / mtbf_s), math.inf)
        ours = 1 + simulated(chosen.seconds, costs, mtbf_s, recall)[0]
        best = 1 + simulated(GRID, costs, mtbf_s, recall).min()
        assert ours <= 1.03 * best, (pause_s, recall, chosen)


@pytest.mark.parametrize("mtbf_s", MTBFS_S[1:])
def test_what_auto_loses_itself_is_near_the_least_that_can_be_lost(mtbf_s):
    """Not only the whole time: of the share that saving and interruptions cost, where that is small, at most a tenth is ours."""
    for pause_s, recall in itertools.product(PAUSES_S, (0.0, 0.5)):
        costs = Costs(pause_s, 0.0, recall=recall)
        chosen = interval(costs, Constant(1 / mtbf_s), math.inf)
        ours, best = (simulated(each, costs, mtbf_s, recall).min() for each in (chosen.seconds, GRID))
        assert ours <= 1.1 * best, (pause_s, recall, chosen, ours, best)


@pytest.mark.parametrize("upload_s", [0.0, 30.0, 300.0])
@pytest.mark.parametrize("seconds", [400.0, 1500.0])
def test_the_expected_overhead_is_what_a_simulation_of_unwarned_kills_loses(upload_s, seconds):
    """The simulation's uploads begin with each save as well, but its machines all begin with nothing in flight."""
    costs = Costs(5.0, upload_s)
    assert overhead(seconds, costs, 1 / 3600.0) == pytest.approx(
        simulated(seconds, costs, 3600.0, 0.0, seed=2)[0], rel=0.05
    )


@pytest.mark.parametrize("formula", [young_s, daly_s, exact_s])
@pytest.mark.parametrize("recall", RECALLS)
def test_each_formula_is_near_the_simulations_best_where_saves_are_cheap(formula, recall):
    pause_s, mtbf_s = 2.0, 4 * 3600.0
    costs = Costs(pause_s, 0.0, recall=recall)
    found = formula(pause_s, 1 / mtbf_s, recall)
    best = simulated(GRID, costs, mtbf_s, recall).min()
    assert simulated(found, costs, mtbf_s, recall)[0] <= 1.05 * best
    worse = [simulated(found * factor, costs, mtbf_s, recall)[0] for factor in (0.4, 2.5)]
    assert all(each > 1.2 * best for each in worse)  # so that a wrong formula would show


def test_where_saves_are_dear_dalys_higher_order_is_the_exact_one_and_youngs_is_not():
    pause_s, mtbf_s = 60.0, 600.0
    exact = exact_s(pause_s, 1 / mtbf_s)
    costs = Costs(pause_s, 0.0)
    grid = np.linspace(0.5, 1.5, 2001) * exact
    best = grid[np.argmin([overhead(each, costs, 1 / mtbf_s) for each in grid])]
    assert exact == pytest.approx(best, rel=1e-3)
    assert daly_s(pause_s, 1 / mtbf_s) == pytest.approx(exact, rel=0.01)
    assert young_s(pause_s, 1 / mtbf_s) > 1.15 * exact


def test_without_interruptions_nothing_is_to_be_saved_and_a_save_as_long_as_life_is_made_once_in_it():
    assert young_s(1.0, 0.0) == daly_s(1.0, 0.0) == exact_s(1.0, 0.0) == math.inf
    assert daly_s(300.0, 1 / 100.0) == 100.0
    assert overhead(1e6, Costs(1.0, 1e6), 1.0) == math.inf


def test_over_a_thousand_unwarned_kills_no_more_is_lost_than_the_limit_and_one_save():
    random = np.random.default_rng(3)
    for _ in range(1000):
        costs = Costs(
            pause_s=random.choice([0.05, 1.0, 10.0]),
            upload_s=random.choice([0.1, 20.0, 200.0, 1500.0]),
            step_s=random.choice([0.0, 5.0, 40.0]),
            recall=random.choice([0.0, 0.5]),
        )
        max_lost_s = random.choice([60.0, 600.0, 3600.0])
        mtbf_s = random.choice([300.0, 3600.0, 48 * 3600.0])
        chosen = interval(costs, Constant(1 / mtbf_s), max_lost_s)
        lost_s = lost_by_a_kill(
            chosen.seconds,
            costs,
            killed_s=random.exponential(3 * (chosen.seconds + costs.pause_s + costs.upload_s)),
        )
        one_save_s = costs.pause_s + max(costs.upload_s, 1.0) + costs.step_s
        assert lost_s <= chosen.worst_s + 1e-6
        assert chosen.worst_s <= max_lost_s + 1e-6 or chosen.bound == "back-to-back"
        assert lost_s <= max(max_lost_s, one_save_s) + one_save_s + 1e-6


def lost_by_a_kill(seconds, costs, killed_s):
    """Work since the safe point of the newest durable save, step by step, each save at the first safe point that it is due at."""
    now = trained = saved_at = durable_at = 0.0
    uploads = []  # (durable at, work that it holds)
    step_s = costs.step_s or seconds / 3
    while now < killed_s:
        while uploads and uploads[0][0] <= now:
            durable_at = uploads.pop(0)[1]
        if trained - saved_at >= seconds - 1e-9 and now > 0:
            begins = max(now + costs.pause_s, uploads[-1][0] if uploads else 0.0)
            uploads.append((begins + costs.upload_s, trained))
            saved_at, now = trained, now + costs.pause_s
            continue
        left = seconds - (trained - saved_at)
        step = step_s if costs.step_s else min(step_s, left)
        trained, now = trained + step, now + step
    trained -= max(now - killed_s, 0.0)
    durable_at = max([durable_at, *(held for when, held in uploads if when <= killed_s)])
    return trained - durable_at


def test_an_upload_longer_than_the_limit_is_followed_by_the_next_and_the_real_limit_is_told():
    chosen = interval(Costs(1.0, 900.0), Constant(1 / 86_400.0), 600.0)
    assert chosen.bound == "back-to-back"
    assert chosen.seconds == 899.0
    assert chosen.worst_s == 1800.0


def test_an_interval_that_is_dear_is_as_long_as_the_limit_allows_and_no_longer():
    chosen = interval(Costs(20.0, 30.0, step_s=1.0), Constant(1 / 86_400.0), 600.0)
    assert chosen.bound == "max-lost-work"
    assert chosen.worst_s == pytest.approx(600.0)
    assert chosen.optimum_s > 1800.0


def test_a_state_of_a_few_bytes_is_not_saved_all_the_time():
    assert interval(Costs(1e-5, 0.01), Constant(1 / 300.0), 600.0).seconds > 5.0


SHAPES = [Bathtub(), Capped(1 / (20 * 3600.0), cap_s=24 * 3600.0), Constant(1 / (5 * 3600.0))]


@pytest.mark.parametrize("hazard", SHAPES, ids=lambda hazard: type(hazard).__name__)
def test_on_a_machine_whose_hazard_changes_with_age_it_loses_hardly_more_than_the_best_plan_of_all(hazard):
    """The best plan is found by dynamic programming over the day, which knows the hazard and tries every interval at every age."""
    pause_s, tick_s, day = 30.0, 60.0, 24 * 60 - 1
    stays = np.array([1.0, *(survival(hazard, (i + 1) * tick_s) for i in range(day))])
    taken = -np.diff(stays)
    plan = np.zeros(day, dtype=int)
    value = np.zeros(
        day + 1
    )  # expected loss from an age on, with a save just made, times the share that reaches it
    ages = np.arange(day + 1)
    for age in range(day - 1, -1, -1):
        ends = ages[age + 1 :]
        middle = np.cumsum(taken[age:] * (np.arange(day - age) + 0.5) * tick_s)
        costs = middle + stays[ends] * pause_s + value[ends]
        plan[age] = int(np.argmin(costs))
        value[age] = costs[plan[age]]

    def loss(choose):
        age, total = 0, 0.0
        while age < day:
            end = min(age + max(int(choose(age * tick_s) / tick_s), 1), day)
            steps = np.arange(end - age)
            total += (taken[age:end] * (steps + 0.5) * tick_s).sum() + stays[end] * pause_s
            age = end
        return total

    ours = loss(lambda age_s: best_s(pause_s, hazard, age_s=age_s))
    constant = min(loss(lambda _, each=each: each) for each in np.arange(1, 400) * tick_s)
    assert ours <= 1.05 * value[0]
    if isinstance(hazard, Bathtub):
        assert ours < 0.95 * constant  # so the age is worth knowing


def survival(hazard, age_s):
    return math.exp(-hazard.mean_per_s(0.0, age_s) * age_s)


def test_a_pause_that_is_longer_than_the_limit_leaves_half_of_the_time_for_training() -> None:
    """Saving more often would cost more than it keeps: three minutes of pause, and ten seconds that may be lost."""
    found = interval(Costs(180.0, 1.0, 1.0), Constant(1 / 3600), 10.0)
    assert (found.seconds, found.bound) == (180.0, "back-to-back")
    assert found.worst_s > 360

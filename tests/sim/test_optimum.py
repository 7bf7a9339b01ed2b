"""The hindsight optimum, against every way there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast.policy.capacity import TICK_S, WAIT, Job, Market, Pool
from outlast.sim.optimum import optimum

MIN = 60.0
ONE = Market((Pool("spot", "spot", 0.3), Pool("own", "on-demand", 1.0)))
FAR = Market(
    (
        Pool("near", "spot", 0.5, 1.0, "a"),
        Pool("far", "spot", 0.3, 1.0, "b"),
        Pool("own", "on-demand", 1.0, 1.0, "a"),
    ),
    {("a", "b"): 0.02, ("b", "a"): 0.05},
)
FAST = Market(
    (
        Pool("slow", "spot", 0.3),
        Pool("fast", "spot", 0.7, 2.5),
        Pool("own", "on-demand", 1.0),
        Pool("fast own", "on-demand", 2.4, 2.5),
    )
)


def cost_of(way, job, market, here):
    """What a list of choices costs, worked out second by second from the model's words; infinite where it is not allowed or too late."""
    left, held, warm_in, at, usd = job.steps, WAIT, 0.0, WAIT, 0.0
    for tick, choice in enumerate(way):
        if left <= 1e-9:
            return usd
        start, end = tick * 600.0, min((tick + 1) * 600.0, job.deadline_s)
        if choice == WAIT:
            held = WAIT
            continue
        pool = market.pools[choice]
        if pool.kind == "spot" and not here[tick][choice]:
            return math.inf
        if choice != held:
            held, warm_in = choice, job.overhead_s
            if at != WAIT and market.pools[at].region != pool.region:
                usd += (
                    job.checkpoint_bytes
                    / 1e9
                    * market.egress_usd_per_gb[market.pools[at].region, pool.region]
                )
        idle = min(warm_in, end - start)
        works = min(end - start - idle, left / pool.steps_per_s)
        warm_in -= idle
        left -= works * pool.steps_per_s
        usd += (idle + works) * pool.usd_per_hour / 3600
        if works > 0:
            at = choice
    return usd if left <= 1e-9 else math.inf


def brute_force(job, market, here):
    """The cheapest of all ways."""
    choices = [WAIT, *range(len(market.pools))]
    return min(cost_of(way, job, market, here) for way in itertools.product(choices, repeat=len(here)))


@settings(max_examples=60, deadline=None)
@given(
    here=st.lists(st.booleans(), min_size=6, max_size=6),
    work=st.integers(5, 45),
    overhead=st.sampled_from([0, 3, 10, 12, 21]),
)
def test_it_is_the_cheapest_of_all_ways_through_a_short_trace(here, work, overhead):
    """Every choice in each of six ticks; overheads shorter and longer than a tick."""
    job = Job(work * MIN, 60 * MIN, overhead * MIN)
    seen = [[up, True] for up in here]
    found = optimum(job, ONE, np.array([seen]))[0]
    assert found == pytest.approx(brute_force(job, ONE, seen), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    here=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=5),
    gb=st.sampled_from([0, 1, 5]),
    overhead=st.sampled_from([3, 12]),
)
def test_moving_a_checkpoint_is_paid_for(here, gb, overhead):
    """Two zones in two regions: the cheaper one is worth a move or is not."""
    job = Job(22 * MIN, 50 * MIN, overhead * MIN, gb * 10**9)
    seen = [[*up, True] for up in here]
    if (
        overhead < 10
    ):  # else a start that makes no step may be given up, and what is charged for the next one is a little more
        assert optimum(job, FAR, np.array([seen]))[0] == pytest.approx(brute_force(job, FAR, seen), abs=1e-9)
    else:
        assert optimum(job, FAR, np.array([seen]))[0] >= brute_force(job, FAR, seen) - 1e-9


@settings(max_examples=15, deadline=None)
@given(here=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=5))
def test_a_faster_machine_is_worth_its_price_by_the_step(here):
    """Speeds 1 and 2.5; the grid is a minute of the slower one."""
    job = Job(44 * MIN, 50 * MIN, 4 * MIN)
    seen = [[*up, True, True] for up in here]
    assert optimum(job, FAST, np.array([seen]))[0] == pytest.approx(brute_force(job, FAST, seen), rel=1e-3)


def test_a_deadline_that_cannot_be_kept_costs_infinitely_much():
    """Work and one overhead are longer than the window."""
    assert math.isinf(optimum(Job(58 * MIN, 60 * MIN, 3 * MIN), ONE, np.ones((1, 6, 2), dtype=bool))[0])


def test_a_deadline_within_a_tick_is_kept_to_the_second():
    """55 minutes: on-demand for 52 minutes and an overhead of 3 just fits, one second more does not."""
    none = np.array([[[False, True]] * 6])
    assert optimum(Job(52 * MIN, 55 * MIN, 3 * MIN), ONE, none)[0] == pytest.approx(55 / 60)
    assert math.isinf(optimum(Job(53 * MIN, 55 * MIN, 3 * MIN), ONE, none)[0])


@pytest.mark.parametrize(
    ("work_s", "deadline_s", "overhead_s"), [(72000.0, 72216.0, 187.0), (169642.8, 170280.0, 187.0)]
)
def test_where_nearly_no_time_is_left_the_optimum_is_what_somebody_could_pay(
    work_s: float, deadline_s: float, overhead_s: float
) -> None:
    """Points of the grid that cannot be done in time lie beside one that can, and must not be taken into its cost."""
    job = Job(work_s, deadline_s, overhead_s)
    market = Market((Pool("spot", "spot", 0.3), Pool("on-demand", "on-demand", 1.0)))
    is_there = np.random.default_rng(1).random((8, math.ceil(deadline_s / TICK_S), 2)) < 0.5
    is_there[:, :, 1] = True
    assert (optimum(job, market, is_there) <= (work_s + overhead_s) / 3600 * 1.001).all()

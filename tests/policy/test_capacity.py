"""No deadline is missed while on-demand exists, whatever spot does; and the published policies do what they are published to do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from outlast._errors import ConfigError
from outlast.policy.availability import hazards
from outlast.policy.baselines import GreedySpot, OnDemandOnly, UniformProgress
from outlast.policy.capacity import TICK_S, WAIT, Job, Market, Pool, Situation, is_safe
from outlast.policy.expected_cost import plan
from outlast.policy.prior import known_zones
from outlast.sim.replay import replay

MIN = 60.0
MARKET = Market((Pool("spot", "spot", 0.3), Pool("own", "on-demand", 1.0)))
MODELS = hazards([known.stays for known in known_zones(["zone-of-nobody"])[:4]])
TWO = Market(
    (
        Pool("a", "spot", 0.3),
        Pool("b", "spot", 0.6, 2.5),
        Pool("own", "on-demand", 1.0),
        Pool("fast", "on-demand", 2.4, 2.5),
    )
)


def policies(job, market):
    """All that decide."""
    return [OnDemandOnly(), GreedySpot(), UniformProgress(), plan(job, market, MODELS)]


def patterns(ticks):
    """Traces as an adversary would write them: any, flickering, none, all but the end, all but the beginning."""
    runs = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=ticks).map(
        lambda found: ([up for up, length in found for _ in range(length)] * ticks)[:ticks]
    )
    return st.one_of(
        runs,
        st.lists(st.booleans(), min_size=ticks, max_size=ticks),
        st.just([False] * ticks),
        st.integers(0, 3).map(lambda shift: [(i + shift) % 2 == 0 for i in range(ticks)]),
        st.integers(0, ticks).map(lambda last: [i < last for i in range(ticks)]),
        st.integers(0, ticks).map(lambda first: [i >= first for i in range(ticks)]),
    )


@settings(max_examples=60, deadline=None)
@given(
    work=st.integers(1, 400),
    room=st.integers(0, 150),
    overhead=st.sampled_from([0, 1, 3, 9.5, 10, 12, 20, 25]),
    data=st.data(),
)
def test_no_deadline_is_missed_that_on_demand_alone_would_have_kept(work, room, overhead, data):
    """The search is drawn to jobs that are done as late as possible."""
    job = Job(work * MIN, (work + overhead + room) * MIN, overhead * MIN)
    ticks = math.ceil(job.deadline_s / TICK_S)
    here = data.draw(patterns(ticks))
    shown = np.stack([here, [True] * ticks], axis=1)[None]
    for policy in policies(job, MARKET):
        done_s = replay(policy, job, MARKET, shown).finish_s[0]
        assert done_s <= job.deadline_s + 1e-3, policy.name
        target(done_s / job.deadline_s, label=policy.name)


@settings(max_examples=20, deadline=None)
@given(
    work=st.integers(30, 300), room=st.integers(0, 100), overhead=st.sampled_from([0, 3, 12]), data=st.data()
)
def test_nor_with_machines_of_two_speeds(work, room, overhead, data):
    """On-demand is there in both; slow spot loses time that only the other one could win back."""
    job = Job(work * MIN, (work + overhead + room) * MIN, overhead * MIN)
    ticks = math.ceil(job.deadline_s / TICK_S)
    shown = np.stack(
        [data.draw(patterns(ticks)), data.draw(patterns(ticks)), [True] * ticks, [True] * ticks], axis=1
    )[None]
    for policy in policies(job, TWO):
        assert replay(policy, job, TWO, shown).finish_s[0] <= job.deadline_s + 1e-3, policy.name


def drive(policy, job, is_spot_there):
    """One job, tick by tick, as a controller would: when it is done, and what was held. The trace may depend on that."""
    left, held, warm_in_s, seen, choices = job.steps, WAIT, 0.0, None, []
    for tick in range(math.ceil(job.deadline_s / TICK_S)):
        here = np.array([[is_spot_there(choices), True]])
        if held == 0 and not here[0, 0]:
            held = WAIT
        now = Situation(
            job,
            MARKET,
            job.deadline_s - tick * TICK_S,
            np.array([left]),
            np.array([held]),
            np.array([warm_in_s]),
            here,
            np.array([WAIT]),
        )
        seen = policy.watch(seen, here)
        choice = int(policy.decide(now, seen)[0])
        assert choice == WAIT or here[0, choice]
        if choice != held:
            warm_in_s = job.overhead_s
        choices.append(choice)
        held = choice
        if choice == WAIT:
            continue
        idle_s = min(warm_in_s, TICK_S)
        if left <= TICK_S - idle_s:
            return tick * TICK_S + idle_s + left, choices
        left, warm_in_s = left - (TICK_S - idle_s), warm_in_s - idle_s
    return math.inf, choices


@pytest.mark.parametrize("overhead", [3, 12, 25])
@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("room", [0, 10, 40, 90, 240])
def test_spot_that_vanishes_whenever_it_was_just_taken_costs_no_deadline(overhead, patience, room):
    """The trace is written while the job runs: spot goes once it was held for so many ticks, and is back in the next."""
    job = Job(300 * MIN, (300 + overhead + room) * MIN, overhead * MIN)

    def is_there(choices):
        return choices[-patience:] != [0] * patience

    for policy in policies(job, MARKET):
        done_s, _ = drive(policy, job, is_there)
        assert done_s <= job.deadline_s + 1e-3, policy.name


def test_the_simulator_does_what_a_controller_does():
    """Tick by tick by hand and replayed: the same choices, done at the same second."""
    rng = np.random.default_rng(3)
    job = Job(300 * MIN, 420 * MIN, 12 * MIN)
    for _ in range(5):
        here = np.repeat(rng.random(14) < 0.5, 3)
        shown = np.stack([here, np.ones_like(here)], axis=1)[None]
        for policy in policies(job, MARKET):
            outcome = replay(policy, job, MARKET, shown)
            done_s, choices = drive(policy, job, lambda past, here=here: here[len(past)])
            assert choices == outcome.choices[0, : len(choices)].tolist(), policy.name
            assert done_s == pytest.approx(outcome.finish_s[0])


def test_a_far_deadline_takes_no_more_memory_and_is_still_waited_for():
    """A job of an hour with 30 days: its tables end long before that, and it waits for spot that comes on the 20th day."""
    job = Job(3600.0, 30 * 86400.0, 3 * MIN)
    policy = plan(job, MARKET, MODELS)
    assert policy.values is not None
    assert policy.values.usd.nbytes < 100e6
    ticks = int(job.deadline_s / TICK_S)
    shown = np.ones((1, ticks, 2), dtype=bool)
    shown[:, : 20 * 144, 0] = False
    done = replay(policy, job, MARKET, shown)
    assert done.cost_usd == pytest.approx([0.3 * (3600 + 3 * MIN) / 3600])
    assert done.finish_s == pytest.approx([20 * 86400 + 3600 + 3 * MIN])


def test_many_jobs_at_once_are_decided_as_each_alone():
    """What the simulator replays is what a controller of one job asks."""
    rng = np.random.default_rng(5)
    job = Job(300 * MIN, 420 * MIN, 12 * MIN)
    shown = np.ones((24, 42, 2), dtype=bool)
    shown[:, :, 0] = np.repeat(rng.random((24, 14)) < 0.5, 3, axis=1)
    for policy in policies(job, MARKET):
        together = replay(policy, job, MARKET, shown)
        for i in range(len(shown)):
            alone = replay(policy, job, MARKET, shown[i : i + 1])
            assert (alone.choices[0] == together.choices[i]).all(), policy.name


def test_what_is_chosen_does_not_depend_on_what_is_to_come():
    """Two traces that differ only from a tick on are decided alike up to it."""
    job = Job(300 * MIN, 420 * MIN, 3 * MIN)
    one = np.ones((1, 42, 2), dtype=bool)
    one[0, 5:9, 0] = one[0, 15:17, 0] = False
    other = one.copy()
    other[0, 20:, 0] = ~other[0, 20:, 0]
    for policy in policies(job, MARKET):
        first, second = replay(policy, job, MARKET, one).choices, replay(policy, job, MARKET, other).choices
        assert (first[0, :20] == second[0, :20]).all(), policy.name


def test_greedy_waits_until_two_overheads_are_left_and_stays_on_demand():
    """Work 60 minutes, deadline 120, overhead 3: spot comes back too late to be taken."""
    job = Job(60 * MIN, 120 * MIN, 3 * MIN)
    shown = np.ones((1, 12, 2), dtype=bool)
    shown[0, :8, 0] = False
    assert replay(GreedySpot(), job, MARKET, shown).choices[0].tolist() == [WAIT] * 5 + [1] * 7


def test_uniform_progress_leaves_on_demand_only_when_it_is_two_overheads_ahead():
    """Idle and behind: on-demand; spot comes back in tick 2, and is taken once the job is ahead."""
    job = Job(300 * MIN, 600 * MIN, 3 * MIN)
    shown = np.ones((1, 60, 2), dtype=bool)
    shown[0, :2, 0] = False
    choices = replay(UniformProgress(), job, MARKET, shown).choices[0]
    # 10 min in: 0 done, 5 due. 20 min: 7 done, 13 would be due two overheads later. 30 min: 17 done, 18 due. 40 min: 27 of 23.
    assert choices[:6].tolist() == [WAIT, 1, 1, 1, 0, 0]


def test_usd_per_step_decides_not_usd_per_hour():
    """The fast machine costs more by the hour and less by the step, then the other way round."""
    job = Job(300 * MIN, 600 * MIN, 3 * MIN)
    always = np.ones((1, 60, 4), dtype=bool)
    for fast_usd, expected in ((0.50, 1), (1.00, 0)):
        market = Market(
            (
                Pool("slow", "spot", 0.3),
                Pool("fast", "spot", fast_usd, 2.5),
                Pool("own", "on-demand", 1.0),
                TWO.pools[3],
            )
        )
        for policy in policies(job, market)[1:]:
            outcome = replay(policy, job, market, always)
            used = outcome.choices[0][outcome.choices[0] != WAIT]
            assert set(used.tolist()) == {expected}, (policy.name, fast_usd)
            rate, speed = market.usd_per_s[expected], market.steps_per_s[expected]
            assert outcome.cost_usd[0] == pytest.approx((180 + job.steps / speed) * rate)


def test_a_slow_pool_that_would_miss_the_deadline_is_no_backstop():
    """Cheaper by the step, and too slow: the fast one stands behind."""
    market = Market((Pool("slow", "on-demand", 1.0), Pool("fast", "on-demand", 3.0, 2.5)))
    assert market.backstop(Job(300 * MIN, 310 * MIN, 3 * MIN)) == 0
    assert market.backstop(Job(300 * MIN, 200 * MIN, 3 * MIN)) == 1


def test_waiting_is_safe_to_the_second():
    """A tick of waiting is allowed while after it an overhead and the work still fit."""
    job = Job(60 * MIN, 73 * MIN, 3 * MIN)
    for left_s, expected in ((73 * MIN, True), (73 * MIN - 1, False)):
        now = Situation(
            job,
            MARKET,
            left_s,
            np.array([60 * MIN]),
            np.array([WAIT]),
            np.zeros(1),
            np.ones((1, 2), dtype=bool),
            np.array([WAIT]),
        )
        assert is_safe(now, WAIT)[0] == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0.0}, "steps is 0.0"),
        ({"steps": math.nan}, "steps is nan"),
        ({"deadline_s": -1.0}, "deadline_s is -1.0"),
        ({"overhead_s": math.inf}, "overhead_s is inf"),
    ],
)
def test_a_job_with_an_impossible_number_is_refused_by_its_name(change, said):
    """Before anything is decided."""
    with pytest.raises(ConfigError, match=said):
        Job(**({"steps": 1.0, "deadline_s": 1.0, "overhead_s": 0.0} | change))


def test_a_market_needs_on_demand_and_prices():
    """Without on-demand nothing could be promised; a price of 0 is no price."""
    with pytest.raises(ConfigError, match="no on-demand pool"):
        Market((Pool("spot", "spot", 0.3),))
    with pytest.raises(ConfigError, match="usd_per_hour of own is 0"):
        Market((Pool("own", "on-demand", 0.0),))


def test_in_the_last_part_of_a_tick_nothing_is_safe_that_takes_longer() -> None:
    """A slow spot machine would need five times what is left."""
    job = Job(500.0, 2500.0, 0.0)
    market = Market((Pool("slow", "spot", 0.1, 0.2), Pool("on-demand", "on-demand", 1.0)))
    now = Situation(
        job,
        market,
        100.0,
        np.array([100.0]),
        np.array([WAIT]),
        np.zeros(1),
        np.ones((1, 2), bool),
        np.array([WAIT]),
    )
    assert not is_safe(now, 0)[0]
    assert is_safe(now, 1)[0]

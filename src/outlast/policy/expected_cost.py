"""Outlast's own policy: take what will have cost least at the end, as far as can be expected. Pure.

For each zone that is known, a dynamic program says what a job will still cost, by time, work, what is held and how long spot has been
there or away. The zone the job is in is a mixture of those, weighed by what has been seen of it; the choice is the one whose cost, so
weighed, is least. No choice is taken that `capacity.is_safe` refuses, so a wrong model costs money and never the deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from outlast.policy import availability
from outlast.policy.availability import DOWN, RANGES, UP, Seen
from outlast.policy.capacity import (
    TICK_S,
    WAIT,
    Bools,
    Floats,
    Ints,
    Job,
    Market,
    Situation,
    holds_spot,
    is_safe,
)
from outlast.policy.spot_value import IDLE, OWN, SPOT, Values, place, prices, solve, warming

_ROOMY, _ROOMY_S = 10.0, 72 * 3600.0
"""A deadline further away than so many times the work, and so long, changes no choice, and tables of months would take gigabytes."""
_INDEPENDENT, _ELSEWHERE = 3, 0.9
"""Zones go and come together more than chance would have it: no more than so many count as independent of each other, and that another
one is there when one is lost is never surer than this."""


@dataclass(frozen=True)
class ExpectedCost:
    """The policy of one job and market; `plan` makes it.

    Attributes:
        job, market: those that it was made for.
        models: hazards, [models, 2, RANGES].
        values: of the models; None where there is no spot pool.
        stays_s: expected time until a spot machine is lost, [models, RANGES].
        move_usd: [from, to].
    """

    job: Job
    market: Market
    models: Floats
    values: Values | None
    stays_s: Floats
    move_usd: Floats
    name: str = "outlast"

    def watch(self, seen: Seen | None, is_available: Bools) -> Seen:
        """Learn from what every spot pool shows."""
        return availability.watch(seen, is_available[:, self.market.spot], self.models)

    def decide(self, now: Situation, seen: Seen) -> Ints:
        """Return the safe choice of the least expected cost."""
        backstop = now.backstop
        ticks = int(now.time_left_s // TICK_S)
        if self.values is None or ticks < 1:
            return np.full(len(now.held), backstop, dtype=np.int64)
        ticks = min(ticks, len(self.values.usd) - 1)
        look = _Look(self, self.values, now, seen, ticks)
        choices = [*self.market.spot, backstop, WAIT]
        usd = [look.spot(pool) for pool in self.market.spot] + [look.own(backstop), look.wait()]
        for i, choice in enumerate(choices):
            if choice != backstop:
                usd[i] = np.where(is_safe(now, choice), usd[i], np.inf)
        usd[-1] = np.where(
            holds_spot(now), np.inf, usd[-1]
        )  # a machine that is there is not given up for none
        return np.asarray(np.array(choices)[np.argmin(usd, axis=0)])


def plan(job: Job, market: Market, models: Floats) -> ExpectedCost:
    """Solve the dynamic programs of a job.

    Args:
        job: whole.
        market: its pools.
        models: hazards of zones that are known, [models, 2, RANGES], of single pools.
    """
    spot, own = market.spot, market.pools[market.backstop(job)]
    stays_s = np.array([_stays_s(model) for model in models])
    values = None
    if spot:
        joint = np.array([_any_of(model, len(spot)) for model in models])
        elsewhere = np.array([_elsewhere(model, len(spot)) for model in models])
        cost = prices(market.pools[_cheapest(market)], own)
        roomy_s = max(_ROOMY * job.steps / own.steps_per_s, _ROOMY_S) + job.overhead_s
        near = replace(job, deadline_s=min(job.deadline_s, roomy_s))
        values = solve(joint, near, cost, own.steps_per_s, elsewhere)
    return ExpectedCost(job, market, models, values, stays_s, market.move_usd(job.checkpoint_bytes))


class _Look:
    """One tick's look-up of what each choice leads to, for all jobs."""

    def __init__(self, policy: ExpectedCost, values: Values, now: Situation, seen: Seen, ticks: int) -> None:
        self.policy, self.now, self.seen = policy, now, seen
        self.own_pool = now.market.pools[now.backstop]
        self.work_left_s = now.steps_left / self.own_pool.steps_per_s
        self.slack_s = ticks * TICK_S - self.work_left_s
        self.grid_s, self.after = values.slack_s, values.after(ticks - 1)
        self.weights = availability.weights(seen)
        self.states = availability.age_range(seen.ages) + np.where(seen.is_up, UP, DOWN) * RANGES

    def wait(self) -> Floats:
        """Nothing is held; spot is taken later."""
        return self._later(IDLE, self.slack_s - TICK_S)

    def own(self, pool: int) -> Floats:
        """On-demand is held; spot goes and comes meanwhile."""
        return self._held(pool, OWN, 1.0, self._later) + self._moving(pool)

    def spot(self, pool: int) -> Floats:
        """A spot machine of `pool` is held; infinite where there is none."""
        at = self.policy.market.spot.index(pool)
        speed = self.policy.market.pools[pool].steps_per_s / self.own_pool.steps_per_s
        usd = self._held(pool, SPOT, speed, lambda held, slack_s: self._then(held, at, slack_s))
        return np.where(self.seen.is_up[:, at], usd + self._dearer(pool, at) + self._moving(pool), np.inf)

    def _later(self, held: int, slack_s: Floats) -> Floats:
        """From the next tick on, with spot taken then: in the best of the pools that are there, else in the one that comes first."""
        found = np.full((len(self.policy.market.spot), len(slack_s)), np.inf)
        best_away = np.full(len(slack_s), np.inf)
        for at, pool in enumerate(self.policy.market.spot):
            usd = self._then(held, at, slack_s) + self._dearer(pool, at) + self._moving(pool)
            found[at] = np.where(self.seen.is_up[:, at], usd, np.inf)
            best_away = np.minimum(best_away, usd)
        best = found.min(axis=0)
        return np.where(np.isfinite(best), best, best_away)

    def _dearer(self, pool: int, at: int) -> Floats:
        """What `pool` will cost more than the pool that the tables are made for, until it is lost."""
        market = self.policy.market
        usd_per_step = market.pools[pool].usd_per_step - market.pools[_cheapest(market)].usd_per_step
        where = np.where(self.seen.is_up[:, at], self.states[:, at], 0)
        stays_s = np.einsum("nk,kn->n", self.weights[:, at], self.policy.stays_s[:, where])
        return np.asarray(
            usd_per_step * np.minimum(stays_s * market.pools[pool].steps_per_s, self.now.steps_left)
        )

    def _held(self, pool: int, held: int, speed: float, then_of: Callable[[int, Floats], Floats]) -> Floats:
        """Cost of a tick in `pool`, and of what follows by what is held then."""
        overhead_s = self.now.overhead_s(pool)
        rate = self.policy.market.usd_per_s[pool]
        need_s = overhead_s + self.work_left_s / speed
        slack_s = self.slack_s - TICK_S + np.maximum(TICK_S - overhead_s, 0.0) * speed
        then = then_of(held, slack_s)
        waits = math.ceil(self.policy.job.overhead_s / TICK_S - 1e-9)
        for started in range(1, waits):
            is_here = np.ceil(overhead_s / TICK_S - 1e-9) == waits - started + 1
            then = np.where(is_here, then_of(warming(held, started), slack_s), then)
        return np.asarray(np.where(need_s <= TICK_S, need_s * rate, TICK_S * rate + then))

    def _then(self, held: int, at: int, slack_s: Floats) -> Floats:
        """Expected cost from the next tick on, over the models, by the state of spot pool number `at`."""
        state, weights = self.states[:, at], self.weights[:, at]
        low, share = place(self.grid_s, slack_s)
        after = self.after[held]
        usd = after[:, state, low] * (1 - share) + after[:, state, low + 1] * share
        return np.asarray(np.einsum("nk,kn->n", weights, usd))

    def _moving(self, pool: int) -> Floats:
        """What bringing the checkpoint to `pool` costs; nothing where it is, or where there is none."""
        origin = self.now.data_at
        is_start = (self.now.held != pool) & (origin != WAIT)
        return np.asarray(np.where(is_start, self.policy.move_usd[origin, pool], 0.0))


def _cheapest(market: Market) -> int:
    return min(market.spot, key=lambda i: market.pools[i].usd_per_step)


def _stays_s(model: Floats) -> Floats:
    """Expected time until the end of an up state, by range of ages: [RANGES]."""
    up = availability.chain(model)[:RANGES, :RANGES]
    return np.asarray(np.linalg.solve(np.eye(RANGES) - up, np.full(RANGES, TICK_S)))


def _any_of(model: Floats, pools: int) -> Floats:
    """The model of several pools together: away only while all are."""
    joint = model.copy()
    joint[DOWN] = 1 - (1 - model[DOWN]) ** min(pools, _INDEPENDENT)
    return joint


def _elsewhere(model: Floats, pools: int) -> float:
    """How likely one of the other pools is there, if each is as often as the model in the long run."""
    moves = availability.chain(model)
    system = np.vstack([moves.T - np.eye(len(moves)), np.ones(len(moves))])
    share = np.linalg.lstsq(system, np.r_[np.zeros(len(moves)), 1.0], rcond=None)[0]
    return min(float(1 - np.clip(share[RANGES:].sum(), 0.0, 1.0) ** (pools - 1)), _ELSEWHERE)

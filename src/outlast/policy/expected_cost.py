"""Outlast's own policy: take what will have cost least at the end, as far as can be expected. Pure.

For each zone that is known, a dynamic program says what a job will still cost, by time, work, what is held and how long spot has been
there or away. The zone the job is in is a mixture of those, weighed by what has been seen of it; the choice is the one whose cost, so
weighed, is least. No choice is taken that `capacity.is_safe` refuses, so a wrong model costs money and never the deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from outlast.policy import availability
from outlast.policy.availability import DOWN, RANGES, UP, Seen
from outlast.policy.capacity import TICK_S, WAIT, Bools, Floats, Ints, Job, Market, Situation, is_safe
from outlast.policy.spot_value import IDLE, OWN, SPOT, Values, place, prices, solve, warming


@dataclass(frozen=True)
class ExpectedCost:
    """The policy of one job and market; `plan` makes it.

    Attributes:
        job, market: those that it was made for.
        models: hazards, [models, 2, RANGES].
        values: one per model.
        stays_s: expected time until a spot machine is lost, [models, RANGES].
        move_usd: [from, to].
    """

    job: Job
    market: Market
    models: Floats
    values: tuple[Values, ...]
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
        if not self.market.spot or ticks < 1:
            return np.full(len(now.held), backstop, dtype=np.int64)
        look = _Look(self, now, seen, ticks)
        choices = [*self.market.spot, backstop, WAIT]
        usd = [look.spot(pool) for pool in self.market.spot] + [look.own(backstop), look.wait()]
        for i, choice in enumerate(choices):
            if choice != backstop:
                usd[i] = np.where(is_safe(now, choice), usd[i], np.inf)
        return np.asarray(np.array(choices)[np.argmin(usd, axis=0)])


def plan(job: Job, market: Market, models: Floats) -> ExpectedCost:
    """Solve the dynamic programs of a job.

    Args:
        job: whole.
        market: its pools.
        models: hazards of zones that are known, [models, 2, RANGES], of single pools.
    """
    spot, own = market.spot, market.pools[market.backstop(job)]
    stays = np.array([_stays_s(model) for model in models])
    values: tuple[Values, ...] = ()
    if spot:
        cheapest = market.pools[_cheapest(market)]
        values = tuple(
            solve(
                _any_of(model, len(spot)),
                job,
                prices(cheapest, own, _elsewhere(model, len(spot))),
                own.steps_per_s,
            )
            for model in models
        )
    return ExpectedCost(job, market, models, values, stays, market.move_usd(job.checkpoint_bytes))


class _Look:
    """One tick's look-up of what each choice leads to, for all jobs."""

    def __init__(self, policy: ExpectedCost, now: Situation, seen: Seen, ticks: int) -> None:
        self.policy, self.now, self.seen = policy, now, seen
        self.own_pool = now.market.pools[now.backstop]
        self.work_left_s = now.steps_left / self.own_pool.steps_per_s
        self.slack_s = ticks * TICK_S - self.work_left_s
        self.after = np.array([values.after(ticks - 1) for values in policy.values])
        self.weights = availability.weights(seen)
        self.states = availability.age_range(seen.ages) + np.where(seen.is_up, UP, DOWN) * RANGES
        self.leading = self._leading()

    def wait(self) -> Floats:
        """Nothing is held."""
        return self._then(IDLE, self.leading, self.slack_s - TICK_S)

    def own(self, pool: int) -> Floats:
        """On-demand is held; spot goes and comes meanwhile."""
        return self._held(pool, OWN, self.leading, 1.0) + self._moving(pool)

    def spot(self, pool: int) -> Floats:
        """A spot machine of `pool` is held; infinite where there is none."""
        market, now = self.policy.market, self.now
        at = market.spot.index(pool)
        column = np.full(len(now.held), at)
        speed = market.pools[pool].steps_per_s
        dearer = market.pools[pool].usd_per_step - market.pools[_cheapest(market)].usd_per_step
        where = np.minimum(self.states[:, at], RANGES - 1)
        stays_s = np.einsum("nk,kn->n", self.weights[:, at], self.policy.stays_s[:, where])
        steps = np.minimum(stays_s * speed, now.steps_left)
        usd = (
            self._held(pool, SPOT, column, speed / self.own_pool.steps_per_s)
            + dearer * steps
            + self._moving(pool)
        )
        return np.where(self.seen.is_up[:, at], usd, np.inf)

    def _held(self, pool: int, held: int, column: Ints, speed: float) -> Floats:
        overhead_s = self.now.overhead_s(pool)
        rate = self.policy.market.usd_per_s[pool]
        need_s = overhead_s + self.work_left_s / speed
        slack_s = self.slack_s - TICK_S + np.maximum(TICK_S - overhead_s, 0.0) * speed
        then = self._then(held, column, slack_s)
        waits = math.ceil(self.policy.job.overhead_s / TICK_S - 1e-9)
        for started in range(1, waits):
            is_here = np.ceil(overhead_s / TICK_S - 1e-9) == waits - started + 1
            then = np.where(is_here, self._then(warming(held, started), column, slack_s), then)
        return np.asarray(np.where(need_s <= TICK_S, need_s * rate, TICK_S * rate + then))

    def _then(self, held: int, column: Ints, slack_s: Floats) -> Floats:
        """Expected cost from the next tick on, over the models, where pool `column` of the spot pools is the one to watch."""
        rows = np.arange(len(column))
        state, weights = self.states[rows, column], self.weights[rows, column]
        low, share = place(self.policy.values[0].slack_s, slack_s)
        usd = self.after[:, held, state, low] * (1 - share) + self.after[:, held, state, low + 1] * share
        return np.asarray(np.einsum("nk,kn->n", weights, usd))

    def _moving(self, pool: int) -> Floats:
        """What bringing the checkpoint to `pool` costs; nothing where it is, or where there is none."""
        origin = self.now.data_at
        is_start = (self.now.held != pool) & (origin != WAIT)
        return np.asarray(np.where(is_start, self.policy.move_usd[origin, pool], 0.0))

    def _leading(self) -> Ints:
        """The spot pool to watch: the held one, else the oldest that is there, else the one that went last."""
        ages = np.where(self.seen.is_up, self.seen.ages + 1_000_000, -self.seen.ages)
        best: Ints = np.argmax(ages, axis=1)
        for at, pool in enumerate(self.policy.market.spot):
            best[self.now.held == pool] = at
        return best


def _cheapest(market: Market) -> int:
    return min(market.spot, key=lambda i: market.pools[i].usd_per_step)


def _stays_s(model: Floats) -> Floats:
    """Expected time until the end of an up state, by range of ages: [RANGES]."""
    up = availability.chain(model)[:RANGES, :RANGES]
    return np.asarray(np.linalg.solve(np.eye(RANGES) - up, np.full(RANGES, TICK_S)))


def _any_of(model: Floats, pools: int) -> Floats:
    """The model of several pools together: away only while all are."""
    joint = model.copy()
    joint[DOWN] = 1 - (1 - model[DOWN]) ** pools
    return joint


def _elsewhere(model: Floats, pools: int) -> float:
    """How likely one of the other pools is there, if each is as often as the model in the long run."""
    moves = availability.chain(model)
    system = np.vstack([moves.T - np.eye(len(moves)), np.ones(len(moves))])
    share = np.linalg.lstsq(system, np.r_[np.zeros(len(moves)), 1.0], rcond=None)[0]
    return float(1 - np.clip(share[RANGES:].sum(), 0.0, 1.0) ** (pools - 1))

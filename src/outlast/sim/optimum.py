"""The least that a job could have paid, had it known everything that was to come: a dynamic program over a whole window.

Goes backwards over ticks; what is known at each is the least cost from there on by steps left, by what is held and, where moving a
checkpoint costs, by the region it lies in. Exact where overhead, tick and the job's steps are whole multiples of the grid's unit; else
costs between two points of the grid are interpolated.
"""

from __future__ import annotations

import math

import numpy as np

from outlast.policy.capacity import TICK_S, Bools, Floats, Job, Market

_LEAST_UNIT_S = 30
"""The grid is no finer: 48 h are 5,760 points."""
_USUAL_UNIT_S = 60
_NEVER = 1e12
_AT_ONCE = 32
"""Windows, so that what is worked on stays in the processor's cache."""


def optimum(job: Job, market: Market, is_available: Bools) -> Floats:
    """Return each window's least cost in USD; infinite where the deadline cannot be kept.

    Args:
        job: what is to be done.
        market: its pools.
        is_available: [n, ticks, pools], as for `replay`.
    """
    parts = [is_available[i : i + _AT_ONCE] for i in range(0, len(is_available), _AT_ONCE)]
    found = np.concatenate([_Backwards(job, market, part).solve() for part in parts])
    return np.where(found >= _NEVER / 2, np.inf, found)


class _Backwards:
    """The state of the program: costs from the tick at hand on, [points, n] each."""

    def __init__(self, job: Job, market: Market, is_available: Bools) -> None:
        self.job, self.market = job, market
        self.ticks = math.floor(job.deadline_s / TICK_S)
        self.rest_s = job.deadline_s - self.ticks * TICK_S
        self.here = is_available
        self.unit, self.points = _unit(job, market)
        self.steps = np.arange(self.points + 1) * self.unit
        self.steps[-1] = job.steps
        self.waits = max(1, math.ceil(job.overhead_s / TICK_S - 1e-9))
        moves = market.move_usd(job.checkpoint_bytes)
        self.origins = sorted({tuple(row) for row in moves.tolist()})
        self.origin_of = [self.origins.index(tuple(row)) for row in moves.tolist()]
        empty = np.full((self.points + 1, len(is_available)), _NEVER)
        empty[0] = 0.0
        self.idle = [empty.copy() for _ in self.origins]
        self.fresh = empty.copy()
        self.held = [[empty.copy() for _ in range(self.waits)] for _ in market.pools]

    def solve(self) -> Floats:
        if self.rest_s > 0:
            self._tick(self.ticks, self.rest_s)
        for tick in range(self.ticks - 1, -1, -1):
            self._tick(tick, TICK_S)
        return np.asarray(self.fresh[-1])

    def _tick(self, tick: int, length_s: float) -> None:
        """Go one tick back. `held[p][w]` has spent `w + 1` ticks on its overhead, the last of them all of it."""
        fastest = max(self.market.steps_per_s) / self.unit
        low = max(0, self.points - math.ceil(tick * TICK_S * fastest))
        high = min(self.points, math.ceil((self.job.deadline_s - tick * TICK_S) * fastest))
        part = slice(low, high + 1)
        runs = [
            [self._run(p, waited, tick, length_s, low, high) for waited in range(self.waits + 1)]
            for p in range(len(self.market.pools))
        ]
        for pool in runs:
            np.minimum(self.fresh[part], pool[0], out=self.fresh[part])
        for usd, origin in zip(self.idle, self.origins, strict=True):
            for move, pool in zip(origin, runs, strict=True):
                np.minimum(usd[part], pool[0] + move if move else pool[0], out=usd[part])
        for p, pool in enumerate(runs):
            idle = self.idle[self.origin_of[p]]
            for waited in range(1, self.waits + 1):
                np.minimum(idle[part], pool[waited], out=self.held[p][waited - 1][part])

    def _run(self, p: int, waited: int, tick: int, length_s: float, low: int, high: int) -> Floats:  # noqa: PLR0917
        """Cost of holding pool `p` in this tick, and of what follows, for the points that matter: [high - low + 1, n]."""
        pool, job = self.market.pools[p], self.job
        overhead_s = max(job.overhead_s - waited * TICK_S, 0.0) if waited < self.waits else 0.0
        rate = pool.usd_per_hour / 3600
        found = np.empty((high - low + 1, len(self.here)))
        if pool.kind == "spot" and not self.here[:, tick, p].any():
            found.fill(_NEVER)
            return found
        need_s = overhead_s + self.steps / pool.steps_per_s
        ends = min(max(int(np.searchsorted(need_s, length_s + 1e-6, side="right")), low), high + 1)
        found[: ends - low] = (need_s[low:ends] * rate)[:, None]
        if length_s < TICK_S:
            found[ends - low :] = _NEVER
        elif ends <= high:
            still = overhead_s > TICK_S + 1e-9
            then = self.held[p][waited if still else self.waits - 1]
            shift = max(TICK_S - overhead_s, 0.0) * pool.steps_per_s / self.unit
            whole = math.floor(shift + 1e-9)
            between = shift - whole
            np.add(then[ends - whole : high + 1 - whole], TICK_S * rate, out=found[ends - low :])
            if between > 1e-9:
                below = max(ends - whole - 1, 0)
                less = then[below : below + high + 1 - ends] + TICK_S * rate
                # Where the next point cannot be done in time this one may: it costs no less than the point before it.
                is_known = found[ends - low :] < _NEVER / 2
                found[ends - low :] = np.where(
                    is_known, found[ends - low :] * (1 - between) + less * between, less
                )
        if low == 0:
            found[0] = 0.0
        if pool.kind == "spot":
            found[:, ~self.here[:, tick, p]] = _NEVER
        return found


def _unit(job: Job, market: Market) -> tuple[float, int]:
    """Steps between two points of the grid, and how many there are."""
    speeds = {pool.steps_per_s for pool in market.pools}
    slowest = min(speeds)
    seconds = job.steps / slowest
    whole = len(speeds) == 1 and all(float(x).is_integer() for x in (job.overhead_s, seconds))
    unit_s = math.gcd(int(TICK_S), int(job.overhead_s), int(seconds)) if whole else 0
    if unit_s < _LEAST_UNIT_S:
        unit_s = _USUAL_UNIT_S
    points = max(1, round(seconds / unit_s))
    return job.steps / points, points

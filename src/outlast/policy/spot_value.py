"""What a job will still cost, if spot goes and comes as a model says: a dynamic program, solved once and looked up afterwards. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outlast.policy.availability import RANGES, chain
from outlast.policy.capacity import TICK_S, Floats, Ints, Job, Pool

Table = NDArray[np.float32]

IDLE, SPOT, OWN = 0, 1, 2
"""What is held: nothing, a spot machine or an on-demand one that makes steps. Those that do not yet come after, by ticks of overhead left."""
_FINE_S, _FINE_UNTIL_S = 60.0, 2400.0
_COARSE = 1.05
"""The grid of slack: every minute where it is short, then in steps of a twentieth. Between two points values are interpolated."""
_NEVER = np.float32(1e9)


@dataclass(frozen=True)
class Prices:
    """A spot pool and the on-demand pool behind it.

    Attributes:
        spot_usd_per_s, own_usd_per_s: while held.
        spot_speed: steps per second on spot, of those on demand.
        elsewhere: 0 to 1, how likely another spot pool is there at once when this one is lost.
    """

    spot_usd_per_s: float
    own_usd_per_s: float
    spot_speed: float
    elsewhere: float = 0.0


@dataclass(frozen=True)
class Values:
    """Expected USD from the beginning of a tick to the job's end.

    Attributes:
        slack_s: the grid, [points].
        usd: by ticks until the deadline, what is held, the chain's state, slack: [ticks + 1, held, 2 * RANGES, points].
        moves: the chain, [2 * RANGES, 2 * RANGES].
        jumps: what of a loss is found again elsewhere at once; a machine that was held is gone then.
    """

    slack_s: Floats
    usd: Table
    moves: Table
    jumps: Table

    def after(self, ticks: int) -> Table:
        """Values expected at the end of a tick, by the state at its beginning, with `ticks` left then: [held, 2 * RANGES, points]."""
        return _after(self.usd[ticks], self.moves, self.jumps)


def prices(spot: Pool, own: Pool, elsewhere: float = 0.0) -> Prices:
    """Prices of a pair of pools."""
    return Prices(
        spot.usd_per_hour / 3600, own.usd_per_hour / 3600, spot.steps_per_s / own.steps_per_s, elsewhere
    )


def solve(model: Floats, job: Job, cost: Prices, own_steps_per_s: float) -> Values:
    """Go backwards from the deadline, tick by tick.

    Args:
        model: hazards of one zone, [2, RANGES].
        job: whole; any job that has less left until the same deadline, or a nearer one, is looked up in the same table.
        cost: per second, and how fast spot is.
        own_steps_per_s: of the on-demand pool.
    """
    ticks = math.ceil(job.deadline_s / TICK_S)
    work_s = job.steps / own_steps_per_s
    longest_s = ticks * TICK_S - (work_s if cost.spot_speed <= 1 else 0.0)
    slack_s = _grid(max(longest_s, job.overhead_s + 2 * TICK_S))
    moves, jumps = _moves(chain(model), cost.elsewhere)
    is_up = (np.arange(2 * RANGES) < RANGES)[:, None]
    waits = _ticks_of(job.overhead_s)
    step = _Step(slack_s, job.overhead_s, cost)
    usd = np.zeros((ticks + 1, 3 + 2 * (waits - 1), 2 * RANGES, len(slack_s)), dtype=np.float32)
    for left in range(1, ticks + 1):
        after = _after(usd[left - 1], moves, jumps)
        work_left_s = left * TICK_S - slack_s
        may_wait = slack_s - TICK_S >= job.overhead_s
        idle = np.where(may_wait, step.shifted(after[IDLE], -TICK_S), _NEVER)
        spot = [
            step.run(after, work_left_s, SPOT, started) for started in range(waits + 1)
        ]  # by ticks already spent on the overhead
        own = [step.run(after, work_left_s, OWN, started) for started in range(waits + 1)]
        free = np.minimum(np.minimum(idle, np.where(is_up, spot[0], _NEVER)), own[0])
        usd[left, IDLE] = free
        usd[left, SPOT] = np.minimum(free, np.where(is_up, spot[waits], _NEVER))
        usd[left, OWN] = np.minimum(free, own[waits])
        for started in range(1, waits):
            usd[left, warming(SPOT, started)] = np.minimum(free, np.where(is_up, spot[started], _NEVER))
            usd[left, warming(OWN, started)] = np.minimum(free, own[started])
        _extend(usd[left], slack_s, int(np.searchsorted(slack_s, left * TICK_S)))
    return Values(slack_s, usd, moves, jumps)


def warming(held: int, started: int) -> int:
    """Index of a machine that has spent `started` ticks on its overhead, and has some left."""
    return held + 2 * started


def _ticks_of(overhead_s: float) -> int:
    return max(1, math.ceil(overhead_s / TICK_S - 1e-9))


@dataclass(frozen=True)
class _Step:
    """One tick with a machine held."""

    slack_s: Floats
    overhead_s: float
    cost: Prices

    def run(self, after: Table, work_left_s: Floats, held: int, started: int) -> Table:
        """Cost of this tick and of what follows; `_NEVER` where the deadline would depend on spot that may go."""
        waits = _ticks_of(self.overhead_s)
        overhead_s = max(self.overhead_s - started * TICK_S, 0.0) if started < waits else 0.0
        speed, rate = (
            (self.cost.spot_speed, self.cost.spot_usd_per_s)
            if held == SPOT
            else (1.0, self.cost.own_usd_per_s)
        )
        works_s = max(TICK_S - overhead_s, 0.0)
        change_s = works_s * speed - TICK_S
        still = overhead_s > TICK_S + 1e-9
        then = self.shifted(after[warming(held, started + 1) if still else held], change_s)
        need_s = overhead_s + np.maximum(work_left_s, 0.0) / speed
        ends = need_s <= TICK_S
        found = np.where(ends, need_s * rate, TICK_S * rate + then).astype(np.float32)
        if held == SPOT:
            found = np.where(ends | (self.slack_s + change_s >= self.overhead_s - 1e-6), found, _NEVER)
        return found

    def shifted(self, values: Table, change_s: float) -> Table:
        """Values where the slack is `change_s` longer."""
        if change_s == 0:
            return values
        low, share = place(self.slack_s, self.slack_s + change_s)
        return values[:, low] * (1 - share) + values[:, low + 1] * share


def place(grid: Floats, where: Floats) -> tuple[Ints, Table]:
    """The grid point below, and how far it is to the next one, 0 to 1; ends are held."""
    inside = np.clip(where, grid[0], grid[-1])
    low = np.clip(np.searchsorted(grid, inside, side="right") - 1, 0, len(grid) - 2)
    return low, ((inside - grid[low]) / (grid[low + 1] - grid[low])).astype(np.float32)


def _grid(longest_s: float) -> Floats:
    points = [*np.arange(0.0, _FINE_UNTIL_S, _FINE_S), _FINE_UNTIL_S]
    while points[-1] < longest_s:
        points.append(points[-1] * _COARSE)
    return np.array(points)


def _extend(usd: Table, slack_s: Floats, done: int) -> None:
    """Go on straight to the first point at which no work is left, from where interpolation starts; beyond it, nothing is asked for."""
    usd[:, :, done:] = 0.0
    if 2 <= done < len(slack_s):
        slope = (usd[:, :, done - 1] - usd[:, :, done - 2]) / np.float32(
            slack_s[done - 1] - slack_s[done - 2]
        )
        usd[:, :, done] = usd[:, :, done - 1] + slope * np.float32(slack_s[done] - slack_s[done - 1])


def _moves(moves: Floats, elsewhere: float) -> tuple[Table, Table]:
    """The chain, and the part of it in which a lost machine is found again elsewhere, young."""
    jumps = np.zeros_like(moves)
    jumps[:RANGES, 0] = moves[:RANGES, RANGES] * elsewhere
    stays = moves.copy()
    stays[:RANGES, RANGES] *= 1 - elsewhere
    return stays.astype(np.float32), jumps.astype(np.float32)


def _after(usd: Table, moves: Table, jumps: Table) -> Table:
    found: Table = np.matmul(moves, usd)
    if jumps.any():
        again = np.matmul(jumps, usd)
        again[SPOT] = again[IDLE]
        again[warming(SPOT, 1) :: 2] = again[IDLE]
        found += again
    return found

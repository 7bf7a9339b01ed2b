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
    """

    spot_usd_per_s: float
    own_usd_per_s: float
    spot_speed: float


@dataclass(frozen=True)
class Values:
    """Expected USD from the beginning of a tick to the job's end.

    Attributes:
        slack_s: the grid, [points].
        usd: by ticks until the deadline, what is held, model, the chain's state, slack: [ticks + 1, held, models, 2 * RANGES, points].
        moves: the chains, [models, 2 * RANGES, 2 * RANGES].
        jumps: what of a loss is found again elsewhere at once; a machine that was held is gone then.
    """

    slack_s: Floats
    usd: Table
    moves: Table
    jumps: Table

    def after(self, ticks: int) -> Table:
        """Values expected at the end of a tick, by the state at its beginning, with `ticks` left then: [held, models, states, points]."""
        return _after(self.usd[ticks], self.moves, self.jumps)


def prices(spot: Pool, own: Pool) -> Prices:
    """Prices of a pair of pools."""
    return Prices(spot.usd_per_hour / 3600, own.usd_per_hour / 3600, spot.steps_per_s / own.steps_per_s)


def solve(models: Floats, job: Job, cost: Prices, own_steps_per_s: float, elsewhere: Floats) -> Values:
    """Go backwards from the deadline, tick by tick.

    Args:
        models: hazards of zones, [models, 2, RANGES].
        job: whole; any job that has less left until the same deadline, or a nearer one, is looked up in the same table.
        cost: per second, and how fast spot is.
        own_steps_per_s: of the on-demand pool.
        elsewhere: [models], 0 to 1: how likely another spot pool is there at once when one is lost.
    """
    ticks = math.ceil(job.deadline_s / TICK_S)
    longest_s = ticks * TICK_S - (job.steps / own_steps_per_s if cost.spot_speed <= 1 else 0.0)
    slack_s = _grid(max(longest_s, job.overhead_s + 2 * TICK_S))
    moves, jumps = _moves(np.array([chain(model) for model in models]), elsewhere)
    step = _Step(slack_s, job.overhead_s, cost)
    waits = step.waits
    usd = np.zeros((ticks + 1, 3 + 2 * (waits - 1), len(models), 2 * RANGES, len(slack_s)), dtype=np.float32)
    is_patient = slack_s - TICK_S >= job.overhead_s
    for left in range(1, ticks + 1):
        after, here = _after(usd[left - 1], moves, jumps), usd[left]
        work_left_s = np.maximum(left * TICK_S - slack_s, 0.0)
        own = [step.run(after, work_left_s, OWN, started) for started in range(waits + 1)]
        spot = [step.run(after[:, :, :RANGES], work_left_s, SPOT, started) for started in range(waits + 1)]
        free = np.minimum(own[0], np.where(is_patient, step.shifted(after[IDLE], -TICK_S), _NEVER))
        free[:, :RANGES] = np.minimum(free[:, :RANGES], spot[0])
        here[:] = free
        for started in range(1, waits + 1):
            index = 0 if started == waits else started
            here[warming(OWN, index)] = np.minimum(free, own[started])
            here[warming(SPOT, index), :, :RANGES] = np.minimum(free[:, :RANGES], spot[started])
        _extend(here, slack_s, int(np.searchsorted(slack_s, left * TICK_S)))
    return Values(slack_s, usd, moves, jumps)


def warming(held: int, started: int) -> int:
    """Index of a machine that has spent `started` ticks on its overhead, and has some left; 0: of one that makes steps."""
    return held + 2 * started


class _Step:
    """One tick with a machine held, by how many ticks it has spent on its overhead; `waits` of them are all."""

    def __init__(self, slack_s: Floats, overhead_s: float, cost: Prices) -> None:
        self.slack_s, self.overhead_s, self.cost = slack_s, overhead_s, cost
        self.waits = max(1, math.ceil(overhead_s / TICK_S - 1e-9))
        self.places: dict[float, tuple[Ints, Table]] = {}

    def run(self, after: Table, work_left_s: Floats, held: int, started: int) -> Table:
        """Cost of this tick and of what follows; `_NEVER` where the deadline would depend on spot that may go."""
        overhead_s = max(self.overhead_s - started * TICK_S, 0.0) if started < self.waits else 0.0
        is_spot = held == SPOT
        speed = self.cost.spot_speed if is_spot else 1.0
        rate = self.cost.spot_usd_per_s if is_spot else self.cost.own_usd_per_s
        change_s = max(TICK_S - overhead_s, 0.0) * speed - TICK_S
        still = overhead_s > TICK_S + 1e-9
        found = self.shifted(after[warming(held, started + 1 if still else 0)], change_s) + np.float32(
            TICK_S * rate
        )
        need_s = overhead_s + work_left_s / speed
        ends = need_s <= TICK_S
        if is_spot:
            found[..., self.slack_s + change_s < self.overhead_s - 1e-6] = _NEVER
        found[..., ends] = (need_s * rate).astype(np.float32)[ends]
        return found

    def shifted(self, values: Table, change_s: float) -> Table:
        """Values where the slack is `change_s` longer."""
        if change_s == 0:
            return values
        if change_s not in self.places:
            self.places[change_s] = place(self.slack_s, self.slack_s + change_s)
        low, share = self.places[change_s]
        return values[..., low] * (1 - share) + values[..., low + 1] * share


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
    usd[..., done:] = 0.0
    if 2 <= done < len(slack_s):
        share = np.float32((slack_s[done] - slack_s[done - 1]) / (slack_s[done - 1] - slack_s[done - 2]))
        usd[..., done] = usd[..., done - 1] * (1 + share) - usd[..., done - 2] * share


def _moves(chains: Floats, elsewhere: Floats) -> tuple[Table, Table]:
    """The chains, and the part of them in which a lost machine is found again elsewhere, young."""
    jumps, stays = np.zeros_like(chains), chains.copy()
    jumps[:, :RANGES, 0] = chains[:, :RANGES, RANGES] * elsewhere[:, None]
    stays[:, :RANGES, RANGES] *= 1 - elsewhere[:, None]
    return stays.astype(np.float32), jumps.astype(np.float32)


def _after(usd: Table, moves: Table, jumps: Table) -> Table:
    found: Table = np.matmul(moves, usd)
    if jumps.any():
        again = np.matmul(jumps, usd)
        again[SPOT] = again[IDLE]
        again[warming(SPOT, 1) :: 2] = again[IDLE]
        found += again
    return found

"""Replays availability through a policy: what many jobs, side by side, would have paid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from outlast.policy.capacity import TICK_S, WAIT, Bools, Floats, Ints, Job, Market, Policy, Situation

_DONE_STEPS = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What came of `n` jobs.

    Attributes:
        policy: its name.
        cost_usd: [n], machines, moved data and probes.
        finish_s: [n], after the beginning; infinite where the job was not done when its window ended.
        starts: [n], of machines.
        idle_s: [n], paid for and not working: the overhead of every start but the first.
        choices: [n, ticks], the pool held in each tick, or `WAIT`.
    """

    policy: str
    cost_usd: Floats
    finish_s: Floats
    starts: Ints
    idle_s: Floats
    choices: Ints


def replay(policy: Policy, job: Job, market: Market, is_available: Bools, probe_s: float = 0.0) -> Outcome:
    """Run `n` jobs through their windows.

    Args:
        policy: asked at the beginning of every tick.
        job: the same for all.
        market: its pools.
        is_available: [n, ticks, pools]; on-demand pools are taken to be there whatever it says.
        probe_s: for how long a machine of each spot pool that is not held is paid for in every tick, to know whether it is there.
    """
    n, ticks = is_available.shape[:2]
    rates, speeds, moves = market.usd_per_s, market.steps_per_s, market.move_usd(job.checkpoint_bytes)
    shown = is_available.copy()
    shown[:, :, [i for i in range(len(market.pools)) if i not in market.spot]] = True
    steps_left, cost = np.full(n, job.steps), np.zeros(n)
    held, data_at = np.full(n, WAIT), np.full(n, WAIT)
    overhead_s, finish_s = np.zeros(n), np.full(n, math.inf)
    starts, idle_s = np.zeros(n, dtype=np.int64), np.zeros(n)
    choices = np.full((n, ticks), WAIT)
    rows, seen = np.arange(n), None
    for tick in range(min(ticks, math.ceil(job.deadline_s / TICK_S))):
        here = shown[:, tick]
        held = np.where((held != WAIT) & here[rows, held], held, WAIT)
        now = Situation(
            job, market, job.deadline_s - tick * TICK_S, steps_left, held, overhead_s, here, data_at
        )
        seen = policy.watch(seen, here)
        chosen = policy.decide(now, seen)
        is_open = steps_left > 0
        chosen = np.where(is_open, chosen, WAIT)
        runs = chosen != WAIT
        _refuse_absent(policy, here, rows, chosen)
        starting = runs & (chosen != held)
        cost += np.where(starting & (data_at != WAIT), moves[data_at, chosen], 0.0)
        for pool in market.spot:
            cost += np.where(is_open & (chosen != pool), probe_s * rates[pool], 0.0)
        overhead_s = np.where(starting, job.overhead_s, np.where(runs, overhead_s, 0.0))
        used_s = np.where(runs, np.minimum(overhead_s + steps_left / speeds[chosen], TICK_S), 0.0)
        cost += used_s * rates[chosen] * runs
        waits_s = np.minimum(overhead_s, used_s)
        idle_s += np.where(starts + starting > 1, waits_s, 0.0)
        starts += starting
        steps_left = steps_left - (used_s - waits_s) * speeds[chosen]
        steps_left[steps_left < _DONE_STEPS] = 0.0
        overhead_s = overhead_s - waits_s
        finish_s = np.where(is_open & (steps_left == 0), tick * TICK_S + used_s, finish_s)
        data_at = np.where(used_s > waits_s, chosen, data_at)
        choices[:, tick] = chosen
        held = np.where(steps_left > 0, chosen, WAIT)
    return Outcome(policy.name, cost, finish_s, starts, idle_s, choices)


def _refuse_absent(policy: Policy, here: Bools, rows: Ints, chosen: Ints) -> None:
    absent = (chosen != WAIT) & ~here[rows, chosen]
    if absent.any():
        msg = f"{policy.name} chose a pool that was not there"
        raise AssertionError(msg)

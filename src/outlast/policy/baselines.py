"""The policies that ours is measured against, in the same interface. Pure; none of them remembers anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from outlast.policy.capacity import (
    TICK_S,
    WAIT,
    Bools,
    Ints,
    Situation,
    cheapest_spot,
    choice_is_safe,
    holds_spot,
)


@dataclass(frozen=True)
class OnDemandOnly:
    """On-demand from the beginning to the end."""

    name: str = "on-demand"

    def watch(self, seen: None, is_available: Bools) -> None:
        """Nothing is learnt."""

    def decide(self, now: Situation, seen: None) -> Ints:  # noqa: ARG002 - the protocol's
        """Always the backstop."""
        return np.full(len(now.held), now.backstop, dtype=np.int64)


@dataclass(frozen=True)
class GreedySpot:
    """Spot whenever it is there, nothing while it is not, on-demand to the end once waiting has become too dangerous.

    "Can't Be Late" (Wu et al., NSDI '24), section 4.1, with the safety net of section 3: a job that is idle while the time left is
    shorter than the work left and two overheads goes to on-demand and stays there. Time is left here as of the end of the tick.
    """

    name: str = "greedy"

    def watch(self, seen: None, is_available: Bools) -> None:
        """Nothing is learnt."""

    def decide(self, now: Situation, seen: None) -> Ints:  # noqa: ARG002 - the protocol's
        """Spot, else wait, else on-demand."""
        is_late = now.slack_s - TICK_S < 2 * now.job.overhead_s
        choices = np.where(is_late & ~holds_spot(now), now.backstop, cheapest_spot(now))
        return _or_on_demand(now, choices)


@dataclass(frozen=True)
class UniformProgress:
    """As much work done at any time as if it were spread evenly until the deadline.

    "Can't Be Late", section 5.2: spot whenever it is there. An idle job that is behind goes to on-demand, and stays on it until spot is
    there and the job is as far as it must be two overheads later (hysteresis). The safety net is that of the section 3.
    """

    name: str = "uniform-progress"

    def watch(self, seen: None, is_available: Bools) -> None:
        """Nothing is learnt."""

    def decide(self, now: Situation, seen: None) -> Ints:  # noqa: ARG002 - the protocol's
        """By how far the job is, against how far it should be."""
        job, backstop = now.job, now.backstop
        passed_s, done = job.deadline_s - now.time_left_s, job.steps - now.steps_left
        rate = job.steps / job.deadline_s
        is_behind = done < passed_s * rate
        is_ahead = done >= (passed_s + 2 * job.overhead_s) * rate
        spot = cheapest_spot(now)
        idle = np.where((spot == WAIT) & is_behind, backstop, spot)
        owning = np.where((spot != WAIT) & is_ahead, spot, backstop)
        is_late = (now.slack_s < 2 * job.overhead_s) & ~holds_spot(now)
        choices = np.where(now.held == backstop, owning, idle)
        return _or_on_demand(now, np.where(is_late, backstop, choices))


def _or_on_demand(now: Situation, choices: Ints) -> Ints:
    """On-demand where a choice could cost the deadline."""
    return np.where(choice_is_safe(now, choices), choices, now.backstop).astype(np.int64)

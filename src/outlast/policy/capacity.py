"""Where a job runs next: its records, the protocol that every policy follows, and the rule by which no deadline is missed. Pure.

Decisions are made for many jobs at once, one row each, so that the simulator replays thousands of windows through the object
that the live controller asks about one. Nothing here looks ahead: a situation holds what a controller knows at that moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from outlast._errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TICK_S = 600.0
"""Between two decisions: as often as the published traces were probed."""
WAIT = -1
"""The choice of no pool at all."""
_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class Pool:
    """A place that capacity comes from, whose machines are there or not, all together.

    Attributes:
        name: as people know it.
        kind: on-demand is there whenever it is asked for.
        usd_per_hour: of all machines that the job takes there.
        steps_per_s: how fast the job runs there.
        region: what moving a checkpoint is charged by.
    """

    name: str
    kind: Literal["spot", "on-demand"]
    usd_per_hour: float
    steps_per_s: float = 1.0
    region: str = ""

    @property
    def usd_per_step(self) -> float:
        """What a step costs while the job makes steps."""
        return self.usd_per_hour / 3600 / self.steps_per_s


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        steps: of the whole job.
        deadline_s: after its beginning.
        overhead_s: from a start, paid for, until steps are made again: provisioning, loading, and what was lost since the last save.
        checkpoint_bytes: what is moved where the job goes on in another region.
    """

    steps: float
    deadline_s: float
    overhead_s: float
    checkpoint_bytes: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0.0), ("deadline_s", 0.0)):
            _check(name, getattr(self, name), least, strictly=True)
        _check("overhead_s", self.overhead_s, 0.0)
        _check("checkpoint_bytes", self.checkpoint_bytes, 0)


@dataclass(frozen=True)
class Market:
    """The pools that a job may choose from, and what moving between their regions costs.

    Attributes:
        pools: machines on which the job does not fit are not among them.
        egress_usd_per_gb: by (from, to) region; 0 where nothing is known of a pair within one region.
    """

    pools: tuple[Pool, ...]
    egress_usd_per_gb: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(pool.kind == "on-demand" for pool in self.pools):
            msg = "there is no on-demand pool; without one no deadline can be kept. Give its price"
            raise ConfigError(msg)
        for pool in self.pools:
            _check(f"usd_per_hour of {pool.name}", pool.usd_per_hour, 0.0, strictly=True)
            _check(f"steps_per_s of {pool.name}", pool.steps_per_s, 0.0, strictly=True)

    @property
    def usd_per_s(self) -> Floats:
        """Of each pool."""
        return np.array([pool.usd_per_hour / 3600 for pool in self.pools])

    @property
    def steps_per_s(self) -> Floats:
        """Of each pool."""
        return np.array([pool.steps_per_s for pool in self.pools])

    @property
    def spot(self) -> list[int]:
        """Indices of the spot pools."""
        return [i for i, pool in enumerate(self.pools) if pool.kind == "spot"]

    def backstop(self, job: Job) -> int:
        """Index of the on-demand pool that finishes what spot does not: the cheapest by the step of those that keep the deadline.

        Where none keeps it, the fastest.
        """
        own = [i for i, pool in enumerate(self.pools) if pool.kind == "on-demand"]
        speed = self.steps_per_s
        in_time = [i for i in own if job.overhead_s + job.steps / speed[i] <= job.deadline_s]
        if not in_time:
            return max(own, key=lambda i: speed[i])
        return min(in_time, key=lambda i: self.pools[i].usd_per_step)

    def move_usd(self, checkpoint_bytes: int) -> Floats:
        """What it costs to start in pool `to` where the newest checkpoint lies with pool `from`: [from, to].

        Raises:
            ConfigError: no price is known for a pair of regions.
        """
        table = np.zeros((len(self.pools), len(self.pools)))
        for i, a in enumerate(self.pools):
            for j, b in enumerate(self.pools):
                if checkpoint_bytes and a.region != b.region:
                    table[i, j] = self._egress(a.region, b.region) * checkpoint_bytes / 1e9
        return table

    def _egress(self, origin: str, to: str) -> float:
        try:
            return self.egress_usd_per_gb[origin, to]
        except KeyError:
            msg = f"no egress price from {origin or 'an unnamed region'} to {to or 'an unnamed region'}; give it, or checkpoint_bytes=0"
            raise ConfigError(msg) from None


@dataclass(frozen=True)
class Situation:
    """What is known at the beginning of a tick, of `n` jobs that began together.

    Attributes:
        job, market: what is to be done, and where it may be.
        time_left_s: until the deadline.
        steps_left: [n].
        held: [n], the index of the pool whose machine is held and still there, or `WAIT`.
        overhead_left_s: [n], until the held machine makes steps.
        is_available: [n, pools]; on-demand is always.
        data_at: [n], the pool with whose machine the newest checkpoint was written, or `WAIT`: nothing to be moved.
    """

    job: Job
    market: Market
    time_left_s: float
    steps_left: Floats
    held: Ints
    overhead_left_s: Floats
    is_available: Bools
    data_at: Ints

    @property
    def backstop(self) -> int:
        """Index of the on-demand pool behind it all."""
        return self.market.backstop(self.job)

    @property
    def slack_s(self) -> Floats:
        """How long nothing at all might be done, if on-demand ran from then on and started at once: [n]."""
        return self.time_left_s - self.steps_left / self.market.pools[self.backstop].steps_per_s

    def overhead_s(self, pool: int) -> Floats:
        """What is left of the overhead if `pool` is held now: the whole one for a start. [n]."""
        return np.where(self.held == pool, self.overhead_left_s, self.job.overhead_s)


class Policy(Protocol):
    """Chooses where jobs run. It keeps nothing itself: what it has seen is handed back to it."""

    @property
    def name(self) -> str:
        """As people know it."""

    def watch(self, seen: Any, is_available: Bools) -> Any:
        """Take in what a tick showed.

        Args:
            seen: what the tick before returned; None at a job's first.
            is_available: [n, pools].
        """

    def decide(self, now: Situation, seen: Any) -> Ints:
        """Choose a pool, or `WAIT`, for the tick that begins: [n]. Every choice is available and safe."""


def is_safe(now: Situation, choice: int) -> Bools:
    """Whether the deadline is kept if `choice` is taken now and all spot is gone from the next tick on: [n].

    It is where after this tick there is still time for an on-demand machine to start and do what is left. A policy that takes only
    such choices, and on-demand where there are none, misses no deadline that on-demand alone would have kept.
    """
    need_s = now.job.overhead_s - _ROUNDING_S
    if choice == WAIT:
        return now.slack_s - TICK_S >= need_s
    pool, backstop = now.market.pools[choice], now.market.pools[now.backstop]
    overhead_s = now.overhead_s(choice)
    works_s = np.maximum(TICK_S - overhead_s, 0.0)
    after_s = now.slack_s - TICK_S + works_s * (pool.steps_per_s / backstop.steps_per_s)
    tick_s = min(TICK_S, now.time_left_s)
    return (after_s >= need_s) | (overhead_s + now.steps_left / pool.steps_per_s <= tick_s + _ROUNDING_S)


def cheapest_spot(now: Situation) -> Ints:
    """The spot pool of the least USD per step that is there, the held one first; `WAIT` where none is: [n]."""
    market, best = now.market, np.full(len(now.held), WAIT, dtype=np.int64)
    for index in sorted(market.spot, key=lambda i: market.pools[i].usd_per_step, reverse=True):
        best = np.where(now.is_available[:, index], index, best)
    return np.where(holds_spot(now), now.held, best)


def holds_spot(now: Situation) -> Bools:
    """Whether a spot machine is held: [n]."""
    return np.isin(now.held, now.market.spot)


def choice_is_safe(now: Situation, choices: Ints) -> Bools:
    """`is_safe` of each job's own choice: [n]."""
    safe = np.zeros(len(choices), dtype=bool)
    for choice in {int(c) for c in choices}:
        safe |= (choices == choice) & is_safe(now, choice)
    return safe


def _check(name: str, value: float, least: float, *, strictly: bool = False) -> None:
    if not math.isfinite(value) or value < least or (strictly and value == least):
        msg = f"{name} is {value!r}; expected a finite number {'above' if strictly else 'of at least'} {least:g}"
        raise ConfigError(msg)

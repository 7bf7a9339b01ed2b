"""Compares policies over windows of traces: single zones each by itself, or all zones of a time together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from outlast._errors import ConfigError
from outlast.policy.availability import candidates
from outlast.policy.baselines import GreedySpot, OnDemandOnly, UniformProgress
from outlast.policy.capacity import TICK_S, Bools, Floats, Ints, Job, Market, Policy, Pool
from outlast.policy.expected_cost import plan
from outlast.policy.prior import known_zones, machine_of, region_of
from outlast.sim.optimum import optimum
from outlast.sim.prices import Price
from outlast.sim.replay import Outcome, replay
from outlast.sim.traces import Piece, evenly_spaced, together

Spread = Literal["zone", "region", "none"]
Progress = Callable[[str], None]

STARTS = 16
"""Evenly spaced starts per zone."""
ON_DEMAND_USD, SPOT_USD = 1.0, 0.3
"""Per hour and machine, where no prices are given."""
OPTIMUM, OURS, OWN = "optimum", "outlast", "on-demand"
POLICIES = (OPTIMUM, OURS, "uniform-progress", "greedy", OWN)


@dataclass(frozen=True)
class Setup:
    """What is replayed.

    Attributes:
        job: what is to be done; its steps are seconds of work.
        nodes: machines that the job takes, all or none.
        spread: where they may be: all in one zone, in one region, or anywhere.
        multi_zone: whether a job may go from one zone to another.
        prices: by zone; None: `ON_DEMAND_USD` and `SPOT_USD` everywhere.
        egress_usd_per_gb: by (from, to) region.
        probe_s: how long a machine is paid for to see whether a pool that is not held has any.
    """

    job: Job
    nodes: int = 1
    spread: Spread = "zone"
    multi_zone: bool = False
    prices: Mapping[str, Price] | None = None
    egress_usd_per_gb: Mapping[tuple[str, str], float] = field(default_factory=dict)
    probe_s: float = 0.0


@dataclass(frozen=True)
class Compared:
    """What came of all windows.

    Attributes:
        outcomes: by policy, windows in the same order.
        optimum_usd: [windows].
        own_usd: [windows], on-demand alone.
        left_out: zones in whose traces no window has room.
        is_available: [windows, ticks], whether any spot pool was there; for pictures.
        own_pool: index of the on-demand pool in `Outcome.choices`.
    """

    outcomes: Mapping[str, Outcome]
    optimum_usd: Floats
    own_usd: Floats
    left_out: tuple[str, ...]
    is_available: Bools
    own_pool: int


@dataclass(frozen=True)
class _Batch:
    """Windows that share a market and what is known beforehand."""

    market: Market
    models: Floats
    is_available: Bools


def compare(pieces: Sequence[Piece], setup: Setup, names: Sequence[str] = POLICIES) -> Compared:
    """Replay evenly spaced windows through policies.

    A zone's own past, and its row in the table of known zones, are kept from our policy.

    Raises:
        ConfigError: no policy could keep the deadline, no window has room in any trace, or a price is missing.
    """
    ticks = math.ceil(setup.job.deadline_s / TICK_S)
    batches, left_out = _joint(pieces, setup, ticks) if setup.multi_zone else _each(pieces, setup, ticks)
    if not batches:
        longest_h = max((len(piece.nodes) for piece in pieces), default=0) * TICK_S / 3600
        msg = (
            f"no window of {ticks * TICK_S / 3600:.1f} h fits into these traces, whose longest piece without a gap has "
            f"{longest_h:.1f} h; give longer traces or a nearer deadline"
        )
        raise ConfigError(msg)
    for batch in batches:
        _check_room(setup.job, batch.market)
    outcomes = {
        name: _joined(
            [
                replay(_policy(name, setup.job, b), setup.job, b.market, b.is_available, setup.probe_s)
                for b in batches
            ]
        )
        for name in names
        if name != OPTIMUM
    }
    solved = np.concatenate([optimum(setup.job, b.market, b.is_available) for b in batches])
    own = np.concatenate([_own_usd(setup.job, b.market, len(b.is_available)) for b in batches])
    in_time = [
        np.where(done.finish_s <= setup.job.deadline_s, done.cost_usd, np.inf) for done in outcomes.values()
    ]
    # What is interpolated may lie above what somebody has paid.
    best = np.minimum.reduce([solved, own, *in_time])
    shown = np.concatenate([b.is_available[:, :, :-1].any(axis=2) for b in batches])
    return Compared(outcomes, best, own, tuple(left_out), shown, len(batches[0].market.pools) - 1)


def _policy(name: str, job: Job, batch: _Batch) -> Policy:
    if name == OURS:
        return plan(job, batch.market, batch.models)
    baselines: dict[str, Policy] = {p.name: p for p in (GreedySpot(), UniformProgress(), OnDemandOnly())}
    return baselines[name]


def _each(pieces: Sequence[Piece], setup: Setup, ticks: int) -> tuple[list[_Batch], list[str]]:
    """Every zone (or every group of them that `spread` makes) by itself; those that differ in nothing else are one batch."""
    groups: dict[tuple[object, ...], list[Bools]] = {}
    described: dict[tuple[object, ...], tuple[Market, Floats]] = {}
    left_out = []
    for zones in _groups(pieces, setup.spread):
        chosen = _windows(together([piece for piece in pieces if piece.zone in zones], zones), ticks)
        if chosen is None:
            left_out.append("+".join(zones))
            continue
        market = _market([zones], setup, named=False)
        known = known_zones(zones)
        key = (market.pools, tuple(k.zone for k in known))
        described[key] = market, candidates([k.stays for k in known])
        groups.setdefault(key, []).append(_is_there(chosen, [zones], zones, setup.nodes))
    return [_Batch(*described[key], np.concatenate(parts)) for key, parts in groups.items()], left_out


def _joint(pieces: Sequence[Piece], setup: Setup, ticks: int) -> tuple[list[_Batch], list[str]]:
    """All zones at the same time."""
    zones = sorted({piece.zone for piece in pieces})
    chosen = _windows(together(pieces, zones), ticks)
    if chosen is None:
        return [], zones
    groups = _groups(pieces, setup.spread)
    models = candidates([k.stays for k in known_zones(zones)])
    return [
        _Batch(_market(groups, setup, named=True), models, _is_there(chosen, groups, zones, setup.nodes))
    ], []


def _groups(pieces: Sequence[Piece], spread: Spread) -> list[list[str]]:
    """Which zones' machines may work together: of one type in any case."""
    zones = sorted({piece.zone for piece in pieces})
    if spread == "zone":
        return [[zone] for zone in zones]

    def place(zone: str) -> tuple[str, str]:
        return machine_of(zone), region_of(zone) if spread == "region" else ""

    return [list(group) for _, group in itertools.groupby(sorted(zones, key=place), key=place)]


def _windows(joint: Sequence[Ints], ticks: int) -> Ints | None:
    """Nodes in `STARTS` windows: [windows, ticks, zones]; None where none has room."""
    chosen = evenly_spaced([len(part) for part in joint], ticks, STARTS)
    return np.array([joint[p][first : first + ticks] for p, first in chosen]) if chosen else None


def _is_there(nodes: Ints, groups: Sequence[Sequence[str]], zones: Sequence[str], needed: int) -> Bools:
    """Whether each group has the machines that the job takes; on-demand comes last: [windows, ticks, pools]."""
    columns = [[zones.index(zone) for zone in group] for group in groups]
    spot = [nodes[:, :, column].sum(axis=2) >= needed for column in columns]
    return np.stack([*spot, np.ones(nodes.shape[:2], dtype=bool)], axis=2)


def _market(groups: Sequence[Sequence[str]], setup: Setup, *, named: bool) -> Market:
    """One spot pool per group, and the on-demand pool that does the work in time for the least."""
    spot, own = [], []
    for zones in groups:
        prices = [_price(zone, setup) for zone in zones]
        region = region_of(zones[0]) if named else ""
        name = "+".join(zones) if named else "spot"
        spot_usd = setup.nodes * float(np.mean([p.spot_usd_per_hour for p in prices]))
        own_usd = setup.nodes * min(p.on_demand_usd_per_hour for p in prices)
        speed = min(p.speed for p in prices)
        spot.append(Pool(name, "spot", spot_usd, speed, region))
        own.append(Pool(OWN, "on-demand", own_usd, speed, region))
    return Market((*spot, own[Market(tuple(own)).backstop(setup.job)]), setup.egress_usd_per_gb)


def _price(zone: str, setup: Setup) -> Price:
    if setup.prices is None:
        return Price(SPOT_USD, ON_DEMAND_USD)
    machine = machine_of(zone)
    region = f"{region_of(zone)}:{machine}" if machine else region_of(zone)
    found = [price for location, price in setup.prices.items() if location in (zone, region)]
    if not found:
        msg = f"the prices have no row whose location is {zone} or {region}; add it, or leave that zone's trace out"
        raise ConfigError(msg)
    return found[0]


def _own_usd(job: Job, market: Market, n: int) -> Floats:
    pool = market.pools[market.backstop(job)]
    return np.full(n, (job.overhead_s + job.steps / pool.steps_per_s) * pool.usd_per_hour / 3600)


def _joined(parts: Sequence[Outcome]) -> Outcome:
    return Outcome(
        parts[0].policy,
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("cost_usd", "finish_s", "starts", "idle_s", "choices")
        ),
    )


def _check_room(job: Job, market: Market) -> None:
    needed_s = job.overhead_s + job.steps / market.pools[market.backstop(job)].steps_per_s
    if needed_s > job.deadline_s:
        msg = (
            f"the deadline of {job.deadline_s / 3600:.2f} h leaves no room: work and one overhead take {needed_s / 3600:.2f} h on "
            "demand. Give a later deadline"
        )
        raise ConfigError(msg)

"""Windows of spot capacity, drawn from what is known of zones, so that a plan needs no file. Pure: a seed says everything.

Source of what is known: `policy/prior.py`. What is drawn changes as often as those zones did, by how long they had been as they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outlast.policy.availability import DOWN, RANGES, UP, Stays, age_range, chain, hazards
from outlast.policy.capacity import TICK_S, Bools, Floats

_WARM_TICKS = 144
"""A day before each window begins, so that ages are those of a zone that has been watched."""
_MOST_PER_TICK = 0.999
_SHRINK_TICKS = 2.0
_PRIOR_ENDS, _PRIOR_TICKS = 0.5, 5.0
"""So that what was never seen may happen: ticks of all zones that each counts as having seen, and what all of them have."""


def draw(models: Floats, windows: int, ticks: int, seed: int) -> Bools:
    """Draw windows of every zone: [models * windows, ticks], a zone's one after the other.

    Args:
        models: hazards, [models, 2, RANGES], per tick.
        windows: of each.
        ticks: of each window.
        seed: the same one draws the same windows.
    """
    random = np.random.default_rng(seed)
    zone = np.repeat(np.arange(len(models)), windows)
    is_up = random.random(len(zone)) < np.array([_share_up(model) for model in models])[zone]
    ages = np.ones(len(zone), dtype=np.int64)
    shown = np.empty((len(zone), ticks), dtype=bool)
    for tick in range(-_WARM_TICKS, ticks):
        ends = random.random(len(zone)) < models[zone, np.where(is_up, UP, DOWN), age_range(ages)]
        is_up = is_up ^ ends
        ages = np.where(ends, 1, ages + 1)
        if tick >= 0:
            shown[:, tick] = is_up
    return shown


def models(zones: Sequence[Stays]) -> Floats:
    """One model per zone, [zones, 2, RANGES], nearly as it was counted: unlike a policy's models, which must not be too sure of one."""
    every = _sum(zones)
    pooled = (every.ends + _PRIOR_ENDS) / (every.ticks + _PRIOR_TICKS)
    return np.array([(zone.ends + _SHRINK_TICKS * pooled) / (zone.ticks + _SHRINK_TICKS) for zone in zones])


def rate_per_hour(zones: Sequence[Stays]) -> float:
    """Interruptions of a machine per hour that it is held, over all zones; `_PRIOR_ENDS` of one where none was seen."""
    every = _sum(zones)
    return float(max(every.ends[UP].sum(), _PRIOR_ENDS) / max(every.ticks[UP].sum(), 1.0) * 3600 / TICK_S)


def with_hazard(models: Floats, interruptions_per_hour: float) -> Floats:
    """The models with a constant hazard while spot is there; what they say of its absence stays."""
    changed = models.copy()
    changed[:, UP] = -np.expm1(-interruptions_per_hour * TICK_S / 3600)
    return np.clip(changed, 0.0, _MOST_PER_TICK)


def scaled(models: Floats, factor: float) -> Floats:
    """The models with the hazard while spot is there `factor` times as high."""
    changed = models.copy()
    changed[:, UP] = 1 - (1 - np.minimum(changed[:, UP], _MOST_PER_TICK)) ** factor
    return np.clip(changed, 0.0, _MOST_PER_TICK)


def grouped(zones: Sequence[Stays], groups: int) -> Floats:
    """A few models that stand for all zones, from those where spot is there least to those where it is there most."""
    ranked = sorted(zones, key=lambda zone: zone.ticks[UP].sum() / zone.ticks.sum())
    parts = [part for part in np.array_split(np.arange(len(ranked)), groups) if len(part)]
    return hazards([_sum([ranked[i] for i in part]) for part in parts])


def _sum(zones: Sequence[Stays]) -> Stays:
    return Stays(
        sum((zone.ends for zone in zones), np.zeros((2, RANGES))),
        sum((zone.ticks for zone in zones), np.zeros((2, RANGES))),
    )


def _share_up(model: Floats) -> float:
    """Share of the time that spot is there in the long run."""
    moves = chain(model)
    system = np.vstack([moves.T - np.eye(len(moves)), np.ones(len(moves))])
    found = np.linalg.lstsq(system, np.r_[np.zeros(len(moves)), 1.0], rcond=None)[0]
    return float(np.clip(found[:RANGES].sum(), 0.0, 1.0))

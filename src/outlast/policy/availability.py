"""How likely spot is to go, or to come back, in the next tick, by how long it has been as it is. Pure.

In measured traces the hazard of both falls with age, from a third in the first ten minutes to a hundredth after a day, and zones differ.
So each known zone is one model: a hazard for each range of ages, up and down. A new zone is a mixture of them, and of what else it may be
like, weighed by how well each explains what has been seen of it so far.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from outlast.policy.capacity import Bools, Floats, Ints

AGE_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)
"""The last tick of every range of ages but the last, which has no end."""
RANGES = len(AGE_EDGES) + 1
UP, DOWN = 0, 1
_SHRINK_TICKS = 60.0
"""How many ticks of all zones together each range of one zone counts as having seen."""
_FACTORS = (0.5, 1.0, 2.0)
"""How much likelier than in all zones together a change may be in a zone that was never seen, in odds."""
_PRIOR_ENDS, _PRIOR_TICKS = 0.5, 5.0
"""What every range has seen before any trace: so that no hazard is 0 or 1."""


@dataclass(frozen=True)
class Stays:
    """What was counted in a zone's trace: [2, RANGES] each, up first.

    Attributes:
        ends: how often the state changed in the tick after.
        ticks: how often it could have.
    """

    ends: Floats
    ticks: Floats


@dataclass(frozen=True)
class Seen:
    """What a policy knows of the pools of `n` jobs.

    Attributes:
        is_up: [n, pools], at the last tick.
        ages: [n, pools], ticks since the last change or since the first look; 1 at first.
        fit: [n, pools, models], log likelihood of all that was seen.
    """

    is_up: Bools
    ages: Ints
    fit: Floats


def age_range(ages: Ints) -> Ints:
    """Index of the range that each age lies in."""
    return np.searchsorted(AGE_EDGES, ages)


def count_stays(series: Iterable[Bools]) -> Stays:
    """Count ends and ticks in pieces of one zone's trace; each piece starts at age 1."""
    ends, ticks = np.zeros((2, RANGES)), np.zeros((2, RANGES))
    for piece in series:
        changes = np.flatnonzero(piece[1:] != piece[:-1]) + 1
        ages = np.arange(len(piece)) - np.repeat([0, *changes], np.diff([0, *changes, len(piece)])) + 1
        state, where = np.where(piece[:-1], UP, DOWN), age_range(ages[:-1])
        np.add.at(ticks, (state, where), 1)
        np.add.at(ends, (state, where), piece[1:] != piece[:-1])
    return Stays(ends, ticks)


def hazards(zones: Sequence[Stays]) -> Floats:
    """Return one model per zone, each drawn a little towards all of them together: [zones, 2, RANGES], per tick."""
    pooled = _pooled(zones)
    return np.array([(zone.ends + _SHRINK_TICKS * pooled) / (zone.ticks + _SHRINK_TICKS) for zone in zones])


def candidates(zones: Sequence[Stays]) -> Floats:
    """Return what a zone that was never seen may be like: [zones + 9, 2, RANGES], per tick.

    Like each of those that were, or like all of them together with the odds of going and of coming back halved, as they are, or
    doubled: there are few known zones, and a new one is seldom quite like any.
    """
    pooled = _pooled(zones)
    odds = pooled / (1 - pooled)
    changed = [odds * np.array([[up], [down]]) for up, down in itertools.product(_FACTORS, repeat=2)]
    return np.concatenate([hazards(zones), [each / (1 + each) for each in changed]])


def _pooled(zones: Sequence[Stays]) -> Floats:
    """All zones together."""
    ends = sum((zone.ends for zone in zones), np.zeros((2, RANGES)))
    ticks = sum((zone.ticks for zone in zones), np.zeros((2, RANGES)))
    return np.asarray((ends + _PRIOR_ENDS) / (ticks + _PRIOR_TICKS))


def watch(seen: Seen | None, is_up: Bools, models: Floats) -> Seen:
    """Take in one more tick of every pool."""
    if seen is None:
        return Seen(is_up, np.ones(is_up.shape, dtype=np.int64), np.zeros((*is_up.shape, len(models))))
    hazard = models[:, np.where(seen.is_up, UP, DOWN), age_range(seen.ages)]
    has_changed = is_up != seen.is_up
    likelihood = np.where(has_changed, hazard, 1 - hazard)
    return Seen(
        is_up, np.where(has_changed, 1, seen.ages + 1), seen.fit + np.moveaxis(np.log(likelihood), 0, -1)
    )


def weights(seen: Seen) -> Floats:
    """How much each model is believed of each pool: [n, pools, models], adding up to 1."""
    scaled = np.exp(seen.fit - seen.fit.max(axis=-1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True))


def chain(model: Floats) -> Floats:
    """The model as a Markov chain over (state, range of ages): [2 * RANGES, 2 * RANGES], up first.

    Within a range the age is not known: one tick leads to the next range with 1 / the range's width.
    """
    table = np.zeros((2 * RANGES, 2 * RANGES))
    widths = np.diff([0, *AGE_EDGES])
    for state, other in ((UP, DOWN), (DOWN, UP)):
        for i in range(RANGES):
            row, hazard = state * RANGES + i, model[state, i]
            moves_on = 0.0 if i == RANGES - 1 else 1 / widths[i]
            table[row, other * RANGES] = hazard
            table[row, row] += (1 - hazard) * (1 - moves_on)
            if moves_on:
                table[row, row + 1] += (1 - hazard) * moves_on
    return table

"""How often to save (pure): the interval that costs least, within what the user is ready to lose.

Two times of a save count, and they do different things. The pause is what training loses by each save; it sets the optimum against what an
interruption costs. The upload, from then until the state is durable, runs beside training: it adds as much to the work that an interruption
costs whatever the interval is, and two of them never overlap, so that no interval is shorter than one.

Sources: J. W. Young, CACM 17(9), 1974; J. T. Daly, Future Generation Computer Systems 22(3), 2006; G. Aupy, Y. Robert, F. Vivien, "Checkpointing
algorithms and fault prediction", JPDC 74(2), 2014 (predicted failures); J. Kadupitiya, V. Jadhao, P. Sharma, HPDC '20, arXiv 1911.05160 (bathtub).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from outlast.policy.hazard import Hazard

LEAST_S = 1.0
"""The shortest interval."""
UNSEEN_S = 0.05
"""What a save costs beside the pause, and nobody measures: the agent's share of the processor, requests to the store. Keeps a state of a
few bytes, which is copied in microseconds, from being saved all the time."""
MOST_RECALL = 0.95
"""A notice that was heard in time so far may not be next time."""
_MOST_EXPONENT = 600.0
_HALVINGS = 40
_GROWS = 1.5

Bound: TypeAlias = Literal["optimum", "max-lost-work", "back-to-back"]
"""What the interval was set by: the least cost; the most that may be lost; the upload, one following the other."""


@dataclass(frozen=True)
class Costs:
    """What is measured of a run's saves.

    Attributes:
        pause_s: how long training stands still at a save.
        upload_s: from then until it is durable.
        step_s: between two safe points: a save waits for the next one.
        recall: share of interruptions that a notice turns into a durable save, so that they cost no work; 0 to 1.
    """

    pause_s: float
    upload_s: float
    step_s: float = 0.0
    recall: float = 0.0


@dataclass(frozen=True)
class Interval:
    """How often to save, and what that means.

    Attributes:
        seconds: of training between two saves.
        bound: what it was set by.
        optimum_s: what it would be if nothing bounded it.
        worst_s: the most work that an interruption without a notice costs.
        overhead: expected time lost to pauses and to interruptions, per second of training.
    """

    seconds: float
    bound: Bound
    optimum_s: float
    worst_s: float
    overhead: float


class _Formula(Protocol):
    def __call__(self, pause_s: float, per_s: float, recall: float = 0.0) -> float: ...


def interval(costs: Costs, hazard: Hazard, max_lost_s: float, *, age_s: float = 0.0) -> Interval:
    """Choose the interval for a machine of an age.

    Where an upload takes so long that the limit cannot be kept, saves run back to back: `worst_s` says what the limit is then. So it does where the
    pause is that long; at least as much time is then trained as training stands still.

    Args:
        costs: as measured.
        hazard: of the machine.
        max_lost_s: the most work that an interruption without a notice may cost.
        age_s: for how long the machine has been up.
    """
    pause_s = costs.pause_s + UNSEEN_S
    durable_s = costs.pause_s + costs.upload_s
    optimum_s = best_s(pause_s, hazard, costs.recall, age_s=age_s, durable_s=durable_s)
    most_s = max_lost_s - costs.upload_s - costs.pause_s - costs.step_s
    least_s = max(costs.upload_s - costs.pause_s, costs.pause_s, LEAST_S)
    seconds = optimum_s
    bound: Bound = "optimum"
    if seconds > most_s:
        seconds, bound = most_s, "max-lost-work"
    if seconds < least_s:
        seconds, bound = least_s, "back-to-back" if max(costs.upload_s, costs.pause_s) > LEAST_S else bound
    return Interval(
        seconds=seconds,
        bound=bound,
        optimum_s=optimum_s,
        worst_s=seconds + costs.pause_s + costs.upload_s + costs.step_s,
        overhead=overhead(seconds, costs, hazard.mean_per_s(age_s, age_s + seconds)),
    )


def best_s(
    pause_s: float,
    hazard: Hazard,
    recall: float = 0.0,
    *,
    age_s: float = 0.0,
    durable_s: float = 0.0,
    formula: _Formula | None = None,
) -> float:
    """The interval of least cost under any hazard: that of its mean rate until the save at its end is durable.

    A rate that changes slowly against the interval is as good as constant during one (Kadupitiya et al., section 5, reach the same by dynamic
    programming). Before a certain end the save comes so early that it is durable then.

    Args:
        pause_s: what training loses by a save.
        hazard: of the machine.
        recall: share of interruptions that a notice turns into a durable save.
        age_s: for how long it has been up.
        durable_s: from the end of the interval until what is saved then is durable.
        formula: for a constant rate; `exact_s` if not given.
    """
    formula = formula or exact_s
    low_s, high_s = 0.0, formula(pause_s, hazard.mean_per_s(age_s, age_s + durable_s + LEAST_S), recall)
    if not 0 < high_s < math.inf:
        return high_s
    while formula(pause_s, hazard.mean_per_s(age_s, age_s + durable_s + high_s), recall) > high_s * _GROWS:
        low_s, high_s = high_s, high_s * _GROWS
    for _ in range(_HALVINGS):
        middle_s = (low_s + high_s) / 2
        if formula(pause_s, hazard.mean_per_s(age_s, age_s + durable_s + middle_s), recall) >= middle_s:
            low_s = middle_s
        else:
            high_s = middle_s
    return low_s


def young_s(pause_s: float, per_s: float, recall: float = 0.0) -> float:
    """Young's first-order optimum, sqrt(2 C M), where only interruptions without a notice count (Aupy, Robert, Vivien, section 4): M / (1 - r).

    Args:
        pause_s: what training loses by a save (C), above 0.
        per_s: interruptions per second (1 / M).
        recall: share of them that a notice turns into a durable save (r).
    """
    rate = _unwarned(per_s, recall)
    return math.sqrt(2 * pause_s / rate) if rate > 0 else math.inf


def daly_s(pause_s: float, per_s: float, recall: float = 0.0) -> float:
    """Daly's higher-order optimum (equation 37), of the same arguments as `young_s`."""
    rate = _unwarned(per_s, recall)
    if rate <= 0:
        return math.inf
    half = pause_s * rate / 2
    if half >= 1:
        return 1 / rate
    return math.sqrt(2 * pause_s / rate) * (1 + math.sqrt(half) / 3 + half / 9) - pause_s


def exact_s(pause_s: float, per_s: float, recall: float = 0.0) -> float:
    """The minimum of `overhead` for a constant rate, of the same arguments as `young_s`: the T for which (1 - T/M) e^(T/M) = e^(-C/M).

    Daly's formula is a series for it (his equation 20 with the derivative set to zero).
    """
    rate = _unwarned(per_s, recall)
    if rate <= 0:
        return math.inf
    if rate == math.inf:
        return 0.0
    goal = -pause_s * rate
    low, high = 0.0, 1.0  # T/M, at which log((1 - x) e^x) falls from 0 to minus infinity
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if math.log1p(-middle) + middle > goal:
            low = middle
        else:
            high = middle
    return high / rate


def overhead(seconds: float, costs: Costs, per_s: float) -> float:
    """Expected time lost per second of training, beside restarts, which cost the same whatever the interval.

    Each save takes (e^(P/M) - 1) M e^(U/M) seconds on average from the one before, where P is interval and pause and U <= P the upload (for
    U = 0: Daly's equation 20; an interruption during an upload falls back to the save before, which turns out as a factor).

    Args:
        seconds: the interval, above 0.
        costs: of a save.
        per_s: interruptions per second.
    """
    rate = _unwarned(per_s, costs.recall)
    period_s = seconds + costs.pause_s
    if rate <= 0:
        return costs.pause_s / seconds
    if rate == math.inf or rate * (period_s + costs.upload_s) > _MOST_EXPONENT:
        return math.inf
    return math.exp(rate * costs.upload_s) * math.expm1(rate * period_s) / (rate * seconds) - 1


def _unwarned(per_s: float, recall: float) -> float:
    return per_s * (1 - min(recall, MOST_RECALL))

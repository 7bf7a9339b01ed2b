"""How often machines are taken away (pure): models of it, and what a pool's history and a run's own say of it.

A machine's hazard is the number of interruptions to expect while it goes from one age to another. With a constant one, that is the estimate's,
age means nothing; where a cloud ends machines after 24 h, or takes young ones first, it does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

PRIOR_S = {True: 6 * 3600.0, None: 12 * 3600.0, False: 30 * 86_400.0}
"""Mean time between interruptions where nothing is known of a pool: of a preemptible machine, of one of which nobody knows, and of one that
is not. Spot machines with a GPU lived for hours in the traces that SkyPilot and "Can't Be Late" (NSDI '24) published."""
FORGETS = 0.75
"""What an interruption, and the time before it, counts after each later one: four of them in the long run. So ten after a tenfold change
the old rate has lost its say, and what chance four interruptions leave to chance costs 2 % of what saving costs: cost is flat around its minimum."""
MOST_SPELLS = 50
"""Of older ones nothing is left."""
SHORTEST_S = 60.0
"""Machines that live shorter than this on average are reckoned with as if they did not: nothing can be trained there."""

End: TypeAlias = Literal["saved", "lost", "none"]
"""How an attempt ended: taken away after a durable save that a notice led to; taken away without one; not by its machine, or not yet."""

_TAKEN = (None, "preempted", "killed")


class Hazard(Protocol):
    """Interruptions to be expected of one machine."""

    def mean_per_s(self, from_s: float, to_s: float) -> float:
        """Interruptions per second, the mean between two ages of the machine; infinite past its certain end."""


@dataclass(frozen=True)
class Constant:
    """The same at every age: lifetimes are exponential."""

    per_s: float

    def mean_per_s(self, from_s: float, to_s: float) -> float:  # noqa: ARG002 - the protocol's
        """See `Hazard`."""
        return self.per_s


@dataclass(frozen=True)
class Capped:
    """Constant until an age at which every machine is taken, such as the 24 h of GCP's preemptible ones."""

    per_s: float
    cap_s: float = 86_400.0

    def mean_per_s(self, from_s: float, to_s: float) -> float:  # noqa: ARG002 - the protocol's
        """See `Hazard`."""
        return self.per_s if to_s < self.cap_s else math.inf


@dataclass(frozen=True)
class Bathtub:
    """Young machines and those near their end are taken most: F(t) = A (1 - e^(-t/t1) + e^((t-b)/t2)).

    Source: Kadupitiya, Jadhao and Sharma, arXiv 1911.05160, equation 1; they fit A of 0.4 to 0.5, t1 of about an hour, t2 of 0.8 h and b of 24 h to
    the lifetimes of GCP's preemptible machines.
    """

    share: float = 0.45
    early_s: float = 3600.0
    late_s: float = 0.8 * 3600.0
    end_s: float = 86_400.0

    def mean_per_s(self, from_s: float, to_s: float) -> float:
        """See `Hazard`."""
        stays, stayed = self.survival(to_s), self.survival(from_s)
        if stays <= 0:
            return math.inf
        return (math.log(stayed) - math.log(stays)) / max(to_s - from_s, 1e-9)

    def survival(self, age_s: float) -> float:
        """Share of machines that reach an age."""
        gone = 1 - math.exp(-age_s / self.early_s) + math.exp((age_s - self.end_s) / self.late_s)
        start = math.exp(-self.end_s / self.late_s)
        return 1 - self.share * (gone - start)


@dataclass(frozen=True)
class Spell:
    """One attempt on one machine: for how long, and how that ended."""

    seconds: float
    end: End


def end_of(outcome: object, *, is_saved: bool) -> End:
    """What an attempt's outcome, as the ledger has it, says of its machine: an error, Ctrl-C or a finished run say nothing.

    Args:
        outcome: None where it wrote none: its machine went without a word.
        is_saved: whether a notice led to a durable save.
    """
    if outcome not in _TAKEN:
        return "none"
    return "saved" if is_saved else "lost"


@dataclass(frozen=True)
class Estimate:
    """What is known of a pool.

    Attributes:
        per_s: interruptions per second.
        recall: share of them that a notice turned into a durable save.
        counted: how many interruptions it was learnt from, the prior apart.
        seconds: of training that they were seen in.
    """

    per_s: float
    recall: float
    counted: int
    seconds: float


def estimate(spells: Sequence[Spell], prior_s: float) -> Estimate:
    """Estimate rate and recall from spells in the order in which they began; the last may go on.

    A gamma prior worth one interruption (shape 1, rate `prior_s`), and for the recall a beta prior of (1, 1), count as what came before
    the first spell, and are forgotten in the same way.

    Args:
        spells: of one pool.
        prior_s: mean time between interruptions where nothing is known.
    """
    events, before_s, since_s = 1.0, prior_s, 0.0
    saved, lost = 1.0, 1.0
    for spell in spells[-MOST_SPELLS:]:
        since_s += spell.seconds
        if spell.end == "none":
            continue
        events = events * FORGETS + 1.0
        before_s, since_s = before_s * FORGETS + since_s, 0.0
        saved = saved * FORGETS + (spell.end == "saved")
        lost = lost * FORGETS + (spell.end == "lost")
    ended = [spell for spell in spells if spell.end != "none"]
    per_s = min(events / max(before_s + since_s, SHORTEST_S), 1 / SHORTEST_S)
    return Estimate(per_s, saved / (saved + lost), len(ended), sum(s.seconds for s in spells))

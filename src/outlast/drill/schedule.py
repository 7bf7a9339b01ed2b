"""When which interruption comes: drawn from a seed and from what the undisturbed run did."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from outlast.drill.records import Line, last_step

if TYPE_CHECKING:
    from outlast.drill.warned import Warned


class Kind(StrEnum):
    """What is done to the run."""

    KILL_TRAINER = "kill-trainer"
    KILL_BOTH = "kill-both"
    KILL_MID_SAVE = "kill-mid-save"
    KILL_IN_TAIL = "kill-in-tail"
    SIGTERM = "sigterm"
    SIGTERM_IN_VALIDATION = "sigterm-in-validation"
    TWO_IN_SUCCESSION = "two-in-succession"
    KILL_WHILE_RESUMING = "kill-while-resuming"
    KILL_AGENT = "kill-agent"
    NOTICE = "notice"
    """Announced, then everything is killed: see `warned.py`."""


_INTO_TAIL_S = 0.03
"""At most so far into a tail: a short one must not be over before the signal arrives."""
IN_TAIL = frozenset({Kind.KILL_IN_TAIL, Kind.SIGTERM_IN_VALIDATION})
ALL = tuple(kind for kind in Kind if kind is not Kind.NOTICE)


@dataclass(frozen=True)
class Planned:
    """One interruption to come: once the counter reaches `at_step`, and for a tail once that step's tail begins."""

    kind: Kind
    at_step: int
    delay_s: float
    """How far into a tail, or between the two of a pair."""
    warned: Warned | None = None
    """How a notice announces it."""


def schedule(
    seed: int, kinds: Sequence[Kind], undisturbed: Sequence[Line], interval_steps: int
) -> list[Planned]:
    """Draw the order and the moments; the same seed and the same undisturbed run give the same schedule.

    `kill-agent` is drawn last: the trainer goes on alone from there to the end of the run. `kill-while-resuming` is
    drawn where there is something to resume.
    A script without tails gets the kinds that need one as plain ones.
    """
    draw = random.Random(seed)  # noqa: S311 - repeats a drill, guards nothing
    steps = last_step(list(undisturbed))
    tails = sorted({line.step for line in undisturbed if line.tail == "begin" and line.step < steps})
    chosen: list[Planned] = []
    for kind in kinds:
        if kind in IN_TAIL and tails:
            at = tails.pop(draw.randrange(len(tails)))
            chosen.append(Planned(kind, at, draw.uniform(0.0, _INTO_TAIL_S)))
    taken = {item.at_step for item in chosen}
    rest = [
        _plain(kind) if kind in IN_TAIL else kind for kind in kinds if kind not in {c.kind for c in chosen}
    ]
    agent = Kind.KILL_AGENT in rest
    rest = [kind for kind in rest if kind is not Kind.KILL_AGENT]
    draw.shuffle(rest)
    # A stretch of the run for each, so that they do not fall on one another; the last half is left to end in.
    stretch = steps / (len(rest) + (1.5 if agent else 0.5))
    for index, kind in enumerate(rest):
        low, high = int(index * stretch + 1), int((index + 1) * stretch)
        if kind is Kind.KILL_WHILE_RESUMING:
            low = min(max(low, 2 * interval_steps), max(steps - 1, 1))
        high = max(high, low + 1)
        at = next((a for a in draw.sample(range(low, high), high - low) if a not in taken), low)
        chosen.append(Planned(kind, at, draw.uniform(0.05, 0.4)))
    if agent:
        low = max(int(len(rest) * stretch), max((item.at_step for item in chosen), default=0)) + 1
        at = min(low + draw.randrange(max((steps - low) // 2, 1)), max(steps - 2, 1))
        chosen.append(Planned(Kind.KILL_AGENT, at, 0.0))
    return sorted(chosen, key=lambda item: (item.kind is Kind.KILL_AGENT, item.at_step, item.kind in IN_TAIL))


def choose(seed: int, count: int) -> list[Kind]:
    """Draw `count` kinds; those beyond the nine are drawn again."""
    draw = random.Random(seed)  # noqa: S311 - repeats a drill, guards nothing
    chosen: list[Kind] = []
    while len(chosen) < count:
        left = [kind for kind in ALL if kind is not Kind.KILL_AGENT or kind not in chosen]
        draw.shuffle(left)
        chosen += left[: count - len(chosen)]
    return chosen


def _plain(kind: Kind) -> Kind:
    return Kind.SIGTERM if kind is Kind.SIGTERM_IN_VALIDATION else Kind.KILL_BOTH

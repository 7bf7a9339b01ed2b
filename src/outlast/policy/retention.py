"""Which checkpoints of a run stay (DESIGN.md rules 6 and 10). Pure: the store's records come in as facts.

A checkpoint is *known* to whoever decides if they restored, wrote or verified it. Only known ones push others out, so that
rows of checkpoints that nobody has read never take the place of one that is good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from outlast._types import Best, Keep, Reason

ALWAYS_NEWEST = 2
"""Known checkpoints that stay whatever a script says: the newest, and one to fall back on (DESIGN.md rule 10)."""


@dataclass(frozen=True)
class Fact:
    """What matters about one checkpoint that has a commit.

    Attributes:
        name: the checkpoint's.
        order: the newest is the highest: (attempt, step, repeat).
        reason: why it was saved.
        pinned: by the script, or by a person.
        finished: it is the end of the run's training.
        known: it was restored, written or verified by whoever decides.
        saved_s: when it was saved, in seconds since the epoch.
        full_s: when the newest save was made that its bytes do not reach back beyond; `saved_s` if it is that one.
        best: the metric that was the best so far with this checkpoint, and its value.
    """

    name: str
    order: tuple[int, int, int]
    reason: Reason
    pinned: bool
    finished: bool
    known: bool
    saved_s: float
    full_s: float
    best: tuple[Best, float] | None


def staying(facts: Iterable[Fact], keep: Keep) -> frozenset[str]:
    """Return the names of the checkpoints that stay.

    These do: the `keep.last` newest, and the newest two; what is pinned; the last emergency checkpoint and the last end of
    the run; the first of each span of `keep.every_s` or `keep.every_steps`; the best by `keep.best`; and the one before the
    last full save, since it holds other copies of the same bytes. Where one that stays for such a reason is not known, the
    known one that would stay in its absence stays too. One that is not known goes only once two known ones are newer.

    Args:
        facts: the checkpoints whose records are whole. A damaged one is no fact: it neither counts nor goes.
        keep: what the script asks for.
    """
    ordered = sorted(facts, key=_order)
    known = [fact for fact in ordered if fact.known]
    stay = {fact.name for fact in ordered if fact.pinned or not _is_superseded(fact, known)}
    stay |= _names(ordered[-keep.last :]) | _names(known[-max(keep.last, ALWAYS_NEWEST) :])
    for group in (ordered, known):
        for pick in (_last_emergency, _last_end, _before_full):
            stay |= _names(pick(group))
        stay |= _names(_firsts(group, keep)) | _names(_best(group, keep.best))
    return frozenset(stay)


def best_of(facts: Iterable[Fact], best: Best) -> str | None:
    """Return the name of the best checkpoint by a metric, the newest of equals; None if none was saved for it."""
    return next((fact.name for fact in _best(sorted(facts, key=_order), best)), None)


def _order(fact: Fact) -> tuple[tuple[int, int, int], str]:
    return fact.order, fact.name


def _names(facts: Iterable[Fact]) -> set[str]:
    return {fact.name for fact in facts}


def _is_superseded(fact: Fact, known: Sequence[Fact]) -> bool:
    return sum(other.order > fact.order for other in known) >= ALWAYS_NEWEST


def _last_emergency(ordered: Sequence[Fact]) -> Sequence[Fact]:
    return [fact for fact in ordered if fact.reason is Reason.EMERGENCY][-1:]


def _last_end(ordered: Sequence[Fact]) -> Sequence[Fact]:
    return [fact for fact in ordered if fact.finished][-1:]


def _before_full(ordered: Sequence[Fact]) -> Sequence[Fact]:
    """The newest checkpoint that shares no byte with the newest one: it was saved before the last full save."""
    if not ordered:
        return []
    return [fact for fact in ordered[:-1] if fact.saved_s < ordered[-1].full_s][-1:]


def _firsts(ordered: Sequence[Fact], keep: Keep) -> list[Fact]:
    firsts: dict[int, Fact] = {}
    span = _span(keep)
    if span is not None:
        for fact in ordered:
            firsts.setdefault(span(fact), fact)
    return list(firsts.values())


def _span(keep: Keep) -> Callable[[Fact], int] | None:
    if keep.every_s is not None:
        every_s = keep.every_s
        return lambda fact: math.floor(fact.saved_s / every_s)
    if keep.every_steps is not None:
        every_steps = keep.every_steps
        return lambda fact: fact.order[1] // every_steps
    return None


def _best(ordered: Sequence[Fact], best: Best | None) -> list[Fact]:
    if best is None:
        return []
    sign = 1.0 if best.mode == "max" else -1.0
    having = [
        (sign * fact.best[1], fact)
        for fact in ordered
        if fact.best is not None and fact.best[0] == best and not math.isnan(fact.best[1])
    ]
    return [max(having, key=lambda pair: (pair[0], _order(pair[1])))[1]] if having else []

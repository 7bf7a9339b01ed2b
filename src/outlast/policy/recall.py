"""What became of each notice, and the share of them that led to a durable save: the planner's recall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["saved", "lost", "cancelled", "open"]
"""saved: a durable save followed. lost: the attempt is over and none did. cancelled: taken back, or outlived by the machine.
open: none of them yet."""

_ENOUGH = ("emergency", "final")
"""A save for one of these reasons holds all there was to save."""


@dataclass(frozen=True)
class Heard:
    """A notice that an attempt heard.

    Attributes:
        attempt: which one.
        source: as people name it.
        announces: a kind of notice; a `hint` is not counted by `recall`.
        utc: when it was heard, as the ledger has it.
        deadline_utc: when the machine goes, as it was last told; None where nobody said.
        outcome: what became of it.
    """

    attempt: int
    source: str
    announces: str
    utc: str
    deadline_utc: str | None
    outcome: Outcome


@dataclass(frozen=True)
class Recall:
    """Of `counted` notices that ended, `saved` led to a durable save."""

    saved: int
    counted: int

    @property
    def share(self) -> float | None:
        """0 to 1; None while there is nothing to learn it from."""
        return self.saved / self.counted if self.counted else None


def heard(events: Iterable[Mapping[str, Any]]) -> list[Heard]:
    """Return the notices of a run's records, in the order in which they were heard.

    A notice led to a save if its attempt made one durable after it: of reason emergency or final, or of a later step. So did one whose
    `notice-outcome` says so: what there was to save was durable already. The newest attempt may still save, until it has ended.

    Args:
        events: records of the ledger, each attempt's in the order in which they were written.
    """
    found: list[_Notice] = []
    standing: dict[tuple[int, str], _Notice] = {}
    newest, ended = 0, set[int]()
    for event in events:
        attempt, kind = event.get("attempt"), event.get("kind")
        if not isinstance(attempt, int):
            continue
        newest = max(newest, attempt)
        key = attempt, str(event.get("source"))
        if kind == "end":
            ended.add(attempt)
        elif kind == "save":
            for notice in standing.values():
                notice.is_saved |= notice.attempt == attempt and _holds(event, notice)
        elif kind == "notice":
            known = standing.get(key)
            # Else its deadline has moved, or a new agent was told of it.
            if known is None or not known.is_same(event):
                standing[key] = _Notice(*key, event)
                found.append(standing[key])
            standing[key].deadline_utc = event.get("deadline_utc")
        elif kind == "notice-cancelled" and key in standing:
            standing.pop(key).is_cancelled = True
        elif kind == "notice-outcome" and key in standing:
            standing[key].is_saved |= event.get("durable") is True
    return [notice.heard(is_over=notice.attempt < newest or notice.attempt in ended) for notice in found]


def recall(notices: Sequence[Heard]) -> Recall:
    """Count the notices that announced an end, were not taken back, and are decided."""
    counted = [n for n in notices if n.announces != "hint" and n.outcome in ("saved", "lost")]
    return Recall(sum(n.outcome == "saved" for n in counted), len(counted))


@dataclass
class _Notice:
    """A notice while the records after it are read."""

    attempt: int
    source: str
    event: Mapping[str, Any]
    deadline_utc: str | None = None
    is_saved: bool = False
    is_cancelled: bool = False

    def is_same(self, event: Mapping[str, Any]) -> bool:
        """Whether a record tells of this notice again; a hint that becomes an end is another one."""
        return all(self.event.get(name) == event.get(name) for name in ("id", "announces"))

    def heard(self, *, is_over: bool) -> Heard:
        outcome: Outcome = "lost" if is_over else "open"
        if self.is_saved:
            outcome = "saved"
        if self.is_cancelled:
            outcome = "cancelled"
        announces, utc = str(self.event.get("announces")), str(self.event.get("utc"))
        return Heard(self.attempt, self.source, announces, utc, self.deadline_utc, outcome)


def _holds(save: Mapping[str, Any], notice: _Notice) -> bool:
    """Whether a save that followed a notice is of what there was to save."""
    step, since = save.get("step"), notice.event.get("step")
    is_later = isinstance(step, int) and isinstance(since, int) and step > since
    return save.get("reason") in _ENOUGH or is_later

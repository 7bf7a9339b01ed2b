"""What is saved when this machine is about to go, and when its trainer leaves (pure).

Rates are those that this attempt measured. Nothing is begun that cannot be finished where that is known; what is begun all the
same and not finished leaves only garbage on the store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from outlast.policy.giving_way import MARGIN
from outlast.policy.memory import amount

Kind: TypeAlias = Literal["signal", "warning", "machine", "hint", "leave"]
"""What a notice announces: see `notice/base.py`."""

What: TypeAlias = Literal["snapshot", "flush", "finish", "keep"]
"""snapshot: take one now and save it. flush: save the newest that is complete. finish: end the save that is being written.
keep: the last durable checkpoint is what stays."""

EXIT_S = 1.0
"""From the order to leave to the end beside what is reckoned: a tick of the agent, the copy of the state, the interpreter's end.
The least margin before a deadline."""


@dataclass(frozen=True)
class Facts:
    """What is known as a notice comes.

    Attributes:
        left_s: seconds until the machine goes; None where nobody says.
        safe_point_s: seconds until the trainer is expected at its next safe point.
        changed_bytes: what a save of a new snapshot has to write.
        complete_bytes: the same of the newest snapshot that is complete and not durable; None where there is none.
        in_flight_bytes: what the save that is being written still has to write; None where none is.
        bytes_per_s: measured; 0 where nothing has been.
    """

    left_s: float | None
    safe_point_s: float
    changed_bytes: int
    complete_bytes: int | None
    in_flight_bytes: int | None
    bytes_per_s: float


@dataclass(frozen=True)
class Choice:
    """What is saved, and a sentence that says why."""

    what: What
    why: str


@dataclass(frozen=True)
class Fit:
    """Whether a save fits into a notice, the seconds that it needs, and a sentence that says so."""

    fits: bool
    needs_s: float
    why: str


def choose(facts: Facts) -> Choice:
    """Choose the newest state that can still become durable; where the time or the rate is unknown, that of now."""
    rate = facts.bytes_per_s
    if facts.left_s is None or rate <= 0:
        unknown = "nobody says when this machine goes" if facts.left_s is None else "no save was measured yet"
        return Choice("snapshot", f"{unknown}: the state of the next safe point is saved")
    snapshot = fits(facts.changed_bytes, rate, facts.left_s, before_s=facts.safe_point_s)
    if snapshot.fits:
        return Choice("snapshot", f"the next safe point is saved: {snapshot.why}")
    older: tuple[tuple[What, int | None, str], ...] = (
        ("flush", facts.complete_bytes, "the newest complete snapshot is saved"),
        ("finish", facts.in_flight_bytes, "the save that is being written is finished"),
    )
    for what, nbytes, told in older:
        if nbytes is not None and (fit := fits(nbytes, rate, facts.left_s)).fits:
            return Choice(what, f"{told}: {fit.why}. A new one does not fit: {snapshot.why}")
    return Choice("keep", f"the last durable checkpoint stays, no save is sure to end: {snapshot.why}")


def fits(nbytes: int, bytes_per_s: float, notice_s: float, *, before_s: float = 0.0) -> Fit:
    """Reckon whether a save fits into a notice; can be asked before launch.

    Args:
        nbytes: what it writes.
        bytes_per_s: to the store.
        notice_s: from notice to power-off.
        before_s: until it can begin.
    """
    writes_s = nbytes / bytes_per_s if bytes_per_s > 0 else math.inf if nbytes else 0.0
    needs_s = before_s + writes_s
    is_enough = needs_s <= notice_s
    begins = f", from {_seconds(before_s)} on," if before_s > 0 else ""
    why = (
        f"{amount(nbytes)} at {amount(round(bytes_per_s))}/s{begins} needs {_seconds(writes_s)}; the notice is {_seconds(notice_s)}: "
        f"{'fits' if is_enough else 'does not fit'}"
    )
    return Fit(is_enough, needs_s, why)


def leave_s(
    kind: Kind,
    deadline_s: float | None,
    *,
    save_s: float | None,
    safe_point_s: float,
    in_flight_s: float = 0.0,
) -> float:
    """When the trainer is told to leave, in the clock of `deadline_s`: minus infinity is at once, infinity never.

    A machine that may be spared trains on until the latest safe leave, once a save was measured. Who sends a signal ends
    this process too, so it leaves after its first save, and so does one that is to leave on a hint; else a hint ends nothing.

    Args:
        kind: of the notice.
        deadline_s: when the machine goes; None where nobody says.
        save_s: what a save takes, as measured; None where none was.
        safe_point_s: until the trainer is expected at a safe point.
        in_flight_s: what a save that is being written still takes.
    """
    if kind == "hint":
        return math.inf
    if kind != "machine" or deadline_s is None or save_s is None:
        return -math.inf
    return latest_leave_s(deadline_s, save_s, safe_point_s, in_flight_s)


def latest_leave_s(deadline_s: float, save_s: float, safe_point_s: float, in_flight_s: float = 0.0) -> float:
    """The latest moment at which the trainer may be told to leave, and what it then saves is durable before the deadline."""
    saves_s = save_s + in_flight_s
    return deadline_s - saves_s - safe_point_s - max((MARGIN - 1.0) * saves_s, EXIT_S)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"

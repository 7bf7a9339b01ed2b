"""Whether an announced end left the time to save, by the drill's own clock and throttle, and what it may have cost."""

from __future__ import annotations

from collections.abc import Sequence

from outlast.drill.director import Happened
from outlast.drill.noticed import Announced
from outlast.drill.records import Line
from outlast.drill.report import Notice
from outlast.drill.warned import DELAYS_S

WRITES_FACTOR = 1.15
REACTS_S = 1.0
"""What a save may take: this much more than its bytes at the throttle, and so long beside."""
LOST_IF_FITS = 1


def reckon(
    happened: Happened,
    announced: Announced,
    lines: Sequence[Line],
    state_bytes: int,
    bytes_per_s: float | None,
) -> Notice:
    """Say what the time was enough for.

    Args:
        happened: the interruption.
        announced: how it was announced.
        lines: all that the run recorded.
        state_bytes: what a save of the whole state writes.
        bytes_per_s: the drill's throttle; None: there is none, and writing is taken to need no time.
    """
    delay_s = DELAYS_S.get(announced.warned.fault, 0.0) if announced.warned.fault else 0.0
    slow = 0.0 if bytes_per_s is None else 1.0 / bytes_per_s
    point_s = _to_safe_point_s(announced, lines[: happened.lines_before])
    warning_s = announced.end - announced.at
    fits = None
    if point_s is not None and announced.warned.source != "none":
        fits = point_s + delay_s + WRITES_FACTOR * state_bytes * slow + REACTS_S <= warning_s
    elif announced.warned.source == "none":
        fits = False
    first = next((w for w in announced.saves if w.reason == "emergency"), None)
    bound = None
    if first is not None:
        since = _recorded(lines[: happened.lines_before], first.saved.step)
        if since is not None:
            bound = max(since - announced.at, 0.0) + WRITES_FACTOR * first.nbytes * slow + REACTS_S + delay_s
    return Notice(
        source=announced.warned.source,
        moment=announced.warned.moment.value,
        fault=announced.warned.fault,
        warning_s=warning_s,
        to_safe_point_s=point_s,
        save_s=None if bytes_per_s is None else state_bytes * slow,
        fits=fits,
        commit_reason=announced.saves[-1].reason if announced.saves else None,
        saved_bytes=sum(w.nbytes for w in announced.saves),
        sent_bytes=announced.passed_bytes,
        durable_bound_s=bound,
        exit_code=announced.exit_code,
    )


def lost_bound(notice: Notice, happened: Happened) -> int:
    """Return how many steps may be lost: one if a save fits, else what is newer than the last durable checkpoint."""
    if notice.fits:
        return LOST_IF_FITS
    newest = happened.saved[-1].step if happened.saved else 0
    return max(happened.at_step - newest, 0)


def unused(notice: Notice) -> str | None:
    """Return what is wrong with a notice that fits and led to no emergency checkpoint."""
    if not notice.fits or notice.commit_reason == "emergency" or notice.exit_code == 0:
        return None
    return (
        f"the save fits into its {notice.warning_s:.1f} s (safe point after {notice.to_safe_point_s:.1f} s, then "
        f"{notice.save_s or 0.0:.1f} s), and no emergency checkpoint became durable; the last one is {notice.commit_reason}"
    )


def _to_safe_point_s(announced: Announced, lines: Sequence[Line]) -> float | None:
    """From the announcement to the end of the next step or tail."""
    after = (line.time for line in lines if line.time >= announced.at and line.tail != "begin")
    found = next(after, None)
    return None if found is None else found - announced.at


def _recorded(lines: Sequence[Line], step: int) -> float | None:
    return next((line.time for line in reversed(lines) if line.tail is None and line.step == step), None)

"""Whether a save that is being written is given up for one that waits (pure)."""

from __future__ import annotations

from outlast._types import Reason

MARGIN = 1.5
"""Seconds allowed per second reckoned: the rate so far is that of a save with low priority on a busy machine."""
LITTLE = 0.1
"""Of the newer one's bytes: a save that has less than this to go is all but done, and giving it up gains next to nothing."""


def gives_way(
    *,
    written: Reason,
    left_bytes: int,
    next_bytes: int,
    bytes_per_s: float,
    deadline_s: float | None,
    steps_newer: int,
) -> bool:
    """Decide for a save with `left_bytes` to go, while a stronger or newer one of `next_bytes` waits.

    The newer state is worth more, so it goes first, but for these cases: the newer one does not fit, and what is written is all that
    can still become durable; it is all but done, and no time is named, or both fit; it is no interval save, and both fit with a
    margin, or it is a step older at the most; somebody asked for it, and no time is named. An interval save, which may be of many
    steps before, is finished before a deadline only where it is all but done and both fit with a margin.

    Args:
        written: why the one that is being written is saved.
        left_bytes: what it may still have to write.
        next_bytes: what the one that waits may have to write.
        bytes_per_s: from now on (`rate`); 0 where nothing is known.
        deadline_s: how long this machine still lives; None where nobody says.
        steps_newer: from its step to that of the one that waits.
    """
    if written is not Reason.INTERVAL and steps_newer <= 1:
        return False
    is_little = left_bytes <= LITTLE * next_bytes
    if deadline_s is None:
        is_asked_for = written in (Reason.USER, Reason.FINAL)
        return not is_asked_for and not (is_little and bytes_per_s > 0)
    if bytes_per_s <= 0:
        return True
    both_s = (left_bytes + next_bytes) / bytes_per_s
    both_surely_fit = MARGIN * both_s <= deadline_s
    if written is Reason.INTERVAL:
        is_finished = is_little and both_surely_fit
    else:
        is_finished = both_surely_fit or (is_little and both_s <= deadline_s)
    return next_bytes / bytes_per_s <= deadline_s and not is_finished


def rate(*, done_bytes: int, took_s: float, usual_bytes_per_s: float, usual_s: float | None) -> float:
    """Bytes per second that a save can be expected to go at, which has written `done_bytes` in `took_s` seconds.

    Its beginning tells little: it has a low priority, and what is on its way does not count yet. Until half of the time that a save
    has taken so far is over, and as long as nothing has arrived, it is believed to be no slower than those.

    Args:
        done_bytes: of it that are durable.
        took_s: since it began.
        usual_bytes_per_s: of the saves before; 0 where there are none.
        usual_s: what they took; None where there are none.
    """
    so_far = done_bytes / max(took_s, 1e-9)
    is_beginning = usual_s is not None and took_s < usual_s / 2
    return max(so_far, usual_bytes_per_s) if is_beginning or not done_bytes else so_far

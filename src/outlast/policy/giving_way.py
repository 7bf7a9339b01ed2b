"""Whether a save that is being written is given up for one that waits (pure)."""

from __future__ import annotations

MARGIN = 1.5
"""Seconds allowed per second reckoned: the rate so far is that of a save with low priority on a busy machine."""


def gives_way(*, left_bytes: int, next_bytes: int, bytes_per_s: float, deadline_s: float | None) -> bool:
    """Decide for an interval save with `left_bytes` to go, while a stronger one of `next_bytes` waits.

    The newer state is worth more, so it goes first, but for two cases: there is time for both; or there is no time for the
    newer one, and the older is all that can still become durable.

    Args:
        left_bytes: what the save that is being written may still have to write.
        next_bytes: what the one that waits may have to write.
        bytes_per_s: the rate so far; 0 while nothing is written.
        deadline_s: how long this machine still lives; None where nobody says.
    """
    if deadline_s is None or bytes_per_s <= 0:
        return True
    both_fit = MARGIN * (left_bytes + next_bytes) / bytes_per_s <= deadline_s
    next_fits = next_bytes / bytes_per_s <= deadline_s
    return next_fits and not both_fit

"""The deadline that a watched file holds, or a command prints: seconds from now, or a time."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import msgspec

from outlast._types import settle

MAX_BYTES = 4096
"""Far more than a deadline needs; what is longer is not read further."""
MAX_AHEAD_S = 30 * 86400.0
"""A deadline more than a month ahead, or behind, is a mistake of units or clocks."""


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    deadline_utc: datetime | None = None
    seconds: float | None = None


def seconds_left(content: bytes, now_utc: datetime) -> float:
    """Read `{"deadline_utc": ...}` or `{"seconds": ...}`: seconds from `now_utc` to it, 0 once it has passed.

    Raises:
        ValueError: it holds neither, or one that cannot be meant; its text completes "the file ...".
    """
    if len(content) > MAX_BYTES:
        msg = f"holds more than {MAX_BYTES} bytes"
        raise ValueError(msg)
    try:
        said = msgspec.json.decode(content, type=_Content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f'holds neither {{"deadline_utc": ...}} nor {{"seconds": ...}} ({error})'
        raise ValueError(msg) from error
    if said.seconds is not None and said.deadline_utc is None:
        return _plausible(said.seconds)
    if said.deadline_utc is not None and said.seconds is None:
        return _plausible(until(said.deadline_utc, now_utc))
    msg = 'holds not exactly one of "deadline_utc" and "seconds"'
    raise ValueError(msg)


def seconds_left_or_time(content: bytes, now_utc: datetime) -> float:
    """Read what `seconds_left` does, or a bare time such as 2026-01-31T12:00:00Z (UTC where it names no zone).

    Raises:
        ValueError: as `seconds_left`.
    """
    try:
        at = datetime.fromisoformat(content[:MAX_BYTES].decode("ascii").strip())
    except ValueError:
        return seconds_left(content, now_utc)
    return _plausible(until(at, now_utc))


def until(at: datetime, now_utc: datetime) -> float:
    """Seconds from `now_utc` to `at`, which is UTC where it names no zone."""
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now_utc).total_seconds()


def _plausible(left_s: float) -> float:
    if not math.isfinite(left_s) or abs(left_s) > MAX_AHEAD_S:
        msg = f"names a deadline {left_s:.0f} s from now"
        raise ValueError(msg)
    return max(left_s, 0.0)


settle(_Content)

"""When a run that saves nothing must be talked about (pure)."""

from __future__ import annotations

from dataclasses import dataclass

NO_SAFE_POINT_S = 600.0
NO_SAFE_POINT_BATCHES = 100
NOT_DURABLE_INTERVALS = 3


@dataclass(frozen=True)
class Sight:
    """What the agent sees of a trainer; times are seconds."""

    since_safe_point_s: float
    batches_since_safe_point: int
    since_durable_s: float
    interval_s: float | None
    """None where saves are counted in steps."""
    steps_since_durable: int
    interval_steps: int | None
    store_error: str | None
    ended: bool


@dataclass(frozen=True)
class Alarm:
    """A warning: `cause` is a stable word, `message` is for people."""

    cause: str
    message: str


def alarms(sight: Sight) -> list[Alarm]:
    """Warnings that hold now."""
    if sight.ended:
        return []
    stuck = (
        sight.since_safe_point_s >= NO_SAFE_POINT_S
        and sight.batches_since_safe_point >= NO_SAFE_POINT_BATCHES
    )
    found = []
    if stuck:
        message = (
            f"no safe point for {_duration(sight.since_safe_point_s)} and {sight.batches_since_safe_point} batches, so "
            "nothing can be saved: no optimizer that was handed to outlast.Run has stepped. Hand in the optimizer "
            "that steps (outlast.Run(..., optimizer=...)), or call run.safe_point() after each update"
        )
        found.append(Alarm("no-safe-point", message))
    if _nothing_durable(sight):
        if sight.store_error is not None:
            why = f"the store fails: {sight.store_error}"
        elif stuck:
            why = "no safe point is reached"
        else:
            why = "no safe point came, or a save takes longer than the interval"
        message = (
            f"nothing has become durable for {_duration(sight.since_durable_s)} (three save intervals): {why}"
        )
        found.append(Alarm("nothing-durable", message))
    return found


def _nothing_durable(sight: Sight) -> bool:
    if sight.interval_s is not None:
        return sight.since_durable_s >= NOT_DURABLE_INTERVALS * max(sight.interval_s, 1.0)
    steps = sight.interval_steps or 1
    return (
        sight.steps_since_durable >= NOT_DURABLE_INTERVALS * steps
        and sight.since_durable_s >= NO_SAFE_POINT_S
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"

"""How often a run saves, and why: the ledger's last record of it, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DAY_S, _HOUR_S, _MINUTE_S = 86_400.0, 3600.0, 60.0


def interval_said(found: Mapping[str, Any]) -> str:
    """Say the interval of a record of kind `interval` with the numbers that it was decided from."""
    if found.get("bound") == "fixed":
        steps = found.get("steps")
        return f"every {steps} steps, as given" if steps else f"every {duration(found['seconds'])}, as given"
    why = {
        "optimum": "which costs least",
        "max-lost-work": f"so that no more than {duration(found['max_lost_s'])} are lost; {duration(found['optimum_s'])} would cost least",
        "back-to-back": f"as often as uploads allow; {duration(found['optimum_s'])} would cost least",
    }[found["bound"]]
    return (
        f"every {duration(found['seconds'])}, {why}. A save stops training for {duration(found['pause_s'])} and is durable after "
        f"{duration(found['upload_s'])}; an interruption every {duration(found['mean_s'])} is expected ({found['interruptions']} in "
        f"{duration(found['seen_s'])} in pool {found['pool']}), {found['recall']:.0%} of them with a notice that saves. At most "
        f"{duration(found['worst_s'])} of work are at risk, {found['overhead']:.2%} of the time is expected to be lost"
    )


def duration(seconds: float) -> str:
    """A time as a person reads it, such as `77 s` or `5.2 h`; to a tenth, that a reader can reckon with it."""
    for least_s, unit_s, unit in (
        (2 * _DAY_S, _DAY_S, "days"),
        (2 * _HOUR_S, _HOUR_S, "h"),
        (10 * _MINUTE_S, _MINUTE_S, "min"),
    ):
        if seconds >= least_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"

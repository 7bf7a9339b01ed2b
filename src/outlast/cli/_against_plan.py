"""`outlast status --plan`: what `outlast plan --json` expected of a run, against what its ledger says."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outlast._errors import ConfigError
from outlast._types import Json
from outlast.cli._interval import duration
from outlast.policy.plan_error import Planned, Realised, is_inside, plan_error

_OTHERS = ("egress", "storage", "requests", "engineering")
"""Terms that are in the plan's cost, and in no ledger."""
_AGAIN = "write it again with: outlast plan ... --json > FILE"
_CENT_USD = 0.01
_MOST_CHARACTERS = 60


def read_plan(path: Path) -> Planned:
    """Read what is compared, and check every field of it.

    Raises:
        ConfigError: the file cannot be read, is no JSON, or a field is missing or holds what it may not; names the field.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        msg = f"--plan: {path} cannot be read: {error.strerror}. Give the file that `outlast plan --json` was written to."
        raise ConfigError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"--plan: {path} holds no JSON ({error}); expected what `outlast plan --json` prints: {_AGAIN}"
        raise ConfigError(msg) from error
    if not isinstance(found, dict):
        raise _wrong(path, "the whole", found, "an object")
    cost = found.get("cost_usd")
    if not isinstance(cost, dict):
        raise _wrong(path, "cost_usd", cost, "an object")
    low, mean, high = (_number(path, f"cost_usd.{name}", cost.get(name)) for name in ("p5", "mean", "p95"))
    if low > high:
        raise _wrong(path, "cost_usd.p5", low, f"no more than cost_usd.p95, {high!r}")
    others = math.fsum(_term(path, found, name, "USD") for name in _OTHERS)
    machines = _term(path, found, "machines", "USD")
    if abs(machines + others - mean) > _CENT_USD:
        expected = f"{machines + others!r}, the sum of machines, {', '.join(_OTHERS)} in terms"
        raise _wrong(path, "cost_usd.mean", mean, expected)
    return Planned(
        machines,
        low - others,
        high - others,
        _term(path, found, "interruptions", ""),
        _term(path, found, "lost work", "h"),
        _term(path, found, "save overhead", "h"),
    )


def against_plan(
    planned: Planned, cost: Mapping[str, Any], interruptions: int | None, *, is_finished: bool
) -> dict[str, Json]:
    """Compare, for `--json`.

    Args:
        planned: what was expected.
        cost: what `_bills.cost` says.
        interruptions: that happened; None where that is not known.
        is_finished: whether the run has.
    """
    is_whole = not cost["attempts_not_counted"]
    realised = Realised(
        is_finished,
        cost["paid_usd"] if is_whole and cost["priced_s"] == cost["seconds"] else None,
        interruptions,
        cost["lost_s"] / 3600 if is_whole and not cost["attempts_with_unknown_loss"] else None,
        cost["saving_s"] / 3600 if is_whole and not cost["attempts_with_unknown_saves"] else None,
    )
    return {
        "finished": is_finished,
        "machines_p5_usd": planned.low_usd,
        "machines_p95_usd": planned.high_usd,
        "inside": is_inside(planned, realised),
        "compared": [asdict(each) for each in plan_error(planned, realised)],
    }


def against_plan_said(found: Mapping[str, Any]) -> str:
    """The same in words, a line each."""
    lines = [_line(each, is_finished=found["finished"]) for each in found["compared"]]
    interval = f"90 % interval of {found['machines_p5_usd']:.2f} to {found['machines_p95_usd']:.2f} USD"
    lines[0] += {
        True: f", inside the {interval}",
        False: f", outside the {interval}",
        None: f" ({interval})",
    }[found["inside"]]
    return "\n".join(lines)


def _line(each: Mapping[str, Any], *, is_finished: bool) -> str:
    name = "cost of the machines" if each["name"] == "machines" else each["name"]
    said = f"{name}: {_amount(each['expected'], each['unit'])} expected"
    if each["realised"] is None:
        return f"{said}; what it was is not known of the whole run"
    said += f", {_amount(each['realised'], each['unit'])} {'realised' if is_finished else 'so far'}"
    if each["error"] is None:
        return said
    share, way = each["error_share"], "high" if each["error"] > 0 else "low"
    off = _amount(abs(each["error"]), each["unit"]) if share is None else f"{abs(share):.0%}"
    return f"{said}: as planned" if not each["error"] or off == "0%" else f"{said}: {off} too {way}"


def _amount(value: float, unit: str) -> str:
    if unit == "h":
        return duration(value * 3600)
    return f"{value:.2f} {unit}" if unit else f"{value:.1f}".removesuffix(".0")


def _term(path: Path, found: Mapping[str, Any], name: str, unit: str) -> float:
    """One of `terms`, by its name."""
    terms = found.get("terms")
    if not isinstance(terms, list):
        raise _wrong(path, "terms", terms, "a list")
    named: Sequence[Mapping[str, Any]] = [
        term for term in terms if isinstance(term, dict) and term.get("name") == name
    ]
    if len(named) != 1:
        raise _wrong(path, f"the number of terms named {name}", len(named), "1")
    if named[0].get("unit") != unit:
        raise _wrong(path, f"terms: the unit of {name}", named[0].get("unit"), repr(unit))
    return _number(path, f"terms: the value of {name}", named[0].get("value"))


def _number(path: Path, field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise _wrong(path, field, value, "a finite number of at least 0")
    return float(value)


def _wrong(path: Path, field: str, value: object, expected: str) -> ConfigError:
    is_what = "is missing" if value is None else f"is {repr(value)[:_MOST_CHARACTERS]}"
    return ConfigError(f"--plan: {path}: {field} {is_what}; expected {expected}. Please {_AGAIN}")

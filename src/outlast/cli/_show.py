"""How commands show things: tables that read well at 80 columns and without a terminal, and strict JSON."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from outlast._types import Json

_AGES = ((86_400 * 2, 86_400, "days"), (3_600 * 2, 3_600, "h"), (60 * 2, 60, "min"), (0, 1, "s"))
"""From how many seconds on an age is said in which unit: below two of a unit, the next smaller one says more."""
_KIB = 1024


def console() -> Console:
    """Standard output; 80 columns where it is no terminal."""
    return Console(highlight=False, markup=False, emoji=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table. The first column names the row and is never cut; those named in `right` hold numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column == columns[0],
        )
    return made


def text(value: object, style: str = "") -> Text:
    """A cell. What comes from a store may hold anything: characters that steer a terminal are shown as `?`."""
    return Text("".join(c if c.isprintable() or c == "\n" else "?" for c in str(value)), style=style)


def age_s(utc: str) -> float | None:
    """Seconds since a time as the ledger writes it; None if it is none."""
    try:
        then = datetime.fromisoformat(utc)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max((datetime.now(UTC) - then).total_seconds(), 0.0)


def ago(utc: str) -> str:
    """A time as a person reads it, e.g. `12 min ago`."""
    seconds = age_s(utc)
    return "at an unknown time" if seconds is None else since(seconds)


def since(seconds: float) -> str:
    """An age as a person reads it, e.g. `12 min ago`."""
    unit_s, name = next((unit_s, name) for least_s, unit_s, name in _AGES if seconds >= least_s)
    return f"{seconds / unit_s:.0f} {name} ago"


def clock(utc: str) -> str:
    """A time in UTC to the minute, e.g. `2026-01-31 23:59`."""
    try:
        return f"{datetime.fromisoformat(utc).astimezone(UTC):%Y-%m-%d %H:%M}"
    except ValueError:
        return "unknown"


def size(nbytes: int) -> str:
    """Bytes as a person reads them, e.g. `1.8 GiB`."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < _KIB or unit == "TiB":
            break
        value /= _KIB
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def print_json(value: Json) -> None:
    """Print strict JSON; a float that JSON does not know becomes a string, such as `"nan"`."""
    print(json.dumps(_strict(value), indent=2, allow_nan=False))


def _strict(value: Any) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value

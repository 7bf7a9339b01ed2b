"""Price lists: `prices.csv` (what machines cost) and egress prices, as in the folder of traces."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlast._errors import ConfigError

PRICE_COLUMNS = ("location", "spot_usd_per_hour", "on_demand_usd_per_hour")
SPEED_COLUMN = "speed"
"""Which may be missing, or empty: then it is 1."""
EGRESS_COLUMNS = ("from_region", "to_region", "price_usd_per_gb")


@dataclass(frozen=True)
class Price:
    """Of one machine.

    Attributes:
        spot_usd_per_hour: on spot.
        on_demand_usd_per_hour: on demand.
        speed: how much of the work is done there in an hour, of what the machine that the work is counted by does.
    """

    spot_usd_per_hour: float
    on_demand_usd_per_hour: float
    speed: float = 1.0


def read_prices(path: Path) -> dict[str, Price]:
    """Read what machines cost and how fast they are, by region or zone; where there are several types, a location names its own: zone:type.

    Raises:
        ConfigError: a column or a price is missing, or a location is there twice; names the line.
    """
    found: dict[str, Price] = {}
    for number, row in _rows(path, PRICE_COLUMNS):
        location = row["location"]
        if location in found:
            msg = f"{path}, line {number}: location {location} is there twice; expected one row each, machine types told apart as zone:type"
            raise ConfigError(msg)
        spot, own = (_number(path, number, row, name, "USD", above_zero=True) for name in PRICE_COLUMNS[1:])
        has_speed = bool(row.get(SPEED_COLUMN))
        speed = _number(path, number, row, SPEED_COLUMN, "a speed", above_zero=True) if has_speed else 1.0
        found[location] = Price(spot, own, speed)
    return found


def read_egress(path: Path) -> dict[tuple[str, str], float]:
    """Read what moving data costs, USD per GB by (from, to) region.

    Raises:
        ConfigError: a column or a price is missing; names the line.
    """
    found: dict[tuple[str, str], float] = {}
    for number, row in _rows(path, EGRESS_COLUMNS):
        pair = row["from_region"], row["to_region"]
        if pair in found:
            msg = f"{path}, line {number}: the way from {pair[0]} to {pair[1]} is there twice; expected one row each"
            raise ConfigError(msg)
        found[pair] = _number(path, number, row, EGRESS_COLUMNS[2], "USD")
    return found


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                msg = f"{path}, line 1: no column {', '.join(missing)}; expected at least {','.join(columns)}"
                raise ConfigError(msg)
            for row in reader:
                yield (
                    reader.line_num,
                    {name: value.strip() if isinstance(value, str) else value for name, value in row.items()},
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path} cannot be read: {error}; expected a CSV file"
        raise ConfigError(msg) from None


def _number(
    path: Path, number: int, row: dict[str, str], name: str, what: str, *, above_zero: bool = False
) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        least = "above" if above_zero else "of at least"
        msg = f"{path}, line {number}: {name} is {row[name]!r}; expected {what} {least} 0"
        raise ConfigError(msg)
    return value

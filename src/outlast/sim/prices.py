"""Price lists: `prices.csv` (what machines cost) and egress prices, as in the folder of traces."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlast._errors import ConfigError

PRICE_COLUMNS = ("location", "spot_usd_per_hour", "on_demand_usd_per_hour")
EGRESS_COLUMNS = ("from_region", "to_region", "price_usd_per_gb")


@dataclass(frozen=True)
class Price:
    """Of one machine, USD per hour."""

    spot_usd_per_hour: float
    on_demand_usd_per_hour: float


def read_prices(path: Path) -> dict[str, Price]:
    """Read what machines cost, by region or zone.

    Raises:
        ConfigError: a column or a price is missing, or a location is there twice; names the line.
    """
    found: dict[str, Price] = {}
    for number, row in _rows(path, PRICE_COLUMNS):
        location = row["location"]
        if location in found:
            msg = f"{path}, line {number}: location {location} is there twice; expected one machine type per file"
            raise ConfigError(msg)
        found[location] = Price(
            *(_usd(path, number, row, name, above_zero=True) for name in PRICE_COLUMNS[1:])
        )
    return found


def read_egress(path: Path) -> dict[tuple[str, str], float]:
    """Read what moving data costs, USD per GB by (from, to) region.

    Raises:
        ConfigError: a column or a price is missing; names the line.
    """
    rows = _rows(path, EGRESS_COLUMNS)
    return {
        (row["from_region"], row["to_region"]): _usd(path, number, row, EGRESS_COLUMNS[2])
        for number, row in rows
    }


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                msg = f"{path}, line 1: no column {', '.join(missing)}; expected at least {','.join(columns)}"
                raise ConfigError(msg)
            yield from ((reader.line_num, row) for row in reader)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}; expected a CSV file"
        raise ConfigError(msg) from None


def _usd(path: Path, number: int, row: dict[str, str], name: str, *, above_zero: bool = False) -> float:
    try:
        usd = float(row[name])
    except (TypeError, ValueError):
        usd = math.nan
    if not math.isfinite(usd) or usd < 0 or (above_zero and usd == 0):
        msg = f"{path}, line {number}: {name} is {row[name]!r}; expected USD {'above' if above_zero else 'of at least'} 0"
        raise ConfigError(msg)
    return usd

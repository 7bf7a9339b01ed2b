"""Availability traces: CSV files `time_utc,zone,nodes_available`, gzipped or not, as series of ticks."""

from __future__ import annotations

import csv
import gzip
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from outlast._errors import ConfigError
from outlast.policy.capacity import TICK_S, Ints

_MOST_DIGITS = 9
COLUMNS = ["time_utc", "zone", "nodes_available"]
GAP_S = 1800.0
"""Where nothing was seen for longer than this, a trace is split: what was there meanwhile is not known."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a zone's trace without a gap.

    Attributes:
        zone: its name.
        start_s: UTC, of the first tick.
        nodes: machines that could be had at the beginning of each tick.
    """

    zone: str
    start_s: float
    nodes: Ints


@dataclass(frozen=True)
class _Rows:
    """A zone's rows, as they stand in a file."""

    times_s: list[float]
    nodes: list[int]


def read_traces(paths: Sequence[Path], gap_s: float = GAP_S) -> list[Piece]:
    """Read files, resample every zone to ticks, and split it where there is a gap.

    A tick shows what was seen last at or before its beginning.

    Args:
        paths: of the files; a zone's rows are all in one of them.
        gap_s: from how long without a row on.

    Raises:
        ConfigError: a file is empty, or a line is not what it should be; names file and line.
    """
    pieces: list[Piece] = []
    zones: dict[str, Path] = {}
    for path in paths:
        for zone, rows in _read(path).items():
            if zone in zones:
                msg = f"{path}: zone {zone} is in {zones[zone]} as well; expected each zone in one file"
                raise ConfigError(msg)
            zones[zone] = path
            pieces += _pieces(zone, rows, gap_s)
    return pieces


def _pieces(zone: str, rows: _Rows, gap_s: float) -> Iterable[Piece]:
    times, nodes = np.array(rows.times_s), np.array(rows.nodes)
    cuts = [0, *(np.flatnonzero(np.diff(times) > gap_s) + 1), len(times)]
    for first, end in itertools.pairwise(cuts):
        seen = times[first:end]
        ticks = seen[0] + TICK_S * np.arange(int((seen[-1] - seen[0]) // TICK_S) + 1)
        yield Piece(zone, float(seen[0]), nodes[first:end][np.searchsorted(seen, ticks, side="right") - 1])


def _read(path: Path) -> dict[str, _Rows]:
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            return _parse(path, csv.reader(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path} cannot be read: {error}; expected a CSV file {','.join(COLUMNS)}, gzipped if its name ends in .gz"
        raise ConfigError(msg) from None


def _parse(path: Path, lines: Iterable[list[str]]) -> dict[str, _Rows]:
    zones: dict[str, _Rows] = {}
    number = 0
    for number, row in enumerate(lines, 1):
        if number == 1:
            if row != COLUMNS:
                msg = f"{path}, line 1: found {','.join(row)!r}; expected {','.join(COLUMNS)!r}"
                raise ConfigError(msg)
            continue
        if len(row) != len(COLUMNS):
            msg = f"{path}, line {number}: found {len(row)} columns; expected {len(COLUMNS)}: {','.join(COLUMNS)}"
            raise ConfigError(msg)
        time_s, zone, nodes = _time_s(path, number, row[0]), row[1].strip(), _nodes(path, number, row[2])
        if not zone:
            msg = f"{path}, line {number}: zone is empty; expected its name"
            raise ConfigError(msg)
        rows = zones.setdefault(zone, _Rows([], []))
        if rows.times_s and time_s <= rows.times_s[-1]:
            what = "is there twice" if time_s == rows.times_s[-1] else "comes after a later one"
            msg = f"{path}, line {number}: time_utc {row[0]} of zone {zone} {what}; expected each zone's times to rise"
            raise ConfigError(msg)
        rows.times_s.append(time_s)
        rows.nodes.append(nodes)
    if number < 2:
        msg = f"{path} is empty; expected a line {','.join(COLUMNS)} and at least one more"
        raise ConfigError(msg)
    return zones


def _time_s(path: Path, number: int, found: str) -> float:
    try:
        time = datetime.fromisoformat(found)
    except ValueError:
        msg = f"{path}, line {number}: time_utc is {found!r}; expected a time like 2026-01-31T12:00:00Z"
        raise ConfigError(msg) from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _nodes(path: Path, number: int, found: str) -> int:
    if not found.isascii() or not found.isdigit() or len(found) > _MOST_DIGITS:
        msg = (
            f"{path}, line {number}: nodes_available is {found[:40]!r}; expected a whole number of at least 0"
        )
        raise ConfigError(msg)
    return int(found)


def together(pieces: Sequence[Piece], zones: Sequence[str]) -> list[Ints]:
    """The stretches in which all of `zones` were seen, each [ticks, zones]; every tick shows what was seen last in each."""
    spans = [(-np.inf, np.inf)]
    for zone in zones:
        own = [
            (piece.start_s, piece.start_s + TICK_S * len(piece.nodes))
            for piece in pieces
            if piece.zone == zone
        ]
        both = [(max(a, c), min(b, d)) for a, b in spans for c, d in own]
        spans = [(start_s, end_s) for start_s, end_s in both if end_s - start_s >= TICK_S]
    return [
        np.stack([_part(pieces, zone, start_s, int((end_s - start_s) // TICK_S)) for zone in zones], axis=1)
        for start_s, end_s in spans
    ]


def _part(pieces: Sequence[Piece], zone: str, start_s: float, ticks: int) -> Ints:
    """A zone's ticks from a time on at which it was seen."""
    piece = max((p for p in pieces if p.zone == zone and p.start_s <= start_s), key=lambda p: p.start_s)
    first = int((start_s - piece.start_s) // TICK_S)
    return piece.nodes[first : first + ticks]


def evenly_spaced(lengths: Sequence[int], ticks: int, count: int) -> list[tuple[int, int]]:
    """Choose up to `count` windows of `ticks` within pieces of `lengths`: (piece, first tick), evenly spaced over all there are."""
    places = [(piece, first) for piece, length in enumerate(lengths) for first in range(length - ticks + 1)]
    if not places:
        return []
    chosen = np.unique(np.linspace(0, len(places) - 1, count).astype(int))
    return [places[i] for i in chosen]

"""Traces made up from published statistics, so that everything works without any file."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from outlast._errors import ConfigError
from outlast.policy.availability import DOWN, UP, age_range, hazards
from outlast.policy.capacity import TICK_S, Ints
from outlast.policy.prior import known_zones
from outlast.sim.traces import COLUMNS, Piece

Kind = Literal["steady", "flaky", "scarce"]
KINDS: dict[str, str] = {"steady": "us-west-2b", "flaky": "us-east-1c", "scarce": "us-east-1a"}
"""How a zone behaves: as the measured zone whose hazards, by age, it is drawn from. There 91, 47 and 17 % of the time."""
JOINTLY = 0.92
"""Of a zone's losses, the share that takes all its machines at once: of joint interruptions as published, what falls within 3 minutes."""
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def generate(kinds: Mapping[str, Kind], *, days: float, nodes: int, seed: int) -> list[Piece]:
    """Draw one trace per zone.

    Args:
        kinds: by zone.
        days: how long.
        nodes: that can be had where a zone has any; after a loss that is not of all, at least one fewer until the next change.
        seed: the same one draws the same traces, zone by zone.

    Raises:
        ConfigError: a kind that is none, or no time or no node at all.
    """
    for zone, kind in kinds.items():
        if kind not in KINDS:
            msg = f"zone {zone} is to be {kind!r}; expected one of {', '.join(KINDS)}"
            raise ConfigError(msg)
    if days <= 0 or nodes < 1:
        msg = f"days is {days} and nodes is {nodes}; expected more than 0 days and at least 1 node"
        raise ConfigError(msg)
    ticks = max(1, round(days * 86_400 / TICK_S))
    every = np.random.SeedSequence(seed).spawn(len(kinds))
    return [
        Piece(zone, _BEGIN.timestamp(), _zone(KINDS[kind], ticks, nodes, np.random.default_rng(own)))
        for (zone, kind), own in zip(sorted(kinds.items()), every, strict=True)
    ]


def write(path: Path, pieces: Sequence[Piece]) -> None:
    """Write traces in the form that is read, gzipped where the name ends in .gz."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for piece in pieces:
        for tick, count in enumerate(piece.nodes):
            time = datetime.fromtimestamp(piece.start_s + tick * TICK_S, UTC)
            lines.writerow([time.strftime("%Y-%m-%dT%H:%M:%SZ"), piece.zone, int(count)])
    plain = text.getvalue().encode()
    path.write_bytes(gzip.compress(plain, mtime=0) if path.suffix == ".gz" else plain)


def _zone(like: str, ticks: int, nodes: int, rng: np.random.Generator) -> Ints:
    """Nodes at the beginning of each tick."""
    known = [zone for zone in known_zones([]) if zone.provider == "aws"]
    model = hazards([zone.stays for zone in known])[[zone.zone for zone in known].index(like)]
    is_up, age, there = bool(rng.random() < 0.5), 1, nodes
    found = np.zeros(ticks, dtype=np.int64)
    for tick in range(ticks):
        found[tick] = there if is_up else 0
        if rng.random() >= model[UP if is_up else DOWN, int(age_range(np.array(age)))]:
            age += 1
            continue
        if is_up and there > 1 and rng.random() >= JOINTLY:
            there -= int(rng.integers(1, there))
            continue
        is_up, age, there = not is_up, 1, nodes
    return found

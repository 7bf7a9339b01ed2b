"""What lies on a drill's local store: read from names, file times and plain JSON, by none of Outlast's readers."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

_CHECKPOINT = re.compile(r"(\d{5,})-([0-9a-z]+)-(\d{12,})(?:\+(\d+))?")
_SEGMENT = re.compile(r"(\d{12,})(?:\+(\d+))?-\d{5}-\d+\.bin")


@dataclass(frozen=True, order=True)
class Saved:
    """One checkpoint that has a commit. Ordered: the newest is the highest (attempt, step, repeat)."""

    attempt: int
    step: int
    repeat: int
    nonce: str
    committed: float
    """When its commit appeared, seconds since the epoch."""


def commits(store: Path) -> list[Saved]:
    """Return the checkpoints that have a commit, oldest first. The run may delete old ones meanwhile."""
    found = []
    for path in _commits(store):
        if (match := _CHECKPOINT.fullmatch(path.parent.name)) is not None:
            attempt, nonce, step, repeat = match.groups()
            with contextlib.suppress(FileNotFoundError):
                found.append(Saved(int(attempt), int(step), int(repeat or 0), nonce, path.stat().st_mtime))
    return sorted(found)


def unfinished(store: Path) -> list[Path]:
    """Return the segments that were written for a checkpoint which has no commit: a save was cut there."""
    whole = {(saved.attempt, saved.nonce, saved.step, saved.repeat) for saved in commits(store)}
    found = []
    for path in store.rglob("segments/*/*.bin"):
        attempt, _, nonce = path.parent.name.partition("-")
        if (match := _SEGMENT.fullmatch(path.name)) is not None:
            step, repeat = match.groups()
            if (int(attempt), nonce, int(step), int(repeat or 0)) not in whole:
                found.append(path)
    return sorted(found)


def trainers(store: Path) -> dict[int, int]:
    """Return attempt -> pid of its trainer, as claimed."""
    found = {}
    for path in store.rglob("attempts/*.json"):
        try:
            record = json.loads(path.read_bytes())
        except ValueError:
            continue  # a claim that was cut
        found[int(record["attempt"])] = int(record["trainer"]["pid"])
    return found


def guarantees(store: Path) -> dict[int, str]:
    """Return attempt -> the guarantee that its resume stated in the run's events."""
    found = {}
    for path in sorted(store.rglob("events/*/*.jsonl")):
        for text in path.read_bytes().splitlines():
            try:
                event = json.loads(text)
            except ValueError:
                continue
            if event.get("kind") == "resume":
                found[int(event["attempt"])] = str(event["guarantee"])
    return found


def _commits(store: Path) -> list[Path]:
    while True:
        with contextlib.suppress(FileNotFoundError):  # a folder that was deleted while it was listed
            return list(store.rglob("checkpoints/*/commit.json"))

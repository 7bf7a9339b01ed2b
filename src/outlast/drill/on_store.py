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
    """When its commit appeared under its name, seconds since the epoch."""


def commits(store: Path) -> list[Saved]:
    """Return the checkpoints that have a commit, oldest first. The run may delete old ones meanwhile."""
    found = []
    for path in _listed(store, "checkpoints/*/commit.json"):
        if (match := _CHECKPOINT.fullmatch(path.parent.name)) is not None:
            attempt, nonce, step, repeat = match.groups()
            with contextlib.suppress(FileNotFoundError):
                found.append(Saved(int(attempt), int(step), int(repeat or 0), nonce, path.stat().st_ctime))
    return sorted(found)


@dataclass(frozen=True)
class Written:
    """What a checkpoint that has a commit was written for, and the bytes of the segments that it put."""

    saved: Saved
    reason: str
    nbytes: int


def written(store: Path) -> list[Written]:
    """Return the checkpoints that have a commit, oldest first, each with what was written for it."""
    sizes: dict[tuple[int, str, int, int], int] = {}
    for path in _listed(store, "segments/*/*.bin"):
        if (key := _segment_of(path)) is not None:
            with contextlib.suppress(FileNotFoundError):
                sizes[key] = sizes.get(key, 0) + path.stat().st_size
    found = []
    for path in _listed(store, "checkpoints/*/commit.json"):
        if (match := _CHECKPOINT.fullmatch(path.parent.name)) is not None:
            attempt, nonce, step, repeat = match.groups()
            with contextlib.suppress(FileNotFoundError):
                saved = Saved(int(attempt), int(step), int(repeat or 0), nonce, path.stat().st_ctime)
                nbytes = sizes.get((saved.attempt, saved.nonce, saved.step, saved.repeat), 0)
                found.append(Written(saved, str(json.loads(path.read_bytes())["reason"]), nbytes))
    return sorted(found, key=lambda item: item.saved)


def unfinished(store: Path) -> list[Path]:
    """Return the segments that were written for a checkpoint which has no commit: a save was cut there."""
    whole = {(saved.attempt, saved.nonce, saved.step, saved.repeat) for saved in commits(store)}
    return sorted(
        path
        for path in _listed(store, "segments/*/*.bin")
        if (key := _segment_of(path)) is not None and key not in whole
    )


def trainers(store: Path) -> dict[int, int]:
    """Return attempt -> pid of its trainer, as claimed."""
    found = {}
    for path in _listed(store, "attempts/*.json"):
        try:
            record = json.loads(path.read_bytes())
        except ValueError:
            continue  # a claim that was cut
        found[int(record["attempt"])] = int(record["trainer"]["pid"])
    return found


def guarantees(store: Path) -> dict[int, str]:
    """Return attempt -> the guarantee that its resume stated in the run's events."""
    found = {}
    for path in sorted(_listed(store, "events/*/*.jsonl")):
        for text in path.read_bytes().splitlines():
            try:
                event = json.loads(text)
            except ValueError:
                continue
            if event.get("kind") == "resume":
                found[int(event["attempt"])] = str(event["guarantee"])
    return found


def metrics(store: Path) -> list[tuple[int, str]]:
    """Return what a reader is to see of `run.log`: (step, values as JSON) in order, each step's of the newest attempt only.

    Within an attempt, the order of the parts, and in a part that of its lines.
    """
    newest: dict[int, int] = {}
    found: list[tuple[int, int, str]] = []
    for path in sorted(_listed(store, "events/*/*.jsonl"), key=lambda path: (path.parent.name, path.name)):
        for text in path.read_bytes().splitlines():
            event = json.loads(text)
            if event.get("kind") == "metrics":
                attempt, step = int(event["attempt"]), int(event["step"])
                newest[step] = max(newest.get(step, 0), attempt)
                found.append((attempt, step, json.dumps(event["values"], sort_keys=True)))
    return [(step, values) for attempt, step, values in found if newest[step] == attempt]


def printed(store: Path) -> dict[int, str]:
    """Return attempt -> what the store holds of what its script printed: of each block the newest version."""
    blocks: dict[tuple[str, str], Path] = {}
    for path in sorted(_listed(store, "output/*/*.jsonl")):
        blocks[path.parent.name, path.name.partition("-")[0]] = path
    found: dict[int, str] = {}
    for (folder, _), path in sorted(blocks.items()):
        said = "".join(str(json.loads(text).get("text", "")) for text in path.read_bytes().splitlines())
        attempt = int(folder.partition("-")[0])
        found[attempt] = found.get(attempt, "") + said
    return found


def _segment_of(path: Path) -> tuple[int, str, int, int] | None:
    """Return which checkpoint a segment was written for: attempt, nonce, step, repeat."""
    attempt, _, nonce = path.parent.name.partition("-")
    match = _SEGMENT.fullmatch(path.name)
    return None if match is None else (int(attempt), nonce, int(match.group(1)), int(match.group(2) or 0))


def _listed(store: Path, pattern: str) -> list[Path]:
    """Return what lies on the store by this pattern. The run may delete folders while they are listed."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return list(store.rglob(pattern))

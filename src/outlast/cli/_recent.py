"""What a run's events say of late: few parts are read, however long the run is.

An attempt puts a part every 25 s, 3,500 a day. Its first ones say what it resumed from, its last ones whether it lives,
what it saved and how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from outlast._types import Json
from outlast.checkpoint.events import PART_READS, list_parts, read_each
from outlast.checkpoint.manifest import parse_checkpoint_name
from outlast.store.base import Store

ATTEMPTS_READ = 3
"""Newest attempts whose events are read."""
HEAD_PARTS = 2
"""First parts of an attempt: what it resumed from is put at once, in a part of its own."""
TAIL_PARTS = 8
"""Last parts of an attempt: notice, last save and end lie within seconds of each other, each in a part of its own."""
ENDINGS_READ = 50
"""Newest attempts of whose first and last parts is told what they cost, and what became of notices: a week of one interruption every 3 hours."""
ENDING_PARTS = 16
"""Last parts of an attempt that hold the notice it ended by: 2 minutes' warning are 5 signs of life, a decision, and two saves."""
LOOK_BACK_PARTS = 64
"""Most parts of the newest attempt that are read to find its last save and metrics: half an hour of training."""

_OF_HEAD = frozenset({"attempt", "resume", "interval"})
_OF_CHECKPOINT = frozenset({"metrics"})
_OF_ENDING = frozenset({"resume", "notice", "notice-cancelled", "notice-outcome", "save", "end", "alive"})
_SOUGHT = frozenset({"save", "metrics"})

Events = list[dict[str, Json]]


def recent_events(
    store: Store, attempts: Sequence[int], reaching: Iterable[str], report: Callable[[str], None]
) -> Events:
    """Return records of the newest attempts, in the order in which they were written; of older ones, those of their beginnings and ends.

    Args:
        store: the run's store.
        attempts: the numbers that were claimed, in order.
        reaching: keys of the parts that reach to the newest checkpoint: its metrics are in them.
        report: is told a line about each part that is damaged.
    """
    named = set(reaching)
    recent, known = attempts[-ATTEMPTS_READ:], attempts[-ENDINGS_READ:]
    parts = [part for part in list_parts(store) if part.attempt in known or part.key in named]
    tails: dict[str, Events] = {}
    heads: set[str] = set()
    endings: set[str] = set()
    for (attempt, *_), group in groupby(parts, lambda part: (part.attempt, part.nonce, part.rank)):
        keys = [part.key for part in group if part.attempt in known]
        endings.update(keys[-ENDING_PARTS:])
        heads.update(keys[:HEAD_PARTS])
        if attempt in recent:
            most = LOOK_BACK_PARTS if attempt in attempts[-1:] else TAIL_PARTS
            tails |= _look_back(store, keys[-most:], report)
    others = [part.key for part in parts if part.key in heads | named | endings and part.key not in tails]
    for key, events in read_each(store, others, report):
        kinds = frozenset[str]().union(
            *(
                of
                for of, keys in ((_OF_HEAD, heads), (_OF_CHECKPOINT, named), (_OF_ENDING, endings))
                if key in keys
            )
        )
        tails[key] = [event for event in events if event.get("kind") in kinds]
    return [event for part in parts for event in tails.get(part.key, ())]


def saves_of(
    store: Store,
    names: Iterable[str | None],
    events: Sequence[dict[str, Json]],
    report: Callable[[str], None],
) -> Events:
    """Return the records of the saves of these checkpoints that are not among `events`, of the attempts whose ends are read.

    Where saves are rare, the last parts of an attempt do not reach back to the one that the next attempt went on from. At most
    `LOOK_BACK_PARTS` of each are read, those of one rank.
    """
    read = {event.get("checkpoint") for event in events if event.get("kind") == "save"}
    wanted = {
        (found.attempt, found.nonce): name
        for name in names
        if name is not None and name not in read and (found := parse_checkpoint_name(name)) is not None
    }
    if not wanted:
        return []
    parts = list_parts(store)
    known = sorted({part.attempt for part in parts})[-ENDINGS_READ:]
    saves: Events = []
    for (attempt, nonce), name in wanted.items():
        its = [part for part in parts if attempt in known and (part.attempt, part.nonce) == (attempt, nonce)]
        keys = [part.key for part in its if part.rank == its[0].rank][-LOOK_BACK_PARTS:-ENDING_PARTS]
        while keys:
            keys, batch = keys[:-PART_READS], keys[-PART_READS:]
            records = [event for _, found in read_each(store, batch, report) for event in found]
            its_save = [
                event for event in records if event.get("kind") == "save" and event.get("checkpoint") == name
            ]
            if its_save:
                saves += its_save
                break
    return saves


def _look_back(store: Store, keys: Sequence[str], report: Callable[[str], None]) -> dict[str, Events]:
    """Read parts of one rank, newest first, until its last save and its last metrics are among them."""
    read: dict[str, Events] = {}
    size = TAIL_PARTS
    while len(read) < len(keys) and not _kinds(read) >= _SOUGHT:
        stop = len(keys) - len(read)
        read |= read_each(store, keys[max(stop - size, 0) : stop], report)
        size = PART_READS
    return read


def _kinds(read: dict[str, Events]) -> set[str]:
    return {str(event.get("kind")) for events in read.values() for event in events}

"""What saves took before this attempt measured any: what the run's earlier attempts wrote down of theirs.

A machine that has just started would otherwise not know, when it is told that it goes, whether there is time to train on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping

from outlast._errors import StoreError
from outlast._types import Json
from outlast.checkpoint.events import list_parts, read_each
from outlast.store.base import Store

PARTS_READ = 8
"""The newest parts of earlier attempts: each save puts one, and so does every half minute."""


def learn(store: Store, attempt: int, rank: int, tell: Callable[[list[tuple[float, int]]], None]) -> None:
    """Read it in a thread of its own, and tell of it. Nobody waits for it: without it, the first save here is what is learnt from."""

    def read() -> None:
        with contextlib.suppress(StoreError):
            tell(last_saves(store, attempt, rank))

    if attempt > 1:
        threading.Thread(target=read, name="outlast-precedent", daemon=True).start()


def last_saves(store: Store, before: int, rank: int) -> list[tuple[float, int]]:
    """Return (seconds, bytes written) of the last saves of one rank in the attempts before `before`, oldest first.

    Raises:
        StoreError: the store cannot be read.
    """
    keys = [part.key for part in list_parts(store) if part.attempt < before and part.rank == rank]
    found = read_each(store, keys[-PARTS_READ:])
    return saves_in(event for _, events in found for event in events)


def saves_in(events: Iterable[Mapping[str, Json]]) -> list[tuple[float, int]]:
    """Return (seconds, bytes written) of the saves that wrote something, in the order of `events`."""
    found = []
    for event in events:
        wrote, took_s = event.get("bytes_written"), event.get("seconds")
        if event.get("kind") != "save" or not isinstance(wrote, int) or not isinstance(took_s, (int, float)):
            continue
        if wrote > 0 and took_s > 0:
            found.append((float(took_s), wrote))
    return found

"""Signs of life that an attempt leaves on the store: its events parts, which come at least every 30 s."""

from __future__ import annotations

import contextlib
from itertools import islice

import msgspec

from outlast._types import Json
from outlast.checkpoint.manifest import ProcessId, events_folder
from outlast.store.base import Store

RANK = 0
"""Whose parts are looked at."""


def newest_parts(store: Store, attempt: int, nonce: str | None) -> tuple[str, ...]:
    """Key of the newest part, () if there is none; where the nonce is not known, of each claim of this number."""
    if nonce is not None:
        prefix = f"{events_folder(attempt, nonce, RANK)}/"
        keys = [info.key for info in store.list(prefix)]
    else:
        start, end = f"events/{attempt:05d}-", f"-{RANK:05d}"
        keys = [
            info.key
            for info in store.list("events/")
            if info.key.startswith(start) and info.key.rpartition("/")[0].endswith(end)
        ]
    newest: dict[str, str] = {}
    for key in sorted(keys):
        newest[key.rpartition("/")[0]] = key
    return tuple(newest.values())


def agents_now(store: Store, parts: tuple[str, ...]) -> list[ProcessId]:
    """The agents that last wrote: not the claimant's, where that one was killed alone.

    Args:
        store: of the run.
        parts: the newest ones. Those before each are looked through as well, since a part that a save put names no agent.
    """
    found: list[ProcessId] = []
    for part in parts:
        folder = part.rpartition("/")[0]
        earlier = sorted(info.key for info in store.list(f"{folder}/") if info.key <= part)
        named = (agent for key in reversed(earlier) if (agent := _agent_in(store, key)) is not None)
        found.extend(islice(named, 1))
    return found


def have_ended(store: Store, parts: tuple[str, ...]) -> bool:
    """Whether each of them says that its attempt is over."""
    ended = [any(event.get("kind") == "end" for event in _events(store, part)) for part in parts]
    return bool(ended) and all(ended)


def _agent_in(store: Store, part: str) -> ProcessId | None:
    for event in reversed(_events(store, part)):
        if event.get("kind") == "alive":
            with contextlib.suppress(msgspec.ValidationError):
                return msgspec.convert(event.get("agent"), ProcessId)
    return None


def _events(store: Store, part: str) -> list[dict[str, Json]]:
    try:
        return [msgspec.json.decode(line, type=dict[str, Json]) for line in store.get(part).splitlines()]
    except msgspec.MsgspecError:
        return []  # a damaged part says nothing; the process table and the next part will

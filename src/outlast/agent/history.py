"""What earlier attempts teach about the next interruption: those of this run by its ledger, those of others by what is kept of the pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from outlast._types import Json
from outlast.checkpoint import catalog
from outlast.checkpoint.events import read_each
from outlast.checkpoint.manifest import AttemptRecord, events_folder
from outlast.checkpoint.pools import put_spell, read_spells
from outlast.policy.hazard import Spell, end_of
from outlast.policy.interval import Costs
from outlast.policy.recall import heard
from outlast.store.base import Store

ATTEMPTS_READ = 12
"""Newest earlier attempts whose ends are read: of older interruptions little is left in the estimate."""
PARTS_READ = 8
"""Last parts of each: its end, its last save and notice, and signs of life."""


@dataclass(frozen=True)
class History:
    """What is known at the start of an attempt.

    Attributes:
        spells: of this machine's pool, in the order in which they began.
        trained_s: how long the run's earlier attempts lived: those that were read, and before them what the first of those knew.
        costs: of the saves of the last attempt that measured any.
    """

    spells: tuple[Spell, ...] = ()
    trained_s: float = 0.0
    costs: Costs | None = None


def learn(store: Store, record: AttemptRecord, rank: int, root: Store | None) -> History:
    """Read it, and keep for others what an attempt whose machine went without a word could not put itself.

    Raises:
        StoreError: the store cannot be read, or the root not written.
    """
    pool = record.capacity.pool if record.capacity else None
    spells: list[tuple[str, Spell]] = []
    trained_s, costs = 0.0, None
    numbers = [number for number in catalog.attempts(store) if number < record.attempt]
    for number in numbers[-ATTEMPTS_READ:]:
        attempt = catalog.read_attempt(store, number)
        if attempt is None:
            continue
        events = _last_events(store, attempt, rank)
        spell = spell_of(attempt, events)
        trained_s = max(trained_s, _known_before_s(events)) + spell.seconds
        costs = _costs(events) or costs
        if attempt.capacity is not None and attempt.capacity.pool == pool:
            spells.append((attempt.claimed_utc, spell))
        has_ended = any(event.get("kind") == "end" for event in events)
        if root is not None and number == numbers[-1] and not has_ended:
            put_spell(root, attempt, spell)
    if root is not None and pool is not None:
        others = read_spells(root, pool, but=record.run_id)
        spells += [(other.began_utc, Spell(other.seconds, other.end)) for other in others]
    return History(tuple(spell for _, spell in sorted(spells, key=lambda each: each[0])), trained_s, costs)


def spell_of(attempt: AttemptRecord, events: Sequence[Mapping[str, Json]]) -> Spell:
    """How long an attempt lived, and how it ended, by its last records."""
    last_utc = max((str(event["utc"]) for event in events if "utc" in event), default=attempt.claimed_utc)
    seconds = (datetime.fromisoformat(last_utc) - datetime.fromisoformat(attempt.claimed_utc)).total_seconds()
    outcome = next((event.get("outcome") for event in reversed(events) if event.get("kind") == "end"), None)
    is_saved = any(notice.outcome == "saved" and notice.announces != "hint" for notice in heard(events))
    return Spell(max(seconds, 0.0), end_of(outcome, is_saved=is_saved))


def _last_events(store: Store, attempt: AttemptRecord, rank: int) -> list[dict[str, Json]]:
    keys = [info.key for info in store.list(events_folder(attempt.attempt, attempt.nonce, rank))]
    return [event for _, events in read_each(store, keys[-PARTS_READ:]) for event in events]


def _known_before_s(events: Sequence[Mapping[str, Json]]) -> float:
    """How long the run had lived before this attempt, as it wrote down itself."""
    found = [event.get("trained_before_s") for event in events if event.get("kind") == "interval"]
    return max((float(s) for s in found if isinstance(s, int | float) and 0 <= s < math.inf), default=0.0)


def _costs(events: Sequence[Mapping[str, Json]]) -> Costs | None:
    """What saves cost, as the last record of an interval has it."""
    for event in reversed(events):
        match event:
            case {
                "kind": "interval",
                "pause_s": float(pause_s),
                "upload_s": float(upload_s),
                "step_s": float(step_s),
            }:
                return Costs(pause_s, upload_s, step_s)
    return None

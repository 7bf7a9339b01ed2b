"""What earlier attempts mean for whoever deletes: whether one may still write, and which checkpoints a resume passed over."""

from __future__ import annotations

from datetime import UTC, datetime

from outlast._errors import ObjectMissing
from outlast._process import process_alive
from outlast.agent.signs import agents_now, have_ended, newest_parts
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import AttemptRecord, CheckpointId, parse_checkpoint_name
from outlast.store.base import Store

MAY_WRITE_S = 900.0
"""How long a superseded attempt that cannot be seen from here may still put what it had begun (DESIGN.md rule 10). It looks
whether it is superseded right before each commit, so this is for a machine that stood still between the two."""


def may_still_write(store: Store, newest: AttemptRecord) -> int:
    """Return the newest attempt before this one that may still write; 0: none.

    One that is over is known by its last events part, or by its processes where these can be seen.
    """
    successor: AttemptRecord | None = newest
    for number in reversed([n for n in catalog.attempts(store) if n < newest.attempt]):
        if successor is not None and _age_s(successor.claimed_utc) >= MAY_WRITE_S:
            return 0  # those before were superseded even earlier
        successor = _record(store, number)
        if not is_over(store, number, successor):
            return number
    return 0


def is_over(store: Store, number: int, record: AttemptRecord | None) -> bool:
    """Whether an attempt has certainly ended, agents and all."""
    parts = newest_parts(store, number, record.nonce if record else None)
    if have_ended(store, parts):
        return True
    if record is None:
        return False
    processes = [record.trainer, record.agent, *agents_now(store, parts)]
    return all(process_alive(process) is False for process in processes)


def passed_over(store: Store, record: AttemptRecord) -> frozenset[CheckpointId]:
    """Return the checkpoints that a resume of this attempt, or of one before, found damaged.

    They are newer than what was resumed from, and were there before. (So are those that an attempt committed while it was
    being superseded; they too are left to `prune`, which reads them.)
    """
    old = [id for id in catalog.committed(store) if id.attempt < record.attempt]  # noqa: A001
    if not old:
        return frozenset()
    first = min(id.attempt for id in old)  # noqa: A001
    found = set[CheckpointId]()
    for number in catalog.attempts(store):
        if first < number <= record.attempt:
            attempt = record if number == record.attempt else _record(store, number)
            source = parse_checkpoint_name((attempt.resumed_from if attempt else None) or "")
            if source is not None:
                found.update(id for id in old if id.attempt < number and id > source)  # noqa: A001
                # Saved while its attempt was taken over from: passed over by the first claim, then found after all.
                found.discard(source)
    return frozenset(found)


def _record(store: Store, number: int) -> AttemptRecord | None:
    try:
        return catalog.read_attempt(store, number)
    except ObjectMissing:
        return None


def _age_s(utc: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(utc)).total_seconds()

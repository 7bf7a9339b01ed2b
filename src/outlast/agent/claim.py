"""Claim an attempt, after making sure that the one before is gone (DESIGN.md, "Where")."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from outlast._errors import RunAlive
from outlast._process import process_alive
from outlast._types import FORMAT_VERSION, Json
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import (
    AttemptRecord,
    ProcessId,
    attempt_key,
    events_folder,
    seal,
)
from outlast.store.base import Store

_NONCE_ALPHABET = string.digits + string.ascii_lowercase
_NONCE_LENGTH = 4


@dataclass(frozen=True)
class Waits:
    """How long to wait for signs of another attempt, in seconds (DESIGN.md: 90 s without an events part is gone)."""

    silent_s: float = 90.0
    draining_s: float = 120.0
    poll_s: float = 0.5
    settle_s: float = 1.0


@dataclass(frozen=True)
class Claimant:
    """Who claims, and for what."""

    run_id: str
    trainer: ProcessId
    agent: ProcessId
    launch_id: str
    job_id: str | None
    world_size: int
    global_batch: int | None
    settings: dict[str, Json]
    take_over: bool


def claim(
    store: Store, claimant: Claimant, *, after: int, resumed_from: str | None, waits: Waits
) -> AttemptRecord | None:
    """Claim the attempt that follows `after`, the newest one when the checkpoints were looked at.

    None where another start has claimed it meanwhile: what was offered before may be old then, so the claimant has
    to look again. A number further on is never taken, since that would pass over what the other one saves.
    """
    number = after + 1
    record = AttemptRecord(
        format=FORMAT_VERSION,
        run_id=claimant.run_id,
        attempt=number,
        nonce="".join(secrets.choice(_NONCE_ALPHABET) for _ in range(_NONCE_LENGTH)),
        claimed_utc=utc_now(),
        world_size=claimant.world_size,
        global_batch=claimant.global_batch,
        launch_id=claimant.launch_id,
        job_id=claimant.job_id,
        agent=claimant.agent,
        trainer=claimant.trainer,
        settings=claimant.settings,
        resumed_from=resumed_from,
    )
    is_ours = store.create(attempt_key(number), seal(record)) and _is_still_ours(store, record, waits)
    return record if is_ours else None


def wait_until_gone(store: Store, claimant: Claimant, *, say: Callable[[str], None], waits: Waits) -> int:
    """Return the newest attempt's number (0: there is none) once it is gone, or is ours to supersede.

    Raises:
        RunAlive: it lives.
    """
    newest = max(catalog.attempts(store), default=0)
    record = catalog.read_attempt(store, newest) if newest else None
    if record is None or _may_supersede(record, claimant):
        return newest
    started = time.monotonic()
    told = False
    seen = _newest_part(store, record)
    while True:
        trainer = process_alive(record.trainer)
        agent = process_alive(record.agent) or process_alive(_agent_now(store, record))
        if trainer is None:
            if _has_ended(store, record):
                return newest
            now_seen = _newest_part(store, record)
            if now_seen != seen:
                raise RunAlive(_alive_message(store, record, claimant, "it has just written to the store"))
            if time.monotonic() - started >= waits.silent_s:
                return newest
            wait_s, why = waits.silent_s, "and cannot be asked from here: waiting whether it still writes"
        elif trainer:
            raise RunAlive(
                _alive_message(store, record, claimant, f"its trainer is process {record.trainer.pid}")
            )
        elif agent:
            if time.monotonic() - started >= waits.draining_s:
                why = f"its agent is process {record.agent.pid}"
                raise RunAlive(_alive_message(store, record, claimant, why))
            wait_s, why = waits.draining_s, "and its agent is still finishing"
        else:
            return newest
        if not told:
            told = True
            say(f"attempt {record.attempt} ran on {record.trainer.host} {why} (up to {wait_s:.0f} s)")
        time.sleep(waits.poll_s if trainer is False else min(waits.poll_s * 10, waits.silent_s / 3))


def superseded_by(store: Store, record: AttemptRecord) -> str | None:
    """What has taken over from this attempt; None while it is the newest."""
    newest = max(catalog.attempts(store), default=record.attempt)
    if newest > record.attempt:
        return f"attempt {newest} has taken over from attempt {record.attempt}"
    now = catalog.read_attempt(store, record.attempt)
    if now is not None and now.nonce != record.nonce:
        return f"another start has claimed attempt {record.attempt} ({now.trainer.host}, process {now.trainer.pid})"
    return None


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _may_supersede(record: AttemptRecord, claimant: Claimant) -> bool:
    """Whether the claimant need not wait: told to take over, or of the same job or launch.

    A sibling of the same job that is seen to train (a sweep in one job, all under one name) is no predecessor.
    """
    same_job = record.job_id is not None and record.job_id == claimant.job_id
    same = same_job or record.launch_id == claimant.launch_id
    return claimant.take_over or (same and not process_alive(record.trainer))


def _is_still_ours(store: Store, record: AttemptRecord, waits: Waits) -> bool:
    """Read the claim back; where create-if-absent is ignored, the last of two claimants has won both reads."""
    if not store.honours_create:
        time.sleep(waits.settle_s)
    back = catalog.read_attempt(store, record.attempt)
    return back is not None and back.nonce == record.nonce


def _newest_part(store: Store, record: AttemptRecord) -> str | None:
    folder = events_folder(record.attempt, record.nonce, 0)
    return max((info.key for info in store.list(f"{folder}/")), default=None)


def _last_events(store: Store, record: AttemptRecord) -> list[dict[str, Json]]:
    key = _newest_part(store, record)
    if key is None:
        return []
    lines = store.get(key).splitlines()
    try:
        return [msgspec.json.decode(line, type=dict[str, Json]) for line in lines]
    except msgspec.MsgspecError:
        return []  # a damaged part says nothing; the process table and the next part will


def _agent_now(store: Store, record: AttemptRecord) -> ProcessId:
    """The agent that last wrote for this attempt: not the claimant's, where that one was killed alone."""
    for event in reversed(_last_events(store, record)):
        if event.get("kind") == "alive":
            try:
                return msgspec.convert(event.get("agent"), ProcessId)
            except msgspec.ValidationError:
                break
    return record.agent


def _has_ended(store: Store, record: AttemptRecord) -> bool:
    return any(event.get("kind") == "end" for event in _last_events(store, record))


def _alive_message(store: Store, record: AttemptRecord, claimant: Claimant, sign: str) -> str:
    return (
        f"attempt {record.attempt} of {store.url} is alive on {record.trainer.host} ({sign}, started "
        f"{record.claimed_utc}); this start is process {claimant.trainer.pid} on {claimant.trainer.host}. "
        "Two attempts of one run would undo each other. Stop that one first, give this run another name "
        "(outlast.Run(NAME) or OUTLAST_RUN), or start with `outlast run --take-over`."
    )

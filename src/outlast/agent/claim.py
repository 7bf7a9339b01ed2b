"""Claim an attempt, after making sure that the one before is gone (DESIGN.md, "Where")."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from outlast._errors import ObjectMissing, OutlastError, RunAlive
from outlast._process import job_and_restarts, process_alive
from outlast._types import FORMAT_VERSION, Capacity, Json, Keep
from outlast.agent.signs import agents_now, have_ended, newest_parts
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import (
    AttemptRecord,
    ProcessId,
    attempt_key,
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
    keep: Keep = field(default_factory=Keep)
    capacity: Capacity | None = None


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
        keep=claimant.keep,
        capacity=claimant.capacity,
    )
    is_ours = store.create(attempt_key(number), seal(record)) and _is_still_ours(store, record, waits)
    return record if is_ours else None


def wait_until_gone(store: Store, claimant: Claimant, *, say: Callable[[str], None], waits: Waits) -> int:
    """Return the newest attempt's number (0: there is none) once it is gone, or is ours to supersede.

    Raises:
        RunAlive: it lives.
    """
    newest = max(catalog.attempts(store), default=0)
    if newest == 0 or claimant.take_over:
        return newest
    record = catalog.read_attempt(store, newest)
    if record is not None and _is_our_own_past(record, claimant):
        return newest
    nonce = record.nonce if record else None
    started = time.monotonic()
    told = False
    seen = newest_parts(store, newest, nonce)
    while True:
        parts = newest_parts(store, newest, nonce)
        trainer = process_alive(record.trainer) if record else None
        if trainer is None:
            if have_ended(store, parts):
                return newest
            if parts != seen:
                raise RunAlive(
                    _alive_message(store, newest, record, claimant, "it has just written to the store")
                )
            agents = [] if record else agents_now(store, parts)
            if agents == [claimant.agent]:  # it was this agent's own script, which has ended
                return newest
            if time.monotonic() - started >= waits.silent_s:
                if living := [agent for agent in agents if process_alive(agent)]:
                    sign = f"its agent is process {living[0].pid}"
                    raise RunAlive(_alive_message(store, newest, record, claimant, sign))
                return newest
            wait_s, why = waits.silent_s, "and cannot be asked from here: waiting whether it still writes"
        elif trainer:
            sign = f"its trainer is process {record.trainer.pid}" if record else ""
            raise RunAlive(_alive_message(store, newest, record, claimant, sign))
        elif living := [agent for agent in _agents(store, record, parts) if process_alive(agent)]:
            if time.monotonic() - started >= waits.draining_s:
                sign = f"its agent is process {living[0].pid}"
                raise RunAlive(_alive_message(store, newest, record, claimant, sign))
            wait_s, why = waits.draining_s, "and its agent is still finishing"
        else:
            return newest
        if not told:
            told = True
            where = f"ran on {record.trainer.host}" if record else "has a damaged record"
            say(f"attempt {newest} {where} {why} (up to {wait_s:.0f} s)")
        time.sleep(waits.poll_s if trainer is False else min(waits.poll_s * 10, waits.silent_s / 3))


def superseded_by(store: Store, record: AttemptRecord) -> str | None:
    """What has taken over from this attempt; None while it is the newest.

    Raises:
        OutlastError: the attempt's own record is gone.
    """
    newest = max(catalog.attempts(store), default=record.attempt)
    if newest > record.attempt:
        return f"attempt {newest} has taken over from attempt {record.attempt}"
    try:
        now = catalog.read_attempt(store, record.attempt)
    except ObjectMissing as error:
        msg = f"{store.url}: the run's folder was deleted or moved while it trains: {error}"
        raise OutlastError(msg) from error  # no StoreError: trying again would not mend it
    if now is not None and now.nonce != record.nonce:
        return f"another start has claimed attempt {record.attempt} ({now.trainer.host}, process {now.trainer.pid})"
    return None


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_our_own_past(record: AttemptRecord, claimant: Claimant) -> bool:
    """Whether it is an earlier attempt of this job or launch that is certainly over, so that nothing is waited for.

    A sibling of the same job (a sweep in one job, all under one name) may live; on another machine that cannot be
    seen. Only a job that its scheduler has started again has ended everywhere before.
    """
    job, restarts = job_and_restarts(record.job_id)
    our_job, our_restarts = job_and_restarts(claimant.job_id)
    same_job = job is not None and job == our_job
    alive = process_alive(record.trainer)
    if alive is None:
        return same_job and restarts < our_restarts
    return not alive and (same_job or record.launch_id == claimant.launch_id)


def _is_still_ours(store: Store, record: AttemptRecord, waits: Waits) -> bool:
    """Read the claim back; where create-if-absent is ignored, the last of two claimants has won both reads."""
    if not store.honours_create:
        time.sleep(waits.settle_s)
    back = catalog.read_attempt(store, record.attempt)
    return back is not None and back.nonce == record.nonce


def _agents(store: Store, record: AttemptRecord | None, parts: tuple[str, ...]) -> list[ProcessId]:
    return ([record.agent] if record else []) + agents_now(store, parts)


def _alive_message(
    store: Store, number: int, record: AttemptRecord | None, claimant: Claimant, sign: str
) -> str:
    if record is not None:
        told = f"is alive on {record.trainer.host} ({sign}, started {record.claimed_utc})"
    else:
        told = f"is alive, though its record is damaged ({sign})"
    return (
        f"attempt {number} of {store.url} {told}; this start is process {claimant.trainer.pid} on "
        f"{claimant.trainer.host}. Two attempts of one run would undo each other. Stop that one first, give this run "
        "another name (outlast.Run(NAME) or OUTLAST_RUN), or start with `outlast run --take-over`."
    )

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
    own_draining_s: float = 660.0  # of the same launch; an agent gives up by itself after 600 s
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
    store.create(attempt_key(number), seal(record))
    # Whatever that answered: a request whose answer was lost is sent again, and then finds its own object there.
    return record if _is_ours(store, record, waits) else None


def wait_until_gone(store: Store, claimant: Claimant, *, say: Callable[[str], None], waits: Waits) -> int:
    """Return the newest attempt's number (0: there is none) once it is gone, or is ours to supersede.

    Raises:
        RunAlive: it lives.
    """
    newest = max(catalog.attempts(store), default=0)
    while newest and not claimant.take_over:
        _wait_until_gone(store, newest, claimant, say=say, waits=waits)
        claimed_meanwhile = max(catalog.attempts(store), default=0)
        if claimed_meanwhile <= newest:
            break
        newest = claimed_meanwhile
    return newest


def _wait_until_gone(
    store: Store, newest: int, claimant: Claimant, *, say: Callable[[str], None], waits: Waits
) -> None:
    """The same for one attempt."""
    record = catalog.read_attempt(store, newest)
    if record is not None and _is_restarted_job(record, claimant):
        return
    is_own = record is not None and _is_of_launch_or_job(record, claimant)
    nonce = record.nonce if record else None
    started = time.monotonic()
    told = False
    seen = newest_parts(store, newest, nonce)
    while True:
        parts = newest_parts(store, newest, nonce)
        trainer = process_alive(record.trainer) if record else None
        if trainer:
            sign = f"its trainer is process {record.trainer.pid}" if record else ""
            raise RunAlive(_alive_message(store, newest, record, claimant, sign))
        if have_ended(store, parts):
            return
        agents = _agents(store, record, parts) if trainer is False or record is None else []
        # An agent that asks on behalf of its next script has finished with the one before.
        living = [agent for agent in agents if process_alive(agent) and agent != claimant.agent]
        waited_s = time.monotonic() - started
        if trainer is None:
            if parts != seen:
                raise RunAlive(
                    _alive_message(store, newest, record, claimant, "it has just written to the store")
                )
            if agents == [claimant.agent]:  # of its own script, which has ended
                return
            if waited_s >= waits.silent_s:
                if living:
                    sign = f"its agent is process {living[0].pid}"
                    raise RunAlive(_alive_message(store, newest, record, claimant, sign))
                return
            wait_s, why = waits.silent_s, "and cannot be asked from here: waiting whether it still writes"
        elif living:
            wait_s = waits.own_draining_s if is_own else waits.draining_s
            if waited_s >= wait_s:
                if is_own:
                    return  # to end with RunAlive would end the launch, which nobody starts again
                sign = f"its agent is process {living[0].pid}"
                raise RunAlive(_alive_message(store, newest, record, claimant, sign))
            why = "and its agent is still finishing"
        else:
            return
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


def _is_of_launch_or_job(record: AttemptRecord, claimant: Claimant) -> bool:
    job, _ = job_and_restarts(record.job_id)
    our_job, _ = job_and_restarts(claimant.job_id)
    return record.launch_id == claimant.launch_id or (job is not None and job == our_job)


def _is_restarted_job(record: AttemptRecord, claimant: Claimant) -> bool:
    """Whether the attempt is of a job that its scheduler has started again since: it has ended everywhere before.

    A sibling of the same job (a sweep in one job, all under one name) may live; on another machine that cannot be seen.
    """
    job, restarts = job_and_restarts(record.job_id)
    our_job, our_restarts = job_and_restarts(claimant.job_id)
    return (
        process_alive(record.trainer) is None
        and job is not None
        and job == our_job
        and restarts < our_restarts
    )


def _is_ours(store: Store, record: AttemptRecord, waits: Waits) -> bool:
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

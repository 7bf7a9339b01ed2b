"""Which folder on the store a start means: its place, or with `resume="never"` the next free name."""

from __future__ import annotations

import os

import msgspec

from outlast._config import UNKNOWN_POOL
from outlast._errors import ConfigError, ObjectDamaged, ObjectMissing
from outlast._process import process_alive
from outlast.agent.protocol import Hello
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import Commit
from outlast.checkpoint.sealed import read_record
from outlast.notice.machine import machine
from outlast.notice.preemptible import preemptible
from outlast.store import open_store
from outlast.store.base import Store

_MOST_NAMES = 10_000


def open_place(hello: Hello) -> Store:
    """Open the run's store.

    `resume="never"` takes `<name>-2`, `-3`, ... once per launch and script: its relaunches resume what it began.

    Raises:
        ConfigError: it is a disk of a machine that is known to be preemptible, and nobody allowed that.
    """
    store = _open(hello)
    # A trainer whose agent died trains already: it was asked when it started.
    if store.is_local_disk and not hello.allow_local_store and hello.rejoin is None:
        _refuse_preemptible(store)
    return store


def with_capacity(hello: Hello) -> Hello:
    """Say which pool this machine comes from, as its cloud says, where nobody has said it."""
    said = hello.capacity
    if said is None or said.pool != UNKNOWN_POOL:
        return hello
    found = machine(os.environ)
    if found is None:
        return hello
    known = msgspec.structs.replace(said, pool=found.pool, machine_type=found.type)
    return msgspec.structs.replace(hello, capacity=known)


def _refuse_preemptible(store: Store) -> None:
    why = preemptible(os.environ)
    if why is not None:
        msg = (
            f"{store.url} is on a disk of this machine, which can be taken away at any time ({why}): what is saved there may go "
            "with it. Save to a bucket (OUTLAST_STORE=s3://...) or a shared folder; if this disk outlives the machine, say so: "
            "outlast.Run(..., allow_local_store=True)"
        )
        raise ConfigError(msg)


def _open(hello: Hello) -> Store:
    if hello.resume != "never" or hello.rejoin is not None:
        return open_store(hello.url)
    for number in range(1, _MOST_NAMES):
        url = hello.url.rstrip("/") + (f"-{number}" if number > 1 else "")
        store = open_store(url)
        if catalog.read_run(store) is None or is_begun_by(store, hello):
            return store
    msg = f"{hello.url}: {_MOST_NAMES} runs of this name exist"
    raise ValueError(msg)


def is_begun_by(store: Store, hello: Hello) -> bool:
    """Whether an earlier start of the same script in the same launch began this run and did not finish it.

    Another script of the launch (a sweep in one job) has other arguments, or still trains, or has finished.
    """
    numbers = catalog.attempts(store)
    record = catalog.read_attempt(store, numbers[-1]) if numbers else None
    return (
        record is not None
        and record.launch_id == hello.launch_id
        and record.settings.get("arguments") == hello.settings.get("arguments")
        and not process_alive(record.trainer)
        and not _is_finished(store)
    )


def _is_finished(store: Store) -> bool:
    for checkpoint in catalog.committed(store)[:1]:
        try:
            return read_record(store, checkpoint.commit_key, Commit)[0].finished
        except (ObjectMissing, ObjectDamaged):
            return False  # what can be resumed instead is found when it is opened
    return False

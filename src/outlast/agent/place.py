"""Which folder on the store a start means: its place, or with `resume="never"` the next free name."""

from __future__ import annotations

from outlast._errors import ObjectDamaged, ObjectMissing
from outlast._process import process_alive
from outlast.agent.protocol import Hello
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import Commit
from outlast.checkpoint.sealed import read_record
from outlast.store import open_store
from outlast.store.base import Store

_MOST_NAMES = 10_000


def open_place(hello: Hello) -> Store:
    """Open the run's store.

    `resume="never"` takes `<name>-2`, `-3`, ... once per launch and script: its relaunches resume what it began.
    """
    if hello.resume != "never" or hello.rejoin is not None:
        return open_store(hello.url)
    for number in range(1, _MOST_NAMES):
        url = hello.url.rstrip("/") + (f"-{number}" if number > 1 else "")
        store = open_store(url)
        if catalog.read_run(store) is None or _is_begun_by(store, hello):
            return store
    msg = f"{hello.url}: {_MOST_NAMES} runs of this name exist"
    raise ValueError(msg)


def _is_begun_by(store: Store, hello: Hello) -> bool:
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

"""Which folder on the store a start means: its place, or with `resume="never"` the next free name."""

from __future__ import annotations

from outlast.agent.protocol import Hello
from outlast.checkpoint import catalog
from outlast.store import open_store
from outlast.store.base import Store

_MOST_NAMES = 10_000


def open_place(hello: Hello) -> Store:
    """Open the run's store.

    `resume="never"` takes `<name>-2`, `-3`, ... once per launch: a place whose newest attempt is of this launch is
    this launch's own, so that its relaunches resume it.
    """
    if hello.resume != "never" or hello.rejoin is not None:
        return open_store(hello.url)
    for number in range(1, _MOST_NAMES):
        url = hello.url.rstrip("/") + (f"-{number}" if number > 1 else "")
        store = open_store(url)
        if catalog.read_run(store) is None or _is_of_launch(store, hello.launch_id):
            return store
    msg = f"{hello.url}: {_MOST_NAMES} runs of this name exist"
    raise ValueError(msg)


def _is_of_launch(store: Store, launch_id: str) -> bool:
    numbers = catalog.attempts(store)
    record = catalog.read_attempt(store, numbers[-1]) if numbers else None
    return record is not None and record.launch_id == launch_id

"""The run and the checkpoint that a command is about, from what a person types."""

from __future__ import annotations

import os
from pathlib import Path

from outlast._config import resolve_place
from outlast._errors import ConfigError
from outlast.checkpoint.catalog import RUN_KEY, read_run
from outlast.checkpoint.manifest import CheckpointId, RunRecord, parse_checkpoint_name
from outlast.store import open_store
from outlast.store.base import Store


def open_run(run: str) -> tuple[Store, RunRecord]:
    """Open a run by its URL, its path, or its name under `$OUTLAST_STORE` (default `./outlast-runs`).

    Raises:
        ConfigError: no run is there, or something else is.
        StoreError: the store cannot be read.
    """
    if "://" not in run and (Path(run).expanduser() / RUN_KEY).is_file():
        run = str(
            Path(run).expanduser().absolute()
        )  # a path that does not look like one, as shells complete them
    store = open_store(resolve_place(run, os.environ, [], Path.cwd()).url)
    record = read_run(store)
    if record is None:
        msg = (
            f"{store.url} holds no run. Give the run's URL or path, or its name under $OUTLAST_STORE "
            f"(now {os.environ.get('OUTLAST_STORE') or 'not set: ./outlast-runs'})."
        )
        raise ConfigError(msg)
    return store, record


def checkpoint_named(name: str) -> CheckpointId:
    """Read a checkpoint's name; a ConfigError if it is none. Whether there is such a checkpoint, the store knows."""
    checkpoint = parse_checkpoint_name(name)
    if checkpoint is None:
        msg = f"{name!r} names no checkpoint; expected one such as 00003-k7f2-000000001200, as `list` shows them"
        raise ConfigError(msg)
    return checkpoint

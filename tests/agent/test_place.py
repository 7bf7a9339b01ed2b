"""The place of a start with `resume="never"`: a new run, but for a relaunch of the script that began it."""

from __future__ import annotations

import msgspec
import pytest

from outlast._process import process_id
from outlast._types import Keep
from outlast.agent.place import open_place
from outlast.agent.protocol import PROTOCOL, Hello
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, seal
from outlast.store.local import LocalStore
from saving import RUN_ID, UTC, id_of, save

HERE = process_id()
GONE = msgspec.structs.replace(HERE, start_ticks=HERE.start_ticks - 1)


def hello(folder, **changes):
    known = {"launch_id": "one", "settings": {"arguments": "aaaaaa"}} | changes
    return Hello(
        protocol=PROTOCOL, trainer=HERE, rank=0, world_size=1, global_batch=None, url=(folder / "run").as_uri(),
        resume="never", take_over=False, job_id=None, interval_s=None, interval_steps=None, keep=Keep(), rejoin=None, **known,
    )  # fmt: skip


def begun(folder, trainer=GONE, *, finished=False):
    """A run of the launch "one" and the arguments aaaaaa, with two checkpoints."""
    store = LocalStore(folder / "run")
    catalog.create_run(store, RUN_ID, UTC)
    store.create(attempt_key(1), seal(AttemptRecord(
        format=1, run_id=RUN_ID, attempt=1, nonce="aaaa", claimed_utc=UTC, world_size=1, global_batch=None,
        launch_id="one", job_id=None, agent=GONE, trainer=trainer, settings={"arguments": "aaaaaa"}, resumed_from=None,
    )))  # fmt: skip
    save(store, id_of(1), {"x": b"1"})
    save(store, id_of(2), {"x": b"2"}, finished=finished)


def name(opened):
    return opened.url.rpartition("/")[2]


def test_a_relaunch_of_the_same_script_goes_on_in_the_run_that_it_began(tmp_path):
    """Same launch, same arguments, its trainer gone, its end not reached."""
    assert name(open_place(hello(tmp_path))) == "run"
    begun(tmp_path)
    assert name(open_place(hello(tmp_path))) == "run"


@pytest.mark.parametrize(
    ("run", "start"),
    [
        ({}, {"launch_id": "two"}),
        ({}, {"settings": {"arguments": "bbbbbb"}}),
        ({"trainer": HERE}, {}),
        ({"finished": True}, {}),
    ],
    ids=["another launch", "another member of a sweep", "a sibling that trains", "the same script once more"],
)
def test_any_other_start_begins_a_run_of_the_next_name(tmp_path, run, start):
    """A sweep inside one launch is as many runs as it has starts."""
    begun(tmp_path, **run)
    assert name(open_place(hello(tmp_path, **start))) == "run-2"

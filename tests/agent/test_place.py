"""The place of a start with `resume="never"`: a new run, but for a relaunch of the script that began it."""

from __future__ import annotations

import msgspec
import pytest

from outlast._errors import ConfigError
from outlast._process import process_id
from outlast._types import Keep
from outlast.agent.place import open_place
from outlast.agent.protocol import PROTOCOL, Hello, Rejoin
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, seal
from outlast.store.local import LocalStore
from saving import RUN_ID, UTC, MemoryStore, id_of, save

HERE = process_id()
GONE = msgspec.structs.replace(HERE, start_ticks=HERE.start_ticks - 1)


def hello(folder, **changes):
    known = {
        "launch_id": "one",
        "settings": {"arguments": "aaaaaa"},
        "resume": "never",
        "rejoin": None,
    } | changes
    return Hello(
        protocol=PROTOCOL, trainer=HERE, rank=0, world_size=1, global_batch=None, url=(folder / "run").as_uri(),
        take_over=False, job_id=None, interval_s=None, interval_steps=None, keep=Keep(), **known,
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


class TestPreemptible:
    """A machine that can be taken away, and a store on its own disk."""

    @pytest.fixture(autouse=True)
    def _is_preemptible(self, monkeypatch):
        monkeypatch.setenv("OUTLAST_PREEMPTIBLE", "1")

    @pytest.mark.parametrize("resume", ["auto", "never"])
    def test_its_own_disk_is_refused_before_anything_is_written(self, tmp_path, resume):
        """The error says where, why, and both ways out."""
        with pytest.raises(
            ConfigError, match=r"OUTLAST_PREEMPTIBLE=1.*OUTLAST_STORE=.*allow_local_store=True"
        ) as raised:
            open_place(hello(tmp_path, resume=resume))
        assert (tmp_path / "run").as_uri() in str(raised.value)
        assert raised.value.exit_code == 78
        assert list(tmp_path.iterdir()) == []

    def test_it_is_used_where_the_script_allows_it(self, tmp_path):
        """A disk that stays, such as a volume in the network."""
        assert name(open_place(hello(tmp_path, allow_local_store=True))) == "run"

    def test_a_trainer_whose_agent_died_is_not_asked_again(self, tmp_path):
        """It trains already: a new agent must not end it."""
        rejoin = Rejoin(run_id=RUN_ID, attempt=1, nonce="aaaa")
        assert name(open_place(hello(tmp_path, rejoin=rejoin))) == "run"

    def test_a_shared_filesystem_and_a_bucket_outlive_the_machine(self, tmp_path, monkeypatch):
        """Neither is this machine's disk."""
        store = MemoryStore()
        store.is_local_disk = False
        monkeypatch.setattr("outlast.agent.place.open_store", lambda _: store)
        assert open_place(hello(tmp_path, resume="auto")) is store


def test_a_machine_that_stays_may_have_its_store_on_its_disk(tmp_path, monkeypatch):
    """As on any workstation."""
    monkeypatch.setenv("OUTLAST_PREEMPTIBLE", "0")
    assert name(open_place(hello(tmp_path, resume="auto"))) == "run"

"""Whether the attempt before may be superseded: what cannot be told from here is waited for."""

from __future__ import annotations

import os

import msgspec
import pytest

from outlast import RunAlive
from outlast._process import process_id
from outlast.agent.claim import Claimant, Waits, wait_until_gone
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, seal
from saving import RUN_ID, UTC, MemoryStore

HERE = process_id()
ELSEWHERE = msgspec.structs.replace(HERE, machine="another boot/1", host="node-2")
GONE = msgspec.structs.replace(HERE, start_ticks=HERE.start_ticks - 1)
SHORT = Waits(silent_s=0.3, draining_s=0.1, poll_s=0.01)


class Beating(MemoryStore):
    """A store into which the attempt goes on writing: a part comes with each look at its events."""

    def list(self, prefix=""):
        if prefix.startswith("events/"):
            alive(self, agent=ELSEWHERE)
        return super().list(prefix)


class Silent(Exception):
    """Raised where a wait would begin, which says so."""


def alive(store, **fields):
    number = sum(key.startswith("events/") for key in store.objects)
    log = EventLog(MemoryStore(), 1, "aaaa", 0)
    log.add({"kind": "alive", "utc": UTC, "step": 0, **msgspec.to_builtins(fields)})
    part = log.flush()
    store.objects[f"events/00001-aaaa-00000/{number:06d}.jsonl"] = log._store.objects[part]


def record(trainer, **fields):
    known = {"launch_id": "theirs", "job_id": None} | fields
    return AttemptRecord(
        format=1, run_id=RUN_ID, attempt=1, nonce="aaaa", claimed_utc=UTC, world_size=1, global_batch=None,
        agent=trainer, trainer=trainer, settings={}, resumed_from=None, **known,
    )  # fmt: skip


def claimant(**fields):
    known = {"launch_id": "ours", "job_id": None, "take_over": False} | fields
    return Claimant(
        run_id=RUN_ID, trainer=HERE, agent=HERE, world_size=1, global_batch=None, settings={}, **known
    )  # fmt: skip


def holding(kind, newest):
    store = kind()
    store.objects[attempt_key(1)] = seal(newest)
    return store


def not_waiting(_line):
    raise Silent


SAME = [
    ({"job_id": "slurm-5"}, {"job_id": "slurm-5"}),
    ({"job_id": "slurm-5#1"}, {"job_id": "slurm-5#1"}),
    ({"job_id": "slurm-5#2"}, {"job_id": "slurm-5#1"}),
    ({"job_id": "slurm-4"}, {"job_id": "slurm-5#1"}),
    ({"launch_id": "ours"}, {}),
]


@pytest.mark.parametrize(("theirs", "ours"), SAME)
def test_a_sibling_on_another_machine_that_writes_is_alive(theirs, ours):
    """Of the same job or launch: what cannot be seen from here is no earlier start for that."""
    store = holding(Beating, record(ELSEWHERE, **theirs))
    with pytest.raises(RunAlive, match="alive on node-2"):
        wait_until_gone(store, claimant(**ours), say=lambda _: None, waits=SHORT)


@pytest.mark.parametrize(("theirs", "ours"), SAME)
def test_one_on_another_machine_that_is_silent_is_superseded_after_the_wait(theirs, ours):
    """And the user is told what is waited for."""
    said = []
    store = holding(MemoryStore, record(ELSEWHERE, **theirs))
    assert wait_until_gone(store, claimant(**ours), say=said.append, waits=SHORT) == 1
    assert len(said) == 1
    assert "waiting whether it still writes" in said[0]


def test_a_job_that_slurm_has_started_again_waits_for_nothing():
    """Its earlier start has ended on all nodes before."""
    for theirs in ("slurm-5", "slurm-5#1"):
        store = holding(MemoryStore, record(ELSEWHERE, job_id=theirs))
        assert wait_until_gone(store, claimant(job_id="slurm-5#2"), say=not_waiting, waits=SHORT) == 1


def test_one_of_the_same_launch_that_is_seen_to_be_gone_is_superseded_at_once():
    """Though its agent, which is the one of `outlast run`, lives on."""
    store = holding(MemoryStore, msgspec.structs.replace(record(GONE, launch_id="ours"), agent=HERE))
    assert wait_until_gone(store, claimant(), say=not_waiting, waits=SHORT) == 1


def test_a_damaged_record_does_not_make_a_living_attempt_a_dead_one():
    """Its events tell: it still writes, or it has ended, or it is silent for long enough."""
    store = Beating()
    store.objects[attempt_key(1)] = b"{"
    with pytest.raises(RunAlive, match="attempt 1 of .* is alive, though its record is damaged"):
        wait_until_gone(store, claimant(launch_id="theirs"), say=lambda _: None, waits=SHORT)
    silent = MemoryStore()
    silent.objects = dict(store.objects)
    said = []
    assert wait_until_gone(silent, claimant(), say=said.append, waits=SHORT) == 1
    assert "attempt 1 has a damaged record" in said[0]
    assert wait_until_gone(silent, claimant(take_over=True), say=not_waiting, waits=SHORT) == 1
    log = EventLog(silent, 1, "aaaa", 0)
    log.add({"kind": "end", "utc": UTC, "step": 0, "outcome": "preempted"})
    log.flush()
    assert wait_until_gone(silent, claimant(), say=not_waiting, waits=SHORT) == 1
    assert silent.objects[attempt_key(1)] == b"{"


def test_the_agent_of_an_attempt_with_a_damaged_record_is_asked_where_it_is_near():
    """A living agent named in its newest part is a living attempt, though it did not write while we looked."""
    store = MemoryStore()
    store.objects[attempt_key(1)] = b"{"
    alive(store, agent=process_id(os.getppid()))
    with pytest.raises(RunAlive, match=f"its agent is process {os.getppid()}"):
        wait_until_gone(store, claimant(), say=lambda _: None, waits=SHORT)
    alive(store, agent=HERE)  # the claimant's own agent, whose earlier script it was
    assert wait_until_gone(store, claimant(), say=not_waiting, waits=SHORT) == 1


class Finishing(MemoryStore):
    """A store into which the attempt's agent puts its last events as it is looked at again and again."""

    def list(self, prefix=""):
        found = super().list(prefix)
        looks = sum(entry == ("list", prefix) for entry in self.log)
        if prefix.startswith("events/") and looks == 5:
            alive(self, agent=WORKING)
            log = EventLog(self, 1, "aaaa", 0)
            log.add({"kind": "end", "utc": UTC, "step": 0, "outcome": "killed"})
            log.flush()
        return found


WORKING = process_id(os.getppid())
"""An agent that lives, and is none of the claimant's."""


def test_a_relaunch_waits_for_the_agent_that_still_writes_what_the_launch_saved():
    """Its trainer was killed; it says that it has ended when all is durable, though it may live on with another script."""
    said = []
    store = holding(Finishing, msgspec.structs.replace(record(GONE, launch_id="ours"), agent=WORKING))
    assert wait_until_gone(store, claimant(), say=said.append, waits=Waits(poll_s=0.0)) == 1
    assert ["its agent is still finishing" in line for line in said] == [True]


@pytest.mark.parametrize("same", [{"launch_id": "ours"}, {"job_id": "slurm-5"}])
def test_a_relaunch_takes_over_from_an_agent_that_never_finishes_and_any_other_start_does_not(same):
    """Nobody would start the launch again if it ended here; another start says which agent lives."""
    shortest = Waits(draining_s=0.05, own_draining_s=0.05, poll_s=0.01)
    store = holding(MemoryStore, msgspec.structs.replace(record(GONE, **same), agent=WORKING))
    assert wait_until_gone(store, claimant(job_id="slurm-5"), say=lambda _: None, waits=shortest) == 1
    with pytest.raises(RunAlive, match=f"its agent is process {WORKING.pid}"):
        wait_until_gone(store, claimant(launch_id="other"), say=lambda _: None, waits=shortest)


def test_an_agent_that_took_over_from_a_killed_one_is_found_though_its_newest_part_does_not_name_it():
    """A part that a save put holds no sign of life; the record names the agent that was killed."""
    store = holding(MemoryStore, record(GONE))
    alive(store, agent=WORKING)
    log = EventLog(store, 1, "aaaa", 0)
    log.add({"kind": "save", "utc": UTC, "step": 5})
    log.flush()
    with pytest.raises(RunAlive, match=f"its agent is process {WORKING.pid}"):
        wait_until_gone(store, claimant(), say=lambda _: None, waits=SHORT)


def test_an_attempt_that_was_claimed_while_another_was_waited_for_is_asked_too():
    """It came first, and lives."""

    class Claimed(MemoryStore):
        def list(self, prefix=""):
            if prefix.startswith("events/"):
                second = msgspec.structs.replace(record(HERE, launch_id="theirs"), attempt=2)
                self.objects[attempt_key(2)] = seal(second)
            return super().list(prefix)

    store = holding(Claimed, record(ELSEWHERE))
    with pytest.raises(RunAlive, match="attempt 2 of .* is alive"):
        wait_until_gone(store, claimant(), say=lambda _: None, waits=SHORT)

"""The agent's thread that prunes: after each commit, when the store is full, and never once it is superseded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from persisting import Saver, attempt_record

from outlast._errors import StoreFull, StoreUnavailable
from outlast._process import process_id
from outlast._types import Keep
from outlast.agent.earlier import is_over, may_still_write, passed_over
from outlast.agent.retain import Retention
from outlast.checkpoint import catalog
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import ProcessId, attempt_key, seal
from saving import MemoryStore, id_of, restore, save, state_of

SIZES = {"weight": 65_536}
WAIT_S = 30.0
ELSEWHERE = ProcessId(host="other", machine="another", pid=1, start_ticks=1)


class Deleting(MemoryStore):
    """Calls `before` for deletes as well."""

    def delete(self, keys):
        self._note("delete", keys[0])
        super().delete(keys)


def stored(store):
    return sum(len(data) for key, data in store.objects.items() if key.startswith("segments/"))


@pytest.fixture
def retaining():
    """Make a persister whose store is pruned; both end with the test."""
    made = []

    def make(store, keep=None, **how):
        said, notes = [], []
        record = attempt_record(**how)
        retention = Retention(
            store,
            record,
            keep or Keep(),
            say=said.append,
            note=lambda kind, **fields: notes.append((kind, fields)),
        )
        one = Saver(store, record, make_room=retention.make_room)
        one.persister._hooks = dataclasses.replace(
            one.persister._hooks, committed=retention.committed, settle=retention.settle
        )
        retention.start(one.persister.in_use)
        made.append((one, retention))
        one.retention, one.pruner_said, one.notes = retention, said, notes
        return one

    yield make
    for one, retention in made:
        one.close()
        retention.stop(WAIT_S)


def test_the_newest_stay_and_the_rest_goes(retaining):
    """Beside a real persister, however the two threads meet; what is left restores."""
    store = Deleting()
    one = retaining(store)
    for step in range(1, 31):
        one.save(step, state_of(step, SIZES))
    one.retention.stop(WAIT_S)
    assert catalog.committed(store) == [id_of(30), id_of(29), id_of(28)]
    for step in (28, 29, 30):
        assert restore(store, id_of(step)) == state_of(step, SIZES)
    assert sum(len(fields["checkpoints"]) for _, fields in one.notes) == 27
    assert one.pruner_said == []


def test_saves_that_follow_each_other_at_once_do_not_outrun_it(retaining):
    """With everything changing the store never holds more than what is kept and two, at any write."""
    worst = 0

    class Watched(Deleting):
        def write(self, key, parts, *, is_wanted=None):
            nonlocal worst
            super().write(key, parts)
            worst = max(worst, stored(self))

    one = retaining(Watched())
    for step in range(1, 200):
        one.save(step, state_of(step, SIZES))
    assert worst == (3 + 2) * SIZES["weight"]


def test_a_full_disk_is_pruned_before_a_save_fails(retaining):
    """Nobody hears of it: the persister has room made, and tries again."""
    quota = 4 * SIZES["weight"] + 1000
    fulls = 0

    def before(operation, key):
        nonlocal fulls
        if operation == "write" and stored(store) + SIZES["weight"] > quota:
            fulls += 1
            msg = f"{key}: no space"
            raise StoreFull(msg)

    store = Deleting(before)
    one = retaining(store)
    one.retention.stop(WAIT_S)  # the thread deletes nothing in time: all depends on the room that is made
    for step in range(1, 13):
        one.save(step, state_of(step, SIZES))
    assert fulls > 3
    assert one.said == []
    assert one.persister.last_error is None


def test_a_superseded_attempt_deletes_nothing(retaining):
    """A newer attempt stands in the store: not one object goes, though a round was due."""
    store = Deleting()
    one = retaining(store, Keep(last=1))
    store.create(attempt_key(2), b"")
    one.retention.committed(id_of(1), _manifest(store))
    one.retention.stop(WAIT_S)
    assert [operation for operation, _ in store.log if operation == "delete"] == []
    assert not one.retention.make_room()


def _manifest(store):
    other = MemoryStore()
    for step in (1, 2, 3, 4):
        save(other, id_of(step), state_of(step, SIZES))
    store.objects.update(other.objects)
    return catalog.load(other, id_of(1)).manifests[0]


def test_a_store_that_fails_is_said_once_and_tried_again(retaining):
    """Saving goes on; what could not be deleted goes in a later round."""
    fails = True

    def before(operation, key):
        if operation == "delete" and fails:
            msg = f"{key}: 503"
            raise StoreUnavailable(msg)

    store = Deleting(before)
    one = retaining(store)
    for step in range(1, 10):
        one.save(step, state_of(step, SIZES))
        if step == 6:
            assert not one.retention.make_room()
            assert not one.retention.make_room()
            fails = False
    one.retention.stop(WAIT_S)
    assert catalog.committed(store) == [id_of(9), id_of(8), id_of(7)]
    assert len(one.pruner_said) == 1
    assert "503" in one.pruner_said[0]


def test_an_end_does_not_wait_for_a_delete_that_hangs(retaining):
    """And nothing is deleted after it."""
    entered, go_on = threading.Event(), threading.Event()

    def before(operation, _key):
        if operation == "delete":
            entered.set()
            assert go_on.wait(WAIT_S)

    store = Deleting(before)
    one = retaining(store, Keep(last=1))
    for step in range(1, 5):
        one.save(step, state_of(step, SIZES))
    assert entered.wait(WAIT_S)
    one.retention.stop(0.01)
    go_on.set()
    one.retention.stop(WAIT_S)
    assert [operation for operation, _ in store.log].count("delete") <= 2  # a commit and its manifest


def test_an_old_attempt_is_known_to_be_over_by_its_last_words_or_its_processes():
    """And not before: what cannot be seen from here may still write."""
    store = MemoryStore()
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    gone = process_id(ended.pid)
    ended.wait()
    record = attempt_record()
    here, there, dead = (
        msgspec.structs.replace(record, trainer=process, agent=process)
        for process in (process_id(), ELSEWHERE, gone)
    )
    assert [is_over(store, 1, each) for each in (here, there, dead, None)] == [False, False, True, False]
    log = EventLog(store, 1, "aaaa", 0)
    log.add({"kind": "alive", "utc": "", "step": 1, "agent": msgspec.to_builtins(process_id())})
    log.flush()
    assert not is_over(store, 1, dead), "its agent was started anew, and lives"
    log.add({"kind": "end", "utc": "", "step": 1})
    log.flush()
    assert is_over(store, 1, there)


@pytest.mark.parametrize(("age_min", "floor"), [(0, 1), (14, 1), (16, 0)])
def test_one_that_cannot_be_seen_is_let_be_for_15_minutes_after_it_was_superseded(age_min, floor):
    """Whatever of it is on the store; and so are those before it."""
    store = MemoryStore()
    store.create(
        attempt_key(1), seal(msgspec.structs.replace(attempt_record(), trainer=ELSEWHERE, agent=ELSEWHERE))
    )
    claimed = (datetime.now(UTC) - timedelta(minutes=age_min)).isoformat()
    second = msgspec.structs.replace(attempt_record(2, "bbbb"), claimed_utc=claimed)
    store.create(attempt_key(2), seal(second))
    assert may_still_write(store, second) == floor


def test_what_a_resume_passed_over_is_told_from_the_attempts():
    """Newer than what was resumed from, and older than the attempt; also where an attempt in between did it."""
    store = MemoryStore()
    for step in (1, 2, 3):
        save(store, id_of(step), state_of(step, SIZES))
    save(store, id_of(4, attempt=2, nonce="bbbb"), state_of(4, SIZES))
    for record in (
        attempt_record(1),
        attempt_record(2, "bbbb", id_of(2).name),
        third := attempt_record(3, "cccc", id_of(4, attempt=2, nonce="bbbb").name),
    ):
        store.create(attempt_key(record.attempt), seal(record))
    assert passed_over(store, third) == {id_of(3)}

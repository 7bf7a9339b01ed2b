"""What saves took before this attempt measured any is learnt from the ledger, and forgotten once it has measured one."""

import threading

from outlast._types import Reason
from outlast.agent.meter import Meter
from outlast.agent.precedent import PARTS_READ, last_saves, learn
from outlast.agent.protocol import Snapshot
from outlast.checkpoint.events import EventLog
from outlast.store.local import LocalStore


def save(seconds, wrote):
    return {
        "kind": "save",
        "utc": "2026-11-27T00:00:00Z",
        "step": 1,
        "seconds": seconds,
        "bytes_written": wrote,
    }


def snapshot():
    """One without tensors: what is written of it is told to the meter."""
    return Snapshot(
        number=1, index=0, step=1, repeat=0, reason=Reason.INTERVAL, pinned=False, finished=False, hold=False,
        tree=None, position=None, settings={}, tensors=(), base=None, best=None,
    )  # fmt: skip


def put(store, attempt, *events, rank=0):
    log = EventLog(store, attempt, f"abc{attempt}", rank)
    for event in events:
        log.add(event)
    log.flush()


def test_the_last_saves_of_earlier_attempts_count_and_nobody_elses(tmp_path):
    store = LocalStore(tmp_path)
    put(store, 1, save(1.0, 10), save(2.0, 20))
    put(store, 2, save(3.0, 30), save(0.5, 0), {"kind": "alive", "utc": "x", "step": 1})
    put(store, 2, save(9.0, 90), rank=1)
    put(store, 3, save(4.0, 40))
    assert last_saves(store, 3, 0) == [(1.0, 10), (2.0, 20), (3.0, 30)]
    assert last_saves(store, 1, 0) == []


def test_a_long_run_is_not_read_whole(tmp_path):
    store = LocalStore(tmp_path)
    log = EventLog(store, 1, "abcd", 0)
    for number in range(PARTS_READ + 5):
        log.add(save(float(number + 1), 10))
        log.flush()
    found = last_saves(store, 2, 0)
    assert len(found) == PARTS_READ
    assert found[-1] == (PARTS_READ + 5.0, 10)


def test_a_damaged_part_and_a_store_that_fails_leave_it_unlearnt(tmp_path):
    store = LocalStore(tmp_path)
    put(store, 1, save(1.0, 10))
    part = next((tmp_path / "events").rglob("*.jsonl"))
    part.write_bytes(part.read_bytes().replace(b'"seconds":1.0', b'"seconds":9.0'))
    told = threading.Event()
    found = []

    def tell(saves):
        found.extend(saves)
        told.set()

    learn(store, 2, 0, tell)
    assert told.wait(20)
    assert found == []


def test_what_was_measured_here_counts_alone():
    meter = Meter()
    meter.precede([(8.0, 800), (4.0, 400)])
    known = meter.measured()
    assert (known.save_s, known.changed_bytes, known.bytes_per_s) == (8.0, 800, 100.0)
    meter.begin(snapshot())
    meter.wrote(50)
    meter.end(durable=True)
    assert meter.measured().changed_bytes == 50


def test_nothing_is_known_without_any():
    assert Meter().measured().save_s is None

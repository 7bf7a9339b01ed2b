"""The ledger and the metrics, in immutable parts."""

from __future__ import annotations

import json
import math
import struct
import threading

import pytest

from outlast._errors import StoreUnavailable
from outlast.checkpoint.events import EventLog, check_part, metrics, read_parts
from saving import UTC, MemoryStore

FOLDER = "events/00001-aaaa-00000"


def event(kind, step, **fields):
    return {"kind": kind, "utc": UTC, "step": step, **fields}


def write(store, attempt, *events, nonce="aaaa", rank=0):
    log = EventLog(store, attempt, nonce, rank)
    for record in events:
        log.add(record)
    return log.flush()


def test_a_part_is_lines_and_a_digest():
    """Plain JSON lines, readable without Outlast; the last one holds the digest of those before."""
    store = MemoryStore()
    key = write(store, 1, event("attempt", 0), event("metrics", 1, values={"loss": 0.5}))
    assert key == f"{FOLDER}/000000.jsonl"
    *lines, last = store.objects[key].splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["attempt", "metrics"]
    assert json.loads(last).keys() == {"digest"}
    assert list(read_parts(store)) == [json.loads(line) for line in lines]
    assert all(record["attempt"] == 1 for record in read_parts(store))


def test_parts_are_numbered_on():
    """A new agent of the same attempt goes on behind what is there, and nothing is ever overwritten."""
    store = MemoryStore()
    log = EventLog(store, 1, "aaaa", 0)
    assert log.flush() is None
    log.add(event("alive", 1))
    assert log.flush() == log.flush() == f"{FOLDER}/000000.jsonl"
    other = EventLog(store, 1, "aaaa", 0)
    assert other.flush() == f"{FOLDER}/000000.jsonl"
    other.add(event("alive", 2))
    assert other.flush() == f"{FOLDER}/000001.jsonl"
    log.add(event("alive", 3))
    assert log.flush() == f"{FOLDER}/000002.jsonl"
    assert [record["step"] for record in read_parts(store)] == [1, 2, 3]


@pytest.mark.parametrize("added", [0, 1, 3])
@pytest.mark.parametrize("is_late", [False, True])
def test_what_an_agent_put_and_could_not_say_any_more_is_not_put_again(is_late, added):
    """It is killed after its last put, which may even arrive after the next agent has looked: that one is told all again, and more."""
    store = MemoryStore()
    log = EventLog(store, 1, "aaaa", 0)
    told = [event("metrics", step, values={"loss": step / 3}) for step in range(5)]
    log.add(told[0])
    log.flush()
    for record in [event("alive", 1), *told[1:]]:
        log.add(record)
    log.flush()
    part = f"{FOLDER}/000001.jsonl"
    late = store.objects.pop(part) if is_late else b""
    other = EventLog(store, 1, "aaaa", 0)
    create = store.create

    def arriving(key, data):
        if is_late and key == part:
            store.objects[part] = late
        return create(key, data)

    store.create = arriving
    more = [event("metrics", 5 + n, values={"loss": 1.0}) for n in range(added)]
    for record in [*told[1:], *more]:
        other.add(record)
    other.flush()
    assert [r["step"] for r in read_parts(store) if r["kind"] == "metrics"] == list(range(5 + added))


@pytest.mark.parametrize("arrives", [True, False])
def test_a_failed_put_loses_and_doubles_nothing(arrives):
    """Records are kept over a store error; a put that did arrive, although it was reported failed, counts once."""
    store = MemoryStore()
    log = EventLog(store, 1, "aaaa", 0)
    log.add(event("alive", 1))
    create = store.create

    def failing(key, data):
        if arrives:
            create(key, data)
        raise StoreUnavailable(key)

    store.create = failing
    with pytest.raises(StoreUnavailable):
        log.flush()
    log.add(event("alive", 2))
    store.create = create
    assert log.flush() == f"{FOLDER}/000001.jsonl"
    assert [record["step"] for record in read_parts(store)] == [1, 2]


def test_threads_share_a_log():
    """Records that several threads add and flush all arrive, once, and in the order of each thread."""
    store = MemoryStore()
    log = EventLog(store, 1, "aaaa", 0)

    def work(thread):
        for step in range(200):
            log.add(event("metrics", step, thread=thread))
            if step % 10 == 0:
                log.flush()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    for index in range(4):
        assert [r["step"] for r in read_parts(store) if r["thread"] == index] == list(range(200))


def test_add_does_not_wait_for_the_store():
    """A flush that hangs in the store holds up no training step."""
    store = MemoryStore()
    log = EventLog(store, 1, "aaaa", 0)
    log.add(event("alive", 1))
    inside, go_on = threading.Event(), threading.Event()
    create = store.create

    def hanging(key, data):
        inside.set()
        assert go_on.wait(30)
        return create(key, data)

    store.create = hanging
    flusher = threading.Thread(target=log.flush)
    flusher.start()
    assert inside.wait(30)
    log.add(event("alive", 2))
    go_on.set()
    flusher.join()
    log.flush()
    assert [record["step"] for record in read_parts(store)] == [1, 2]


def test_exact_floats():
    """A loss of NaN, infinity and negative zero come back; the lines stay strict JSON."""
    store = MemoryStore()
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": -0.0, "e": 0.1, "f": [1, math.nan]}
    key = write(store, 1, event("metrics", 1, values=values))

    def refuse(name):
        raise AssertionError(name)

    for line in store.objects[key].splitlines():
        json.loads(line, parse_constant=refuse)
    (record,) = read_parts(store)
    back = record["values"]
    assert struct.pack("4d", *(back[name] for name in "bcde")) == struct.pack(
        "4d", *(values[name] for name in "bcde")
    )
    assert math.isnan(back["a"])
    assert math.isnan(back["f"][1])


def test_a_damaged_part_is_passed_over_and_said():
    """A flipped byte, a cut and a part that vanishes cost that part only, and are reported; wrong once is no damage."""
    store = MemoryStore()
    for step in range(3):
        write(store, 1, event("alive", step))
    key = f"{FOLDER}/000001.jsonl"
    good = store.objects[key]
    for bad in (good[:9] + b"?" + good[10:], good[:-1], good[:-20], b"", good + b"\n"):
        store.objects[key] = bad
        faults = []
        assert [record["step"] for record in read_parts(store, report=faults.append)] == [0, 2]
        assert [key in fault for fault in faults] == [True]
        assert len(check_part(store, key)) == 1
    reads = []

    def heal(operation, at):
        reads.append(at)
        if reads.count(key) == 2:
            store.objects[key] = good

    store._before = heal
    assert check_part(store, key) == []
    assert len(check_part(store, "run.json")) == 1


def test_parts_come_in_the_order_of_numbers():
    """By attempt, rank and part as numbers, also past the width that they are written with."""
    store = MemoryStore()
    write(store, 100000, event("alive", 5))
    write(store, 2, event("alive", 3), rank=1)
    write(store, 2, event("alive", 2))
    write(store, 1, event("alive", 0))
    store.objects[f"{FOLDER}/1000000.jsonl"] = store.objects[f"{FOLDER}/000000.jsonl"]
    assert [record["step"] for record in read_parts(store)] == [0, 0, 2, 3, 5]
    assert [record["step"] for record in read_parts(store, attempt=2)] == [2, 3]


class TestMetrics:
    """Each step's record comes from the newest attempt only (rule 12)."""

    @staticmethod
    def rows(store):
        return [(r["step"], r["attempt"], r["values"]) for r in metrics(store)]

    def test_what_a_resume_undid_is_left_out(self):
        """Attempt 2 starts from step 3: what attempt 1 logged after it does not count, even where 2 is not there yet."""
        store = MemoryStore()
        write(
            store, 1, event("attempt", 0), *(event("metrics", s, values={"loss": s}) for s in (1, 2, 3, 4, 5))
        )
        write(store, 2, event("resume", 3), event("metrics", 4, values={"loss": 40}))
        assert self.rows(store) == [
            (1, 1, {"loss": 1}),
            (2, 1, {"loss": 2}),
            (3, 1, {"loss": 3}),
            (4, 2, {"loss": 40}),
        ]

    def test_at_the_step_itself_the_newer_value_of_a_name_counts(self):
        """Training logged before the save stays; a validation that ran again is not shown twice."""
        store = MemoryStore()
        write(store, 1, event("metrics", 3, values={"loss": 1}), event("metrics", 3, values={"val": 2}))
        write(store, 2, event("resume", 3), event("metrics", 3, values={"val": 20}))
        assert self.rows(store) == [(3, 1, {"loss": 1}), (3, 2, {"val": 20})]

    def test_a_step_back_over_two_attempts(self):
        """A third attempt that falls back behind the second undoes part of both."""
        store = MemoryStore()
        write(store, 1, *(event("metrics", s, values={"a": 1}) for s in range(1, 9)))
        write(store, 2, event("resume", 6), *(event("metrics", s, values={"a": 2}) for s in range(7, 9)))
        write(store, 3, event("resume", 2), *(event("metrics", s, values={"a": 3}) for s in range(3, 5)))
        assert [(step, attempt) for step, attempt, _ in self.rows(store)] == [(1, 1), (2, 1), (3, 3), (4, 3)]

    def test_without_a_start_the_first_metric_is_it(self):
        """Where the part with the resume is damaged, the first step that the attempt logged is its start."""
        store = MemoryStore()
        write(store, 1, *(event("metrics", s, values={"a": 1}) for s in range(1, 6)))
        write(store, 2, event("metrics", 4, values={"a": 2}))
        assert [(step, attempt) for step, attempt, _ in self.rows(store)] == [(1, 1), (2, 1), (3, 1), (4, 2)]

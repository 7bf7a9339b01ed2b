"""What led to an attempt's state is read back along its line: of each attempt before it, up to the step that was resumed from."""

from __future__ import annotations

import pytest

from agent.persisting import attempt_record
from outlast._types import Logged
from outlast.checkpoint import lineage
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.lineage import logged
from outlast.checkpoint.manifest import attempt_key, seal
from saving import UTC, MemoryStore


def claim(store, number, resumed_from=None):
    nonce = f"aaa{number}"
    store.create(attempt_key(number), seal(attempt_record(number, nonce, resumed_from)))
    return EventLog(store, number, nonce, 0)


def log(events, step, **values):
    events.add({"kind": "metrics", "utc": UTC, "step": step, "values": values})


def read(store, attempt, *, after=-1, upto=10**9, said=None):
    found = logged(
        store,
        attempt,
        f"aaa{attempt}",
        0,
        after=after,
        upto=upto,
        report=[].append if said is None else said.append,
    )
    return [(each.step, each.values) for each in found]


@pytest.fixture
def store():
    """Attempt 1 logged to step 5, and 2 resumed from its step 3; 3 resumed from 1 as well, since 2 saved nothing; 4 is 3's."""
    store = MemoryStore()
    first = claim(store, 1)
    for step in range(6):
        log(first, step, loss=step + 0.1)
        if step == 3:
            log(first, step, val=30.1)
        first.flush()
    second = claim(store, 2, "00001-aaa1-000000000003")
    log(second, 3, loss=3.2, odd=1.0)
    second.flush()
    third = claim(store, 3, "00001-aaa1-000000000003+1")
    third.add({"kind": "alive", "utc": UTC, "step": 9})
    for step in range(3, 7):
        log(third, step, loss=step + 0.3)
    third.flush()
    fourth = claim(store, 4, "00003-aaa3-000000000006")
    log(fourth, 6, val=60.4)
    fourth.flush()
    return store


def test_each_step_comes_once_from_the_attempt_that_counts(store):
    """At the step that was resumed from, the newer one's value of a name; nothing of an attempt that led nowhere."""
    assert read(store, 4) == [
        (0, {"loss": 0.1}),
        (1, {"loss": 1.1}),
        (2, {"loss": 2.1}),
        (3, {"loss": 3.3, "val": 30.1}),
        (4, {"loss": 4.3}),
        (5, {"loss": 5.3}),
        (6, {"loss": 6.3, "val": 60.4}),
    ]
    assert read(store, 2) == [*read(store, 4)[:3], (3, {"loss": 3.2, "val": 30.1, "odd": 1.0})]


@pytest.mark.parametrize("after", range(-1, 8))
@pytest.mark.parametrize("upto", [2, 3, 6])
def test_any_stretch_of_it_can_be_read(store, monkeypatch, after, upto):
    """However few parts are read at once."""
    monkeypatch.setattr(lineage, "PART_READS", 2)
    assert read(store, 4, after=after, upto=upto) == [row for row in read(store, 4) if after < row[0] <= upto]


def test_what_is_near_is_found_without_reading_the_rest(store, monkeypatch):
    """A resumed run's tracker lacks the last steps mostly: the parts of older attempts are not looked at."""
    monkeypatch.setattr(lineage, "PART_READS", 2)
    store.log.clear()
    assert read(store, 4, after=4) == [(5, {"loss": 5.3}), (6, {"loss": 6.3, "val": 60.4})]
    parts = [key for operation, key in store.log if operation == "get" and key.startswith("events/")]
    assert {key.split("-")[0] for key in parts} == {"events/00003", "events/00004"}


def test_a_damaged_record_ends_the_line_and_is_said(store):
    """What is before it is not found; what is after it is."""
    store.objects[attempt_key(3)] = b"{}"
    said = []
    assert [step for step, _ in read(store, 4, said=said)] == [3, 4, 5, 6]
    assert len(said) == 1
    assert "attempt 3: its record is damaged" in said[0]


def test_a_row_says_when_it_was_logged(store):
    """For the time axis of a tracker."""
    first = next(logged(store, 1, "aaa1", 0, after=-1, upto=0, report=print))
    assert first == Logged(0, UTC, {"loss": 0.1})

"""What earlier attempts teach an attempt, from ledgers that were written as attempts write them, and from what is kept of the pool."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from persisting import attempt_record

from outlast._types import FORMAT_VERSION, Capacity
from outlast.agent.history import History, learn
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, seal
from outlast.checkpoint.pools import SpellRecord, put_spell, read_spells
from outlast.policy.hazard import Spell, estimate
from outlast.policy.interval import Costs
from saving import UTC, MemoryStore

NOTICE = ("notice", {"source": "AWS", "id": "1", "announces": "machine", "deadline_utc": None})


def utc(after_s: float) -> str:
    return (datetime.fromisoformat(UTC) + timedelta(seconds=after_s)).isoformat(timespec="milliseconds")


class Past:
    """A run on a store, and the root that it lies under."""

    def __init__(self) -> None:
        self.store, self.root = MemoryStore(), MemoryStore()

    def attempt(
        self, number: int, *events: tuple[str, dict[str, Any]], lived_s: float = 100.0, pool: str = "a"
    ) -> None:
        """An attempt that began 1000 s after the one before; its last record is of its last moment."""
        record = self.record(number, pool)
        self.store.create(attempt_key(number), seal(record))
        log = EventLog(self.store, number, "aaaa", 0)
        for kind, fields in (("alive", {}), *events):
            log.add({"kind": kind, "utc": utc(1000.0 * number + lived_s), "step": 0, **fields})
        log.flush()

    def record(self, number: int, pool: str = "a") -> AttemptRecord:
        capacity = Capacity(pool=pool)
        return msgspec.structs.replace(
            attempt_record(number), claimed_utc=utc(1000.0 * number), capacity=capacity
        )

    def learn(self, number: int) -> History:
        return learn(self.store, self.record(number), 0, self.root)

    def kept(self, pool: str = "a") -> list[tuple[int, float, str]]:
        return [(each.attempt, each.seconds, each.end) for each in read_spells(self.root, pool, but="nobody")]


@pytest.fixture
def past() -> Past:
    return Past()


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([], "lost"),
        ([("end", {"outcome": "killed"})], "lost"),
        ([NOTICE, ("end", {"outcome": "preempted"})], "lost"),
        ([NOTICE, ("save", {"reason": "emergency"}), ("end", {"outcome": "preempted"})], "saved"),
        ([NOTICE, ("save", {"reason": "emergency"})], "saved"),
        ([("end", {"outcome": "finished"})], "none"),
        ([("end", {"outcome": "error"})], "none"),
        ([("end", {"outcome": "interrupted"})], "none"),
    ],
)
def test_how_an_attempt_ended_is_what_its_ledger_says(past: Past, events: list[Any], end: str) -> None:
    past.attempt(1, *events)
    assert past.learn(2).spells == (Spell(100.0, end),)


def test_an_attempt_that_went_without_a_word_is_kept_for_others_and_one_that_ended_is_its_own_agents_to_keep(
    past: Past,
) -> None:
    """Once, however often it is looked at."""
    past.attempt(1, ("end", {"outcome": "preempted"}))
    past.learn(2)
    past.attempt(2)
    for _ in range(2):
        past.learn(3)
    assert past.kept() == [(2, 100.0, "lost")]


def test_attempts_of_another_pool_teach_nothing_of_this_one_but_count_as_training(past: Past) -> None:
    past.attempt(1, lived_s=300.0, pool="b")
    past.attempt(2, lived_s=200.0)
    found = past.learn(3)
    assert found.spells == (Spell(200.0, "lost"),)
    assert found.trained_s == 500.0


def test_what_other_runs_went_through_in_the_pool_comes_in_the_order_of_time_and_ones_own_is_not_counted_twice(
    past: Past,
) -> None:
    past.attempt(2, lived_s=20.0)
    for number, run in ((1, "x"), (3, "x"), (2, past.record(2).run_id)):
        put_spell(
            past.root, msgspec.structs.replace(past.record(number), run_id=run), Spell(10.0 * number, "saved")
        )
    put_spell(past.root, msgspec.structs.replace(past.record(9, "b"), run_id="x"), Spell(90.0, "lost"))
    assert past.learn(4).spells == (Spell(10.0, "saved"), Spell(20.0, "lost"), Spell(30.0, "saved"))


def test_what_is_damaged_of_a_pool_is_left_out(past: Past) -> None:
    put_spell(past.root, msgspec.structs.replace(past.record(1), run_id="x"), Spell(10.0, "saved"))
    (key,) = (info.key for info in past.root.list("_pools/a"))
    past.root.create(key.replace("00001", "00002"), b"{}")
    assert past.learn(1).spells == (Spell(10.0, "saved"),)


def test_a_share_of_the_run_is_of_all_its_attempts_not_of_those_that_are_read(past: Past) -> None:
    """Of thirty attempts the last twelve are read; each wrote down what was before it."""
    for number in range(1, 31):
        before_s = past.learn(number).trained_s
        past.attempt(number, ("interval", {"trained_before_s": before_s}))
    assert past.learn(31).trained_s == 30 * 100.0


def test_what_saves_cost_is_that_of_the_last_attempt_that_measured_any(past: Past) -> None:
    figures = {"pause_s": 0.5, "upload_s": 5.0, "step_s": 0.1}
    past.attempt(1, ("interval", {**figures, "upload_s": 9.0}), ("interval", figures))
    past.attempt(2)
    assert past.learn(3).costs == Costs(0.5, 5.0, 0.1)


def test_without_a_root_a_run_learns_from_itself(past: Past) -> None:
    past.attempt(1)
    assert learn(past.store, past.record(2), 0, None).spells == (Spell(100.0, "lost"),)


@pytest.mark.parametrize("bad", [{"seconds": 1e308}, {"seconds": -1e6}, {"pool": "b"}])
def test_what_no_attempt_can_have_written_teaches_nothing(past: Past, bad: dict[str, Any]) -> None:
    """It lies in a store that others write to as well."""
    good = past.record(1)
    put_spell(past.root, good, Spell(100.0, "lost"))
    record = SpellRecord(
        format=FORMAT_VERSION, run_id="0", attempt=2, pool="a", machine_type=None, began_utc=UTC, seconds=5.0, end="lost"
    )  # fmt: skip
    past.root.create("_pools/a/1-0-00002-aaaa.json", seal(msgspec.structs.replace(record, **bad)))
    assert past.kept() == [(1, 100.0, "lost")]


def test_machines_that_die_at_once_leave_a_rate_that_can_be_reckoned_with() -> None:
    """Fifty of them in a row."""
    found = estimate([Spell(0.0, "lost")] * 50, 3600.0)
    assert found.per_s == 1 / 60

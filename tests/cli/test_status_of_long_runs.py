"""`outlast status` of a run that has trained for days: what it shows, and how little of the ledger it reads for that."""

from __future__ import annotations

import json
import os

import msgspec
import pytest

from outlast._process import process_id
from outlast._types import Capacity
from outlast.checkpoint import catalog
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, seal
from outlast.cli import status
from outlast.cli._recent import ENDING_PARTS, ENDINGS_READ, HEAD_PARTS, LOOK_BACK_PARTS
from saving import RUN_ID, UTC, MemoryStore, id_of, save

HERE = process_id(os.getpid())
ATTEMPTS = 5
MOST_PARTS = LOOK_BACK_PARTS + (ATTEMPTS - 1) * ENDING_PARTS + ATTEMPTS * HEAD_PARTS + 1
"""What may be read of the ledger of so many attempts; one more is the part that reaches to the newest checkpoint."""


class Run:
    """A run in memory whose ledger the test writes, a part for each call of `put`."""

    def __init__(self, monkeypatch, capsys):
        self.store = MemoryStore()
        self.record = catalog.create_run(self.store, RUN_ID, UTC)
        self._capsys = capsys
        self._logs = {}
        monkeypatch.setattr(status, "open_run", lambda _: (self.store, self.record))
        monkeypatch.setenv("COLUMNS", "80")

    def attempt(self, number, **known):
        record = AttemptRecord(
            format=1, run_id=RUN_ID, attempt=number, nonce="aaaa", claimed_utc=UTC, world_size=1,
            global_batch=8, launch_id="l", job_id=None, agent=HERE, trainer=HERE, settings={}, **{"resumed_from": None, **known},
        )  # fmt: skip
        self.store.create(attempt_key(number), seal(record))
        self._logs[number] = EventLog(self.store, number, "aaaa", 0)

    def put(self, number, *events):
        for kind, step, fields in events:
            self._logs[number].add({"kind": kind, "utc": UTC, "step": step, **fields})
        return self._logs[number].flush()

    def beats(self, number, count, step=0, *, log=False):
        for beat in range(count):
            alive = ("alive", 0, {"agent": msgspec.to_builtins(HERE)})
            logged = ("metrics", step + beat, {"values": {"loss": float(step + beat)}})
            self.put(number, alive, *((logged,) if log else ()))

    def status(self):
        self.store.log.clear()
        status.status("gpt", json=True)
        found = json.loads(self._capsys.readouterr().out)
        read = sum(op == "get" and key.startswith("events/") for op, key in self.store.log)
        lists = sum(op == "list" and key.startswith("events/") for op, key in self.store.log)
        return found, read, lists

    def text(self):
        status.status("gpt")
        return " ".join(self._capsys.readouterr().out.split())


@pytest.fixture
def run(monkeypatch, capsys):
    return Run(monkeypatch, capsys)


def test_days_of_training_are_told_from_a_few_parts(run):
    """Five attempts of 2,000 parts each: one listing, a bounded number of reads, and everything that is shown is right."""
    for number in range(1, ATTEMPTS + 1):
        run.attempt(number)
        run.put(number, ("attempt", 0, {}))
        run.put(number, ("resume", 1000 * number, {"guarantee": "bit-exact"}))
        run.beats(number, 2000, 1000 * number, log=True)
        if number < 5:
            run.put(number, ("notice", 9, {"source": "file", "deadline_utc": None}))
            run.put(number, ("save", 9, {}))
            run.put(number, ("end", 9, {"outcome": "preempted"}))
    run.put(
        5,
        ("save", 6990, {"seconds": 1.5, "bytes": 2 << 30, "bytes_copied": 1 << 20, "bytes_written": 3 << 20}),
    )
    run.put(5, ("warning", 6999, {"cause": "x", "message": "open"}))
    run.beats(5, 10, 7000, log=True)
    found, read, lists = run.status()
    assert (read <= MOST_PARTS, lists) == (True, 1)
    assert (found["resume"]["attempt"], found["resume"]["step"]) == (5, 5000)
    assert (found["notice"]["attempt"], found["save"]["step"]) == (4, 6990)
    assert [w["message"] for w in found["warnings"]] == ["open"]
    assert found["metrics"]["step"] == 7009
    assert [a["outcome"] for a in found["attempts"]] == ["preempted"] * 4 + [None]
    assert "last save durable in 1.5 s; 3.0 MiB written, 1.0 MiB copied of 2.0 GiB" in run.text()


def test_it_looks_back_as_far_as_the_last_save(run):
    """Nothing but signs of life for a quarter of an hour: warnings from before the last save are not shown as open."""
    run.attempt(1)
    run.put(1, ("warning", 1, {"cause": "x", "message": "old"}))
    run.put(1, ("save", 2, {"seconds": 1.0}))
    run.beats(1, LOOK_BACK_PARTS - 10)
    found, read, _ = run.status()
    assert (found["save"]["step"], found["warnings"]) == (2, [])
    assert read <= MOST_PARTS


def test_what_is_long_past_is_not_shown_as_the_latest(run):
    """A run that has not saved for hours: its first save is not called its last, nor is what it logged then."""
    run.attempt(1)
    run.put(1, ("save", 2, {"seconds": 1.0}), ("metrics", 2, {"values": {"loss": 1.0}}))
    run.beats(1, 500)
    found, read, _ = run.status()
    assert (found["save"], found["metrics"]) == (None, None)
    assert read <= MOST_PARTS


def test_metrics_of_the_newest_checkpoint_are_found_wherever_they_are(run):
    """An attempt that trained on for an hour without a save was lost; right after the resume, what was saved counts."""
    run.attempt(1)
    run.beats(1, 300, log=True)
    save(run.store, id_of(100), {"x": b"1"}, events="events/00001-aaaa-00000/000100.jsonl")
    run.attempt(2)
    run.put(2, ("resume", 100, {"guarantee": "bit-exact"}))
    assert run.status()[0]["metrics"]["step"] == 100


def test_what_was_deleted_last_is_said(run):
    """How many checkpoints, how much, and when."""
    run.attempt(1)
    run.put(1, ("deleted", 9, {"checkpoints": ["a"], "bytes": 7}))
    run.put(1, ("deleted", 9, {"checkpoints": ["b", "c"], "bytes": 3 << 20}))
    assert run.status()[0]["deleted"]["checkpoints"] == ["b", "c"]
    assert "deleted 2 checkpoints, 3.0 MiB, " in run.text()


def test_a_store_that_fails_is_said_until_it_is_back(run):
    """Since when, and with what; once it is back, or something is durable, no more."""
    run.attempt(1)
    lost = ("store-lost", 5, {"error": "bucket full"})
    run.put(1, ("save", 4, {"seconds": 1.0}), lost)
    assert run.status()[0]["store_lost"]["step"] == 5
    assert "not durable the store fails, since" in run.text()
    assert "bucket full" in run.text()
    for kind in ("store-back", "save"):
        run.put(1, (kind, 6, {"seconds": 60.0}))
        assert run.status()[0]["store_lost"] is None
        assert "not durable" not in run.text()
        run.put(1, lost)


def test_attempts_whose_records_are_lost_are_no_reason_to_fail(run):
    """What is durable is said all the same."""
    run.attempt(1)
    run.put(1, ("metrics", 100, {"values": {"loss": 0.5}}))
    save(run.store, id_of(100), {"x": b"1"}, events="events/00001-aaaa-00000/000000.jsonl")
    run.store.delete([attempt_key(1)])
    found, _, _ = run.status()
    assert (found["durable"]["step"], found["attempts"]) == (100, [])


def notice(number, id, announces="machine"):  # noqa: A002 - the field's name
    """A record of a notice; each has its own source here."""
    return ("notice", number, {"source": id, "id": id, "announces": announces, "deadline_utc": None})


def test_what_became_of_each_notice_is_told_of_every_attempt(run):
    """From each attempt's last parts, though minutes of signs of life lie between the notice and the end."""
    for number in range(1, 9):
        run.attempt(number)
        run.beats(number, 100, log=True)
        run.put(number, notice(7, f"aws-{number}"), notice(7, f"hint-{number}", "hint"))
        run.beats(number, 10)
        if number in (2, 5, 8):
            run.put(number, ("save", 9, {"reason": "emergency"}))
        run.put(number, ("end", 9, {"outcome": "preempted"}))
    found, _, _ = run.status()
    told = {n["source"]: n["outcome"] for n in found["notices"]}
    for number in range(1, 9):
        assert told[f"aws-{number}"] == told[f"hint-{number}"] == ("saved" if number in (2, 5, 8) else "lost")
    assert found["recall"] == {"saved": 3, "counted": 8, "share": 3 / 8}
    assert "recall 3 of 8 notices led to a durable save (38%); not those of aws-1, aws-3" in run.text()
    assert "notice hint-8," in run.text()


def test_of_hundreds_of_attempts_the_newest_are_told(run):
    """So that what is read stays bounded."""
    for number in range(1, ENDINGS_READ + 11):
        run.attempt(number)
        run.beats(number, ENDING_PARTS)
        run.put(number, notice(7, f"aws-{number}"), ("save", 8, {"reason": "emergency"}), ("end", 9, {}))
    found, read, lists = run.status()
    assert found["recall"] == {"saved": ENDINGS_READ, "counted": ENDINGS_READ, "share": 1.0}
    assert (read <= LOOK_BACK_PARTS + ENDINGS_READ * (ENDING_PARTS + HEAD_PARTS), lists) == (True, 1)


def test_a_notice_that_has_just_come_is_not_held_against_the_save_that_is_under_way(run):
    """It is not saved yet, and counts for nothing until the attempt has ended."""
    run.attempt(1)
    run.put(1, notice(7, "aws"))
    found, _, _ = run.status()
    assert found["recall"] == {"saved": 0, "counted": 0, "share": None}
    assert "ago; not saved yet" in run.text()
    run.put(1, ("notice-cancelled", 8, {"source": "aws"}))
    assert run.status()[0]["notices"][0]["outcome"] == "cancelled"
    assert "not saved yet" not in run.text()


@pytest.mark.parametrize(
    ("minutes", "price_usd", "unknown", "looks"),
    [(1, 1.0, 0, 1), (15, 1.0, 0, 2), (60, 1.0, 1, 2), (15, None, 1, 1)],
)
def test_what_an_attempt_lost_is_known_where_its_saves_are_rare(run, minutes, price_usd, unknown, looks):
    """It is looked for beyond the attempt's last parts, up to half an hour back, where there is a price that makes it worth the reads."""
    capacity, kept = Capacity(pool="a", usd_per_hour=price_usd), id_of(10, attempt=1).name
    run.attempt(1, capacity=capacity)
    run.put(1, ("save", 10, {"checkpoint": kept, "seconds": 0.0}))
    run.beats(1, minutes * 60 // 25)
    run.attempt(2, capacity=capacity, resumed_from=kept)
    run.put(2, ("alive", 0, {}))
    found, read, lists = run.status()
    assert (found["cost"]["attempts_with_unknown_loss"], lists) == (unknown, looks)
    assert read <= MOST_PARTS + LOOK_BACK_PARTS

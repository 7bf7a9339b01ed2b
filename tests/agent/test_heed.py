"""What the agent does about each kind of notice: by the words that the trainer sees, the store, and what it wrote down."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from persisting import Gate, Saver

from outlast._types import Reason
from outlast.agent import heed, server
from outlast.agent.bases import FullEvery
from outlast.agent.control import Phase, Stop, Word
from outlast.agent.heed import QUIET_S, Heed
from outlast.agent.protocol import NoticeHeard
from outlast.agent.server import Loop
from outlast.checkpoint import catalog, writer, writing
from outlast.notice.base import Notice, Polled
from outlast.notice.watch import Watch
from saving import MemoryStore, id_of, state_of

SIZES = {"weight": 3000}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Chunks of little data, as in a large state."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 2000)


class Quiet:
    """Stands where the retention stands; whether it is told to pause."""

    paused = False

    def pause(self, paused: bool) -> None:
        self.paused = paused


class Heeding(Saver):
    """A persister whose commits the notices hear of."""

    def __init__(self, store=None, **how) -> None:
        super().__init__(store or MemoryStore(), **how)
        self.retention, self.notes = Quiet(), []
        self.heed = Heed(
            self.page,
            self.persister,
            self.retention,
            say=self.said.append,
            note=lambda kind, **fields: self.notes.append((kind, fields)),
        )
        self.persister._hooks = dataclasses.replace(
            self.persister._hooks, committed=lambda id, manifest: self.heed.committed(id, manifest.reason)
        )
        self.page[Word.PHASE] = Phase.TRAINING

    @property
    def seen(self) -> tuple[int, int]:
        """What the trainer is told: whether to leave, and how many emergency saves were asked for."""
        return self.page[Word.STOP], self.page[Word.EMERGENCIES]

    def noted(self, kind: str) -> list[dict]:
        return [fields for noted, fields in self.notes if noted == kind]


@pytest.fixture
def heeding():
    """Make them; they end with the test."""
    made = []

    def make(*args, **how):
        made.append(Heeding(*args, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def notice(kind="machine", seconds: float | None = 100.0, source="a source", number=1) -> Notice:
    deadline_s = None if seconds is None else time.monotonic() + seconds
    return Notice(f"{source}-{number}", source, kind, deadline_s, datetime.now(UTC))


def test_what_is_printed_waits_from_a_notice_to_its_commit_and_no_longer(heeding, monkeypatch):
    """Nor for a save that does not come: then what is printed says why."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    assert not one.heed.is_saving
    one.heed.look((notice(),))
    assert one.heed.is_saving
    one.save(2, state_of(2, SIZES), reason=Reason.EMERGENCY)
    assert not one.heed.is_saving
    one.heed.look((notice(), notice(source="another")))
    assert one.heed.is_saving
    monkeypatch.setattr(heed, "AWAITED_S", 0.0)
    assert not one.heed.is_saving


@pytest.mark.parametrize(
    ("kind", "seconds", "stop", "asked"),
    [
        ("signal", 100.0, Stop.LEAVE, 0),
        ("warning", 100.0, Stop.LEAVE, 0),
        ("machine", 100.0, Stop.NO, 1),
        ("machine", 1.0, Stop.LEAVE, 0),
        ("machine", None, Stop.LEAVE, 0),
        ("hint", 100.0, Stop.NO, 1),
        ("hint", 1.0, Stop.NO, 1),
        ("hint", None, Stop.NO, 1),
    ],
)
def test_who_leaves_and_who_trains_on(heeding, kind, seconds, stop, asked):
    """Once saves are measured: leave, or one save that is not left after; taken back, training goes on in any case."""
    stands = notice(kind, seconds)
    one = heeding()
    one.save(1, state_of(1, SIZES))
    for _ in range(3):
        one.heed.look((stands,))
    assert one.seen == (stop, asked)
    one.heed.look(())
    assert one.seen == (Stop.NO, asked)
    assert one.page[Word.DEADLINE_NS] == 0
    assert len(one.noted("notice")) == len(one.noted("decision")) == len(one.noted("notice-cancelled")) == 1


def test_a_machine_is_left_at_once_where_no_save_was_measured(heeding):
    """Nobody knows what a save takes; a hint is trained on all the same."""
    one = heeding()
    one.heed.look((notice("machine"),))
    assert one.seen == (Stop.LEAVE, 0)
    other = heeding()
    other.heed.look((notice("hint"),))
    assert other.seen == (Stop.NO, 1)


def test_a_hint_bounds_no_wait_and_hurries_nothing(heeding):
    """Nobody says that the machine goes: old checkpoints are deleted as ever, and the trainer is told no deadline."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    one.heed.look((notice("hint", 5.0),))
    assert one.page[Word.DEADLINE_NS] == 0
    assert one.heed.leaves_at_s == math.inf
    assert not one.retention.paused
    assert not one.persister._rushed


def test_each_notice_asks_once_and_the_earliest_deadline_counts(heeding):
    """A hint, then a machine's notice, then a signal, which leaves."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    hint, machine, signal = notice("hint"), notice("machine", 50.0, "b"), notice("signal", 80.0, "c")
    one.heed.look((hint,))
    one.heed.look((hint, machine))
    assert one.seen == (Stop.NO, 2)
    one.heed.look((hint, machine, signal))
    assert one.seen == (Stop.LEAVE, 2)
    assert one.page[Word.DEADLINE_NS] == int(machine.deadline_s * 1e9)


def test_a_deadline_that_has_come_is_not_the_one_that_a_newer_notice_is_saved_against(heeding):
    """This machine outlived it: what is left is until the next."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    passed, ahead = notice("machine", -5.0), notice("machine", 50.0, "b")
    one.heed.look((passed,))
    assert one.page[Word.DEADLINE_NS] == int(passed.deadline_s * 1e9)
    one.heed.look((ahead, passed))
    assert one.page[Word.DEADLINE_NS] == int(ahead.deadline_s * 1e9)
    assert [decision["what"] for decision in one.noted("decision")] == ["keep", "snapshot"]


def test_nothing_is_deleted_and_nothing_saved_in_full_in_the_last_minutes(heeding):
    """From the notice on; a machine that goes next week is not waited for like this."""
    one = heeding(full=FullEvery(saves=1))
    one.save(1, state_of(1, SIZES))
    assert one.page[Word.WHOLE] == 1
    one.heed.look((notice("machine", QUIET_S + 100.0),))
    assert (one.retention.paused, one.page[Word.WHOLE]) == (False, 1)
    one.heed.look((notice("machine", 100.0),))
    assert (one.retention.paused, one.page[Word.WHOLE]) == (True, 0)
    name = one.save(2, state_of(1, SIZES))
    assert {chunk.segment for chunk in chunks(one.persister._once._store, name)} == {
        chunk.segment for chunk in chunks(one.persister._once._store, id_of(1).name)
    }
    one.heed.look(())
    assert (one.retention.paused, one.page[Word.WHOLE]) == (False, 1)


def chunks(store, name):
    """Every chunk that a checkpoint refers to."""
    (manifest,) = catalog.load(store, next(i for i in catalog.committed(store) if i.name == name)).manifests
    return [chunk for tensor in manifest.tensors for held in tensor.slices for chunk in held.chunks]


def test_the_outcome_is_written_down_once_with_its_seconds(heeding):
    """Durable by an emergency save; an interval save is none."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    one.heed.look((notice("machine"),))
    one.save(2, state_of(2, SIZES))
    assert one.noted("notice-outcome") == []
    for step in (3, 4):
        name = one.save(step, state_of(step, SIZES), reason=Reason.EMERGENCY)
        assert name
    one.heed.end()
    (outcome,) = one.noted("notice-outcome")
    assert (outcome["durable"], outcome["checkpoint"]) == (True, id_of(3).name)
    assert outcome["seconds"] >= 0
    assert one.heed.served == ("a source-1",)


def test_a_notice_that_led_to_no_save_is_written_down_as_such(heeding):
    """The trainer has gone on since the last durable step, and died."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    one.heed.look((notice("machine"),))
    one.page[Word.STEPS] = 7
    one.heed.end()
    assert [outcome["durable"] for outcome in one.noted("notice-outcome")] == [False]
    assert one.heed.served == ()


def test_a_notice_in_the_place_of_another_is_decided_upon_anew(heeding):
    """A second rebalance recommendation, seen in the look that no longer sees the first: it gets its own save and its own outcome."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    one.heed.look((notice("hint", None),))
    one.save(2, state_of(2, SIZES), reason=Reason.EMERGENCY)
    one.heed.look((notice("hint", None, number=2),))
    assert one.seen == (Stop.NO, 2)
    assert one.heed.served == ()
    one.save(3, state_of(3, SIZES), reason=Reason.EMERGENCY)
    outcomes = [(outcome["id"], outcome["checkpoint"]) for outcome in one.noted("notice-outcome")]
    assert outcomes == [("a source-1", id_of(2).name), ("a source-2", id_of(3).name)]
    told = [kind for kind, _ in one.notes if kind in ("notice", "decision", "notice-cancelled")]
    assert told == ["notice", "decision", "notice-cancelled", "notice", "decision"]


@pytest.mark.parametrize("kind", ["machine", "signal", "leave"])
def test_a_hint_that_becomes_an_end_is_decided_upon_anew(heeding, kind):
    """What was saved for the hint is not what the end led to: it gets a save of its own, or none, and its outcome says which."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    one.heed.look((notice("hint", 700.0),))
    one.save(2, state_of(2, SIZES), reason=Reason.EMERGENCY)
    one.page[Word.STEPS] = 500
    one.heed.look((notice(kind, 590.0),))
    assert one.seen == ((Stop.NO, 2) if kind == "machine" else (Stop.LEAVE, 1))
    assert len(one.noted("decision")) == 2
    assert one.heed.served == ()
    assert one.noted("notice-cancelled") == []
    one.heed.end()
    assert [outcome["durable"] for outcome in one.noted("notice-outcome")] == [True, False]


def test_an_end_that_is_put_off_until_it_is_a_hint_is_taken_back(heeding):
    """The trainer is not to leave any more, and the ledger says why."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    one.heed.look((notice("machine", 1.0),))
    assert one.page[Word.STOP] == Stop.LEAVE
    one.heed.look((notice("hint", 7000.0),))
    assert one.page[Word.STOP] == Stop.NO
    told = [(kind, fields.get("announces")) for kind, fields in one.notes if kind.startswith("notice")]
    assert told == [("notice", "machine"), ("notice-cancelled", None), ("notice", "hint")]


def test_a_trainer_that_hangs_has_what_is_held_saved_in_time(heeding):
    """No safe point comes any more: not at once, where time is left, but before the deadline, as an emergency."""
    one = heeding()
    one.save(1, state_of(1, SIZES))
    held = one.submit(2, state_of(2, SIZES), hold=True)
    one.heed.look((notice("machine"),))
    assert not one.is_answered(held)
    one.heed.look((notice("machine", 0.5),))
    assert one.answer(held).checkpoint == id_of(2).name
    (manifest,) = catalog.load(one.persister._once._store, id_of(2)).manifests
    assert manifest.reason is Reason.EMERGENCY


class Awaited:
    """A trainer whose steps take 0.2 s and whose saves take 10 s; a snapshot of it is held, of step 2."""

    def __init__(self, heeding, monkeypatch) -> None:
        self.one = heeding()
        self.one.persister.precede([(10.0, sum(SIZES.values()))])
        self.released: list[Reason] = []
        monkeypatch.setattr(self.one.persister, "release", self.released.append)
        self.at(1, 0.2)
        self.one.submit(2, state_of(2, SIZES), hold=True)
        self.at(2, 0.0)

    def at(self, step: int, ago_s: float) -> None:
        """It was at a safe point so long ago, and the agent has seen it."""
        self.one.page[Word.STEPS] = step
        self.one.page[Word.SAFE_POINT_NS] = time.monotonic_ns() - int(ago_s * 1e9)
        self.one.heed.look(())

    def look(self, left_s: float) -> bool:
        """Whether what is held is saved without waiting for the trainer, with so much time left."""
        self.released.clear()
        self.one.heed.look((notice("signal", left_s),))
        assert self.one.page[Word.STOP] == Stop.LEAVE
        return bool(self.released)


def test_a_safe_point_that_still_leaves_time_for_its_save_is_waited_for(heeding, monkeypatch):
    """Though a warning was never long enough for any margin; not one that is overdue, nor where its save would not fit."""
    trainer = Awaited(heeding, monkeypatch)
    assert not trainer.look(12.0)
    assert trainer.look(11.1)
    trainer.one.page[Word.SAFE_POINT_NS] -= 10**9
    assert not trainer.look(12.0)
    trainer.one.page[Word.SAFE_POINT_NS] -= 10**9
    assert trainer.look(12.0)
    assert trainer.look(25.0)


def test_a_trainer_that_takes_a_snapshot_is_waited_for(heeding, monkeypatch):
    """However long ago its safe point was, and in an epoch's tail; as long as what it takes still fits."""
    trainer = Awaited(heeding, monkeypatch)
    page = trainer.one.page
    page[Word.SAFE_POINT_NS] -= 5 * 10**9
    page[Word.PHASE] = Phase.TAIL
    page[Word.TAKING] = 1
    assert not trainer.look(10.5)
    assert trainer.look(9.9)
    page[Word.TAKING] = 0
    assert trainer.look(12.0)


def test_what_waits_while_another_save_is_written_becomes_an_emergency_save(heeding):
    """The newest complete snapshot, though it is neither held nor begun."""
    gate = Gate()
    one = heeding(MemoryStore(gate))
    gate.close()
    first = one.submit(1, state_of(1, SIZES), reason=Reason.USER)
    assert gate.reached.wait(30)
    second = one.submit(2, state_of(2, SIZES))
    one.persister.release(Reason.EMERGENCY)
    gate.open()
    assert one.answer(first).checkpoint == id_of(1).name
    assert one.answer(second).checkpoint == id_of(2).name
    (manifest,) = catalog.load(one.persister._once._store, id_of(2)).manifests
    assert manifest.reason is Reason.EMERGENCY


def test_an_emergency_save_that_waits_gives_its_place_to_a_newer_one(heeding):
    """What a newer state holds includes it; one that was pinned is kept."""
    gate = Gate()
    one = heeding(MemoryStore(gate))
    gate.close()
    one.submit(1, state_of(1, SIZES), reason=Reason.USER)
    assert gate.reached.wait(30)
    older = one.submit(2, state_of(2, SIZES), reason=Reason.EMERGENCY)
    newer = one.submit(3, state_of(3, SIZES), reason=Reason.EMERGENCY)
    assert one.answer(older).checkpoint is None
    gate.open()
    assert one.answer(newer).checkpoint == id_of(3).name


def test_what_is_being_written_goes_on_with_normal_priority(heeding):
    """What was written stays, and is not written twice; the rest is written by threads that are not lowered."""
    gate, wrote = Gate(), []

    def before(operation: str, key: str) -> None:
        gate(operation, key)
        if operation == "write":
            wrote.append((key, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

    one = heeding(MemoryStore(before))
    gate.close()
    slow = one.submit(1, state_of(1, {"base": 20_000}))
    assert gate.reached.wait(30)
    one.persister.hurry(True)
    gate.open()
    assert one.answer(slow).checkpoint == id_of(1).name
    keys = [key for key, _ in wrote]
    assert len(keys) == len(set(keys)) > writing.WRITE_THREADS
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert [nice for _, nice in wrote[writing.WRITE_THREADS :]] == [usual] * (
        len(keys) - writing.WRITE_THREADS
    )
    assert one.persister.measured().save_s is not None


class Acknowledging:
    """A source that can be told that what its notice was for is done."""

    def __init__(self, *notices: Notice) -> None:
        self.notices, self.acknowledged = notices, []

    def poll(self, now_s, now_utc) -> Polled:
        return Polled(self.notices)

    def fileno(self) -> None:
        return None

    def acknowledge(self, notice_id: str) -> None:
        self.acknowledged.append(notice_id)

    def close(self) -> None:
        pass


def test_a_source_is_told_of_its_own_notice_once_the_trainer_has_ended():
    """And of those only that led to a durable save."""

    class Ended:
        served = ("mine-1", "another-1")

    mine = Acknowledging(notice(source="mine"), notice(source="mine, unserved"))
    other = Acknowledging()
    watch = Watch([mine, other])
    watch.poll()
    Loop(watch).ended(Ended())
    assert (mine.acknowledged, other.acknowledged) == (["mine-1"], [])


@pytest.mark.parametrize("seconds", [30.0, None])
def test_a_deadline_that_has_come_hides_no_newer_notice_of_its_source(seconds):
    """This machine outlived the first, though not by a minute yet."""
    first, second = notice(seconds=-5.0), notice(seconds=seconds, number=2)
    loop = Loop(Watch([Acknowledging(first, second)]))
    loop.tick(None)
    assert loop.standing == (second,)


@pytest.mark.parametrize("seconds", [-5.0, 30.0])
def test_a_hint_hides_no_end_of_its_source(seconds):
    """Two maintenance events: the order to leave for the one stands for as long as the machine has not outlived it."""
    end, hint = notice(seconds=seconds), notice(seconds=9e4, number=2, kind="hint")
    loop = Loop(Watch([Acknowledging(hint, end)]))
    loop.tick(None)
    assert loop.standing == (end,)


def test_of_several_deadlines_that_have_come_the_newest_notice_stands():
    """Else the older ones would be taken for new ones in turn."""
    first, second = notice(seconds=-5.0), notice(seconds=-1.0, number=2)
    loop = Loop(Watch([Acknowledging(first, second)]))
    loop.tick(None)
    assert loop.standing == (second,)


def test_a_signal_that_the_trainer_told_of_first_is_one_notice_before_and_after_its_deadline(monkeypatch):
    """The agent gets it a moment later, and reckons a deadline of its own; only one that comes after the deadline is another."""
    now = [1000.0]
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now[0]))
    first, again = (
        Notice(f"SIGTERM-{number}", "SIGTERM", "signal", deadline_s, None)
        for number, deadline_s in ((1, 1030.1), (2, 1070.0))
    )
    source = Acknowledging()
    loop = Loop(Watch([source]))
    loop.trainer_heard(NoticeHeard(source="SIGTERM", grace_s=30.0))
    loop.tick(None)
    (told,) = loop.standing
    source.notices = (first,)
    loop.tick(None)
    assert loop.standing == (told,)
    now[0] = 1030.05
    assert loop.standing == (told,)
    now[0] = 1040.0
    assert loop.standing == (told,)
    source.notices = (again,)
    loop.tick(None)
    assert loop.standing == (again,)

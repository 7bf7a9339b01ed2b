"""What trackers are handed, and when: trackers in the test's own process, and a ledger that is a dictionary."""

from __future__ import annotations

import threading
import time

from launch import DEADLINE_S, eventually
from outlast._types import Logged, Reason
from outlast.agent.protocol import Snapshot, ToldLogged
from outlast.trainer import feed
from outlast.trainer.tracker import TrackedRun
from outlast.trainer.tracking import Tracking
from saving import UTC

RUN = TrackedRun("1234", "run", 1)


class Memory:
    """A tracker that keeps rows, and does at each call what it is told to.

    Attributes:
        has: what `open` answers.
        at: called with the name of each call.
    """

    def __init__(self, has=None, at=lambda _: None):
        self.has, self.at = has, at
        self.rows = []
        self.opened = 0
        self.outcome = None

    def open(self, run):
        assert run == RUN
        self.at("open")
        self.opened += 1
        return self.has

    def write(self, rows):
        self.at("write")
        assert rows
        self.rows += [(row.step, row.values) for row in rows]
        self.has = self.rows[-1][0]

    def close(self, outcome):
        self.at("close")
        self.outcome = outcome


class Ledger:
    """Answers what a tracking asks, as an agent does, two steps at a time; `is_silent`: it does not."""

    def __init__(self, rows=()):
        self.rows = dict(rows)
        self.is_silent = False
        self.asked = []
        self.tracking = Tracking(self.ask)

    def ask(self, request):
        self.asked.append((request.after, request.upto))
        if not self.is_silent:
            threading.Thread(target=self.answer, args=(request,)).start()

    def answer(self, request):
        steps = [
            Logged(step, UTC, values)
            for step, values in sorted(self.rows.items())
            if request.after < step <= request.upto
        ]
        self.tracking.heard(
            ToldLogged(reader=request.reader, steps=tuple(steps[:2]), more=len(steps) > 2, error=None)
        )

    def durable(self, step):
        """A snapshot of a step is durable."""
        self.tracking.heard(snapshot(step))


class Waits(threading.Condition):
    """Counts the waits for what is not so yet."""

    waits = 0

    def wait_for(self, predicate, timeout=None):
        self.waits += not predicate()
        return super().wait_for(predicate, timeout)


def snapshot(step):
    return Snapshot(
        number=1, index=0, step=step, repeat=0, reason=Reason.INTERVAL, pinned=False, finished=False, hold=False,
        tree=None, position=None, settings={}, tensors=(), base=None, best=None,
    )  # fmt: skip


def finish(tracking, outcome="finished", *, final=True):
    return tracking.finish(outcome, lambda at=time.monotonic() + DEADLINE_S: at, final=final)


def has_rows(tracker, *steps):
    eventually(
        f"it has {steps}", lambda: [step for step, _ in tracker.rows] == list(steps), lambda: tracker.rows
    )


def test_a_step_is_shown_once_it_is_durable_and_whole():
    """All that is logged at a step is one row; the step that a save stands at is not over."""
    ledger = Ledger()
    tracker = Memory()
    ledger.tracking.add(tracker, RUN, None)
    for step in range(4):
        ledger.tracking.log(step, {"loss": float(step)})
    ledger.tracking.log(3, {"val": 30.0})
    ledger.durable(3)
    has_rows(tracker, 0, 1, 2)
    ledger.tracking.log(3, {"loss": 3.5})
    assert finish(ledger.tracking) == []
    assert tracker.rows[3:] == [(3, {"loss": 3.5, "val": 30.0})]
    assert tracker.outcome == "finished"
    assert not ledger.asked


def test_a_resume_reads_back_what_a_tracker_lacks():
    """Also what was logged, before the save, at the very step that this attempt goes on with."""
    before = {step: {"loss": float(step)} for step in range(6)} | {5: {"val": 50.0}}
    ledger = Ledger(before)
    behind, level, ahead = Memory(has=1), Memory(has=4), Memory(has=6)
    for tracker in (behind, level, ahead):
        ledger.tracking.add(tracker, RUN, 5)
    for step in (5, 6, 7):
        ledger.tracking.log(step, {"loss": float(step)})
    ledger.durable(7)
    assert finish(ledger.tracking, "preempted", final=False) == []
    assert behind.rows == [
        *((s, before[s]) for s in (2, 3, 4)),
        (5, {"val": 50.0, "loss": 5.0}),
        (6, {"loss": 6.0}),
    ]
    assert level.rows == behind.rows[3:]
    assert ahead.rows == [], "what it has is not shown again"


def test_a_new_agent_is_asked_again():
    """The one that was asked is gone with its answer."""
    ledger = Ledger({0: {"loss": 0.0}})
    ledger.is_silent = True
    tracker = Memory()
    ledger.tracking.add(tracker, RUN, 1)
    eventually("it is asked", lambda: ledger.asked)
    ledger.is_silent = False
    ledger.tracking.heard(None)
    has_rows(tracker, 0)


def test_what_a_hanging_tracker_has_no_room_for_is_read_back(monkeypatch):
    """Rows do not pile up in memory without end."""
    monkeypatch.setattr(feed, "MOST_ROWS", 3)
    gate = threading.Event()
    ledger = Ledger({step: {"loss": float(step)} for step in range(20)})
    tracker = Memory(at=lambda call: call == "write" and gate.wait(DEADLINE_S))
    ledger.tracking.add(tracker, RUN, None)
    for step in range(20):
        ledger.tracking.log(step, {"loss": float(step)})
        ledger.durable(step)
    gate.set()
    assert finish(ledger.tracking) == []
    assert tracker.rows == sorted(ledger.rows.items())
    assert ledger.asked


def test_a_tracker_that_failed_is_opened_again_and_lacks_nothing(monkeypatch, capsys):
    """It is said once; what it lost meanwhile is read back."""
    monkeypatch.setattr(feed, "_FIRST_PAUSE_S", 0.001)
    failures = [OSError("no route")] * 3
    ledger = Ledger({step: {"loss": float(step)} for step in range(9)})

    def at(call):
        if call == "write" and tracker.rows and failures:
            tracker.rows, tracker.has = tracker.rows[:1], tracker.rows[0][0]
            raise failures.pop()

    tracker = Memory(at=at)
    ledger.tracking.add(tracker, RUN, None)
    for step in range(9):
        ledger.tracking.log(step, {"loss": float(step)})
        ledger.durable(step)
        if step == 4:
            eventually("it has some", lambda: tracker.rows)
    eventually("it works again", lambda: not failures and len(tracker.rows) == 8, lambda: tracker.rows)
    assert finish(ledger.tracking) == []
    assert tracker.rows == sorted(ledger.rows.items())
    assert capsys.readouterr().err.count("Memory fails (OSError: no route)") == 1


def test_nothing_is_begun_between_a_notice_and_its_save():
    """The seconds belong to the save; a hang is no reason to hold anything longer than that."""
    ledger = Ledger()
    tracker = Memory()
    ledger.tracking.add(tracker, RUN, None)
    eventually("it is open", lambda: tracker.opened)
    ledger.tracking.hold()
    ledger.tracking.log(0, {"loss": 0.0})
    with ledger.tracking._changed:
        ledger.tracking._hand_over(1)
        ledger.tracking._changed.notify_all()
        assert not ledger.tracking._changed.wait_for(lambda: tracker.rows, 0.2)
    ledger.durable(1)
    has_rows(tracker, 0)


def test_a_superseded_attempt_shows_nothing_more():
    """Its run goes on elsewhere already."""
    ledger = Ledger()
    tracker = Memory()
    ledger.tracking.add(tracker, RUN, None)
    eventually("it is open", lambda: tracker.opened)
    ledger.tracking.hold()
    ledger.tracking.log(0, {"loss": 0.0})
    with ledger.tracking._changed:
        ledger.tracking._hand_over(1)
    assert finish(ledger.tracking, "superseded", final=False) == []
    assert tracker.rows == []
    assert tracker.outcome == "superseded"


def test_with_the_agent_gone_what_cannot_be_read_back_is_left_to_the_next_attempt():
    """And nothing after it is shown: no tracker takes a step that lies behind."""
    ledger = Ledger({0: {"loss": 0.0}})
    ledger.is_silent = True
    tracker = Memory()
    ledger.tracking.add(tracker, RUN, 1)
    ledger.tracking.log(1, {"loss": 1.0})
    ledger.durable(2)
    eventually("it is asked", lambda: ledger.asked)
    ledger.tracking.cut()
    assert finish(ledger.tracking, "ended", final=False) == []
    assert (tracker.rows, tracker.outcome) == ([], "ended")


def test_a_tracker_that_still_catches_up_as_the_process_ends_has_not_failed(capsys):
    """The agent goes a moment before the outcome is known: it waits for that, says nothing, and is closed."""
    ledger = Ledger({0: {"loss": 0.0}})
    ledger.is_silent = True
    ledger.tracking._changed = changed = Waits()
    tracker = Memory()
    ledger.tracking.add(tracker, RUN, 1)
    eventually("it waits for the answer", lambda: changed.waits == 1)
    ledger.tracking.cut()
    eventually("it waits for the outcome", lambda: changed.waits == 2)
    assert finish(ledger.tracking, "ended", final=False) == []
    assert (tracker.opened, tracker.outcome) == (1, "ended")
    assert capsys.readouterr().err == ""

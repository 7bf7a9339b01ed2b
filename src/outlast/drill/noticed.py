"""Announces the end of a machine, and ends it at that time, whatever it does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlast._errors import EXIT_PREEMPTED
from outlast.drill import on_store
from outlast.drill.inotify import NewFiles
from outlast.drill.warned import (
    AT_START,
    CANCELLED_AFTER_S,
    CLOUDS,
    SIGNALS,
    SPARING,
    Announcer,
    Moment,
    Warned,
)

if TYPE_CHECKING:
    from outlast.drill.director import Director, Happened
    from outlast.drill.schedule import Planned

_POLL_S = 0.003
_HEARD_S = 2.5
"""Every service is asked more often than this."""
_STEPS_ON = 3
"""A run that is spared shows by so many steps that it trains on."""


@dataclass(frozen=True)
class Announced:
    """One announced end, as it was carried out.

    Attributes:
        warned: what was planned; its moment is the one that it really was.
        at: when it was announced, seconds since the epoch.
        end: when the machine was to go off.
        gone: when its last process was dead.
        exit_code: of `outlast run`; None: it still ran as the machine went off.
        passed_bytes: what was sent to the bucket from the announcement on; None where nothing counts.
        saves: the checkpoints that became durable from then on.
    """

    warned: Warned
    at: float
    end: float
    gone: float
    exit_code: int | None
    passed_bytes: int | None
    saves: tuple[on_store.Written, ...]


def interrupt(director: Director, planned: Planned, tell: Announcer) -> Happened:
    """Wait for the moment, announce the end, and end it."""
    warned = planned.warned
    assert warned is not None
    moment = _reach(director, planned, warned)
    director.show(
        f"{warned.source}, {warned.warning_s:.1f} s, {moment}, at step {director.follower.step}",
        director.follower.step,
    )
    failures = _spared(director, warned, tell)
    if warned.source in CLOUDS and warned.fault not in SPARING:
        tell.arm(warned)
    sent = director.throttle.passed_bytes if director.throttle else None
    at = time.time()
    end = at + warned.warning_s
    if warned.source in CLOUDS:
        end = tell.announce(warned.source, warned.warning_s)
    elif warned.source in SIGNALS:
        director.machine.terminate(director.machine.supervisor, number=SIGNALS[warned.source])
    while director.machine.supervisor is not None and time.time() < end and warned.source != "none":
        director.look()
        time.sleep(_POLL_S)
    code = None if director.machine.supervisor is not None else director.machine.exit_code
    director.machine.sweep()  # the machine is off now, whoever is still on it
    gone = time.time()
    passed = director.throttle.passed_bytes - sent if director.throttle and sent is not None else None
    happened = director.note(planned, at)
    saves = tuple(w for w in on_store.written(director.store) if w.saved.committed >= at)
    happened.announced = Announced(
        Warned(warned.source, warned.warning_s, moment, warned.fault), at, end, gone, code, passed, saves
    )
    happened.failures += failures
    if code not in (None, EXIT_PREEMPTED, 0):
        happened.failures.append(f"it ended with {code}; expected {EXIT_PREEMPTED}: start me again")
    tell.forget(warned.source)
    director.start_again(happened)
    return happened


def _reach(director: Director, planned: Planned, warned: Warned) -> Moment:
    """Wait for the moment; return that which it is: a start may have been faster."""
    if warned.moment in AT_START and not director.trains():
        return _at_start(director, planned, warned.moment)
    if warned.moment is Moment.VALIDATION:
        director.wait_line(lambda line: line.tail == "begin" and line.step >= planned.at_step, "a tail")
        return Moment.VALIDATION
    director.reach(planned)
    if warned.moment is Moment.EPOCH_END:
        director.wait_line(
            lambda line: line.tail is None and line.step in director.epoch_ends, "the end of an epoch"
        )
        return Moment.EPOCH_END
    if warned.moment is Moment.SAVING:
        with NewFiles(director.store) as new:
            director.wait_file(new, lambda path: path.parent.parent.name == "segments", "a save was written")
        return Moment.SAVING
    time.sleep(planned.delay_s)
    return Moment.TRAINING


def _at_start(director: Director, planned: Planned, moment: Moment) -> Moment:
    """The trainer imports torch, or its agent has claimed the attempt and reads the state back."""
    deadline = time.monotonic() + director.stall_s
    with NewFiles(director.store) as new:
        while director.machine.trainer() is None:
            director.still_runs("a trainer was started")
            time.sleep(_POLL_S)
        if moment is Moment.RESUMING:
            while (path := new.wait(0.02)) is None or path.parent.name != "attempts":
                if director.look() or time.monotonic() > deadline:
                    return Moment.TRAINING
                director.still_runs("an attempt was claimed")
            return Moment.RESUMING
    time.sleep(planned.delay_s)
    director.look()
    return Moment.TRAINING if director.trains() else Moment.WARM_UP


def _spared(director: Director, warned: Warned, tell: Announcer) -> list[str]:
    """A notice that is taken back, or is another machine's: training goes on, with at most one save for it."""
    if warned.fault not in SPARING:
        return []
    director.look()
    # One that has measured no save cannot know that there is time to train on.
    known = len(director.saved)
    while warned.fault == "cancelled" and len(director.saved) == known:
        director.wait_line(lambda line: line.tail is None, "a save before a notice that is cancelled")
    lives = director.trains()
    before, since = _last_pid(director), time.time()
    tell.arm(warned)
    if warned.fault == "cancelled":
        tell.announce(warned.source, CANCELLED_AFTER_S)
    allowed = 1 if warned.fault == "cancelled" else 0
    heard = time.monotonic() + _HEARD_S
    on = 0
    while on < _STEPS_ON or time.monotonic() < heard:
        director.wait_line(lambda line: line.tail is None, f"a step after a notice that is {warned.fault}")
        on += 1
    failures = []
    if lives and _last_pid(director) != before:
        failures.append(f"a notice that is {warned.fault} started the trainer again")
    extra = [
        w for w in on_store.written(director.store) if w.saved.committed >= since and w.reason == "emergency"
    ]
    if len(extra) > allowed:
        failures.append(
            f"a notice that is {warned.fault} cost {len(extra)} emergency checkpoints; at most {allowed} is allowed"
        )
    return failures


def _last_pid(director: Director) -> int | None:
    lines = director.follower.lines
    return lines[-1].pid if lines else None

"""Carries a schedule out: starts the run, waits for each moment, interrupts, starts again, and notes what it saw."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from outlast._errors import EXIT_PREEMPTED
from outlast.drill import on_store
from outlast.drill.inotify import NewFiles
from outlast.drill.machine import Machine
from outlast.drill.noticed import Announced, interrupt
from outlast.drill.place import Place
from outlast.drill.records import Follower, Line
from outlast.drill.schedule import IN_TAIL, Kind, Planned

_POLL_S = 0.003
_LEFT_S = 30.0
"""Time for processes to go once the run has ended: torch's workers look for their parent every 5 s."""
_TRIES = 3
"""A save, a resume or a tail that was faster than the kill is answered by trying the next one."""


@dataclass
class Happened:
    """One interruption as it was carried out."""

    planned: Planned
    """Its kind is what was really done: a kill that came too late for its moment is a plain one."""
    at_step: int
    at: float
    """Seconds since the epoch, when the first signal was sent."""
    lines_before: int
    """How many lines were recorded when its victims were dead."""
    relaunched: float | None
    """When the run was started again by the drill; None where that is `outlast run`'s task."""
    noticed: float | None = None
    saved: list[on_store.Saved] = field(default_factory=list)
    """The checkpoints on the store when its victims were dead."""
    announced: Announced | None = None
    failures: list[str] = field(default_factory=list)


@dataclass
class Course:
    """What a whole run went through."""

    lines: list[Line]
    happened: list[Happened]
    births: dict[int, float]
    """Pid of each trainer that recorded something -> when it was started."""
    exit_code: int | None
    failures: list[str]
    notes: list[str] = field(default_factory=list)
    """What was planned and came too late."""
    saved: list[on_store.Saved] = field(default_factory=list)
    """Every checkpoint that was seen on the store; the run deletes old ones as it goes."""


class Stalled(Exception):
    """The run made no progress, or ended before its time."""


class Ended(Exception):
    """The run has come to its end, and well, before an interruption could be carried out."""


class Director:
    """Drives one run from its start to its end.

    Args:
        machine: the run's processes, not started yet.
        record: the file that the script appends to.
        place: what surrounds the run.
        grace_s: seconds between SIGTERM and the end of the machine.
        stall_s: without a new line for so long, the run is given up.
        show: is told of each interruption and of progress (text or None, counter).
        epoch_ends: the counters at which an epoch has its last step.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        record: Path,
        place: Place,
        grace_s: float,
        stall_s: float,
        show: Callable[[str | None, int], None],
        epoch_ends: frozenset[int] = frozenset(),
    ) -> None:
        self.machine = machine
        self.follower = Follower(record)
        self.store = place.folder
        self.grace_s = grace_s
        self.stall_s = stall_s
        self.show = show
        self.tell = place.tell
        self.throttle = place.throttle
        self.epoch_ends = epoch_ends
        self.births: dict[int, float] = {}
        self.happened: list[Happened] = []
        self.saved: set[on_store.Saved] = set()
        self.notes: list[str] = []

    def conduct(self, plan: list[Planned]) -> Course:
        """Run to the end, interrupted by `plan`; always leaves no process behind."""
        failures: list[str] = []
        exit_code = None
        self.store.mkdir(parents=True, exist_ok=True)
        try:
            self._prepare(plan[0] if plan else None)
            self.machine.start()
            self._carry_out(plan)
            exit_code = self._until_end()
            failures += [f"left behind: {item}" for item in self.machine.leftovers(_LEFT_S)]
        except Stalled as error:
            failures.append(str(error))
        finally:
            self.machine.sweep()
        self.look()
        if plan and not self.happened and not failures:
            failures.append("the run ended before it could be interrupted: let it take more steps")
        self.saved.update(on_store.commits(self.store))
        return Course(
            self.follower.lines,
            self.happened,
            self.births,
            exit_code,
            failures,
            self.notes,
            sorted(self.saved),
        )

    def _carry_out(self, plan: list[Planned]) -> None:
        for planned, following in itertools.zip_longest(plan, plan[1:]):
            self._prepare(following)  # from its next start on
            try:
                self._interrupt(planned)
            except Ended:
                self.notes.append(f"{planned.kind} was not carried out in full: the run had ended before")
                return

    def _prepare(self, planned: Planned | None) -> None:
        """The machine that is started next is one that goes as it is planned."""
        if self.tell is not None:
            self.machine.env |= self.tell.environment(planned.warned if planned else None, self.grace_s)

    def look(self) -> list[Line]:
        """Take in what the run has recorded since."""
        new = self.follower.poll()
        for line in new:
            if line.pid not in self.births:
                self.births[line.pid] = self.machine.born(line.pid) or self.machine.started
                self.machine.notice_socket(line.pid)
        if new:
            self.saved.update(on_store.commits(self.store))
            self.show(None, self.follower.step)
        return new

    def wait_line(self, wanted: Callable[[Line], bool], what: str) -> Line:
        """Return the first new line that is wanted; `Ended` or `Stalled` if the run ends or stands still first."""
        last = time.monotonic()
        while True:
            over = self.machine.supervisor is None and not self.machine.processes()
            for line in self.look():
                last = time.monotonic()
                if wanted(line):
                    return line
            if over:
                self.still_runs(what)
            if time.monotonic() - last > self.stall_s:
                msg = f"nothing was recorded for {self.stall_s:.0f} s before {what}; its output is in {self.machine.log}"
                raise Stalled(msg)
            time.sleep(_POLL_S)

    def still_runs(self, what: str) -> None:
        """Raise `Ended` or `Stalled` if `outlast run` has ended before `what`."""
        if self.machine.supervisor is not None:
            return
        if self.machine.exit_code == 0:
            raise Ended
        msg = (
            f"the run ended with {self.machine.exit_code} before {what}; its output is in {self.machine.log}"
        )
        raise Stalled(msg)

    def reach(self, planned: Planned) -> None:
        """Wait until a trainer that lives has recorded the step."""
        if self.follower.step < planned.at_step or not self.trains():
            self.wait_line(
                lambda line: line.tail is None and line.step >= planned.at_step,
                f"step {planned.at_step} for {planned.kind}",
            )

    def _hold_in_tail(self, planned: Planned) -> int | None:
        """Return the trainer, stopped within the tail of its epoch; None, and it goes on, if every tail was faster."""
        for tried in range(_TRIES):
            line = self.wait_line(
                lambda line: line.tail == "begin" and line.step >= planned.at_step,
                f"the tail after step {planned.at_step} for {planned.kind}",
            )
            time.sleep(0.0 if tried else planned.delay_s)
            self.machine.stop(line.pid)
            self.look()
            if self.follower.lines[-1] == line:
                return line.pid
            self.machine.let_go(line.pid)
        self.notes.append(
            f"{planned.kind}: {_TRIES} tails had ended before the signal: it was sent outside of one"
        )
        return None

    def trains(self) -> bool:
        """Whether the last line is of a process that still lives."""
        lines = self.follower.lines
        return bool(lines) and self.machine.lives(lines[-1].pid)

    def _trainer(self) -> int | None:
        return self.follower.lines[-1].pid if self.trains() else self.machine.trainer()

    def _interrupt(self, planned: Planned) -> None:
        held = self._hold_in_tail(planned) if planned.kind in IN_TAIL else None
        if planned.kind is not Kind.NOTICE:
            if planned.kind not in IN_TAIL:
                self.reach(planned)
            self.show(f"{planned.kind} at step {self.follower.step}", self.follower.step)
        match planned.kind:
            case Kind.KILL_TRAINER:
                self._kill(planned, self._trainer())
            case Kind.KILL_IN_TAIL:
                done = planned if held is not None else replace(planned, kind=Kind.KILL_TRAINER)
                self._kill(done, self._trainer())
            case Kind.KILL_BOTH:
                self.start_again(self._note_both(planned))
            case Kind.KILL_MID_SAVE:
                self._kill_mid_save(planned)
            case Kind.SIGTERM:
                self._terminate(planned, None)
            case Kind.SIGTERM_IN_VALIDATION:
                self._terminate(planned if held is not None else replace(planned, kind=Kind.SIGTERM), held)
            case Kind.TWO_IN_SUCCESSION:
                self._two(planned)
            case Kind.KILL_WHILE_RESUMING:
                self._kill_resuming(planned)
            case Kind.KILL_AGENT:
                self._kill_agent(planned)
            case Kind.NOTICE:
                assert self.tell is not None
                interrupt(self, planned, self.tell)

    def _kill(self, planned: Planned, *pids: int | None) -> None:
        self.start_again(self.note(planned, time.time(), *pids))

    def _kill_mid_save(self, planned: Planned) -> None:
        """The agent writes: stopped as soon as a segment appears, it writes no more, whoever else is slow."""
        for tries_left in reversed(range(_TRIES)):
            with NewFiles(self.store) as new:
                path = self._stop_at(new, lambda path: path.suffix == ".bin", "a save was written")
            happened = self._note_both(planned)
            cut = path in on_store.unfinished(self.store)
            self.start_again(happened)
            if cut:
                happened.planned = planned
                return
            if tries_left:
                self.wait_line(lambda line: line.tail is None, "another try to cut a save")
        self.notes.append(f"{planned.kind}: {_TRIES} saves were whole before the kill: none was cut")

    def _stop_at(self, new: NewFiles, wanted: Callable[[Path], bool], what: str) -> Path:
        """Return the next new file that is wanted, with the agent stopped at that moment."""
        agent = self.machine.supervisor
        path = self.wait_file(new, wanted, what)
        self.machine.stop(agent)
        return path

    def wait_file(self, new: NewFiles, wanted: Callable[[Path], bool], what: str) -> Path:
        """Return the next new file that is wanted; `Ended` or `Stalled` if the run ends or none comes."""
        end = time.monotonic() + self.stall_s
        while (path := new.wait(0.1)) is None or not wanted(path):
            self.look()
            self.still_runs(what)
            if time.monotonic() > end:
                msg = f"nothing came for {self.stall_s:.0f} s before {what}; its output is in {self.machine.log}"
                raise Stalled(msg)
        return path

    def _terminate(self, planned: Planned, held: int | None) -> None:
        supervisor = self.machine.supervisor
        self.look()
        at, before = time.time(), self.follower.step
        if planned.kind is Kind.SIGTERM:
            self.machine.terminate(supervisor)
        else:  # as systemd and Slurm send it: to the trainer and its workers as well, in any order
            self.machine.terminate(*self.machine.processes())
        self.machine.let_go(held)
        in_time = supervisor is None or self.machine.wait_gone(supervisor, self.grace_s)
        code = self.machine.exit_code
        self.machine.sweep()  # the machine is off now, whoever is still on it
        happened = self.note(planned, at)
        happened.noticed = at
        if not in_time:
            happened.failures.append(
                f"SIGTERM: it had not ended {self.grace_s:.0f} s later, when the machine went off"
            )
        elif code == 0 and self.follower.step <= before + 1:
            self.notes.append(f"{planned.kind}: the run was at its end when the signal came")
        elif code != EXIT_PREEMPTED:
            happened.failures.append(
                f"SIGTERM: it ended with {code}; expected {EXIT_PREEMPTED}: start me again"
            )
        self.start_again(happened)

    def _two(self, planned: Planned) -> None:
        """SIGTERM, and before its grace time is over the machine goes off; or the relaunch is killed as well."""
        at = time.time()
        supervisor, trainer = self.machine.supervisor, self._trainer()
        if planned.at_step % 2 and supervisor is not None:
            self.machine.terminate(supervisor)
            time.sleep(planned.delay_s)
            happened = self.note(planned, at, supervisor, trainer)
        else:
            self.machine.kill(trainer)
            second = self._next_trainer(trainer)
            time.sleep(planned.delay_s)
            happened = self.note(planned, at, second)
        self.start_again(happened)

    def _next_trainer(self, last: int | None) -> int:
        end = time.monotonic() + self.stall_s
        while (trainer := self._trainer()) is None or trainer == last:
            self.still_runs("the killed trainer was started again")
            if time.monotonic() > end:
                msg = f"the killed trainer was not started again; the output is in {self.machine.log}"
                raise Stalled(msg)
            time.sleep(_POLL_S)
        return trainer

    def _kill_resuming(self, planned: Planned) -> None:
        """Kill; then again while the next attempt reads the state back: once it has claimed its number, and before a step.

        Its agent, through which everything is read, is stopped as soon as the claim appears.
        """
        for _ in range(_TRIES):
            happened = self._note_both(planned)
            with NewFiles(self.store) as new:
                self.start_again(happened)
                self._stop_at(new, _is_claim, "a new attempt was claimed after a kill")
            self.machine.sweep()
            if not self.look():
                happened.planned = planned
                self.start_again(happened)
                return
        self.start_again(self._note_both(planned))  # the last kill, too, was one of a run that trains
        self.notes.append(f"{planned.kind}: {_TRIES} resumes were over before the second kill")

    def _kill_agent(self, planned: Planned) -> None:
        agent = self.machine.supervisor
        self.machine.stop(agent)
        if not self.trains():
            self.machine.let_go(agent)
            raise Ended
        self.note(planned, time.time(), agent)

    def _note_both(self, planned: Planned) -> Happened:
        """Kill agent and trainer; a plain kill, until its moment turns out to be the planned one."""
        plain = replace(planned, kind=Kind.KILL_BOTH)
        return self.note(plain, time.time(), self.machine.supervisor, self._trainer(), self.machine.trainer())

    def note(self, planned: Planned, at: float, *victims: int | None) -> Happened:
        """Kill the victims, and note what there is once they are dead."""
        self.machine.kill(*victims)
        self.look()
        happened = Happened(planned, self.follower.step, at, len(self.follower.lines), None)
        happened.saved = on_store.commits(self.store)
        self.happened.append(happened)
        return happened

    def start_again(self, happened: Happened) -> None:
        """The scheduler's part: where `outlast run` has ended, the same command is started again."""
        if self.machine.supervisor is None:
            self.machine.start()
            happened.relaunched = self.machine.started

    def _until_end(self) -> int | None:
        last, seen = time.monotonic(), len(self.follower.lines)
        pid = self.follower.lines[-1].pid if self.follower.lines else 0
        alone = bool(self.happened) and self.happened[-1].planned.kind is Kind.KILL_AGENT
        while self.machine.supervisor is not None or (alone and self.machine.lives(pid)):
            self.look()
            if len(self.follower.lines) > seen:
                last, seen = time.monotonic(), len(self.follower.lines)
            if time.monotonic() - last > self.stall_s:
                msg = f"nothing was recorded for {self.stall_s:.0f} s; its output is in {self.machine.log}"
                raise Stalled(msg)
            time.sleep(_POLL_S)
        self.look()
        return self.machine.exit_code_of(pid) if alone else self.machine.exit_code


def _is_claim(path: Path) -> bool:
    """Whether a file is an attempt's claim, which is written before the state is read back."""
    return path.parent.name == "attempts" and path.suffix == ".json"

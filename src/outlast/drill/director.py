"""Carries a schedule out: starts the run, waits for each moment, interrupts, starts again, and notes what it saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from outlast._errors import EXIT_PREEMPTED
from outlast.drill import on_store
from outlast.drill.inotify import NewFiles
from outlast.drill.machine import Machine
from outlast.drill.records import Follower, Line
from outlast.drill.schedule import IN_TAIL, Kind, Planned

_POLL_S = 0.003
_LEFT_S = 15.0
"""Time for processes to go once the run has ended: torch's workers look for their parent every 5 s."""
_TRIES = 3
"""A save or a tail that was faster than the kill is answered by trying the next one."""


@dataclass
class Happened:
    """One interruption as it was carried out."""

    planned: Planned
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


class Stalled(Exception):
    """The run made no progress, or ended before its time."""


class Director:
    """Drives one run from its start to its end.

    Args:
        machine: the run's processes, not started yet.
        record: the file that the script appends to.
        store: the root of the run's local store.
        grace_s: seconds between SIGTERM and the end of the machine.
        stall_s: without a new line for so long, the run is given up.
        must_cut: whether it is a failure if every save was faster than the kill that should have cut it.
        show: is told of each interruption and of progress (text or None, counter).
    """

    def __init__(
        self,
        machine: Machine,
        *,
        record: Path,
        store: Path,
        grace_s: float,
        stall_s: float,
        must_cut: bool,
        show: Callable[[str | None, int], None],
    ) -> None:
        self.machine = machine
        self.follower = Follower(record)
        self.store = store
        self.grace_s = grace_s
        self.stall_s = stall_s
        self.must_cut = must_cut
        self.show = show
        self.births: dict[int, float] = {}

    def conduct(self, plan: list[Planned]) -> Course:
        """Run to the end, interrupted by `plan`; always leaves no process behind."""
        happened: list[Happened] = []
        failures: list[str] = []
        exit_code = None
        self.store.mkdir(parents=True, exist_ok=True)
        try:
            self.machine.start()
            for planned in plan:
                self._reach(planned)
                self.show(f"{planned.kind} at step {self.follower.step}", self.follower.step)
                happened.append(self._interrupt(planned))
            exit_code = self._until_end(last_agent_killed=bool(plan) and plan[-1].kind is Kind.KILL_AGENT)
        except Stalled as error:
            failures.append(str(error))
        finally:
            left = self.machine.leftovers(_LEFT_S) if not failures else []
            failures += [f"left behind: {item}" for item in left]
            self.machine.sweep()
        self._look()
        return Course(self.follower.lines, happened, self.births, exit_code, failures)

    def _look(self) -> list[Line]:
        new = self.follower.poll()
        for line in new:
            if line.pid not in self.births:
                self.births[line.pid] = self.machine.born(line.pid) or self.machine.started
                self.machine.notice_socket(line.pid)
        if new:
            self.show(None, self.follower.step)
        return new

    def _wait_line(self, wanted: Callable[[Line], bool], what: str) -> Line:
        """Return the first new line that is wanted; `Stalled` if the run ends or stands still first."""
        last = time.monotonic()
        while True:
            for line in self._look():
                last = time.monotonic()
                if wanted(line):
                    return line
            if self.machine.supervisor is None and not self.machine.processes():
                msg = f"the run ended with {self.machine.exit_code} before {what}; its output is in {self.machine.log}"
                raise Stalled(msg)
            if time.monotonic() - last > self.stall_s:
                msg = f"nothing was recorded for {self.stall_s:.0f} s before {what}; its output is in {self.machine.log}"
                raise Stalled(msg)
            time.sleep(_POLL_S)

    def _reach(self, planned: Planned) -> None:
        if planned.kind in IN_TAIL:
            while True:
                self._wait_line(
                    lambda line: line.tail == "begin" and line.step >= planned.at_step,
                    f"the tail after step {planned.at_step} for {planned.kind}",
                )
                time.sleep(planned.delay_s)
                self._look()
                if self.follower.lines[-1].tail == "begin":
                    return  # else the tail was shorter than the delay: the next one
        elif self.follower.step < planned.at_step or not self._trains():
            self._wait_line(
                lambda line: line.tail is None and line.step >= planned.at_step,
                f"step {planned.at_step} for {planned.kind}",
            )

    def _trains(self) -> bool:
        """Whether the last line is of a process that still lives."""
        lines = self.follower.lines
        return bool(lines) and lines[-1].pid in self.machine.processes()

    def _trainer(self) -> int | None:
        return self.follower.lines[-1].pid if self._trains() else self.machine.trainer()

    def _interrupt(self, planned: Planned) -> Happened:
        match planned.kind:
            case Kind.KILL_TRAINER:
                return self._kill(planned, self._trainer())
            case Kind.KILL_IN_TAIL:
                return self._kill_in_tail(planned)
            case Kind.KILL_BOTH:
                return self._kill(planned, self.machine.supervisor, self._trainer(), self.machine.trainer())
            case Kind.KILL_MID_SAVE:
                return self._kill_mid_save(planned)
            case Kind.SIGTERM | Kind.SIGTERM_IN_VALIDATION:
                return self._terminate(planned)
            case Kind.TWO_IN_SUCCESSION:
                return self._two(planned)
            case Kind.KILL_WHILE_RESUMING:
                return self._kill_resuming(planned)
            case Kind.KILL_AGENT:
                return self._kill_agent(planned)

    def _kill(self, planned: Planned, *pids: int | None) -> Happened:
        at = time.time()
        self.machine.kill(*pids)
        happened = self._note(planned, at)
        self._start_again(happened)
        return happened

    def _kill_in_tail(self, planned: Planned) -> Happened:
        for tries_left in reversed(range(_TRIES)):
            happened = self._kill(planned, self._trainer())
            if self.follower.lines[happened.lines_before - 1].tail == "begin":
                return happened
            if tries_left:
                self._wait_line(lambda line: line.tail == "begin", "another try to kill in a tail")
        happened.failures.append(
            f"the tail had ended before the kill, {_TRIES} times: none was killed in its tail"
        )
        return happened

    def _kill_mid_save(self, planned: Planned) -> Happened:
        for _ in range(_TRIES):
            with NewFiles(self.store) as new:
                end = time.monotonic() + self.stall_s
                while (path := new.wait(0.1)) is None or path.suffix != ".bin":
                    self._look()
                    if time.monotonic() > end or self.machine.supervisor is None:
                        break
            at = time.time()
            if path is not None:
                self.machine.kill(self.machine.supervisor, self._trainer(), self.machine.trainer())
            else:
                self.machine.sweep()
            happened = self._note(planned, at)
            cut = path in on_store.unfinished(self.store)
            self._start_again(happened)
            if path is None:
                happened.failures.append(f"no save was written within {self.stall_s:.0f} s")
                return happened
            if cut:
                return happened
            self._wait_line(lambda line: line.tail is None, "another try to cut a save")
        if self.must_cut:
            happened.failures.append(f"the save was whole before the kill, {_TRIES} times: no save was cut")
        return happened

    def _terminate(self, planned: Planned) -> Happened:
        supervisor = self.machine.supervisor
        at = time.time()
        if planned.kind is Kind.SIGTERM:
            self.machine.terminate(supervisor)
        else:  # as systemd and Slurm send it: to the trainer and its workers as well, in any order
            self.machine.terminate(*self.machine.processes())
        in_time = supervisor is None or self.machine.wait_gone(supervisor, self.grace_s)
        code = self.machine.exit_code
        self.machine.sweep()  # the machine is off now, whoever is still on it
        happened = self._note(planned, at)
        happened.noticed = at
        if not in_time:
            happened.failures.append(
                f"SIGTERM: it had not ended {self.grace_s:.0f} s later, when the machine went off"
            )
        elif code != EXIT_PREEMPTED:
            happened.failures.append(
                f"SIGTERM: it ended with {code}; expected {EXIT_PREEMPTED}: start me again"
            )
        self._start_again(happened)
        return happened

    def _two(self, planned: Planned) -> Happened:
        """SIGTERM, and before its grace time is over the machine goes off; or the relaunch is killed as well."""
        at = time.time()
        supervisor, trainer = self.machine.supervisor, self._trainer()
        if planned.at_step % 2 and supervisor is not None:
            self.machine.terminate(supervisor)
            time.sleep(planned.delay_s)
            self.machine.kill(supervisor, trainer)
        else:
            self.machine.kill(trainer)
            second = self._next_trainer(trainer)
            time.sleep(planned.delay_s)
            self.machine.kill(second)
        happened = self._note(planned, at)
        self._start_again(happened)
        return happened

    def _next_trainer(self, last: int | None) -> int:
        end = time.monotonic() + self.stall_s
        while (trainer := self._trainer()) is None or trainer == last:
            if self.machine.supervisor is None or time.monotonic() > end:
                msg = f"the killed trainer was not started again; the output is in {self.machine.log}"
                raise Stalled(msg)
            time.sleep(_POLL_S)
        return trainer

    def _kill_resuming(self, planned: Planned) -> Happened:
        at = time.time()
        with NewFiles(self.store) as new:
            self.machine.kill(self.machine.supervisor, self._trainer(), self.machine.trainer())
            happened = self._note(planned, at)
            self.machine.start()
            end = time.monotonic() + self.stall_s
            # The claim of the new attempt is written before the state is read back: from there on it resumes.
            while (path := new.wait(0.1)) is None or path.parent.name != "attempts" or path.suffix != ".json":
                if self.machine.supervisor is None or time.monotonic() > end:
                    msg = f"no new attempt was claimed after a kill; the output is in {self.machine.log}"
                    raise Stalled(msg)
        self.machine.kill(self.machine.supervisor, self._trainer(), self.machine.trainer())
        if self._look():
            happened.failures.append(
                "a step was recorded before the second kill: it was not resuming any more"
            )
        self._start_again(happened)
        return happened

    def _kill_agent(self, planned: Planned) -> Happened:
        trainer, at = self._trainer(), time.time()
        self.machine.kill(self.machine.supervisor)
        happened = self._note(planned, at)
        line = self._wait_line(lambda line: line.tail is None, "a step after the agent alone was killed")
        if line.pid != trainer:
            happened.failures.append("the trainer did not go on when its agent alone was killed")
        return happened

    def _note(self, planned: Planned, at: float) -> Happened:
        self._look()
        happened = Happened(planned, self.follower.step, at, len(self.follower.lines), None)
        happened.saved = on_store.commits(self.store)
        return happened

    def _start_again(self, happened: Happened) -> None:
        """The scheduler's part: where `outlast run` has ended, the same command is started again."""
        if self.machine.supervisor is None:
            self.machine.start()
            happened.relaunched = self.machine.started

    def _until_end(self, *, last_agent_killed: bool) -> int | None:
        last, seen = time.monotonic(), len(self.follower.lines)
        pid = self.follower.lines[-1].pid if self.follower.lines else 0
        while self.machine.supervisor is not None or (last_agent_killed and pid in self.machine.processes()):
            self._look()
            if len(self.follower.lines) > seen:
                last, seen = time.monotonic(), len(self.follower.lines)
            if time.monotonic() - last > self.stall_s:
                msg = f"nothing was recorded for {self.stall_s:.0f} s; its output is in {self.machine.log}"
                raise Stalled(msg)
            time.sleep(_POLL_S)
        self._look()
        return self.machine.exit_code_of(pid) if last_agent_killed else self.machine.exit_code

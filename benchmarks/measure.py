"""One saver's saves, measured in a process of its own: what one save costs the steps around it.

The measuring process starts this file as a program with one JSON object as its argument (`Case`); it prints JSON lines.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from watch import cpu_s, files_below

AROUND = 5
"""Steps before a save, and after it is durable, whose median is what a step takes without one."""
PERIOD, PERIOD_S3, IDLE_PERIOD = 20, 60, 2
"""Steps between two of Outlast's saves: enough for one to be durable, and for the steps around it."""
WARM_STEPS = 3
"""Steps before anything of a saver exists: what training alone takes."""
REST_S = 1.0
"""Rest between two saves while training is idle, for the disk to come to rest too."""
LONGEST_S = 300.0
"""A save that is not durable by then has failed."""
POLL_S = 0.001


@dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        name: of the saver.
        place: URL or folder that it saves to.
        folder: the folder in which the files of that place appear.
        shape: sizes for `work.work_of`.
        saves: how many are measured, after one that is not.
        idle: whether training rests while a save is under way.
        server: process of the S3 server, 0 for none.
    """

    name: str
    place: str
    folder: str
    shape: dict[str, int]
    device: str
    saves: int
    idle: bool
    server: int


@dataclass(frozen=True)
class Cost:
    """What one save cost: seconds and bytes."""

    call_s: float
    added_step_s: float
    durable_s: float
    bytes_written: int
    step_s: float
    server_cpu_s: float


class Training(Protocol):
    """A loop's body."""

    def step(self, guard: AbstractContextManager[Any]) -> None: ...


class Stepper:
    """Takes steps, saves between two of them, and notes when."""

    def __init__(self, training: Training, saver: Any) -> None:
        self._training = training
        self._saver = saver

    def plain(self) -> float:
        """Take a step at whose end nothing is saved; its seconds."""
        started = time.monotonic()
        self._training.step(self._saver.guard)
        self._saver.point()
        return time.monotonic() - started

    def saving(self, number: int) -> tuple[float, float, float]:
        """Take a step at whose end is saved: its seconds, when the save was called, and how long the call took."""
        started = time.monotonic()
        self._training.step(self._saver.guard)
        called = time.monotonic()
        self._saver.save(number)
        returned = time.monotonic()
        return returned - started, called, returned - called

    def cost(self, number: int, folder: Path, *, idle: bool, server: int = 0) -> Cost:
        """Save once, and step until it is durable."""
        had = files_below(folder)
        around = [self.plain() for _ in range(0 if idle else AROUND)]
        while not self._saver.is_due():
            around = [*around, self.plain()][-AROUND:]
        server_before = cpu_s(server) if server else 0.0
        took, called, call_s = self.saving(number)
        during = [took]
        while (durable := self._saver.durable_at()) is None:
            if time.monotonic() - called > LONGEST_S:
                msg = f"save {number} is not durable after {LONGEST_S:.0f} s"
                raise RuntimeError(msg)
            if idle:
                time.sleep(POLL_S)
            else:
                during.append(self.plain())
        server_after = cpu_s(server) if server else 0.0
        if idle:
            time.sleep(REST_S)
        else:
            around += [self.plain() for _ in range(AROUND)]
        step_s = statistics.median(around or during)
        now = files_below(folder)
        return Cost(
            call_s=call_s,
            added_step_s=0.0 if idle else sum(during) - len(during) * step_s,
            durable_s=durable - called,
            bytes_written=sum(size for path, size in now.items() if path not in had),
            step_s=step_s,
            server_cpu_s=server_after - server_before,
        )


def saver_of(case: Case, work: Any) -> Any:
    """Make the saver that a case names."""
    import peers

    if case.name == peers.OURS:
        steps = IDLE_PERIOD if case.idle else PERIOD_S3 if case.server else PERIOD
        return peers.Outlast(case.place, Path(case.folder), steps, **work.objects)
    return {**peers.LOCAL, **peers.ON_S3}[case.name](case.place, work.state)


def main() -> None:
    """Measure a case: `training` (without a saver), each save, `done`; then wait to be let go."""
    warnings.simplefilter("ignore")
    from work import work_of

    case = Case(**json.loads(sys.argv[1]))
    work = work_of(case.shape, case.device)
    started = time.monotonic()
    for _ in range(WARM_STEPS):
        work.step()
    say(kind="training", start=started, end=time.monotonic(), state_bytes=work.state_bytes)
    saver = saver_of(case, work)
    stepper = Stepper(work, saver)
    for _ in range(0 if case.idle else AROUND):  # what a saver prepares in the background is ready by then
        stepper.plain()
    # The first save of a process pays for pages and imports that no later one pays for.
    stepper.cost(0, Path(case.folder), idle=case.idle, server=case.server)
    for number in range(1, case.saves + 1):
        cost = stepper.cost(number, Path(case.folder), idle=case.idle, server=case.server)
        say(kind="save", **cost.__dict__)
    say(kind="done", end=time.monotonic(), direct=getattr(saver, "is_direct", None))
    sys.stdin.readline()
    saver.close()
    sys.stdout.flush()
    os._exit(0)  # an agent sees its trainer go; nobody waits for what it would still do


def say(**what: Any) -> None:
    print("\n" + json.dumps(what), flush=True)


if __name__ == "__main__":
    main()

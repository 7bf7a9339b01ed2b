"""The drill of the bundled example: train it undisturbed, train it interrupted, compare."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from outlast._errors import ConfigError
from outlast._types import Json
from outlast.drill import on_store
from outlast.drill.director import Course, Director
from outlast.drill.machine import Machine
from outlast.drill.oracle import Evidence, judge
from outlast.drill.place import Conditions, Place, place, quiet
from outlast.drill.report import Report
from outlast.drill.schedule import ALL, Kind, Planned, schedule
from outlast.drill.warned import pace_s, schedule_notices

_INSTALLED = Path(__file__).with_name("gpt.py")
_IN_REPOSITORY = Path(__file__).parents[3] / "examples" / "gpt.py"

_SOCKET_FOLDER_CHARS = 60
"""Workers bind sockets in $TMPDIR, below two random names; a socket's path has at most 107 characters (unix(7))."""
_THREADS = "1"
"""Per process of the example: two that wait for each other make a step seven times as long on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a drill is carried out.

    Attributes:
        seed: draws the order and the moments of the interruptions.
        kinds: what is done to the run.
        interval_steps: optimizer steps between two saves.
        grace_s: seconds between SIGTERM and the end of the machine.
        stall_s: without progress for so long, the run is given up.
        env: added to the environment of every process.
        arguments: the example's own, such as its sizes.
        undisturbed: the folder of an undisturbed run that `train_undisturbed` made, to be used again.
        conditions: what the interrupted run has to live with.
    """

    seed: int = 0
    kinds: Sequence[Kind] = ALL
    interval_steps: int = 10
    grace_s: float = 20.0
    stall_s: float = 60.0
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    undisturbed: Path | None = None
    conditions: Conditions = field(default_factory=Conditions)


Show = Callable[[str, str | None, int, int], None]
"""Told of progress: which run, what happened (or None), the counter, and its end (0 while unknown)."""


def drill_bundled(options: Options, show: Show = lambda *_: None) -> Report:
    """Drill the bundled example in a temporary folder, which is removed if everything held and kept otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="outlast-drill-"))
    reference, final = train_undisturbed(options.undisturbed or folder / "undisturbed", options, show)
    plan = _plan(options, reference)
    steps = reference.lines[-1].step if reference.lines else 0
    home = folder / "interrupted"
    home.mkdir()
    ends = frozenset(line.step for line in reference.lines if line.tail == "begin")
    with place(home, options.conditions) as here:
        course = _train(
            home,
            options,
            plan,
            lambda text, step: show("interrupted", text, step, steps),
            here,
            epoch_ends=ends,
            steps=steps,
        )
    alone = options.undisturbed or folder / "undisturbed"
    undisturbed = alone / "store"
    evidence = Evidence(
        commits=course.saved,
        trainers=on_store.trainers(here.folder),
        guarantees=on_store.guarantees(here.folder),
        final=read_final(home),
        interval_steps=options.interval_steps,
        state_bytes=max((w.nbytes for w in on_store.written(undisturbed)), default=0),
        bytes_per_s=options.conditions.throttle_bytes_per_s,
        metrics=on_store.metrics(here.folder),
        expected_metrics=on_store.metrics(undisturbed),
        printed=on_store.printed(here.folder),
        tracked=_lines(home / "tracked.jsonl"),
        expected_tracked=_lines(alone / "tracked.jsonl"),
    )
    return conclude(judge(reference, final, course, evidence), folder)


def _plan(options: Options, reference: Course) -> list[Planned]:
    if (notices := options.conditions.notices) is not None:
        return schedule_notices(options.seed, notices, reference.lines)
    return schedule(options.seed, options.kinds, reference.lines, options.interval_steps)


def train_undisturbed(
    folder: Path, options: Options, show: Show = lambda *_: None
) -> tuple[Course, dict[str, str] | None]:
    """Train the example without an interruption, or read what an earlier call left in `folder`."""
    kept = folder / "course.json"
    if kept.exists():
        from outlast.drill.records import read_lines

        return Course(
            read_lines(folder / "record.jsonl"), [], {}, json.loads(kept.read_text()), []
        ), read_final(folder)
    folder.mkdir(parents=True)
    course = _train(folder, options, [], lambda text, step: show("undisturbed", text, step, 0), quiet(folder))
    if not course.failures:
        kept.write_text(json.dumps(course.exit_code))
    return course, read_final(folder)


def conclude(report: Report, folder: Path) -> Report:
    """Remove the folder of a drill that passed; name that of one that did not."""
    if report.passed:
        shutil.rmtree(folder)
        return report
    kept = f"records, store and output are kept in {folder}"
    return msgspec.structs.replace(report, notes=(*report.notes, kept))


def read_final(folder: Path) -> dict[str, str] | None:
    """Return the digests that the script wrote at its end; None if it did not come to its end."""
    try:
        found: dict[str, str] = json.loads((folder / "final.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found


def _lines(path: Path) -> list[dict[str, Json]]:
    """Return what the example's own tracker was given."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _train(
    folder: Path,
    options: Options,
    plan: list[Planned],
    show: Callable[[str | None, int], None],
    here: Place,
    *,
    epoch_ends: frozenset[int] = frozenset(),
    steps: int = 0,
) -> Course:
    record = folder / "record.jsonl"
    pace = ("--pause", str(pace_s(plan, steps)))
    files = {"--record": record, "--final": folder / "final.json", "--track": folder / "tracked.jsonl"}
    script = [sys.executable, str(example()), *(str(part) for item in files.items() for part in item)]
    env = drill_env(interval_steps=options.interval_steps, grace_s=options.grace_s, folder=folder)
    machine = Machine(
        outlast_run(here.url, [*script, *options.arguments, *pace]),
        env={"OMP_NUM_THREADS": _THREADS, **env, **here.env, **options.env},
        token=folder.parent.name + folder.name,
        log=folder / "output.txt",
        disk=here.disk,
    )
    director = Director(
        machine,
        record=record,
        place=here,
        grace_s=options.grace_s,
        stall_s=options.stall_s,
        show=show,
        epoch_ends=epoch_ends,
    )
    return director.conduct(plan)


def outlast_run(store: str, command: Sequence[str]) -> list[str]:
    """Return the command that a scheduler would start again and again."""
    # Every kill of the trainer alone counts as a restart; a drill makes several on purpose.
    return [
        sys.executable,
        "-m",
        "outlast",
        "run",
        "--store",
        store,
        "--max-restarts",
        "20",
        "--",
        *command,
    ]


def drill_env(*, interval_steps: int, grace_s: float, folder: Path) -> dict[str, str]:
    """Return the environment of every process of a drill: the caller's, without what names its own runs."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("OUTLAST_")}
    env["CUBLAS_WORKSPACE_CONFIG"] = env.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    env["PYTHONUNBUFFERED"] = "1"
    if len(str(folder)) <= _SOCKET_FOLDER_CHARS:
        env["TMPDIR"] = str(folder)  # what killed processes leave goes with the drill's folder
    env["OUTLAST_RUN"] = "drill"
    env["OUTLAST_SAVE_EVERY"] = f"{interval_steps} steps"
    env["OUTLAST_GRACE_S"] = str(grace_s)
    env["OUTLAST_VERIFY_SNAPSHOTS"] = "1"
    env["OUTLAST_PREEMPTIBLE"] = "0"  # a drill's runs need not outlive this machine, be it a spot one
    return env


def example() -> Path:
    """Return the bundled example: beside this file in an installed Outlast, in `examples/` in its repository."""
    for path in (_INSTALLED, _IN_REPOSITORY):
        if path.exists():
            return path
    msg = f"the bundled example is missing: neither {_INSTALLED} nor {_IN_REPOSITORY} exists; install Outlast again"
    raise ConfigError(msg)

"""The drill of a user's own script: undisturbed twice, then interrupted, and compared; or told why it is not protected."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from outlast.drill import on_store, recorder
from outlast.drill.bundled import Show, conclude, drill_env, outlast_run
from outlast.drill.director import Course, Director
from outlast.drill.machine import Machine
from outlast.drill.oracle import Evidence, judge
from outlast.drill.place import Conditions, Place, place, quiet
from outlast.drill.records import Line, last_step
from outlast.drill.report import Report
from outlast.drill.schedule import ALL, Planned, choose, schedule
from outlast.drill.warned import pace_s, schedule_notices

_INTERVALS = 20
"""Saves in an undisturbed run, if `--save-every` does not say otherwise."""
_TAIL_S = 0.3
"""Each tail lasts at least this long, so that an interruption can fall into it."""
_OFFLINE = {
    "WANDB_MODE": "offline",
    "COMET_START_ONLINE": "0",
    "NEPTUNE_MODE": "offline",
    "CLEARML_OFFLINE_MODE": "1",
    "SWANLAB_MODE": "offline",
}


@dataclass(frozen=True, kw_only=True)
class ScriptOptions:
    """How a script is drilled.

    Attributes:
        seed: draws the kinds' order and their moments.
        steps: end the script after this many optimizer steps; None for its own end.
        interruptions: how many; None for one of each kind.
        interval_steps: optimizer steps between two saves; None for a twentieth of the run's, at least 2.
        grace_s: seconds between SIGTERM and the end of the machine.
        stall_s: without progress for so long, a run is given up.
        env: added to the environment of every process.
        conditions: what the interrupted run has to live with; its working directory stays the caller's.
    """

    seed: int = 0
    steps: int | None = None
    interruptions: int | None = None
    interval_steps: int | None = None
    grace_s: float = 20.0
    stall_s: float = 120.0
    env: Mapping[str, str] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(frozen=True)
class _End:
    """What the recorder wrote at a script's end."""

    state: dict[str, str]
    unhanded: dict[str, str]
    variables: dict[str, str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Trained:
    """One whole run of the script."""

    course: Course
    end: _End | None
    folder: Path


def drill_script(command: Sequence[str], options: ScriptOptions, show: Show = lambda *_: None) -> Report:
    """Drill `command` in a temporary folder, which is removed if everything held and kept otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="outlast-drill-"))
    first = _train(folder / "undisturbed", command, options, [], show)
    whys = _why_not_protected(first)
    if whys:
        return conclude(_refused(first, whys), folder)
    steps = last_step(first.course.lines)
    interval = options.interval_steps or max(steps // _INTERVALS, 2)
    options = replace(options, interval_steps=interval)
    second = _train(folder / "undisturbed-again", command, options, [], show, steps=steps)
    notes, reproducible, ordered = _compare_undisturbed(first, second)
    home = folder / "interrupted"
    home.mkdir()
    with place(home, options.conditions) as here:
        third = _train(
            home, command, options, _plan(options, first.course, interval), show, here=here, steps=steps
        )
    expected, found = first.course, third.course
    if not ordered:
        expected, found = _without_samples(expected), _without_samples(found)
    store = here.folder
    evidence = Evidence(
        commits=third.course.saved,
        trainers=on_store.trainers(store),
        guarantees=on_store.guarantees(store),
        final=_final(third.end, second.end),
        interval_steps=interval,
        state_bytes=max((w.nbytes for w in on_store.written(first.folder / "store")), default=0),
        bytes_per_s=options.conditions.throttle_bytes_per_s,
        metrics=_logged(store),
        expected_metrics=_logged(first.folder / "store"),
        saves_its_end=_saves_its_end(first),
    )
    report = judge(
        expected, _final(first.end, second.end), found, evidence, reproducible=reproducible, notes=notes
    )
    return conclude(_explain(report, first, second, third), folder)


def _plan(options: ScriptOptions, undisturbed: Course, interval_steps: int) -> list[Planned]:
    if (notices := options.conditions.notices) is not None:
        return schedule_notices(options.seed, notices, undisturbed.lines)
    kinds = ALL if options.interruptions is None else choose(options.seed, options.interruptions)
    return schedule(options.seed, kinds, undisturbed.lines, interval_steps)


def _logged(store: Path) -> list[tuple[int, str]]:
    """Return what `run.log` was given, by step and names: the values of a script may be times."""
    return [(step, ", ".join(sorted(json.loads(values)))) for step, values in on_store.metrics(store)]


def _train(
    folder: Path,
    command: Sequence[str],
    options: ScriptOptions,
    plan: list[Planned],
    show: Show,
    *,
    here: Place | None = None,
    steps: int = 0,
) -> _Trained:
    here = here or quiet(folder)
    inject = folder / "inject"
    inject.mkdir(parents=True)
    (inject / "sitecustomize.py").write_text(recorder.SITECUSTOMIZE)
    interval = options.interval_steps or max((options.steps or 0) // _INTERVALS, 2)
    env = drill_env(interval_steps=interval, grace_s=options.grace_s, folder=folder)
    env["PYTHONPATH"] = ":".join(filter(None, (str(inject), env.get("PYTHONPATH"))))
    env |= _OFFLINE
    env |= {
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_DIR": str(folder),
    }
    env |= {
        recorder.FOLDER: str(folder),
        recorder.PLACE: f"{here.url}/drill",
        recorder.LIMIT: str(options.steps or ""),
        recorder.TAIL: str(_TAIL_S),
        recorder.PACE: str(pace_s(plan, steps)),
        **options.env,
    }
    machine = Machine(
        outlast_run(here.url, command),
        env={**env, **here.env},
        token=folder.parent.name + folder.name,
        log=folder / "output.txt",
        disk=here.disk,
        keeps_folder=True,
    )
    director = Director(
        machine,
        record=folder / "record.jsonl",
        place=here,
        grace_s=options.grace_s,
        stall_s=options.stall_s,
        show=_named(show, folder.name, steps),
    )
    course = director.conduct(plan)
    return _Trained(course, _read_end(folder), folder)


def _named(show: Show, name: str, steps: int) -> Callable[[str | None, int], None]:
    return lambda text, step: show(name, text, step, steps)


def _read_end(folder: Path) -> _End | None:
    """Return what the last process wrote that came to its end."""
    ends = sorted(folder.glob("final-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not ends:
        return None
    found = json.loads(ends[-1].read_text())
    return _End(found["state"], found["unhanded"], found["variables"], found["facts"])


def _saves_its_end(trained: _Trained) -> bool:
    saved = on_store.commits(trained.folder / "store")
    return bool(saved) and saved[-1].step >= last_step(trained.course.lines)


def _final(end: _End | None, other: _End | None) -> dict[str, str] | None:
    """Return what must come out alike: all handed-in state, and of the rest what two undisturbed runs agree on."""
    if end is None or other is None:
        return None
    return {**end.state, **{name: text for name, text in end.unhanded.items() if name in other.unhanded}}


def _why_not_protected(trained: _Trained) -> list[str]:
    """Say why a script cannot survive anything, from its first undisturbed run."""
    course, end = trained.course, trained.end
    output = f"its output is in {trained.folder / 'output.txt'}"
    if course.failures:
        return [f"undisturbed run: {text}" for text in course.failures]
    if course.exit_code != 0:
        return [f"the undisturbed run ended with {course.exit_code}; {output}"]
    if end is None:
        return [
            (
                "nothing was recorded: the command does not run a Python that has torch and Outlast, or runs it with -I, "
                f"-S or -E, which shut out what `outlast drill` records with; {output}"
            )
        ]
    if end.facts["runs"] == 0:
        return [
            (
                "no outlast.Run was made, so nothing is saved: make one once model and optimizer exist, "
                "run = outlast.Run(model=model, optimizer=optimizer), and loop over run.epochs and run.batches"
            )
        ]
    if end.facts["safe_points"] == 0:
        return [
            (
                "no safe point was reached: the loop must go over run.batches(loader), run.enumerate(loader) or "
                "run.steps(n), or call run.safe_point() after each step"
            )
        ]
    if last_step(course.lines) == 0:
        return [f"no optimizer stepped between two safe points, so there is nothing to lose; {output}"]
    return []


def _refused(trained: _Trained, whys: list[str]) -> Report:
    return Report(
        passed=False,
        bit_identical=None,
        first_difference=None,
        samples_repeated=0,
        samples_skipped=0,
        steps=last_step(trained.course.lines),
        interruptions=(),
        failures=tuple(whys),
    )


def _compare_undisturbed(first: _Trained, second: _Trained) -> tuple[list[str], bool, bool]:
    """Return notes, whether the script's bits can be judged, and whether its order can."""
    left, right = _survivors(first.course.lines), _survivors(second.course.lines)
    notes = []
    order = [line.samples for line in left] == [line.samples for line in right]
    bits = [line.weights for line in left] == [line.weights for line in right]
    bits = bits and first.end is not None and second.end is not None and first.end.state == second.end.state
    if not bits:
        notes.append(
            "the script is not reproducible by itself: two undisturbed runs end in different weights. Bits are not "
            "judged; order, position and steps lost are"
        )
    if not order:
        notes.append(
            "two undisturbed runs used different batches, so the order cannot be judged either: "
            "seed the script (torch.manual_seed(...)) and draw samples from torch's, numpy's or python's global generators"
        )
    return notes, bits, order


def _explain(report: Report, first: _Trained, second: _Trained, third: _Trained) -> Report:
    """Add what the recorder saw of the script: the reasons if the drill failed, else things to look at."""
    whys = []
    facts = first.end.facts if first.end else {}
    whys += [
        f"{name} steps, and was not handed to outlast.Run: its state restarts at every resume"
        for name in facts.get("optimizers", [])
    ]
    whys += [
        f"{place}: enumerate(run.batches(...)) counts from 0 again after every resume; use run.enumerate(loader)"
        for place in facts.get("bare_enumerate", [])
    ]
    if first.end and second.end and third.end:
        changed = {
            name.partition(")")[0] + ")"
            for name, text in first.end.unhanded.items()
            if second.end.unhanded.get(name) == text and third.end.unhanded.get(name) != text
        }
        whys += [
            f"{name} ends differently, and was not handed to outlast.Run: hand it in, outlast.Run(..., name=object)"
            for name in sorted(changed)
        ]
        whys += [
            f"the variable {name} ends as {third.end.variables[name]}, undisturbed as {text}: "
            f"it is not saved; keep it in run.vars ({_saved_as(name)})"
            for name, text in first.end.variables.items()
            if second.end.variables.get(name) == text
            and name in third.end.variables
            and third.end.variables[name] != text
        ]
    if report.passed:
        return msgspec.structs.replace(report, notes=(*report.notes, *whys))
    return msgspec.structs.replace(report, failures=(*report.failures, *(f"why: {why}" for why in whys)))


def _saved_as(name: str) -> str:
    return f"run.vars.{name.rpartition('.')[2]}"


def _survivors(lines: Sequence[Line]) -> list[Line]:
    found = {line.step: line for line in lines if line.tail is None}
    return [found[step] for step in sorted(found)]


def _without_samples(course: Course) -> Course:
    return replace(course, lines=[msgspec.structs.replace(line, samples=()) for line in course.lines])

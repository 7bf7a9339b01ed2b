"""Judges an interrupted run against the undisturbed one, from record files and the bytes on the store alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlast._types import Json
from outlast.drill import fitting
from outlast.drill.director import Course, Happened
from outlast.drill.on_store import Saved
from outlast.drill.records import Line, last_step
from outlast.drill.report import Interruption, Report
from outlast.drill.schedule import Kind

_NOTICED = frozenset({Kind.SIGTERM, Kind.SIGTERM_IN_VALIDATION})
_LOST_AFTER_NOTICE = 1
_SLOWER_FACTOR, _SLOWER_S = 2.0, 1.0
"""A save that was cut may have been this much slower than the slowest that became durable: a busy disk's fsync."""
_PRINTED_S = 5.0
"""What was printed so long before a kill outlasts it."""
_SHOWN = 5
"""Differences of one sort that are named, each with its place; the rest is counted."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a disturbed run beside its record."""

    commits: Sequence[Saved]
    trainers: Mapping[int, int]
    guarantees: Mapping[int, str]
    final: Mapping[str, str] | None
    interval_steps: int
    saves_its_end: bool = True
    """Whether the loop ends by itself, which makes its end durable; a script may also leave it."""
    state_bytes: int = 0
    """What a save of the whole state writes."""
    bytes_per_s: float | None = None
    """How fast the store is; None where nothing slows it."""
    metrics: Sequence[tuple[int, str]] = ()
    expected_metrics: Sequence[tuple[int, str]] = ()
    """What a reader is shown of `run.log`, of this run and of the undisturbed one: step and values, in order."""
    printed: Mapping[int, str] | None = None
    """Attempt -> what the store holds of its script's output; None where the script does not print what it records."""
    tracked: Sequence[Mapping[str, Json]] = ()
    expected_tracked: Sequence[Mapping[str, Json]] = ()
    """What the script's tracker was given, of this run and of the undisturbed one: `run`, `step` and values, in order."""


def judge(
    undisturbed: Course,
    undisturbed_final: Mapping[str, str] | None,
    course: Course,
    evidence: Evidence,
    *,
    reproducible: bool = True,
    notes: Sequence[str] = (),
) -> Report:
    """Check every claim and say which do not hold."""
    failures = [f"undisturbed run: {text}" for text in _ended_badly(undisturbed, undisturbed_final)]
    failures += _ended_badly(course, evidence.final)
    interruptions = []
    since = 0
    for happened in course.happened:
        item = _measure(happened, course, evidence, last_step(undisturbed.lines))
        interruptions.append(item)
        place = f"{item.notice.source if item.notice else item.kind} at step {item.at_step}"
        failures += [f"{place}: {text}" for text in happened.failures]
        if item.notice is not None and (text := fitting.unused(item.notice)):
            failures.append(f"{place}: {text}")
        if text := _unprinted(happened, course.lines[since : happened.lines_before], evidence):
            failures.append(f"{place}: {text}")
        since = happened.lines_before
        if item.steps_lost is None:
            failures.append(f"{place}: no step followed")
        elif text := _older_than_the_newest(happened, item.steps_lost):
            failures.append(f"{place}: {text}")
        elif item.steps_lost > item.steps_lost_bound:
            failures.append(
                f"{place}: {item.steps_lost} steps were lost; at most {item.steps_lost_bound} are allowed"
            )
    steps = last_step(undisturbed.lines)
    failures += _without_its_end(course, evidence)
    failures += _jumps(course.lines)
    failures += _step_differences(undisturbed.lines, course.lines, reproducible=reproducible)
    failures += _tail_differences(undisturbed.lines, course.lines, reproducible=reproducible)
    failures += _metric_differences(evidence.expected_metrics, evidence.metrics)
    failures += _tracker_differences(evidence.expected_tracked, evidence.tracked)
    repeated, skipped = _samples(undisturbed.lines, course.lines)
    first, identical = None, None
    if reproducible:
        first = first_difference(undisturbed_final, evidence.final)
        identical = first is None
        if first is not None and evidence.final is not None and undisturbed_final is not None:
            failures.append(f"the final state differs from the undisturbed run's, first at {first}")
    return Report(
        passed=not failures,
        bit_identical=identical,
        first_difference=first,
        samples_repeated=repeated,
        samples_skipped=skipped,
        steps=steps,
        interruptions=tuple(interruptions),
        failures=tuple(failures),
        notes=(*notes, *course.notes),
    )


def first_difference(expected: Mapping[str, str] | None, found: Mapping[str, str] | None) -> str | None:
    """Return the first name whose digest differs, in the order of the state; None if all are equal."""
    if expected is None or found is None:
        return "the end, which was not reached"
    names = [*expected, *(name for name in found if name not in expected)]
    return next((name for name in names if expected.get(name) != found.get(name)), None)


def _ended_badly(course: Course, final: Mapping[str, str] | None) -> list[str]:
    failures = list(course.failures)
    if not failures and course.exit_code != 0:
        failures.append(f"it ended with {course.exit_code}; expected 0")
    if not failures and final is None:
        failures.append("it ended without writing its final state")
    return failures


def _older_than_the_newest(happened: Happened, lost: int) -> str | None:
    """However long a save took: what was on the store before the kill is not given up."""
    newest = happened.saved[-1].step if happened.saved else 0
    resumed = happened.at_step - lost
    if resumed >= newest:
        return None
    return f"resumed behind step {resumed}, though a checkpoint of step {newest} was on the store before"


def _without_its_end(course: Course, evidence: Evidence) -> list[str]:
    """A run that ended well has its last step on the store, unless its agent was killed and not started again."""
    alone = bool(course.happened) and course.happened[-1].planned.kind is Kind.KILL_AGENT
    newest = evidence.commits[-1].step if evidence.commits else 0
    last = last_step(course.lines)
    ended_well = not course.failures and course.exit_code == 0
    if not ended_well or alone or not evidence.saves_its_end or newest >= last:
        return []
    return [f"it ended with 0 at step {last}, and the newest checkpoint on the store is of step {newest}"]


def _measure(happened: Happened, course: Course, evidence: Evidence, steps: int) -> Interruption:
    lines, before = course.lines, happened.lines_before
    after = next((line for line in lines[before:] if line.tail is None), None)
    first = next(iter(lines[before:]), None)
    kind = happened.planned.kind
    lost = None
    if after is not None:
        lost = happened.at_step - after.step + 1
    elif first is not None:
        lost = happened.at_step - first.step  # the run's last tail: no step is left to be trained
    elif happened.at_step == steps:
        lost = 0  # all that the run was to train was durable
    relaunched = happened.relaunched
    if first is not None and relaunched is None and kind is not Kind.KILL_AGENT:
        relaunched = course.births.get(first.pid)
    notice_s, notice = None, None
    if happened.noticed is not None:
        whole = [saved.committed for saved in happened.saved if saved.step >= happened.at_step]
        notice_s = max(0.0, min(whole) - happened.noticed) if whole else None
    if happened.announced is not None:
        announced = happened.announced
        notice = fitting.reckon(happened, announced, lines, evidence.state_bytes, evidence.bytes_per_s)
        urgent = [w.saved.committed - announced.at for w in announced.saves if w.reason == "emergency"]
        notice_s = min(urgent, default=None)
        bound = fitting.lost_bound(notice, happened)
    elif kind in _NOTICED:
        bound = _LOST_AFTER_NOTICE
    else:
        bound = _bound(happened, lost, lines, evidence)
    attempt = next(
        (n for n, pid in evidence.trainers.items() if first is not None and pid == first.pid), None
    )
    return Interruption(
        kind=kind.value,
        at_step=happened.at_step,
        steps_lost=lost,
        steps_lost_bound=bound,
        notice_to_durable_s=notice_s,
        relaunch_to_step_s=first.time - relaunched if first is not None and relaunched is not None else None,
        guarantee=evidence.guarantees.get(attempt)
        if attempt is not None and kind is not Kind.KILL_AGENT
        else None,
        notice=notice,
    )


def _bound(happened: Happened, lost: int | None, lines: Sequence[Line], evidence: Evidence) -> int:
    """Return the save interval + the steps taken while one save became durable, both measured.

    A save that was due by then and never became durable may have taken what the slowest one took, and some.
    """
    during, slowest_s = 0, 0.0
    for saved in evidence.commits:
        pid = evidence.trainers.get(saved.attempt)
        since = _taken(lines, pid, saved.step)
        if since is not None:
            slowest_s = max(slowest_s, saved.committed - since)
            during = max(
                during,
                sum(line.pid == pid and since < line.time <= saved.committed for line in _steps(lines)),
            )
    due = happened.at_step - (lost or 0) + evidence.interval_steps
    before = _steps(lines[: happened.lines_before])
    at = next((index for index in reversed(range(len(before))) if before[index].step == due), None)
    if at is not None:
        until = before[at].time + slowest_s * _SLOWER_FACTOR + _SLOWER_S
        during = max(during, sum(line.time <= until for line in before[at + 1 :]))
    return evidence.interval_steps + during


def _taken(lines: Sequence[Line], pid: int | None, step: int) -> float | None:
    """Return when the process recorded the step, just before its state was saved."""
    return next(
        (line.time for line in lines if line.pid == pid and line.tail is None and line.step == step), None
    )


def _steps(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.tail is None]


def _jumps(lines: Sequence[Line]) -> list[str]:
    """A process counts one by one, and a new one starts at most one further than the last step recorded."""
    failures, last_pid, step = [], None, 0
    for line in lines:
        if line.tail is not None:
            continue
        if line.pid == last_pid and line.step != step + 1:
            failures.append(f"process {line.pid} counted step {line.step} after step {step}")
        elif line.pid != last_pid and line.step > step + 1:
            failures.append(
                f"process {line.pid} started at step {line.step}, and step {step} was the last before it"
            )
        last_pid, step = line.pid, line.step
    return _some(failures, "jumps of the counter")


def _survived(lines: Sequence[Line]) -> dict[int, Line]:
    """For each counter value the last record counts."""
    return {line.step: line for line in lines if line.tail is None}


def _step_differences(expected: Sequence[Line], found: Sequence[Line], *, reproducible: bool) -> list[str]:
    want, have = _survived(expected), _survived(found)
    failures = []
    for step in sorted(want.keys() | have.keys()):
        left, right = want.get(step), have.get(step)
        if left is None:
            failures.append(f"step {step}: was trained, and the undisturbed run has no such step")
        elif right is None:
            failures.append(f"step {step}: was never trained")
        elif left.samples != right.samples or left.epoch != right.epoch:
            failures.append(
                f"step {step}: used samples {_ids(right)} of epoch {right.epoch}; "
                f"the undisturbed run used {_ids(left)} of epoch {left.epoch}"
            )
        elif left.lr != right.lr:
            failures.append(f"step {step}: learning rate {_float(right.lr)}; undisturbed {_float(left.lr)}")
        elif reproducible and left.weights != right.weights:
            failures.append(f"step {step}: the weights after it differ from the undisturbed run's")
    return _some(failures, "steps that differ")


def _tail_differences(expected: Sequence[Line], found: Sequence[Line], *, reproducible: bool) -> list[str]:
    """Each epoch's tail ran whole, exactly once, in the history that survived."""
    want = {(line.epoch, line.step): line for line in expected if line.tail == "end"}
    have = {(line.epoch, line.step): line for line in found if line.tail == "end"}
    failures = []
    for key in sorted(want.keys() | have.keys(), key=str):
        left, right = want.get(key), have.get(key)
        name = f"the tail of epoch {key[0]} after step {key[1]}"
        if right is None:
            failures.append(f"{name} was not run to its end")
        elif left is None:
            failures.append(f"{name} was run, and the undisturbed run has no such tail")
        elif left.tails != right.tails:
            failures.append(
                f"{name} left {right.tails} tails counted; undisturbed {left.tails}: once is right"
            )
        elif reproducible and left.weights != right.weights:
            failures.append(f"{name}: the weights after it differ from the undisturbed run's")
        elif reproducible and (left.lr, left.valid, left.best) != (right.lr, right.valid, right.best):
            failures.append(
                f"{name}: learning rate, validation loss and best are {_float(right.lr)}, {_float(right.valid)}, "
                f"{_float(right.best)}; undisturbed {_float(left.lr)}, {_float(left.valid)}, {_float(left.best)}"
            )
    return _some(failures, "tails that differ")


def _unprinted(happened: Happened, before: Sequence[Line], evidence: Evidence) -> str | None:
    """What the script printed before its end is on the store: all of it if it ended by itself, else what is older than 5 s."""
    if evidence.printed is None or not before:
        return None
    announced = happened.announced
    ended = announced is not None and announced.exit_code is not None
    until = math.inf if ended else happened.at - _PRINTED_S
    last = next(
        (line for line in reversed(before) if line.pid == before[-1].pid and line.time <= until), None
    )
    attempt = next((n for n, pid in evidence.trainers.items() if pid == before[-1].pid), None)
    if last is None or attempt is None:
        return None
    wanted = f"recorded step {last.step} {last.tail or 'trained'}"
    if wanted in evidence.printed.get(attempt, "").splitlines():
        return None
    return f"the line {wanted!r} of attempt {attempt} is not in the output that the store holds"


def _metric_differences(expected: Sequence[tuple[int, str]], found: Sequence[tuple[int, str]]) -> list[str]:
    """A reader is shown each record of the undisturbed run once, in its order."""
    if list(expected) == list(found):
        return []
    want, have = Counter(expected), Counter(found)
    failures = [f"run.log's record of step {step} is missing: {values}" for step, values in want - have]
    failures += [
        f"run.log shows a record of step {step} that the undisturbed run has not: {values}"
        for step, values in have - want
    ]
    return _some(failures, "records of run.log that differ") or [
        "run.log's records are shown in another order"
    ]


def _tracker_differences(
    expected: Sequence[Mapping[str, Json]], found: Sequence[Mapping[str, Json]]
) -> list[str]:
    """The tracker continued one run, from the right step each time: it has each step once, and as undisturbed."""
    ids = list(dict.fromkeys(str(line["run"]) for line in found))
    failures = [f"the tracker was given {len(ids)} runs: {', '.join(ids)}"] if len(ids) > 1 else []
    want, have = ([(line["step"], _values(line)) for line in lines] for lines in (expected, found))
    if want == have:
        return failures
    counts, wanted = Counter(have), Counter(want)
    failures += [
        f"the tracker was not given step {step} as it was: {values}" for step, values in wanted - counts
    ]
    failures += [
        f"the tracker was given step {step} once too often: {values}" for step, values in counts - wanted
    ]
    return _some(failures, "steps of the tracker that differ") or [
        "the tracker was given steps in another order"
    ]


def _values(line: Mapping[str, Json]) -> str:
    return json.dumps({name: value for name, value in line.items() if name != "run"}, sort_keys=True)


def _samples(expected: Sequence[Line], found: Sequence[Line]) -> tuple[int, int]:
    """Return how many samples the history that survived trained too often, and how many too rarely."""
    want, have = (
        Counter((line.epoch, sample) for line in _survived(lines).values() for sample in line.samples)
        for lines in (expected, found)
    )
    return (have - want).total(), (want - have).total()


def _some(failures: list[str], what: str) -> list[str]:
    if len(failures) <= _SHOWN:
        return failures
    return [*failures[:_SHOWN], f"and {len(failures) - _SHOWN} more {what}"]


def _ids(line: Line) -> str:
    shown = ", ".join(map(str, line.samples[:3]))
    return f"[{shown}{', ...' if len(line.samples) > 3 else ''}]"


def _float(text: str | None) -> str:
    """Make exact numbers readable: several with a space between, or a digest as it is."""
    if text is None:
        return "-"
    try:
        return " ".join(f"{float.fromhex(part):.6g}" for part in text.split())
    except ValueError:
        return text

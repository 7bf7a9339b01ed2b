"""The judge believes record lines and file times: each kind of lie in them is found, and an honest course is not blamed."""

from dataclasses import replace

import pytest

from outlast.drill.director import Course, Happened
from outlast.drill.on_store import Saved
from outlast.drill.oracle import Evidence, first_difference, judge
from outlast.drill.records import Line, read_lines
from outlast.drill.schedule import ALL, IN_TAIL, Kind, Planned, choose, schedule

INTERVAL = 4


def steps(pid, first, last, at=0.0):
    return [
        Line(pid=pid, time=at + n, step=n, epoch=(n - 1) // 8, samples=(n,), lr="0x1p-3")
        for n in range(first, last + 1)
    ]


def tail(pid, epoch, at, tails):
    about = {"pid": pid, "time": at, "step": (epoch + 1) * 8, "epoch": epoch}
    return [
        Line(**about, tail="begin"),
        Line(**about, tail="end", tails=tails, lr="0x1p-3", valid="0x1p0", best="0x1p0"),
    ]


def undisturbed():
    lines = [*steps(1, 1, 8), *tail(1, 0, 8.5, 1), *steps(1, 9, 16), *tail(1, 1, 16.5, 2)]
    return Course(lines, [], {}, 0, [])


def disturbed(*, resumed_at=5, kind=Kind.KILL_BOTH, late=(), saved=()):
    before = steps(2, 1, 7)
    after = [*steps(3, resumed_at, 8, 50), *tail(3, 0, 58.5, 1), *steps(3, 9, 16, 50), *tail(3, 1, 66.5, 2)]
    happened = Happened(Planned(kind, 7, 0.0), 7, 7.5, len(before), 40.0, saved=[*saved])
    return Course([*before, *(late or after)], [happened], {}, 0, [])


FIRST, LAST = Saved(1, 4, 0, "aaaa", 4.5), Saved(2, 16, 0, "bbbb", 66.2)


def judged(course, final=None, commits=(FIRST, LAST), *, saves_its_end=True, **more):
    final = final or {"model.w": "1"}
    evidence = Evidence(commits, {1: 2, 2: 3}, {2: "bit-exact"}, final, INTERVAL, saves_its_end, **more)
    return judge(undisturbed(), {"model.w": "1"}, course, evidence)


def test_an_honest_course_passes():
    """Killed after step 7, resumed behind the save of step 4: three steps lost, every claim holds."""
    report = judged(disturbed(saved=[FIRST]))
    assert report.passed, report.failures
    item = report.interruptions[0]
    assert (item.steps_lost, item.steps_lost_bound, item.guarantee) == (3, INTERVAL, "bit-exact")
    assert item.relaunch_to_step_s == pytest.approx(15)


def test_more_steps_lost_than_a_save_interval_is_a_failure():
    """Started from zero although a save was due after step 4: seven steps lost, and and four and those of two seconds allowed."""
    report = judged(disturbed(resumed_at=1))
    assert report.interruptions[0].steps_lost_bound == INTERVAL + 2
    assert [item.steps_lost for item in report.interruptions] == [7]
    assert any("7 steps were lost" in text for text in report.failures)


def test_a_checkpoint_that_was_on_the_store_is_not_given_up():
    """However wide the bound: behind the commit of step 4 that stood before the kill, nothing may be resumed."""
    report = judged(disturbed(resumed_at=4, saved=[FIRST]))
    assert [item.steps_lost for item in report.interruptions] == [4]
    assert any("resumed behind step 3, though a checkpoint of step 4" in text for text in report.failures)
    assert not any("steps were lost" in text for text in report.failures)


def test_a_run_that_ends_well_has_its_last_step_on_the_store():
    """Exit 0 and no commit of step 16 is a failure, but for a loop that is left, or whose agent was killed at last."""
    report = judged(disturbed(saved=[FIRST]), commits=(FIRST,))
    assert report.failures == (
        "it ended with 0 at step 16, and the newest checkpoint on the store is of step 4",
    )
    assert judged(disturbed(kind=Kind.KILL_AGENT, saved=[FIRST]), commits=(FIRST,)).passed
    assert judged(disturbed(saved=[FIRST]), commits=(FIRST,), saves_its_end=False).passed


def test_what_came_too_late_is_a_note():
    """A drill does not fail because its own kill came late: what was planned and not done is said."""
    report = judged(replace(disturbed(), notes=["sigterm came too late"]))
    assert report.passed and report.notes == ("sigterm came too late",)


def test_a_notice_allows_one_step():
    """The same three steps, lost after a SIGTERM whose grace was enough, are two too many."""
    report = judged(disturbed(kind=Kind.SIGTERM))
    assert any("3 steps were lost; at most 1" in text for text in report.failures)


def test_other_samples_are_counted_as_repeated_and_skipped():
    """One step that uses the samples of the step before it: they are repeated, its own are skipped."""
    course = disturbed()
    course.lines[-6] = replace_line(course.lines[-6], samples=(12,))
    report = judged(course)
    assert (report.samples_repeated, report.samples_skipped) == (1, 1)
    assert any("used samples" in text for text in report.failures)


@pytest.mark.parametrize(
    ("tails", "says"), [(None, "was not run to its end"), (2, "2 tails counted; undisturbed 1")]
)
def test_a_tail_runs_exactly_once(tails, says):
    """An epoch's tail that is missing, or that the model itself counted twice, is named."""
    course = disturbed()
    middle = [] if tails is None else tail(3, 0, 58.5, tails)
    lines = [line for line in course.lines if line.tail is None or line.epoch != 0]
    at = next(index for index, line in enumerate(lines) if line.step == 9)
    report = judged(replace(course, lines=[*lines[:at], *middle, *lines[at:]]))
    assert any(says in text for text in report.failures), report.failures


def test_a_counter_that_jumps_is_named():
    """A process that starts further than what was ever trained before it skipped something."""
    report = judged(disturbed(late=steps(3, 9, 16, 50)))
    assert any("started at step 9" in text for text in report.failures)


def test_the_first_different_tensor_is_named_in_the_order_of_the_state():
    """Of two tensors that differ, the one that comes first; a tensor that is missing differs too."""
    assert first_difference({"b": "1", "a": "1"}, {"b": "2", "a": "2"}) == "b"
    assert first_difference({"b": "1"}, {"b": "1", "c": "1"}) == "c"
    assert first_difference({"b": "1"}, {"b": "1"}) is None
    assert not judged(disturbed(), {"model.w": "2"}).bit_identical


def test_a_line_that_a_kill_cut_is_no_line(tmp_path):
    """What a killed process had begun to write counts for nothing, and does not spoil the lines around it."""
    path = tmp_path / "record"
    whole = b'{"pid": 1, "time": 0.5, "step": 1, "samples": [3]}\n'
    path.write_bytes(whole + b'{"pid": 1, "ti\n' + whole + b'{"pid"')
    assert [line.step for line in read_lines(path)] == [1, 1]


def test_the_same_seed_draws_the_same_schedule():
    """All nine kinds, each once, in an order and at moments that the seed alone decides."""
    lines = undisturbed().lines + steps(1, 17, 60)
    plans = [schedule(seed, ALL, lines, INTERVAL) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert sorted(item.kind for item in plans[0]) == sorted(ALL)
    assert [item.at_step for item in plans[0]] == sorted(item.at_step for item in plans[0])
    assert all(item.at_step in (8, 16) for item in plans[0] if item.kind in IN_TAIL)
    assert len(choose(1, 4)) == 4 and len(set(choose(1, 9))) == 9


def replace_line(line, **changes):
    import msgspec

    return msgspec.structs.replace(line, **changes)


LOGGED = [(1, '{"loss": 3.0}'), (2, '{"loss": 2.0}'), (3, '{"loss": 1.0}')]


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        (LOGGED[:2], "record of step 3 is missing"),
        ([*LOGGED, LOGGED[1]], "shows a record of step 2 that the undisturbed run has not"),
        ([LOGGED[0], (2, '{"loss": 2.5}'), LOGGED[2]], "record of step 2 is missing"),
        ([LOGGED[1], LOGGED[0], LOGGED[2]], "shown in another order"),
    ],
)
def test_each_record_of_run_log_is_shown_once_as_undisturbed_and_in_order(shown, says):
    assert judged(disturbed(saved=[FIRST]), metrics=LOGGED, expected_metrics=LOGGED).passed
    report = judged(disturbed(saved=[FIRST]), metrics=shown, expected_metrics=LOGGED)
    assert any(says in text for text in report.failures), report.failures


def tracked(*steps, run="aa"):
    return [{"run": run, "step": step, "loss": 1.0 / step} for step in steps]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (tracked(1, 2), "not given step 3"),
        (tracked(1, 2, 2, 3), "given step 2 once too often"),
        ([*tracked(1), *tracked(2, 3, run="bb")], "given 2 runs"),
        (tracked(1, 3, 2), "in another order"),
    ],
)
def test_a_tracker_continues_one_run_from_the_right_step(given, says):
    expected = tracked(1, 2, 3, run="undisturbed")
    assert judged(disturbed(saved=[FIRST]), tracked=tracked(1, 2, 3), expected_tracked=expected).passed
    report = judged(disturbed(saved=[FIRST]), tracked=given, expected_tracked=expected)
    assert any(says in text for text in report.failures), report.failures


def test_what_was_printed_five_seconds_before_a_kill_is_on_the_store():
    """The kill came 0.5 s after step 7: step 2 is older than 5 s, step 3 is not."""
    course = disturbed(saved=[FIRST])
    assert judged(course, printed={1: "recorded step 2 trained\n"}).passed
    report = judged(course, printed={1: "recorded step 1 trained\n"})
    assert any("'recorded step 2 trained' of attempt 1" in text for text in report.failures), report.failures

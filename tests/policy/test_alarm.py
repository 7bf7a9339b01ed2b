"""When a run that saves nothing is talked about: DESIGN.md's limits, and the cause that is named."""

from __future__ import annotations

import dataclasses

import pytest

from outlast.policy.alarm import Sight, alarms

FINE = Sight(
    since_safe_point_s=1.0,
    batches_since_safe_point=1,
    since_durable_s=1.0,
    interval_s=300.0,
    steps_since_durable=1,
    interval_steps=None,
    store_error=None,
    ended=False,
)
STUCK = dataclasses.replace(FINE, since_safe_point_s=600.0, batches_since_safe_point=100)


def causes(sight: Sight) -> list[str]:
    return [alarm.cause for alarm in alarms(sight)]


def test_a_run_that_saves_in_time_is_not_talked_about() -> None:
    """Just below each limit."""
    below = dataclasses.replace(
        FINE, since_safe_point_s=10_000.0, batches_since_safe_point=99, since_durable_s=899.9
    )
    assert causes(FINE) == causes(below) == []
    assert causes(dataclasses.replace(STUCK, since_safe_point_s=599.9)) == []


def test_no_safe_point_for_ten_minutes_and_a_hundred_batches_is_said() -> None:
    """Both: a slow step alone is none, nor are many quick batches."""
    (alarm,) = alarms(STUCK)
    assert alarm.cause == "no-safe-point"
    assert "10 min and 100 batches" in alarm.message
    assert "Hand in the optimizer" in alarm.message


def test_nothing_durable_for_three_intervals_is_said_with_its_cause() -> None:
    """The store's own words where it fails."""
    late = dataclasses.replace(FINE, since_durable_s=900.0)
    assert causes(late) == ["nothing-durable"]
    (alarm,) = alarms(dataclasses.replace(late, store_error="bucket: no answer"))
    assert "bucket: no answer" in alarm.message
    assert "15 min" in alarm.message
    both = alarms(dataclasses.replace(STUCK, since_durable_s=900.0))
    assert [a.cause for a in both] == ["no-safe-point", "nothing-durable"]
    assert "no safe point is reached" in both[1].message


@pytest.mark.parametrize(
    ("steps", "seconds", "said"), [(15, 600.0, True), (14, 600.0, False), (15, 599.0, False)]
)
def test_intervals_in_steps_count_steps_and_ten_minutes(steps: int, seconds: float, said: bool) -> None:
    """Three intervals of five steps may pass in a second, which is no reason to worry."""
    sight = dataclasses.replace(
        FINE, interval_s=None, interval_steps=5, steps_since_durable=steps, since_durable_s=seconds
    )
    assert bool(alarms(sight)) is said


def test_outside_of_training_nothing_is_said() -> None:
    """Before the loop, in a long validation and after the end there are no safe points."""
    assert causes(dataclasses.replace(STUCK, since_durable_s=9000.0, ended=True)) == []

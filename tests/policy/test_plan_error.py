"""A plan against what came of it: numbers that were chosen so that the errors are plain."""

from __future__ import annotations

import dataclasses

import pytest

from outlast.policy.plan_error import Compared, Planned, Realised, is_inside, plan_error

PLANNED = Planned(machines_usd=60.0, low_usd=40.0, high_usd=75.0, interruptions=9.0, lost_h=0.5, saving_h=0.2)
REALISED = Realised(is_finished=True, machines_usd=50.0, interruptions=12, lost_h=0.5, saving_h=0.0)


def test_the_error_is_what_was_expected_less_what_came() -> None:
    """As an amount, and of what came; where nothing came there is no share."""
    assert plan_error(PLANNED, REALISED) == [
        Compared("machines", "USD", 60.0, 50.0, 10.0, 0.2),
        Compared("interruptions", "", 9.0, 12, -3.0, -0.25),
        Compared("lost work", "h", 0.5, 0.5, 0.0, 0.0),
        Compared("save overhead", "h", 0.2, 0.0, 0.2, None),
    ]


@pytest.mark.parametrize(("usd", "inside"), [(39.9, False), (40.0, True), (75.0, True), (75.1, False)])
def test_a_cost_is_inside_the_interval_or_not(usd: float, inside: bool) -> None:
    assert is_inside(PLANNED, dataclasses.replace(REALISED, machines_usd=usd)) is inside


def test_nothing_is_said_to_be_wrong_before_the_run_has_finished() -> None:
    """What came of it so far is shown; it is not what the plan is about."""
    so_far = dataclasses.replace(REALISED, is_finished=False)
    assert [each.realised for each in plan_error(PLANNED, so_far)] == [50.0, 12, 0.5, 0.0]
    assert {each.error for each in plan_error(PLANNED, so_far)} == {None}
    assert is_inside(PLANNED, so_far) is None


def test_what_is_not_known_is_not_compared() -> None:
    unknown = Realised(is_finished=True, machines_usd=None, interruptions=None, lost_h=None, saving_h=None)
    assert {(each.realised, each.error, each.error_share) for each in plan_error(PLANNED, unknown)} == {
        (None, None, None)
    }
    assert is_inside(PLANNED, unknown) is None

"""Whether a save that is being written makes way for a stronger one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast._types import Reason
from outlast.policy.giving_way import LITTLE, MARGIN, gives_way, rate


@pytest.mark.parametrize(
    ("left", "following", "bytes_per_s", "deadline", "way"),
    [
        (100, 100, 10, None, True),  # no deadline: the newer state first
        (100, 100, 0, 5, True),  # nothing is written yet: nothing is lost
        (100, 100, 10, 99, True),  # both fit, and the newer would wait as long again for the older
        (10, 100, 10, 17, False),  # what is left is little, and both fit, with a margin
        (10, 100, 10, 16, True),  # the newer fits, both might not
        (10, 100, 10, 9, False),  # the newer cannot be durable: finish what is under way
        (9, 100, 10, None, False),  # what is left is little, and nobody says that time is short
    ],
)
def test_the_newer_state_goes_first_unless_little_is_left_or_it_cannot_be_durable(
    left, following, bytes_per_s, deadline, way
):
    """Times in seconds, bytes and bytes per second are made up; the borders are those of the rule."""
    facts = {"left_bytes": left, "next_bytes": following, "bytes_per_s": bytes_per_s, "deadline_s": deadline}
    assert gives_way(**facts, written=Reason.INTERVAL, steps_newer=0) is way


@pytest.mark.parametrize(
    ("steps", "deadline", "way"),
    [
        (2, 31, False),  # both fit, and what is written is durable sooner
        (2, 29, True),  # one of the two does, and the newer is worth more
        (2, 9, False),  # the newer does not
        (1, 29, False),  # a step is not worth what has been written
        (0, None, False),  # nor is the end of an epoch, whose tail is run again
    ],
)
def test_an_emergency_save_gives_way_to_one_that_is_steps_newer_where_only_one_fits(steps, deadline, way):
    """Three saves of one step followed each other at the end of an epoch, each given up for the next, and none was durable."""
    facts = {"left_bytes": 100, "next_bytes": 100, "bytes_per_s": 10, "deadline_s": deadline}
    assert gives_way(**facts, written=Reason.EMERGENCY, steps_newer=steps) is way


@pytest.mark.parametrize(
    ("left", "following", "deadline", "way"),
    [
        (0.001, 10, None, False),  # nobody says that time is short
        (1.5, 10, None, True),  # nor that there is so much
        (0.5, 20, 28, False),  # both fit, but for the margin
        (0.001, 20, 20.005, False),  # just so
        (0.5, 20, 20.4, True),  # one of the two
        (2.5, 20, 28, True),  # what is left is not little, and both fit without a margin only
        (0.5, 20, 19, False),  # the newer does not
    ],
)
def test_an_emergency_save_that_is_all_but_done_is_finished_first(left, following, deadline, way):
    """Seconds at a rate of 1 GB/s. Where it was given up and the line then slowed a little, neither was durable."""
    facts = {"left_bytes": int(left * 1e9), "next_bytes": int(following * 1e9), "bytes_per_s": 1e9}
    assert gives_way(**facts, deadline_s=deadline, written=Reason.EMERGENCY, steps_newer=2) is way


@pytest.mark.parametrize("written", [Reason.USER, Reason.FINAL])
@pytest.mark.parametrize(
    ("steps", "deadline", "way"),
    [
        (30, None, False),  # nobody says that time is short, and somebody asked for it
        (30, 31, False),  # both fit
        (30, 29, True),  # one of the two does
        (30, 9, False),  # the newer does not
        (1, 29, False),  # a step is not worth what has been written
    ],
)
def test_a_save_that_was_asked_for_gives_way_where_only_one_of_the_two_fits(written, steps, deadline, way):
    """It had begun a moment before the notice, the whole of it was written, and the state of the notice was not saved."""
    facts = {"left_bytes": 100, "next_bytes": 100, "bytes_per_s": 10, "deadline_s": deadline}
    assert gives_way(**facts, written=written, steps_newer=steps) is way


numbers = st.integers(0, 1000)


@given(st.sampled_from(Reason), numbers, numbers, st.integers(0, 50), st.none() | numbers, st.integers(0, 5))
def test_what_is_written_is_given_up_only_for_what_can_be_durable_and_never_where_it_is_all_but_done(
    written, left, following, bytes_per_s, deadline, steps
):
    """Whatever the sizes, the rate and the time; where nothing is known of the rate, nothing is known to be worth waiting for."""
    way = gives_way(
        written=written, left_bytes=left, next_bytes=following, bytes_per_s=bytes_per_s, deadline_s=deadline,
        steps_newer=steps,
    )  # fmt: skip
    is_little = left < LITTLE * following
    is_interval = written is Reason.INTERVAL
    if not is_interval and steps <= 1:
        assert not way
    elif deadline is None:
        may_give_way = is_interval or written is Reason.EMERGENCY
        assert way is (may_give_way and (not bytes_per_s or left > LITTLE * following))
    elif not bytes_per_s:
        assert way
    elif way:
        both_s = (left + following) / bytes_per_s
        assert following / bytes_per_s <= deadline
        assert not (is_little and MARGIN * both_s <= deadline)
        assert is_interval or not (is_little and both_s <= deadline)
        assert is_interval or MARGIN * both_s > deadline
    elif (
        is_interval
    ):  # what nobody waits for is finished only if the newer loses little by it, or cannot be durable
        assert left <= LITTLE * following or following / bytes_per_s > deadline


@pytest.mark.parametrize(
    ("done", "took", "usual_s", "expected"),
    [
        (1, 1.0, None, 1.0),  # nothing was saved before
        (1, 1.0, 8.0, 50.0),  # it has only begun: those before tell
        (100, 1.0, 8.0, 100.0),  # and it is faster already
        (4, 4.0, 8.0, 1.0),  # half of their time has passed, and it is slow
        (0, 7.0, 8.0, 50.0),  # nothing has arrived yet, all of it is on its way
    ],
)
def test_what_a_save_has_written_at_first_does_not_tell_how_fast_it_is(done, took, usual_s, expected):
    """An interval save was under way as a notice came, slow as it began: the newer state was thought not to fit, and was not saved."""
    usual = 50.0 if usual_s is not None else 0.0
    assert rate(done_bytes=done, took_s=took, usual_bytes_per_s=usual, usual_s=usual_s) == expected

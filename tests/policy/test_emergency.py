"""What is saved as a machine goes, and when its trainer leaves: for all numbers, and as said in words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.policy.emergency import EXIT_S, Facts, choose, fits, latest_leave_s, leave_s

seconds = st.floats(0, 1e4)
sizes = st.integers(0, 10**13)
facts = st.builds(
    Facts,
    left_s=st.none() | seconds,
    safe_point_s=seconds,
    changed_bytes=sizes,
    complete_bytes=st.none() | sizes,
    in_flight_bytes=st.none() | sizes,
    bytes_per_s=st.just(0.0) | st.floats(1e3, 1e11),
)


def could_end(known: Facts, nbytes: int | None, before_s: float = 0.0) -> bool:
    """By the plain arithmetic of a save."""
    assert known.left_s is not None
    return nbytes is not None and before_s + nbytes / known.bytes_per_s <= known.left_s


@given(facts)
def test_what_is_begun_can_end_and_is_the_newest_that_can(known):
    """Of all that fits the newest state: now, then the newest complete snapshot, then the one that is being written."""
    choice = choose(known)
    if known.left_s is None or known.bytes_per_s == 0:
        assert choice.what == "snapshot"
        return
    can = {
        "snapshot": could_end(known, known.changed_bytes, known.safe_point_s),
        "flush": could_end(known, known.complete_bytes),
        "finish": could_end(known, known.in_flight_bytes),
        "keep": True,
    }
    assert choice.what == next(what for what, fit in can.items() if fit)


@given(facts, seconds)
def test_more_time_never_saves_an_older_state(known, more_s):
    """A longer notice chooses at least as new a state."""
    worth = ["keep", "finish", "flush", "snapshot"]
    longer = replace(known, left_s=None if known.left_s is None else known.left_s + more_s)
    assert worth.index(choose(longer).what) >= worth.index(choose(known).what)


@pytest.mark.parametrize(
    ("known", "what", "why"),
    [
        (
            Facts(30.0, 2.0, 14 * 10**9, None, None, 0.9e9),
            "snapshot",
            "14 GB at 900 MB/s, from 2.0 s on, needs 16 s; the notice is 30 s: fits",
        ),
        (
            Facts(30.0, 60.0, 14 * 10**9, 7 * 10**9, 10**9, 0.9e9),
            "flush",
            "the newest complete snapshot is saved: 7 GB at 900 MB/s needs 7.8 s; the notice is 30 s: fits",
        ),
        (Facts(5.0, 1.0, 14 * 10**9, 7 * 10**9, 10**9, 0.9e9), "finish", "1 GB at 900 MB/s needs 1.1 s"),
        (Facts(5.0, 1.0, 14 * 10**9, None, 7 * 10**9, 0.9e9), "keep", "the notice is 5.0 s: does not fit"),
        (Facts(30.0, 1.0, 100, None, None, 0.0), "snapshot", "no save was measured yet"),
        (Facts(None, 1.0, 100, None, None, 10.0), "snapshot", "nobody says when"),
    ],
)
def test_the_choice_says_why_with_its_numbers(known, what, why):
    """A line that people can check."""
    choice = choose(known)
    assert choice.what == what
    assert why in choice.why


def test_whether_a_save_fits_can_be_asked_before_launch():
    """By bytes, rate and notice alone."""
    fit = fits(14 * 10**9, 0.9e9, 30.0)
    assert fit.fits
    assert fit.why == "14 GB at 900 MB/s needs 16 s; the notice is 30 s: fits"
    assert not fits(14 * 10**9, 0.9e9, 15.0).fits
    assert not fits(1, 0.0, 1e9).fits
    assert fits(0, 0.0, 0.0).fits


@given(sizes, st.floats(1e3, 1e11), seconds)
def test_the_sentence_says_what_the_answer_is(nbytes, rate, notice_s):
    """It is made of the same numbers."""
    fit = fits(nbytes, rate, notice_s)
    assert fit.why.endswith("does not fit") is not fit.fits
    assert fit.fits is (nbytes / rate <= notice_s)


@given(seconds, seconds, seconds, seconds)
def test_the_latest_leave_leaves_time_for_the_safe_point_and_the_save(
    deadline_s, save_s, safe_point_s, in_flight_s
):
    """And a margin: half of the saves' time, and a second at least."""
    leave = latest_leave_s(deadline_s, save_s, safe_point_s, in_flight_s)
    durable_s = leave + safe_point_s + in_flight_s + save_s
    assert durable_s + max(0.5 * (save_s + in_flight_s), EXIT_S) <= deadline_s + 1e-6


@given(
    st.sampled_from(["signal", "warning", "machine", "hint", "leave"]),
    st.none() | seconds,
    st.none() | seconds,
    seconds,
)
def test_who_leaves_at_once_and_who_never(kind, deadline_s, save_s, safe_point_s):
    """Signals, warnings and hints that are left on at once, other hints never; a machine's notice at once where its time or a save's is not known."""
    at = leave_s(kind, deadline_s, save_s=save_s, safe_point_s=safe_point_s)
    if kind == "hint":
        assert at == math.inf
    elif kind != "machine" or deadline_s is None or save_s is None:
        assert at == -math.inf
    else:
        assert at == latest_leave_s(deadline_s, save_s, safe_point_s)


@given(seconds, seconds, seconds, seconds)
def test_a_deadline_that_moves_moves_the_leave_as_far(deadline_s, moved_s, save_s, safe_point_s):
    """Earlier or later."""
    first, second = (
        leave_s("machine", at, save_s=save_s, safe_point_s=safe_point_s) for at in (deadline_s, moved_s)
    )
    assert second - first == pytest.approx(moved_s - deadline_s, abs=1e-6)

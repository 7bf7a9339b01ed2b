"""Whether a save that is being written makes way for a stronger one."""

from __future__ import annotations

import pytest

from outlast.policy.giving_way import gives_way


@pytest.mark.parametrize(
    ("left", "following", "rate", "deadline", "way"),
    [
        (100, 100, 10, None, True),  # no deadline: the newer state first
        (100, 100, 0, 5, True),  # nothing is written yet: nothing is lost
        (100, 100, 10, 31, False),  # both fit, with a margin
        (100, 100, 10, 29, True),  # the newer fits, both might not
        (10, 100, 10, 9, False),  # the newer cannot be durable: finish what is under way
    ],
)
def test_the_newer_state_goes_first_unless_both_fit_or_it_cannot_be_durable(
    left, following, rate, deadline, way
):
    """Times in seconds, bytes and bytes per second are made up; the borders are those of the rule."""
    assert gives_way(left_bytes=left, next_bytes=following, bytes_per_s=rate, deadline_s=deadline) is way

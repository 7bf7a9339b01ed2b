"""How many arenas there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast._errors import ConfigError
from outlast.policy.memory import MOST_ARENAS, amount, plan_arenas

GB = 10**9


def test_two_where_they_fit_one_where_only_one_does():
    """By default in half of what is free; with a cap in all of it."""
    assert plan_arenas(2 * GB, 21 * GB, None).arenas == 2
    assert plan_arenas(2 * GB, 7 * GB, None).arenas == 1
    assert plan_arenas(2 * GB, 7 * GB, 5 * GB).arenas == 2
    assert plan_arenas(2 * GB, 7 * GB, 3 * GB).arenas == 1


def test_what_was_taken_is_said_in_one_line():
    """Number, size and what is free; with one arena, what follows from that."""
    two = plan_arenas(int(1.81 * GB / 1.02), int(21.3 * GB), None)
    assert two.text() == "snapshots take 2 x 1.81 GB of the 21.3 GB that are free"
    one = plan_arenas(GB, 3 * GB, None)
    assert "1 x 1.02 GB" in one.text() and "a save waits until the one before is durable" in one.text()


@pytest.mark.parametrize(
    ("state", "free", "cap", "numbers"),
    [
        (50 * GB, 40 * GB, None, ("51 GB", "40 GB")),
        (30 * GB, 40 * GB, None, ("30.6 GB", "40 GB", 'host_memory="31GB"', '"62GB"')),
        (30 * GB, 90 * GB, 20 * GB, ("30.6 GB", "20 GB", "61.2 GB")),
        (30 * GB, 20 * GB, 80 * GB, ("30.6 GB", "20 GB")),
    ],
)
def test_a_state_that_cannot_fit_is_refused_with_the_numbers(state, free, cap, numbers):
    """Exit 78: starting again would not help."""
    with pytest.raises(ConfigError) as refused:
        plan_arenas(state, free, cap)
    for number in numbers:
        assert number in str(refused.value)


@given(state=st.integers(0, 10**12), free=st.integers(0, 10**12), cap=st.none() | st.integers(1, 10**12))
def test_no_plan_takes_more_than_is_allowed_or_free(state, free, cap):
    """And arenas are no larger than 1.1 x the state."""
    try:
        plan = plan_arenas(state, free, cap)
    except ConfigError:
        assert state * 1.1 > min(free if cap is None else cap, free) / 2 - 1
        return
    assert 1 <= plan.arenas <= MOST_ARENAS
    assert state <= plan.arena_bytes <= 1.1 * state
    assert plan.arenas * plan.arena_bytes <= (free / 2 if cap is None else min(free, cap))


def test_amounts_read_as_people_write_them():
    """Powers of ten."""
    assert [amount(n) for n in (0, 999, 4096, 1_810_000_000)] == ["0 bytes", "999 bytes", "4.1 kB", "1.81 GB"]

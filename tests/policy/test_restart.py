"""The table of exit codes, and what holds for every outcome."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.policy.restart import (
    MACHINE_SURVIVED_S,
    STORE_BACKOFF_CAP_S,
    End,
    Outcome,
    Relaunch,
    StandingNotice,
    WaitNotice,
    decide,
)

SIGTERM = StandingNotice("signal", cancelled=False, past_deadline_s=-30.0)
MACHINE = StandingNotice("machine", cancelled=False, past_deadline_s=-20.0)

notices = st.builds(
    StandingNotice,
    st.sampled_from(["signal", "warning", "machine", "hint", "leave"]),
    st.booleans(),
    st.none() | st.floats(-1e4, 1e4),
)
exceptions = st.none() | st.sampled_from(["ValueError: a", "ValueError: b"])
outcomes = st.builds(
    Outcome,
    returncode=st.integers(-64, 255),
    notices=st.lists(notices, max_size=3).map(tuple),
    restarts=st.integers(0, 5),
    max_restarts=st.integers(0, 5),
    store_tries=st.integers(0, 10**6),
    store_waited_s=st.floats(0, 7200),
    store_wait_s=st.floats(0, 3600),
    earlier_attempt=st.booleans(),
    exception=exceptions,
    previous_exception=exceptions,
    new_checkpoint=st.booleans(),
)
jitters = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("code", [0, 130, 76, 78])
@given(outcome=outcomes)
def test_done_ctrl_c_superseded_and_wrong_configuration_end_with_the_same(code, outcome):
    """0, 130, 76 and 78 end with the same code, whatever else is known."""
    action = decide(replace(outcome, returncode=code))
    assert isinstance(action, End)
    assert action.code == code


@given(outcome=outcomes)
def test_a_sigterm_never_relaunches(outcome):
    """After a SIGTERM nothing is started again here, and what would be is reported as 75."""
    action = decide(replace(outcome, notices=(*outcome.notices, SIGTERM)))
    assert isinstance(action, End)
    own = 130 if outcome.returncode == -signal.SIGINT else outcome.returncode
    assert action.code == (own if own in {0, 130, 76, 78} else 75)


@given(outcome=outcomes)
def test_a_script_that_sigint_killed_was_interrupted(outcome):
    """Ctrl-C before outlast.Run could answer it is Ctrl-C all the same."""
    action = decide(replace(outcome, returncode=-signal.SIGINT))
    assert isinstance(action, End)
    assert action.code == 130


def test_preempted_without_a_known_notice_ends_with_75():
    """75 for a reason that only the trainer knew goes to whoever started us."""
    assert decide(Outcome(75)) == End(75, "preempted: start the same command again, and it continues")


@pytest.mark.parametrize("returncode", [75, 1, -9, 74])
def test_a_notice_for_the_machine_is_waited_out(returncode):
    """Nothing is started while the machine may go away, until 60 s after the deadline."""
    action = decide(Outcome(returncode, notices=(MACHINE,)))
    assert isinstance(action, WaitNotice)
    assert action.at_most_s == 20.0 + MACHINE_SURVIVED_S


@given(outcome=outcomes)
def test_a_hint_changes_nothing_after_the_end(outcome):
    """A rebalance, a freeze or a far-off maintenance is not waited for: what follows is what would follow without it."""
    hint = StandingNotice("hint", cancelled=False, past_deadline_s=None)
    assert decide(replace(outcome, notices=(*outcome.notices, hint))) == decide(outcome)


@pytest.mark.parametrize("returncode", [75, 1, -9, 74])
@pytest.mark.parametrize("past_s", [None, -86400.0, 1e6])
def test_a_hint_that_is_left_on_ends_here_at_once(returncode, past_s):
    """Nobody says when it is settled, and another machine is wanted: nothing is waited for, nothing started here."""
    hint = StandingNotice("leave", cancelled=False, past_deadline_s=past_s)
    action = decide(Outcome(returncode, notices=(hint,)))
    assert isinstance(action, End)
    assert action.code == 75
    assert "on another" in action.why
    assert isinstance(decide(Outcome(75, notices=(replace(hint, cancelled=True),))), Relaunch)


def test_several_notices_are_waited_out_to_the_last():
    """The wait reaches to the last deadline, and has no end where one names none."""
    later = replace(MACHINE, past_deadline_s=-100.0)
    assert decide(Outcome(75, notices=(MACHINE, later))).at_most_s == 160.0
    assert decide(Outcome(75, notices=(MACHINE, replace(MACHINE, past_deadline_s=None)))).at_most_s is None


def test_a_cancelled_notice_relaunches_here():
    """Cancelled: the training goes on where it was."""
    action = decide(Outcome(75, notices=(replace(MACHINE, cancelled=True),)))
    assert action == Relaunch(0.0, "the notice was cancelled")


def test_a_machine_that_outlives_its_notice_relaunches_here():
    """60 s after the deadline, and not before, the machine counts as spared."""
    just = replace(MACHINE, past_deadline_s=MACHINE_SURVIVED_S)
    assert decide(Outcome(75, notices=(just,))) == Relaunch(0.0, "the machine outlived its notice")
    almost = replace(MACHINE, past_deadline_s=MACHINE_SURVIVED_S - 0.5)
    assert decide(Outcome(75, notices=(almost,))).at_most_s == 0.5


def test_one_cancelled_notice_does_not_take_back_another():
    """Two sources, one takes its notice back: the other one stands."""
    action = decide(Outcome(75, notices=(replace(MACHINE, cancelled=True), MACHINE)))
    assert isinstance(action, WaitNotice)


@given(tries=st.integers(0, 10**6), jitter=jitters, waited_s=st.floats(0, 3599.9))
def test_the_store_is_asked_again_within_its_wait(tries, jitter, waited_s):
    """Each wait is above 0, at most the cap, and never goes past --store-wait."""
    action = decide(Outcome(74, store_tries=tries, store_waited_s=waited_s), jitter)
    assert isinstance(action, Relaunch)
    assert not action.counts
    assert 0 < action.after_s <= min(STORE_BACKOFF_CAP_S, 3600 - waited_s + 1e-9)


def test_waits_for_the_store_double_up_to_a_cap():
    """1, 2, 4, ... 60 s, of which half without jitter."""
    waits = [decide(Outcome(74, store_tries=n)).after_s for n in range(8)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize(("earlier", "code"), [(True, 75), (False, 74)])
def test_a_store_that_stays_away_ends(earlier, code):
    """With an earlier attempt another machine may do better (75); without, somebody has to look (74)."""
    action = decide(Outcome(74, store_waited_s=3600.0, earlier_attempt=earlier))
    assert isinstance(action, End)
    assert action.code == code


@given(outcome=outcomes, jitter=jitters)
def test_failures_are_relaunched_no_more_than_max_restarts(outcome, jitter):
    """A relaunch that counts happens only below the limit, and only for the script's own failures."""
    action = decide(outcome, jitter)
    if isinstance(action, Relaunch) and action.counts:
        assert outcome.restarts < outcome.max_restarts
        assert outcome.returncode not in {0, 130, 74, 75, 76, 78}


def test_the_same_exception_twice_without_a_checkpoint_ends_at_once():
    """It would fail for ever: end with its code."""
    twice = Outcome(1, restarts=1, exception="ValueError: a", previous_exception="ValueError: a")
    action = decide(twice)
    assert isinstance(action, End)
    assert action.code == 1
    assert isinstance(decide(replace(twice, new_checkpoint=True)), Relaunch)
    assert isinstance(decide(replace(twice, exception="ValueError: b")), Relaunch)
    assert isinstance(decide(replace(twice, exception=None, previous_exception=None)), Relaunch)


def test_a_signal_ends_as_a_shell_reports_it():
    """SIGSEGV is 139, as everywhere."""
    action = decide(Outcome(-11, restarts=3))
    assert isinstance(action, End)
    assert action.code == 139


@given(outcome=outcomes, jitter=jitters)
def test_no_failure_ends_as_a_success(outcome, jitter):
    """Exit 0 is said only when the trainer said it."""
    action = decide(outcome, jitter)
    if isinstance(action, End):
        assert 0 <= action.code <= 255
        assert (action.code == 0) == (outcome.returncode == 0)


@given(
    outcome=outcomes,
    returncode=st.sampled_from([1, 74, 75, -9]),
    past_s=st.lists(st.floats(-1e4, MACHINE_SURVIVED_S, exclude_max=True), min_size=1, max_size=3),
)
def test_waiting_ends(outcome, returncode, past_s):
    """After the wait that a notice asks for, it is no reason to wait any more; before, it is."""
    outcome = replace(outcome, returncode=returncode)
    action = decide(replace(outcome, notices=tuple(_machine(p) for p in past_s)))
    assert isinstance(action, WaitNotice)
    waited = [p + action.at_most_s for p in past_s]
    before = decide(replace(outcome, notices=tuple(_machine(p - 0.1) for p in waited)))
    after = decide(replace(outcome, notices=tuple(_machine(p + 0.1) for p in waited)))
    assert isinstance(before, WaitNotice)
    assert not isinstance(after, WaitNotice)


def _machine(past_s):
    return StandingNotice("machine", cancelled=False, past_deadline_s=past_s)

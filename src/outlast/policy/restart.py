"""What is done when the trainer has ended: end with its code, start it again, or wait for a notice to settle.

Pure: the supervisor describes what happened as an `Outcome` and carries out the `Action`. It asks again after a
`WaitNotice`, since a notice can be cancelled, run out, or be followed by a SIGTERM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from outlast._errors import (
    EXIT_CONFIG,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_STORE,
    EXIT_SUPERSEDED,
)

MAX_RESTARTS = 3
"""Failures of the script itself that are answered by a relaunch."""
STORE_WAIT_S = 3600.0
"""How long a store that is out of reach is waited for, in all."""
MACHINE_SURVIVED_S = 60.0
"""A machine that is still there so long after its notice's deadline was not taken away."""
STORE_BACKOFF_FIRST_S = 1.0
STORE_BACKOFF_CAP_S = 60.0
"""The waits double from the first to the cap: a short fault costs a second, a long one asks once a minute."""


@dataclass(frozen=True)
class StandingNotice:
    """A notice that the supervisor heard during this launch.

    Attributes:
        kind: "signal" (SIGTERM: whoever sent it ends this process too), "warning" or "machine" (the machine may go away),
            "hint" (nothing follows from it here), or "leave" (a hint that is not waited out).
        cancelled: it was taken back.
        past_deadline_s: seconds since its deadline, negative before it; None if it named none.
    """

    kind: Literal["signal", "warning", "machine", "hint", "leave"]
    cancelled: bool
    past_deadline_s: float | None


@dataclass(frozen=True)
class Outcome:
    """How the trainer ended, and what is known beside it.

    Attributes:
        returncode: its exit code, or minus the signal that killed it (as `subprocess` gives it).
        notices: those that are known since the trainer was started.
        restarts: relaunches so far that were answers to a failure of the script.
        max_restarts: the most of those.
        store_tries: relaunches so far that were answers to exit 74.
        store_waited_s: seconds since the first exit 74 of the present row of them, 0 for the first.
        store_wait_s: the most of those.
        earlier_attempt: an attempt of this run has trained before.
        exception: what ended the script ("ValueError: ..."); None if unknown.
        previous_exception: the same of the failure before this one.
        new_checkpoint: a checkpoint was committed between those two.
    """

    returncode: int
    notices: tuple[StandingNotice, ...] = ()
    restarts: int = 0
    max_restarts: int = MAX_RESTARTS
    store_tries: int = 0
    store_waited_s: float = 0.0
    store_wait_s: float = STORE_WAIT_S
    earlier_attempt: bool = False
    exception: str | None = None
    previous_exception: str | None = None
    new_checkpoint: bool = False


@dataclass(frozen=True)
class End:
    """End with `code`."""

    code: int
    why: str


@dataclass(frozen=True)
class Relaunch:
    """Start the trainer again here, after `after_s`; `counts`: as one of the restarts."""

    after_s: float
    why: str
    counts: bool = False


@dataclass(frozen=True)
class WaitNotice:
    """Wait until a notice changes, at most `at_most_s` (None: no limit is known), then decide again."""

    at_most_s: float | None
    why: str


Action: TypeAlias = End | Relaunch | WaitNotice


def decide(outcome: Outcome, jitter: float = 0.0) -> Action:
    """Decide what follows the trainer's end.

    The table of exit codes, read from the top. A SIGTERM ends everything that would be started again: the machine,
    or the job, is going, so a failure in its course (workers die first, the script fails on its loader) is no fault
    of the script. A hint that is to be left on ends it as well. A notice for the machine is waited out, since a relaunch on a machine that goes away is lost. Any other
    hint is not: nobody says that anything comes of it.

    Args:
        outcome: what happened.
        jitter: 0 <= jitter < 1, a random number that spreads the retries of many machines. The wait is
            between half of its nominal length (0) and all of it (1).
    """
    code = _exit_code(outcome.returncode)
    if code in _SAME:  # 130 also where SIGINT itself ended it, before outlast.Run could answer
        return End(code, _SAME[code])
    if any(notice.kind == "signal" and not notice.cancelled for notice in outcome.notices):
        return End(EXIT_PREEMPTED, "told to end by a signal: start the same command again, and it continues")
    if any(notice.kind == "leave" and not notice.cancelled for notice in outcome.notices):
        return End(
            EXIT_PREEMPTED, "this machine may go away: start the same command on another, and it continues"
        )
    outcome = replace(outcome, notices=tuple(n for n in outcome.notices if n.kind != "hint"))
    pending = [notice for notice in outcome.notices if not settled(notice)]
    if pending:
        return WaitNotice(_longest_wait(pending), "waiting whether this machine goes away")
    if outcome.returncode == EXIT_PREEMPTED:
        return _after_preemption(outcome)
    if outcome.returncode == EXIT_STORE:
        return _after_store_loss(outcome, jitter)
    return _after_failure(outcome, code)


def settled(notice: StandingNotice) -> bool:
    """Whether nothing is to be expected of a notice any more: cancelled, or the machine outlived it."""
    past_s = notice.past_deadline_s
    return notice.cancelled or (past_s is not None and past_s >= MACHINE_SURVIVED_S)


_SAME = {
    0: "done",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C",
    EXIT_SUPERSEDED: "a newer attempt has taken over",
    EXIT_CONFIG: "the configuration is wrong; starting again would not help",
}


def _after_preemption(outcome: Outcome) -> Action:
    if not outcome.notices:
        return End(EXIT_PREEMPTED, "preempted: start the same command again, and it continues")
    cancelled = all(notice.cancelled for notice in outcome.notices)
    return Relaunch(0.0, "the notice was cancelled" if cancelled else "the machine outlived its notice")


def _after_store_loss(outcome: Outcome, jitter: float) -> Action:
    left_s = outcome.store_wait_s - outcome.store_waited_s
    if left_s <= 0:
        why = f"the store was out of reach for {outcome.store_waited_s:.0f} s"
        return End(EXIT_PREEMPTED if outcome.earlier_attempt else EXIT_STORE, why)
    doubled_s: float = STORE_BACKOFF_FIRST_S * 2.0 ** min(outcome.store_tries, 16)
    wait_s = min(doubled_s, STORE_BACKOFF_CAP_S) * (0.5 + 0.5 * jitter)
    return Relaunch(min(wait_s, left_s), f"the store is out of reach; giving up in {left_s:.0f} s")


def _after_failure(outcome: Outcome, code: int) -> Action:
    how = f"exit code {code}" if outcome.returncode >= 0 else f"signal {-outcome.returncode}"
    again = outcome.exception is not None and outcome.exception == outcome.previous_exception
    if again and not outcome.new_checkpoint:
        why = f"the same exception twice, with no new checkpoint between: {outcome.exception}"
        return End(code, why)
    if outcome.restarts >= outcome.max_restarts:
        why = f"the script ended with {how}, after {outcome.restarts} of {outcome.max_restarts} restarts"
        return End(code, why)
    why = f"the script ended with {how}; restart {outcome.restarts + 1} of {outcome.max_restarts}"
    return Relaunch(0.0, why, counts=True)


def _exit_code(returncode: int) -> int:
    """The code with which a shell reports it: 128 + n for signal n."""
    return returncode if returncode >= 0 else 128 - returncode


def _longest_wait(pending: list[StandingNotice]) -> float | None:
    waits = [MACHINE_SURVIVED_S - n.past_deadline_s for n in pending if n.past_deadline_s is not None]
    return max(waits) if len(waits) == len(pending) else None

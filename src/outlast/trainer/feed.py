"""One tracker's feed: a thread that is allowed to hang."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from itertools import islice

from outlast._errors import StoreUnavailable
from outlast._say import say
from outlast._types import Logged
from outlast.agent.protocol import Ending, ToldLogged
from outlast.trainer.tracker import Row, TrackedRun, Tracker

MOST_ROWS = 20_000
"""Rows that wait for a tracker in memory, some megabytes; beyond that they are read back once it takes them."""
_ROWS_AT_ONCE = 500
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 300.0
"""Between two tries after a failure: twice as long each time, up to this."""


class Feed:
    """Feeds one tracker. All but `start` is called with the lock.

    Args:
        tracker: it.
        run: what is tracked.
        changed: the lock, told of all news.
        read: asks for what was logged at steps over one, up to another; the answer comes as `told`.
        resumed_step: the step that this attempt goes on from; None for a fresh start.

    Attributes:
        name: the tracker's, for people.
        told: the answer to `read`, until it is taken.
        held: whether nothing new is begun.
        is_done: whether it has taken all that counts and is closed, or has failed at that.
    """

    def __init__(
        self,
        tracker: Tracker,
        run: TrackedRun,
        changed: threading.Condition,
        read: Callable[[int, int], None],
        *,
        resumed_step: int | None,
    ) -> None:
        self.name = type(tracker).__name__
        self.told: ToldLogged | None = None
        self.held = self.is_done = self._is_cut = False
        self._tracker = tracker
        self._run = run
        self._changed = changed
        self._read = read
        self._rows: deque[Row] = deque()
        self._seam = -1 if resumed_step is None else resumed_step
        self._first: Row | None = None
        self._below: float = self._seam
        self._lacks_upto = self._seam
        self._last = -1
        self._ending: Ending | None = None
        self._said: set[str] = set()

    def start(self) -> None:
        """Begin, in a daemon thread: what hangs here must keep no process."""
        threading.Thread(target=self._serve, name=f"outlast-{self.name}", daemon=True).start()

    def hand_over(self, rows: list[Row], below: float) -> None:
        """These rows may be shown, and all of steps `below` this one."""
        self._below = max(self._below, below)
        self._rows += rows
        if len(self._rows) > MOST_ROWS:
            self._lacks_upto = self._rows[-1].step
            self._rows.clear()

    def end(self, outcome: Ending) -> None:
        """Take what is there, then close."""
        self._ending = self._ending or outcome
        self.held = False

    def cut(self) -> None:
        """Nothing is read back any more: the agent goes."""
        self._is_cut = True

    def _serve(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                self._follow()
            except BaseException as error:  # whatever a tracker does, training goes on
                self._say(f"{type(error).__name__}: {error}")
            else:
                break
            with self._changed:
                if self._ending is not None:
                    break
                self._changed.wait_for(lambda: self._ending is not None, pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        with self._changed:
            self.is_done = True
            self._changed.notify_all()

    def _follow(self) -> None:
        """From `open` to `close`."""
        last = self._tracker.open(self._run)
        with self._changed:
            # What was written before a failure, and is not there any more, is read back.
            self._lacks_upto = max(self._lacks_upto, self._last)
            self._last = -1 if last is None else last
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._ending is not None or (self._can_go_on and not self.held)
                )
                if self._ending == "superseded" or not self._can_go_on:
                    break
                catches_up = self._lacks_some
            if catches_up:
                self._catch_up()
            else:
                self._write_some()
        assert self._ending is not None
        self._tracker.close(self._ending)

    @property
    def _can_go_on(self) -> bool:
        """Whether there is work; with the agent gone none is where something is to be read back first."""
        if self._lacks_some:
            return not self._is_cut
        return bool(self._rows) or self._first_is_due

    @property
    def _lacks_some(self) -> bool:
        return self._last < self._lacks_upto

    @property
    def _first_is_due(self) -> bool:
        return self._first is not None and self._first.step < self._below

    def _catch_up(self) -> None:
        """Read back what is in no memory."""
        after, upto = self._last, self._lacks_upto
        more = True
        while more:
            told = self._ask(after, upto)
            if told is None:
                return
            if told.error is not None:
                msg = f"what was logged before cannot be read back: {told.error}"
                raise StoreUnavailable(msg)
            rows = [_row(step) for step in told.steps]
            if rows and rows[-1].step == upto == self._seam:  # this attempt logs at that step as well
                with self._changed:
                    self._first = rows.pop()
            if rows:
                self._tracker.write(rows)
            more = told.more
            after = told.steps[-1].step if told.steps else upto
            with self._changed:
                self._last = rows[-1].step if rows else self._last
        with self._changed:
            if self._lacks_upto == upto:
                self._lacks_upto = -1

    def _ask(self, after: int, upto: int) -> ToldLogged | None:
        with self._changed:
            self._changed.wait_for(lambda: not self.held)
            self.told = None
            self._read(after, upto)
            self._changed.wait_for(lambda: self.told is not None or self._is_cut)
            return self.told

    def _write_some(self) -> None:
        with self._changed:
            rows = list(islice(self._rows, _ROWS_AT_ONCE))
            first = self._first if self._first_is_due else None
        if first is not None and rows and rows[0].step == first.step:
            rows[0] = Row(first.step, rows[0].time_s, {**first.values, **rows[0].values})
        elif first is not None:
            rows.insert(0, first)
        reached = max(row.step for row in rows)
        rows = [row for row in rows if row.step > self._last]
        if rows:
            self._tracker.write(rows)
        with self._changed:
            self._last = max(self._last, reached)
            while self._rows and self._rows[0].step <= self._last:
                self._rows.popleft()
            if first is not None:
                self._first = None

    def _say(self, error: str) -> None:
        if error in self._said:
            return
        self._said.add(error)
        say(
            f"warning: the tracker {self.name} fails ({error}); training and saving go on. What it lacks it gets when it works again"
        )


def _row(logged: Logged) -> Row:
    return Row(logged.step, datetime.fromisoformat(logged.utc).timestamp(), logged.values)

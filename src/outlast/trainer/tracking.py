"""Hand what a run logs to its trackers: each step once, whole, and not before a resume would know of it.

A step's row is handed over once a checkpoint of a later step is durable: what a machine takes with it was never shown, so nothing
is shown twice, and no step can still change. What a tracker lacks at the start (it was behind, its disk is lost, it is new) is read
back from the run's own events, which are durable before each commit; so nothing has to be kept for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from outlast.agent.protocol import Ending, ReadLogged, Snapshot, ToldLogged
from outlast.trainer.feed import Feed
from outlast.trainer.tracker import Row, TrackedRun, Tracker

_LOOK_S = 0.05
"""Between looks at a deadline, which a notice may set at any time."""


class Tracking:
    """The trackers of a run. `log` and `add` belong to the main thread, the others are thread-safe.

    Args:
        ask: sends a message to the agent.
    """

    def __init__(self, ask: Callable[[ReadLogged], None]) -> None:
        self._ask = ask
        self._changed = threading.Condition()
        self._feeds: list[Feed] = []
        self._live: dict[int, Row] = {}
        self._asked: dict[int, ReadLogged] = {}
        self._has_logged = False

    @property
    def may_add(self) -> bool:
        """Whether nothing was logged yet, so that a tracker still misses nothing."""
        return not self._has_logged

    @property
    def is_used(self) -> bool:
        """Whether there is any tracker."""
        return bool(self._feeds)

    def add(self, tracker: Tracker, run: TrackedRun, resumed_step: int | None) -> None:
        """Begin to feed a tracker.

        Args:
            tracker: it.
            run: what is tracked.
            resumed_step: the step that this attempt goes on from; None for a fresh start.
        """
        number = len(self._feeds)
        feed = Feed(
            tracker,
            run,
            self._changed,
            lambda after, upto: self._send(ReadLogged(reader=number, after=after, upto=upto)),
            resumed_step=resumed_step,
        )
        self._feeds.append(feed)
        feed.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        """The script has logged."""
        self._has_logged = True
        if self._feeds:
            with self._changed:
                before = self._live.get(step)
                self._live[step] = Row(
                    step, time.time(), values if before is None else {**before.values, **values}
                )

    def heard(self, news: Snapshot | ToldLogged | None) -> None:
        """What the link hears: a snapshot is durable, rows were read back, or a new agent has taken over (None)."""
        if not self._feeds:
            return
        with self._changed:
            if isinstance(news, Snapshot):
                for feed in self._feeds:
                    feed.held = False
                self._hand_over(news.step)
            elif isinstance(news, ToldLogged):
                self._asked.pop(news.reader, None)
                self._feeds[news.reader].told = news
            else:
                for request in self._asked.values():
                    self._ask(request)
            self._changed.notify_all()

    def hold(self) -> None:
        """Until the next snapshot is durable nothing is begun: a machine goes away, and its seconds belong to that."""
        with self._changed:
            for feed in self._feeds:
                feed.held = True

    def cut(self) -> None:
        """The agent goes: nothing is read back any more. The next attempt does."""
        with self._changed:
            for feed in self._feeds:
                feed.cut()
            self._changed.notify_all()

    def finish(self, outcome: Ending, until_s: Callable[[], float], *, final: bool) -> list[str]:
        """Let the trackers take what counts, and close them.

        Args:
            outcome: how the script ends.
            until_s: monotonic time until which they are waited for.
            final: whether the step that the run ends at is complete; else a resume goes on with it.

        Returns:
            The names of those that have not done so in time. They go on as long as this process does.
        """
        with self._changed:
            if final:
                self._hand_over(math.inf)
            for feed in self._feeds:
                feed.end(outcome)
            self._changed.notify_all()
            while not all(feed.is_done for feed in self._feeds):
                left_s = until_s() - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(min(left_s, _LOOK_S))
            return [feed.name for feed in self._feeds if not feed.is_done]

    def _hand_over(self, below: float) -> None:
        ready = [self._live.pop(step) for step in sorted(step for step in self._live if step < below)]
        for feed in self._feeds:
            feed.hand_over(ready, below)

    def _send(self, request: ReadLogged) -> None:
        self._asked[request.reader] = request
        self._ask(request)

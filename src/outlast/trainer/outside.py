"""What stands outside, trackers and logs, at the end of a process: it has a bounded time, and costs no save anything."""

from __future__ import annotations

import time
from collections.abc import Callable

from outlast._say import say
from outlast.agent.protocol import Ending
from outlast.trainer.ending import exit_by, flush_logging
from outlast.trainer.tracking import Tracking

_TRACKERS_S = 10.0
"""How long trackers and logs are waited for once the state is durable, where nothing hurries."""
_TRACKERS_LEAVING_S = 5.0
"""The same where this machine goes away at a known time."""
_TRACKERS_FINISHED_S = 60.0
"""The same at the end of a run that is finished: nobody starts it again to catch up."""
_EXIT_S = 0.5
"""Left before a deadline, for the process to end."""


class Outside:
    """The trackers of a run and the logs of its process. Used in the main thread only.

    Args:
        tracking: hands what is logged to trackers.
        deadline_s: monotonic time at which this machine goes; None while none is known.
    """

    def __init__(self, tracking: Tracking, deadline_s: Callable[[], float | None]) -> None:
        self._tracking = tracking
        self._deadline_s = deadline_s
        self._trackers_over = False

    def finish(self, ending: Ending) -> bool:
        """Let trackers and logs take what counts; whether they have."""
        logs = flush_logging()
        in_time = self.finish_trackers(ending)
        now = time.monotonic()
        if logs is not None:
            logs.join(max(self._until_s(now, _EXIT_S) - now, _EXIT_S / 10))
        return in_time and (logs is None or not logs.is_alive())

    def finish_trackers(self, ending: Ending, *, final: bool = False) -> bool:
        """Let the trackers take what counts, once; whether they have. `final`: nobody will catch up, so they get longer."""
        if self._trackers_over or not self._tracking.is_used:
            return True
        self._trackers_over = True
        most_s = _TRACKERS_FINISHED_S if final else _TRACKERS_S
        began_s = time.monotonic()
        late = self._tracking.finish(ending, lambda: self._until_s(began_s, most_s), final=final)
        if late:
            took_s = time.monotonic() - began_s
            say(
                f"warning: {', '.join(late)}: not done {took_s:.1f} s after the save; this process does not wait any longer. "
                "What is lacking there is caught up at the next start"
            )
        return not late

    def exit_soon(self, code: int, last: Callable[[], None]) -> None:
        """Give the script a moment for its own cleaning up; whatever hangs then, its process ends. `last` is called before."""
        now = time.monotonic()
        exit_by(max(self._until_s(now, _TRACKERS_LEAVING_S), now + _EXIT_S), code, last)

    def _until_s(self, began_s: float, most_s: float) -> float:
        """Monotonic time until which it may take from the last seconds."""
        deadline = self._deadline_s()
        return (
            began_s + most_s if deadline is None else min(began_s + _TRACKERS_LEAVING_S, deadline - _EXIT_S)
        )

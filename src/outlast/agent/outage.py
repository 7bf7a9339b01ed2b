"""A store that fails: since when, what is at risk, and that it is back (DESIGN.md rule 11)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from outlast._errors import StoreError
from outlast._types import Json

SAY_EVERY_S = 60.0
"""While the store is away, how often to say how much is at risk."""


class Outage:
    """Whether the store fails. Thread-safe.

    Args:
        show: shows the trainer since when, in monotonic nanoseconds; 0: it does not fail.
        risk: says what is durable and what would be lost.
        say: a line for whoever watches.
        note: a record (kind, fields) for the ledger.

    Attributes:
        error: what it failed with last; None while it does not fail.
    """

    def __init__(
        self,
        *,
        show: Callable[[int], None],
        risk: Callable[[], str],
        say: Callable[[str], None],
        note: Callable[[str, dict[str, Json]], None],
    ) -> None:
        self._show = show
        self._risk = risk
        self._say = say
        self._note = note
        self._lock = threading.Lock()
        self._since_s = 0.0
        self._since_utc = ""
        self._said_s = 0.0
        self._what = ""
        self.error: str | None = None

    def failed(self, error: StoreError, step: int) -> None:
        """A save of this step has failed."""
        with self._lock:
            began = self.error is None
            self.error = str(error)
            self._what = f"step {step} is not durable: {error}"
            if began:
                self._since_s, self._said_s = time.monotonic(), 0.0
                self._since_utc = datetime.now(UTC).isoformat(timespec="seconds")
                self._show(time.monotonic_ns())
        if began:
            self._note("store-lost", {"error": str(error)})
        self.remind()

    def remind(self) -> None:
        """Say how things stand, if that was not said within the last minute."""
        with self._lock:
            now = time.monotonic()
            if self.error is None or (self._said_s and now - self._said_s < SAY_EVERY_S):
                return
            self._said_s = now
            line = f"{self._what}. The store fails since {self._since_utc} ({_duration(now - self._since_s)})"
        self._say(f"{line}; {self._risk()}. Trying again")

    def over(self, saved: str | None) -> None:
        """The store answers again, and `saved` (a checkpoint) is durable; None: there is nothing left to be tried."""
        with self._lock:
            if self.error is None:
                return
            lasted_s = time.monotonic() - self._since_s
            self.error = None
            self._show(0)
        if saved is not None:
            self._note("store-back", {"seconds": round(lasted_s, 3)})
            self._say(f"the store is back after {_duration(lasted_s)}: {saved} is durable")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"

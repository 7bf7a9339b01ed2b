"""The sign of life: an events part at least every 30 s, and a look whether somebody else has taken over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import msgspec

from outlast._errors import OutlastError
from outlast._process import process_id
from outlast.agent.claim import superseded_by, utc_now
from outlast.agent.ledger import Ledger
from outlast.checkpoint.manifest import AttemptRecord
from outlast.store.base import Store

BEAT_S = 25.0
"""Less than the 30 s that others count on."""


class Heartbeat:
    """Beats in a thread of its own from the claim on, so that neither a long restore nor a long save makes it look gone.

    Attributes:
        events: where its beats go, and all else that the attempt's agent writes down.
    """

    def __init__(self, store: Store, record: AttemptRecord, events: Ledger) -> None:
        self.events = events
        self._store = store
        self._record = record
        self._lock = threading.Lock()
        self._listener: Callable[[str], None] | None = None
        self._superseded: str | None = None
        self._stopped = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outlast-alive", daemon=True)
        self._thread.start()

    def tell(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called with what has taken over, at once if that has happened already."""
        with self._lock:
            self._listener = listener
            why = self._superseded
        if why is not None:
            listener(why)

    def stop(self) -> None:
        """End after the store call it is in."""
        self._stopped = True
        self._due.set()

    def beat_now(self) -> None:
        """Put what was added to the events now: a warning or a notice is of use to others while it holds."""
        self._due.set()

    def _run(self) -> None:
        agent = msgspec.to_builtins(process_id(os.getpid()))
        while True:
            self.events.add(
                {
                    "kind": "alive",
                    "utc": utc_now(),
                    "attempt": self._record.attempt,
                    "step": 0,
                    "agent": agent,
                }
            )
            try:
                self.events.flush()
                why = superseded_by(self._store, self._record)
            except OutlastError:
                why = None  # the store is away: the saves say so, with what is at risk
            if why is not None:
                with self._lock:
                    self._superseded = why
                    listener = self._listener
                if listener is not None:
                    listener(why)
                return
            self._due.wait(BEAT_S)
            self._due.clear()
            if self._stopped:
                return

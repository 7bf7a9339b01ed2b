"""The events of one attempt at its agent: its own records and the trainer's, and how many of those are durable."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from outlast._types import Json
from outlast.checkpoint.events import EventLog


class Ledger:
    """Collects records and puts them; tells the trainer which of its own it need not keep any more. Thread-safe.

    Args:
        log: where they go.
        kept: called with the number of the trainer's records, from the first on, that are durable.
    """

    def __init__(self, log: EventLog, kept: Callable[[int], None]) -> None:
        self._log = log
        self._kept = kept
        self._keeps_words = os.environ.get("OUTLAST_LOGS") != "0"
        self._lock = threading.Lock()
        self._taken = 0
        self._told = 0

    def add(self, record: dict[str, Json]) -> None:
        """Keep a record of the agent's own for the next part."""
        self._log.add(record)

    def take(self, record: dict[str, Json]) -> None:
        """Keep a record of the trainer's for the next part."""
        if record.get("kind") == "exception" and not self._keeps_words:
            # As with what it printed: of its last words only the kind of the exception.
            record = {**record, "text": str(record.get("text", "")).partition(":")[0], "trace": ""}
        self._log.add(record)
        self._taken += 1  # after it is in the log: a flush that counts it puts it

    def flush(self) -> str | None:
        """Put what was added, as `EventLog.flush`; then tell the trainer."""
        taken = self._taken
        last = self._log.flush()
        with self._lock:
            news = taken > self._told
            self._told = max(taken, self._told)
        if news:
            self._kept(taken)
        return last

"""What saves cost so far: the figures that decisions about a deadline are made from."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from outlast.agent.protocol import Snapshot
from outlast.agent.tasks import copied

SAVES_KEPT = 3
"""The slowest of so many last saves is what the next one is reckoned by: the store and the machine vary."""


@dataclass(frozen=True)
class Measured:
    """What is known of saves at a moment.

    Attributes:
        save_s: what a save takes; None where none was measured.
        last_s: what the last one took that is durable here; 0 where none is.
        median_s: the lower median of the last ones; 0 where there are not two.
        changed_bytes: what it writes.
        bytes_per_s: at that rate; 0 where none was measured.
        in_flight_bytes: what the save that is being written may still write; None where none is.
        in_flight_s: how long that may still take.
    """

    save_s: float | None
    changed_bytes: int
    bytes_per_s: float
    in_flight_bytes: int | None
    in_flight_s: float
    last_s: float = 0.0
    median_s: float = 0.0


class Meter:
    """Measures saves as they are written. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: deque[tuple[float, int]] = deque(maxlen=SAVES_KEPT)
        self._before: list[tuple[float, int]] = []
        self._begun_s: float | None = None
        self._left_bytes = self._written_bytes = 0
        self._snapshot_bytes = 0

    def precede(self, saves: Sequence[tuple[float, int]]) -> None:
        """Reckon by these, seconds and bytes written, until a save was measured here."""
        with self._lock:
            self._before = list(saves[-SAVES_KEPT:])

    def begin(self, snapshot: Snapshot) -> None:
        """A snapshot's save begins."""
        with self._lock:
            self._begun_s = time.monotonic()
            self._left_bytes = self._snapshot_bytes = copied(snapshot)
            self._written_bytes = 0

    def wrote(self, nbytes: int) -> None:
        """So much of it is durable."""
        with self._lock:
            self._left_bytes = max(self._left_bytes - nbytes, 0)
            self._written_bytes += nbytes

    def end(self, *, durable: bool) -> None:
        """It has ended: it is durable, or failed, or was given up."""
        with self._lock:
            if durable and self._begun_s is not None:
                self._last.append((time.monotonic() - self._begun_s, self._written_bytes))
            self._begun_s = None

    def so_far(self) -> tuple[int, float]:
        """Bytes that are durable of the save that is being written, and the seconds since it began."""
        with self._lock:
            began_s = self._begun_s
            return self._written_bytes, 0.0 if began_s is None else time.monotonic() - began_s

    def usual(self) -> tuple[float | None, float]:
        """Seconds that a save takes, and bytes per second, of those that have ended; None and 0 where none has."""
        with self._lock:
            seconds, nbytes = max(self._last or self._before, default=(None, 0))
        return seconds, 0.0 if seconds is None else nbytes / max(seconds, 1e-9)

    def measured(self) -> Measured:
        """What is known now."""
        now = time.monotonic()
        with self._lock:
            last: tuple[float | None, int] = max(
                self._last or self._before, default=(None, self._snapshot_bytes)
            )
            seconds, nbytes = last
            flight_s = None if self._begun_s is None else now - self._begun_s
            rate = nbytes / max(seconds, 1e-9) if seconds is not None else 0.0
            took_s = [save_s for save_s, _ in self._last]
            last_s = took_s[-1] if took_s else 0.0
            median_s = median_low(took_s) if len(took_s) > 1 else 0.0
            if flight_s is None:
                return Measured(seconds, nbytes, rate, None, 0.0, last_s, median_s)
            # One that already takes longer than those before is what the next may take, too.
            slow_s = None if seconds is None else max(seconds, flight_s)
            left_bytes = self._left_bytes if seconds is None else min(self._left_bytes, nbytes)
            left_s = 0.0 if slow_s is None else slow_s - flight_s
            return Measured(slow_s, nbytes, rate, left_bytes, left_s, last_s, median_s)

"""Tells the trainer how often to save: decided here, by what only the agent knows, and anew after each save.

The agent measures how long a save takes until it is durable, and reads the ledger and what is kept of the pool; of the trainer it needs one
number, the pause, which stands on the control page. The trainer reads the interval there at no cost, and keeps to the last one it read.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Protocol

from outlast._config import UNKNOWN_POOL
from outlast._errors import ConfigError, OutlastError
from outlast._types import Json, MaxLost
from outlast.agent.control import ControlPage, Word
from outlast.agent.history import History, learn
from outlast.agent.meter import Measured
from outlast.agent.protocol import Hello
from outlast.checkpoint.manifest import AttemptRecord
from outlast.checkpoint.pools import put_spell
from outlast.notice.preemptible import preemptible
from outlast.policy.hazard import PRIOR_S, Constant, Spell, estimate
from outlast.policy.interval import Costs, Interval, interval
from outlast.store import open_store
from outlast.store.base import Store

PAUSES_KEPT = 5
"""The pause is the median of so many: the first save of an attempt touches memory for the first time."""
MOVED = 0.05
"""An interval that would change by less stays as it is, so that what is said of it holds."""
ALARM_LEAST_S = 60.0
"""Nobody needs to be warned after three intervals of a few seconds each."""
SHORT_RUN_S = 3600.0
"""A share of the run is one of at least an hour: a run that has just begun would else save all the time."""


class Note(Protocol):
    """Adds a record to the ledger."""

    def __call__(self, kind: str, /, **fields: Json) -> None:
        """Add it."""


def begin(tuning: Tuning, store: Store, record: AttemptRecord, hello: Hello) -> None:
    """Read what earlier attempts teach, in a thread of its own: nobody waits for it, and without it the first save is learnt from."""
    root = tuning.root = open_store(hello.root) if hello.root is not None else None

    def read() -> None:
        try:
            if root is not None:
                _ = root.honours_create  # asked now, so that the end of the attempt costs one request
            found = learn(store, record, hello.rank, root)
        except OutlastError as error:
            tuning.say(f"what earlier attempts teach about interruptions is not known: {error}")
            return
        tuning.know(found, preemptible=_is_preemptible())

    if hello.max_lost is None and hello.rejoin is None:
        tuning.note("interval", seconds=hello.interval_s, steps=hello.interval_steps, bound="fixed")
    threading.Thread(target=read, name="outlast-history", daemon=True).start()


def keep(tuning: Tuning, record: AttemptRecord, spell: Spell) -> None:
    """Keep how this attempt ended for others in its pool. What cannot be put is not: nothing is lost by it but what it taught."""
    if tuning.root is not None:
        with contextlib.suppress(OutlastError):
            put_spell(tuning.root, record, spell)


class Tuning:
    """Of one attempt. Thread-safe.

    Args:
        page: the interval and the pause stand on it.
        measured: what saves take.
        max_lost: the limit; None where the script gave the interval, and nothing is decided.
        record: the attempt's, which names the pool.
        say: a line for whoever watches.
        note: adds to the ledger.

    Attributes:
        now: what was decided last.
        root: where what is kept of pools lies, once `begin` was called; None where there is no root.
    """

    def __init__(
        self,
        page: ControlPage,
        measured: Callable[[], Measured],
        max_lost: MaxLost | None,
        record: AttemptRecord,
        *,
        say: Callable[[str], None],
        note: Note,
    ) -> None:
        self._page = page
        self._measured = measured
        self._max_lost = max_lost
        self._pool = record.capacity.pool if record.capacity else UNKNOWN_POOL
        self.say = say
        self.note = note
        self._lock = threading.Lock()
        self._history = History()
        self._prior_s = PRIOR_S[None]
        self._pauses_s: deque[float] = deque(maxlen=PAUSES_KEPT)
        self._began: tuple[int, int] | None = None
        self._made_ns, self._life_s = time.monotonic_ns(), 0.0
        self._is_over = self._told = False
        self.now: Interval | None = None
        self.root: Store | None = None

    def know(self, history: History, *, preemptible: bool | None) -> None:
        """Take in what earlier attempts teach, and whether this machine can be taken away at any time."""
        with self._lock:
            self._history, self._prior_s = history, PRIOR_S[preemptible]
            self._tune()

    def committed(self) -> None:
        """A save has become durable."""
        with self._lock:
            if self._is_over:
                return
            if pause_ns := self._page[Word.PAUSE_NS]:
                self._pauses_s.append(pause_ns / 1e9)
            self._tune()

    def stop(self) -> float:
        """The page is about to go; for how long this attempt has lived."""
        with self._lock:
            if not self._is_over:
                self._is_over, self._life_s = True, self._lived_s()
            return self._life_s

    @property
    def interval_s(self) -> float | None:
        """Until the next save is durable, at least `ALARM_LEAST_S`; None where nothing was decided."""
        with self._lock:
            return None if self.now is None else max(self.now.worst_s, ALARM_LEAST_S)

    def _tune(self) -> None:
        if self._max_lost is None or self._is_over:
            return
        lived_s = self._lived_s()
        limit_s = _limit_s(self._max_lost, self._history.trained_s + lived_s)
        costs = self._costs(limit_s)
        if costs is None:
            return
        known = estimate([*self._history.spells, Spell(lived_s, "none")], self._prior_s)
        costs = replace(costs, recall=known.recall)
        found, now = interval(costs, Constant(known.per_s), limit_s), self.now
        upload_s = max(costs.upload_s, self._measured().last_s)
        found = replace(found, worst_s=found.worst_s + upload_s - costs.upload_s)
        is_kept = (
            now is not None and found.bound == now.bound and abs(found.seconds / now.seconds - 1) <= MOVED
        )
        if now is None or not is_kept or (found.bound == "max-lost-work" and now.seconds > found.seconds):
            now = found
        else:
            now = replace(found, seconds=now.seconds, worst_s=found.worst_s + now.seconds - found.seconds)
        self.now = now
        self._page[Word.INTERVAL_NS] = int(now.seconds * 1e9)
        self.note(
            "interval",
            seconds=round(now.seconds, 3),
            bound=now.bound,
            optimum_s=round(now.optimum_s, 3),
            worst_s=round(now.worst_s, 3),
            overhead=round(now.overhead, 5),
            pause_s=round(costs.pause_s, 6),
            upload_s=round(upload_s, 3),
            step_s=round(costs.step_s, 6),
            max_lost_s=round(limit_s, 3),
            trained_before_s=round(self._history.trained_s, 3),
            mean_s=round(1 / known.per_s, 1),
            recall=round(known.recall, 3),
            interruptions=known.counted,
            seen_s=round(known.seconds, 1),
            pool=self._pool,
        )
        self._tell(now, upload_s, limit_s)

    def _lived_s(self) -> float:
        """Since this attempt began, under the agents before this one as well."""
        return (time.monotonic_ns() - (self._page[Word.BEGUN_NS] or self._made_ns)) / 1e9

    def _costs(self, limit_s: float) -> Costs | None:
        """As measured here; before a save was, as in the attempt before.

        One upload that took very long (the store was away, say) must not keep the next save away for as long: more than the limit
        counts once most have taken that long, and what another machine's took never keeps the first save here beyond half of it.
        """
        before, measured = self._history.costs, self._measured()
        if not self._pauses_s:
            return before and replace(before, upload_s=min(before.upload_s, limit_s / 2))
        if measured.save_s is None:
            return None
        upload_s = min(measured.last_s or measured.save_s, max(measured.median_s, limit_s))
        return Costs(median(self._pauses_s), upload_s, self._step_s())

    def _step_s(self) -> float:
        """From one safe point to the next, on average since the first look."""
        steps, safe_ns = self._page[Word.STEPS], self._page[Word.SAFE_POINT_NS]
        if self._began is None:
            self._began = steps, safe_ns
        first_steps, first_ns = self._began
        return (safe_ns - first_ns) / 1e9 / (steps - first_steps) if steps > first_steps else 0.0

    def _tell(self, now: Interval, upload_s: float, limit_s: float) -> None:
        """Say once where the limit cannot be kept."""
        is_kept = now.worst_s <= limit_s * (1 + MOVED)
        if is_kept or self._told:
            self._told = self._told and not is_kept
            return
        self._told = True
        self.say(
            f"a save is durable {upload_s:.0f} s after it was taken, which is too long for a max_lost_work of {limit_s:.0f} s: saves "
            f"run back to back, and an interruption without a notice can cost up to {max(now.worst_s, 2 * upload_s):.0f} s of work"
        )


def _is_preemptible() -> bool | None:
    """False only where somebody says so: a cloud that does not answer may be asked about a machine that it takes."""
    if os.environ.get("OUTLAST_PREEMPTIBLE") == "0":
        return False
    with contextlib.suppress(ConfigError):
        return True if preemptible(os.environ) else None
    return None


def _limit_s(max_lost: MaxLost, trained_s: float) -> float:
    if max_lost.seconds is not None:
        return max_lost.seconds
    return (max_lost.share or 0.0) * max(trained_s, SHORT_RUN_S)

"""Make snapshots durable: one thread that writes the newest complete one, and never loses a complete one."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from outlast._errors import OutlastError, StoreError
from outlast._types import Reason
from outlast.agent.claim import superseded_by, utc_now
from outlast.agent.ledger import Ledger
from outlast.agent.protocol import Saved, Snapshot
from outlast.checkpoint.manifest import AttemptRecord, CheckpointId
from outlast.checkpoint.writer import SaveHeader, commit, write_rank
from outlast.snapshot.arena import Arena
from outlast.store.base import Store

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 30.0
SAY_EVERY_S = 60.0
"""While the store is away, how often to say how much is at risk (DESIGN.md rule 11)."""


@dataclass(frozen=True)
class Task:
    """A complete snapshot and the memory it lies in."""

    snapshot: Snapshot
    arena: Arena


@dataclass(frozen=True)
class Durable:
    """The newest checkpoint that this attempt made durable."""

    name: str
    step: int
    at_s: float


class Persister:
    """Takes complete snapshots and makes them durable, newest first.

    A snapshot that is handed over with `hold` is kept until `release`, or until a newer one takes its place. An
    interval snapshot that has not been begun is passed over when a newer one waits: what the newer one holds
    includes it. Every snapshot is answered exactly once, when its arena may be used again.
    """

    def __init__(
        self,
        store: Store,
        record: AttemptRecord,
        rank: int,
        events: Ledger,
        *,
        answer: Callable[[Saved], None],
        superseded: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._record = record
        self._rank = rank
        self._events = events
        self._answer = answer
        self._superseded = superseded
        self._say = say
        self._changed = threading.Condition()
        self._queue: list[Task] = []
        self._held: Task | None = None
        self._writing: Task | None = None
        self._stopped = False
        self.durable: Durable | None = None
        self.failing_since_s: float | None = None
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name="outlast-persist", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Hand over a complete snapshot."""
        dropped: list[Task] = []
        with self._changed:
            if self._held is not None:
                dropped.append(self._held)
                self._held = None
            if task.snapshot.hold:
                self._held = task
            else:
                dropped += [old for old in self._queue if old.snapshot.reason is Reason.INTERVAL]
                self._queue = [old for old in self._queue if old.snapshot.reason is not Reason.INTERVAL]
                self._queue.append(task)
            self._changed.notify_all()
        for old in dropped:
            self._answer(Saved(number=old.snapshot.number, checkpoint=None, error=None))

    def release(self, reason: Reason) -> None:
        """Make the held snapshot durable now, if there is one."""
        with self._changed:
            if self._held is None:
                return
            snapshot = msgspec.structs.replace(self._held.snapshot, reason=reason, hold=False)
            self._queue.append(Task(snapshot, self._held.arena))
            self._held = None
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits to be written; False when the time is up."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and self._writing is None, timeout_s)

    def stop(self) -> None:
        """Give up what is not written yet and end the thread after the store call it is in."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or bool(self._queue))
                if self._stopped:
                    return
                task = self._writing = self._queue.pop(0)
            name, error = self._save_with_patience(task)
            with self._changed:
                self._writing = None
                self._changed.notify_all()
            self._answer(Saved(number=task.snapshot.number, checkpoint=name, error=error))

    def _save_with_patience(self, task: Task) -> tuple[str | None, str | None]:
        """Save; while the store is away try again, unless a newer snapshot has come."""
        wait_s = RETRY_FIRST_S
        said_s = 0.0
        header: SaveHeader | None = None
        saved_utc = utc_now()
        while True:
            try:
                self._stop_if_superseded()
                # Made once: a second try writes the same bytes under the same keys, which are immutable.
                header = header or self._header(task.snapshot)
                name = self._save(task, header, saved_utc)
            except StoreError as error:
                now = time.monotonic()
                self.failing_since_s = self.failing_since_s or now
                self.last_error = str(error)
                if now - said_s >= SAY_EVERY_S or said_s == 0.0:
                    said_s = now
                    self._say(
                        f"step {task.snapshot.step} is not durable: {error}. Training goes on; trying again."
                    )
            except OutlastError as error:  # nothing that another try would mend
                self.last_error = str(error)
                self._say(f"step {task.snapshot.step} was not saved: {error}")
                return None, str(error)
            except (
                Exception
            ) as error:  # a fault of ours: this thread must live on, and the trainer must hear of it
                traceback.print_exc()
                self.last_error = f"{type(error).__name__}: {error}"
                return None, self.last_error
            else:
                self.failing_since_s = self.last_error = None
                return name, None
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._is_passed_over(task), wait_s)
                if self._stopped or self._is_passed_over(task):
                    return None, self.last_error
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    def _is_passed_over(self, task: Task) -> bool:
        return bool(self._queue) and task.snapshot.reason is Reason.INTERVAL

    def _header(self, snapshot: Snapshot) -> SaveHeader:
        return SaveHeader(
            run_id=self._record.run_id,
            id=CheckpointId(self._record.attempt, snapshot.step, snapshot.repeat, self._record.nonce),
            rank=self._rank,
            world_size=self._record.world_size,
            reason=snapshot.reason,
            pinned=snapshot.pinned,
            finished=snapshot.finished,
            tree=snapshot.tree,
            position=snapshot.position,
            settings=snapshot.settings,
            events=self._events.flush(),
            best=None,
        )

    def _save(self, task: Task, header: SaveHeader, saved_utc: str) -> str:
        """One try. The events came first, then segments and manifest, the commit last (rules 1 and 12)."""
        snapshot, checkpoint = task.snapshot, header.id
        started = time.monotonic()
        write_rank(self._store, header, snapshot.tensors, task.arena.view, saved_utc=saved_utc)
        self._stop_if_superseded()
        if not commit(self._store, checkpoint, self._record.run_id, self._record.world_size):
            msg = f"{checkpoint.name}: a manifest that was just written is not there"
            raise StoreError(msg)
        now = time.monotonic()
        self.durable = Durable(checkpoint.name, snapshot.step, now)
        self._events.add(
            {
                "kind": "save",
                "utc": utc_now(),
                "attempt": self._record.attempt,
                "step": snapshot.step,
                "checkpoint": checkpoint.name,
                "reason": snapshot.reason.value,
                "bytes": sum(placed.nbytes for placed in snapshot.tensors),
                "seconds": round(now - started, 3),
            }
        )
        return checkpoint.name

    def _stop_if_superseded(self) -> None:
        why = superseded_by(self._store, self._record)
        if why is not None:
            self._superseded(why)
            raise OutlastError(why)

"""Make snapshots durable: one thread that writes the newest complete one, and never loses a complete one."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Collection, Sequence

import msgspec

from outlast._errors import ObjectDamaged, OutlastError, StoreError, StoreFull
from outlast._types import Best, Json, Reason
from outlast.agent.bases import FULL_EVERY, Bases, FullEvery
from outlast.agent.claim import utc_now
from outlast.agent.control import ControlPage, Word
from outlast.agent.ledger import Ledger
from outlast.agent.meter import Measured, Meter
from outlast.agent.once import Once, Plan, checkpoint_id
from outlast.agent.outage import Outage
from outlast.agent.priority import lower_this_thread
from outlast.agent.protocol import Saved, Snapshot
from outlast.agent.tasks import (
    Durable,
    Hooks,
    InUse,
    Newest,
    Task,
    can_wait,
    copied,
    is_asked_for,
    is_stronger,
    makes_place,
    outweighs,
    urgency,
)
from outlast.checkpoint.manifest import (
    AttemptRecord,
    CheckpointId,
    Chunk,
    parse_checkpoint_name,
)
from outlast.checkpoint.writer import NotTheLiveState, Retake, Written
from outlast.checkpoint.writing import Abandoned, Pace
from outlast.policy.giving_way import gives_way, rate
from outlast.snapshot.arena import Arena
from outlast.store.base import Store

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 30.0
RETRY_URGENT_MOST_S = 2.0
"""For all but interval saves: somebody waits for them, and perhaps not for long."""
STOP_S = 60.0
"""Longest wait for a store call that is under way: a store's own patience (`store/_client.py`)."""


class Persister:
    """Takes complete snapshots and makes them durable, newest first.

    A snapshot that is handed over with `hold` is kept until `release`, or until a newer one takes its place. An
    interval snapshot is passed over when a newer one waits, as long as none of it is written, or it waits to be tried again.
    One that is being written may be given up for one that is worth more (`policy/giving_way.py`); one that somebody asked for
    is then put back, as it is where it waits to be tried again and a stronger one comes: it is made after that, and what is
    written of it stays. Every snapshot is answered exactly once, when its arena may be used again.

    Attributes:
        durable: the newest checkpoint of this attempt.
        newest: the same, with its arena.
        last_error: what the last save failed with; None after one that did not.
    """

    def __init__(
        self,
        store: Store,
        record: AttemptRecord,
        hooks: Hooks,
        *,
        rank: int,
        events: Ledger,
        page: ControlPage,
        best: Best | None = None,
        full: FullEvery = FULL_EVERY,
        damaged: Collection[Chunk] | None = (),
    ) -> None:
        self._record = record
        self._events = events
        self._page = page
        self._hooks = hooks
        self._bases = Bases(store, record, full, damaged)
        self._once = Once(
            store,
            record,
            self._bases,
            rank=rank,
            events=events,
            best=best,
            superseded=hooks.superseded,
            took_over=damaged is None,
        )
        self._outage = Outage(
            show=lambda since_ns: self._show(Word.STORE_LOST_NS, since_ns),
            risk=self._risk,
            say=hooks.say,
            note=self._note,
        )
        self._changed = threading.Condition()
        self._queue: list[Task] = []
        self._held: Task | None = None
        self._writing: Task | None = None
        self._plans: dict[int, Plan] = {}
        self._stopped = False
        self._hurried = False
        self._rushed = False
        self._again = False
        self._meter = Meter()
        self._started_s = time.monotonic()
        self.durable: Durable | None = None
        self.newest: Newest | None = None
        self.last_error: str | None = None
        page[Word.WHOLE] = 1
        self._thread = threading.Thread(target=self._run, name="outlast-persist", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Hand over a complete snapshot."""
        with self._changed:
            dropped = [self._held] if self._held is not None else []
            self._held = None
            if task.snapshot.hold:
                self._held = task
            else:
                dropped += self._enqueue(task)
            self._changed.notify_all()
        for old in dropped:
            self._hooks.answer(Saved(number=old.snapshot.number, checkpoint=None, error=None))

    def release(self, reason: Reason) -> None:
        """Make the newest complete snapshot durable now, held or waiting, if it is not being written yet."""
        with self._changed:
            task = self._held or max(
                filter(can_wait, self._queue), key=lambda t: t.snapshot.number, default=None
            )
            if task is None:
                return
            if task is self._held:
                self._held = None
            else:
                self._queue.remove(task)
            snapshot = msgspec.structs.replace(task.snapshot, reason=reason, hold=False)
            dropped = self._enqueue(Task(snapshot, task.arena))
            self._changed.notify_all()
        for old in dropped:
            self._hooks.answer(Saved(number=old.snapshot.number, checkpoint=None, error=None))

    def give_back(self, number: int) -> None:
        """Drop snapshot `number` for a newer state, unless it was begun or somebody asked for it."""
        with self._changed:
            waiting = [*self._queue, *([self._held] if self._held else [])]
            dropped = [t for t in waiting if t.snapshot.number == number and can_wait(t)]
            self._queue = [t for t in self._queue if t not in dropped]
            if self._held in dropped:
                self._held = None
            self._changed.notify_all()
        for old in dropped:
            self._hooks.answer(Saved(number=old.snapshot.number, checkpoint=None, error=None))

    def forget(self, arena: Arena) -> None:
        """The arena is about to be closed."""
        if self.newest is not None and self.newest.arena is arena:
            self.newest = None

    def in_use(self) -> InUse:
        """What must not be deleted now. Thread-safe."""
        with self._changed:
            tasks = [t for t in (*self._queue, self._held, self._writing) if t is not None]
            named = frozenset(t.snapshot.base for t in tasks if t.snapshot.base is not None)
            planned = frozenset(base.name for plan in self._plans.values() for base in plan.bases)
            saves = frozenset(checkpoint_id(self._record, task.snapshot) for task in tasks)
        return InUse(self._bases.names | named | planned, saves)

    @property
    def has_complete(self) -> bool:
        """Whether a complete snapshot is held or waits. Thread-safe."""
        with self._changed:
            return self._held is not None or bool(self._queue)

    def measured(self) -> Measured:
        """What saves cost so far. Thread-safe."""
        return self._meter.measured()

    def precede(self, saves: Sequence[tuple[float, int]]) -> None:
        """Reckon by the saves of earlier attempts, seconds and bytes written, until one was measured. Thread-safe."""
        self._meter.precede(saves)

    def hurry(self, hurried: bool) -> None:
        """While this machine is about to go: write everything with normal priority, wait for nothing, nothing in full."""
        with self._changed:
            self._rushed = hurried
            self._bases.postponed = hurried
            if not self._stopped:
                self._page[Word.WHOLE] = int(self._bases.full_is_due)
            self._changed.notify_all()

    def remind(self) -> None:
        """While the store fails, say once a minute what is at risk. Thread-safe."""
        self._outage.remind()

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits to be written, now with normal priority; False when the time is up."""
        with self._changed:
            self._hurried = True
            return self._changed.wait_for(lambda: not self._queue and self._writing is None, timeout_s)

    def stop(self) -> bool:
        """Give up what is not written yet, and end; False where a store call takes too long to be waited for."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(STOP_S)
        return not self._thread.is_alive()

    def _enqueue(self, task: Task) -> list[Task]:
        """Queue it, with the lock; returns those that it takes the place of."""
        dropped = [old for old in self._queue if makes_place(old, task)]
        self._queue = [old for old in self._queue if not makes_place(old, task)] + [task]
        return dropped

    def _run(self) -> None:
        self._bases.find_first()
        self._show(Word.WHOLE, int(self._bases.full_is_due))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or bool(self._queue))
                is_patient = not (self._hurried or self._rushed) and all(map(can_wait, self._queue))
            if is_patient:
                self._hooks.settle()
            with self._changed:
                if self._stopped:
                    return
                if not self._queue:  # it was given back
                    continue
                task = max(self._queue, key=urgency)
                self._queue.remove(task)
                self._writing = task
            saved = self._save_with_patience(task)
            self._show(Word.WHOLE, int(self._bases.full_is_due))
            with self._changed:
                self._writing = None
                if saved is None:
                    self._queue.append(task)
                else:
                    self._plans.pop(task.snapshot.number, None)
                self._changed.notify_all()
            if saved is not None:
                self._hooks.answer(saved)

    def _save_with_patience(self, task: Task) -> Saved | None:
        """Save; while the store is away try again, unless another has to go first. None: it is to be put back behind that."""
        number, step = task.snapshot.number, task.snapshot.step
        wait_s = RETRY_FIRST_S
        made_room = False
        while True:
            try:
                self._once.stop_if_superseded()
                plan = self._plan(task.snapshot)
                name = self._save(task, plan)
            except (
                ObjectDamaged
            ) as error:  # under this snapshot's own id: no wait would mend it, another id does
                return self._not_saved(number, f"step {step} was not saved: {error}", retake=True)
            except StoreError as error:
                self.last_error = str(error)
                if isinstance(error, StoreFull) and not made_room:
                    made_room = self._hooks.make_room()
                    if made_room:
                        continue
                self._outage.failed(error, step)
            except Abandoned:
                if self._again and not self._stopped:
                    continue  # under the same plan: what is written already stays
                if is_asked_for(task) and not self._stopped:
                    return None
                return Saved(number=number, checkpoint=None, error=None)
            except NotTheLiveState as error:
                message = f"step {step} was not saved and is taken again: {error}"
                self._note("warning", {"cause": "snapshot-differs", "message": message})
                return self._not_saved(number, f"warning: {message}", retake=True)
            except Retake as error:
                self.last_error = None
                self._outage.over(None)  # it has answered, and nothing is left to be tried
                return Saved(number=number, checkpoint=None, error=str(error), retake=True)
            except OutlastError as error:  # nothing that another try would mend
                return self._not_saved(number, f"step {step} was not saved: {error}")
            except (
                Exception
            ) as error:  # a fault of ours: this thread must live on, and the trainer must hear of it
                traceback.print_exc()
                return self._not_saved(number, f"step {step} was not saved: {type(error).__name__}: {error}")
            else:
                self.last_error = None
                self._outage.over(name)
                return Saved(number=number, checkpoint=name, error=None)
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._is_behind(task), wait_s)
                is_behind = self._is_behind(task)
                if self._stopped or (is_behind and can_wait(task)):
                    return Saved(number=number, checkpoint=None, error=self.last_error)
                if is_behind:
                    return None
            made_room = False
            wait_s = min(wait_s * 2, RETRY_MOST_S if can_wait(task) else RETRY_URGENT_MOST_S)

    def _not_saved(self, number: int, message: str, *, retake: bool = False) -> Saved:
        self.last_error = message
        self._hooks.say(message)
        self._outage.over(None)
        return Saved(number=number, checkpoint=None, error=message, retake=retake)

    def _is_behind(self, task: Task) -> bool:
        """Whether what is queued goes before one that waits to be tried again, with the lock."""
        return any(can_wait(task) or is_stronger(other, task) for other in self._queue)

    def _plan(self, snapshot: Snapshot) -> Plan:
        """How it is saved: decided once, however often it is tried and put back."""
        plan = self._plans.get(snapshot.number)
        if plan is None:
            plan = self._once.plan(snapshot)
            with self._changed:
                self._plans[snapshot.number] = plan
        return plan

    def _save(self, task: Task, plan: Plan) -> str:
        """One try; the checkpoint's name."""
        snapshot, checkpoint = task.snapshot, plan.header.id
        started = time.monotonic()
        if not self._again:
            self._meter.begin(snapshot)
        self._again = False
        try:
            written = self._once.save(task, plan, self._pace(task))
        except Exception as error:
            self._again = self._again and isinstance(error, Abandoned)
            if not self._again:
                self._meter.end(durable=False)
            raise
        self._again = False
        self._meter.end(durable=True)
        now = time.monotonic()
        if self.newest is None or snapshot.number > self.newest.number:
            self.newest = Newest(
                checkpoint.name, snapshot.number, written.manifest.tensors, snapshot.tensors, task.arena
            )
        if self.durable is None or snapshot.step >= self.durable.step:
            self.durable = Durable(checkpoint.name, snapshot.step, now)
        self._note_save(snapshot, checkpoint, written, now - started)
        self._hooks.committed(checkpoint, written.manifest)
        return checkpoint.name

    def _pace(self, task: Task) -> Pace:
        """Interval saves give way to training, and to saves that somebody waits for; others are written as they can."""
        is_lowered = can_wait(task) and not (self._hurried or self._rushed)
        given_up = threading.Event()  # what one thread was told holds for all of them

        begun = threading.Event()

        def is_given_up() -> bool:
            if self._stopped or self._gives_way(task, on_its_way=begun.is_set()):
                given_up.set()
            return given_up.is_set()

        def is_abandoned() -> bool:
            if is_lowered and self._rushed:
                self._again = True  # by other threads: those that were lowered stay so
            if self._again or is_given_up():
                return True
            begun.set()
            return False

        begin = lower_this_thread if is_lowered else (lambda: None)
        is_cut_off = can_wait(task) or is_asked_for(task)
        is_wanted = (lambda: not is_given_up()) if is_cut_off else None
        return Pace(
            begin_thread=begin, is_abandoned=is_abandoned, is_wanted=is_wanted, wrote=self._meter.wrote
        )

    def _gives_way(self, task: Task, *, on_its_way: bool) -> bool:
        """Whether it is given up for one that waits; what is on its way is not, before a deadline, where no rate is known."""
        with self._changed:
            waiting = [other for other in self._queue if outweighs(other, task)]
        if not waiting:
            return False
        deadline_ns = self._look(Word.DEADLINE_NS)
        done_bytes, took_s = self._meter.so_far()
        usual_s, usual_bytes_per_s = self._meter.usual()
        bytes_per_s = rate(
            done_bytes=done_bytes,
            took_s=took_s,
            usual_bytes_per_s=usual_bytes_per_s,
            usual_s=usual_s,
        )
        if on_its_way and deadline_ns and bytes_per_s <= 0:
            return False
        following = max(waiting, key=urgency).snapshot
        return gives_way(
            written=task.snapshot.reason,
            left_bytes=max(copied(task.snapshot) - done_bytes, 0),
            next_bytes=copied(following),
            bytes_per_s=bytes_per_s,
            deadline_s=deadline_ns / 1e9 - time.monotonic() if deadline_ns else None,
            steps_newer=following.step - task.snapshot.step,
        )

    def _note_save(
        self, snapshot: Snapshot, checkpoint: CheckpointId, written: Written, seconds: float
    ) -> None:
        self._note(
            "save",
            {
                "step": snapshot.step,
                "checkpoint": checkpoint.name,
                "reason": snapshot.reason.value,
                "bytes": sum(placed.nbytes for placed in snapshot.tensors),
                "bytes_copied": copied(snapshot),
                "bytes_written": written.bytes_written,
                "chunks": written.chunks,
                "chunks_referenced": written.chunks_referenced,
                "seconds": round(seconds, 3),
                "paused_s": round(self._look(Word.PAUSED_NS) / 1e9, 6),
            },
        )

    def _note(self, kind: str, fields: dict[str, Json]) -> None:
        about = {"kind": kind, "utc": utc_now(), "attempt": self._record.attempt}
        self._events.add({**about, "step": self._look(Word.STEPS), **fields})

    def _show(self, word: Word, value: int) -> None:
        with self._changed:
            if not self._stopped:  # the page may be gone
                self._page[word] = value

    def _look(self, word: Word) -> int:
        with self._changed:
            return 0 if self._stopped else self._page[word]

    def _risk(self) -> str:
        """What would be lost now."""
        durable = self.durable
        since_s = time.monotonic() - (durable.at_s if durable else self._started_s)
        base = parse_checkpoint_name(self._record.resumed_from or "")
        step = durable.step if durable else base.step if base else 0
        steps = max(self._look(Word.STEPS) - step, 0)
        what = f"the newest checkpoint is of step {step}" if durable or base else "there is no checkpoint yet"
        return f"{what}, {steps} steps and {since_s / 60:.0f} min of work are at risk"

"""One trainer's side of the agent: offer a checkpoint, claim the attempt, take snapshots until the trainer goes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from outlast._errors import OutlastError
from outlast._types import Json, Reason
from outlast.agent.alive import Heartbeat
from outlast.agent.claim import Waits, utc_now
from outlast.agent.control import ControlPage, Phase, Word
from outlast.agent.heed import Heed
from outlast.agent.ledger import Ledger
from outlast.agent.opening import Opened, Opening
from outlast.agent.persist import Persister
from outlast.agent.place import open_place, with_capacity
from outlast.agent.precedent import learn
from outlast.agent.printed import Printed
from outlast.agent.protocol import (
    PROTOCOL,
    ArenaMessage,
    Bye,
    Ending,
    Events,
    EventsKept,
    GiveBack,
    Hello,
    NoticeHeard,
    Read,
    ReadLogged,
    Refuse,
    Saved,
    Snapshot,
    Taken,
    Welcome,
)
from outlast.agent.rereading import Rereading
from outlast.agent.retain import Retention
from outlast.agent.retelling import Retelling
from outlast.agent.tasks import Hooks, Newest, Task
from outlast.agent.tuning import Tuning, begin, keep
from outlast.agent.wire import Closed, Wire
from outlast.checkpoint.manifest import AttemptRecord, CheckpointId, Manifest
from outlast.notice.base import Notice
from outlast.policy.alarm import Sight
from outlast.policy.hazard import Spell, end_of
from outlast.snapshot.arena import Arena
from outlast.store.base import Store

DRAIN_S = 600.0
"""How long an agent whose trainer is gone keeps trying to make durable what is complete."""
LAST_PRUNE_S = 5.0
"""How long an agent that is done with all else still deletes what the last checkpoint pushed out; the next one goes on."""


@dataclass
class Claimed:
    """What a session has once its attempt is claimed."""

    hello: Hello
    store: Store
    record: AttemptRecord
    events: Ledger
    page: ControlPage
    persister: Persister
    retention: Retention
    heartbeat: Heartbeat
    heed: Heed
    retelling: Retelling
    tuning: Tuning
    started_s: float = field(default_factory=time.monotonic)


class Session:
    """Serves one trainer, in a thread of its own.

    Attributes:
        done: set once the trainer is gone and all that was complete is durable (or could not become so).
        outcome: how the trainer said that it ended; None if it never did.
        exception: the last line of what ended the script, if it said so.
        newest: once `done` is set, the newest checkpoint of this attempt, with the arena that holds it.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        say: Callable[[str], None],
        heard: Callable[[NoticeHeard], None],
        wake: Callable[[], None],
        waits: Waits | None = None,
        outlived: Newest | None = None,
        held: Collection[str] = (),
        printed: Printed | None = None,
    ) -> None:
        self._wire = wire
        self._say = say
        self._heard = heard
        self._wake = wake
        self._waits = waits or Waits()
        self._outlived = outlived
        self._held = held
        self._printed = printed
        self._rereading: Rereading | None = None
        self._arenas: dict[int, Arena] = {}
        self._lock = threading.Lock()
        self._notices: tuple[Notice, ...] = ()
        self._told_to_end = False
        self._interrupts = 0
        self._trainer_pidfd: int | None = None
        self.claimed: Claimed | None = None
        self.outcome: Ending | None = None
        self.exception: str | None = None
        self.newest: Newest | None = None
        self._stuck = False
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="outlast-session", daemon=True)
        self._thread.start()

    def notice(self, notices: tuple[Notice, ...]) -> None:
        """Do what the notices that stand ask for now; called at every tick."""
        with self._lock:
            self._notices = notices
            claimed = self.claimed
        if claimed is not None and not self.done.is_set() and claimed.heed.look(notices):
            claimed.heartbeat.beat_now()
        self._end_outside_loop()

    @property
    def leaves_at_s(self) -> float:
        """Monotonic time at which the trainer is to be told to leave; infinite while no notice says so."""
        return self.claimed.heed.leaves_at_s if self.claimed is not None else float("inf")

    @property
    def served(self) -> tuple[str, ...]:
        """Ids of the notices that led to a durable save, once `done` is set and the script has left by itself."""
        has_left = self.done.is_set() and self.outcome == "preempted" and self.claimed is not None
        return self.claimed.heed.served if has_left and self.claimed is not None else ()

    def interrupt(self) -> None:
        """Ctrl-C reached the agent."""
        self._interrupts = 1
        if self.claimed is not None:
            self.claimed.page[Word.INTERRUPTS] = self._interrupts

    def trainer_gone(self) -> None:
        """The trainer's process has ended: read what it sent, then finish, though its workers may hold the socket."""
        self._wire.finish_reading()

    @property
    def trainer_pidfd(self) -> int | None:
        """Becomes readable when the trainer has ended; None before it said who it is."""
        return self._trainer_pidfd

    def sight(self) -> Sight | None:
        """What the alarms are decided from; None before the attempt is claimed."""
        claimed = self.claimed
        if claimed is None:
            return None
        now = time.monotonic()
        page, durable = claimed.page, claimed.persister.durable
        safe_ns = page[Word.SAFE_POINT_NS]
        return Sight(
            since_safe_point_s=now - (safe_ns / 1e9 if safe_ns else claimed.started_s),
            batches_since_safe_point=page[Word.BATCHES] - page[Word.SAFE_POINT_BATCHES],
            since_durable_s=now - (durable.at_s if durable else claimed.started_s),
            interval_s=claimed.tuning.interval_s or claimed.hello.interval_s,
            steps_since_durable=page[Word.STEPS] - (durable.step if durable else 0),
            interval_steps=claimed.hello.interval_steps,
            store_error=claimed.persister.last_error,
            ended=page[Word.PHASE] != Phase.TRAINING,
        )

    def remind(self) -> None:
        """While the store fails, say once a minute what is at risk."""
        if self.claimed is not None:
            self.claimed.persister.remind()

    def warn(self, cause: str, message: str) -> None:
        """Say a warning and write it down for `status`."""
        self._say(f"warning: {message}")
        self._record("warning", cause=cause, message=message)
        if self.claimed is not None:
            self.claimed.heartbeat.beat_now()

    @property
    def holds(self) -> str | None:
        """URL of the run, where it holds a checkpoint as far as this session knows."""
        claimed = self.claimed
        if claimed is None or (claimed.persister.durable is None and claimed.record.resumed_from is None):
            return None
        return claimed.store.url

    def take_newest(self) -> Newest | None:
        """Take over `newest`, and the duty to close its arena; call once `done` is set."""
        newest, self.newest = self.newest, None
        return newest

    def close(self) -> None:
        """Give back what it holds; call from the thread that calls `sight`, once `done` is set."""
        self._thread.join()
        newest = self.take_newest()
        if newest is not None:
            newest.arena.close()
        if self._trainer_pidfd is not None:
            os.close(self._trainer_pidfd)
            self._trainer_pidfd = None
        if self.claimed is not None:
            self.claimed.page.close()
            self.claimed = None

    def _serve(self) -> None:
        try:
            try:
                self._handshake()
                self._listen()
            except Closed:
                pass  # how every trainer's life ends
            except OutlastError as error:
                self._refuse(error)
            if self.claimed is not None:
                self._finish(self.claimed)
        finally:
            self._wire.close()
            self._close_arenas()
            self.done.set()
            self._wake()

    def _close_arenas(self) -> None:
        """Give the memory back, but for the newest checkpoint's: a relaunch restores from it."""
        kept = self.newest.arena if self.newest is not None else None
        for arena in self._arenas.values():
            if arena is not kept and not self._stuck:
                arena.close()

    def _refuse(self, error: OutlastError) -> None:
        try:
            self._wire.send(Refuse(error=type(error).__name__, message=str(error)))
        except Closed:
            self._say(str(error))  # nobody is left to be told

    def _handshake(self) -> None:
        hello, _ = self._wire.receive()
        if not isinstance(hello, Hello) or hello.protocol != PROTOCOL:
            msg = (
                f"the script speaks protocol {getattr(hello, 'protocol', type(hello).__name__)}, this agent {PROTOCOL}: "
                "two versions of outlast are installed; use one"
            )
            raise OutlastError(msg)
        try:
            self._trainer_pidfd = os.pidfd_open(hello.trainer.pid)
        except ProcessLookupError as error:
            raise Closed(str(error)) from error
        hello = with_capacity(hello)
        try:
            opened = None
            while opened is None:  # with resume="never" another start may take the name that was free
                opening = Opening(
                    self._wire, hello, open_place(hello),
                    say=self._say, waits=self._waits, kept=self._events_kept, newest=self._outlived, held=self._held,
                )  # fmt: skip
                opened = opening.rejoined(hello.rejoin) if hello.rejoin else opening.attempt()
        finally:
            if self._outlived is not None:
                self._outlived.arena.close()
                self._outlived = None
        self._start(hello, opened)

    def _start(self, hello: Hello, opened: Opened) -> None:
        store, record, heartbeat = opened.store, opened.record, opened.heartbeat
        page = ControlPage.create()
        events = heartbeat.events
        retention = Retention(store, record, hello.keep, say=self._say, note=self._record)
        hooks = Hooks(
            answer=self._answer,
            superseded=self._superseded,
            say=self._say,
            committed=self._committed,
            make_room=retention.make_room,
            settle=retention.settle,
        )
        persister = Persister(
            store,
            record,
            hooks,
            rank=hello.rank,
            events=events,
            page=page,
            best=hello.keep.best,
            damaged=opened.damaged,
        )
        heed = Heed(page, persister, retention, say=self._say, note=self._record)
        retelling = Retelling(store, record, hello.rank, send=self._wire.send, say=self._say)
        tuning = Tuning(page, persister.measured, hello.max_lost, record, say=self._say, note=self._record)
        claimed = Claimed(
            hello, store, record, events, page, persister, retention, heartbeat, heed, retelling, tuning
        )
        with self._lock:
            self.claimed = claimed
            notices = self._notices
        heartbeat.tell(self._superseded)
        learn(store, record.attempt, hello.rank, persister.precede)
        begin(tuning, store, record, hello)
        page[Word.INTERRUPTS] = self._interrupts
        heed.look(notices)
        if self._printed is not None:
            self._printed.claimed(store, record, hello.rank, may_put=lambda: not heed.is_saving)
        if hello.rejoin is None:
            self._record("attempt", host=record.trainer.host, pid=record.trainer.pid)
        retention.start(persister.in_use)
        self._wire.send(Welcome(attempt=record.attempt, nonce=record.nonce, run_id=record.run_id), (page.fd,))
        self._end_outside_loop()

    def _listen(self) -> None:
        while True:
            message, fds = self._wire.receive()
            self._handle(message, fds)

    def _handle(self, message: object, fds: list[int]) -> None:
        claimed = self.claimed
        assert claimed is not None
        match message:
            case ArenaMessage():
                # The arena before it under this index is free: its snapshot was answered.
                old = self._arenas.pop(message.index, None)
                if old is not None:
                    claimed.persister.forget(old)
                    old.close()
                self._arenas[message.index] = Arena(fds[0])
            case Snapshot():
                claimed.persister.submit(Task(message, self._arenas[message.index]))
                if message.hold and claimed.heed.is_leaving:
                    claimed.persister.release(Reason.EMERGENCY)
            case GiveBack():
                if message.until_ns is None or time.monotonic_ns() < message.until_ns:
                    claimed.persister.give_back(message.number)
            case Read():
                self._stop_reading()
                self._rereading = Rereading(claimed.store, message, Arena(fds[0]), self._wire.send)
            case Taken():
                if self._rereading is not None and self._rereading.take_back(message):
                    self._stop_reading()
            case ReadLogged():
                claimed.retelling.answer(message)
            case Events():
                for record in message.records:
                    if record.get("kind") == "exception":
                        self.exception = str(record.get("text", ""))
                    claimed.events.take(record)
                    if record.get("kind") == "resume":
                        claimed.heartbeat.beat_now()
            case NoticeHeard():
                self._heard(message)
            case Bye():
                self.outcome = message.outcome
                msg = "the script has ended"
                raise Closed(msg)
            case _:
                msg = f"unexpected {type(message).__name__}"
                raise Closed(msg)

    def _stop_reading(self) -> None:
        if self._rereading is not None:
            self._rereading.close()
            self._rereading = None

    def _finish(self, claimed: Claimed) -> None:
        """The trainer is gone: what is complete becomes durable."""
        self._stop_reading()
        persister = claimed.persister
        persister.release(Reason.EMERGENCY if self._is_ending else Reason.INTERVAL)
        if not persister.drain(DRAIN_S):
            self._say(f"gave up after {DRAIN_S:.0f} s: {persister.last_error or 'the store does not answer'}")
        self._stuck = not persister.stop()
        self.newest = persister.newest
        claimed.retention.stop(0.0 if self._is_ending else LAST_PRUNE_S)
        claimed.heartbeat.stop()
        claimed.heed.end()
        lived_s = claimed.tuning.stop()
        self._record("end", outcome=self.outcome or "killed")
        try:
            claimed.events.flush()
        except OutlastError as error:
            self._say(f"the last events were not written: {error}")
        else:
            is_saved = self._is_ending and bool(claimed.heed.served)
            keep(claimed.tuning, claimed.record, Spell(lived_s, end_of(self.outcome, is_saved=is_saved)))

    def _answer(self, saved: Saved) -> None:
        try:
            self._wire.send(saved)
        except Closed:
            pass  # the trainer is gone; what it handed over is being made durable all the same

    def _events_kept(self, count: int) -> None:
        with contextlib.suppress(Closed):  # the trainer is gone, and need not know
            self._wire.send(EventsKept(count=count))

    def _superseded(self, why: str) -> None:
        self._say(why)
        if self.claimed is not None:
            self.claimed.heed.superseded()

    def _committed(self, id: CheckpointId, manifest: Manifest) -> None:  # noqa: A002 - the field's name
        claimed = self.claimed
        if claimed is not None:
            claimed.retention.committed(id, manifest)
            claimed.heed.committed(id, manifest.reason)
            claimed.tuning.committed()

    @property
    def _is_ending(self) -> bool:
        """Whether a notice stands that says more than a hint."""
        return any(notice.kind != "hint" for notice in self._notices)

    def _end_outside_loop(self) -> None:
        """A script before or after its loop has nothing to save and does not look at the page: SIGTERM ends it too."""
        pidfd, claimed = self._trainer_pidfd, self.claimed
        phase = claimed.page[Word.PHASE] if claimed else Phase.STARTING
        with self._lock:
            if (
                self._told_to_end
                or self.outcome is not None
                or not any(notice.kind == "signal" for notice in self._notices)
                or phase not in (Phase.STARTING, Phase.ENDED)
                or pidfd is None
            ):
                return
            self._told_to_end = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)

    def _record(self, kind: str, /, **fields: Json) -> None:
        claimed = self.claimed
        if claimed is None:
            return
        attempt, step = claimed.record.attempt, claimed.page[Word.STEPS]
        claimed.events.add({"kind": kind, "utc": utc_now(), "attempt": attempt, "step": step, **fields})

"""One trainer's side of the agent: offer a checkpoint, claim the attempt, take snapshots until the trainer goes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from outlast._errors import (
    NothingToResume,
    NoWholeCheckpoint,
    ObjectDamaged,
    ObjectMissing,
    OutlastError,
    StoreUnavailable,
)
from outlast._process import process_id
from outlast._types import FORMAT_VERSION, Json, Reason
from outlast.agent.alive import Heartbeat
from outlast.agent.claim import Claimant, Waits, claim, utc_now, wait_until_gone
from outlast.agent.control import ControlPage, Phase, Stop, Word
from outlast.agent.persist import Persister, Task
from outlast.agent.place import open_place
from outlast.agent.protocol import (
    PROTOCOL,
    Accept,
    ArenaMessage,
    Bye,
    Ending,
    Events,
    Hello,
    NoticeHeard,
    Offer,
    Refuse,
    Saved,
    Snapshot,
    Welcome,
)
from outlast.agent.wire import Closed, Wire
from outlast.checkpoint import catalog
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, CheckpointId
from outlast.checkpoint.reader import read_wants
from outlast.notice.base import Kind
from outlast.policy.alarm import Sight
from outlast.snapshot.arena import Arena
from outlast.store.base import Store

DRAIN_S = 600.0
"""How long an agent whose trainer is gone keeps trying to make durable what is complete."""


_MOST_CLAIMS = 100
"""Claims lost in a row before something else must be wrong."""


@dataclass(frozen=True)
class Standing:
    """The notice that stands, as the trainer is told of it."""

    source: str
    kind: Kind
    deadline_ns: int
    deadline_utc: str | None


@dataclass
class Claimed:
    """What a session has once its attempt is claimed."""

    hello: Hello
    store: Store
    record: AttemptRecord
    events: EventLog
    page: ControlPage
    persister: Persister
    heartbeat: Heartbeat
    started_s: float = field(default_factory=time.monotonic)


class Session:
    """Serves one trainer, in a thread of its own.

    Attributes:
        done: set once the trainer is gone and all that was complete is durable (or could not become so).
        outcome: how the trainer said that it ended; None if it never did.
        exception: the last line of what ended the script, if it said so.
        connected: whether a trainer ever said who it is.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        say: Callable[[str], None],
        heard: Callable[[NoticeHeard], None],
        wake: Callable[[], None],
        waits: Waits | None = None,
    ) -> None:
        self._wire = wire
        self._say = say
        self._heard = heard
        self._wake = wake
        self._waits = waits or Waits()
        self._arenas: dict[int, Arena] = {}
        self._lock = threading.Lock()
        self._standing: Standing | None = None
        self._interrupts = 0
        self._trainer_pidfd: int | None = None
        self.claimed: Claimed | None = None
        self.outcome: Ending | None = None
        self.exception: str | None = None
        self.connected = False
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="outlast-session", daemon=True)
        self._thread.start()

    def notice(self, standing: Standing | None) -> None:
        """Tell the trainer that this machine goes away, or (None) that it does not; saying it twice is harmless."""
        with self._lock:
            if standing == self._standing:
                return
            first = self._standing is None
            self._standing = standing
            claimed = self.claimed
        if claimed is None:
            return
        self._show(claimed.page)
        if standing is not None and first:
            claimed.persister.release(Reason.EMERGENCY)
        self._end_before_loop(claimed.page)
        kind = "notice" if standing else "notice-cancelled"
        about = {"source": standing.source, "deadline_utc": standing.deadline_utc} if standing else {}
        self._record(kind, **about)
        claimed.heartbeat.beat_now()

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
            interval_s=claimed.hello.interval_s,
            steps_since_durable=page[Word.STEPS] - (durable.step if durable else 0),
            interval_steps=claimed.hello.interval_steps,
            store_error=claimed.persister.last_error,
            ended=page[Word.PHASE] != Phase.TRAINING,
        )

    def warn(self, cause: str, message: str) -> None:
        """Say a warning and write it down for `status`."""
        self._say(f"warning: {message}")
        self._record("warning", cause=cause, message=message)
        if self.claimed is not None:
            self.claimed.heartbeat.beat_now()

    def close(self) -> None:
        """Give back what it holds; call from the thread that calls `sight`, once `done` is set."""
        self._thread.join()
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
            for arena in self._arenas.values():
                arena.close()
            self.done.set()
            self._wake()

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
        self.connected = True
        try:
            self._trainer_pidfd = os.pidfd_open(hello.trainer.pid)
        except ProcessLookupError as error:
            raise Closed(str(error)) from error
        store = open_place(hello)
        if hello.rejoin is not None:
            record = AttemptRecord(
                format=FORMAT_VERSION,
                run_id=hello.rejoin.run_id,
                attempt=hello.rejoin.attempt,
                nonce=hello.rejoin.nonce,
                claimed_utc=utc_now(),
                world_size=hello.world_size,
                global_batch=hello.global_batch,
                launch_id=hello.launch_id,
                job_id=hello.job_id,
                agent=process_id(os.getpid()),
                trainer=hello.trainer,
                settings=hello.settings,
                resumed_from=None,
            )
        else:
            record = self._offer(hello, store)
        self._start(hello, store, record)

    def _offer(self, hello: Hello, store: Store) -> AttemptRecord:
        """Offer what is there until the attempt is claimed: where another start came first, it has to be looked at again."""
        run = catalog.read_run(store)
        for _ in range(_MOST_CLAIMS):
            newest, candidates = self._candidates(hello, store, run.run_id if run else None)
            run = run or catalog.create_run(store, run_id=new_run_id(), created_utc=utc_now())
            record = self._offer_each(hello, store, run.run_id, newest, candidates)
            if record is not None:
                return record
        msg = f"{store.url}: {_MOST_CLAIMS} attempts were claimed by others in a row; look for a loop that starts jobs"
        raise StoreUnavailable(msg)

    def _offer_each(
        self, hello: Hello, store: Store, run_id: str, newest: int, candidates: list[CheckpointId]
    ) -> AttemptRecord | None:
        """Offer checkpoints, newest first, until one is whole and fits; None if the claim is lost to another start."""
        faults: list[str] = []
        record: AttemptRecord | None = None
        for checkpoint in candidates:
            try:
                loaded = catalog.load(store, checkpoint)
                records = catalog.tensors(loaded)
            except (ObjectMissing, ObjectDamaged) as error:
                faults.append(f"{checkpoint.name}: {error}")
                continue
            manifest = loaded.manifests[0]
            self._wire.send(
                Offer(
                    url=store.url,
                    run_id=run_id,
                    checkpoint=checkpoint.name,
                    step=checkpoint.step,
                    finished=loaded.commit.finished,
                    tree=manifest.tree,
                    position=manifest.position,
                    settings=manifest.settings,
                    tensors=tuple(records),
                    notes=tuple(faults),
                )
            )
            accept, arena = self._accept()
            try:
                record = record or self._claim(hello, store, run_id, newest, checkpoint)
                if record is None:
                    return None
                read_wants(store, records, accept.wants, arena.view if arena else memoryview(b""))
            except (ObjectMissing, ObjectDamaged) as error:
                faults.append(f"{checkpoint.name}: {error}")
            else:
                return record
            finally:
                if arena is not None:
                    arena.close()
        if candidates:
            lines = "\n".join(f"  {fault}" for fault in faults)
            msg = (
                f"{store.url} holds {len(candidates)} checkpoints and none is whole; nothing was deleted:\n{lines}\n"
                "Put the missing objects back, or start afresh under another name."
            )
            raise NoWholeCheckpoint(msg)
        self._wire.send(
            Offer(
                url=store.url,
                run_id=run_id,
                checkpoint=None,
                step=0,
                finished=False,
                tree=None,
                position=None,
                settings={},
                tensors=(),
                notes=(),
            )
        )
        self._accept()
        return self._claim(hello, store, run_id, newest, None)

    def _candidates(self, hello: Hello, store: Store, run_id: str | None) -> tuple[int, list[CheckpointId]]:
        """The newest attempt's number, once it is gone, and what can be resumed, newest first."""
        newest, found = 0, list[CheckpointId]()
        if run_id is not None:
            newest = wait_until_gone(store, self._claimant(hello, run_id), say=self._say, waits=self._waits)
            adopted = catalog.adopt(store, run_id)
            for checkpoint in adopted.committed:
                self._say(f"{checkpoint.name} was whole and had no commit: committed now")
            for fault in adopted.faults:
                self._say(f"without a commit, and not whole: {fault}")
            found = catalog.committed(store)
        if hello.resume == "must" and not found:
            msg = f'resume="must", and {store.url} holds no checkpoint; start with resume="auto", or correct the place'
            raise NothingToResume(msg)
        return newest, found

    def _accept(self) -> tuple[Accept, Arena | None]:
        accept, fds = self._wire.receive()
        if not isinstance(accept, Accept):
            msg = f"expected Accept, got {type(accept).__name__}"
            raise Closed(msg)
        return accept, Arena(fds[0]) if fds else None

    def _claimant(self, hello: Hello, run_id: str) -> Claimant:
        return Claimant(
            run_id=run_id,
            trainer=hello.trainer,
            agent=process_id(os.getpid()),
            launch_id=hello.launch_id,
            job_id=hello.job_id,
            world_size=hello.world_size,
            global_batch=hello.global_batch,
            settings=hello.settings,
            take_over=hello.take_over,
        )

    def _claim(
        self, hello: Hello, store: Store, run_id: str, newest: int, checkpoint: CheckpointId | None
    ) -> AttemptRecord | None:
        return claim(
            store,
            self._claimant(hello, run_id),
            after=newest,
            resumed_from=checkpoint.name if checkpoint else None,
            waits=self._waits,
        )

    def _start(self, hello: Hello, store: Store, record: AttemptRecord) -> None:
        page = ControlPage.create()
        events = EventLog(store, record.attempt, record.nonce, hello.rank)
        persister = Persister(
            store,
            record,
            hello.rank,
            events,
            answer=self._answer,
            superseded=self._superseded,
            say=self._say,
        )
        heartbeat = Heartbeat(store, record, events, superseded=self._superseded)
        claimed = Claimed(hello, store, record, events, page, persister, heartbeat)
        with self._lock:
            self.claimed = claimed
        page[Word.INTERRUPTS] = self._interrupts
        self._show(page)
        if hello.rejoin is None:
            self._record("attempt", host=record.trainer.host, pid=record.trainer.pid)
        self._wire.send(Welcome(attempt=record.attempt, nonce=record.nonce, run_id=record.run_id), (page.fd,))
        self._end_before_loop(page)

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
                    old.close()
                self._arenas[message.index] = Arena(fds[0])
            case Snapshot():
                claimed.persister.submit(Task(message, self._arenas[message.index]))
                if message.hold and self._standing is not None:
                    claimed.persister.release(Reason.EMERGENCY)
            case Events():
                for record in message.records:
                    if record.get("kind") == "exception":
                        self.exception = str(record.get("text", ""))
                    claimed.events.add(record)
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

    def _finish(self, claimed: Claimed) -> None:
        """The trainer is gone: what is complete becomes durable."""
        persister = claimed.persister
        persister.release(Reason.EMERGENCY if self._standing else Reason.INTERVAL)
        if not persister.drain(DRAIN_S):
            self._say(f"gave up after {DRAIN_S:.0f} s: {persister.last_error or 'the store does not answer'}")
        persister.stop()
        claimed.heartbeat.stop()
        self._record("end", outcome=self.outcome or "killed")
        try:
            claimed.events.flush()
        except OutlastError as error:
            self._say(f"the last events were not written: {error}")

    def _answer(self, saved: Saved) -> None:
        try:
            self._wire.send(saved)
        except Closed:
            pass  # the trainer is gone; what it handed over is being made durable all the same

    def _superseded(self, why: str) -> None:
        self._say(why)
        if self.claimed is not None:
            self.claimed.page[Word.STOP] = Stop.SUPERSEDED

    def _show(self, page: ControlPage) -> None:
        if page[Word.STOP] == Stop.SUPERSEDED:
            return
        standing = self._standing
        page[Word.DEADLINE_NS] = standing.deadline_ns if standing else 0
        page[Word.STOP] = Stop.LEAVE if standing else Stop.NO

    def _end_before_loop(self, page: ControlPage) -> None:
        """A script that has not begun its loop has nothing to save and does not look at the page: SIGTERM ends it too."""
        standing, pidfd = self._standing, self._trainer_pidfd
        if (
            standing
            and standing.kind == "signal"
            and page[Word.PHASE] == Phase.STARTING
            and pidfd is not None
        ):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)

    def _record(self, kind: str, **fields: Json) -> None:
        claimed = self.claimed
        if claimed is None:
            return
        claimed.events.add(
            {
                "kind": kind,
                "utc": utc_now(),
                "attempt": claimed.record.attempt,
                "step": claimed.page[Word.STEPS],
                **fields,
            }
        )


def new_run_id() -> str:
    """A name for a run that no other run has: 16 random hex digits."""
    return os.urandom(8).hex()

"""A real persister over any store, and made up snapshots for it, in the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

from outlast._process import process_id
from outlast._types import Reason
from outlast.agent.bases import FULL_EVERY, FullEvery
from outlast.agent.control import ControlPage, Word
from outlast.agent.ledger import Ledger
from outlast.agent.persist import Persister
from outlast.agent.protocol import UNCOPIED, Placed, Saved, Snapshot
from outlast.agent.tasks import Hooks, Task
from outlast.checkpoint import writer
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, digest, seal
from outlast.snapshot.arena import Arena, place
from saving import RUN_ID, UTC

WAIT_S = 30.0
"""Nothing here takes longer than a second."""


def attempt_record(number: int = 1, nonce: str = "aaaa", resumed_from: str | None = None) -> AttemptRecord:
    me = process_id(1)
    return AttemptRecord(
        format=1, run_id=RUN_ID, attempt=number, nonce=nonce, claimed_utc=UTC, world_size=1, global_batch=None,
        launch_id="launch", job_id=None, agent=me, trainer=me, settings={}, resumed_from=resumed_from,
    )  # fmt: skip


def digests(data: bytes) -> tuple[str, ...]:
    """Those of a box's chunks."""
    return tuple(digest(data[at : at + writer.CHUNK_BYTES]) for at in range(0, len(data), writer.CHUNK_BYTES))


class Gate:
    """A store's `before` that stops at one operation until it is opened, and fails as long as `failing` is set."""

    def __init__(self, operation="write"):
        self.operation = operation
        self.reached, self.opened = threading.Event(), threading.Event()
        self.closed = False
        self.failing = None

    def __call__(self, operation, key):
        if self.failing is not None and operation in ("write", "put", "create"):
            raise self.failing
        if self.closed and operation == self.operation:
            self.reached.set()
            assert self.opened.wait(30)

    def close(self):
        self.closed = True

    def open(self):
        self.closed = False
        self.opened.set()


class Saver:
    """One agent of an attempt, and what it answered.

    Attributes:
        said: every line.
        committed: names of the checkpoints that it told of.
        number: the last snapshot's.
    """

    def __init__(
        self, store, record: AttemptRecord | None = None, *, full: FullEvery = FULL_EVERY, make_room=lambda: False, damaged=()
    ) -> None:  # fmt: skip
        self.record = record or attempt_record()
        store.create(attempt_key(self.record.attempt), seal(self.record))
        self.page = ControlPage.create()
        self.said: list[str] = []
        self.committed: list[str] = []
        self._answers: dict[int, Saved] = {}
        self._changed = threading.Condition()
        self.number = 0
        self._repeat: dict[int, int] = {}
        self._arenas: list[Arena] = []
        hooks = Hooks(
            answer=self._answer,
            superseded=self.said.append,
            say=self.said.append,
            committed=lambda id, _: self.committed.append(id.name),
            make_room=make_room,
        )
        events = Ledger(EventLog(store, self.record.attempt, self.record.nonce, 0), lambda _: None)
        self.events = events
        self.persister = Persister(
            store, self.record, hooks, rank=0, events=events, page=self.page, full=full, damaged=damaged
        )

    def take(
        self,
        step: int,
        state: Mapping[str, bytes],
        *,
        uncopied: Collection[str] = (),
        base: str | None = None,
        verify: Collection[str] = (),
        reason: Reason = Reason.INTERVAL,
        hold: bool = False,
        best: float | None = None,
    ) -> Task:
        """A snapshot of 1-d uint8 tensors; digests of those in `verify` and `uncopied` go along."""
        at, placed = 0, []
        for name, data in state.items():
            size = len(data)
            here = UNCOPIED if name in uncopied else place(at, size)
            at = max(at, here + size)
            claimed = digests(data) if name in uncopied or name in verify else None
            placed.append(Placed(name, "uint8", (size,), "cpu", (0,), (size,), here, size, claimed))
        arena = Arena.create(at)
        self._arenas.append(arena)
        for box in placed:
            if box.at >= 0:
                arena.view[box.at : box.at + box.nbytes] = state[box.name]
        self.number += 1
        self._repeat[step] = self._repeat.get(step, -1) + 1
        self.page[Word.STEPS] = step
        return Task(
            Snapshot(
                number=self.number, index=0, step=step, repeat=self._repeat[step], reason=reason, pinned=False,
                finished=False, hold=hold, tree=None, position={"step": step}, settings={}, tensors=tuple(placed),
                base=base, best=best,
            ),
            arena,
        )  # fmt: skip

    def submit(self, step: int, state: Mapping[str, bytes], **how) -> int:
        """Take a snapshot and hand it over; its number."""
        task = self.take(step, state, **how)
        self.persister.submit(task)
        return task.snapshot.number

    def answer(self, number: int) -> Saved:
        """Wait for the answer to a snapshot."""
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._answers, WAIT_S), f"no answer: {self.said}"
            return self._answers[number]

    def is_answered(self, number: int) -> bool:
        with self._changed:
            return number in self._answers

    def save(self, step: int, state: Mapping[str, bytes], **how) -> str:
        """Save and wait until it is durable; the checkpoint's name."""
        saved = self.answer(self.submit(step, state, **how))
        assert saved.checkpoint is not None, saved
        return saved.checkpoint

    def close(self) -> None:
        """End it, after the store call that it is in."""
        assert self.persister.stop()
        self.page.close()
        for arena in self._arenas:
            arena.close()

    def _answer(self, saved: Saved) -> None:
        with self._changed:
            assert saved.number not in self._answers
            self._answers[saved.number] = saved
            self._changed.notify_all()

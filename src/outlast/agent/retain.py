"""Delete what a run no longer needs while it trains: a thread of its own, with low priority, never in the way of a save."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from outlast._errors import ObjectMissing, OutlastError
from outlast._types import Keep
from outlast.agent.claim import superseded_by
from outlast.agent.earlier import MAY_WRITE_S, may_still_write, passed_over
from outlast.agent.priority import lower_this_thread
from outlast.agent.tasks import InUse
from outlast.checkpoint import catalog
from outlast.checkpoint.holdings import Flight
from outlast.checkpoint.manifest import AttemptRecord, CheckpointId, Manifest, parse_checkpoint_name
from outlast.checkpoint.prune import Plan, Pruner, Whose
from outlast.store.base import Store

RETRY_S = 60.0
"""Shortest wait between two rounds without a commit between them."""

SETTLE_S = 1.0
"""Longest wait of an interval save for the round after the one before: some ms on a disk, some requests in a bucket. Only saves that
follow each other at once ever wait, which keeps the store from filling faster than it is emptied."""


class Retention:
    """Keeps what `Keep` asks for and deletes the rest, a round after each commit.

    Args:
        store: the run's store.
        record: the attempt's.
        keep: what the script asks for.
        say: a line for whoever watches.
        note: writes an event into the ledger, by its kind and fields.
    """

    def __init__(
        self,
        store: Store,
        record: AttemptRecord,
        keep: Keep,
        *,
        say: Callable[[str], None],
        note: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._store = store
        self._record = record
        self._say = say
        self._note = note
        self._pruner = Pruner(store, keep)
        self._in_use: Callable[[], InUse] = lambda: InUse(frozenset(), frozenset())
        self._whose: Whose | None = None
        self._fails = False
        self._round = threading.Lock()
        self._changed = threading.Condition()
        self._is_due = True
        self._is_busy = False
        self._is_paused = False
        self._stop_at_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="outlast-retain", daemon=True)

    def start(self, in_use: Callable[[], InUse]) -> None:
        """Begin, with what saves need at any moment."""
        self._in_use = in_use
        self._thread.start()

    def committed(self, id: CheckpointId, manifest: Manifest) -> None:  # noqa: A002 - the field's name
        """A checkpoint of this attempt has become durable."""
        self._pruner.holdings.wrote(id, manifest)
        with self._changed:
            self._is_due = True
            self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Delete nothing while this machine is about to go, but for room in a store that is full."""
        with self._changed:
            self._is_paused = paused
            self._changed.notify_all()

    def make_room(self) -> bool:
        """The store is full: delete all that may go, now and in this thread; False where nothing could."""
        plan = self._prune(at_once=True)
        return plan is not None and not plan.is_empty

    def settle(self) -> None:
        """Wait until no round is due or under way, for `SETTLE_S` at most."""
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._is_due or self._is_busy) or self._is_paused or self._stop_at_s is not None,
                SETTLE_S,
            )

    def stop(self, within_s: float) -> None:
        """End. What became due is still deleted if that is done within so many seconds."""
        with self._changed:
            self._stop_at_s = self._stop_at_s or time.monotonic() + within_s
            self._changed.notify_all()
        self._thread.join(within_s)

    def _run(self) -> None:
        lower_this_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_due or self._stop_at_s is not None, self._wait_s())
                self._changed.wait_for(lambda: not self._is_paused or self._stop_at_s is not None)
                if self._stop_at_s is not None and (self._is_paused or not self._is_due):
                    return
                self._is_due, self._is_busy = False, True
            self._prune(at_once=False)
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def _wait_s(self) -> float:
        """Until something that waits may go, or a round that failed is tried again."""
        waiting_s = self._pruner.next_s(time.monotonic())
        return MAY_WRITE_S if waiting_s is None else min(max(waiting_s, RETRY_S), MAY_WRITE_S)

    def _may_go_on(self, *, at_once: bool) -> bool:
        """Asked before each delete: only the newest attempt deletes."""
        if self._stop_at_s is not None and time.monotonic() >= self._stop_at_s:
            return False
        if self._is_paused and not at_once:
            return False
        return superseded_by(self._store, self._record) is None

    def _prune(self, *, at_once: bool) -> Plan | None:
        """One round; None where it failed. What is left goes in the next."""
        try:
            with self._round:
                if not self._may_go_on(at_once=at_once):
                    return None
                plan = self._pruner.prune(
                    self._known(),
                    in_flight=self._in_flight,
                    may_go_on=lambda: self._may_go_on(at_once=at_once),
                    now_s=time.monotonic(),
                    at_once=at_once,
                )
        except OutlastError as error:
            if not self._fails:
                self._say(f"old checkpoints cannot be deleted now, which is tried again: {error}")
            self._fails = True
            return None
        except Exception:  # a fault of ours: training and saving go on
            traceback.print_exc()
            return None
        self._fails = False
        if not plan.is_empty:
            gone = [id.name for id in plan.checkpoints]  # noqa: A001
            self._note("deleted", checkpoints=gone, bytes=sum(plan.segments.values()))
        return plan

    def _known(self) -> Whose:
        """What this attempt knows; of earlier ones, until they can write no more."""
        if self._whose is None:
            record = self._claimed()
            source = parse_checkpoint_name(record.resumed_from or "")
            self._whose = Whose(
                run_id=record.run_id,
                attempt=(record.attempt, record.nonce),
                known=frozenset({source} if source else ()),
                passed_over=passed_over(self._store, record),
                floor=record.attempt - 1,
            )
        if self._whose.floor:
            self._whose = replace(self._whose, floor=may_still_write(self._store, self._claimed()))
        return self._whose

    def _claimed(self) -> AttemptRecord:
        """The record as it was claimed: a trainer whose agent died tells the new one less."""
        try:
            record = catalog.read_attempt(self._store, self._record.attempt)
        except ObjectMissing:
            record = None
        return record if record is not None and record.nonce == self._record.nonce else self._record

    def _in_flight(self) -> Flight:
        in_use = self._in_use()
        return Flight(in_use.checkpoints, in_use.saves)

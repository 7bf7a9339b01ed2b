"""Save one snapshot once: the events first, then segments and manifest, the commit last (DESIGN.md rules 1 and 12)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from outlast._errors import OutlastError, StoreError
from outlast._types import Best
from outlast.agent.bases import Bases
from outlast.agent.claim import superseded_by, utc_now
from outlast.agent.ledger import Ledger
from outlast.agent.protocol import Snapshot
from outlast.agent.tasks import Task
from outlast.checkpoint.base import Base
from outlast.checkpoint.manifest import AttemptRecord, BestValue, CheckpointId
from outlast.checkpoint.writer import SaveHeader, Written, commit, write_rank
from outlast.checkpoint.writing import Pace
from outlast.store.base import Store

MOST_SEGMENTS = 10**6
"""Of one save of one rank: 64 TB."""
AGENTS = 10**6
"""Numbers that agents which took over draw from, so that no two of an attempt count their segments alike."""


@dataclass
class Plan:
    """How a snapshot is saved. Made once: another try writes the same bytes under the same keys, which are immutable."""

    header: SaveHeader
    saved_utc: str
    bases: tuple[Base, ...]
    done: set[str] = field(default_factory=set)


class Once:
    """Saves snapshots of one rank in one attempt. Used by the saving thread only.

    Args:
        store: the run's store.
        record: the attempt's.
        bases: what may be referred to; told of each commit.
        rank: this rank's number.
        events: flushed before each snapshot's manifest names its last part.
        best: the metric whose best value a snapshot may carry.
        superseded: told why, when a newer attempt has taken over.
        took_over: another agent of this attempt may have saved before.
    """

    def __init__(
        self,
        store: Store,
        record: AttemptRecord,
        bases: Bases,
        *,
        rank: int,
        events: Ledger,
        best: Best | None,
        superseded: Callable[[str], None],
        took_over: bool,
    ) -> None:
        self._store = store
        self._record = record
        self._bases = bases
        self._rank = rank
        self._events = events
        self._best = best
        self._superseded = superseded
        # An agent that took over may save what the killed one was saving, from other bases: under keys of its own, since a
        # request of the other's may still arrive, and no object is ever written with other bytes.
        self._first_segment = (1 + secrets.randbelow(AGENTS)) * MOST_SEGMENTS if took_over else 0

    def plan(self, snapshot: Snapshot) -> Plan:
        """Decide how it is saved; call once for all tries.

        Raises:
            StoreError: the events, or the checkpoint that the snapshot names, are out of reach.
        """
        best = self._best
        header = SaveHeader(
            run_id=self._record.run_id,
            id=checkpoint_id(self._record, snapshot),
            rank=self._rank,
            world_size=self._record.world_size,
            reason=snapshot.reason,
            pinned=snapshot.pinned,
            finished=snapshot.finished,
            tree=snapshot.tree,
            position=snapshot.position,
            settings=snapshot.settings,
            events=self._events.flush(),
            best=BestValue(best.metric, best.mode, snapshot.best)
            if best and snapshot.best is not None
            else None,
        )
        return Plan(header, utc_now(), self._bases.of(snapshot))

    def save(self, task: Task, plan: Plan, pace: Pace) -> Written:
        """Save and commit.

        Raises:
            as `write_rank`, and OutlastError where a newer attempt has taken over.
        """
        checkpoint = plan.header.id
        written = write_rank(
            self._store,
            plan.header,
            task.snapshot.tensors,
            task.arena.view,
            saved_utc=plan.saved_utc,
            bases=plan.bases,
            first_segment=self._first_segment,
            done=plan.done,
            pace=pace,
        )
        self.stop_if_superseded()
        if not commit(self._store, checkpoint, self._record.run_id, self._record.world_size):
            msg = f"{checkpoint.name}: a manifest that was just written is not there"
            raise StoreError(msg)
        self._bases.committed(checkpoint, written.manifest)
        return written

    def stop_if_superseded(self) -> None:
        """Raise `OutlastError` once a newer attempt has taken over."""
        why = superseded_by(self._store, self._record)
        if why is not None:
            self._superseded(why)
            raise OutlastError(why)


def checkpoint_id(record: AttemptRecord, snapshot: Snapshot) -> CheckpointId:
    """Name the checkpoint that a snapshot becomes."""
    return CheckpointId(record.attempt, snapshot.step, snapshot.repeat, record.nonce)

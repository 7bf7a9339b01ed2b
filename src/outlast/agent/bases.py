"""Which checkpoints a save may refer to, and when one is to be written in full (DESIGN.md rule 6)."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from outlast._errors import ObjectDamaged, ObjectMissing, OutlastError
from outlast._types import Reason
from outlast.agent.protocol import Snapshot
from outlast.checkpoint import catalog
from outlast.checkpoint.base import Base, base_of
from outlast.checkpoint.manifest import (
    AttemptRecord,
    CheckpointId,
    Chunk,
    Manifest,
    parse_checkpoint_name,
)
from outlast.store.base import Store

BASES_KEPT = 2
"""The newest durable checkpoint, and the one before: what a snapshot names that was taken while the newest was written."""


@dataclass(frozen=True)
class FullEvery:
    """When a save is written in full: after so many saves, or so many seconds, since the last one that was."""

    saves: int = 100
    seconds: float = 24 * 3600.0


FULL_EVERY = FullEvery()
"""DESIGN.md rule 6."""


class Bases:
    """The newest durable checkpoints of one rank. Changed by the saving thread only; `names` may be read by any.

    Args:
        store: the run's store.
        record: the attempt's.
        full: when a save in full is due.
        damaged: chunks that a restore found damaged: they are never referred to. None: another agent of this attempt
            did the restore, and what it found is not known; then only what the attempt itself wrote is referred to.

    Attributes:
        postponed: a save in full waits, since this machine is about to go. Set by any thread.
    """

    def __init__(
        self, store: Store, record: AttemptRecord, full: FullEvery, damaged: Collection[Chunk] | None
    ) -> None:
        self._store = store
        self._record = record
        self._full = full
        self._damaged = damaged
        self._bases: tuple[Base, ...] = ()
        self.postponed = False

    @property
    def names(self) -> frozenset[str]:
        """The checkpoints that must stay where they are."""
        return frozenset(base.name for base in self._bases)

    @property
    def full_is_due(self) -> bool:
        """Whether the next save is to be written in full; not while a notice stands, but for the first."""
        if not self._bases:
            return True
        if self.postponed:
            return False
        newest = self._bases[0]
        age = datetime.now(UTC) - datetime.fromisoformat(newest.full_utc)
        return newest.saves_since_full + 1 >= self._full.saves or age.total_seconds() >= self._full.seconds

    def find_first(self) -> None:
        """Load what this attempt builds on: its own newest checkpoint (saved by another agent), or the one resumed from.

        A store that fails, or a checkpoint that is not whole, leaves it without: the first save is written in full.
        """
        try:
            ours = (id.name for id in catalog.committed(self._store) if self._is_ours(id))  # noqa: A001
            name = next(ours, self._record.resumed_from)
            if name is not None:
                self._load(name)
        except OutlastError:
            pass
        except Exception:  # a fault of ours costs one save in full, not the thread that saves
            traceback.print_exc()

    def committed(self, id: CheckpointId, manifest: Manifest) -> None:  # noqa: A002 - the field's name
        """A checkpoint of this attempt has become durable."""
        self._bases = (base_of(id, (manifest,)), *self._bases)[:BASES_KEPT]

    def of(self, snapshot: Snapshot) -> tuple[Base, ...]:
        """Return the bases for a save of this snapshot, none where it is to be written in full.

        Raises:
            StoreError: the checkpoint that stands for what was not copied cannot be read now.
        """
        if all(placed.at >= 0 for placed in snapshot.tensors):
            # One that is saved against a deadline is not the one that is written in full.
            return () if self.full_is_due and snapshot.reason is not Reason.EMERGENCY else self._bases
        if snapshot.base is not None and snapshot.base not in self.names:
            try:
                self._load(snapshot.base)
            except (ObjectMissing, ObjectDamaged):
                pass  # what it held is looked for in the others
        return self._bases

    def _load(self, name: str) -> None:
        id = parse_checkpoint_name(name)  # noqa: A001
        if id is None or (self._damaged is None and not self._is_ours(id)):
            return
        loaded = catalog.load(self._store, id)
        catalog.tensors(loaded)
        # Behind the newest one of this attempt, which tells when the next save in full is due.
        self._bases = (*self._bases[:1], base_of(id, loaded.manifests, self._damaged or ()))

    def _is_ours(self, id: CheckpointId) -> bool:  # noqa: A002 - the field's name
        return (id.attempt, id.nonce) == (self._record.attempt, self._record.nonce)

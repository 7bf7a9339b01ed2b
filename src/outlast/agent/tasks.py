"""What a persister works on and whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outlast._types import Reason
from outlast.agent.protocol import Placed, Saved, Snapshot
from outlast.checkpoint.manifest import CheckpointId, Manifest, TensorRecord
from outlast.snapshot.arena import Arena


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


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint of this attempt, and the arena that still holds what was copied of it.

    The arena may have been used again since: only the records' digests tell what it holds.
    """

    checkpoint: str
    number: int
    records: tuple[TensorRecord, ...]
    placed: tuple[Placed, ...]
    arena: Arena


@dataclass(frozen=True)
class InUse:
    """What must not be deleted now: checkpoints by name, and whatever belongs to those that are written or wait."""

    checkpoints: frozenset[str]
    saves: frozenset[CheckpointId]


@dataclass(frozen=True)
class Hooks:
    """Whom a persister tells.

    Attributes:
        answer: each snapshot is done with.
        superseded: a newer attempt has taken over.
        say: a line for whoever watches.
        committed: a checkpoint has become durable; must return at once.
        make_room: the store is full: delete what may go; False if nothing could.
        settle: a save that nobody waits for is about to begin: wait, not for long, until what the last one pushed out is deleted.
    """

    answer: Callable[[Saved], None]
    superseded: Callable[[str], None]
    say: Callable[[str], None]
    committed: Callable[[CheckpointId, Manifest], None] = lambda *_: None
    make_room: Callable[[], bool] = lambda: False
    settle: Callable[[], None] = lambda: None


def can_wait(task: Task) -> bool:
    """Whether nobody waits for it: what a newer snapshot holds includes it."""
    return task.snapshot.reason is Reason.INTERVAL


def makes_place(old: Task, new: Task) -> bool:
    """Whether `new` is worth more: one that can wait for any that comes later, an emergency save for a newer one."""
    if can_wait(old):
        return True
    both = old.snapshot.reason is new.snapshot.reason is Reason.EMERGENCY
    is_special = old.snapshot.pinned or old.snapshot.finished or old.snapshot.best is not None
    return both and not is_special and new.snapshot.number > old.snapshot.number


def is_asked_for(task: Task) -> bool:
    """Whether this very state is to be saved: no newer one takes its place, it may have to wait for one."""
    return task.snapshot.reason in (Reason.USER, Reason.FINAL)


def is_stronger(new: Task, old: Task) -> bool:
    """Whether `new` goes first, of two that wait."""
    return new.snapshot.reason.strength > old.snapshot.reason.strength


def outweighs(new: Task, old: Task) -> bool:
    """Whether `old` may be given up for `new` though it is being written: somebody waits for `new`, and it is worth more."""
    return is_stronger(new, old) or (not can_wait(new) and makes_place(old, new))


def urgency(task: Task) -> tuple[int, int]:
    """The largest goes first: the strongest reason, and of those the oldest."""
    return task.snapshot.reason.strength, -task.snapshot.number


def copied(snapshot: Snapshot) -> int:
    """Bytes that the snapshot has in its arena."""
    return sum(placed.nbytes for placed in snapshot.tensors if placed.at >= 0)

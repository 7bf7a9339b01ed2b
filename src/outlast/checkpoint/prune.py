"""Delete what a run no longer needs (DESIGN.md rule 10), so that a kill anywhere leaves a store where every commit restores.

Three rules make it so. A commit goes before its manifests, so that what has a commit has all of its records. A segment goes
only when no manifest refers to it, with a commit or without, so that whatever has all of its records has all of its bytes,
and a set that is left without a commit may be committed again. And nothing goes that a save in flight needs.

A segment waits from when nothing refers to it until one more checkpoint is durable, or `TRASH_S`: somebody may be reading what
referred to it. What cut saves left waits too, so that an attempt deletes nothing before it has saved something itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from outlast._errors import ObjectMissing
from outlast._types import Keep
from outlast.checkpoint.holdings import Flight, Holdings, Seen, named, owner_of
from outlast.checkpoint.manifest import CheckpointId, Manifest
from outlast.checkpoint.pins import pinned
from outlast.checkpoint.sealed import read_record
from outlast.checkpoint.writer import commit
from outlast.policy.retention import ALWAYS_NEWEST, staying
from outlast.store.base import Store

TRASH_S = 900.0
"""Longest wait of a segment that nothing refers to any more (DESIGN.md rule 10)."""
BATCH = 100
"""Segments of one delete: between two of them a round can be stopped."""


@dataclass(frozen=True)
class Whose:
    """Who prunes, and what they know.

    Attributes:
        run_id: the run's.
        attempt: number and nonce of the attempt that prunes; None: no attempt is alive.
        known: checkpoints that it restored or verified, besides those that the attempt wrote.
        passed_over: checkpoints that were found damaged when a resume read them: they neither count nor go.
        floor: the newest superseded attempt that may still write: nothing of it, nor of those before it, is deleted.
        perhaps_alive: the newest attempt, where it is not certain that it has ended: what it has not committed stays.
    """

    run_id: str
    attempt: tuple[int, str] | None
    known: frozenset[CheckpointId] = frozenset()
    passed_over: frozenset[CheckpointId] = frozenset()
    floor: int = 0
    perhaps_alive: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a round deletes, each oldest first.

    Attributes:
        checkpoints: their commits and manifests go.
        unfinished: sets of manifests that never got a commit.
        segments: key -> size in bytes, of the segments that go now.
        waiting: the same of those that go later.
    """

    checkpoints: tuple[CheckpointId, ...]
    unfinished: tuple[CheckpointId, ...]
    segments: dict[str, int]
    waiting: dict[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether nothing goes now."""
        return not (self.checkpoints or self.unfinished or self.segments)


@dataclass(frozen=True)
class _Unneeded:
    """Since when nothing refers to a segment or an unfinished set, and which checkpoint was the newest then."""

    since_s: float
    newest: CheckpointId | None


class Pruner:
    """Prunes one run in rounds. `holdings` may be told of new checkpoints by any thread; rounds are not thread-safe."""

    def __init__(self, store: Store, keep: Keep) -> None:
        self._store = store
        self._keep = keep
        self._unneeded: dict[str, _Unneeded] = {}
        self.holdings = Holdings(store)

    def prune(
        self,
        whose: Whose,
        *,
        in_flight: Callable[[], Flight] = Flight,
        may_go_on: Callable[[], bool] = lambda: True,
        now_s: float,
        at_once: bool = False,
    ) -> Plan:
        """Delete what is not needed; returns what was deleted.

        Args:
            whose: who prunes.
            in_flight: what saves need; asked once.
            may_go_on: asked before each delete; False ends the round.
            now_s: any clock's time, in seconds.
            at_once: no segment waits.

        Raises:
            StoreError: the store failed; what is left goes in a later round.
        """
        seen = self.holdings.look(in_flight)
        self._commit_pinned(seen, whose)
        plan = self.plan(seen, whose, now_s=now_s, at_once=at_once)
        done = self.carry_out(plan, seen, may_go_on)
        self.holdings.forget_all_but(seen)
        return done

    def plan(
        self,
        seen: Seen,
        whose: Whose,
        *,
        now_s: float,
        at_once: bool,
        damaged: frozenset[CheckpointId] = frozenset(),
    ) -> Plan:
        """Decide what goes. `damaged`: checkpoints that go because they are damaged."""
        known = {id for id in seen.whole if _is_known(id, whose)}  # noqa: A001
        newest = max(known, default=None)
        facts = [
            replace(
                contents.fact,
                known=id in known,
                pinned=contents.fact.pinned or id in seen.pins,
            )
            for id, contents in seen.whole.items()  # noqa: A001
            if id not in whose.passed_over | damaged
        ]
        stay = staying(facts, self._keep)
        leave = seen.flight.saves | named(seen.flight.checkpoints) | whose.passed_over
        gone = [
            id
            for id in seen.folders  # noqa: A001
            if id.attempt > whose.floor
            and id not in seen.pins
            and ((id in seen.whole and id not in leave and id.name not in stay) or id in damaged)
        ]
        unneeded: dict[str, _Unneeded] = {}

        def is_due(key: str) -> bool:
            unneeded[key] = first = self._unneeded.get(key) or _Unneeded(now_s, newest)
            pushed = newest is not None and (first.newest is None or newest > first.newest)
            return at_once or pushed or now_s - first.since_s >= TRASH_S

        unfinished = [
            id
            for id in seen.loose  # noqa: A001
            if id.attempt > whose.floor
            and id.attempt != whose.perhaps_alive
            and id not in leave
            and id not in seen.pins
            and sum(other > id for other in known) >= ALWAYS_NEWEST
            and is_due(id.name)
        ]
        needs = self._needed(seen, {*gone, *unfinished})
        torn = max(self._unread(seen) - {*gone, *unfinished}, default=None)
        now, later = dict[str, int](), dict[str, int]()
        for key, size_bytes in seen.segments.items():
            owner = owner_of(key)
            if (
                owner is None
                or key in needs
                or owner in seen.flight.saves
                or owner.attempt <= whose.floor
                or (owner.attempt == whose.perhaps_alive and owner not in seen.whole)
                or (torn is not None and owner <= torn)
            ):
                continue
            (now if is_due(key) else later)[key] = size_bytes
        self._unneeded = unneeded
        return Plan(tuple(gone), tuple(unfinished), now, later)

    def next_s(self, now_s: float) -> float | None:
        """Seconds until something that waits is due; None while nothing waits."""
        since = [unneeded.since_s for unneeded in self._unneeded.values()]
        return max(min(since) + TRASH_S - now_s, 0.0) if since else None

    def carry_out(self, plan: Plan, seen: Seen, may_go_on: Callable[[], bool]) -> Plan:
        """Delete what was decided, in the order that is safe; return what of it was deleted."""
        kept_after_all = set[str]()
        gone, unfinished, segments = list[CheckpointId](), list[CheckpointId](), dict[str, int]()

        def done() -> Plan:
            return Plan(tuple(gone), tuple(unfinished), segments, plan.waiting)

        for id in plan.checkpoints:  # noqa: A001
            if not may_go_on():
                return done()
            if self._uncommit(id):
                gone.append(id)
                self._delete_folder(id, seen.folders[id])
            elif id in seen.whole:
                kept_after_all |= seen.whole[id].segments
        for id in plan.unfinished:  # noqa: A001
            if not may_go_on():
                return done()
            unfinished.append(id)
            self._delete_folder(id, seen.folders[id])
        keys = sorted(plan.segments.keys() - kept_after_all)
        for start in range(0, len(keys), BATCH):
            if not may_go_on():
                return done()
            batch = keys[start : start + BATCH]
            self._store.delete(batch)
            for key in batch:
                segments[key] = plan.segments[key]
                self._unneeded.pop(key, None)
        return done()

    def _uncommit(self, id: CheckpointId) -> bool:  # noqa: A002
        """Delete a commit; False where somebody pinned the checkpoint while that was done: it is put back."""
        if id in pinned(self._store):
            return False
        try:
            data = self._store.get(id.commit_key)
        except ObjectMissing:
            return True
        self._store.delete([id.commit_key])
        if id in pinned(self._store):
            self._store.put(id.commit_key, data)
            return False
        return True

    def _delete_folder(self, id: CheckpointId, names: Iterable[str]) -> None:  # noqa: A002
        keys = [f"checkpoints/{id.name}/{name}" for name in sorted(names) if name != "commit.json"]
        if keys:
            self._store.delete(keys)

    def _commit_pinned(self, seen: Seen, whose: Whose) -> None:
        """Give a pinned checkpoint its commit back: whoever deleted it was killed before they saw the pin."""
        for id in seen.loose:  # noqa: A001
            if id in seen.pins and id not in seen.flight.saves:
                try:
                    first, _ = read_record(self._store, id.manifest_key(0), Manifest)
                except ObjectMissing:
                    continue
                commit(self._store, id, whose.run_id, first.world_size)

    def _needed(self, seen: Seen, gone: set[CheckpointId]) -> set[str]:
        needed = set[str]()
        for id, contents in seen.whole.items():  # noqa: A001
            if id not in gone:
                needed |= contents.segments
        for id, manifests in seen.loose.items():  # noqa: A001
            if id not in gone:
                for segments in manifests.values():
                    needed |= segments or frozenset()
        for id in named(seen.flight.checkpoints):  # noqa: A001
            needed |= self.holdings.remembered(id) or frozenset()
        return needed

    def _unread(self, seen: Seen) -> set[CheckpointId]:
        """Checkpoints whose records cannot be read: what they refer to is not known, only that it is not newer than they."""
        torn = {id for id, manifests in seen.loose.items() if None in manifests.values()}  # noqa: A001
        bases = {id for id in named(seen.flight.checkpoints) if self.holdings.remembered(id) is None}  # noqa: A001
        return {*seen.damaged, *torn, *bases}


def _is_known(id: CheckpointId, whose: Whose) -> bool:  # noqa: A002
    return id not in whose.passed_over and (id in whose.known or (id.attempt, id.nonce) == whose.attempt)

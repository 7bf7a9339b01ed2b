"""A prune that races: with incremental saves, with an attempt that resumes, and with the superseded one that it replaces.

Every operation on the store is a point at which another takes its turn. Whatever the order, and wherever one is killed, each
commit that is left restores bit for bit, and whoever resumes finds one that is whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pruning import Saver, commits, read_from

from outlast._errors import ObjectDamaged, ObjectMissing
from outlast._types import Keep
from outlast.checkpoint import catalog, writer
from outlast.checkpoint.manifest import attempt_key
from outlast.checkpoint.packing import Segment
from outlast.checkpoint.writing import Pace
from saving import RUN_ID, MemoryStore, restore

TENSORS = 5
TENSOR_BYTES = 700
SAVES = 6
TURN_S = 20.0
"""Nobody is that slow: a turn that does not end is a fault of the test."""


class Killed(BaseException):
    """This one has no further turn."""


class Superseded(Exception):
    """It has seen a newer attempt, and ends."""


class AtOnce:
    """`Writing` without threads, so that a schedule is the same each time."""

    def __init__(self, store: MemoryStore, arena: memoryview, done: set[str], pace: Pace) -> None:
        self._store, self._arena = store, arena
        self.bytes_written = 0

    def begin(self, segment: Segment) -> None:
        self._store.write(segment.key, [self._arena[start:stop] for start, stop in segment.parts])
        self.bytes_written += segment.size_bytes

    def finish(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Actor:
    """Something that runs in turns; each operation on its store is one."""

    def __init__(self, objects: dict[str, bytes], after: Callable[[], None], work: Callable[[Actor], None]):
        self.store = ActorsStore(self, objects, after)
        self._work = work
        self._turn = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._killed = False
        self.done = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take_turn(self) -> None:
        self._turn.release()
        assert self._back.acquire(timeout=TURN_S)

    def kill(self) -> None:
        self._killed = True
        if not self.done:
            self.take_turn()
        self._thread.join()

    def wait(self) -> None:
        """Called before each operation: let another one run."""
        self._back.release()
        self._turn.acquire()
        if self._killed:
            raise Killed

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._killed:
                self._work(self)
        except (Killed, Superseded):
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        self._back.release()


class ActorsStore(MemoryStore):
    """The shared objects, as one actor sees them."""

    def __init__(self, actor: Actor, objects: dict[str, bytes], after: Callable[[], None]) -> None:
        super().__init__(lambda *_: actor.wait())
        self.objects = objects
        self._actor = actor
        self._after = after

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self._after()

    def write(self, key: str, parts: Sequence[memoryview], *, is_wanted=None) -> None:
        super().write(key, parts)
        self._after()

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._actor.wait()
            super().delete([key])
            self._after()


class World:
    """Attempt 1 saves and prunes; another takes over at some moment; the first one may live on or be killed."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.objects: dict[str, bytes] = {}
        self.states: dict[str, Mapping[str, bytes]] = {}
        self.actors: list[Actor] = []
        self.first: list[Actor] = []
        self.resumed: str | None = None

    def check(self) -> None:
        """Every commit that exists restores, bit for bit."""
        for name in commits(self.objects):
            assert read_from(self.objects, name) == self.states[name], name

    def actor(self, work: Callable[[Actor], None]) -> Actor:
        made = Actor(self.objects, self.check, work)
        self.actors.append(made)
        return made

    def start(self) -> None:
        saver = Saver(MemoryStore(), self._keep())
        state = {f"t{i}": self.random.randbytes(TENSOR_BYTES) for i in range(TENSORS)}
        self.objects[attempt_key(1)] = b""
        self.first = self._attempt(saver, 1, state)
        self.actor(self._resume)

    def _keep(self) -> Keep:
        return Keep(last=self.random.choice((1, 1, 2)), every_steps=self.random.choice((None, None, 4)))

    def _attempt(self, saver: Saver, number: int, state: dict[str, bytes]) -> list[Actor]:
        """Two actors over one saver: the thread that saves and the thread that prunes."""

        def newest(store: MemoryStore) -> int:
            return max(catalog.attempts(store))

        def save(actor: Actor) -> None:
            def stop_if_superseded() -> None:
                if newest(actor.store) > number:
                    raise Superseded

            saver.store, saver.stop_if_superseded = actor.store, stop_if_superseded
            first = max((int(name.split("-")[2]) for name in self.states), default=0) + 1
            for step in range(first, first + SAVES):
                for name in self.random.sample(sorted(state), self.random.randrange(TENSORS + 1)):
                    # Old bytes come back now and then: what was deleted must be written again.
                    state[name] = self.random.choice(
                        (b"\0" * TENSOR_BYTES, self.random.randbytes(TENSOR_BYTES))
                    )
                self.states[f"{number:05d}-{saver.nonce}-{step:012d}"] = dict(state)
                known = [base.name for base in saver.bases]
                old = self.random.choice(
                    (
                        None,
                        next(
                            (
                                id
                                for id in reversed(list(saver.pruner.holdings._read))
                                if id.name not in known
                            ),
                            None,
                        ),
                    )
                )
                saver.save(step, state, old=old)

        def prune(actor: Actor) -> None:
            saver.pruner._store = saver.pruner.holdings._store = actor.store
            for _ in range(SAVES + 2):
                if newest(actor.store) > number:
                    return
                # An attempt that is over is known to be; one that may live is let be.
                saver.floor = 1 if number > 1 and not all(each.done for each in self.first) else 0
                saver.now_s += self.random.choice((1.0, 1000.0))
                saver.prune(may_go_on=lambda: newest(actor.store) == number, at_once=False)

        return [self.actor(save), self.actor(prune)]

    def _resume(self, actor: Actor) -> None:
        """As the agent's opening does: adopt, then for the newest that is whole claim an attempt, and read every byte."""
        store = actor.store
        catalog.adopt(store, RUN_ID)
        candidates = catalog.committed(store)
        for id in candidates:
            try:
                catalog.load(store, id)
                number = max(catalog.attempts(store)) + 1
                assert store.create(attempt_key(number), b"")
                state = restore(store, id)
            except (ObjectMissing, ObjectDamaged):
                continue
            assert state == self.states[id.name]
            self.resumed = id.name
            saver = Saver(store, self._keep(), attempt=number, nonce="bbbb", resumed=id)
            self._attempt(saver, number, state)
            return
        if candidates != catalog.committed(
            store
        ):  # one that is not superseded yet has saved and pruned meanwhile
            self._resume(actor)
            return
        assert not candidates, "there were checkpoints, and none was whole"


@pytest.fixture(autouse=True, scope="module")
def small():
    patch = pytest.MonkeyPatch()
    patch.setattr(writer, "CHUNK_BYTES", 256)
    patch.setattr(writer, "SEGMENT_BYTES", 1024)
    patch.setattr(writer, "Writing", AtOnce)
    yield
    patch.undo()


def play(seed: int, eager: Sequence[int], kill_at: int | None = None, freeze_at: int | None = None) -> World:
    """Run one schedule: `eager` weighs the actors by the order in which they were made.

    From turn `kill_at` on the first attempt is dead; from `freeze_at` on it stands still until all others are done.
    """
    world = World(Random(seed))
    order = Random(seed + 1)
    world.start()
    turn = 0
    try:
        while runnable := [actor for actor in world.actors if not actor.done]:
            if freeze_at is not None and turn >= freeze_at:
                runnable = [actor for actor in runnable if actor not in world.first] or runnable
            weights = [eager[world.actors.index(actor) % len(eager)] for actor in runnable]
            order.choices(runnable, weights)[0].take_turn()
            turn += 1
            if turn == kill_at:
                for actor in world.first:
                    actor.kill()
    finally:
        for actor in world.actors:
            actor.kill()
    for actor in world.actors:
        if actor.error is not None:
            raise actor.error
    return world


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    seed=st.integers(0, 2**32),
    eager=st.lists(st.sampled_from((1, 1, 4, 16)), min_size=5, max_size=5),
    kill_at=st.none() | st.integers(1, 400),
    freeze_at=st.none() | st.integers(1, 150),
)
def test_every_commit_that_is_left_restores(seed, eager, kill_at, freeze_at):
    """Checked after each change of the store, over a thousand schedules."""
    world = play(seed, eager, kill_at, freeze_at)
    world.check()


def test_the_schedules_reach_what_they_are_for():
    """Checkpoints are resumed from while the attempt before goes on, and both have deleted some by the end."""
    played = [play(seed, (4, 4, 1, 4, 4)) for seed in range(20)]
    both = [
        world
        for world in played
        if world.resumed is not None
        and {name[:5] for name in world.states} == {"00001", "00002"}
        and all(
            len([n for n in commits(world.objects) if n[:5] == attempt])
            < len([n for n in world.states if n[:5] == attempt])
            for attempt in ("00001", "00002")
        )
    ]
    assert len(both) > 5

"""Random saves of one run: states that change and change back, boxes left uncopied rightly and wrongly, saves in full,
arenas that are not the live state, stores that fail, agents that are killed at any operation, and later attempts.

Whatever happens, every checkpoint that exists restores, bit for bit, what was in the arena's place at its safe point. Read by
the format alone, and compared with what the test itself wrote down.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persisting import Saver, attempt_record

from outlast._errors import StoreUnavailable
from outlast.agent import outage, persist
from outlast.agent.bases import FullEvery
from outlast.agent.once import checkpoint_id
from outlast.checkpoint import packing, writer
from outlast.checkpoint.catalog import adopt, committed
from outlast.store.local import LocalStore
from saving import RUN_ID, MemoryStore, read_independently

SIZES = {"big": 350, "mid": 130, "small": 40, "one": 1}
CHUNK = 64


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK_BYTES", CHUNK)
        patch.setattr(writer, "SEGMENT_BYTES", 4 * CHUNK)
        patch.setattr(packing, "SMALL_BYTES", 100)
        patch.setattr(persist, "RETRY_FIRST_S", 0.0)
        patch.setattr(persist, "RETRY_MOST_S", 0.0)
        patch.setattr(persist, "RETRY_URGENT_MOST_S", 0.0)
        patch.setattr(outage, "SAY_EVERY_S", 0.0)
        yield


names = st.sampled_from(sorted(SIZES))
changes = st.one_of(
    st.tuples(st.just("flip"), names, st.integers(0, 1000)),
    st.tuples(st.just("all"), names, st.integers(0, 255)),
    st.tuples(st.just("back"), names, st.integers(0, 5)),
)
saves = st.fixed_dictionaries(
    {
        "kind": st.just("save"),
        "uncopied": st.sets(names),
        "honest": st.booleans() | st.just(True),
        "verify": st.booleans(),
        "planted": st.sampled_from([False, False, False, True]),
        "fails_at": st.none() | st.integers(1, 14),
        "killed_at": st.none() | st.integers(1, 14),
        "again": st.booleans(),
    }
)
schedules = st.lists(st.one_of(changes, changes, saves, saves, st.just("attempt")), min_size=8, max_size=30)


class WrittenOnce(MemoryStore):
    """Where no object is ever written again with other bytes, whoever writes."""

    def write(self, key, parts, *, is_wanted=None):
        assert self.objects.get(key, data := b"".join(parts)) == data
        super().write(key, [data])


class Faults:
    """Fails once at one operation from now on, and keeps what the store held at another."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.kept: dict[str, bytes] | None = None
        self.plan(None, None)

    def plan(self, fails_at: int | None, killed_at: int | None) -> None:
        self.fails_at, self.killed_at, self.count = fails_at, killed_at, 0
        self.kept = None

    def __call__(self, operation: str, key: str) -> None:
        self.count += 1
        if self.count == self.killed_at:
            self.kept = dict(self.store.objects)
        if self.count == self.fails_at:
            raise StoreUnavailable(key)


class World:
    """One run: the live state, its agents, and what each checkpoint must hold."""

    def __init__(self, store) -> None:
        self.store = store
        self.faults = Faults(store)
        self.state = {name: bytes(size) for name, size in SIZES.items()}
        self.past = [self.state]
        self.expected: dict[str, dict[str, bytes]] = {}
        self.known: str | None = None
        self.step = 0
        self.attempt = 0
        self.savers: list[Saver] = []
        self.begin()

    def begin(self) -> None:
        """The next attempt, from the newest checkpoint."""
        if self.savers:
            adopt(self.store, RUN_ID)
        newest = next(iter(committed(self.store)), None)
        self.attempt += 1
        self.known = newest.name if newest else None
        if self.known is not None:
            self.state = self.expected[self.known]
        self.step = newest.step if newest else 0
        self.record = attempt_record(self.attempt, f"{self.attempt:04d}", self.known)
        self.agent()

    def agent(self, *, takes_over: bool = False) -> None:
        """A new agent of this attempt."""
        last = self.savers[-1] if self.savers else None
        self.savers.append(
            Saver(self.store, self.record, full=FullEvery(saves=4), damaged=None if takes_over else ())
        )
        if last is not None:
            self.savers[-1].number = last.number  # its trainer counts on

    def change(self, kind: str, name: str, value: int) -> None:
        data = bytearray(self.state[name])
        if kind == "flip":
            data[value % len(data)] ^= 1
        elif kind == "all":
            data[:] = bytes([value]) * len(data)
        else:
            data[:] = self.past[-1 - value % len(self.past)][name]
        self.state = self.state | {name: bytes(data)}
        self.past.append(self.state)

    def save(self, how: dict) -> None:
        self.step += 1
        stored = self.expected.get(self.known, {}) if self.known else {}
        uncopied = {n for n in how["uncopied"] if not how["honest"] or stored.get(n) == self.state[n]}
        one = self.savers[-1]
        task = one.take(
            self.step, self.state, uncopied=uncopied, base=self.known, verify=SIZES if how["verify"] else ()
        )
        copied = [box for box in task.snapshot.tensors if box.at >= 0]
        planted = how["planted"] and how["verify"] and bool(copied)
        if planted:
            task.arena.view[copied[0].at] ^= 1
        id = checkpoint_id(self.record, task.snapshot)  # noqa: A001
        if not planted:
            self.expected[id.name] = self.state
        self.faults.plan(how["fails_at"], how["killed_at"])
        one.persister.submit(task)
        saved = one.answer(task.snapshot.number)
        assert not (planted and saved.checkpoint)
        assert saved.checkpoint or saved.retake
        assert saved.checkpoint or planted or uncopied
        self.known = saved.checkpoint or self.known
        if self.faults.kept is not None:
            self.store.objects = self.faults.kept
            self.faults.plan(None, None)
            if not how["again"]:
                self.begin()
                return
            names_left = {id.name for id in committed(self.store)}  # noqa: A001
            self.agent(takes_over=True)
            self.savers[-1].persister.submit(task)
            saved = self.savers[-1].answer(task.snapshot.number)
            assert saved.checkpoint or saved.retake
            self.known = saved.checkpoint or max(names_left, default=None)
        self.faults.plan(None, None)

    def close(self) -> None:
        for one in self.savers:
            one.close()


def check(root: Path, expected: dict[str, dict[str, bytes]]) -> None:
    found = [path.parent.name for path in root.glob("checkpoints/*/commit.json")]
    for name in found:
        assert read_independently(root, name) == expected[name], name


def dump(store: MemoryStore, root: Path) -> None:
    for key, data in store.objects.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def play(world: World, schedule: list) -> None:
    try:
        for each in schedule:
            if each == "attempt":
                world.begin()
            elif isinstance(each, dict):
                world.save(each)
            else:
                world.change(*each)
    finally:
        world.close()


@settings(max_examples=150, deadline=None)
@given(schedules)
def test_every_commit_restores_bit_for_bit(schedule):
    """In a store that fails and whose agents are killed at any operation."""
    store = WrittenOnce()
    world = World(store)
    store._before = world.faults
    play(world, schedule)
    with tempfile.TemporaryDirectory() as root:
        dump(store, Path(root))
        check(Path(root), world.expected)


@settings(max_examples=15, deadline=None)
@given(schedules)
def test_every_commit_in_a_folder_restores_bit_for_bit(schedule):
    """The same in files, where nothing fails."""
    with tempfile.TemporaryDirectory() as root:
        world = World(LocalStore(Path(root)))
        play(world, schedule)
        check(Path(root), world.expected)

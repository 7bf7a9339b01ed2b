"""A run in memory that saves and prunes, and what must hold of its store at any moment, judged without Outlast's readers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence

from outlast._errors import ObjectMissing
from outlast._types import Keep
from outlast.checkpoint import catalog
from outlast.checkpoint.base import Base, base_of
from outlast.checkpoint.holdings import Flight
from outlast.checkpoint.manifest import CheckpointId
from outlast.checkpoint.prune import Plan, Pruner, Whose
from outlast.checkpoint.writer import commit, write_rank
from saving import RUN_ID, MemoryStore, flat, header, id_of, lay_out


class CountingStore(MemoryStore):
    """Calls `before` for every object that is deleted too, and `after` each change."""

    def __init__(self, before: Callable[[str, str], None] | None = None) -> None:
        super().__init__(before)
        self.after: Callable[[], None] = lambda: None

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self.after()

    def write(self, key: str, parts: Sequence[memoryview], *, is_wanted=None) -> None:
        super().write(key, parts)
        self.after()

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._note("delete", key)
            super().delete([key])
            self.after()


class Saver:
    """One attempt that saves, each save referring to the one before, and prunes."""

    def __init__(
        self,
        store: MemoryStore,
        keep: Keep | None = None,
        *,
        attempt: int = 1,
        nonce: str = "aaaa",
        resumed: CheckpointId | None = None,
        floor: int = 0,
    ) -> None:
        self.store = store
        self.attempt, self.nonce = attempt, nonce
        self.bases: tuple[Base, ...] = ()
        self.floor = floor
        self.flight = Flight()
        self.now_s = 0.0
        self.stop_if_superseded: Callable[[], None] = lambda: None
        self.pruner = Pruner(store, keep or Keep())
        self.known = frozenset({resumed} if resumed else ())
        if resumed is not None:
            with contextlib.suppress(ObjectMissing):  # a superseded attempt may have deleted it since
                self.bases = (base_of(resumed, catalog.load(store, resumed).manifests),)

    def save(
        self, step: int, state: Mapping[str, bytes], *, old: CheckpointId | None = None, **changes: object
    ) -> CheckpointId:
        """Write, commit, and tell the pruner as an agent does; `old` is another checkpoint that may be referred to."""
        id = id_of(step, attempt=self.attempt, nonce=self.nonce)
        named = frozenset(base.name for base in self.bases)
        self.flight = Flight(named | ({old.name} if old else set()), frozenset({id}))
        self.stop_if_superseded()
        bases = self.bases
        if old is not None:
            with contextlib.suppress(ObjectMissing):
                bases = (*bases, base_of(old, catalog.load(self.store, old).manifests))
        boxes, arena = lay_out([flat(name, data) for name, data in state.items()])
        utc = f"2026-01-01T{step // 3600:02d}:{step // 60 % 60:02d}:{step % 60:02d}.000+00:00"
        written = write_rank(self.store, header(id, **changes), boxes, arena, saved_utc=utc, bases=bases)
        self.stop_if_superseded()
        assert commit(self.store, id, RUN_ID, 1)
        self.bases = (base_of(id, (written.manifest,)), *self.bases)[:2]
        self.pruner.holdings.wrote(id, written.manifest)
        self.flight = Flight(frozenset(base.name for base in self.bases))
        return id

    def prune(self, **changes: object) -> Plan:
        whose = Whose(RUN_ID, (self.attempt, self.nonce), self.known, floor=self.floor)
        options: dict[str, object] = {"in_flight": lambda: self.flight, "now_s": self.now_s}
        return self.pruner.prune(whose, **(options | changes))  # type: ignore[arg-type]


def commits(objects: Mapping[str, bytes]) -> list[str]:
    """Names of the checkpoints that have a commit, oldest first."""
    return sorted(key.split("/")[1] for key in objects if key.endswith("/commit.json"))


def read_from(objects: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """Read a checkpoint of 1-d uint8 tensors by the format alone; a KeyError or AssertionError if it is not whole."""
    head = json.loads(objects[f"checkpoints/{name}/commit.json"])
    found = {}
    for manifest_name in head["manifests"]:
        manifest = json.loads(objects[f"checkpoints/{name}/{manifest_name}"])
        for tensor in manifest["tensors"]:
            data = b""
            for held in tensor["slices"]:
                for segment, at, nbytes, _ in held["chunks"]:
                    data += objects[segment][at : at + nbytes]
            assert len(data) == tensor["shape"][0]
            found[tensor["name"]] = data
    return found


def stored(objects: Mapping[str, bytes], folder: str = "segments/") -> int:
    """Bytes of all objects in a folder."""
    return sum(len(data) for key, data in objects.items() if key.startswith(folder))

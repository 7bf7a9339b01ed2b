"""Saves for tests: made up tensors laid out as the trainer lays them out, stores that fail on demand, and a reader of
checkpoints that uses none of Outlast's (plain JSON and bytes)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlast._errors import ObjectDamaged, ObjectMissing
from outlast._types import Reason
from outlast.checkpoint.catalog import adopt, committed, load, tensors
from outlast.checkpoint.manifest import CheckpointId
from outlast.checkpoint.reader import read_wants
from outlast.checkpoint.writer import SaveHeader, commit, write_rank
from outlast.snapshot.arena import place
from outlast.store.base import ObjectInfo, Store

UTC = "2026-01-01T00:00:00.000+00:00"
RUN_ID = "0123456789abcdef"


@dataclass(frozen=True)
class Box:
    """A box of a tensor in an arena."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    offset: tuple[int, ...]
    slice_shape: tuple[int, ...]
    at: int
    nbytes: int
    digests: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Want:
    """A box of a tensor that is wanted at a place of an arena."""

    tensor: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    at: int
    nbytes: int


def id_of(step: int, *, attempt: int = 1, nonce: str = "aaaa", repeat: int = 0) -> CheckpointId:
    return CheckpointId(attempt, step, repeat, nonce)


def header(id: CheckpointId, **changes: object) -> SaveHeader:
    fields: dict[str, object] = {
        "run_id": RUN_ID,
        "id": id,
        "rank": 0,
        "world_size": 1,
        "reason": Reason.INTERVAL,
        "pinned": False,
        "finished": False,
        "tree": {"model": {"weight": {"tensor": "weight"}}},
        "position": {"epoch": 0, "samples": 8},
        "settings": {"torch": "2.13.0"},
        "events": None,
        "best": None,
    }
    return SaveHeader(**(fields | changes))


def flat(name: str, data: bytes) -> tuple[str, str, tuple[int, ...], tuple[int, ...], tuple[int, ...], bytes]:
    """A whole one-dimensional uint8 tensor, as `lay_out` takes it."""
    return name, "uint8", (len(data),), (0,), (len(data),), data


def lay_out(parts: Sequence[tuple]) -> tuple[list[Box], memoryview]:
    """Place (name, dtype, shape, offset, slice_shape, bytes) in an arena whose gaps hold rubbish."""
    boxes, size = [], 0
    for name, dtype, shape, offset, slice_shape, data in parts:
        at = place(size, len(data))
        boxes.append(Box(name, dtype, shape, "cpu", offset, slice_shape, at, len(data)))
        size = at + len(data)
    arena = bytearray(b"\xa5" * max(size, 1))
    for box, part in zip(boxes, parts, strict=True):
        arena[box.at : box.at + box.nbytes] = part[5]
    return boxes, memoryview(arena)


def save(store: Store, id: CheckpointId, state: Mapping[str, bytes], **changes: object) -> None:
    """Save and commit one rank's bytes."""
    boxes, arena = lay_out([flat(name, data) for name, data in state.items()])
    write_rank(store, header(id, **changes), boxes, arena, saved_utc=UTC)
    assert commit(store, id, RUN_ID, 1)


def state_of(step: int, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Bytes that are different for each step, and the same wherever they are made up."""
    return {name: random.Random(f"{step} {name}").randbytes(size) for name, size in sizes.items()}


def restore(store: Store, id: CheckpointId) -> dict[str, bytes]:
    """Read a whole checkpoint the way an agent does."""
    records = tensors(load(store, id))
    wants, size = [], 0
    for record in records:
        wants.append(Want(record.name, (0,), record.shape, size, record.shape[0]))
        size += record.shape[0]
    arena = memoryview(bytearray(size))
    read_wants(store, records, wants, arena)
    return {want.tensor: bytes(arena[want.at : want.at + want.nbytes]) for want in wants}


def resume(store: Store, run_id: str = RUN_ID) -> tuple[CheckpointId, dict[str, bytes]] | None:
    """What the next attempt would start from: the newest checkpoint that is whole; None if there is none."""
    adopt(store, run_id)
    for id in committed(store):
        try:
            return id, restore(store, id)
        except (ObjectDamaged, ObjectMissing):
            continue
    return None


def read_independently(root: Path, name: str) -> dict[str, bytes]:
    """Read a checkpoint of 1-d uint8 tensors from its files, by the format alone; asserts that it is whole."""
    folder = root / "checkpoints" / name
    head = json.loads((folder / "commit.json").read_bytes())
    found: dict[str, dict[int, bytes]] = {}
    assert sorted(head["manifests"]) == [f"rank-{rank:05d}.json" for rank in range(head["world_size"])]
    for manifest_name in head["manifests"]:
        manifest = json.loads((folder / manifest_name).read_bytes())
        for tensor in manifest["tensors"]:
            for held in tensor["slices"]:
                data = b""
                for segment, at, nbytes, _ in held["chunks"]:
                    with (root / segment).open("rb") as file:
                        file.seek(at)
                        data += file.read(nbytes)
                assert len(data) == held["shape"][0]
                found.setdefault(tensor["name"], {})[held["offset"][0]] = data
    return {name: b"".join(data for _, data in sorted(parts.items())) for name, parts in found.items()}


class MemoryStore:
    """Objects in a dict, by the protocol; `before` is called with (operation, key) first, and may raise."""

    url = "memory://run"
    is_local_disk = True
    honours_create = True

    def __init__(self, before: Callable[[str, str], None] | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self._before = before

    def copy(self) -> MemoryStore:
        other = MemoryStore()
        other.objects = dict(self.objects)
        return other

    def create(self, key: str, data: bytes) -> bool:
        self._note("create", key)
        if key in self.objects:
            return False
        self.objects[key] = bytes(data)
        return True

    def put(self, key: str, data: bytes) -> None:
        self._note("put", key)
        if self.objects.setdefault(key, bytes(data)) != data:
            msg = f"{key}: other bytes are there already"
            raise ObjectDamaged(msg)

    def write(self, key: str, parts: Sequence[memoryview], *, is_wanted=None) -> None:
        self._note("write", key)
        self.objects[key] = b"".join(parts)

    def get(self, key: str) -> bytes:
        self._note("get", key)
        return self._object(key)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        self._note("read_into", key)
        data = self._object(key)[offset : offset + len(target)]
        target[: len(data)] = data
        if len(data) < len(target):
            msg = f"{key} is cut"
            raise ObjectDamaged(msg)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        self._note("list", prefix)
        return [
            ObjectInfo(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix)
        ]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def _object(self, key: str) -> bytes:
        if key not in self.objects:
            msg = f"{key} does not exist"
            raise ObjectMissing(msg)
        return self.objects[key]

    def _note(self, operation: str, key: str) -> None:
        self.log.append((operation, key))
        if self._before is not None:
            self._before(operation, key)

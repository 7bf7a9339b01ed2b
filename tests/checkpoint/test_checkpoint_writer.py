"""Writing one rank's part, and the commit."""

from __future__ import annotations

import json
import struct

import pytest

from outlast._errors import ObjectDamaged, OutlastError, StoreError, UnsupportedValue
from outlast._types import Reason
from outlast.checkpoint import packing, writer
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.writer import commit, write_rank
from saving import RUN_ID, UTC, MemoryStore, flat, header, id_of, lay_out, restore, save, state_of

PAGE = 4096


@pytest.fixture
def small(monkeypatch):
    """Chunks of two pages and segments of eight, so that little data makes many; a page is no small box."""
    monkeypatch.setattr(packing, "SMALL_BYTES", PAGE)
    monkeypatch.setattr(writer, "CHUNK_BYTES", 2 * PAGE)
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 8 * PAGE)


def write(store, id, state, **changes):
    boxes, arena = lay_out([flat(name, data) for name, data in state.items()])
    write_rank(store, header(id, **changes), boxes, arena, saved_utc=UTC)


@pytest.mark.parametrize("repeat", [0, 1])
def test_what_was_saved_comes_back(small, repeat):
    """Every byte of tensors of all sizes comes back, also under a repeated step."""
    store, id = MemoryStore(), id_of(7, repeat=repeat)
    state = state_of(7, {"a": 1, "b": 63, "c": 5 * PAGE, "d": 0, "e": 40 * PAGE + 5, "f": 2 * PAGE})
    save(store, id, state)
    assert restore(store, id) == state


def test_exact_bits_come_back():
    """NaN payloads and negative zero are bytes like any other."""
    data = struct.pack("<4I", 0x7FC00001, 0xFF800001, 0x80000000, 1)
    store, id = MemoryStore(), id_of(1)
    save(store, id, {"weight": data})
    assert restore(store, id) == {"weight": data}


def test_segments_manifest_commit(small):
    """Objects appear in the order segments, manifest, commit, and a segment never outgrows its limit."""
    store, id = MemoryStore(), id_of(7)
    save(store, id, state_of(7, {"a": 100, "b": 40 * PAGE}))
    written = [key for operation, key in store.log if operation in ("write", "put")]
    assert written[-2:] == [id.manifest_key(0), id.commit_key]
    segments = written[:-2]
    assert sorted(segments) == [id.segment_key(0, index) for index in range(len(segments))]
    assert len(segments) >= 5
    assert all(len(store.objects[key]) <= 8 * PAGE for key in segments)


def test_nothing_is_copied(small, monkeypatch):
    """The store is handed views of the arena itself, page by page as they lie there."""
    handed = []
    monkeypatch.setattr(MemoryStore, "write", lambda self, key, parts, **_: handed.append(parts))
    boxes, arena = lay_out(
        [flat(n, d) for n, d in state_of(1, {"a": 10, "b": 3 * PAGE, "c": 9 * PAGE}).items()]
    )
    write_rank(MemoryStore(), header(id_of(1)), boxes, arena, saved_utc=UTC)
    assert all(part.obj is arena.obj for parts in handed for part in parts)
    assert sorted(len(part) for parts in handed for part in parts) == [10, 5 * PAGE, 7 * PAGE]


def test_large_tensors_lie_at_pages_of_a_segment(small):
    """A chunk whose bytes start at a page of the arena starts at a page of its segment, for direct I/O."""
    store, id = MemoryStore(), id_of(1)
    save(store, id, state_of(1, {"a": 10, "b": 3 * PAGE, "c": 70, "d": 20 * PAGE}))
    manifest = json.loads(store.objects[id.manifest_key(0)])
    chunks = [c for t in manifest["tensors"] if t["name"] in "bd" for s in t["slices"] for c in s["chunks"]]
    assert len(chunks) == 12
    assert all(at % PAGE == 0 for _, at, _, _ in chunks)


def test_saving_again_changes_nothing(small):
    """A new agent that saves the snapshot of one that was killed finds it saved, and rewrites not a byte."""
    store, id, state = MemoryStore(), id_of(3), state_of(3, {"a": 30 * PAGE})
    save(store, id, state)
    before = dict(store.objects)
    store.log.clear()
    boxes, arena = lay_out([flat(name, data) for name, data in state.items()])
    changed = header(id, reason=Reason.EMERGENCY, events="events/00001-aaaa-00000/000003.jsonl")
    write_rank(store, changed, boxes, arena, saved_utc="later")
    assert commit(store, id, RUN_ID, 1)
    assert store.objects == before
    assert {operation for operation, _ in store.log} == {"get"}


@pytest.mark.parametrize("change", [{"position": {"epoch": 1}}, {"finished": True}, {"tree": None}])
def test_another_snapshot_under_a_saved_id_is_refused(change):
    """What is saved is never changed: an id that has a manifest takes no other snapshot, and trying again is no use."""
    store, id, state = MemoryStore(), id_of(3), state_of(3, {"a": 100})
    save(store, id, state)
    before = dict(store.objects)
    with pytest.raises(OutlastError, match="another snapshot") as caught:
        write(store, id, state, **change)
    assert not isinstance(caught.value, StoreError)
    with pytest.raises(OutlastError, match="another snapshot"):
        write(store, id, state_of(4, {"a": 100}))
    assert store.objects == before


def test_the_commit_is_the_same_whoever_puts_it():
    """Two agents that both see the full set put equal bytes: strongest reason, pinned if any, finished if all."""
    store, id = MemoryStore(), id_of(5)
    for rank, reason in enumerate([Reason.INTERVAL, Reason.EMERGENCY, Reason.USER]):
        write(
            store,
            id,
            {f"r{rank}": b"x"},
            rank=rank,
            world_size=3,
            reason=reason,
            pinned=rank == 2,
            finished=rank != 1,
        )
    other = store.copy()
    assert commit(store, id, RUN_ID, 3)
    assert commit(other, id, RUN_ID, 3)
    assert store.objects[id.commit_key] == other.objects[id.commit_key]
    head = json.loads(store.objects[id.commit_key])
    assert (head["reason"], head["pinned"], head["finished"]) == ("emergency", True, False)


def test_a_set_that_is_not_full_is_not_committed():
    """A rank that has not written yet leaves no commit."""
    store, id = MemoryStore(), id_of(5)
    write(store, id, {"r1": b"x"}, rank=1, world_size=2)
    assert not commit(store, id, RUN_ID, 2)
    assert id.commit_key not in store.objects
    write(store, id, {"r0": b"x"}, rank=0, world_size=2)
    assert commit(store, id, RUN_ID, 2)


@pytest.mark.parametrize(
    "foreign",
    [
        {"world_size": 3},
        {"run_id": "f" * 16},
        {"rank": 0},
        {"id": id_of(5, nonce="bbbb")},
        {"id": id_of(5, attempt=2)},
        {"id": id_of(6)},
        {"id": id_of(5, repeat=1)},
    ],
)
def test_a_foreign_manifest_does_not_count(foreign):
    """A manifest of another world size, run, rank, nonce, attempt, step or repeat never completes a set."""
    store, id = MemoryStore(), id_of(5)
    write(store, id, {"r0": b"x"}, rank=0, world_size=2)
    elsewhere = MemoryStore()
    theirs = {"id": id, "rank": 1, "world_size": 2} | foreign
    their_id = theirs.pop("id")
    write(elsewhere, their_id, {"r1": b"x"}, **theirs)
    store.objects[id.manifest_key(1)] = elsewhere.objects[their_id.manifest_key(theirs["rank"])]
    assert not commit(store, id, RUN_ID, 2)
    assert id.commit_key not in store.objects


def test_a_damaged_manifest_is_not_committed():
    """A manifest whose digest is wrong on two reads is an error that names it; right on the second, it counts."""
    store, id = MemoryStore(), id_of(5)
    write(store, id, {"a": b"x"})
    good, key = store.objects[id.manifest_key(0)], id.manifest_key(0)
    store.objects[key] = good[:20] + b"?" + good[21:]
    with pytest.raises(ObjectDamaged, match="rank-00000"):
        commit(store, id, RUN_ID, 1)
    assert id.commit_key not in store.objects
    reads = []

    def heal(operation, at):
        reads.append(at)
        if reads.count(key) == 2:
            store.objects[key] = good

    store._before = heal
    assert commit(store, id, RUN_ID, 1)


def test_events_are_durable_before_the_commit_that_names_them():
    """Rule 12: the part that reaches to the step is put before the manifest that names it."""
    store, id = MemoryStore(), id_of(5)
    log = EventLog(store, 1, "aaaa", 0)
    log.add({"kind": "metrics", "utc": UTC, "step": 5, "values": {"loss": 1.5}})
    save(store, id, {"a": b"x"}, events=log.flush())
    order = [key for operation, key in store.log if operation in ("create", "put")]
    assert order == ["events/00001-aaaa-00000/000000.jsonl", id.manifest_key(0), id.commit_key]
    assert json.loads(store.objects[id.manifest_key(0)])["events"] == order[0]


def test_what_a_reader_would_refuse_is_not_written():
    """An unknown dtype and too many dimensions are errors that name the tensor, and nothing is written."""
    store = MemoryStore()
    for dtype, shape in (("qint8", (1,)), ("uint8", (1,) * 40)):
        boxes, arena = lay_out([("layer.weight", dtype, shape, (0,) * len(shape), shape, b"x")])
        with pytest.raises(UnsupportedValue, match=r"layer\.weight"):
            write_rank(store, header(id_of(1)), boxes, arena, saved_utc=UTC)
    boxes, arena = lay_out([("w", "float32", (4,), (0,), (4,), b"x" * 12)])
    with pytest.raises(ValueError, match="no box"):
        write_rank(store, header(id_of(1)), boxes, arena, saved_utc=UTC)
    assert store.objects == {}

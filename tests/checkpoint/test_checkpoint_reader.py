"""Reading any box of a tensor, from whatever boxes it was saved in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast._errors import ObjectDamaged, ObjectMissing, StoreUnavailable
from outlast.checkpoint import reader, writer
from outlast.checkpoint.boxes import DTYPE_BYTES
from outlast.checkpoint.catalog import load, tensors
from outlast.checkpoint.reader import read_wants
from outlast.checkpoint.writer import commit, write_rank
from saving import RUN_ID, UTC, MemoryStore, Want, flat, header, id_of, lay_out, restore, save, state_of

NUMPY = {
    "bfloat16": "uint16",
    "float8_e5m2": "uint8",
    "complex64": "complex64",
    "float32": "float32",
    "bool": "uint8",
}
KIB = 1024


@st.composite
def grids(draw, shape, ranks):
    """Cut a tensor into boxes, recursively and not as a grid, and deal them to ranks."""
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        index = draw(st.integers(0, len(boxes) - 1))
        offset, size = boxes[index]
        dims = [d for d, n in enumerate(size) if n > 1]
        if not dims:
            continue
        dim = draw(st.sampled_from(dims))
        at = draw(st.integers(1, size[dim] - 1))
        first = size[:dim] + (at,) + size[dim + 1 :]
        second = size[:dim] + (size[dim] - at,) + size[dim + 1 :]
        moved = offset[:dim] + (offset[dim] + at,) + offset[dim + 1 :]
        boxes[index : index + 1] = [(offset, first), (moved, second)]
    return [(draw(st.integers(0, ranks - 1)), *box) for box in boxes]


@st.composite
def wanted_boxes(draw, shape):
    """Some boxes of a tensor, that may overlap."""
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        offset = tuple(draw(st.integers(0, n)) for n in shape)
        size = tuple(draw(st.integers(0, n - o)) for n, o in zip(shape, offset, strict=True))
        boxes.append((offset, size))
    return [*boxes, ((0,) * len(shape), shape)] if draw(st.booleans()) else boxes


@st.composite
def worlds(draw):
    ranks = draw(st.integers(1, 4))
    cases = []
    for index in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(sorted(NUMPY)))
        shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
        cases.append((f"t{index}", dtype, shape, draw(grids(shape, ranks)), draw(wanted_boxes(shape))))
    return ranks, cases, draw(st.sampled_from([3, 16, 64, 4096])), draw(st.integers(1, 10**9))


@settings(deadline=None, max_examples=120)
@given(worlds())
def test_saved_on_n_ranks_loaded_on_m(world):
    """Whatever boxes N ranks wrote and M ranks want, each gets what slicing the whole tensor gives."""
    ranks, cases, chunk_bytes, seed = world
    random = np.random.default_rng(seed)
    arrays = {
        name: np.frombuffer(random.bytes(int(np.prod(shape)) * DTYPE_BYTES[dtype]), NUMPY[dtype]).reshape(
            shape
        )
        for name, dtype, shape, _, _ in cases
    }
    store, id = MemoryStore(), id_of(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(writer, "SEGMENT_BYTES", 64 * KIB)
        for rank in range(ranks):
            parts = [
                (name, dtype, shape, offset, size, cut(arrays[name], offset, size).tobytes())
                for name, dtype, shape, boxes, _ in cases
                for owner, offset, size in boxes
                if owner == rank
            ]
            boxes, arena = lay_out(parts)
            write_rank(store, header(id, rank=rank, world_size=ranks), boxes, arena, saved_utc=UTC)
    assert commit(store, id, RUN_ID, ranks)

    wants, expected, size = [], [], 0
    for name, dtype, _, _, boxes in cases:
        for offset, shape in boxes:
            data = cut(arrays[name], offset, shape).tobytes()
            assert len(data) == int(np.prod(shape)) * DTYPE_BYTES[dtype]
            wants.append(Want(name, offset, shape, size, len(data)))
            expected.append(data)
            size += len(data) + 5
    arena = memoryview(bytearray(b"\xee" * max(size, 1)))
    read_wants(store, tensors(load(store, id)), wants, arena)
    for want, data in zip(wants, expected, strict=True):
        assert bytes(arena[want.at : want.at + want.nbytes]) == data


def cut(array, offset, shape):
    return array[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]


@pytest.fixture
def saved(monkeypatch):
    """A checkpoint of two chunks of 4 MiB in one tensor and one of a few bytes."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 4 << 20)
    store, id = MemoryStore(), id_of(9)
    state = state_of(9, {"big": 8 << 20, "small": 10})
    save(store, id, state)
    return store, id, state


def test_whole_tensors_go_straight_into_the_arena(saved, monkeypatch):
    """A box that is wanted as it was saved is read into its place by one request, and copied nowhere."""
    store, id, state = saved
    records = tensors(load(store, id))
    targets = []
    read_into = MemoryStore.read_into

    def noted(self, key, offset, target):
        targets.append(target)
        read_into(self, key, offset, target)

    monkeypatch.setattr(MemoryStore, "read_into", noted)
    arena = memoryview(bytearray(8 << 20))
    read_wants(store, records, [Want("big", (0,), (8 << 20,), 0, 8 << 20)], arena)
    assert bytes(arena) == state["big"]
    assert [(len(target), target.obj is arena.obj) for target in targets] == [(8 << 20, True)]


def test_many_small_tensors_need_few_requests():
    """A thousand small tensors are read by a handful of requests, whatever lies between them."""
    store, id = MemoryStore(), id_of(9)
    state = state_of(9, {f"t{index}": 30 + index % 7 for index in range(1000)})
    save(store, id, state)
    store.log.clear()
    assert restore(store, id) == state
    assert sum(operation == "read_into" for operation, _ in store.log) == 1


def test_bytes_that_are_wrong_once_are_read_again(saved):
    """A read that comes back wrong, or short, is repeated by itself; only then is a chunk called bad."""
    store, id, state = saved
    key = id.segment_key(0, 0)
    good = store.objects[key]
    for bad in (good[:100] + bytes([good[100] ^ 1]) + good[101:], good[:-5], None):
        if bad is None:
            del store.objects[key]
        else:
            store.objects[key] = bad
        reads = []

        def heal(operation, at, reads=reads):
            reads.append(at)
            if operation == "read_into" and reads.count(key) == 2:
                store.objects[key] = good

        store._before = heal
        records = tensors(load(store, id))
        arena = memoryview(bytearray(8 << 20))
        read_wants(store, records, [Want("big", (0,), (8 << 20,), 0, 8 << 20)], arena, threads=1)
        assert bytes(arena) == state["big"]
        store._before = None


@pytest.mark.parametrize(("tensor", "segment", "at"), [("big", 0, 0), ("big", 0, 5 << 20), ("small", 1, 3)])
def test_bytes_that_stay_wrong_are_named(saved, tensor, segment, at):
    """A chunk that is wrong twice is an error that names segment, bytes and tensor."""
    store, id, _ = saved
    key = id.segment_key(0, segment)
    data = bytearray(store.objects[key])
    data[at] ^= 0x80
    store.objects[key] = bytes(data)
    with pytest.raises(ObjectDamaged, match=rf"{key}: bytes .*'{tensor}'.*two separate reads"):
        restore(store, id)
    del store.objects[key]
    with pytest.raises(ObjectMissing, match=key):
        restore(store, id)


def test_a_store_out_of_reach_is_not_a_damaged_checkpoint(saved):
    """Time-outs and 5xx go through as they are, on the first read and on the second."""
    store, id, _ = saved
    records = tensors(load(store, id))
    for bad_read in (1, 2):
        good = store.objects[id.segment_key(0, 1)]
        store.objects[id.segment_key(0, 1)] = b"\0" * len(good)
        reads = []

        def away(operation, key, reads=reads, bad_read=bad_read):
            if operation == "read_into":
                reads.append(key)
                if len(reads) == bad_read:
                    raise StoreUnavailable(key)

        store._before = away
        with pytest.raises(StoreUnavailable):
            read_wants(store, records, [Want("small", (0,), (10,), 0, 10)], memoryview(bytearray(10)))
        store._before = None
        store.objects[id.segment_key(0, 1)] = good


@pytest.mark.parametrize(
    "want",
    [
        Want("other", (0,), (10,), 0, 10),
        Want("small", (1,), (10,), 0, 10),
        Want("small", (-1,), (10,), 0, 10),
        Want("small", (0, 0), (10, 1), 0, 10),
        Want("small", (0,), (10,), 0, 11),
        Want("small", (0,), (10,), 3, 10),
        Want("small", (0,), (10,), -1, 10),
    ],
)
def test_a_want_that_is_no_box_is_refused(saved, want):
    """What is not in the tensor, or not in the arena, is refused before anything is read."""
    store, id, _ = saved
    records = tensors(load(store, id))
    with pytest.raises(ValueError, match="no box"):
        read_wants(store, records, [want], memoryview(bytearray(12)))


def test_memory_is_bounded(monkeypatch):
    """What is read through a buffer is at most a chunk at a time, however large the gaps and the tensors."""
    store, id = MemoryStore(), id_of(9)
    monkeypatch.setattr(writer, "CHUNK_BYTES", 64 * KIB)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 256 * KIB)
    boxes, arena = lay_out([flat(f"t{i}", bytes(100 * KIB)) for i in range(20)])
    write_rank(store, header(id), boxes, arena, saved_utc=UTC)
    assert commit(store, id, RUN_ID, 1)
    sizes = []
    real = MemoryStore.read_into
    monkeypatch.setattr(
        MemoryStore, "read_into", lambda self, k, o, t: (sizes.append(len(t)), real(self, k, o, t))[1]
    )
    assert reader.check_chunks(store, tensors(load(store, id))) == []
    assert max(sizes) <= 256 * KIB
    assert sum(sizes) >= 20 * 100 * KIB

"""In which order bytes are read, and where in a slot they go."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast.checkpoint import plan as module
from outlast.checkpoint.catalog import load, tensors
from outlast.checkpoint.manifest import CHUNK_BYTES, Chunk, Slice, TensorRecord
from outlast.checkpoint.plan import boxes, ends_at, flatten, plan
from outlast.checkpoint.reader import read_wants
from saving import MemoryStore, id_of, save, state_of

PAGE, KIB = 4096, 1024


@st.composite
def checkpoints(draw):
    """Whole tensors whose chunks lie anywhere in a few segments, some of them shared, and tensors in two slices."""
    chunk_bytes = draw(st.sampled_from([64, 5000, 8192]))
    ends = {"a": 0, "b": 0}
    chunks: list[Chunk] = []
    records = []
    for index in range(draw(st.integers(1, 6))):
        nbytes = draw(st.integers(0, 4 * chunk_bytes))
        mine = []
        for start in range(0, nbytes, chunk_bytes):
            size = min(chunk_bytes, nbytes - start)
            known = [chunk for chunk in chunks if chunk.nbytes == size]
            if known and draw(st.booleans()):
                mine.append(draw(st.sampled_from(known)))
                continue
            segment = draw(st.sampled_from(["a", "b"]))
            at = ends[segment] + draw(st.sampled_from([0, 0, 64, 300_000]))
            ends[segment] = at + size
            mine.append(Chunk(segment, at, size, ""))
        chunks += mine
        whole = Slice((0,), (nbytes,), tuple(mine))
        records.append(TensorRecord(f"t{index}", "uint8", (nbytes,), "cpu", (whole,)))
    return chunk_bytes, records


@settings(deadline=None, max_examples=300)
@given(checkpoints())
def test_every_byte_is_read_once_into_a_place_of_its_own(case):
    """Each batch fits its slot, its parts do not overlap there, and together they are all bytes of all tensors."""
    chunk_bytes, records = case
    slot_bytes = 3 * chunk_bytes + 2 * PAGE
    found: dict[str, list[tuple[int, int]]] = {record.name: [] for record in records}
    for batch in plan(records, slot_bytes):
        assert ends_at(batch) <= slot_bytes
        places = sorted((part.at, part.at + part.nbytes) for part in batch)
        assert all(stop <= start for (_, stop), (start, _) in zip(places, places[1:], strict=False))
        for part in batch:
            found[part.tensor].append((part.start, part.stop))
    for record in records:
        ranges = sorted(found[record.name])
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges)][: len(ranges)]
        assert (ranges[-1][1] if ranges else 0) == record.shape[0]


def test_a_batch_is_an_image_of_a_stretch_of_a_segment():
    """What lies behind each other in a segment is read by one request, however many tensors it is."""
    store, id = MemoryStore(), id_of(9)
    state = state_of(9, {f"t{index}": 300_000 + index for index in range(40)})
    save(store, id, state)
    records = tensors(load(store, id))
    batches = plan(records, CHUNK_BYTES + PAGE)
    assert len(batches) == 1
    flat = {record.name: flatten(record) for record in records}
    slot = memoryview(bytearray(ends_at(batches[0])))
    store.log.clear()
    read_wants(
        store, list(flat.values()), [b for p in batches[0] for b in boxes(p, flat[p.tensor])], slot, threads=1
    )
    assert sum(operation == "read_into" for operation, _ in store.log) == 1
    got = {p.tensor: bytes(slot[p.at : p.at + p.nbytes]) for p in batches[0]}
    assert got == state


@pytest.mark.parametrize("shape", [(7, 5, 3), (40,), (1, 1), (16, 9)])
def test_tensors_in_several_slices_are_read_in_row_major_order(shape, monkeypatch):
    """The boxes of a part lie one behind the other, as the bytes of the tensor do."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 11)
    size = 4
    for n in shape:
        size *= n
    record = TensorRecord("t", "float32", shape, "cpu", ())
    data = random.Random(1).randbytes(size)
    import numpy as np

    array = np.frombuffer(data, np.float32).reshape(shape)
    found = bytearray(size)
    for batch in plan([record], 1 << 16):
        for part in batch:
            at = part.at
            for box in boxes(part, record):
                assert box.at == at
                window = tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))
                piece = array[window].tobytes()
                start = part.start + box.at - part.at
                found[start : start + box.nbytes] = piece
                at += box.nbytes
            assert at == part.at + part.nbytes
    assert bytes(found) == data

"""The agent's side of a restore: slots are filled while others are copied, and nothing is written where it is still read."""

from __future__ import annotations

import queue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast._errors import StoreUnavailable
from outlast.agent.filling import Filling
from outlast.agent.protocol import Filled, Taken
from outlast.checkpoint.catalog import load, tensors
from outlast.checkpoint.plan import plan
from outlast.snapshot.arena import Arena
from saving import MemoryStore, id_of, save, state_of

SLOT_BYTES = 64 << 10


class Fill:
    """A filling of a saved state, and what it has sent."""

    def __init__(self, store, slots):
        self.records = tensors(load(store, id_of(9)))
        self.batches = plan(self.records, SLOT_BYTES)
        self.ring = Arena.create(slots * SLOT_BYTES)
        self.sent: queue.Queue[Filled] = queue.Queue()
        self.filling = Filling(
            store, self.records, self.batches, ring=self.ring, slot_bytes=SLOT_BYTES,
            send=lambda message, fds: self.sent.put(message),
        )  # fmt: skip

    def copied(self, filled, state):
        for part in self.batches[filled.batch]:
            at = filled.at + part.at
            data = state.setdefault(part.tensor, bytearray(self.sizes[part.tensor]))
            data[part.start : part.stop] = self.ring.view[at : at + part.nbytes]

    @property
    def sizes(self):
        return {record.name: record.shape[0] for record in self.records}

    def close(self):
        self.filling.stop()
        self.ring.close()


@pytest.fixture(scope="module")
def saved():
    store = MemoryStore()
    state = state_of(9, {f"t{index}": 20_000 + 997 * index for index in range(30)})
    save(store, id_of(9), state)
    return store, state


@settings(deadline=None, max_examples=40)
@given(data=st.data(), slots=st.integers(1, 4))
def test_a_slot_is_filled_again_only_once_its_batch_is_taken(saved, data, slots):
    """In whatever order the trainer takes batches, however late, each holds its bytes until then."""
    store, state = saved
    fill = Fill(store, slots)
    got: dict[str, bytearray] = {}
    waiting: list[Filled] = []
    seen = 0
    try:
        while seen < len(fill.batches) or waiting:
            while seen < len(fill.batches) and len(waiting) < slots:
                waiting.append(fill.sent.get(timeout=20))
                seen += 1
            filled = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            fill.copied(filled, got)
            fill.filling.take_back(Taken(batch=filled.batch, refused=()))
        assert fill.filling.is_over
        assert {name: bytes(each) for name, each in got.items()} == state
    finally:
        fill.close()


def test_a_store_that_fails_ends_it_and_says_nothing_about_the_checkpoint(saved):
    """No batch is begun after it, and those under way are answered."""

    def before(operation, key):
        if operation == "read_into":
            msg = "no route"
            raise StoreUnavailable(msg)

    store = MemoryStore(before)
    store.objects = saved[0].objects
    fill = Fill(store, 4)
    try:
        filled = fill.sent.get(timeout=20)
        assert filled.error == "no route"
        fill.filling.take_back(Taken(batch=filled.batch, refused=()))
        fill.filling.stop()
        while not fill.sent.empty():
            fill.filling.take_back(Taken(batch=fill.sent.get().batch, refused=()))
        assert fill.filling.is_over
        assert isinstance(fill.filling.error, StoreUnavailable)
        assert fill.filling.faults == []
    finally:
        fill.close()


def test_only_what_is_damaged_is_left_out(saved):
    """The rest of its batch is there; the lack says which bytes, and the digest that they must have."""
    store = saved[0].copy()
    (key,) = {chunk.segment for r in tensors(load(store, id_of(9))) for s in r.slices for chunk in s.chunks}
    record = next(r for r in tensors(load(store, id_of(9))) if r.name == "t7")
    (chunk,) = record.slices[0].chunks
    data = bytearray(store.objects[key])
    data[chunk.at + 5] ^= 1
    store.objects[key] = bytes(data)
    fill = Fill(store, 4)
    got: dict[str, bytearray] = {}
    lacks = []
    try:
        for _ in fill.batches:
            filled = fill.sent.get(timeout=20)
            fill.copied(filled, got)
            lacks += filled.lacks
            fill.filling.take_back(Taken(batch=filled.batch, refused=()))
        assert [(lack.tensor, lack.start, lack.stop, lack.digest) for lack in lacks] == [
            ("t7", 0, chunk.nbytes, chunk.digest)
        ]
        assert fill.filling.damaged == {chunk}
        good = {name: data for name, data in saved[1].items() if name != "t7"}
        assert {name: bytes(each) for name, each in got.items() if name != "t7"} == good
    finally:
        fill.close()

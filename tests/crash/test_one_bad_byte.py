"""One flipped, missing or cut byte in every kind of object: detected or survived, never handed out as good."""

from __future__ import annotations

import pytest
from save_once import RANKS, rank_state, save_world

from outlast._errors import ObjectDamaged
from outlast.checkpoint import catalog
from outlast.checkpoint.events import read_parts
from outlast.checkpoint.manifest import AttemptRecord, ProcessId, attempt_key, seal
from saving import RUN_ID, UTC, MemoryStore, id_of, resume

OLD, NEW = id_of(10), id_of(20, repeat=1)
KINDS = {
    "run": "run.json",
    "attempt": attempt_key(1),
    "segment": NEW.segment_key(1, 0),
    "first manifest": NEW.manifest_key(0),
    "last manifest": NEW.manifest_key(1),
    "commit": NEW.commit_key,
    "events": "events/00001-aaaa-00000/000001.jsonl",
}
STRIDE = 11
"""Every 11th byte of a record is flipped, and so every field is met; all ends of a segment's chunks."""


@pytest.fixture(scope="module")
def whole():
    """A run of one attempt with two checkpoints."""
    store = MemoryStore()
    catalog.create_run(store, RUN_ID, UTC)
    process = ProcessId(host="h", machine="m", pid=1, start_ticks=1)
    record = AttemptRecord(
        format=1, run_id=RUN_ID, attempt=1, nonce="aaaa", claimed_utc=UTC, world_size=RANKS, global_batch=8,
        launch_id="l", job_id=None, agent=process, trainer=process, settings={}, resumed_from=None,
    )  # fmt: skip
    store.create(attempt_key(1), seal(record))
    save_world(store, 10)
    save_world(store, 20, repeat=1)
    return store


def broken(data):
    """The object with one byte flipped at many places, cut, lengthened, emptied, and (None) missing."""
    step = STRIDE if len(data) < 20_000 else len(data) // 60
    for at in sorted({*range(0, len(data), step), *range(max(len(data) - 60, 0), len(data), 7)}):
        for bit in (0x01, 0x80):
            yield data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
    yield from (data[:-1], data[: len(data) // 2], data[1:], data + b"\0", b"", None)


def expected(step):
    return {name: data for rank in range(RANKS) for name, data in rank_state(step, rank).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_byte(whole, kind):
    """A resume gives exactly the bytes of the checkpoint that it names, or an error; and nothing is changed."""
    key = KINDS[kind]
    results = set()
    for data in broken(whole.objects[key]):
        store = whole.copy()
        if data is None:
            del store.objects[key]
        else:
            store.objects[key] = data
        left = dict(store.objects)
        assert catalog.read_run(store).run_id == RUN_ID
        assert catalog.attempts(store) == ([1] if kind != "attempt" or data is not None else [])
        if kind == "attempt" and data is not None:
            assert catalog.read_attempt(store, 1) is None
        faults = catalog.verify(store, NEW)
        id, state = resume(store)
        assert state == expected(id.step)
        assert catalog.verify(store, OLD) == []
        assert set(store.objects) - set(left) <= {NEW.commit_key}
        assert {name: store.objects[name] for name in left} == left
        results.add((id.step, bool(faults)))
        if kind == "events":
            assert [r["step"] for r in read_parts(store)] == [10]
    if kind in ("run", "attempt"):
        assert results == {(20, False)}
    elif kind == "events":
        assert results == {(20, True)}
    elif kind == "segment":
        assert results <= {(10, True), (20, False)}
        assert (10, True) in results
    elif kind == "commit":
        # Missing, it is put again by the next attempt: its manifests are all there.
        assert results == {(10, True), (20, True)}
    else:
        assert results == {(10, True)}


def test_every_checkpoint_damaged(whole):
    """Where no checkpoint is whole, each is named with its fault, nothing is changed and nothing returned."""
    store = whole.copy()
    for id in (OLD, NEW):
        data = store.objects[id.segment_key(0, 0)]
        store.objects[id.segment_key(0, 0)] = data[:-1]
    assert resume(store) is None
    assert catalog.committed(store) == [NEW, OLD]
    for id in (OLD, NEW):
        faults = catalog.verify(store, id)
        assert faults
        assert all(id.segment_key(0, 0) in fault for fault in faults)


def test_no_record_names_the_run(whole):
    """With run.json and every commit damaged, the run is refused by name and not begun anew."""
    store = whole.copy()
    for key in ("run.json", OLD.commit_key, NEW.commit_key, attempt_key(1)):
        store.objects[key] = store.objects[key][:-1]
    with pytest.raises(ObjectDamaged, match=r"run\.json"):
        catalog.read_run(store)

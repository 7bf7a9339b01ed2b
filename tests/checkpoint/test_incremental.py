"""What is durable already is referred to and not written again."""

from __future__ import annotations

import threading

import pytest

from outlast._errors import StoreFull
from outlast.checkpoint import packing, writer
from outlast.checkpoint.base import base_of
from outlast.checkpoint.manifest import digest
from outlast.checkpoint.writer import NotTheLiveState, Retake, commit, write_rank
from outlast.checkpoint.writing import Abandoned, Pace
from saving import RUN_ID, UTC, Box, MemoryStore, flat, header, id_of, lay_out, restore, state_of

PAGE = 4096
CHUNK = 2 * PAGE
SIZES = {"a": 5 * PAGE, "b": 100, "c": 9 * PAGE + 17, "d": 70}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(packing, "SMALL_BYTES", PAGE)
    monkeypatch.setattr(writer, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 8 * PAGE)


def write(store, id, state, bases=(), *, uncopied=(), claimed=None, **how):
    """Save and commit; `claimed` are the bytes of which the trainer took digests."""
    boxes, arena = lay_out([flat(n, b"" if n in uncopied else data) for n, data in state.items()])
    claimed = {name: state[name] for name in uncopied} | (claimed or {})
    marked = []
    for box in boxes:
        data = claimed.get(box.name)
        taken = (
            None if data is None else tuple(digest(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK))
        )
        size = len(state[box.name])
        at = -1 if box.name in uncopied else box.at
        marked.append(Box(box.name, "uint8", (size,), "cpu", (0,), (size,), at, size, taken))
    written = write_rank(store, header(id), marked, arena, saved_utc=UTC, bases=bases, **how)
    assert commit(store, id, RUN_ID, 1)
    return base_of(id, (written.manifest,)), written


def segments(store):
    return {key: data for key, data in store.objects.items() if key.startswith("segments/")}


def test_an_unchanged_state_writes_no_segment():
    """A second save of the same bytes refers to every chunk of the first."""
    store, state = MemoryStore(), state_of(1, SIZES)
    base, first = write(store, id_of(1), state)
    before = segments(store)
    _, second = write(store, id_of(2), state, [base])
    assert segments(store) == before
    assert (first.chunks_referenced, second.chunks_referenced) == (0, second.chunks)
    assert (second.bytes_written, second.manifest.saves_since_full) == (0, 1)
    assert restore(store, id_of(2)) == state


def test_generators_are_written_anew_by_every_save():
    """Nothing draws from them and no script has them live: one bad byte of a copy that all share would end the run."""
    store = MemoryStore()
    state = state_of(1, SIZES | {"rng/torch": 5056, "head/rng/torch": 5056})
    base, _ = write(store, id_of(1), state)
    _, second = write(store, id_of(2), state, [base])
    assert second.chunks - second.chunks_referenced == 2
    for record in second.manifest.tensors:
        chunks = [chunk for held in record.slices for chunk in held.chunks]
        of_the_first = all(chunk.segment.startswith("segments/00001-aaaa/000000000001-") for chunk in chunks)
        assert of_the_first == (not record.name.startswith(("rng/", "head/")))
    assert restore(store, id_of(2)) == state


@pytest.mark.parametrize(
    ("name", "at"), [("a", 0), ("a", 3 * PAGE), ("b", 99), ("c", 9 * PAGE + 16), ("d", 5)]
)
def test_one_byte_that_changes_writes_one_chunk(name, at):
    """A flipped byte makes one chunk new, and all others stay where they are."""
    store, state = MemoryStore(), state_of(1, SIZES)
    base, _ = write(store, id_of(1), state)
    data = bytearray(state[name])
    data[at] ^= 1
    changed = state | {name: bytes(data)}
    before = segments(store)
    _, written = write(store, id_of(2), changed, [base])
    new = {key: len(data) for key, data in segments(store).items() if key not in before}
    assert written.chunks - written.chunks_referenced == 1
    assert len(new) == 1
    assert sum(new.values()) == written.bytes_written <= CHUNK
    assert restore(store, id_of(2)) == changed
    assert restore(store, id_of(1)) == state


def test_what_is_referred_to_keeps_the_digests_of_the_base():
    """A manifest names for each chunk the segment that holds it, also over several saves."""
    store, state = MemoryStore(), state_of(1, SIZES)
    base, _ = write(store, id_of(1), state)
    for step in range(2, 6):
        state = state | {"b": state_of(step, SIZES)["b"]}
        base, written = write(store, id_of(step), state, [base])
        assert written.manifest.saves_since_full == step - 1
        assert restore(store, id_of(step)) == state
    first = {
        chunk.segment
        for t in written.manifest.tensors
        if t.name != "b"
        for s in t.slices
        for chunk in s.chunks
    }
    assert first <= {id_of(1).segment_key(0, index) for index in range(10)}


def test_a_save_that_refers_to_nothing_is_one_in_full():
    """Where every chunk was new, every byte was written anew, and it counts as such."""
    store = MemoryStore()
    base, _ = write(store, id_of(1), state_of(1, SIZES))
    _, written = write(store, id_of(2), state_of(2, SIZES), [base])
    assert (written.chunks_referenced, written.manifest.saves_since_full) == (0, 0)


def test_what_was_not_copied_is_found_in_the_base():
    """A box that is not in the arena is stored as the chunks that have its digests."""
    store, state = MemoryStore(), state_of(1, SIZES)
    base, _ = write(store, id_of(1), state)
    state = state | {"a": state_of(2, SIZES)["a"]}
    _, written = write(store, id_of(2), state, [base], uncopied=("b", "c"))
    assert restore(store, id_of(2)) == state
    assert written.bytes_written == SIZES["a"]


def test_what_was_not_copied_and_is_nowhere_has_to_be_taken_again():
    """Without a base that holds it, nothing is committed and the tensor is named."""
    store, state = MemoryStore(), state_of(1, SIZES)
    base, _ = write(store, id_of(1), state_of(9, SIZES))
    for bases in ([], [base]):
        with pytest.raises(Retake, match="'c'"):
            write(store, id_of(2), state, bases, uncopied=("c",))
    assert id_of(2).manifest_key(0) not in store.objects


def test_a_chunk_that_was_found_damaged_is_written_anew():
    """A base that leaves out a chunk has it written again; one that was not copied has to be."""
    store, state = MemoryStore(), state_of(1, SIZES)
    _, written = write(store, id_of(1), state)
    bad = next(t for t in written.manifest.tensors if t.name == "a").slices[0].chunks[1]
    base = base_of(id_of(1), (written.manifest,), (bad,))
    store.objects[bad.segment] = bytes(len(store.objects[bad.segment]))
    with pytest.raises(Retake):
        write(store, id_of(2), state, [base], uncopied=("a",))
    alone = {"a": state["a"]}
    _, again = write(store, id_of(3), alone, [base])
    assert again.bytes_written == CHUNK
    key = again.manifest.tensors[0].slices[0].chunks[1].segment
    assert key == id_of(3).segment_key(0, 0)
    assert store.objects[key] == state["a"][CHUNK : 2 * CHUNK]


@pytest.mark.parametrize("planted", ["stale", "late", "swapped"])
def test_an_arena_that_is_not_the_live_state_is_not_saved(planted):
    """A stale arena, a late write into it and two tensors at each other's place: nothing is committed, a tensor is named."""
    store, live = MemoryStore(), state_of(1, {"a": 5 * PAGE, "b": 5 * PAGE})
    copied = {
        "stale": state_of(0, {"a": 5 * PAGE, "b": 5 * PAGE}),
        "late": live | {"b": live["b"][:-1] + bytes([live["b"][-1] ^ 4])},
        "swapped": {"a": live["b"], "b": live["a"]},
    }[planted]
    with pytest.raises(NotTheLiveState, match="'b'" if planted == "late" else "'a'"):
        write(store, id_of(1), copied, claimed=live)
    assert not [key for key in store.objects if key.startswith("checkpoints/")]
    write(store, id_of(1), live, claimed=live)
    assert restore(store, id_of(1)) == live


def test_the_same_snapshot_saved_from_another_base_changes_nothing():
    """A second agent, which knows another base or none, finds the snapshot saved and rewrites not a byte."""
    store, state = MemoryStore(), state_of(1, SIZES)
    base, _ = write(store, id_of(1), state)
    state = state | {"b": b"x" * 100}
    write(store, id_of(2), state, [base])
    before = dict(store.objects)
    for bases, uncopied in (([], ()), ([base], ("c",)), ([], ("c",))):
        _, written = write(store, id_of(2), state, bases, uncopied=uncopied)
        assert store.objects == before
        assert written.manifest.saves_since_full == 1


def test_a_save_that_is_given_up_commits_nothing():
    """Between two segments a save can be given up; what it wrote, nothing refers to."""
    store, done = MemoryStore(), []
    pace = Pace(is_abandoned=lambda: len(done) >= 1, wrote=done.append)
    with pytest.raises(Abandoned):
        write(store, id_of(1), state_of(1, {"a": 60 * PAGE}), pace=pace)
    assert 1 <= len(segments(store)) == len(done) < 8
    assert not [key for key in store.objects if key.startswith("checkpoints/")]


def test_another_try_writes_only_what_is_not_durable_yet():
    """Segments that an earlier try has made durable are not sent again."""
    state = state_of(1, {"a": 60 * PAGE})
    calls = []

    def full_once(operation, key):
        if operation == "write":
            calls.append(key)
            if len(calls) == 4:
                raise StoreFull(key)

    store, done = MemoryStore(full_once), set()
    with pytest.raises(StoreFull):
        write(store, id_of(1), state, done=done)
    durable = set(segments(store))
    assert done == durable
    assert durable
    tried = len(calls)
    write(store, id_of(1), state, done=done)
    assert not durable & set(calls[tried:])
    assert restore(store, id_of(1)) == state


def test_segments_are_written_while_others_are_and_while_more_are_packed():
    """Two segments are under way at a time: each write here waits for another to have begun."""
    both = threading.Barrier(2, timeout=30)
    store = MemoryStore(lambda operation, _: operation == "write" and both.wait())
    write(store, id_of(1), state_of(1, {"a": 32 * PAGE}))
    assert len(segments(store)) == 4


def test_small_boxes_and_those_that_stay_lie_in_segments_of_their_own():
    """A chunk that stays keeps its segment: what changes does not lie in it, nor do large boxes with small ones."""
    store, state = MemoryStore(), state_of(1, {"a": 3 * PAGE, "frozen": 3 * PAGE, "small": 40, "b": 3 * PAGE})
    _, written = write(store, id_of(1), state, claimed={"frozen": state["frozen"]})
    of = {t.name: t.slices[0].chunks[0].segment for t in written.manifest.tensors}
    assert of["a"] == of["b"]
    assert len({of["a"], of["frozen"], of["small"]}) == 3


def test_pages_of_the_arena_stay_pages_of_the_segment_around_what_is_left_out():
    """Also where chunks between are referred to, large boxes start at a page of their segment, for direct I/O."""
    store, sizes = MemoryStore(), {"a": 2 * PAGE + 5, "b": 3 * PAGE, "c": 2 * PAGE}
    base, _ = write(store, id_of(1), state_of(1, sizes))
    state = state_of(2, sizes) | {"b": state_of(1, sizes)["b"]}
    _, written = write(store, id_of(2), state, [base])
    starts = [t.slices[0].chunks[0].at for t in written.manifest.tensors if t.name != "b"]
    assert all(at % PAGE == 0 for at in starts)
    assert len(segments(store)[id_of(2).segment_key(0, 0)]) == 5 * PAGE
    assert restore(store, id_of(2)) == state

"""What every store promises, held to a folder, to S3s that honour and ignore create-if-absent, and to the other clouds."""

from __future__ import annotations

import mmap
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from outlast import _errors as errors

MIB = 1 << 20


def payload(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def aligned(data: bytes) -> memoryview:
    """The same bytes in writable memory that starts at a page, as in an arena."""
    memory = mmap.mmap(-1, max(len(data), 1))
    memory[: len(data)] = data
    return memoryview(memory)[: len(data)]


def test_the_first_create_wins_and_its_bytes_stay(place):
    """A second create is refused, by the same store and by another, even with the same bytes."""
    store = place.open()
    assert store.create("attempts/00001.json", b"first") is True
    assert store.create("attempts/00001.json", b"second") is False
    assert place.open().create("attempts/00001.json", b"first") is False
    assert place.open().get("attempts/00001.json") == b"first"
    if place.folder:
        assert (place.folder / "attempts/00001.json").read_bytes() == b"first"


def test_put_again_is_harmless_and_never_changes_bytes(place):
    """The same bytes may be put again; other bytes are refused by name, and the first stay."""
    store = place.open()
    store.put("checkpoints/a/commit.json", b"{}")
    store.put("checkpoints/a/commit.json", b"{}")
    with pytest.raises(errors.ObjectDamaged, match="checkpoints/a/commit.json"):
        store.put("checkpoints/a/commit.json", b"[]")
    assert store.get("checkpoints/a/commit.json") == b"{}"


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        (1,),
        (3, 0, 5),
        (4096, 4096),
        (5 * MIB + 3, 2 * MIB, 4 * MIB - 1),
        (9 * MIB, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("memory", [memoryview, aligned], ids=["read-only", "arena"])
def test_what_was_written_in_parts_comes_back_as_one(place, sizes, memory):
    """Parts of any size and memory are joined in order, without a byte more or less."""
    whole = payload(sum(sizes))
    parts, at = [], 0
    for size in sizes:
        parts.append(memory(whole[at : at + size]))
        at += size
    store = place.open()
    store.write("segments/00001-abcd/x+1-00000-000.bin", parts)
    assert store.get("segments/00001-abcd/x+1-00000-000.bin") == whole
    if place.folder:
        assert (place.folder / "segments/00001-abcd/x+1-00000-000.bin").read_bytes() == whole


def test_several_objects_are_written_and_read_at_once(place):
    """Four threads on one store, as an agent's writers and readers are: every object is whole, whoever made its folder."""
    store = place.open()

    def both(number):
        data = payload(2 * MIB + number, number)
        store.write(f"segments/00001-abcd/{number}.bin", [aligned(data[:MIB]), memoryview(data[MIB:])])
        target = bytearray(len(data))
        place.open().read_into(f"segments/00001-abcd/{number}.bin", 0, memoryview(target))
        return target == data

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(both, range(12)))
    assert len(list(store.list("segments"))) == 12


def test_parts_of_other_types_are_their_bytes(place):
    """A view of floats is written and filled as the bytes that it holds."""
    floats = memoryview(bytearray(payload(800))).cast("d")
    store = place.open()
    store.write("segments/f.bin", [floats])
    target = memoryview(bytearray(800)).cast("d")
    store.read_into("segments/f.bin", 0, target)
    assert target.tobytes() == floats.tobytes()


def test_a_leftover_of_an_earlier_write_is_replaced(place):
    """A write that was cut short may be done again under the same key."""
    store = place.open()
    store.write("segments/x.bin", [memoryview(b"longer than the next")])
    store.write("segments/x.bin", [memoryview(b"next")])
    assert store.get("segments/x.bin") == b"next"


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 10), (4096, 2 * MIB), (5, 9 * MIB), (9 * MIB, MIB)])
@pytest.mark.parametrize("memory", [lambda data: memoryview(bytearray(data)), aligned], ids=["heap", "arena"])
def test_a_range_fills_its_target_and_nothing_else(place, big, offset, size, memory):
    """Any range comes back exactly; the bytes beside the target are left alone."""
    surrounding = memory(b"\xaa" * (size + 2 * 4096))
    place.open().read_into("segments/big.bin", offset, surrounding[4096 : 4096 + size])
    assert surrounding[4096 : 4096 + size] == big[offset : offset + size]
    assert set(bytes(surrounding[:4096]) + bytes(surrounding[4096 + size :])) == {0xAA}


@pytest.fixture
def big(place):
    data = payload(10 * MIB)
    place.open().write("segments/big.bin", [memoryview(data)])
    return data


@pytest.mark.parametrize(("offset", "size"), [(0, 11), (9, 2), (10, 1), (500, 1), (0, 9 * MIB), (5, 2 * MIB)])
def test_an_object_that_is_too_short_is_damaged(place, offset, size):
    """A range beyond the end names the object, its size and what was expected."""
    store = place.open()
    store.write("segments/short.bin", [memoryview(b"0123456789")])
    with pytest.raises(errors.ObjectDamaged, match=r"short.bin has 10 bytes, expected at least [1-9]"):
        store.read_into("segments/short.bin", offset, memoryview(bytearray(size)))


def test_what_is_not_there_is_missing(place):
    """Reading names the object that is missing, in an empty place and in one that holds others."""
    store = place.open()
    for _ in range(2):
        with pytest.raises(errors.ObjectMissing, match="nothing/here.json"):
            store.get("nothing/here.json")
        with pytest.raises(errors.ObjectMissing, match="nothing/here.json"):
            store.read_into("nothing/here.json", 0, memoryview(bytearray(1)))
        store.put("nothing/else.json", b"")


def test_a_listing_is_whole_sorted_and_by_folder(place):
    """`a` lists `a/...` and not `ab/...`; sizes are right; a place that does not exist yet is empty."""
    store = place.open()
    assert list(store.list()) == []
    assert list(store.list("checkpoints")) == []
    for key in ("run.json", "ab/2", "a/2", "a/1", "a/b/c", "a-b/1"):
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == sorted(["run.json", "ab/2", "a/2", "a/1", "a/b/c", "a-b/1"])
    assert [(info.key, info.size_bytes) for info in store.list("a")] == [("a/1", 3), ("a/2", 3), ("a/b/c", 5)]
    assert list(store.list("a/")) == list(store.list("a"))
    assert [info.key for info in place.open().list("a/b/")] == ["a/b/c"]


def test_deleting_is_idempotent_and_exact(place):
    """What is deleted is gone, what is not named stays, and what is already gone is no error."""
    store = place.open()
    for key in ("a/1", "a/2", "b/1", "c+1/x"):
        store.put(key, b"x")
    store.delete(["a/1", "a/none", "none/none", "b/1", "c+1/x"])
    store.delete(["a/1"])
    store.delete([])
    assert [info.key for info in store.list()] == ["a/2"]
    assert store.create("b/1", b"again") is True
    assert store.get("b/1") == b"again"


@pytest.mark.parametrize(
    "key", ["", "/", "/etc/passwd", "a/../../b", "..", "a//b", "a/", "./a", ".hidden", "a\0b", "a b", "a\n"]
)
def test_a_key_that_leads_elsewhere_is_refused(place, key):
    """Whatever a listing or a manifest says, no operation takes a key that is not one of ours."""
    store = place.open()
    calls = [
        lambda: store.create(key, b""),
        lambda: store.put(key, b""),
        lambda: store.write(key, [memoryview(b"")]),
        lambda: store.get(key),
        lambda: store.read_into(key, 0, memoryview(bytearray(1))),
        lambda: store.delete(["fine", key]),
    ]
    for call in calls:
        with pytest.raises(errors.ObjectDamaged, match="no key of an Outlast store"):
            call()
    if key not in ("", "/", "a/"):
        with pytest.raises(errors.ObjectDamaged, match="no key of an Outlast store"):
            store.list(key)


@pytest.mark.parametrize("place", ["local", "moto", "azure", "google"], indirect=True)
def test_of_32_creates_at_once_exactly_one_wins(place):
    """Where create is exclusive, one claimant gets True, and it is the one whose bytes are there."""
    stores = [place.open() for _ in range(4)]
    assert all(store.honours_create for store in stores)
    barrier = threading.Barrier(32)

    def claim(number):
        barrier.wait()
        return stores[number % 4].create("attempts/00007.json", b"%d" % number)

    with ThreadPoolExecutor(32) as pool:
        won = [number for number, first in enumerate(pool.map(claim, range(32))) if first]
    assert len(won) == 1
    assert stores[0].get("attempts/00007.json") == b"%d" % won[0]


def test_a_store_says_truly_whether_create_is_exclusive(place):
    """rclone's S3 overwrites, and is found out; asking leaves no object behind."""
    store = place.open()
    assert store.honours_create is (place.kind != "rclone")
    assert list(store.list()) == []


def test_the_url_opens_the_same_place(place):
    """`url` is enough to come back, and says no secret."""
    store = place.open()
    store.put("run.json", b"x")
    assert type(place)(place.kind, store.url, place.folder).open().get("run.json") == b"x"

"""What a store holds: the run, attempts and checkpoints; and what is checked before it is believed."""

from __future__ import annotations

import json

import msgspec
import pytest

from outlast._errors import FormatTooNew, NotAStore, ObjectDamaged, ObjectMissing, StoreUnavailable
from outlast._types import FORMAT_VERSION
from outlast.checkpoint import catalog
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import (
    AttemptRecord,
    Commit,
    Manifest,
    ProcessId,
    RunRecord,
    attempt_key,
    digest,
    seal,
    unseal,
)
from outlast.checkpoint.writer import write_rank
from outlast.store.local import LocalStore
from saving import RUN_ID, UTC, MemoryStore, flat, header, id_of, lay_out, save, state_of

PROCESS = ProcessId(host="here", machine="boot/1", pid=1, start_ticks=1)


def attempt(number=1, run_id=RUN_ID):
    return AttemptRecord(
        format=1,
        run_id=run_id,
        attempt=number,
        nonce="aaaa",
        claimed_utc=UTC,
        world_size=1,
        global_batch=None,
        launch_id="l",
        job_id=None,
        agent=PROCESS,
        trainer=PROCESS,
        settings={},
        resumed_from=None,
    )


def damage(store, key):
    data = bytearray(store.objects[key])
    data[len(data) // 2] ^= 1
    store.objects[key] = bytes(data)


class TestRun:
    """`run.json`, and what stands in for it."""

    def test_an_empty_store_holds_no_run(self):
        """Nothing there, or only what file browsers and the probe leave: a fresh start."""
        store = MemoryStore()
        assert catalog.read_run(store) is None
        store.objects |= {".DS_Store": b"x", "probe/x-1": b"", "lost+found/a": b""}
        assert catalog.read_run(store) is None

    def test_the_first_of_two_starters_wins(self):
        """Both get the record of the one whose object stands."""
        store = MemoryStore()
        first = catalog.create_run(store, "a" * 16, UTC)
        assert catalog.create_run(store, "b" * 16, UTC) == first == catalog.read_run(store)
        assert first.run_id == "a" * 16

    def test_a_record_that_another_start_puts_meanwhile_is_read(self):
        """It was missing when asked for, and stands among the objects that are looked at next: no folder of somebody else's."""

        class Late(MemoryStore):
            def list(self, prefix=""):
                catalog.create_run(self, RUN_ID, UTC)
                return super().list(prefix)

        assert catalog.read_run(Late()).run_id == RUN_ID

    def test_a_folder_with_a_link_in_it_is_not_a_run(self, tmp_path):
        """A system's folder, a home: nothing there will become a run by trying again, and the link is named."""
        (tmp_path / "alternatives").mkdir()
        (tmp_path / "alternatives" / "awk").symlink_to("/usr/bin/mawk")
        store = LocalStore(tmp_path)
        with pytest.raises(NotAStore, match=f"holds no run.json, and {tmp_path}/alternatives/awk: .*link"):
            catalog.read_run(store)
        catalog.create_run(store, RUN_ID, UTC)
        assert catalog.read_run(store).run_id == RUN_ID

    def test_foreign_objects_are_not_a_run(self):
        """A folder with other things is refused, and named; so is a folder of runs."""
        for key in ("pytorch_model.bin", "gpt-small/run.json"):
            store = MemoryStore()
            store.objects[key] = b"x"
            with pytest.raises(NotAStore, match=key):
                catalog.read_run(store)
            assert store.objects == {key: b"x"}

    @pytest.mark.parametrize("how", ["damaged", "missing"])
    def test_a_run_without_a_good_record_is_told_from_its_commits(self, how):
        """A lost `run.json` never leads to a fresh start beside existing checkpoints, and is not rewritten."""
        store = MemoryStore()
        catalog.create_run(store, RUN_ID, UTC)
        save(store, id_of(5), {"a": b"x"})
        save(store, id_of(9), {"a": b"y"})
        damage(store, id_of(9).commit_key)
        if how == "damaged":
            damage(store, "run.json")
        else:
            del store.objects["run.json"]
        before = dict(store.objects)
        assert catalog.read_run(store).run_id == RUN_ID
        assert store.objects == before

    @pytest.mark.parametrize("how", ["damaged", "missing"])
    def test_commits_that_name_no_run_are_an_error(self, how):
        """Where neither run.json nor any commit can be read, that is said: never a fresh start."""
        store = MemoryStore()
        catalog.create_run(store, RUN_ID, UTC)
        save(store, id_of(5), {"a": b"x"})
        damage(store, id_of(5).commit_key)
        if how == "damaged":
            damage(store, "run.json")
        else:
            del store.objects["run.json"]
        with pytest.raises(ObjectDamaged, match=r"run\.json"):
            catalog.read_run(store)

    def test_a_damaged_record_alone_is_an_error(self):
        """A damaged run.json with nothing beside it is named, with what to do; an attempt beside it names the run."""
        store = MemoryStore()
        catalog.create_run(store, RUN_ID, UTC)
        damage(store, "run.json")
        with pytest.raises(ObjectDamaged, match=r"delete run\.json"):
            catalog.read_run(store)
        store.objects[attempt_key(1)] = seal(attempt())
        assert catalog.read_run(store).run_id == RUN_ID

    def test_a_newer_format_is_refused(self):
        """A run of a newer format says so, whatever else is in its record."""
        store = MemoryStore()
        store.objects["run.json"] = seal(RunRecord(format=FORMAT_VERSION + 1, run_id=RUN_ID, created_utc=UTC))
        with pytest.raises(FormatTooNew, match=f"version {FORMAT_VERSION + 1}"):
            catalog.read_run(store)

    def test_a_store_out_of_reach_is_not_empty(self):
        """An error of the store comes through: it is never taken for an empty place."""

        def away(operation, key):
            raise StoreUnavailable(key)

        with pytest.raises(StoreUnavailable):
            catalog.read_run(MemoryStore(away))


class TestAttempts:
    """Claims."""

    def test_a_torn_claim_still_counts(self):
        """The number of a claim that cannot be read is taken; its record is None."""
        store = MemoryStore()
        for number in (1, 2, 3, 100000):
            store.objects[attempt_key(number)] = seal(attempt(number))
        store.objects["attempts/note.txt"] = b""
        damage(store, attempt_key(3))
        store.objects[attempt_key(2)] = store.objects[attempt_key(1)]
        assert catalog.attempts(store) == [1, 2, 3, 100000]
        assert catalog.read_attempt(store, 1).attempt == 1
        assert catalog.read_attempt(store, 2) is None
        assert catalog.read_attempt(store, 3) is None
        with pytest.raises(ObjectMissing):
            catalog.read_attempt(store, 4)


def test_checkpoints_are_listed_newest_first():
    """Newest is the highest (attempt, step, repeat), by number and not by text; what is not ours is passed over."""
    store = MemoryStore()
    ids = [
        id_of(5),
        id_of(5, repeat=1),
        id_of(5, repeat=10),
        id_of(10**13),
        id_of(1, attempt=2),
        id_of(0, attempt=10**5),
    ]
    for id in reversed(ids):
        store.objects[id.commit_key] = b""
    begun = id_of(6)
    store.objects[begun.manifest_key(0)] = b""
    store.objects["checkpoints/notes/commit.json"] = b""
    store.objects["checkpoints/00001-aaaa-000000000005+0/commit.json"] = b""
    store.objects["checkpoints/00001-aaaa-000000000007/old/commit.json"] = b""
    assert catalog.committed(store) == ids[::-1]
    assert catalog.uncommitted(store) == [begun]


class TestAdopt:
    """A full set without a commit is committed by the next attempt."""

    @staticmethod
    def begin(store, id, rank=0, world_size=1, **changes):
        boxes, arena = lay_out([flat(f"r{rank}", b"x" * 100)])
        changed = header(id, rank=rank, world_size=world_size, **changes)
        write_rank(store, changed, boxes, arena, saved_utc=UTC)

    def test_the_newest_full_set_of_each_attempt(self):
        """What is newest and full is committed; what is not full is left, and older sets are not needed."""
        store = MemoryStore()
        for step in (1, 2, 3):
            self.begin(store, id_of(step))
        self.begin(store, id_of(4), rank=0, world_size=2)
        self.begin(store, id_of(9, attempt=2, nonce="bbbb", repeat=1), rank=0, world_size=2)
        self.begin(store, id_of(9, attempt=2, nonce="bbbb", repeat=1), rank=1, world_size=2)
        expected = [id_of(9, attempt=2, nonce="bbbb", repeat=1), id_of(3)]
        assert catalog.adopt(store, RUN_ID) == catalog.Adopted(expected, [])
        assert catalog.committed(store) == expected
        assert catalog.adopt(store, RUN_ID).committed == []

    def test_what_a_commit_supersedes_is_left(self):
        """A set that is older than its attempt's newest commit is not looked at."""
        store = MemoryStore()
        self.begin(store, id_of(1))
        save(store, id_of(2), {"a": b"x"})
        assert catalog.adopt(store, RUN_ID).committed == []

    def test_a_damaged_set_is_said_and_the_next_taken(self):
        """A damaged manifest, and a set of another run, are reported; an older full set takes their place."""
        store = MemoryStore()
        self.begin(store, id_of(1))
        self.begin(store, id_of(2))
        self.begin(store, id_of(3), run_id="f" * 16)
        damage(store, id_of(2).manifest_key(0))
        adopted = catalog.adopt(store, RUN_ID)
        assert adopted.committed == [id_of(1)]
        assert [fault.split()[0] for fault in adopted.faults] == [id_of(3).name, id_of(2).name]


class TestLoad:
    """Records are checked against each other before they are believed."""

    @pytest.fixture
    def store(self):
        store = MemoryStore()
        save(store, id_of(5), state_of(5, {"a": 100}))
        return store

    def test_the_commit_decides(self, store):
        """Without a commit there is no checkpoint."""
        assert catalog.load(store, id_of(5)).commit.step == 5
        del store.objects[id_of(5).commit_key]
        with pytest.raises(ObjectMissing):
            catalog.load(store, id_of(5))

    @pytest.mark.parametrize("key", [id_of(5).commit_key, id_of(5).manifest_key(0)])
    def test_read_twice_before_it_is_called_damaged(self, store, key):
        """A record that is wrong once is read again; wrong twice, it is damaged."""
        good = store.objects[key]
        damage(store, key)
        with pytest.raises(ObjectDamaged, match=key):
            catalog.load(store, id_of(5))
        reads = []

        def heal(operation, at):
            reads.append(at)
            if reads.count(key) == 2:
                store.objects[key] = good

        store._before = heal
        assert catalog.load(store, id_of(5)).commit.step == 5

    def test_a_manifest_that_the_commit_does_not_name(self, store):
        """A manifest that is whole, but not the one that was committed, is damage."""
        key = id_of(5).manifest_key(0)
        manifest = unseal(store.objects[key], Manifest, key)
        store.objects[key] = seal(msgspec.structs.replace(manifest, position={"epoch": 7}))
        with pytest.raises(ObjectDamaged, match="the commit names digest"):
            catalog.load(store, id_of(5))

    @pytest.mark.parametrize(
        "change",
        [
            {"step": 6},
            {"nonce": "bbbb"},
            {"repeat": 1},
            {"world_size": 2},
            {"world_size": 0, "manifests": {}},
        ],
    )
    def test_a_commit_that_says_something_else(self, store, change):
        """A commit that lies under the key of another checkpoint, or names another set, is damage."""
        key = id_of(5).commit_key
        store.objects[key] = seal(msgspec.structs.replace(unseal(store.objects[key], Commit, key), **change))
        with pytest.raises(ObjectDamaged, match="must say"):
            catalog.load(store, id_of(5))

    @pytest.mark.parametrize("change", [{"rank": 1}, {"world_size": 2}, {"run_id": "f" * 16}, {"attempt": 3}])
    def test_a_manifest_that_says_something_else(self, store, change):
        """A manifest with the right digest and the wrong identity is damage."""
        forge(store, **change)
        with pytest.raises(ObjectDamaged, match="it says"):
            catalog.load(store, id_of(5))

    def test_newer_formats(self, store):
        """A newer format version of a manifest, or another digest, is said as such: not as damage."""
        forge(store, format=FORMAT_VERSION + 1)
        with pytest.raises(FormatTooNew):
            catalog.load(store, id_of(5))
        with pytest.raises(FormatTooNew):
            catalog.verify(store, id_of(5))
        forge(store, format=FORMAT_VERSION, digest_algorithm="blake3")
        with pytest.raises(FormatTooNew, match="blake3"):
            catalog.load(store, id_of(5))

    def test_not_json_with_a_right_digest(self, store):
        """A record that is no JSON object, or of wrong types, is damage whatever its digest."""
        for body in (
            b"[1",
            b'{"format":1,"run_id":3',
            b'{"format":"x"',
            b'{"a":' + b"[" * 10**5,
            b'{"format":1,"a":"\xff"',
        ):
            data = body + f',"digest":"xxh3-128:{digest(body)}"}}'.encode()
            with pytest.raises(ObjectDamaged):
                unseal(data, RunRecord, "run.json")


def forge(store, id=id_of(5), edit=None, **change):
    """Change a manifest, and name its new digest in the commit: what only somebody who means it can do."""
    key = id.manifest_key(0)
    raw = json.loads(store.objects[key])
    del raw["digest"]
    raw |= change
    if edit is not None:
        edit(raw["tensors"][0])
    body = json.dumps(raw).encode()[:-1]
    store.objects[key] = body + f',"digest":"xxh3-128:{digest(body)}"}}'.encode()
    head = unseal(store.objects[id.commit_key], Commit, id.commit_key)
    named = {"rank-00000.json": digest(store.objects[key])}
    store.objects[id.commit_key] = seal(msgspec.structs.replace(head, manifests=named))


def edit_chunk(index, value):
    def edit(tensor):
        tensor["slices"][0]["chunks"][0][index] = value

    return edit


def edit_tensor(**change):
    def edit(tensor):
        tensor |= change

    return edit


def edit_slice(**change):
    def edit(tensor):
        tensor["slices"][0] |= change

    return edit


FORGERIES = {
    "leaves the run": edit_chunk(0, "../../etc/passwd"),
    "absolute": edit_chunk(0, "/etc/passwd"),
    "not a segment": edit_chunk(0, "run.json"),
    "dots inside": edit_chunk(0, "segments/00001-aaaa/../../run.json"),
    "newline": edit_chunk(0, "segments/00001-aaaa/000000000005-00000-000.bin\n"),
    "negative start": edit_chunk(1, -1),
    "start overflows": edit_chunk(1, 2**63),
    "empty chunk": edit_chunk(2, 0),
    "negative chunk": edit_chunk(2, -100),
    "huge chunk": edit_chunk(2, 2**62),
    "no digest": edit_chunk(3, ""),
    "unknown dtype": edit_tensor(dtype="object"),
    "other dtype": edit_tensor(dtype="int64"),
    "negative size": edit_tensor(shape=[-100]),
    "size overflows": edit_tensor(shape=[2**62, 2**62]),
    "too many dimensions": edit_tensor(shape=[1] * 40),
    "larger than its slices": edit_tensor(shape=[101]),
    "slice outside": edit_slice(offset=[1]),
    "negative offset": edit_slice(offset=[-1]),
    "slice of other dimensions": edit_slice(offset=[0, 0], shape=[100, 1]),
    "slice too short": edit_slice(shape=[99]),
    "no chunks": edit_slice(chunks=[]),
    "no slices": edit_tensor(slices=[]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_makes_no_sense_is_refused(forgery):
    """Sizes, boxes and keys are checked before anything is allocated or read, even under right digests."""
    store = MemoryStore()
    save(store, id_of(5), state_of(5, {"a": 100}))
    forge(store, edit=FORGERIES[forgery])
    store.log.clear()
    with pytest.raises(ObjectDamaged, match="tensor 'a'"):
        catalog.tensors(catalog.load(store, id_of(5)))
    assert len(catalog.verify(store, id_of(5))) == 1
    assert {operation for operation, _ in store.log} == {"get"}


class TestRanks:
    """What several ranks say together."""

    @staticmethod
    def save(*boxes):
        """Save one rank per (offset, shape, bytes) of a 4x4 uint8 tensor and load it."""
        store = MemoryStore()
        for rank, (offset, shape, data) in enumerate(boxes):
            placed, arena = lay_out([("w", "uint8", (4, 4), offset, shape, data)])
            write_rank(
                store, header(id_of(5), rank=rank, world_size=len(boxes)), placed, arena, saved_utc=UTC
            )
        assert catalog.commit(store, id_of(5), RUN_ID, len(boxes))
        return store, catalog.load(store, id_of(5))

    def test_equal_copies_count_once(self):
        """Ranks that hold the same box with the same bytes agree."""
        _, loaded = self.save(((0, 0), (4, 4), b"x" * 16), ((0, 0), (4, 4), b"x" * 16))
        (record,) = catalog.tensors(loaded)
        assert len(record.slices) == 1

    @pytest.mark.parametrize(
        ("boxes", "what"),
        [
            ([((0, 0), (4, 4), b"x" * 16), ((0, 0), (4, 4), b"y" * 16)], "different bytes"),
            ([((0, 0), (4, 2), b"x" * 8)], "do not cover"),
            ([((0, 0), (4, 2), b"x" * 8), ((0, 1), (4, 3), b"x" * 12)], "twice"),
            ([((0, 0), (2, 4), b"x" * 8), ((1, 0), (2, 4), b"x" * 8)], "overlap"),
            ([((0, 0), (4, 2), b"x" * 8), ((0, 1), (4, 2), b"x" * 8)], "overlap"),
        ],
    )
    def test_contradictions(self, boxes, what):
        """Different bytes for one box, gaps and overlaps are damage."""
        _, loaded = self.save(*boxes)
        with pytest.raises(ObjectDamaged, match=what):
            catalog.tensors(loaded)

    def test_different_shapes(self):
        """Ranks that name one tensor with two shapes contradict each other."""
        _, loaded = self.save(((0, 0), (4, 4), b"x" * 16), ((0, 0), (4, 4), b"x" * 16))
        other = msgspec.structs.replace(loaded.manifests[1].tensors[0], shape=(4, 5))
        second = msgspec.structs.replace(loaded.manifests[1], tensors=(other,))
        with pytest.raises(ObjectDamaged, match="another rank"):
            catalog.tensors(msgspec.structs.replace(loaded, manifests=(loaded.manifests[0], second)))


class TestVerify:
    """Every byte is read."""

    def test_each_fault_is_named(self):
        """All damaged chunks are listed, not only the first; a whole checkpoint has none."""
        store, id = MemoryStore(), id_of(5)
        log = EventLog(store, 1, "aaaa", 0)
        log.add({"kind": "metrics", "utc": UTC, "step": 5})
        part = log.flush()
        save(store, id, state_of(5, {"a": 100, "b": 9000, "c": 3}), events=part)
        assert catalog.verify(store, id) == []
        key = id.segment_key(0, 0)
        data = bytearray(store.objects[key])
        data[5] ^= 1
        data[4096] ^= 1
        store.objects[key] = bytes(data)
        damage(store, part)
        faults = catalog.verify(store, id)
        assert len(faults) == 3
        assert part in faults[0]
        assert "'a'" in faults[1]
        assert "'b'" in faults[2]

    def test_a_checkpoint_that_is_not_there(self):
        """A missing commit is a fault like any other."""
        assert len(catalog.verify(MemoryStore(), id_of(5))) == 1

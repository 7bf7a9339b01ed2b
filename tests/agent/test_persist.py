"""The persister: what is saved first, what is given up, what is written in full, and what is said while a store fails."""

from __future__ import annotations

import json
import os
import re
import threading
import time

import pytest
from persisting import Gate, Saver, attempt_record

from outlast._errors import StoreDenied, StoreFull, StoreUnavailable
from outlast._types import Reason
from outlast.agent import outage, persist
from outlast.agent.bases import FullEvery
from outlast.agent.control import Word
from outlast.checkpoint import writer, writing
from outlast.checkpoint.manifest import parse_checkpoint_name
from outlast.store.base import Unwanted
from saving import MemoryStore, id_of, restore, resume, state_of

SIZES = {"base": 3000, "head": 500}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Chunks of little data, and no waits between tries."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(persist, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(persist, "RETRY_MOST_S", 0.01)


@pytest.fixture
def saver(monkeypatch):
    """Make savers; what is left of them is ended."""
    made = []

    def make(store, record=None, **how):
        made.append(Saver(store, record, **how))
        return made[-1]

    yield make
    for each in made:
        each.close()


def manifest(store, name):
    return json.loads(store.objects[f"checkpoints/{name}/rank-00000.json"])


def eventually(holds):
    """Wait for what another thread is about to do."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


def unavailable(*_args, **_how):
    """A store's reading operation while it is away."""
    raise StoreUnavailable("503 Slow Down")


def test_each_save_refers_to_the_one_before(saver):
    """What a save does not change is written by the first save only, and every checkpoint restores."""
    store = MemoryStore()
    one = saver(store)
    states = {step: state_of(1, SIZES) | {"head": state_of(step, SIZES)["head"]} for step in (1, 2, 3)}
    names = {step: one.save(step, state) for step, state in states.items()}
    assert [manifest(store, names[s])["saves_since_full"] for s in (1, 2, 3)] == [0, 1, 2]
    written = {s: [k for k in store.objects if k.startswith(f"segments/00001-aaaa/{s:012d}")] for s in states}
    assert [len(written[s]) for s in (2, 3)] == [1, 1]
    assert sum(len(store.objects[k]) for k in written[3]) == SIZES["head"]
    assert all(restore(store, id_of(step)) == state for step, state in states.items())
    assert one.committed == list(names.values())


def test_a_resume_refers_to_what_it_resumed_from(saver):
    """The first save of the next attempt writes only what changed since."""
    store = MemoryStore()
    first = saver(store)
    name = first.save(1, state_of(1, SIZES))
    second = saver(store, attempt_record(2, "bbbb", resumed_from=name))
    eventually(lambda: not second.page[Word.WHOLE])
    state = state_of(1, SIZES) | {"head": b"h" * 500}
    second.save(2, state, uncopied=["base"], base=name)
    written = [key for key in store.objects if key.startswith("segments/00002")]
    assert [len(store.objects[key]) for key in written] == [500]
    assert resume(store)[1] == state


def test_a_new_agent_goes_on_where_the_killed_one_was(saver):
    """It knows the attempt's newest checkpoint from the store, and what the trainer left uncopied against it."""
    store, state = MemoryStore(), state_of(1, SIZES)
    name = saver(store).save(1, state)
    second = saver(store)
    state = state | {"head": b"h" * 500}
    second.save(2, state, uncopied=["base"], base=name)
    assert resume(store)[1] == state


def test_a_new_agent_refers_to_nothing_that_another_one_restored(saver):
    """What the killed one found damaged on the store, and took from the trainer, is known to nobody: it is written anew."""
    store, state = MemoryStore(), state_of(1, SIZES)
    name = saver(store).save(1, state)
    second = saver(store, attempt_record(2, "bbbb", resumed_from=name), damaged=None)
    saved = second.answer(second.submit(2, state, uncopied=["base"], base=name))
    assert (saved.checkpoint, saved.retake) == (None, True)
    name = second.save(3, state)
    assert manifest(store, name)["saves_since_full"] == 0


def test_what_a_killed_agent_wrote_is_never_written_over(saver):
    """The one that takes over knows other bases and packs otherwise; a late request of the killed one changes nothing."""
    store, kept = MemoryStore(), {}
    name = saver(store).save(1, state_of(1, SIZES))
    first = saver(store, attempt_record(2, "bbbb", resumed_from=name))
    eventually(lambda: not first.page[Word.WHOLE])
    store._before = lambda operation, key: (
        kept.update(store.objects) if "rank-" in key and operation == "put" else None
    )
    state = state_of(1, SIZES) | {"head": b"h" * 500}
    task = first.take(2, state)
    first.persister.submit(task)
    first.answer(task.snapshot.number)
    store.objects, store._before = dict(kept), None
    ours = {key for key in kept if key.startswith("segments/00002-bbbb/")}
    assert ours
    second = saver(store, attempt_record(2, "bbbb", resumed_from=name), damaged=None)
    second.persister.submit(task)
    assert second.answer(task.snapshot.number).checkpoint == id_of(2, attempt=2, nonce="bbbb").name
    assert kept.items() <= store.objects.items()
    assert resume(store)[1] == state


@pytest.mark.parametrize("base", [None, "00001-aaaa-000000000009", "no name"])
def test_what_was_not_copied_and_cannot_be_found_is_taken_again(saver, base):
    """An agent that cannot tell where the bytes are asks for a whole snapshot, and saves that."""
    store, state = MemoryStore(), state_of(1, SIZES)
    one = saver(store)
    saved = one.answer(one.submit(1, state, uncopied=["base"], base=base))
    assert (saved.checkpoint, saved.retake) == (None, True)
    assert one.page[Word.WHOLE] == 1
    one.save(1, state)
    assert one.page[Word.WHOLE] == 0
    assert resume(store)[1] == state


def test_every_so_many_saves_one_is_written_in_full(saver):
    """The control page says when one is due; it stays due as long as snapshots leave something out."""
    store, state = MemoryStore(), state_of(1, SIZES)
    one = saver(store, full=FullEvery(saves=3))
    since, due = [], []
    for step in range(1, 8):
        name = one.save(step, state)
        since.append(manifest(store, name)["saves_since_full"])
        due.append(one.page[Word.WHOLE])
    assert since == [0, 1, 2, 0, 1, 2, 0]
    assert due == [0, 0, 1, 0, 0, 1, 0]
    one.save(8, state)
    one.save(9, state)
    name = one.save(10, state, uncopied=["base"], base=id_of(9).name)
    assert manifest(store, name)["saves_since_full"] == 3
    assert one.page[Word.WHOLE] == 1
    name = one.save(11, state)
    assert manifest(store, name)["saves_since_full"] == 0


def test_an_emergency_save_is_not_the_one_that_is_written_in_full(saver):
    """It has a deadline: the next one is."""
    store, state = MemoryStore(), state_of(1, SIZES)
    one = saver(store, full=FullEvery(saves=1))
    one.save(1, state)
    assert one.page[Word.WHOLE] == 1
    name = one.save(2, state, reason=Reason.EMERGENCY)
    assert manifest(store, name)["saves_since_full"] == 1
    assert one.page[Word.WHOLE] == 1
    assert manifest(store, one.save(3, state))["saves_since_full"] == 0


def test_a_save_in_full_is_due_after_a_time_too(saver):
    """Counted in seconds since the last one; the attempt after counts on from there."""
    store, state = MemoryStore(), state_of(1, SIZES)
    one = saver(store, full=FullEvery(seconds=0.0))
    assert [manifest(store, one.save(step, state))["saves_since_full"] for step in (1, 2)] == [0, 0]
    name = one.save(3, state)
    utc = manifest(store, name)["full_utc"]
    two = saver(store, attempt_record(2, "bbbb", resumed_from=name))
    later = manifest(store, two.save(4, state))
    assert (later["saves_since_full"], later["full_utc"]) == (1, utc)


def test_a_snapshot_that_is_not_the_live_state_is_taken_again(saver):
    """The answer asks for it, the warning names the tensor, and nothing is committed."""
    store, live = MemoryStore(), state_of(1, SIZES)
    one = saver(store)
    task = one.take(1, live, verify=SIZES)
    task.arena.view[task.snapshot.tensors[1].at] ^= 1
    one.persister.submit(task)
    saved = one.answer(task.snapshot.number)
    assert (saved.checkpoint, saved.retake) == (None, True)
    assert "'head'" in one.said[-1]
    assert resume(store) is None
    one.save(1, live, verify=SIZES)
    assert resume(store)[1] == live


def test_a_damaged_manifest_under_its_own_id_is_not_waited_for(saver):
    """No wait would mend it; taken again, the snapshot gets another id."""
    store, state = MemoryStore(), state_of(1, SIZES)
    store.objects[id_of(1).manifest_key(0)] = b"{}"
    one = saver(store)
    saved = one.answer(one.submit(1, state))
    assert (saved.checkpoint, saved.retake) == (None, True)
    assert one.save(1, state) == id_of(1, repeat=1).name
    assert resume(store)[1] == state


@pytest.mark.parametrize("reason", [Reason.USER, Reason.FINAL, Reason.EMERGENCY])
def test_an_interval_save_is_given_up_for_one_that_somebody_waits_for(saver, reason):
    """What is being written makes way between two segments; nothing half is committed, and its arena is free."""
    gate = Gate()
    store = MemoryStore(gate)
    one = saver(store)
    gate.close()
    slow = one.submit(1, state_of(1, {"base": 20_000}))
    assert gate.reached.wait(30)
    urgent = one.submit(2, state_of(2, SIZES), reason=reason)
    gate.open()
    assert one.answer(slow).checkpoint is None
    assert one.answer(urgent).checkpoint == id_of(2).name
    assert list(one.committed) == [id_of(2).name]
    assert (
        sum(key.startswith("segments/00001-aaaa/000000000001-") for key in store.objects)
        <= writing.WRITE_THREADS
    )
    assert resume(store)[1] == state_of(2, SIZES)


def test_what_is_on_its_way_of_an_interval_save_is_cut_off_for_an_emergency(saver):
    """A slow line has a quarter of a gigabyte on its way: nobody waits until it has arrived."""

    class SlowLine(MemoryStore):
        reached = threading.Event()

        def write(self, key, parts, *, is_wanted=None):
            if is_wanted is None:
                super().write(key, parts)
                return
            self.reached.set()
            while is_wanted():
                time.sleep(0.01)
            raise Unwanted

    store = SlowLine()
    one = saver(store)
    slow = one.submit(1, state_of(1, {"base": 20_000}))
    assert store.reached.wait(30)
    urgent = one.submit(2, state_of(2, SIZES), reason=Reason.EMERGENCY)
    assert one.answer(slow).checkpoint is None
    assert one.answer(urgent).checkpoint == id_of(2).name
    assert [key for key in store.objects if key.startswith("segments/00001-aaaa/000000000001-")] == []


@pytest.mark.parametrize("usual", [[(0.2, 4000)], []], ids=["slow saves before", "none before"])
def test_what_is_on_its_way_is_not_cut_off_where_the_newer_one_is_not_known_to_fit(saver, usual):
    """All segments of a small state are on their way at once, and none has arrived yet: that is no rate of 0."""

    class SlowLine(MemoryStore):
        reached = threading.Event()
        cut = 0

        def write(self, key, parts, *, is_wanted=None):
            self.reached.set()
            for _ in range(50 if is_wanted is not None else 0):
                if not is_wanted():
                    self.cut += 1
                    raise Unwanted
                time.sleep(0.01)
            super().write(key, parts)

    store = SlowLine()
    one = saver(store)
    one.persister.precede(usual)
    one.page[Word.DEADLINE_NS] = time.monotonic_ns() + 3_000_000_000
    first = one.submit(1, state_of(1, {"base": 7000}))
    assert store.reached.wait(30)
    urgent = one.submit(2, state_of(2, {"base": 700_000}), reason=Reason.EMERGENCY)
    assert one.answer(first).checkpoint == id_of(1).name
    assert store.cut == 0
    assert one.answer(urgent).checkpoint == id_of(2).name


def test_once_it_is_given_up_all_of_its_threads_hear_the_same(saver):
    """Else one cut it off, and the others carried theirs to the end for nothing."""
    gate = Gate()
    one = saver(MemoryStore(gate))
    gate.close()
    slow = one.take(1, state_of(1, {"base": 20_000}))
    one.persister.submit(slow)
    assert gate.reached.wait(30)
    pace = one.persister._pace(slow)
    assert pace.is_wanted is not None
    assert pace.is_wanted()
    urgent = one.submit(2, state_of(2, SIZES), reason=Reason.EMERGENCY)
    assert not pace.is_wanted()
    one.page[Word.DEADLINE_NS] = time.monotonic_ns() + 1  # and now the newer one does not fit any more
    assert not pace.is_wanted()
    gate.open()
    one.answer(slow.snapshot.number)
    one.answer(urgent)


def test_a_save_that_is_begun_again_in_haste_knows_how_far_it_was(saver):
    """Its threads are others once this machine is about to go; what has been written, and in which time, still counts."""
    store, some = MemoryStore(), threading.Event()

    def slow(operation, key):
        if operation == "write":
            time.sleep(0.02)
            if len([k for k in store.objects if k.startswith("segments/")]) >= 3:
                some.set()

    store._before = slow
    one = saver(store)
    first = one.submit(1, state_of(1, {"base": 60_000}))
    assert some.wait(30)
    one.persister.hurry(True)
    assert one.answer(first).checkpoint == id_of(1).name
    done_bytes, _ = one.persister._meter.so_far()
    assert done_bytes >= 60_000


def test_an_emergency_save_is_not_given_up_for_one_of_the_same_step(saver):
    """At the end of an epoch several follow each other, the same but for the tail."""
    gate = Gate()
    store = MemoryStore(gate)
    one = saver(store)
    gate.close()
    one.page[Word.DEADLINE_NS] = time.monotonic_ns() + 60_000_000_000
    first = one.submit(20, state_of(1, {"base": 20_000}), reason=Reason.EMERGENCY)
    assert gate.reached.wait(30)
    second = one.submit(20, state_of(2, SIZES), reason=Reason.EMERGENCY)
    gate.open()
    assert one.answer(first).checkpoint == id_of(20).name
    assert one.answer(second).checkpoint == id_of(20, repeat=1).name


def test_an_interval_save_is_finished_before_the_next_one(saver):
    """It may be all that is complete: an interval save waits for another."""
    gate = Gate()
    one = saver(MemoryStore(gate))
    gate.close()
    first = one.submit(1, state_of(1, {"base": 20_000}))
    assert gate.reached.wait(30)
    second = one.submit(2, state_of(2, SIZES))
    third = one.submit(3, state_of(3, SIZES))
    gate.open()
    assert one.answer(first).checkpoint == id_of(1).name
    assert one.answer(second).checkpoint is None
    assert one.answer(third).checkpoint == id_of(3).name


def test_the_older_save_is_finished_where_the_machine_goes_before_the_newer_could_be(saver):
    """With a deadline that the newer one cannot meet, what is under way is all that can still become durable."""
    store, wrote = MemoryStore(), threading.Event()

    def slow(operation, key):
        if operation == "write" and "000000000001-" in key:
            time.sleep(0.05)  # a rate of 80 KB/s
            if len([k for k in store.objects if k.startswith("segments/")]) >= 2:
                wrote.set()

    store._before = slow
    one = saver(store)
    first = one.submit(1, state_of(1, {"base": 30_000}))
    assert wrote.wait(30)
    one.page[Word.DEADLINE_NS] = time.monotonic_ns() + 1_000_000_000
    urgent = one.submit(2, state_of(2, {"base": 10_000_000}), reason=Reason.EMERGENCY)
    assert one.answer(first).checkpoint == id_of(1).name
    assert one.answer(urgent).checkpoint == id_of(2).name


def test_a_save_that_has_only_begun_is_given_up_where_those_before_were_fast_enough_for_the_newer(saver):
    """How slowly it began does not tell: the newer state fits by what saves have taken so far, and goes first."""
    store, begun = MemoryStore(), threading.Event()

    def slow(operation, key):
        if operation == "write" and "000000000001-" in key:
            time.sleep(0.05)  # a rate of 80 KB/s
            if len([k for k in store.objects if k.startswith("segments/")]) >= 2:
                begun.set()

    store._before = slow
    one = saver(store)
    one.persister.precede([(100.0, 200_000_000)])
    one.page[Word.DEADLINE_NS] = time.monotonic_ns() + 3_000_000_000
    first = one.submit(1, state_of(1, {"base": 200_000}))
    assert begun.wait(30)
    urgent = one.submit(2, state_of(2, {"base": 2_000_000}), reason=Reason.EMERGENCY)
    assert one.answer(first).checkpoint is None
    assert one.answer(urgent).checkpoint == id_of(2).name


def test_the_strongest_goes_first(saver):
    """An emergency save does not wait behind one that a user asked for; both become durable."""
    gate = Gate()
    store = MemoryStore(gate)
    one = saver(store)
    gate.close()
    first = one.submit(1, state_of(1, SIZES), reason=Reason.USER)
    assert gate.reached.wait(30)
    user = one.submit(2, state_of(2, SIZES), reason=Reason.USER)
    emergency = one.submit(3, state_of(3, SIZES), reason=Reason.EMERGENCY)
    gate.open()
    assert all(one.answer(number).checkpoint for number in (first, user, emergency))
    assert one.committed == [id_of(step).name for step in (1, 3, 2)]
    assert one.persister.durable.name == one.persister.newest.checkpoint == id_of(3).name


class SlowLine(MemoryStore):
    """One whose writes wait until `go` is set, and then a while for somebody who does not want them any more; none is written twice."""

    def __init__(self):
        super().__init__()
        self.reached, self.go = threading.Event(), threading.Event()
        self.cut = 0

    def write(self, key, parts, *, is_wanted=None):
        self.reached.set()
        assert self.go.wait(30)
        for _ in range(20 if is_wanted is not None else 0):
            if not is_wanted():
                self.cut += 1
                raise Unwanted
            time.sleep(0.01)
        assert key not in self.objects
        super().write(key, parts)


@pytest.mark.parametrize(
    ("deadline_s", "step", "order"),
    [
        (140, 30, (30, 10)),  # one of the two fits: 30 s are left of the older, the newer takes 100
        (400, 30, (10, 30)),  # both do, with a margin
        (90, 30, (10, 30)),  # the newer does not
        (140, 11, (10, 11)),  # a step is not worth what has been written
        (None, 30, (10, 30)),  # nobody says that time is short
    ],
)
def test_a_save_that_was_asked_for_gives_way_to_an_emergency_save_where_one_of_the_two_fits(
    saver, deadline_s, step, order
):
    """It is not forgotten: it is made after that, as long as this process lives."""
    store = SlowLine()
    one = saver(store)
    one.persister.precede([(100.0, 50_000)])
    states = {10: state_of(10, {"base": 15_000}), step: state_of(step, {"base": 50_000})}
    asked = one.submit(10, states[10], reason=Reason.USER)
    assert store.reached.wait(30)
    if deadline_s is not None:
        one.page[Word.DEADLINE_NS] = time.monotonic_ns() + deadline_s * 1_000_000_000
    urgent = one.submit(step, states[step], reason=Reason.EMERGENCY)
    store.go.set()
    assert one.answer(urgent).checkpoint == id_of(step).name
    assert one.answer(asked).checkpoint == id_of(10).name
    assert one.committed == [id_of(each).name for each in order]
    assert bool(store.cut) is (order[0] != 10)
    assert all(restore(store, id_of(each)) == state for each, state in states.items())


def test_a_save_that_waits_to_be_tried_again_lets_an_emergency_save_go_first(saver, monkeypatch):
    """The store may have come back meanwhile. What was written of the other one stays, and so does what it refers to."""
    monkeypatch.setattr(persist, "RETRY_FIRST_S", 60.0)
    store, gate, used = MemoryStore(), Gate(), []
    one = saver(store)
    base = one.save(1, state_of(1, SIZES))
    state = state_of(1, SIZES) | {"head": b"h" * 500}

    def is_manifest(operation, key):
        return operation == "put" and key.startswith(f"checkpoints/{id_of(10).name}/")

    def away(operation, key):
        if is_manifest(operation, key):
            raise StoreUnavailable("503 Slow Down")

    def back(operation, key):
        if is_manifest(operation, key):
            used.append(one.persister.in_use())
        gate(operation, key)

    store._before = away
    asked = one.submit(10, state, reason=Reason.USER)
    eventually(lambda: one.page[Word.STORE_LOST_NS])
    segments = [key for key in store.objects if "/000000000010-" in key]
    assert len(segments) == 1
    gate.close()
    store._before = back
    urgent = one.submit(30, state_of(30, SIZES), reason=Reason.EMERGENCY)
    assert gate.reached.wait(30)
    assert id_of(10) in one.persister.in_use().saves
    last = one.submit(31, state_of(31, SIZES), reason=Reason.EMERGENCY)
    gate.open()
    assert all(one.answer(number).checkpoint for number in (urgent, last, asked))
    assert one.committed == [id_of(step).name for step in (1, 30, 31, 10)]
    assert base in used[0].checkpoints
    assert one.persister.in_use().checkpoints == {id_of(10).name, id_of(31).name}
    assert one.page[Word.STORE_LOST_NS] == 0
    assert [key for key in store.objects if "/000000000010-" in key] == segments
    assert store.log.count(("write", segments[0])) == 1
    assert restore(store, id_of(10)) == state


def test_what_was_put_back_is_given_up_with_the_rest(saver, monkeypatch):
    """And while the store stays away the emergency save keeps trying, the other behind it."""
    monkeypatch.setattr(persist, "RETRY_URGENT_MOST_S", 0.01)
    gate = Gate()
    one = saver(MemoryStore(gate))
    gate.failing = StoreUnavailable("503 Slow Down")
    asked = one.submit(10, state_of(10, SIZES), reason=Reason.USER)
    eventually(lambda: one.page[Word.STORE_LOST_NS])
    urgent = one.submit(30, state_of(30, SIZES), reason=Reason.EMERGENCY)
    eventually(lambda: "step 30" in one.persister._outage._what)
    assert not one.persister.drain(0.05)
    assert not (one.is_answered(asked) or one.is_answered(urgent))
    assert one.persister.stop()


def test_a_snapshot_that_waits_is_given_back_for_a_newer_state(saver):
    """Not begun: dropped and answered. Begun, or asked for by somebody: it stays."""
    gate = Gate()
    one = saver(MemoryStore(gate))
    gate.close()
    begun = one.submit(1, state_of(1, SIZES))
    assert gate.reached.wait(30)
    waits = one.submit(2, state_of(2, SIZES))
    one.persister.give_back(begun)
    one.persister.give_back(waits)
    assert one.answer(waits).checkpoint is None
    assert not one.is_answered(begun)
    user = one.submit(3, state_of(3, SIZES), reason=Reason.USER)
    one.persister.give_back(user)
    gate.open()
    assert one.answer(user).checkpoint == id_of(3).name
    held = one.submit(4, state_of(4, SIZES), hold=True)
    one.persister.give_back(held)
    assert one.answer(held).checkpoint is None


def test_the_threads_of_an_interval_save_give_way_and_those_of_others_do_not(saver):
    """A niceness of 5 and the lowest best-effort I/O level for what can wait; once the trainer is gone nothing does."""
    nice = {}

    def note(operation, key):
        if operation == "write":
            nice[int(re.search(r"/0*(\d+)-\d{5}-", key)[1])] = os.getpriority(
                os.PRIO_PROCESS, threading.get_native_id()
            )

    one = saver(MemoryStore(note))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    one.save(1, state_of(1, SIZES))
    one.save(2, state_of(2, SIZES), reason=Reason.EMERGENCY)
    assert one.persister.drain(30)
    one.save(3, state_of(3, SIZES))
    assert nice == {1: min(own + 5, 19), 2: own, 3: own}


def test_what_must_not_be_deleted(saver):
    """The newest two are bases; while a snapshot is written its own objects and the base it names are in use."""
    gate = Gate()
    store = MemoryStore(gate)
    one = saver(store)
    names = [one.save(step, state_of(step, SIZES)) for step in (1, 2, 3)]
    assert one.persister.in_use().checkpoints == frozenset(names[1:])
    assert one.persister.in_use().saves == frozenset()
    gate.close()
    number = one.submit(4, state_of(4, SIZES), base=names[0])
    assert gate.reached.wait(30)
    assert one.persister.in_use().checkpoints == frozenset(names)
    assert one.persister.in_use().saves == {id_of(4)}
    gate.open()
    one.answer(number)
    assert parse_checkpoint_name(one.persister.newest.checkpoint) == id_of(4)


def test_a_store_that_fails_is_ridden_out(saver, monkeypatch):
    """Since when it fails stands on the page and is said with what is at risk; back again, that is said, and it is durable."""
    monkeypatch.setattr(outage, "SAY_EVERY_S", 0.05)
    gate = Gate()
    store = MemoryStore(gate)
    one = saver(store)
    one.save(3, state_of(3, SIZES))
    before_ns = time.monotonic_ns()
    gate.failing = StoreUnavailable("503 Slow Down")
    number = one.submit(7, state_of(7, SIZES), reason=Reason.FINAL)
    one.page[Word.STEPS] = 9
    eventually(lambda: len(one.said) >= 3)
    assert before_ns < one.page[Word.STORE_LOST_NS] < time.monotonic_ns()
    assert one.persister.last_error == "503 Slow Down"
    for line in one.said[1:3]:
        assert "step 7 is not durable: 503 Slow Down" in line
        assert "the newest checkpoint is of step 3, 6 steps and 0 min of work are at risk" in line
    gate.failing = None
    assert one.answer(number).checkpoint == id_of(7).name
    assert one.page[Word.STORE_LOST_NS] == 0
    assert one.persister.last_error is None
    assert one.said[-1].startswith("the store is back after 0 s")
    one.events.flush()
    kinds = re.findall(
        r'"kind":"([a-z-]+)"', " ".join(d.decode() for k, d in store.objects.items() if "events/" in k)
    )
    assert [kind for kind in kinds if kind != "alive"] == ["save", "store-lost", "save", "store-back"]


def test_an_outage_is_over_once_a_snapshot_is_asked_for_anew(saver):
    """The store has answered, and nothing is left to be tried: training that is held would wait for it for ever."""
    gate = Gate()
    store, state = MemoryStore(gate), state_of(1, SIZES)
    name = saver(store).save(1, state)
    second = saver(store, attempt_record(2, "bbbb", resumed_from=name), damaged=None)
    gate.failing = StoreUnavailable("503 Slow Down")
    store.list, answers = unavailable, store.list
    number = second.submit(2, state, uncopied=["base"], base=name)
    eventually(lambda: second.page[Word.STORE_LOST_NS])
    gate.failing, store.list = None, answers
    assert second.answer(number).retake
    assert second.page[Word.STORE_LOST_NS] == 0
    assert second.persister.last_error is None


@pytest.mark.parametrize(
    "error", [StoreUnavailable("a request that hung"), StoreDenied("ExpiredToken"), StoreFull("507")]
)
def test_whatever_a_store_fails_with_the_newest_state_becomes_durable_when_it_is_back(saver, error):
    """Time-outs, credentials that expire and come back, a full bucket: interval saves skip forward, and one catches up."""
    gate = Gate()
    store = MemoryStore(gate)
    one = saver(store)
    gate.failing = error
    numbers = [one.submit(step, state_of(step, SIZES)) for step in range(1, 6)]
    assert all(one.answer(number).checkpoint is None for number in numbers[:-1])
    eventually(lambda: one.page[Word.STORE_LOST_NS])
    gate.failing = None
    assert one.answer(numbers[-1]).checkpoint == id_of(5).name
    assert resume(store)[1] == state_of(5, SIZES)
    assert one.page[Word.STORE_LOST_NS] == 0


def test_a_full_store_is_pruned_before_the_save_fails(saver):
    """Room is made once before anything is said; where that helps, the save just takes longer."""
    gate, calls = Gate(), []
    store = MemoryStore(gate)

    def make_room():
        calls.append(store.log[-1])
        gate.failing = None
        return True

    one = saver(store, make_room=make_room)
    gate.failing = StoreFull("507")
    one.save(1, state_of(1, SIZES))
    assert len(calls) == 1
    assert one.said == []


def test_a_full_store_where_nothing_may_go_is_said(saver):
    """Room that cannot be made is asked for with every try, and the failure is said."""
    gate, calls = Gate(), []
    one = saver(MemoryStore(gate), make_room=lambda: bool(calls.append(1)))
    gate.failing = StoreFull("507")
    number = one.submit(1, state_of(1, SIZES))
    eventually(lambda: len(calls) >= 3)
    assert "step 1 is not durable: 507" in one.said[0]
    gate.failing = None
    assert one.answer(number).checkpoint

"""A prune deletes what nothing needs, and nothing else: by reason, by order, by who asks, and by how full a disk is."""

from __future__ import annotations

import pytest
from pruning import CountingStore, Saver, commits, read_from, stored

from outlast._errors import StoreFull
from outlast._types import Best, Keep, Reason
from outlast.checkpoint import catalog, pins, writer
from outlast.checkpoint.holdings import Flight, owner_of
from outlast.checkpoint.manifest import BestValue
from outlast.checkpoint.prune import TRASH_S, Whose
from saving import RUN_ID, UTC, flat, header, id_of, lay_out, save, state_of

SIZES = {"weight": 61_440, "bias": 4_096}
STATE = sum(SIZES.values())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 8 << 10)
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 32 << 10)


@pytest.fixture
def store():
    return CountingStore()


def names(*steps, attempt=1, nonce="aaaa"):
    return [id_of(step, attempt=attempt, nonce=nonce).name for step in steps]


def check_whole(store, states):
    for name in commits(store.objects):
        assert read_from(store.objects, name) == states[name]


def test_a_thousand_saves_never_hold_more_than_what_is_kept_and_two(store):
    """With everything changing, at every single operation: the kept ones, one that waits, one being written; and the pin."""
    worst = 0

    def look():
        nonlocal worst
        worst = max(worst, stored(store.objects))

    store.after = look
    saver = Saver(store, Keep(last=3))
    for step in range(1, 1001):
        saver.save(step, state_of(step, SIZES), pinned=step == 10)
        saver.prune()
    assert commits(store.objects) == names(10, 998, 999, 1000)
    assert worst == (3 + 2) * STATE + STATE
    assert len(store.objects) < 60
    assert len(saver.pruner._unneeded) <= 6
    assert len(saver.pruner.holdings._read) <= 6


def test_unchanged_bytes_stay_while_anything_refers_to_them(store):
    """A frozen tensor is written once and outlives every checkpoint that wrote it."""
    frozen = state_of(0, {"frozen": 50_000})
    saver, states = Saver(store), {}
    for step in range(1, 30):
        state = frozen | state_of(step, {"head": 9_000})
        states[saver.save(step, state).name] = state
        saver.prune()
        check_whole(store, states)
    assert commits(store.objects) == names(27, 28, 29)
    assert stored(store.objects) <= 50_000 + 5 * 9_000


def test_segments_wait_for_one_more_checkpoint_or_15_minutes(store):
    """The commit goes at once. Its bytes go with the next checkpoint; or, when none comes, after the time."""
    saver = Saver(store, Keep(last=1))
    for step in (1, 2, 3):
        saver.save(step, state_of(step, SIZES))
    saver.prune()
    assert commits(store.objects) == names(2, 3)
    assert stored(store.objects) == 3 * STATE
    saver.prune()
    assert stored(store.objects) == 3 * STATE
    saver.save(4, state_of(4, SIZES))
    saver.prune()
    assert stored(store.objects) == 3 * STATE
    assert {owner_of(key).step for key in store.objects if key.startswith("segments/")} == {2, 3, 4}
    saver.now_s = TRASH_S - 1
    assert saver.pruner.next_s(saver.now_s) == 1.0
    saver.prune()
    assert stored(store.objects) == 3 * STATE
    saver.now_s = TRASH_S
    saver.prune()
    assert stored(store.objects) == 2 * STATE
    assert saver.pruner.next_s(saver.now_s) is None


def test_commits_go_before_manifests_and_those_before_segments(store):
    """The order in which objects go."""
    saver = Saver(store, Keep(last=1))
    for step in (1, 2, 3, 4):
        saver.save(step, state_of(step, SIZES))
    saver.prune(at_once=True)
    deleted = [key for operation, key in store.log if operation == "delete"]
    kinds = [key.split("/")[0] + "/" + key.split("/")[-1][:4] for key in deleted]
    assert kinds[:4] == ["checkpoints/comm", "checkpoints/rank"] * 2
    assert len(kinds) > 6
    assert {kind[:8] for kind in kinds[4:]} == {"segments"}


def test_a_save_in_flight_loses_nothing(store):
    """Neither its segments, which nothing names yet, nor the old checkpoint that it refers to."""
    saver = Saver(store, Keep(last=1))
    for step in range(1, 6):
        saver.save(step, state_of(step, SIZES))
    under_way = id_of(6)
    store.write(under_way.segment_key(0, 0), [memoryview(b"x" * 100)])
    flight = Flight(frozenset(names(1)), frozenset({under_way}))
    saver.prune(in_flight=lambda: flight, at_once=True)
    assert commits(store.objects) == names(1, 4, 5)
    assert under_way.segment_key(0, 0) in store.objects
    saver.prune(at_once=True)
    assert commits(store.objects) == names(4, 5)
    assert under_way.segment_key(0, 0) not in store.objects


def test_a_base_that_was_read_before_its_commit_went_keeps_its_bytes(store):
    """A save that found its base whole, just before that was deleted, may refer to it for as long as it takes."""
    saver = Saver(store, Keep(last=1))
    for step in range(1, 4):
        saver.save(step, state_of(step, SIZES))
    saver.prune()
    assert commits(store.objects) == names(2, 3)
    late = Flight(frozenset(names(1)), frozenset({id_of(9)}))
    saver.now_s = 10 * TRASH_S
    for _ in range(3):
        saver.prune(in_flight=lambda: late)
        assert stored(store.objects) == 3 * STATE
    saver.prune()
    saver.now_s += TRASH_S
    saver.prune()
    assert stored(store.objects) == 2 * STATE


def test_what_cut_saves_left_goes_once_this_attempt_has_saved(store):
    """Segments without a manifest of an attempt that is gone; a start alone deletes nothing."""
    first = Saver(store)
    for step in (1, 2):
        first.save(step, state_of(step, SIZES))
    rubbish = id_of(3).segment_key(0, 0)
    store.write(rubbish, [memoryview(b"x" * 100)])
    before = dict(store.objects)
    second = Saver(store, attempt=2, nonce="bbbb", resumed=id_of(2))
    second.prune()
    assert store.objects == before
    second.save(3, state_of(3, SIZES))
    second.prune()
    assert rubbish not in store.objects
    assert commits(store.objects) == [*names(1, 2), *names(3, attempt=2, nonce="bbbb")]


def test_a_full_set_without_a_commit_is_whole_for_as_long_as_it_is_there(store):
    """Its writer was killed before the commit. A later start may commit it, until two known ones are newer: then it goes."""
    first = Saver(store, Keep(last=1))
    for step in (1, 2, 3):
        first.save(step, state_of(step, SIZES))
    del store.objects[id_of(3).commit_key]
    second = Saver(store, Keep(last=1), attempt=2, nonce="bbbb", resumed=id_of(2))
    second.save(4, state_of(4, SIZES))
    second.prune(at_once=True)
    left = store.copy()
    assert catalog.adopt(left, RUN_ID).committed == [id_of(3)]
    assert read_from(left.objects, names(3)[0]) == state_of(3, SIZES)
    for step in (5, 6, 7):
        second.save(step, state_of(step, SIZES))
        second.prune()
    assert catalog.uncommitted(store) == []
    assert stored(store.objects) == 3 * STATE


def test_nothing_of_an_attempt_that_may_still_write_goes(store):
    """What a superseded attempt on a machine that cannot be seen has begun may yet be committed."""
    first = Saver(store)
    for step in range(1, 7):
        first.save(step, state_of(step, SIZES))
    second = Saver(store, Keep(last=1), attempt=2, nonce="bbbb", resumed=id_of(6), floor=1)
    for step in range(7, 12):
        second.save(step, state_of(step, SIZES))
        second.prune()
    assert commits(store.objects)[:6] == names(1, 2, 3, 4, 5, 6)
    second.floor = 0
    second.prune()
    assert commits(store.objects) == names(10, 11, attempt=2, nonce="bbbb")


def test_what_was_passed_over_as_damaged_stays_and_does_not_count(store):
    """A resume found the newest one damaged: it stays, and the known ones stay beside it."""
    first = Saver(store)
    for step in (1, 2, 3):
        first.save(step, state_of(step, SIZES))
    second = Saver(store, Keep(last=1), attempt=2, nonce="bbbb", resumed=id_of(2))
    whose = Whose(RUN_ID, (2, "bbbb"), second.known, passed_over=frozenset({id_of(3)}))
    for step in range(3, 8):
        second.save(step, state_of(step, SIZES))
        second.pruner.prune(whose, now_s=0.0)
    assert commits(store.objects) == [*names(3), *names(6, 7, attempt=2, nonce="bbbb")]


@pytest.mark.parametrize("lost", ["manifest", "commit"])
def test_a_damaged_checkpoint_keeps_what_it_may_refer_to(store, lost):
    """Its records cannot be read, so that whatever is as old as it may be its own, until it is deleted by hand."""
    saver = Saver(store, Keep(last=1))
    saver.save(1, {"frozen": state_of(0, SIZES)["weight"]})
    saver.save(2, state_of(0, {"weight": 61_440}) | state_of(2, {"bias": 4_096}))
    key = id_of(2).manifest_key(0) if lost == "manifest" else id_of(2).commit_key
    store.objects[key] = store.objects[key][:-20]
    other = Saver(store, Keep(last=1))
    segments = {key for key in store.objects if key.startswith("segments/")}
    for step in range(3, 9):
        other.save(step, state_of(step, SIZES))
        other.prune()
    assert commits(store.objects) == names(2, 7, 8)
    assert segments <= store.objects.keys()
    seen = other.pruner.holdings.look(Flight)
    whose = Whose(RUN_ID, None, known=frozenset({id_of(7), id_of(8)}))
    plan = other.pruner.plan(seen, whose, now_s=0.0, at_once=True, damaged=seen.damaged)
    other.pruner.carry_out(plan, seen, lambda: True)
    assert commits(store.objects) == names(7, 8)
    assert stored(store.objects) == 2 * STATE


class TestPins:
    """Pins that people put, and the prune that they meet."""

    def test_a_pin_keeps_a_checkpoint(self, store):
        """Until it is removed."""
        saver = Saver(store, Keep(last=1))
        for step in range(1, 4):
            saver.save(step, state_of(step, SIZES))
        assert pins.pin(store, RUN_ID, id_of(1), UTC)
        assert pins.pin(store, RUN_ID, id_of(1), "2027" + UTC[4:])
        saver.prune()
        assert commits(store.objects) == names(1, 2, 3)
        assert pins.unpin(store, id_of(1))
        assert not pins.unpin(store, id_of(1))
        saver.prune()
        assert commits(store.objects) == names(2, 3)

    def test_what_is_gone_cannot_be_pinned(self, store):
        """And no pin is left over."""
        save(store, id_of(1), state_of(1, SIZES))
        assert not pins.pin(store, RUN_ID, id_of(9), UTC)
        assert pins.pinned(store) == frozenset()

    @pytest.mark.parametrize("at", range(1, 40))
    def test_a_pin_that_was_confirmed_holds(self, store, at):
        """Put at any operation of a prune: if it was confirmed, the checkpoint is there and whole in the end."""
        saver = Saver(store, Keep(last=1))
        for step in range(1, 4):
            saver.save(step, state_of(step, SIZES))
        done, confirmed = 0, None

        def before(_operation, _key):
            nonlocal done, confirmed
            done += 1
            if done == at:
                confirmed = pins.pin(store, RUN_ID, id_of(1), UTC)

        store._before = before
        saver.prune(at_once=True)
        store._before = None
        saver.prune(at_once=True)
        if confirmed:
            assert read_from(store.objects, names(1)[0]) == state_of(1, SIZES)

    def test_a_pin_whose_commit_was_deleted_by_a_pruner_that_died_brings_it_back(self, store):
        """The manifests are still there: the next round commits them again."""
        saver = Saver(store, Keep(last=1))
        for step in range(1, 4):
            saver.save(step, state_of(step, SIZES))
        assert pins.pin(store, RUN_ID, id_of(1), UTC)
        del store.objects[id_of(1).commit_key]
        saver.prune()
        assert read_from(store.objects, names(1)[0]) == state_of(1, SIZES)


def test_the_best_checkpoint_stays(store):
    """By the metric of `keep_best`, as the manifests have it."""
    saver = Saver(store, Keep(last=1, best=Best("val_loss", "min")))
    for step, loss in enumerate((3.0, 1.0, 2.0, 5.0, 4.0), 1):
        saver.save(step, state_of(step, SIZES), best=BestValue("val_loss", "min", loss))
        saver.prune()
    assert commits(store.objects) == names(2, 4, 5)


def test_a_round_ends_when_it_is_told_to(store):
    """A newer attempt has taken over: not one more delete."""
    saver = Saver(store, Keep(last=1))
    for step in range(1, 8):
        saver.save(step, state_of(step, SIZES))
    answers = iter((True, True, False))
    saver.prune(may_go_on=lambda: next(answers), at_once=True)
    assert commits(store.objects) == names(3, 4, 5, 6, 7)
    assert stored(store.objects) == 7 * STATE


def test_a_full_disk_is_pruned_before_a_save_fails(store):
    """Room for four states: every save finds room once all that may go is gone, also what would have waited."""
    quota = 4 * STATE + STATE // 2

    def before(operation, key):
        if operation == "write" and stored(store.objects) + (32 << 10) > quota:
            msg = f"{key}: no space"
            raise StoreFull(msg)

    store._before = before
    saver, states = Saver(store), {}
    for step in range(1, 40):
        state = state_of(step, SIZES)
        try:
            id = saver.save(step, state)
        except StoreFull:
            assert not saver.prune(at_once=True).is_empty
            id = saver.save(step, state)
        states[id.name] = state
        saver.prune()
        check_whole(store, states)
    assert commits(store.objects) == names(37, 38, 39)


def test_several_ranks(store):
    """Manifests of all ranks go after the commit; their segments are told apart by what any of them names."""

    def save_two(step):
        id = id_of(step)
        for rank in range(2):
            boxes, arena = lay_out([flat(f"w{rank}", state_of(step + rank * 1000, {"w": 20_000})["w"])])
            write = header(id, rank=rank, world_size=2)
            writer.write_rank(store, write, boxes, arena, saved_utc=UTC)
        assert writer.commit(store, id, RUN_ID, 2)

    saver = Saver(store, Keep(last=1))
    for step in range(1, 7):
        save_two(step)
        saver.prune()
    assert commits(store.objects) == names(5, 6)
    assert stored(store.objects) == 3 * 40_000
    assert catalog.verify(store, id_of(5)) == catalog.verify(store, id_of(6)) == []


def test_an_emergency_checkpoint_stays_until_the_next(store):
    """Through the records, not only by policy."""
    saver = Saver(store, Keep(last=1))
    for step in range(1, 9):
        saver.save(
            step, state_of(step, SIZES), reason=Reason.EMERGENCY if step in (2, 4) else Reason.INTERVAL
        )
        saver.prune()
    assert commits(store.objects) == names(4, 7, 8)

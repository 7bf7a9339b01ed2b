"""A start while others start, save or write their last: it resumes from the newest, and takes nobody for gone who is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from field.torchless import Trainer, commits
from launch import eventually
from outlast import RunAlive
from outlast._process import process_id
from outlast._types import Keep
from outlast.agent.claim import Claimant, Waits, claim
from outlast.agent.opening import Opening
from outlast.agent.protocol import PROTOCOL, Accept, Hello, Offer
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import AttemptRecord, RunRecord, attempt_key, seal
from saving import RUN_ID, UTC, MemoryStore, id_of, save

HERE = process_id()
GONE = msgspec.structs.replace(HERE, start_ticks=HERE.start_ticks - 1)
SHORT = Waits(silent_s=0.3, draining_s=0.1, own_draining_s=0.1, poll_s=0.01, settle_s=0.0)


class Wire:
    """To a trainer that takes whatever it is offered; `meanwhile` happens as it looks at each offer."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.offered: list[str | None] = []
        self._meanwhile = meanwhile

    def send(self, message, fds=()) -> None:
        if isinstance(message, Offer):
            self.offered.append(message.checkpoint)
            self._meanwhile()

    def receive(self):
        return Accept(batches=(), slot_bytes=0), []


def opening(store, wire=None, **changes):
    known = {"resume": "auto", "take_over": False} | changes
    hello = Hello(
        protocol=PROTOCOL, trainer=HERE, rank=0, world_size=1, global_batch=None, url=store.url, launch_id="ours",
        job_id=None, interval_s=None, interval_steps=None, settings={}, keep=Keep(), rejoin=None, **known,
    )  # fmt: skip
    return Opening(wire or Wire(), hello, store, say=lambda _: None, waits=SHORT, kept=lambda _: None)


def claimed(store, number, trainer=GONE):
    """An attempt of another launch."""
    store.objects[attempt_key(number)] = seal(AttemptRecord(
        format=1, run_id=RUN_ID, attempt=number, nonce="aaaa", claimed_utc=UTC, world_size=1, global_batch=None,
        launch_id="theirs", job_id=None, agent=trainer, trainer=trainer, settings={}, resumed_from=None,
    ))  # fmt: skip


def begun(*steps, trainer=GONE):
    """A run whose first attempt has saved these steps."""
    store = MemoryStore()
    catalog.create_run(store, RUN_ID, UTC)
    claimed(store, 1, trainer)
    for step in steps:
        save(store, id_of(step), {"x": b"%d" % step})
    return store


def opened(attempt):
    found = attempt.attempt()
    if found is not None:
        found.heartbeat.stop()
    return found


def pruned(store, step):
    for key in [key for key in store.objects if f"{step:012d}" in key]:
        del store.objects[key]


def test_a_take_over_resumes_from_what_was_saved_while_it_looked() -> None:
    """The other one saves on until it is superseded, and deletes old checkpoints: an offer is out of date when it is accepted."""
    store = begun(2, 11, 12, trainer=HERE)

    def go_on():
        for step in (17, 18, 19):
            save(store, id_of(step), {"x": b"%d" % step})
        for step in (11, 12):
            pruned(store, step)

    wire = Wire(go_on)
    found = opened(opening(store, wire, take_over=True))
    assert wire.offered == [id_of(12).name, id_of(19).name]
    assert found.record.resumed_from == id_of(19).name


def test_a_take_over_that_finds_nothing_resumes_from_what_is_saved_before_its_claim() -> None:
    """It would begin at step 0 beside a checkpoint."""
    store = begun(trainer=HERE)
    wire = Wire(lambda: save(store, id_of(5), {"x": b"5"}))
    found = opened(opening(store, wire, take_over=True))
    assert wire.offered == [None, id_of(5).name]
    assert found.record.resumed_from == id_of(5).name


def test_a_take_over_beside_real_saves_resumes_from_the_newest(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """With real agents: five saves between the offer and its acceptance."""
    old = trainer()
    old.save_and_wait(1, b"1" * 1000)
    new = Trainer(f"file://{tmp_path}/run")
    new.link._hello = msgspec.structs.replace(new.link._hello, take_over=True)
    offer = new.link.offer

    def offered_late():
        found = offer()
        for step in range(2, 7):
            old.save_and_wait(step, b"%d" % step * 1000)
        return found

    new.link.offer = offered_late
    try:
        new.join()
        assert (new.offered, new.state) == (6, b"6" * 1000)
    finally:
        new.kill(agent_too=True)


def test_an_attempt_that_was_claimed_and_has_saved_meanwhile_is_asked_before_it_is_superseded() -> None:
    """Its first checkpoint came between the look for attempts and the look for checkpoints."""

    class Busy(MemoryStore):
        def list(self, prefix=""):
            if prefix.startswith("checkpoints") and attempt_key(2) not in self.objects:
                claimed(self, 2, HERE)
                save(self, id_of(9, attempt=2), {"x": b"9"})
            return super().list(prefix)

    store = Busy()
    store.objects = begun(5).objects
    with pytest.raises(RunAlive, match="attempt 2 of .* is alive"):
        opening(store).attempt()


def test_a_lost_record_of_an_attempt_is_no_reason_to_wait_for_it() -> None:
    """Its checkpoints name its number, and what comes counts as newer."""
    store = begun(5)
    save(store, id_of(9, attempt=4), {"x": b"9"})
    assert opened(opening(store)).record.attempt == 5


def test_signs_of_life_begin_at_the_claim(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """A restore that takes longer than others wait for a sign must not make the attempt look gone."""
    first = trainer()
    first.save_and_wait(1, b"1" * 1000)
    first.close()
    second = Trainer(f"file://{tmp_path}/run")
    accept = second.link.accept

    def accept_slowly(batches, ring, slot_bytes, copy):
        def copy_late(filled, lent, answer):
            eventually("a sign of life", lambda: list((tmp_path / "run" / "events").glob("00002-*/*.jsonl")))
            copy(filled, lent, answer)

        return accept(batches, ring, slot_bytes, copy_late)

    second.link.accept = accept_slowly
    second.join()
    assert second.offered == 1
    second.close()


def test_a_name_that_another_start_takes_is_not_resumed_with_never() -> None:
    """The other one has begun, saved and ended before this start looked again: its state is none of ours."""

    class Busy(MemoryStore):
        def create(self, key, data):
            if key == attempt_key(1) and key not in self.objects:
                self.objects.update(begun(5).objects)
            return super().create(key, data)

    assert opening(Busy(), resume="never").attempt() is None


def test_a_claim_that_stands_is_ours_whatever_the_store_answered() -> None:
    """A request whose answer was lost is sent again, and finds its own object there."""

    class Repeating(MemoryStore):
        def create(self, key, data):
            super().create(key, data)
            return super().create(key, data)

    store = Repeating()
    claimant = Claimant(
        run_id=RUN_ID, trainer=HERE, agent=HERE, launch_id="ours", job_id=None, world_size=1, global_batch=None,
        settings={}, take_over=False,
    )  # fmt: skip
    record = claim(store, claimant, after=0, resumed_from=None, waits=SHORT)
    assert record is not None
    assert claim(store, claimant, after=0, resumed_from=None, waits=SHORT) is None


def test_two_that_begin_a_run_agree_on_its_id_where_the_store_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that put its record first reads it back after the other had time to put its own."""

    class Replacing(MemoryStore):
        honours_create = False

        def create(self, key, data):
            self.objects[key] = data
            return True

    store = Replacing()
    other = seal(RunRecord(format=1, run_id="b" * 16, created_utc=UTC))
    monkeypatch.setattr(catalog.time, "sleep", lambda _: store.create("run.json", other))
    assert catalog.create_run(store, "a" * 16, UTC, settle_s=1.0).run_id == "b" * 16


def test_commits_of_a_relaunch_follow_those_of_an_agent_that_still_writes(
    trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The trainer was killed and its launcher (torchrun) starts it again, while the agent makes its last save durable."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    first = trainer()
    first.save_and_wait(3, b"3" * 1000)
    link, agent = first.link, first.link._own_agent
    first.stop_agent()
    first.save(4, b"4" * 1000)
    with link._lock:
        link._leaving = True
        link._told.unsaved.clear()
    first._body.kill()
    first._body.wait()
    link._wire.close()
    said: list[str] = []

    def waits() -> bool:
        said.append(capfd.readouterr().err)
        return "its agent is still finishing" in "".join(said)

    def let_it_finish() -> None:
        eventually("the relaunch waits", waits)
        first.continue_agent()

    finishing = threading.Thread(target=let_it_finish)
    finishing.start()
    second = Trainer(f"file://{tmp_path}/run")
    second.join()
    finishing.join()
    assert agent.wait() == 0
    assert (second.offered, second.state) == (4, b"4" * 1000)
    assert [step for _, step, _ in commits(tmp_path / "run")] == [3, 4]
    second.close()

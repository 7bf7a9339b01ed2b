"""An interval save whose copy goes on under the next step: through the real saver, a real agent and the store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import planted
from field.torchless import read_tensors
from inside import Inside
from late import LateCopier
from outlast._types import Reason
from outlast.agent.protocol import Saved
from outlast.state.steps import StepWatch
from outlast.trainer import overlapping
from outlast.trainer.overlapping import Overlapping
from outlast.trainer.saver import Order


class Overlapped:
    """A run in this process whose copies come late, and only when they are told to."""

    def __init__(self, run: Inside) -> None:
        self.run = run
        self.copier = LateCopier()
        self.overlapping = Overlapping(run.link, run.states, StepWatch(run.states), self.copier)
        run.saver._overlapping = self.overlapping

    def take(self, reason: Reason = Reason.INTERVAL, **order: object) -> int | None:
        """Take a snapshot of the next step, and keep what the state is now."""
        self.safe = self.run.live()
        self.run.step += 1
        return self.run.saver.take(Order(self.run.step, reason, **order))

    def copy(self) -> None:
        """The device comes to it, and so does a safe point."""
        self.copier.copies[-1].copy()
        self.run.saver.settle()

    def answer(self, number: int | None) -> Saved:
        assert number is not None
        return self.run.answer(number)


@pytest.fixture
def overlapped(inside):
    """Make one; whatever is still under way at the end is let go."""
    made = []

    def make(states):
        made.append(Overlapped(inside(states)))
        return made[-1]

    yield make
    for each in made:
        for copies in each.copier.copies:
            copies.copy()
        each.overlapping.finish()


def test_a_step_waits_for_the_copy_and_the_safe_point_is_saved(overlapped):
    """The agent hears of it once it is complete, and training has gone on."""
    plant = planted.foreach_step("cpu")
    run = overlapped(plant.states)
    number = run.take()
    plant.change(None)
    run.run.saver.settle()
    assert run.run.live() != run.safe
    assert run.run.on_store(run.answer(number)) == run.safe


def test_what_changed_meanwhile_is_never_committed_and_taken_again_at_once(overlapped):
    """The next safe point is told, and copies without overlap; the one after that overlaps again."""
    plant = planted.weight_clipping("cpu")
    run = overlapped(plant.states)
    number = run.take()
    plant.change(run.copy)
    run.copy()
    saved = run.answer(number)
    assert saved.retake and saved.checkpoint is None
    assert not list(run.run.root.glob("checkpoints/*/commit.json"))
    run.run.saver.settle()
    redo = run.run.saver.redo
    assert redo is not None and redo.reason is Reason.INTERVAL
    safe = run.run.live()
    again = run.run.saver.take(redo)
    plant.change(run.copy)
    assert len(run.copier.copies) == 1, "it was copied at the safe point"
    assert run.run.on_store(run.answer(again)) == safe
    run.run.saver.settle()
    number = run.take()
    assert len(run.copier.copies) == 2
    run.copy()
    assert run.run.on_store(run.answer(number)) == run.safe


@pytest.mark.parametrize("reason", [Reason.EMERGENCY, Reason.FINAL, Reason.USER])
def test_leaving_and_what_is_asked_for_never_overlaps(overlapped, reason):
    """The state may go with this process."""
    run = overlapped(planted.foreach_step("cpu").states)
    saved = run.answer(run.take(reason))
    assert run.run.on_store(saved) == run.safe and not run.copier.copies


def test_an_emergency_comes_before_the_copy_under_way(overlapped):
    """Which is thrown away uncompared, and never committed after the newer state."""
    plant = planted.foreach_step("cpu")
    run = overlapped(plant.states)
    first = run.take()
    saved = run.answer(run.take(Reason.EMERGENCY))
    assert run.run.on_store(saved) == run.safe
    dropped = run.answer(first)
    assert dropped.checkpoint is None and not dropped.retake
    assert len(list(run.run.root.glob("checkpoints/*/commit.json"))) == 1


def test_the_arena_of_a_copy_under_way_is_taken(overlapped):
    """An interval save that comes too soon is put off; nothing is written where the device writes."""
    run = overlapped(planted.foreach_step("cpu").states)
    number = run.take()
    safe = run.safe
    assert run.take() is None
    assert len(run.run.link._busy()) == 1
    run.copy()
    assert run.run.on_store(run.answer(number)) == safe


def test_the_end_of_a_script_waits_for_the_copy_under_way(overlapped):
    """So that nothing complete is lost to it."""
    run = overlapped(planted.foreach_step("cpu").states)
    number = run.take()
    run.copy()
    run.run.saver.finish()
    assert not run.overlapping.is_under_way
    assert run.run.on_store(run.answer(number)) == run.safe


def test_overlap_and_verification_go_together(inside):
    """Both are asked: the digests of the live state, and the fingerprints."""
    plant = planted.foreach_step("cpu")
    run = Overlapped(inside(plant.states, verify=True))
    number = run.take()
    plant.change(run.copy)
    with torch.no_grad():
        plant.states["model"][0].weight.add_(1.0)
    run.overlapping.finish()
    assert run.run.on_store(run.answer(number)) == run.safe


def test_without_room_for_fingerprints_all_is_copied_at_the_safe_point(overlapped, monkeypatch):
    """What was to be copied late is copied as well."""

    def no_room(_moves, _copier):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(overlapping, "begin", no_room)
    plant = planted.foreach_step("cpu")
    run = overlapped(plant.states)
    number = run.take()
    plant.change(None)
    assert run.run.on_store(run.answer(number)) == run.safe


def test_frozen_weights_that_an_optimizer_holds_are_not_copied_late(overlapped):
    """Their digests are read off the copy."""
    states = planted.foreach_step("cpu").states
    states["model"][0].requires_grad_(False)
    run = overlapped(states)
    number = run.take()
    assert "model/0.weight" not in {move.name for move in run.copier.copies[0].moves}
    run.copy()
    assert run.run.on_store(run.answer(number)) == run.safe


def test_a_script_that_clips_its_weights_under_a_copy_is_never_saved_wrong(lab):
    """Saved at each step, by a whole run: the one snapshot that was hit is taken again, all others are as they were."""
    script = lab.script(path=Path(__file__).with_name("overlapped.py"), OUTLAST_SAVE_EVERY="1 steps")
    assert script.wait() == 0, script.text
    states = {record["step"]: record["digests"] for record in lab.of("step")}
    assert lab.of("step")[-1]["late"] > 1, "others were copied late as well"
    assert script.text.count("taken again without overlap") == 1
    commits = lab.commits()
    assert commits[-1]["step"] == len(states)
    for commit in commits:
        saved = {
            name: hashlib.sha256(data).hexdigest() for name, data in read_tensors(commit["folder"]).items()
        }
        assert states[commit["step"]].items() <= saved.items(), commit["step"]

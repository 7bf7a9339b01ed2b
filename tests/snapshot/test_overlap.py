"""A copy that is made late is what the state was at the safe point, or is thrown away.

Here the copier is as late as a GPU can be: it copies when a step is about to run, or when the test says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn, optim

import planted
from late import LateCopier
from outlast._types import Reason
from outlast.agent.protocol import Snapshot
from outlast.snapshot import stager
from outlast.snapshot.arena import Arena
from outlast.state.capture import capture_states
from outlast.state.steps import StepWatch
from outlast.state.table import TensorTable
from outlast.trainer import overlapping
from outlast.trainer.overlapping import Overlapping
from staging import bits


@dataclass
class Handed:
    """What the agent would be handed."""

    reserved: list[int] = field(default_factory=list)
    submitted: list[int] = field(default_factory=list)
    answers: list = field(default_factory=list)

    def reserve(self, snapshot):
        self.reserved.append(snapshot.number)

    def submit(self, snapshot):
        self.submitted.append(snapshot.number)

    def withdraw(self, saved):
        self.answers.append(saved)


class Script:
    """Takes snapshots of a script's states as a run does."""

    def __init__(self, states, copier=None):
        self.states = states
        self.copier = copier or LateCopier()
        self.handed = Handed()
        self.overlapping = Overlapping(self.handed, states, StepWatch(states), self.copier)
        self.number = 0

    def safe_point(self):
        """Take a snapshot; returns the names of what is copied late."""
        table = TensorTable()
        capture_states(self.states, table)
        planned = stager.layout(table.entries)
        arena = Arena.create(planned.size_bytes)
        self.looks = dict(zip(table.entries, stager.looks(planned, arena), strict=True))
        self.expected = {name: bits(tensor) for name, tensor in table.entries.items()}
        targets = list(self.looks.values())
        late = self.overlapping.suited(table.entries)
        stager.stage(table.entries, planned, targets, but=late)
        self.number += 1
        if late:
            hand_over = self.overlapping.begin(stager.moves(table.entries, planned, targets, late))
            assert hand_over is not None
            hand_over(_snapshot(self.number))
        return late

    def finish(self):
        """The copy is made, if nothing has let it happen before, and compared."""
        for copies in self.copier.copies:
            copies.copy()
        self.overlapping.finish()

    def is_right(self):
        """Whether the arena holds the state of the safe point, bit for bit."""
        return all(bits(look) == self.expected[name] for name, look in self.looks.items())


def _snapshot(number):
    return Snapshot(
        number=number, index=0, step=number, repeat=0, reason=Reason.INTERVAL, pinned=False, finished=False,
        hold=False, tree=None, position=None, settings={}, tensors=(), base=None, best=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", planted.ALL)
def test_a_late_copy_is_right_or_thrown_away(name):
    """Each change that follows a safe point: a step that waits, one that cannot, and what is no step at all."""
    plant = planted.ALL[name]("cpu")
    script = Script(plant.states)
    late = script.safe_point()
    assert bool(late) is (plant.expected != "not overlapped") or name == "forward_alone"
    plant.change(lambda: script.copier.copies[-1].copy())
    script.finish()
    if not late:
        assert script.is_right() and script.handed.reserved == []
    elif plant.expected == "held":
        assert script.is_right()
        assert (script.handed.submitted, script.handed.answers) == ([1], [])
    else:
        assert not script.is_right(), "the change came after the copy: this test shows nothing"
        assert script.handed.submitted == []
        (answer,) = script.handed.answers
        assert answer.retake and answer.checkpoint is None and "outside an optimizer's step" in answer.error


def test_what_is_copied_late_is_large_and_changed_by_steps_alone():
    """Statistics, small tensors, states of other objects and transposed weights are copied at the safe point."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 4))
    model.register_buffer("statistics", torch.zeros(1 << 20))
    turned = nn.Linear(600, 600)
    turned.weight.data = turned.weight.data.t()
    average = nn.Linear(600, 600)  # follows the model: no optimizer owns it
    states = {
        "model": model,
        "turned": turned,
        "average": average,
        "opt": optim.SGD([*model.parameters(), *turned.parameters()], 0.1, momentum=0.9),
    }
    model(torch.randn(2, 600)).sum().backward()
    states["opt"].step()
    script = Script(states)
    late = script.safe_point()
    assert {name for name in late if not name.startswith("opt/")} == {"model/0.weight"}
    assert len(late) == 2, "and its momentum"
    script.finish()
    assert script.is_right()


@pytest.fixture
def dynamo():
    """Compiled code is forgotten afterwards."""
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # what dynamo says of profiler hooks is its own business
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("whole", [True, False], ids=["the step", "a function around it"])
def test_a_compiled_step_is_not_overlapped(whole):
    """It runs without its hooks, or with what they were when it was compiled."""
    states = planted.foreach_step("cpu").states
    script = Script(states)
    step = torch.compile(states["opt"].step if whole else lambda: states["opt"].step(), backend="eager")
    step()
    assert script.safe_point() == frozenset()
    step()
    assert script.is_right()


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.usefixtures("dynamo")
def test_a_step_that_is_compiled_after_the_safe_point_is_never_saved_wrong():
    """The copy was under way when nothing was compiled yet."""
    states = planted.foreach_step("cpu").states
    script = Script(states)
    assert script.safe_point()
    torch.compile(states["opt"].step, backend="eager")()
    script.finish()
    assert script.is_right() == (script.handed.submitted == [1])
    assert script.safe_point() == frozenset()


def test_a_script_that_overlapping_does_not_suit_is_no_longer_overlapped(capfd):
    """Twice in a row thrown away; each is said, and that it ends."""
    plant = planted.weight_clipping("cpu")
    script = Script(plant.states)
    for _ in range(2):
        assert script.safe_point()
        with torch.no_grad():
            plant.states["model"][0].weight += 1.0
        script.finish()
    assert script.safe_point() == frozenset() and script.is_right()
    said = capfd.readouterr().err
    assert said.count("taken again without overlap") == 2
    assert said.count("from here on snapshots are copied at the safe point") == 1
    assert "model/0.weight" in said


def test_one_that_suits_after_all_is_not_held_against_it():
    """In a row: what is handed over in between starts the count again."""
    plant = planted.foreach_step("cpu")
    script = Script(plant.states)
    for changes in (True, False, True, False):
        assert script.safe_point()
        if changes:
            plant.states["model"][0].weight.data.add_(1.0)
        script.finish()
    assert script.handed.submitted == [2, 4]


def test_a_snapshot_that_is_dropped_is_not_handed_over():
    """A notice came: a newer state is copied at once, and this one must not come after it."""
    script = Script(planted.foreach_step("cpu").states)
    script.safe_point()
    assert script.overlapping.is_under_way
    assert script.overlapping.give_way(urgent=True, may_wait=True)
    script.finish()
    assert not script.overlapping.is_under_way
    (answer,) = script.handed.answers
    assert script.handed.submitted == [] and not answer.retake


def test_a_newer_snapshot_waits_for_the_one_under_way_or_comes_later():
    """An interval's comes at a later safe point, what is held or asked for waits; nothing is lost."""
    script = Script(planted.foreach_step("cpu").states)
    script.safe_point()
    assert not script.overlapping.give_way(urgent=False, may_wait=False)
    script.copier.copies[0].copy()
    assert script.overlapping.give_way(urgent=False, may_wait=True)
    assert script.handed.submitted == [1] and not script.overlapping.is_under_way


def test_steps_wait_only_while_a_copy_is_under_way():
    """Afterwards the hook costs nothing, and holds no memory."""
    plant = planted.foreach_step("cpu")
    script = Script(plant.states)
    script.safe_point()
    plant.change(None)
    script.finish()
    plant.change(None)
    assert script.copier.copies[0].held_back == 1
    assert script.overlapping._copying is None


def test_no_room_for_fingerprints_means_a_copy_at_the_safe_point(monkeypatch, capfd):
    """Said once; training is not ended by what only a save needs."""

    def no_room(*_):
        raise torch.OutOfMemoryError

    script = Script(planted.foreach_step("cpu").states)
    monkeypatch.setattr(overlapping, "begin", no_room)
    assert script.overlapping.begin([]) is None and script.overlapping.begin([]) is None
    assert capfd.readouterr().err.count("no room on the GPU") == 1

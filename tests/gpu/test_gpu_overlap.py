"""On a GPU, whatever follows the safe point: what is saved is what the state was there."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import planted
from outlast._types import Reason
from outlast.snapshot.pinned import DeviceCopier
from outlast.state.steps import StepWatch
from outlast.trainer.overlapping import Overlapping
from outlast.trainer.saver import Order

pytestmark = pytest.mark.gpu

BUSY_CYCLES = 500_000_000
"""A quarter of a second at 2 GHz: so late does a copy begin here."""


class BusyCopier(DeviceCopier):
    """Its streams have other work first, so that each change would come before the copy."""

    def begin(self, moves):
        for device in {move.source.device for move in moves}:
            with torch.cuda.stream(self.stream(device)):
                torch.cuda._sleep(BUSY_CYCLES)
        return super().begin(moves)


def overlapped(inside, states, copier=None):
    """A run whose copies come late."""
    run = inside(states)
    overlapping = Overlapping(run.link, states, StepWatch(states), copier or BusyCopier())
    run.saver._overlapping = overlapping
    return run, overlapping


def take(run):
    """An interval snapshot, and the bytes of the state now."""
    safe = run.live()
    run.step += 1
    number = run.saver.take(Order(run.step, Reason.INTERVAL))
    assert number is not None
    return number, safe


@pytest.mark.parametrize("copier", [BusyCopier, DeviceCopier], ids=["late", "at once"])
@pytest.mark.parametrize("name", planted.ALL)
def test_a_change_after_the_safe_point_is_never_saved(inside, name, copier):
    """Held back, or caught and taken again without overlap; a copy that comes in time is right as it is."""
    plant = planted.ALL[name]("cuda")
    run, overlapping = overlapped(inside, plant.states, copier())
    number, safe = take(run)
    plant.change(torch.cuda.synchronize)
    overlapping.finish()
    saved = run.answer(number)
    if plant.expected == "caught" and copier is BusyCopier:
        assert saved.retake, "it was to be caught"
    if plant.expected != "caught":
        assert not saved.retake, saved.error
    if not saved.retake:
        assert run.on_store(saved) == safe
        return
    assert saved.checkpoint is None and not list(run.root.glob("checkpoints/*/commit.json"))
    run.saver.settle()
    redo, safe = run.saver.redo, run.live()
    assert redo is not None
    again = run.saver.take(redo)
    plant.change(torch.cuda.synchronize)
    assert run.on_store(run.answer(again)) == safe


@pytest.mark.filterwarnings("ignore")  # what dynamo and inductor say is their own business
def test_a_compiled_step_is_right(inside):
    """By inductor, with the kernels that it makes."""
    states = planted.foreach_step("cuda").states
    run, overlapping = overlapped(inside, states)
    step = torch.compile(lambda: states["opt"].step())
    try:
        for _ in range(3):
            number, safe = take(run)
            planted._backward(states)
            step()
            overlapping.finish()
            saved = run.answer(number)
            assert saved.retake or run.on_store(saved) == safe
            run.saver.settle()
            run.saver.redo = None
        assert not saved.retake, "seen to be compiled, it is not overlapped"
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("when", ["after the run was made", "before"])
def test_a_step_in_a_cuda_graph_is_right(inside, when):
    """Replays call no hooks: one that was captured where it was seen is not overlapped, any other is caught."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(planted.SIDE, planted.SIDE), nn.Linear(planted.SIDE, planted.SIDE)).cuda()
    optimizer = optim.AdamW(model.parameters(), 0.01, capturable=True)
    states = {"model": model, "opt": optimizer}
    x = torch.randn(4, planted.SIDE, device="cuda")
    if when == "before":
        graph = captured(model, optimizer, x)
        run, overlapping = overlapped(inside, states)
    else:
        run, overlapping = overlapped(inside, states)
        graph = captured(model, optimizer, x)
    graph.replay()
    number, safe = take(run)
    graph.replay()
    overlapping.finish()
    saved = run.answer(number)
    assert saved.retake is (when == "before")
    if not saved.retake:
        assert run.on_store(saved) == safe
        return
    run.saver.settle()
    redo, safe = run.saver.redo, run.live()
    again = run.saver.take(redo)
    graph.replay()
    assert run.on_store(run.answer(again)) == safe


def captured(model, optimizer, x):
    """Capture a whole step; see torch's notes on CUDA graphs."""

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    return graph


def test_a_graph_may_be_captured_while_a_copy_is_under_way(inside):
    """The step that is captured cannot wait for it, and must not be broken by the attempt."""
    torch.manual_seed(0)
    model = nn.Linear(planted.SIDE, planted.SIDE).cuda()
    optimizer = optim.AdamW(model.parameters(), 0.01, capturable=True)
    x = torch.randn(4, planted.SIDE, device="cuda")
    run, overlapping = overlapped(inside, {"model": model, "opt": optimizer})
    model(x).square().mean().backward()
    optimizer.step()
    number, safe = take(run)
    graph = captured(model, optimizer, x)
    graph.replay()
    overlapping.finish()
    saved = run.answer(number)
    assert saved.retake or run.on_store(saved) == safe


def test_leaving_copies_at_once(inside):
    """An emergency, while a copy is under way."""
    states = planted.foreach_step("cuda").states
    run, overlapping = overlapped(inside, states)
    first, _ = take(run)
    safe = run.live()
    run.step += 1
    number = run.saver.take(Order(run.step, Reason.EMERGENCY))
    assert run.on_store(run.answer(number)) == safe
    overlapping.finish()
    first_answer = run.answer(first)
    assert not first_answer.retake


def test_a_step_in_a_stream_of_its_own_waits_too(inside):
    """The hook looks at the stream that the step runs in."""
    states = planted.foreach_step("cuda").states
    run, overlapping = overlapped(inside, states)
    number, safe = take(run)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        planted._step(states)
    overlapping.finish()
    torch.cuda.synchronize()
    saved = run.answer(number)
    assert saved.checkpoint is not None and run.on_store(saved) == safe

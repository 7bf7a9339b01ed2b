"""A model that changes its state outside the optimizer is right: what is saved is the state of the safe point.

Each change is made as soon as the snapshot is taken, and the agent is held still until the moment at which a copy that comes
late would do the most harm. What is on the store must be what the live tensors held at the safe point, by bytes that
the test itself kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import planted
from inside import Inside
from outlast._types import Reason
from outlast.agent.protocol import Saved
from outlast.checkpoint.manifest import CHUNK_BYTES
from outlast.trainer.saver import Order


def compiled_step(device):
    """Compiled by dynamo; a step that is compiled calls no hooks."""
    states = planted._trained(device)
    step = torch.compile(lambda: states["opt"].step(), backend="eager")

    def change(_copy):
        planted._backward(states)
        step()

    return planted.Planted(states, change, "")


CHANGES = {**planted.ALL, "compiled_step": compiled_step}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """One run for all: an agent takes half a second to start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OUTLAST_AGENT", "OUTLAST_LAUNCH_ID"):
            patch.delenv(name, raising=False)
        inside = Inside(tmp_path_factory.mktemp("outside") / "run", {})
    yield inside
    inside.close()


def save_and_change(run: Inside, change: Callable[[Callable[[], None]], object]) -> None:
    """Save, and change the state; what is on the store must be the state of the safe point."""
    safe = run.live()
    run.step += 1
    run._trainer.stop_agent()
    number = run.saver.take(Order(run.step, Reason.USER))
    assert number is not None
    answers: list[Saved] = []

    def write_now() -> None:
        changes = run.live() != safe
        assert changes
        run._trainer.continue_agent()
        answers.append(run.answer(number))

    try:
        change(write_now)
        if not answers:
            write_now()
    finally:
        run._trainer.continue_agent()
    differing = {name for name, data in run.on_store(answers[0]).items() if data != safe[name]}
    assert not differing


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`")
def test_what_happens_after_the_safe_point_is_not_saved(run, name):
    """What is frozen is left uncopied there; the save after that holds what came of it."""
    case = CHANGES[name]("cpu")
    run.states = case.states
    run.save()
    save_and_change(run, case.change)
    is_saved = run.on_store(run.save()) == run.live()
    assert is_saved


def test_a_sparse_embedding_update_writes_the_chunks_that_it_touched(run):
    """Rows of one chunk of three: one chunk is written, and all is right."""
    width = 1024
    embedding = nn.Embedding(3 * CHUNK_BYTES // (4 * width), width, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.5)

    def update(_write) -> None:
        embedding(torch.tensor([5, 7, 5])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    run.states = {"model": embedding, "optimizer": optimizer}
    run.save()
    save_and_change(run, update)
    is_saved = run.on_store(run.save()) == run.live()
    assert is_saved
    assert CHUNK_BYTES <= run.written_bytes() <= 1.05 * CHUNK_BYTES

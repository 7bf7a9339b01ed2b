"""What a resume reads, where it goes, and what it does about bytes that the store has lost.

The oracle is the bytes that the test kept, and the files on the store.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from field.torchless import files, read_tensors
from outlast._errors import NoWholeCheckpoint
from outlast.trainer.resume import put_back
from outlast.trainer.vars import Vars, restore_vars
from trainer.resuming import begin, held


class Net(nn.Module):
    """A frozen base of several chunks, and what is trained beside it: strided, tied, of other dtypes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(2048, 2304)
        self.conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
        self.up = nn.Linear(64, 32, bias=False)
        self.again = nn.Linear(64, 32, bias=False)
        self.again.weight = self.up.weight
        self.brain = nn.Linear(32, 64).bfloat16()
        self.register_buffer("odd", torch.tensor([float("nan"), -0.0, float("inf")]))
        for parameter in self.base.parameters():
            parameter.requires_grad_(False)


def made(seed: int = 0, base_seed: int = 0):
    """States whose frozen base is as the script loads it, and whose rest is of the seed."""
    model = Net(base_seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("base"):
                parameter.copy_(torch.randn(parameter.shape))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1 + seed)
    for parameter in trained:
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer}


@pytest.fixture
def attempts(tmp_path):
    """Begins attempts of one run, and ends those that a test leaves."""
    begun = []

    def start(states):
        for attempt in begun:
            attempt.end()
        attempt = begin(tmp_path / "run", states)
        begun.append(attempt)
        return attempt

    start.root = tmp_path / "run"
    yield start
    for attempt in begun:
        attempt.end()


def test_modules_are_filled_where_they_are_and_the_rest_becomes_the_states(attempts):
    """Every bit comes back; no parameter gets other memory, and no tensor is held twice."""
    saved = made(1)
    attempts(saved).save(5)
    states = made(2, base_seed=3)
    places = {name: p.data_ptr() for name, p in states["model"].named_parameters()}
    resumed = attempts(states).resumed
    assert resumed.step == 5
    assert resumed.promise.reasons == []
    assert held(states) == held(saved)
    assert {name: p.data_ptr() for name, p in states["model"].named_parameters()} == places
    assert states["model"].again.weight is states["model"].up.weight
    assert states["model"].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(name.startswith("rng/") for name in resumed.tensors)
    assert resumed.grads == {}


def test_pending_gradients_become_the_live_ones(attempts):
    """A gradient that belongs to the state is read into memory that is the gradient from then on."""
    saved = made(1)
    attempt = attempts(saved)
    saved["model"].up.weight.grad = torch.full((32, 64), float("nan"))
    attempt.save(5)
    states = made(2)
    resumed = attempts(states).resumed
    (gradient,) = resumed.grads.values()
    assert states["model"].up.weight.grad.data_ptr() == gradient.data_ptr()
    assert gradient.isnan().all()


def test_what_the_script_changed_before_its_loop_is_put_back_and_little_is_read_for_it(attempts):
    """A learning rate that was set anew costs no read; a weight that was written to is read again, and only that."""
    saved = made(1)
    expected = held(saved)
    attempts(saved).save(5)
    states = made(2)
    attempt = attempts(states)

    states["optimizer"].param_groups[0]["lr"] = 7.0
    undo(attempt)
    assert states["optimizer"].param_groups[0]["lr"] == 1.1
    assert attempt.asked == []

    with torch.no_grad():
        states["model"].brain.weight.fill_(3)
        next(iter(states["optimizer"].state.values()))["exp_avg"].zero_()
    undo(attempt)
    assert attempt.asked == ["model/brain.weight", "optimizer/state/0/exp_avg"]
    assert held(states) == expected


def test_gradients_that_the_script_dropped_before_its_loop_are_put_back(attempts):
    """Dropped or written to: they are as saved when the loop begins."""
    saved = made(1)
    attempt = attempts(saved)
    saved["model"].up.weight.grad = torch.ones(32, 64)
    attempt.save(5)
    states = made(2)
    attempt = attempts(states)
    states["optimizer"].zero_grad()
    undo(attempt)
    assert states["model"].up.weight.grad.eq(1).all()
    assert attempt.asked == []
    states["model"].up.weight.grad.fill_(9)
    undo(attempt)
    assert states["model"].up.weight.grad.eq(1).all()
    assert len(attempt.asked) == 1


def test_what_is_put_back_is_read_by_the_agent_that_took_over(attempts):
    """The agent that restored is killed alone: the next one reads what is to be put back."""
    attempts(made(1)).save(5)
    states = made(2)
    attempt = attempts(states)
    expected = held(states)
    first = attempt.trainer.link._own_agent
    first.kill()
    first.wait()
    with torch.no_grad():
        states["model"].base.weight.zero_()
    undo(attempt)
    assert held(states) == expected
    assert attempt.trainer.link._own_agent is not first


def undo(attempt):
    """What the loop does first."""
    variables = Vars()
    restore_vars(variables, attempt.resumed.variables)
    put_back(attempt.resumed, attempt.states, attempt.watch, variables, after="the test")


def flip(root, checkpoint, tensor, chunk):
    """Flip a byte of one chunk where the store holds it; returns the segment's name."""
    manifest = json.loads((root / "checkpoints" / checkpoint / "rank-00000.json").read_bytes())
    (record,) = [t for t in manifest["tensors"] if t["name"] == tensor]
    segment, at, nbytes, _ = record["slices"][0]["chunks"][chunk]
    with (root / segment).open("r+b") as file:
        file.seek(at + nbytes // 2)
        byte = file.read(1)
        file.seek(at + nbytes // 2)
        file.write(bytes([byte[0] ^ 1]))
    return segment


def two_saves(attempts):
    """A run of two checkpoints that share the frozen base's only segment; their names, and what the newer holds."""
    states = made(1)
    attempt = attempts(states)
    older = attempt.save(5)
    with torch.no_grad():
        states["model"].up.weight.add_(1)
    newer = attempt.save(6)
    attempt.end()
    return older, newer, held(states)


def test_a_damaged_chunk_of_weights_that_the_script_has_loaded_is_taken_from_there(attempts, capfd):
    """The newest checkpoint resumes, bit for bit; the store is not touched, and the next save holds good bytes again."""
    older, newer, expected = two_saves(attempts)
    flip(attempts.root, newer, "model/base.weight", 1)
    before = files(attempts.root)
    states = made(2)
    attempt = attempts(states)
    assert attempt.resumed.checkpoint == newer
    assert held(states) == expected
    assert "The script's own model/base.weight has the same bytes there: used" in " ".join(
        capfd.readouterr().err.split()
    )
    after = files(attempts.root)
    assert {name: after[name] for name in before} == before
    name = attempt.save(7)
    stored = read_tensors(attempts.root / "checkpoints" / name)
    assert stored["model/base.weight"] == expected["model/base.weight"]
    assert older != newer


def test_a_damaged_chunk_that_the_script_does_not_have_leads_to_the_older_checkpoint(attempts):
    """What is used is what the attempt's record names, and nothing is changed on the store."""
    older, newer, _ = two_saves(attempts)
    flip(attempts.root, newer, "model/up.weight", 0)
    before = files(attempts.root)
    states = made(2)
    attempt = attempts(states)
    assert attempt.resumed.checkpoint == older
    assert held(states) == {**held(made(1))}
    after = files(attempts.root)
    assert {name: after[name] for name in before} == before
    newest = max(attempts.root.glob("attempts/*.json"))
    assert json.loads(newest.read_bytes())["resumed_from"] == older


def test_damaged_frozen_weights_that_the_script_has_changed_end_in_no_checkpoint(attempts):
    """Other live weights are no help, and a base that two checkpoints share is lost to both: said by name."""
    _, newer, _ = two_saves(attempts)
    segment = flip(attempts.root, newer, "model/base.weight", 0)
    before = files(attempts.root)
    with pytest.raises(NoWholeCheckpoint, match=segment):
        attempts(made(2, base_seed=4))
    after = files(attempts.root)
    assert {name: after[name] for name in before} == before


def test_what_follows_attempts_whose_records_are_lost_counts_as_newer(attempts):
    """Their checkpoints name their numbers; with one below, each resume would step back to the last of them."""
    states = made(1)
    attempts(states).save(5)
    attempts(states).save(10)
    attempts(states).end()
    for record in attempts.root.glob("attempts/*.json"):
        record.unlink()
    third = attempts(states)
    assert third.resumed.step == 10
    newest = third.save(15)
    assert attempts(states).resumed.checkpoint == newest

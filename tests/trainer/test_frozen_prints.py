"""Frozen weights whose digests cannot be taken where they lie, as on a GPU: their fingerprints say whether they changed.

Here they lie on the CPU, and the saver is told that they do not.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outlast.agent.protocol import UNCOPIED
from outlast.snapshot.fingerprint import fingerprints
from outlast.trainer import saver


@pytest.fixture
def run(inside, monkeypatch):
    """A run with a frozen base of 1.4 MB, which keeps the snapshots that it hands over."""

    def prints(entries, names):
        there = [name for name in entries if name in names]
        return dict(zip(there, fingerprints([entries[name] for name in there]), strict=True))

    monkeypatch.setattr(saver, "frozen_digests", lambda *_: {})
    monkeypatch.setattr(saver, "frozen_prints", prints)
    torch.manual_seed(0)
    run = inside({"base": nn.Linear(600, 600).requires_grad_(False), "lora": nn.Linear(20, 20)})
    run.sent = []
    submit = run.link.submit
    monkeypatch.setattr(run.link, "submit", lambda snapshot: (run.sent.append(snapshot), submit(snapshot)))
    return run


def save(run):
    """Train a little and save; what is on the store must be the state. Names of what was copied."""
    with torch.no_grad():
        run.states["lora"].weight.add_(1.0)
    assert run.on_store(run.save()) == run.live()
    run.saver.settle()
    return {box.name for box in run.sent[-1].tensors if box.at != UNCOPIED}


def test_what_is_as_it_was_when_it_was_copied_is_left_uncopied(run):
    """The agent is told the digests of the copy that it has."""
    assert "base/weight" in save(run)
    assert save(run) == {"lora/weight", "lora/bias"}
    assert all(box.digests for box in run.sent[-1].tensors if box.at == UNCOPIED)
    assert save(run) == {"lora/weight", "lora/bias"}


@pytest.mark.parametrize("index", [0, -1])
def test_one_that_changed_is_copied_again_and_the_others_are_not(run, index):
    """One value, the first or the last; then it is as it was when it was copied, again."""
    for _ in range(2):
        save(run)
    run.states["base"].weight.data.view(-1)[index] += 1.0
    assert save(run) == {"lora/weight", "lora/bias", "base/weight"}
    assert save(run) == {"lora/weight", "lora/bias"}


def test_a_snapshot_that_was_not_saved_stands_for_nothing(run):
    """What is known is what is durable: after a failed save all is copied."""
    for _ in range(2):
        save(run)
    run.saver._stored = None
    assert "base/weight" in save(run)

"""Frozen parameters are left uncopied only as long as every byte of them is the stored one."""

from __future__ import annotations

import ctypes
import os
import threading
import time

import pytest
import torch
from torch import nn

from inside import Inside
from launch import eventually
from outlast.agent.control import Word
from outlast.agent.protocol import UNCOPIED
from outlast.snapshot import arena as arenas

BASE = 700
"""Width of the frozen layers: 2 x 1.96 MB in float32."""


class Adapted(nn.Module):
    """A frozen base, and adapters of 2 % of its size that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.ModuleList([nn.Linear(BASE, BASE, bias=False) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(BASE, 7, bias=False) for _ in range(2)])
        self.up = nn.ModuleList([nn.Linear(7, BASE, bias=False) for _ in range(2)])
        self.base.requires_grad_(False)

    def forward(self, x):
        for base, down, up in zip(self.base, self.down, self.up, strict=True):
            x = base(x) + up(down(x))
        return x


def adapted():
    """Model and optimizer of the adapters, one step done."""
    torch.manual_seed(2)
    model = Adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    states = {"model": model, "optimizer": optimizer}
    train(states)
    return states


def train(states):
    states["model"](torch.randn(4, BASE)).pow(2).mean().backward()
    states["optimizer"].step()
    states["optimizer"].zero_grad()


def trained_bytes(run: Inside) -> int:
    """Bytes of what is trained, and of its optimizer's state."""
    return sum(len(data) for name, data in run.live().items() if "/base." not in name)


def copied_bytes(run: Inside) -> int:
    """Bytes that the last snapshot had in its arena."""
    return sum(box.nbytes for box in run.seen[-1].tensors if box.at != UNCOPIED)


def taken_bytes(run: Inside) -> dict[int, int]:
    """Memory that each arena takes of the machine, as the kernel counts it."""
    return {index: os.fstat(arena.fd).st_blocks * 512 for index, arena in run.saver._room._arenas.items()}


@pytest.fixture
def run(inside):
    """An adapted model whose snapshots are noted as they are handed over."""
    made = inside(adapted())
    made.seen = []
    submit = made.link.submit
    made.link.submit = lambda snapshot: (made.seen.append(snapshot), submit(snapshot))
    return made


def test_later_saves_copy_and_write_what_is_trained(run):
    """At most 1.05 x the adapters with their optimizer's state; what is on the store is the whole state."""
    run.save()
    for _ in range(3):
        train(run.states)
        saved = run.save()
        assert run.on_store(saved) == run.live()
        assert copied_bytes(run) <= 1.05 * trained_bytes(run)
        assert run.written_bytes() <= 1.05 * trained_bytes(run)


def test_the_memory_of_what_is_left_uncopied_is_given_back(run):
    """After the first, whole save; the second arena never takes it."""
    run.save()
    train(run.states)
    run.save()
    for arena in run.saver._room._arenas.values():
        arena.settle()
    assert taken_bytes(run)
    for nbytes in taken_bytes(run).values():
        assert nbytes <= 1.1 * trained_bytes(run)


def test_what_is_copied_in_another_layout_waits_until_that_memory_is_given_back(inside, monkeypatch):
    """A parameter that is trained from now on lies where the frozen ones lay, whose memory goes in the background."""
    run = inside(adapted(), host_memory_bytes=8 * 10**6)
    run.save()
    copied = threading.Event()
    punch, submit = arenas._punch, run.link.submit

    def hand_over_late(snapshot):
        copied.set()
        time.sleep(0.2)
        submit(snapshot)

    monkeypatch.setattr(arenas, "_punch", lambda *where: (copied.wait(0.5), punch(*where)))
    run.link.submit = hand_over_late
    run.states["model"].base[0].requires_grad_(True)
    assert run.on_store(run.save()) == run.live()


@pytest.mark.parametrize("how", ["data", "ctypes", "in place", "replaced"])
def test_a_frozen_parameter_that_changed_is_copied(run, how):
    """By whatever way it was written: one bit decides, and the others stay uncopied."""
    run.save()
    parameter = run.states["model"].base[0].weight
    if how == "data":
        parameter.data[3, 5] += 1
    elif how == "ctypes":
        ctypes.c_uint8.from_address(parameter.data_ptr() + 4 * BASE * BASE - 1).value ^= 1
    elif how == "in place":
        with torch.no_grad():
            parameter.mul_(2)
    else:
        run.states["model"].base[0].weight = nn.Parameter(torch.randn(BASE, BASE), requires_grad=False)
    saved = run.save()
    assert run.on_store(saved) == run.live()
    uncopied = {box.name for box in run.seen[-1].tensors if box.at == UNCOPIED}
    assert uncopied == {"model/base.1.weight"}
    saved = run.save()
    assert run.on_store(saved) == run.live()
    assert {box.name for box in run.seen[-1].tensors if box.at == UNCOPIED} == {
        "model/base.0.weight",
        "model/base.1.weight",
    }


def test_while_the_agent_asks_for_everything_everything_is_copied(run):
    """As when a save in full is due."""
    run.save()
    run.link.page[Word.WHOLE] = 1
    saved = run.save()
    assert run.seen[-1].base is None and copied_bytes(run) == sum(map(len, run.live().values()))
    assert run.on_store(saved) == run.live()


def test_the_first_save_of_a_resume_leaves_uncopied_what_it_resumed_from(inside):
    """The records of the offer say what the store holds; another attempt's live tensors are compared with them."""
    first = inside(adapted())
    first.save()
    states = first.states
    first.close()
    second = inside(states)
    second.seen = []
    submit = second.link.submit
    second.link.submit = lambda snapshot: (second.seen.append(snapshot), submit(snapshot))
    train(states)
    eventually("the agent has found what it builds on", lambda: not second.link.page[Word.WHOLE])
    saved = second.save()
    assert second.on_store(saved) == second.live()
    assert copied_bytes(second) <= 1.05 * trained_bytes(second)
    assert second.written_bytes() <= 1.05 * trained_bytes(second)


def test_a_parameter_that_shares_memory_with_a_trained_one_is_copied(inside):
    """Tied weights of which one owner is frozen."""
    model = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    model[1].weight = nn.Parameter(model[0].weight.detach(), requires_grad=False)
    run = inside({"model": model})
    for _ in range(2):
        saved = run.save()
        assert run.on_store(saved) == run.live()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert run.on_store(run.save()) == run.live()


def test_a_frozen_parameter_in_another_order_of_memory_is_copied_and_not_written_again(inside):
    """Convolutions in channels-last: their bytes are put in order on the way into the arena, and referred to."""
    torch.manual_seed(6)
    model = nn.Conv2d(64, 64, 3, bias=False).to(memory_format=torch.channels_last).requires_grad_(False)
    assert not model.weight.is_contiguous()
    run = inside({"model": model})
    for _ in range(2):
        assert run.on_store(run.save()) == run.live()
    assert run.written_bytes() == 0

"""Scripts that change their state in every way that was seen, on a device of choice.

Each is made ready for a safe point (one step is done), and has a change that comes after it.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

SIDE = 600
"""Of a weight: 1.4 MB, so that it is copied late."""


@dataclass
class Planted:
    """A script at a safe point.

    Attributes:
        states: what it hands in.
        change: what it does next, something else each time; calls what it is given where a late copy would do the most harm.
        expected: "held" where the change waits for the copy or cannot reach it, "caught" where the copy is wrong and must be thrown away,
            "not overlapped" where nothing can wait for it.
    """

    states: dict[str, Any]
    change: Callable[[Callable[[], None]], None]
    expected: str


def weight_clipping(device):
    states = _trained(device)
    bounds = iter([0.01, 0.005, 0.002, 0.001])

    def change(_copy):
        bound = next(bounds)
        for p in states["model"].parameters():
            p.data.clamp_(-bound, bound)

    return Planted(states, change, "caught")


def ema_swap_through_data(device):
    states = _trained(device)
    ema = copy.deepcopy(states["model"])

    def change(_copy):
        for p, average in zip(states["model"].parameters(), ema.parameters(), strict=True):
            average.data.mul_(0.5)
            p.data.copy_(average)

    return Planted(states, change, "caught")


def ema_swap_and_back(device):
    """What is there at the end is what was there at the beginning, but not what was copied."""
    states = _trained(device)

    def change(copy_now):
        kept = [p.data.clone() for p in states["model"].parameters()]
        for p in states["model"].parameters():
            p.data.mul_(0.5)
        copy_now()
        for p, value in zip(states["model"].parameters(), kept, strict=True):
            p.data.copy_(value)

    return Planted(states, change, "caught")


def ema_swap_of_memory(device):
    """The parameters look at other memory from here on; what they looked at before is left as it is."""
    states = _trained(device)

    def change(copy_now):
        for p in states["model"].parameters():
            p.data = p.data * 0.5
        _junk = [
            torch.full_like(p, 7.0) for p in states["model"].parameters()
        ]  # takes memory that was set free
        copy_now()

    return Planted(states, change, "held")


def lora_merge(device):
    """Frozen weights are copied at the safe point."""
    states = _trained(device, frozen=True)

    def change(_copy):
        layer = states["model"][0]
        with torch.no_grad():
            layer.weight += states["lora"].weight * 0.1

    return Planted(states, change, "held")


def lora_merge_and_unmerge(device):
    states = _trained(device, frozen=True)

    def change(copy_now):
        layer = states["model"][0]
        with torch.no_grad():
            layer.weight += states["lora"].weight * 0.1
            copy_now()
            layer.weight -= states["lora"].weight * 0.1

    return Planted(states, change, "held")


def write_past_torch(device):
    """By address; on a GPU by way of another library's look at the memory."""
    states = _trained(device)

    def change(_copy):
        weight = states["model"][0].weight
        version = weight._version
        if weight.is_cuda:
            torch.from_dlpack(weight.detach())[3, 3] += 7.0
        else:
            ctypes.c_ubyte.from_address(weight.data_ptr() + 4000).value ^= 1
        assert weight._version == version

    return Planted(states, change, "caught")


def sparse_embedding_step(device):
    states = _embedding(device)
    return Planted(states, lambda _: _embedding_step(states), "held")


def sparse_update_by_hand(device):
    states = _embedding(device)

    def change(_copy):
        states["model"].weight.data[17] += 1.0

    return Planted(states, change, "caught")


def batch_norm_statistics(device):
    """A megabyte of statistics, which the next forward changes."""
    torch.manual_seed(0)
    model = nn.BatchNorm1d(1 << 18, device=device)
    states = {"model": model, "opt": optim.SGD(model.parameters(), 0.1, momentum=0.9)}

    def train(_copy=None):
        states["opt"].zero_grad()
        model(torch.randn(3, 1 << 18, device=device)).square().sum().backward()
        states["opt"].step()

    train()
    return Planted(states, train, "held")


def forward_alone(device):
    """Nothing that a step would announce: only statistics change."""
    torch.manual_seed(0)
    model = nn.BatchNorm1d(1 << 18, device=device)
    states = {"model": model, "opt": optim.SGD(model.parameters(), 0.1)}
    return Planted(states, lambda _: model(torch.randn(3, 1 << 18, device=device)), "held")


def foreach_step(device):
    states = _trained(device, foreach=True)
    return Planted(states, lambda _: _step(states), "held")


def fused_step(device):
    states = _trained(device, fused=True)
    return Planted(states, lambda _: _step(states), "held")


def scheduled_step(device):
    """A scheduler wraps the optimizer's step."""
    states = _trained(device)
    states["schedule"] = optim.lr_scheduler.StepLR(states["opt"], 1)
    return Planted(states, lambda _: (_step(states), states["schedule"].step()), "held")


class _Halving(optim.Optimizer):
    """An optimizer class that nobody has seen before."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("before", p.clone()).copy_(p)
                p.mul_(0.5)


class _Plain:
    """One that is none of torch's, and calls no hooks."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params)}]

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.mul_(0.5)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def unseen_optimizer(device):
    states = _trained(device)
    states["opt"] = _Halving(states["model"].parameters())
    states["opt"].step()
    return Planted(states, lambda _: states["opt"].step(), "held")


def unhooked_optimizer(device):
    states = _trained(device)
    states["opt"] = _Plain(states["model"].parameters())
    return Planted(states, lambda _: states["opt"].step(), "not overlapped")


def hidden_optimizer(device):
    """Steps what another, that was handed in, owns."""
    states = _trained(device)
    hidden = optim.SGD(states["model"].parameters(), 0.1)
    _backward(states)
    return Planted(states, lambda _: hidden.step(), "caught")


def unwrapped_step(device):
    """The step itself, without torch's wrapper that calls the hooks."""
    states = _trained(device)
    step = optim.AdamW.step.__wrapped__

    def change(_copy):
        _backward(states)
        step(states["opt"])

    return Planted(states, change, "caught")


ALL = {
    plant.__name__: plant
    for plant in (
        weight_clipping,
        ema_swap_through_data,
        ema_swap_and_back,
        ema_swap_of_memory,
        lora_merge,
        lora_merge_and_unmerge,
        write_past_torch,
        sparse_embedding_step,
        sparse_update_by_hand,
        batch_norm_statistics,
        forward_alone,
        foreach_step,
        fused_step,
        scheduled_step,
        unseen_optimizer,
        unhooked_optimizer,
        hidden_optimizer,
        unwrapped_step,
    )
}
"""Every one of them, by name."""


def _trained(device, *, frozen=False, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.ReLU(), nn.Linear(SIDE, SIDE)).to(device)
    states = {"model": model}
    trained = list(model.parameters())
    if frozen:
        states["lora"] = nn.Linear(SIDE, SIDE).to(device)
        trained = list(states["lora"].parameters())
        model.requires_grad_(False)
    states["opt"] = optim.AdamW(trained, 0.01, **options)
    _step(states)
    return states


def _backward(states):
    device = next(states["model"].parameters()).device
    out = states["model"](torch.randn(4, SIDE, device=device))
    (states["lora"](out) if "lora" in states else out).square().sum().backward()


def _step(states):
    states["opt"].zero_grad()
    _backward(states)
    states["opt"].step()


def _embedding(device):
    torch.manual_seed(0)
    model = nn.Embedding(SIDE, SIDE, sparse=True).to(device)
    states = {"model": model, "opt": optim.SparseAdam(list(model.parameters()), 0.01)}
    _embedding_step(states)
    return states


def _embedding_step(states):
    model = states["model"]
    states["opt"].zero_grad()
    model(torch.tensor([1, 17, 17, 300], device=model.weight.device)).square().sum().backward()
    states["opt"].step()

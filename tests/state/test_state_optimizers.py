"""Every optimizer, scheduler and scaler continues as if it had never been interrupted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as sched

from outlast.state.value import Value
from staging import fingerprint, load, save

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD-plain": lambda p: optim.SGD(p, lr=0.1),
    "SGD-foreach": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "Adam-amsgrad": lambda p: optim.Adam(p, amsgrad=True),
    "Adam-tensor-lr": lambda p: optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "AdamW-foreach": lambda p: optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW-fused": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "Adadelta": lambda p: optim.Adadelta(p),
    "Adagrad": lambda p: optim.Adagrad(p, lr_decay=0.1),
    "Adamax": lambda p: optim.Adamax(p),
    "ASGD": lambda p: optim.ASGD(p, t0=1.0),
    "NAdam": lambda p: optim.NAdam(p),
    "RAdam": lambda p: optim.RAdam(p),
    "RMSprop": lambda p: optim.RMSprop(p, centered=True, momentum=0.5),
    "Rprop": lambda p: optim.Rprop(p),
    "LBFGS": lambda p: optim.LBFGS(p, max_iter=3, history_size=4, line_search_fn="strong_wolfe"),
    "Adafactor": lambda p: optim.Adafactor(p),
    "Muon": lambda p: optim.Muon([q for q in p if q.dim() == 2]),
    "SparseAdam": lambda p: optim.SparseAdam(p, lr=0.1),
}
CLASSES = {name.split("-")[0] for name in OPTIMIZERS}


def test_no_optimizer_of_torch_is_left_out():
    """A class that a newer torch adds fails here until it is listed."""
    ours = {n for n, c in vars(optim).items() if isinstance(c, type) and issubclass(c, optim.Optimizer)}
    assert CLASSES == ours - {"Optimizer"}


class Embed(nn.Module):
    """A model with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3, sparse=True)

    def forward(self, x):
        return self.table((x.abs() * 3).long().clamp(max=6)).sum(dim=(1, 2)).unsqueeze(1)


def build(name, dtype=torch.float32):
    """Model and optimizer, fresh."""
    model = Embed() if name == "SparseAdam" else nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    model = model.to(dtype)
    return {"model": model, "optimizer": OPTIMIZERS[name](list(model.parameters()))}


def train(states, steps, dtype=torch.float32):
    """A few steps on data drawn from torch's generator; returns the losses' bits."""
    model, optimizer = states["model"], states["optimizer"]
    losses = []
    for _ in range(steps):
        x = torch.randn(6, 5).to(dtype)

        def closure():
            optimizer.zero_grad()
            loss = ((model(x) - 1) ** 2).mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        if "scheduler" in states:
            metrics = (losses[-1],) if isinstance(states["scheduler"], sched.ReduceLROnPlateau) else ()
            states["scheduler"].step(*metrics)
    return losses


def everything(states):
    """All that the states hold, by an oracle that asks torch only."""
    out = {}
    for name, state in states.items():
        out |= fingerprint(state.state_dict(), name)
    return out


def assert_continues(make, step=train, before=3, after=3):
    """Train, save, train on; restore into fresh objects, train on: the same bits everywhere."""
    torch.manual_seed(1)
    states = make()
    step(states, before)
    saved = save(states)
    held = everything(states)
    losses = step(states, after)
    end = everything(states)
    torch.manual_seed(99)
    fresh = make()
    step(fresh, 1)  # not quite fresh: what stands in it must go
    assert load(fresh, saved) == []
    assert everything(fresh) == held
    assert step(fresh, after) == losses
    assert everything(fresh) == end


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_continues_exactly(name):
    """Weights, moments and losses, to the bit."""
    assert_continues(lambda: build(name))


@pytest.mark.parametrize("name", ["AdamW", "SGD", "ASGD", "NAdam", "Rprop", "Adafactor", "Muon"])
def test_a_bfloat16_model_continues_exactly(name):
    """torch's own loading casts what it loads to bfloat16."""
    assert_continues(lambda: build(name, torch.bfloat16), lambda s, n: train(s, n, torch.bfloat16))


class MasterSGD(optim.SGD):
    """fp32 master weights and moments beside bf16 parameters, as users write it."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["master"] = p.float().clone()
                    state["moment"] = torch.zeros_like(state["master"])
                state["moment"].mul_(0.9).add_(p.grad.float())
                state["master"].sub_(0.001 * state["moment"])
                p.copy_(state["master"])
        return loss


def test_master_weights_keep_their_dtype():
    """fp32 beside a bf16 parameter, where torch's own loading makes bf16 of them."""

    def make():
        model = nn.Linear(5, 1).bfloat16()
        return {"model": model, "optimizer": MasterSGD(model.parameters(), lr=0.1)}

    assert_continues(make, lambda s, n: train(s, n, torch.bfloat16))
    states = make()
    train(states, 1, torch.bfloat16)
    saved = save(states)
    fresh = make()
    load(fresh, saved)
    assert fresh["optimizer"].state[fresh["model"].weight]["master"].dtype is torch.float32


def test_the_layout_of_moments_comes_back():
    """channels_last weights have channels_last moments."""

    def make():
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return {"model": model, "optimizer": optim.AdamW(model.parameters())}

    states = make()
    states["model"](torch.randn(1, 3, 5, 5)).sum().backward()
    states["optimizer"].step()
    fresh = make()
    load(fresh, save(states))
    weight = fresh["model"].weight
    assert fresh["optimizer"].state[weight]["exp_avg"].stride() == weight.stride()


SCHEDULERS = {
    "LambdaLR": lambda o: sched.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: sched.MultiplicativeLR(o, lambda n: 0.95),
    "StepLR": lambda o: sched.StepLR(o, 2),
    "MultiStepLR": lambda o: sched.MultiStepLR(o, [2, 2, 4]),
    "ConstantLR": lambda o: sched.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: sched.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, 10),
    "PolynomialLR": lambda o: sched.PolynomialLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 2, 2),
    "OneCycleLR": lambda o: sched.OneCycleLR(o, 0.3, total_steps=20),
    "CyclicLR": lambda o: sched.CyclicLR(o, 0.01, 0.1, 2, mode="exp_range", gamma=0.9),
    "CyclicLR-lambda": lambda o: sched.CyclicLR(o, 0.01, 0.1, 2, scale_fn=lambda n: 0.5),
    "ReduceLROnPlateau": lambda o: sched.ReduceLROnPlateau(o, patience=0, cooldown=1),
    "SequentialLR": lambda o: sched.SequentialLR(
        o, [sched.LinearLR(o, 0.1, total_iters=2), sched.CosineAnnealingLR(o, 8)], [2]
    ),
    "ChainedScheduler": lambda o: sched.ChainedScheduler(
        [sched.ConstantLR(o, 0.5, 4), sched.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: optim.swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam-tensor-lr"])
def test_a_scheduler_continues_exactly(name, optimizer):
    """The learning rate of every later step, and all that the scheduler holds."""
    if name.startswith("CyclicLR") and optimizer.startswith("Adam"):
        optimizer = "SGD-foreach"  # it needs a momentum

    def make():
        states = build(optimizer)
        states["scheduler"] = SCHEDULERS[name](states["optimizer"])
        return states

    assert_continues(make, before=3, after=4)


def test_every_scheduler_of_torch_is_tried():
    """A class that a newer torch adds fails here until it is listed."""
    bases = {"LRScheduler", "_LRScheduler"}
    there = {n for n, c in vars(sched).items() if isinstance(c, type) and issubclass(c, sched.LRScheduler)}
    assert there - bases <= {name.split("-")[0] for name in SCHEDULERS}


def test_a_gradient_scaler_continues_exactly():
    """Its scale and its growth tracker; one that is off has an empty state."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def steps(states, count):
        out = []
        for _ in range(count):
            states["optimizer"].zero_grad()
            loss = (states["model"](torch.randn(3, 5)) ** 2).mean()
            states["scaler"].scale(loss).backward()
            states["scaler"].step(states["optimizer"])
            states["scaler"].update()
            out.append(float(states["scaler"].get_scale()))
        return out

    assert_continues(lambda: {**build("AdamW"), "scaler": copy.deepcopy(scaler)}, steps)
    off = {"scaler": torch.amp.GradScaler("cpu", enabled=False)}
    assert load(off, save(off)) == []


def test_averaged_models_and_values_continue_exactly():
    """An EMA with buffers, and a plain value beside it."""

    def make():
        states = build("AdamW")
        average = optim.swa_utils.get_ema_multi_avg_fn(0.9)
        ema = optim.swa_utils.AveragedModel(states["model"], multi_avg_fn=average, use_buffers=True)
        return {**states, "ema": ema, "best": Value({"loss": float("inf"), "at": None})}

    def steps(states, count):
        losses = []
        for _ in range(count):
            losses += train(states, 1)
            states["ema"].update_parameters(states["model"])
            if losses[-1] < states["best"].value["loss"]:
                states["best"].value = {"loss": losses[-1], "at": states["ema"].n_averaged.clone()}
        return losses

    assert_continues(make, steps)


def test_several_groups_with_options_of_their_own_come_back():
    """Options are those that were saved, not the script's, also ones that torch does not know."""

    def make(lr):
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1))
        groups = [
            {"params": model[0].parameters(), "lr": lr, "name": "first"},
            {"params": model[1].parameters(), "weight_decay": lr, "schedule": (1, None)},
        ]
        return {"model": model, "optimizer": optim.AdamW(groups, lr=0.5)}

    states = make(0.25)
    train(states, 2)
    fresh = make(0.75)
    assert load(fresh, save(states)) == []
    assert [g["lr"] for g in fresh["optimizer"].param_groups] == [0.25, 0.5]
    assert fresh["optimizer"].param_groups[1]["schedule"] == (1, None)


def test_hooks_of_an_optimizer_run_when_it_is_loaded():
    """The bits are exact all the same."""
    states, fresh = build("AdamW"), build("AdamW")
    train(states, 2)
    calls = []
    fresh["optimizer"].register_load_state_dict_post_hook(lambda o: calls.append("post"))
    assert load(fresh, save(states)) == []
    assert calls == ["post"]


def test_an_object_that_loads_something_else_is_named():
    """What a state returns after the resume is compared with what was saved."""

    class Forgetful:
        def __init__(self):
            self.kept, self.lost = torch.ones(2), torch.ones(2)

        def state_dict(self):
            return {"kept": self.kept, "lost": self.lost, "count": 3 if self.lost.sum() == 7 else 2}

        def load_state_dict(self, state):
            self.kept = state["kept"]
            self.lost = torch.full((2,), 3.5)

    (lost, count) = load({"thing": Forgetful()}, save({"thing": Forgetful()}))
    assert lost == "thing/lost: its bits are not those that were saved"
    assert count == "thing/count: saved 2, restored 3"

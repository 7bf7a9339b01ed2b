"""A step is seen, and the gradients that are pending belong to the snapshot."""

from __future__ import annotations

import gc
import statistics
import time
import weakref

import pytest
import torch
from torch import nn, optim

from outlast.state.steps import StepWatch
from outlast.state.table import TensorTable
from staging import bits, fingerprint, load, save


def pending(watch):
    """Owner -> the keys of the parameters whose gradients would be saved."""
    return {owner: [key for key, _ in saved] for owner, saved in watch.capture(TensorTable()).items()}


def linear(**options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return {"model": model, "opt": optim.AdamW(model.parameters(), **options)}


def backward(model):
    model(torch.randn(4, model.in_features)).pow(2).sum().backward()


def test_a_step_is_seen_once():
    """From the step to the mark, and not before or after."""
    states = linear()
    watch = StepWatch(states)
    assert not watch.stepped() and watch.notes == []
    backward(states["model"])
    assert not watch.stepped()
    states["opt"].step()
    assert watch.stepped() and watch.stepped()
    watch.mark()
    assert not watch.stepped()


def test_gradients_gathered_so_far_are_pending():
    """In the middle of an accumulation; the layout and the bits come back, and others get none."""
    states, fresh = linear(), linear()
    watch, other = StepWatch(states), StepWatch(fresh)
    backward(states["model"])
    states["model"].bias.grad = None
    backward(fresh["model"])
    fresh["opt"].step()
    assert load(fresh, save(states, watch), other) == []
    assert bits(fresh["model"].weight.grad) == bits(states["model"].weight.grad)
    assert fresh["model"].bias.grad is None
    assert not other.stepped()


@pytest.mark.parametrize("due", [True, False])
def test_gradients_that_the_loop_drops_are_left_out_when_a_save_is_due(due):
    """Seen twice to be new tensors, unchanged since the step. Not remembered: all are saved."""
    states = linear()
    watch = StepWatch(states)
    for _ in range(3):
        watch.mark()
        states["opt"].zero_grad()
        backward(states["model"])
        watch.is_due = lambda due=due: due
        states["opt"].step()
    assert pending(watch) == ({} if due else {"opt": [0, 1]})
    watch.mark()
    assert pending(watch) == {"opt": [0, 1]}, "no step since the mark: the loop still has use for them"


def test_gradients_added_after_the_step_are_pending():
    """The loop steps, then already gathers for the next step before it asks for a batch."""
    states = linear()
    watch = StepWatch(states)
    watch.is_due = lambda: True
    for _ in range(3):
        watch.mark()
        states["opt"].zero_grad()
        backward(states["model"])
        states["opt"].step()
    states["model"].bias.grad.add_(1)
    assert pending(watch) == {"opt": [1]}
    states["opt"].zero_grad()
    backward(states["model"])
    assert pending(watch) == {"opt": [0, 1]}


@pytest.mark.parametrize("clear", ["never", "zeros", "sometimes"])
def test_gradients_that_the_loop_may_read_again_are_pending(clear):
    """A loop that never clears them, sets them to zero in place, or drops them only at some steps."""
    states = linear()
    watch = StepWatch(states)
    watch.is_due = lambda: True
    for step in range(5):
        watch.mark()
        if clear == "zeros":
            states["opt"].zero_grad(set_to_none=False)
        if clear == "sometimes" and step % 2 == 0:
            states["opt"].zero_grad()
        backward(states["model"])
        states["opt"].step()
    assert pending(watch) == {"opt": [0, 1]}


def gan():
    torch.manual_seed(0)
    g, d = nn.Linear(2, 3), nn.Linear(3, 1)
    return {"g": g, "d": d, "og": optim.Adam(g.parameters(), 0.1), "od": optim.Adam(d.parameters(), 0.1)}


def gan_batch(states, number, n_critic=3):
    """One batch of a GAN in which the generator also gathers over its `n_critic` batches."""
    g, d = states["g"], states["d"]
    states["od"].zero_grad()
    (d(g(torch.randn(4, 2)).detach()).mean() - d(torch.randn(4, 3)).mean()).backward()
    states["od"].step()
    (-d(g(torch.randn(4, 2))).mean()).backward()
    if number % n_critic == n_critic - 1:
        states["og"].step()
        states["og"].zero_grad()


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("due", [True, False])
def test_a_gan_with_two_accumulation_lengths_continues_exactly(at, due):
    """Saved after any batch: the other optimizer's gradients, half gathered, are part of it."""
    states, fresh = gan(), gan()
    watch, other = StepWatch(states), StepWatch(fresh)
    watch.is_due = lambda due=due: due
    for number in range(at):
        watch.mark()
        gan_batch(states, number)
        assert watch.stepped()
    saved = save(states, watch)
    for number in range(at, 9):
        gan_batch(states, number)
    assert load(fresh, saved, other) == []
    for number in range(at, 9):
        gan_batch(fresh, number)
    assert fingerprint(dict(fresh["g"].state_dict())) == fingerprint(dict(states["g"].state_dict()))
    assert fingerprint(dict(fresh["d"].state_dict())) == fingerprint(dict(states["d"].state_dict()))


def test_parameters_of_no_optimizer_are_covered():
    """Their owner is the module, their key a name without prefixes."""
    states = {"model": torch.compile(nn.Linear(3, 2), backend="eager")}
    watch = StepWatch(states)
    assert watch.stepped() and "no optimizer was handed in" in watch.notes[0]
    states["model"].weight.grad = torch.full((2, 3), 2.0)
    assert pending(watch) == {"model": ["weight"]}
    fresh = {"model": nn.Linear(3, 2)}
    load(fresh, save(states, watch), StepWatch(fresh))
    assert fresh["model"].weight.grad.tolist() == [[2.0] * 3] * 2


def test_a_parameter_of_two_optimizers_is_saved_once_and_restored():
    """Whichever holds it first owns its gradient."""

    def make():
        model = nn.Linear(3, 2)
        return {"a": optim.SGD([model.weight], 0.1), "b": optim.SGD(model.parameters(), 0.1), "model": model}

    states, fresh = make(), make()
    watch = StepWatch(states)
    backward(states["model"])
    assert pending(watch) == {"a": [0], "b": [1]}
    load(fresh, save(states, watch), StepWatch(fresh))
    for name in ("weight", "bias"):
        assert bits(getattr(fresh["model"], name).grad) == bits(getattr(states["model"], name).grad)


def test_a_gradient_that_one_of_two_optimizers_still_needs_is_pending():
    """The other has stepped with it, and is done with it."""
    model = nn.Linear(3, 2)
    states = {"done": optim.SGD(model.parameters(), 0.1), "needs": optim.SGD([model.bias], 0.1)}
    watch = StepWatch(states)
    watch.is_due = lambda: True
    for _ in range(3):
        watch.mark()
        model.zero_grad()
        backward(model)
        states["done"].step()
    assert pending(watch) == {"needs": [0]}


def test_a_sparse_gradient_is_pending_and_comes_back():
    """Uncoalesced, as an embedding leaves it."""

    def make():
        model = nn.Embedding(5, 2, sparse=True)
        return {"model": model, "opt": optim.SparseAdam(model.parameters())}

    states, fresh = make(), make()
    watch = StepWatch(states)
    states["model"](torch.tensor([1, 1, 3])).sum().backward()
    load(fresh, save(states, watch), StepWatch(fresh))
    gradient = fresh["model"].weight.grad
    assert gradient.is_sparse and torch.equal(gradient.to_dense(), states["model"].weight.grad.to_dense())


class Lion:
    """An optimizer of one's own: no hooks, no base class."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]

    def step(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Unwrapped(optim.SGD):
    """Its step hooks are taken away, as some versions of torch.compile do."""

    def step(self, closure=None):
        return None


def unobservable(kind, model):
    if kind == "class":
        return Lion(model.parameters())
    if kind == "unwrapped":
        optimizer = Unwrapped(model.parameters(), 0.1)
        Unwrapped.step = Unwrapped.step.__wrapped__
        return optimizer
    optimizer = optim.SGD(model.parameters(), 0.1)
    optimizer.step = lambda: None
    return optimizer


@pytest.mark.parametrize("kind", ["class", "unwrapped", "replaced"])
def test_where_steps_cannot_be_observed_every_boundary_counts(kind):
    """And all gradients are pending: always a consistent state. The user is told."""
    model = nn.Linear(3, 2)
    watch = StepWatch({"model": model, "opt": unobservable(kind, model)})
    watch.is_due = lambda: True
    backward(model)
    watch.mark()
    assert watch.stepped() and pending(watch) == {"opt": [0, 1]}
    assert len(watch.notes) == 1 and watch.notes[0].startswith("opt: the steps of")


def test_a_step_that_is_replaced_later_is_noticed():
    """At the next boundary."""
    states = linear()
    watch = StepWatch(states)
    assert not watch.stepped()
    states["opt"].step = lambda: None
    assert watch.stepped()


def test_a_scheduler_does_not_hide_the_step():
    """It replaces `step` on the object, by a wrapper that still calls the hooks."""
    states = linear()
    watch = StepWatch(states)
    optim.lr_scheduler.StepLR(states["opt"], 1)
    assert "step" in vars(states["opt"])
    assert not watch.stepped() and watch.notes == []
    states["opt"].step()
    assert watch.stepped()


@pytest.mark.parametrize("how", ["method", "function", "replaced"])
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
@pytest.mark.filterwarnings("ignore")  # what dynamo says of profiler hooks is its own business
def test_a_compiled_step_is_seen(how, kind):
    """Whole, inside a compiled function, or put in the place of the method."""
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.01)
    watch = StepWatch({"model": model, "opt": optimizer})
    if how == "function":
        step = torch.compile(lambda: optimizer.step(), backend="eager")
    else:
        step = torch.compile(optimizer.step, backend="eager")
    if how == "replaced":
        optimizer.step = step
    for due in (False, True, False):
        watch.is_due = lambda due=due: due
        backward(model)
        before = model.weight.detach().clone()
        step()
        assert not torch.equal(before, model.weight)
        assert watch.stepped()
        watch.mark()
        assert not watch.stepped()
    torch._dynamo.reset()


def test_a_step_that_a_cuda_graph_captured_is_not_observed(monkeypatch):
    """Its replays call no hooks: from then on every boundary counts as its step, and that is said."""
    states = linear()
    watch = StepWatch(states)
    backward(states["model"])
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_initialized", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        states["opt"].step()
    watch.mark()
    assert watch.stepped() and not watch.can_hold()
    assert "cannot be observed" in watch.notes[0]


class Traceable(optim.Optimizer):
    """An optimizer that compiles as one whole graph, with the hooks around its step."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad * 0.1)


@pytest.mark.filterwarnings("ignore")  # as above
def test_watching_breaks_no_compiled_graph():
    """Also while a save is due: what the step remembers then is left out, and all gradients are pending."""
    model = nn.Linear(3, 2)
    optimizer = Traceable(model.parameters())
    watch = StepWatch({"opt": optimizer})
    step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    for due in (True, False, True):
        watch.is_due = lambda due=due: due
        watch.mark()
        optimizer.zero_grad()
        backward(model)
        step()
        assert watch.stepped() and pending(watch) == {"opt": [0, 1]}
    torch._dynamo.reset()


def test_watching_holds_no_gradient_alive():
    """One that the loop has dropped is freed at once."""
    states = linear()
    watch = StepWatch(states)
    watch.is_due = lambda: True
    backward(states["model"])
    states["opt"].step()
    gradient = weakref.ref(states["model"].weight.grad)
    states["opt"].zero_grad()
    gc.collect()
    assert gradient() is None


def test_watching_costs_microseconds():
    """Per boundary <= 10 us and per step <= 5 us, with 300 parameters; the best of many, for noisy machines."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(300)]
    for p in parameters:
        p.grad = torch.ones(2)
    optimizer = optim.AdamW(parameters)
    watch = StepWatch({"opt": optimizer})

    def best(call):
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            for _ in range(20):
                call()
            times.append((time.perf_counter() - begin) / 20)
        return statistics.quantiles(times, n=20)[0]

    (hook,) = optimizer._optimizer_step_post_hooks.values()
    assert best(lambda: (watch.stepped(), watch.mark())) <= 10e-6
    assert best(lambda: hook(optimizer, (), {})) <= 5e-6

"""Modules come back whole: also what their state_dict leaves out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outlast._errors import ConfigError, StateMismatch, UnsupportedValue
from outlast.state.capture import check_states
from outlast.state.module import FLAG
from outlast.state.restore import check_fit
from outlast.state.value import Value
from staging import bits, fingerprint, load, save


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


class Cache(nn.Module):
    """Buffers that are not persistent, one of them made on first use, and one that is not there yet."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("late", None)

    def forward(self, x):
        self.steps += 1
        self.cache = torch.cat([self.cache, x]) if self.cache is not None else x.clone()
        self.late = x.mean(0)
        if not hasattr(self, "made"):
            self.register_buffer("made", x.sum(0), persistent=False)
        return self.norm(x) + self.cache.mean(0)


def test_tied_weights_are_stored_once_and_stay_tied():
    """Inside a module, and across two."""
    states = {"model": Tied(), "other": nn.Linear(4, 6, bias=False)}
    states["other"].weight = states["model"].embed.weight
    saved = save(states)
    assert [r.name for r in saved.records if r.shape == (6, 4)] == ["model/embed.weight"]
    fresh = {"model": Tied(), "other": nn.Linear(4, 6, bias=False)}
    fresh["other"].weight = fresh["model"].embed.weight
    assert load(fresh, saved) == []
    assert fresh["other"].weight is fresh["model"].head.weight is fresh["model"].embed.weight
    assert torch.equal(fresh["other"].weight, states["other"].weight)


def test_a_tie_that_is_missing_is_named():
    """Equal values are not enough: the next step would pull them apart."""
    loose = Tied()
    loose.head.weight = nn.Parameter(loose.head.weight.clone())
    (note,) = load({"model": loose}, save({"model": Tied()}))
    assert note.startswith("model/head.weight: saved as the memory of model/embed.weight")


def test_buffers_that_are_not_persistent_come_back():
    """Also with another shape than a fresh model's, and one that a forward pass makes."""
    torch.manual_seed(0)
    model = Cache()
    for _ in range(3):
        model(torch.randn(4, 3))
    saved = save({"model": model})
    fresh = Cache()
    assert load({"model": fresh}, saved) == []
    assert dict(fresh.named_buffers()).keys() == dict(model.named_buffers()).keys()
    for name, buffer in model.named_buffers():
        assert bits(dict(fresh.named_buffers())[name]) == bits(buffer), name
    assert fresh.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3)
    assert torch.equal(fresh(x), model(x))


def test_a_buffer_that_overlaps_itself_comes_back():
    """`expand` gives one element several places; nothing can be copied into it."""

    def make(value):
        model = nn.Linear(1, 1)
        model.register_buffer("wide", torch.full((1, 3), value).expand(4, 3))
        model.register_buffer("aside", torch.full((1, 3), value).expand(4, 3), persistent=False)
        return model

    fresh = make(0.0)
    load({"model": fresh}, save({"model": make(2.0)}))
    assert fresh.wide.tolist() == fresh.aside.tolist() == [[2.0] * 3] * 4


def test_training_and_requires_grad_come_back_and_are_named():
    """They change what is computed; a script may set them in the middle."""

    def make():
        return nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    model = make()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    fresh = make()
    notes = load({"model": fresh}, save({"model": model}))
    assert notes == [
        f"{FLAG}model/1: training True -> False",
        f"{FLAG}model/0.bias: requires_grad True -> False",
    ]
    assert fresh.training and fresh[0].training and not fresh[1].training
    assert fresh[0].weight.requires_grad and not fresh[0].bias.requires_grad


@pytest.mark.parametrize("saved_as", ["plain", "compiled", "parallel", "part"])
@pytest.mark.parametrize("loaded_as", ["plain", "compiled", "parallel", "part"])
def test_a_wrapper_makes_no_difference(saved_as, loaded_as):
    """DDP's and torch.compile's prefixes are in no name."""

    def make(kind):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        model[1].register_buffer("extra", torch.rand(3), persistent=False)
        if kind == "compiled":
            return torch.compile(model, backend="eager")
        if kind == "part":
            model[0] = torch.compile(model[0], backend="eager")
        return nn.DataParallel(model) if kind == "parallel" else model

    model, fresh = make(saved_as), make(loaded_as)
    model.eval()
    saved = save({"model": model})
    assert {r.name for r in saved.records} >= {"model/0.weight", "model/1.running_mean", "model/1.extra"}
    notes = load({"model": fresh}, saved)
    assert all(note.startswith(FLAG) for note in notes)
    assert not any(part.training for part in fresh.modules())
    values = [list(fingerprint(dict(m.state_dict())).values()) for m in (model, fresh)]
    assert values[0] == values[1]


def test_a_name_that_only_looks_like_a_wrappers_is_kept():
    """A module of one's own may be called `module`."""
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    names = {record.name for record in save({"model": model}).records}
    assert names >= {"model/module.weight", "model/module.bias"}


def test_extra_state_and_hooks_are_used():
    """They are given tensors of their own, and may keep them."""

    class Extra(nn.Linear):
        kept = None

        def get_extra_state(self):
            return {"kept": self.kept, "name": ("a", 1)}

        def set_extra_state(self, state):
            self.kept = state["kept"]

        def _load_from_state_dict(self, state_dict, prefix, *rest):
            self.seen = state_dict[prefix + "weight"]
            super()._load_from_state_dict(state_dict, prefix, *rest)

    model, fresh = Extra(2, 2), Extra(2, 2)
    model.kept = torch.tensor([1.5])
    assert load({"model": fresh}, save({"model": model})) == []
    assert fresh.kept.tolist() == [1.5]
    assert torch.equal(fresh.seen, model.weight) and torch.equal(fresh.weight, model.weight)


def test_parametrized_and_normed_weights_come_back():
    """torch's own hooks and parametrizations."""

    def make():
        model = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
            nn.utils.spectral_norm(nn.Linear(3, 3)),
        )
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = make()
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    fresh, other = make()
    assert load({"model": fresh, "opt": other}, save({"model": model, "opt": optimizer})) == []
    x = torch.randn(2, 3)
    assert torch.equal(fresh(x), model(x))


def test_a_lazy_module_is_filled_before_it_saw_any_input():
    """Its parameters get their shape from what is saved."""
    model, fresh = nn.Sequential(nn.LazyLinear(3)), nn.Sequential(nn.LazyLinear(3))
    model(torch.ones(1, 5))
    assert load({"model": fresh}, save({"model": model})) == []
    assert torch.equal(fresh[0].weight, model[0].weight)
    unused = {"model": nn.Sequential(nn.LazyLinear(3), nn.Linear(1, 1))}
    again = {"model": nn.Sequential(nn.LazyLinear(3), nn.Linear(1, 1))}
    assert load(again, save(unused)) == []
    assert torch.equal(again["model"][1].weight, unused["model"][1].weight)


def test_live_tensors_are_filled_in_place():
    """An optimizer, a graph or a view that holds them sees the restored values."""
    model, fresh = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model(torch.randn(5, 3))
    pointers = {k: v.data_ptr() for k, v in fresh.state_dict().items()}
    load({"model": fresh}, save({"model": model}))
    assert {k: v.data_ptr() for k, v in fresh.state_dict().items()} == pointers


def misfit(live, states):
    saved = save(states)
    before = {name: fingerprint(state.state_dict()) for name, state in live.items()}
    with pytest.raises(StateMismatch) as caught:
        check_fit(live, saved.tree["states"], saved.records, "saved-run", "live-run")
    assert {name: fingerprint(state.state_dict()) for name, state in live.items()} == before
    assert "saved-run" in str(caught.value) and "live-run" in str(caught.value)
    return str(caught.value).splitlines()[1:-1]


def test_every_entry_that_does_not_fit_is_named_and_nothing_is_changed():
    """Missing, extra, misshapen and of a wrong dtype, all in one error with both run ids."""

    def make(width, dtype, extra, state):
        model = nn.Module()
        model.body = nn.Linear(3, width)
        model.table = nn.Parameter(torch.ones(2, dtype=dtype))
        setattr(model, extra, nn.Linear(1, 1, bias=False))
        return {"model": model, state: Value(1)}

    lines = misfit(make(4, torch.float32, "new", "ema"), make(5, torch.bfloat16, "old", "best"))
    assert sorted(line.strip() for line in lines) == [
        "best: saved, but no state of that name was handed in",
        "ema: handed in, but not saved",
        "model/body.bias: saved float32 [5], here float32 [4]",
        "model/body.weight: saved float32 [5, 3], here float32 [4, 3]",
        "model/new.weight: here float32 [1, 1], not saved",
        "model/old.weight: saved float32 [1, 1], missing here",
        "model/table: saved bfloat16 [2], here float32 [2]",
    ]


def test_an_optimizer_over_other_parameters_does_not_fit():
    """Other groups, another number, another order: moments would go to the wrong weights."""

    def make(order, groups=1):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        parameters = [model[i].weight for i in order]
        split = [{"params": parameters[n::groups]} for n in range(groups)]
        return {"model": model, "opt": torch.optim.SGD(split, lr=0.1)}

    lines = misfit(make([1, 0]), make([0, 1]))
    assert [line.strip() for line in lines] == [
        "opt/param_groups/0/params/0: saved for model/0.weight float32 [2, 2], here model/1.weight float32 [2, 2]",
        "opt/param_groups/0/params/1: saved for model/1.weight float32 [2, 2], here model/0.weight float32 [2, 2]",
    ]
    assert "saved with 1 parameter groups, here 2" in misfit(make([0, 1], 2), make([0, 1]))[0]
    assert "saved with 2 parameters, here 1" in misfit(make([0]), make([0, 1]))[0]


def test_states_of_another_kind_or_switched_off_do_not_fit():
    """A scaler that is on cannot take the state of one that was off."""
    on, off = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", enabled=False)
    assert "is empty saved" in misfit({"scaler": on}, {"scaler": off})[0]
    assert "is empty here" in misfit({"scaler": off}, {"scaler": on})[0]
    assert "saved as an object, here a module" in misfit({"x": nn.Linear(1, 1)}, {"x": Value(1)})[0]


def test_what_is_no_state_is_refused_with_the_nearest_option():
    """A misspelt option arrives as a state."""
    check_states({"model": nn.Linear(1, 1), "best": Value(0)})
    with pytest.raises(ConfigError, match="option `save_every`"):
        check_states({"save_evry": "5m"})
    with pytest.raises(ConfigError, match=r"best=outlast\.Value"):
        check_states({"best": 0.0})
    with pytest.raises(ConfigError, match="a class was handed in"):
        check_states({"model": nn.Linear})


def test_a_value_that_cannot_be_stored_is_named_with_its_state():
    """A scheduler of one's own that holds a function."""
    with pytest.raises(UnsupportedValue, match="sched/value/warmup: a function"):
        save({"sched": Value({"warmup": misfit})})


def test_an_object_that_refuses_its_state_says_which():
    """Whatever it raises."""

    class Picky:
        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            raise RuntimeError("not like this")

    with pytest.raises(StateMismatch, match=r"picky: Picky does not take what it saved .*not like this"):
        load({"picky": Picky()}, save({"picky": Picky()}))

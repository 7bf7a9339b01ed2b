"""Where each saved tensor goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outlast._errors import ObjectDamaged
from outlast.checkpoint.manifest import TensorRecord
from outlast.state.capture import capture_states
from outlast.state.homes import make_homes, references
from outlast.state.table import TensorTable
from outlast.state.tree import encode
from staging import bits, through_arena


def homes_of(states, live=None):
    """Homes in `live` (default: the same states) for what `states` would save."""
    table = TensorTable()
    tree = {"states": capture_states(states, table)}
    saved = through_arena(tree, table)
    return make_homes(live or states, saved.tree, saved.records)


def test_parameters_and_buffers_are_their_own_homes():
    """What a module holds is written where it is."""
    model = nn.BatchNorm1d(4)
    homes = homes_of({"model": model})
    assert {name: t.data_ptr() for name, t in homes.tensors.items()} == {
        f"model/{name}": t.data_ptr() for name, t in model.state_dict().items()
    }
    assert homes.live == homes.tensors.keys()


def test_an_optimizers_tensors_get_memory_of_the_saved_strides():
    """It becomes the optimizer's own: given once, and never a parameter's."""
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    states = {"model": model, "optimizer": optimizer}
    homes = homes_of(states)
    name = "optimizer/state/0/exp_avg"
    assert homes.tensors[name].stride() == optimizer.state[model.weight]["exp_avg"].stride()
    table = TensorTable()
    tree = capture_states(states, table)
    given = homes.give(tree)
    assert name in given
    assert not given.keys() & homes.live
    assert homes.give(tree) == {}


def test_two_names_never_share_memory():
    """Where two parameters that were saved apart are views of one memory here, the second is copied to its place later."""

    class Views(nn.Module):
        def __init__(self, *, tied):
            super().__init__()
            flat = torch.zeros(10)
            self.register_buffer("one", flat[:6])
            self.register_buffer("two", flat[4:] if tied else flat[6:].clone())

    homes = homes_of({"m": Views(tied=False)}, {"m": Views(tied=True)})
    assert homes.live == {"m/one"}


def test_a_module_that_loads_itself_is_not_written_behind_its_back():
    """Its own hooks get tensors of their own."""

    class Own(nn.Linear):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)

    assert homes_of({"m": Own(2, 2)}).live == frozenset()


def test_every_reference_is_found():
    """Tensors anywhere, and the bytes of arrays that lie beside them; no plain string that looks like a name."""
    import numpy as np

    table = TensorTable()
    value = {
        "a": [torch.ones(2), (np.ones(2000), b"x" * 5000)],
        "tensor": ["v/a/0"],
        "s": torch.eye(2).to_sparse(),
    }
    tree = encode(value, "v", table)
    assert {name for name, _ in references(tree)} == set(table.entries)
    assert list(references(encode({"names": ["v/a/0"], "tensor": "v"}, "w", TensorTable()))) == []


def test_a_dtype_of_another_torch_is_refused_by_name():
    """It may come from a newer one."""
    record = TensorRecord("w", "float2", (1,), "cpu", ())
    with pytest.raises(ObjectDamaged, match="w: saved as float2"):
        make_homes({}, {"states": {}}, [record])


def test_what_is_the_modules_own_is_not_given_away():
    """An object that saved a look at a parameter gets a copy, so that neither writes into the other."""

    class Holder:
        def __init__(self, tensor):
            self.tensor = tensor

        def state_dict(self):
            return {"it": self.tensor}

        def load_state_dict(self, state):
            self.tensor = state["it"]

    from staging import load, save

    model = nn.Linear(2, 2)
    saved = save({"model": model, "holder": Holder(model.weight.detach())})
    other = nn.Linear(2, 2)
    holder = Holder(torch.zeros(2, 2))
    load({"model": other, "holder": holder}, saved)
    assert bits(holder.tensor) == bits(other.weight) == bits(model.weight)
    assert holder.tensor.data_ptr() != other.weight.data_ptr()

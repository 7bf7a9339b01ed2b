"""Put saved states into live objects, and look whether every bit arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from outlast._errors import ObjectDamaged, OutlastError, StateMismatch
from outlast._types import Json
from outlast.state.capture import capture_states, kind_of
from outlast.state.fit import check_fit
from outlast.state.homes import Homes
from outlast.state.module import UNINITIALIZED, SavedModule, restore_module
from outlast.state.table import TensorTable
from outlast.state.tree import decode

__all__ = ["Differing", "Same", "check_fit", "differing", "restore_states"]

Same: TypeAlias = Callable[[Sequence[tuple[str, torch.Tensor]]], Sequence[bool]]
"""Tells of each pair of a saved tensor's name and a live tensor whether the live one holds the saved bits."""


@dataclass(frozen=True)
class Differing:
    """What of the live states is not what was saved.

    Attributes:
        lines: one per entry.
        states: names of the states that these are in.
        same: the live tensors that hold the saved bits, by the saved name.
    """

    lines: list[str]
    states: set[str]
    same: dict[str, torch.Tensor]


def restore_states(states: Mapping[str, object], tree: Json, homes: Homes) -> list[str]:
    """Restore every state from tensors that are filled.

    Modules are filled in place. An optimizer's own `load_state_dict` runs, for the sake of its hooks, and then each
    of its tensors is replaced by the exact one, because torch casts floating state to the parameter's dtype. Other
    objects load what they saved. What is not the script's memory already becomes part of the states, or is copied
    where two of them hold it.

    Args:
        states: the live objects; `check_fit` has passed.
        tree: what `capture_states` returned.
        homes: what `make_homes` chose, filled with the saved bits.

    Returns:
        A line, starting with `module.FLAG`, per training or requires_grad flag that was changed to its saved value.

    Raises:
        ObjectDamaged: the tree holds what Outlast does not write; no object was changed but by what was read in place.
        StateMismatch: an object's own `load_state_dict` refused.
    """
    saved = {name: _decoded(tree[name], homes) for name in states}
    notes = []
    for name, state in sorted(states.items(), key=lambda item: _ORDER.index(kind_of(item[1]))):
        try:
            notes += _restore(state, name, tree[name], saved.pop(name))
        except OutlastError:
            raise
        except Exception as error:  # whatever a user's own load_state_dict raises
            msg = (
                f"{name}: {type(state).__name__} does not take what it saved ({type(error).__name__}: {error}). "
                "Build it as it was when it was saved, or start a new run. What is saved was not changed."
            )
            raise StateMismatch(msg) from error
    return notes


def differing(states: Mapping[str, object], tree: Json, same: Same) -> Differing:
    """Capture every state and tell which entries are not, bit for bit, the saved ones; changes nothing."""
    table = TensorTable()
    live = capture_states(states, table)
    found = [(name, item) for name in states for item in _compare(tree[name], live[name], name)]
    pairs = {
        (item.saved, item.live): table.entries[item.live] for _, item in found if isinstance(item, _Bits)
    }
    answers = same([(saved, tensor) for (saved, _), tensor in pairs.items()])
    holds = dict(zip(pairs, answers, strict=True))
    lines: dict[str, str] = {}
    for name, item in found:
        if isinstance(item, str):
            lines.setdefault(item, name)
        elif not holds[item.saved, item.live]:
            lines.setdefault(f"{item.path}: its bits are not those that were saved", name)
    return Differing(
        list(lines),
        set(lines.values()),
        {saved: tensor for (saved, live_name), tensor in pairs.items() if holds[saved, live_name]},
    )


_ORDER = ("module", "optimizer", "object")
"""An object such as an EMA may look at modules and optimizers as it loads."""


def _decoded(tree: Json, homes: Homes) -> Any:
    if tree["kind"] != "module":
        return decode(tree["state"], homes.tensors, homes.give(tree["state"]))
    return SavedModule(
        entries={key: _entry(value, homes.tensors) for key, value in tree["entries"]},
        buffers={key: _entry(value, homes.tensors) for key, value in tree["buffers"]},
        eval=frozenset(tree["eval"]),
        frozen=frozenset(tree["frozen"]),
    )


def _entry(value: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The saved tensor where it is one: modules copy out of it, so it need not be copied here."""
    if value == UNINITIALIZED:
        return UNINITIALIZED
    if type(value) is dict and "tensor" in value:
        name = value["tensor"][0]
        if name not in tensors:
            msg = f"the saved tree refers to a tensor {name!r}, which the checkpoint does not hold"
            raise ObjectDamaged(msg)
        return tensors[name]
    return decode(value, tensors)


def _restore(state: Any, name: str, tree: Json, saved: Any) -> list[str]:
    if isinstance(state, nn.Module):
        return restore_module(state, name, saved)
    state.load_state_dict(saved)
    if isinstance(state, torch.optim.Optimizer):
        _undo_casts(state, saved["state"], tree["params"])
        # torch's schedulers warn at their first step in this process unless the optimizer has stepped in it.
        vars(state)["_opt_called"] = True
    return []


def _undo_casts(optimizer: torch.optim.Optimizer, saved: dict[Any, Any], described: Json) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    devices = [device for group in described for _, _, _, device in group]
    for index, (parameter, device) in enumerate(zip(parameters, devices, strict=True)):
        if index in saved and parameter in optimizer.state:
            optimizer.state[parameter] = _exact(
                optimizer.state[parameter], saved[index], offloaded=device != "cpu"
            )


def _exact(live: Any, saved: Any, *, offloaded: bool) -> Any:
    """Take the saved tensors into the loaded structure.

    Where each goes is what torch's own loading decided, but for a tensor that was on the CPU beside a parameter that
    was not: it stays there.
    """
    if isinstance(live, torch.Tensor) and isinstance(saved, torch.Tensor):
        stays = offloaded and saved.device.type == "cpu"
        return saved if stays else saved.to(live.device)
    if isinstance(live, dict) and isinstance(saved, dict) and live.keys() == saved.keys():
        for key in live:
            live[key] = _exact(live[key], saved[key], offloaded=offloaded)
    elif isinstance(live, list) and isinstance(saved, list) and len(live) == len(saved):
        live[:] = [_exact(one, other, offloaded=offloaded) for one, other in zip(live, saved, strict=True)]
    return live


@dataclass(frozen=True)
class _Bits:
    """Two tensors whose bits are still to be compared."""

    path: str
    saved: str
    live: str


def _compare(saved: Json, live: Json, path: str) -> Iterator[str | _Bits]:
    if type(saved) is not type(live):
        yield f"{path}: saved {_short(saved)}, restored {_short(live)}"
    elif type(saved) is dict:
        if saved.keys() != live.keys():
            yield f"{path}: saved {_short(saved)}, restored {_short(live)}"
            return
        for key in saved:
            if key == "tensor":
                yield from _compare_tensor(saved[key], live[key], path)
            elif key in _PAIRS:
                yield from _compare_pairs(saved[key], live[key], path)
            else:
                where = path if key in _HIDDEN or len(saved) == 1 else f"{path}/{key}"
                yield from _compare(saved[key], live[key], where)
    elif type(saved) is list:
        if len(saved) != len(live):
            yield f"{path}: saved with {len(saved)} items, restored with {len(live)}"
        for index, (one, other) in enumerate(zip(saved, live, strict=False)):
            yield from _compare(one, other, f"{path}/{index}")
    elif saved != live:
        yield f"{path}: saved {_short(saved)}, restored {_short(live)}"


_PAIRS = frozenset({"dict", "OrderedDict", "Counter", "entries", "buffers"})
_HIDDEN = frozenset({"kind", "state"})


def _compare_pairs(saved: Json, live: Json, path: str) -> Iterator[str | _Bits]:
    keys, live_keys = [pair[0] for pair in saved], [pair[0] for pair in live]
    if keys != live_keys:
        yield f"{path}: saved with the keys {_short(keys)}, restored with {_short(live_keys)}"
        return
    for (key, one), (_, other) in zip(saved, live, strict=True):
        yield from _compare(one, other, f"{path}/{key}")


def _compare_tensor(saved: Json, live: Json, path: str) -> Iterator[str | _Bits]:
    (name, *_, strides), (live_name, *_, live_strides) = saved, live
    if name != live_name:
        yield f"{path}: saved as the memory of {name}, restored as that of {live_name}"
    elif saved[1:3] != live[1:3] or strides != live_strides:
        yield f"{path}: saved as {_short(saved[1:])}, restored as {_short(live[1:])}"
    yield _Bits(path, name, live_name)


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

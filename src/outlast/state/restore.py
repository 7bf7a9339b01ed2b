"""Put saved states into live objects, and look whether every bit arrived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from outlast._errors import OutlastError, StateMismatch
from outlast._types import Json
from outlast.state.bits import same_bits
from outlast.state.capture import capture_states, kind_of
from outlast.state.fit import check_fit
from outlast.state.module import UNINITIALIZED, SavedModule, restore_module
from outlast.state.table import TensorTable
from outlast.state.tree import decode

__all__ = ["check_fit", "differing", "restore_states"]


def restore_states(
    states: Mapping[str, object], tree: Json, tensors: Mapping[str, torch.Tensor]
) -> list[str]:
    """Restore every state, then capture them again and compare with what was saved.

    Modules are filled in place. An optimizer's own `load_state_dict` runs, for the sake of its hooks, and then each
    of its tensors is replaced by an exact copy, because torch casts floating state to the parameter's dtype. Other
    objects load a copy of what they saved.

    Args:
        states: the live objects; `check_fit` has passed.
        tree: what `capture_states` returned.
        tensors: name -> look at the saved tensor; copied, never kept.

    Returns:
        A line per entry whose bits are not the saved ones, and, starting with `module.FLAG`, one per training or
        requires_grad flag that was changed to its saved value.

    Raises:
        ObjectDamaged: the tree holds what Outlast does not write; nothing was changed.
        StateMismatch: an object's own `load_state_dict` refused.
    """
    saved = {name: _decoded(tree[name], tensors) for name in states}
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
    return notes + differing(states, tree, tensors)


def differing(states: Mapping[str, object], tree: Json, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Capture every state and return a line per entry that is not, bit for bit, the saved one; changes nothing."""
    table = TensorTable()
    live = capture_states(states, table)
    lines = [
        line for name in states for line in _compare(tree[name], live[name], name, tensors, table.entries)
    ]
    return list(dict.fromkeys(lines))


_ORDER = ("module", "optimizer", "object")
"""An object such as an EMA may look at modules and optimizers as it loads."""


def _decoded(tree: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    if tree["kind"] != "module":
        return decode(tree["state"], tensors)
    return SavedModule(
        entries={key: _entry(value, tensors) for key, value in tree["entries"]},
        buffers={key: _entry(value, tensors) for key, value in tree["buffers"]},
        eval=frozenset(tree["eval"]),
        frozen=frozenset(tree["frozen"]),
    )


def _entry(value: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A look at the saved tensor where it is one: modules copy out of it, so it need not be copied here."""
    if value == UNINITIALIZED:
        return UNINITIALIZED
    if type(value) is dict and "tensor" in value:
        return tensors[value["tensor"][0]]
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


def _compare(
    saved: Json, live: Json, path: str, there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    if type(saved) is not type(live):
        yield f"{path}: saved {_short(saved)}, restored {_short(live)}"
    elif type(saved) is dict:
        if saved.keys() != live.keys():
            yield f"{path}: saved {_short(saved)}, restored {_short(live)}"
            return
        for key in saved:
            if key == "tensor":
                yield from _compare_tensor(saved[key], live[key], path, there, here)
            elif key in _PAIRS:
                yield from _compare_pairs(saved[key], live[key], path, there, here)
            else:
                where = path if key in _HIDDEN or len(saved) == 1 else f"{path}/{key}"
                yield from _compare(saved[key], live[key], where, there, here)
    elif type(saved) is list:
        if len(saved) != len(live):
            yield f"{path}: saved with {len(saved)} items, restored with {len(live)}"
        for index, (one, other) in enumerate(zip(saved, live, strict=False)):
            yield from _compare(one, other, f"{path}/{index}", there, here)
    elif saved != live:
        yield f"{path}: saved {_short(saved)}, restored {_short(live)}"


_PAIRS = frozenset({"dict", "OrderedDict", "Counter", "entries", "buffers"})
_HIDDEN = frozenset({"kind", "state"})


def _compare_pairs(
    saved: Json, live: Json, path: str, there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    keys, live_keys = [pair[0] for pair in saved], [pair[0] for pair in live]
    if keys != live_keys:
        yield f"{path}: saved with the keys {_short(keys)}, restored with {_short(live_keys)}"
        return
    for (key, one), (_, other) in zip(saved, live, strict=True):
        yield from _compare(one, other, f"{path}/{key}", there, here)


def _compare_tensor(
    saved: Json, live: Json, path: str, there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    (name, *_, strides), (live_name, *_, live_strides) = saved, live
    if name != live_name:
        yield f"{path}: saved as the memory of {name}, restored as that of {live_name}"
    elif saved[1:3] != live[1:3] or strides != live_strides:
        yield f"{path}: saved as {_short(saved[1:])}, restored as {_short(live[1:])}"
    if not same_bits(there[name], here[live_name]):
        yield f"{path}: its bits are not those that were saved"


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

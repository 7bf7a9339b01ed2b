"""All states of a run, as one tree."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from outlast._config import RESERVED
from outlast._errors import ConfigError
from outlast._types import Json
from outlast.state.bits import dtype_name
from outlast.state.module import canonical_names, capture_module
from outlast.state.table import TensorTable
from outlast.state.tree import encode


def capture_states(states: Mapping[str, object], table: TensorTable) -> Json:
    """Encode every state; nothing is copied yet: the tensors in `table` are the live ones.

    Returns:
        `{name: {"kind": "module" | "optimizer" | "object", ...}}`.

    Raises:
        UnsupportedValue: a state holds a value that cannot be stored exactly.
    """
    owners = parameter_names(states)
    return {name: _capture(state, name, table, owners) for name, state in states.items()}


def check_states(states: Mapping[str, object]) -> None:
    """Raise ConfigError unless each state can be saved and loaded.

    The message names the nearest option of `Run`, for a misspelt one arrives here as a state, or `outlast.Value`.
    """
    for name, state in states.items():
        if isinstance(state, type):
            msg = f"{name}={state.__name__}: a class was handed in; hand in the object."
            raise ConfigError(msg)
        if not all(callable(getattr(state, method, None)) for method in ("state_dict", "load_state_dict")):
            raise ConfigError(_no_state(name, state))


def kind_of(state: object) -> str:
    """Tell how a state is saved: `module`, `optimizer` or `object`."""
    if isinstance(state, nn.Module):
        return "module"
    return "optimizer" if isinstance(state, torch.optim.Optimizer) else "object"


def parameter_names(states: Mapping[str, object]) -> dict[int, str]:
    """Return `model/canonical.name` for the id of every parameter of every module."""
    names: dict[int, str] = {}
    for state_name, state in states.items():
        if isinstance(state, nn.Module):
            canonical = canonical_names(state)
            for name, parameter in state.named_parameters():
                names.setdefault(id(parameter), f"{state_name}/{canonical(name)}")
    return names


def describe_parameters(optimizer: torch.optim.Optimizer, owners: Mapping[int, str]) -> Json:
    """Return `[[name or None, shape, dtype, device type], ...]` for each group, in the optimizer's order."""
    return [
        [[owners.get(id(p)), list(p.shape), dtype_name(p.dtype), p.device.type] for p in group["params"]]
        for group in optimizer.param_groups
    ]


def _capture(state: Any, name: str, table: TensorTable, owners: Mapping[int, str]) -> Json:
    kind = kind_of(state)
    if kind == "module":
        return capture_module(state, name, table)
    tree = {"kind": kind, "state": encode(state.state_dict(), name, table)}
    if kind == "optimizer":
        tree["params"] = describe_parameters(state, owners)
    return tree


def _no_state(name: str, state: object) -> str:
    near = difflib.get_close_matches(name, sorted(RESERVED), n=1)
    hint = f"Did you mean the option `{near[0]}`? " if near else ""
    return (
        f"{name}={repr(state)[:60]}: a {type(state).__name__} has no state_dict() and load_state_dict(), so it is no "
        f"state. {hint}To save a plain value, write {name}=outlast.Value(...)."
    )

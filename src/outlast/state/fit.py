"""Whether saved states fit the live ones, found out before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from outlast._errors import ObjectDamaged, StateMismatch
from outlast._types import Json
from outlast.checkpoint.manifest import TensorRecord
from outlast.state.bits import dtype_name
from outlast.state.capture import describe_parameters, kind_of, parameter_names
from outlast.state.module import (
    UNINITIALIZED,
    canonical_names,
    named_parts,
    transient_buffers,
    unset_buffers,
)


def check_fit(
    states: Mapping[str, object],
    tree: Json,
    records: Sequence[TensorRecord],
    saved_run_id: str,
    live_run_id: str,
) -> None:
    """Compare what is saved with the states handed in; changes nothing.

    Modules must have the same entries with the same shapes and dtypes, optimizers the same groups of the same
    parameters, and there must be the same states. What an object of another kind holds may change as it runs, so it
    is only loaded and then compared.

    Raises:
        StateMismatch: with a line for every missing, extra, misshapen or wrong-dtype entry, and both run ids.
        ObjectDamaged: the saved tree is none that Outlast writes.
    """
    by_name = {record.name: record for record in records}
    try:
        lines = list(_misfits(states, tree, by_name))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"the saved tree of run {saved_run_id} is none that Outlast writes ({type(error).__name__}: {error})"
        raise ObjectDamaged(msg) from error
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        msg = (
            f"the states of this script (run {live_run_id}) do not fit what run {saved_run_id} saved:\n{listed}\n"
            "Nothing was loaded or changed. Build the states as they were when it was saved, or start a new run: "
            'another name, or resume="never".'
        )
        raise StateMismatch(msg)


_ARTICLE = {"module": "a module", "optimizer": "an optimizer", "object": "an object"}


def _misfits(states: Mapping[str, object], tree: Json, records: Mapping[str, TensorRecord]) -> Iterator[str]:
    owners = parameter_names(states)
    for name in tree:
        if name not in states:
            yield f"{name}: saved, but no state of that name was handed in"
    for name, state in states.items():
        if name not in tree:
            yield f"{name}: handed in, but not saved"
            continue
        saved = tree[name]
        kind = kind_of(state)
        if saved["kind"] != kind:
            yield f"{name}: saved as {_ARTICLE[saved['kind']]}, here {_ARTICLE[kind]} ({type(state).__name__})"
        elif isinstance(state, nn.Module):
            yield from _module(name, state, saved, records)
        elif isinstance(state, torch.optim.Optimizer):
            yield from _optimizer(name, saved["params"], describe_parameters(state, owners))
        else:
            yield from _object(name, state, saved["state"])


def _module(name: str, module: nn.Module, saved: Json, records: Mapping[str, TensorRecord]) -> Iterator[str]:
    canonical = canonical_names(module)
    parts = dict(named_parts(module))
    here = {canonical(key): value for key, value in module.state_dict().items()}
    there = {
        key: value if value == UNINITIALIZED else _shape_of(value, records) for key, value in saved["entries"]
    }
    filled_later = {key for key, _, _ in unset_buffers(parts)}
    for key, value in there.items():
        if key in here:
            yield from _entry(f"{name}/{key}", here[key], value)
        elif key not in filled_later:
            yield f"{name}/{key}: saved{_words(value)}, missing here"
    for key, value in here.items():
        if key not in there:
            yield f"{name}/{key}: here{_words(_live_shape(value))}, not saved"
    known = transient_buffers(module)
    for key, _ in saved["buffers"]:
        if key not in known and key.rpartition(".")[0] not in parts:
            yield f"{name}/{key}: saved (a buffer that is not persistent), the module that held it is missing here"


def _entry(path: str, value: Any, saved: Json) -> Iterator[str]:
    if isinstance(value, torch.Tensor) and is_lazy(value):
        return
    here = _live_shape(value)
    if saved == UNINITIALIZED:
        yield f"{path}: saved before its lazy module saw any input, here{_words(here)}"
    elif here != saved:
        yield f"{path}: saved{_words(saved) or ' as a plain value'}, here{_words(here) or ' a plain value'}"


def _optimizer(name: str, saved: Json, live: Json) -> Iterator[str]:
    if len(saved) != len(live):
        yield f"{name}: saved with {len(saved)} parameter groups, here {len(live)}"
    for index, (there, here) in enumerate(zip(saved, live, strict=False)):
        if len(there) != len(here):
            yield f"{name}/param_groups/{index}: saved with {len(there)} parameters, here {len(here)}"
        for at, (one, other) in enumerate(zip(there, here, strict=False)):
            unnamed = one[0] is None or other[0] is None
            if (one[0] != other[0] and not unnamed) or one[1:3] != other[1:3]:
                path = f"{name}/param_groups/{index}/params/{at}"
                yield f"{path}: saved for {_parameter(one)}, here {_parameter(other)}"


def _object(name: str, state: Any, saved: Json) -> Iterator[str]:
    here = state.state_dict()
    if (
        isinstance(here, dict)
        and isinstance(saved, dict)
        and "dict" in saved
        and bool(here) != bool(saved["dict"])
    ):
        empty, full = ("here", "saved") if saved["dict"] else ("saved", "here")
        yield f"{name}: its state is empty {empty} and is not {full} ({type(state).__name__}: switched off in one of them?)"


def _shape_of(value: Json, records: Mapping[str, TensorRecord]) -> tuple[tuple[int, ...], str] | None:
    if type(value) is dict and "tensor" in value:
        record = records[value["tensor"][0]]
        return tuple(record.shape), record.dtype
    return None


def _live_shape(value: Any) -> tuple[tuple[int, ...], str] | None:
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(value.shape) if not is_lazy(value) else (), dtype_name(value.dtype)


def _words(shape: Any) -> str:
    if not isinstance(shape, tuple):
        return ""
    return f" {shape[1]} {list(shape[0])}"


def _parameter(described: Json) -> str:
    name, shape, dtype, _ = described
    return f"{name or 'a parameter'} {dtype} {shape}"

"""What a module is made of, under names that do not depend on how it is wrapped.

Besides `state_dict()`, a continuation that is exact to the bit needs buffers that are not persistent, who is in
training mode and which parameters require grad.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from outlast._types import Json
from outlast.state.bits import copy_bits, is_dense
from outlast.state.table import TensorTable
from outlast.state.tree import encode

FLAG = "flag: "
"""Starts a line that reports a flag which the resume set to its saved value; no bits differ."""
UNINITIALIZED: Json = {"uninitialized": True}
"""Stands for a parameter of a lazy module that has seen no input yet."""


def capture_module(module: nn.Module, path: str, table: TensorTable) -> Json:
    """Encode a module; its tensors are named `path/canonical name`."""
    canonical = canonical_names(module)
    return {
        "kind": "module",
        "entries": [
            [
                canonical(key),
                UNINITIALIZED if is_lazy(value) else encode(value, f"{path}/{canonical(key)}", table),
            ]
            for key, value in module.state_dict().items()
        ],
        "buffers": [
            [name, encode(buffer if buffer is None else buffer.detach(), f"{path}/{name}", table)]
            for name, buffer in transient_buffers(module).items()
        ],
        "eval": [name for name, part in named_parts(module) if not part.training],
        "frozen": [
            canonical(name)
            for name, p in module.named_parameters(remove_duplicate=False)
            if not p.requires_grad
        ],
    }


def canonical_names(module: nn.Module) -> Callable[[str], str]:
    """Return a function from live names to names without DDP's `module.` and torch.compile's `_orig_mod.`."""
    dropped = set()
    for path, part in module.named_modules(remove_duplicate=False):
        inner = _inner_name(part)
        if inner:
            dropped.add(f"{path}.{inner}" if path else inner)
    if not dropped:
        return lambda name: name

    def canonical(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for n, part in enumerate(parts) if ".".join(parts[: n + 1]) not in dropped)

    return canonical


def named_parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Go through every module but the wrappers, by canonical name."""
    canonical = canonical_names(module)
    for path, part in module.named_modules(remove_duplicate=False):
        if not _inner_name(part):
            yield canonical(path), part


def transient_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the buffers that `state_dict()` leaves out, by canonical name."""
    return {
        f"{path}.{name}" if path else name: part._buffers[name]  # noqa: SLF001 - torch has no public way to ask which are persistent
        for path, part in named_parts(module)
        for name in sorted(part._non_persistent_buffers_set)  # noqa: SLF001 - see above
    }


def unset_buffers(parts: Mapping[str, nn.Module]) -> list[tuple[str, nn.Module, str]]:
    """List persistent buffers that are None now, as (canonical name, owner, attribute)."""
    return [
        (f"{path}.{attribute}" if path else attribute, part, attribute)
        for path, part in parts.items()
        for attribute, buffer in part._buffers.items()  # noqa: SLF001 - named_buffers leaves out those that are None
        if buffer is None and attribute not in part._non_persistent_buffers_set  # noqa: SLF001 - as in transient_buffers
    ]


def own_memory(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that a restore writes in place, by canonical name; none where hooks of its own load the module."""
    if not all(_loads_plainly(part) for part in module.modules()):
        return {}
    canonical = canonical_names(module)
    live = {canonical(key): value for key, value in module.state_dict().items()} | transient_buffers(module)
    return {key: value for key, value in live.items() if value is not None and _writable(value)}


@dataclass(frozen=True)
class SavedModule:
    """A module's saved parts, decoded.

    `entries` hold the saved tensors (which may be the live ones; copy, never keep), and values of their own for the rest.
    """

    entries: dict[str, Any]
    buffers: dict[str, torch.Tensor | None]
    eval: frozenset[str]
    frozen: frozenset[str]


def restore_module(module: nn.Module, path: str, saved: SavedModule) -> list[str]:
    """Put saved values into the live tensors, in place; returns a line for each flag that was changed."""
    canonical = canonical_names(module)
    parts = dict(named_parts(module))
    _make_buffers(parts, saved.entries, _device(module))
    live = module.state_dict()
    if all(_loads_plainly(part) for part in module.modules()):
        for key, tensor in live.items():
            _fill(parts, canonical(key), tensor, saved.entries[canonical(key)])
    else:
        _load(module, live, {key: saved.entries[canonical(key)] for key in live})
    _restore_buffers(parts, transient_buffers(module), saved.buffers, _device(module))
    return _restore_flags(module, path, saved)


def _loads_plainly(part: nn.Module) -> bool:
    """Whether loading means copying into what `state_dict()` returns: no hooks, overrides or extra state."""
    hooks = ("_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
    if any(getattr(part, name, None) for name in hooks):
        return False
    kind = type(part)
    if kind.__module__.startswith("torch.nn.") or _inner_name(part):
        return True
    own = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict", "get_extra_state")
    return all(getattr(kind, name) is getattr(nn.Module, name) and name not in vars(part) for name in own)


def _load(module: nn.Module, live: dict[str, Any], saved: dict[str, Any]) -> None:
    """Load through the module's own hooks, which may keep what they are given: they get tensors of their own."""
    given = OrderedDict((key, _own(value)) for key, value in saved.items() if value is not UNINITIALIZED)
    given._metadata = getattr(live, "_metadata", {})  # type: ignore[attr-defined]  # noqa: SLF001 - where torch keeps each module's version
    module.load_state_dict(given, strict=len(given) == len(saved))


def _fill(parts: Mapping[str, nn.Module], name: str, live: torch.Tensor, saved: torch.Tensor) -> None:
    if _is_same_memory(live, saved):
        return  # it was read straight into its place
    if _writable(live):
        copy_bits(live, saved)
    else:
        _put_buffer(parts, name, _own(saved).to(live.device))


def _is_same_memory(live: torch.Tensor, saved: torch.Tensor) -> bool:
    return (live.data_ptr(), live.stride()) == (saved.data_ptr(), saved.stride()) and bool(live.numel())


def _writable(tensor: torch.Tensor) -> bool:
    """Whether an in-place copy is possible: every element has memory of its own."""
    return is_dense(tensor.shape, tensor.stride()) or 0 not in tensor.stride()


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _make_buffers(parts: Mapping[str, nn.Module], saved: Mapping[str, Any], device: torch.device) -> None:
    """Give persistent buffers that are None until first used the memory to load into."""
    for name, owner, attribute in unset_buffers(parts):
        if isinstance(saved.get(name), torch.Tensor):
            owner._buffers[attribute] = torch.empty_like(saved[name], device=device)  # noqa: SLF001 - as in transient_buffers


def _restore_buffers(
    parts: Mapping[str, nn.Module],
    live: Mapping[str, torch.Tensor | None],
    saved: Mapping[str, torch.Tensor | None],
    device: torch.device,
) -> None:
    made: dict[int, torch.Tensor] = {}  # so that one buffer of two modules stays one
    for name, value in saved.items():
        here = live.get(name)
        if value is None:
            _put_buffer(parts, name, None)
        elif here is not None and here.shape == value.shape and here.dtype is value.dtype and _writable(here):
            if not _is_same_memory(here, value):
                copy_bits(here, value)
        else:
            target = here.device if here is not None else device
            _put_buffer(parts, name, made.setdefault(id(value), _own(value).to(target)))


def _put_buffer(parts: Mapping[str, nn.Module], name: str, value: torch.Tensor | None) -> None:
    path, _, attribute = name.rpartition(".")
    owner = parts[path]
    persistent = attribute in owner._buffers and attribute not in owner._non_persistent_buffers_set  # noqa: SLF001 - as in transient_buffers
    owner.register_buffer(attribute, value, persistent=persistent)


def _restore_flags(module: nn.Module, path: str, saved: SavedModule) -> list[str]:
    notes = []
    for name, part in named_parts(module):
        training = name not in saved.eval
        if part.training is not training:
            notes.append(f"{FLAG}{path}/{name or '(root)'}: training {part.training} -> {training}")
            part.training = training
    for wrapper in module.modules():
        inner = _inner_name(wrapper)
        if inner:
            wrapper.training = getattr(wrapper, inner).training
    canonical = canonical_names(module)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        requires_grad = canonical(name) not in saved.frozen
        if parameter.requires_grad is not requires_grad:
            was = parameter.requires_grad
            notes.append(f"{FLAG}{path}/{canonical(name)}: requires_grad {was} -> {requires_grad}")
            parameter.requires_grad_(requires_grad)
    return notes


def _inner_name(part: nn.Module) -> str | None:
    """Name of the one child that a wrapper wraps; None if it is no wrapper."""
    if "_orig_mod" in part._modules:  # noqa: SLF001 - torch.compile's wrapper, told apart without importing dynamo
        return "_orig_mod"
    if isinstance(part, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return "module"
    return None


def _device(module: nn.Module) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")

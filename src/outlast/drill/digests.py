"""Digests of a script's objects, taken inside its process by code that shares nothing with Outlast's own capture."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast.drill.recorder import Recorder

_QUICK_BYTES = 1 << 20
"""Of each parameter, at most so many bytes are digested after every step; at the end all are."""
_DEPTH = 6


def digest(value: object) -> str:
    """Return a digest of a batch: every tensor and array by its bytes, the rest by its text."""
    total = hashlib.blake2b(digest_size=8)
    for name, part in leaves("", value):
        total.update(name.encode() + b"\0" + part.encode())
    return total.hexdigest()


def digest_quickly(tensors: Iterable[Any]) -> str:
    """Return a digest of the first part of each tensor."""
    total = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        total.update(_bytes(flat[: _QUICK_BYTES // max(flat.element_size(), 1)]))
    return total.hexdigest()


def leaves(name: str, value: object, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Walk nested values: (path, digest or text) of each leaf, in order."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        yield name, f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()}"
    elif isinstance(value, np.ndarray):
        yield name, f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, Mapping) and depth < _DEPTH:
        for key, item in value.items():
            yield from leaves(f"{name}.{key}" if name else str(key), item, depth + 1)
    elif isinstance(value, list | tuple) and depth < _DEPTH:
        for index, item in enumerate(value):
            yield from leaves(f"{name}.{index}" if name else str(index), item, depth + 1)
    elif isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        yield name, value.hex() if isinstance(value, float) else repr(value)
    else:
        yield name, type(value).__qualname__


def describe_end(recorder: Recorder) -> dict[str, Any]:
    """Return digests of what was handed to `Run`, of what was not, and the facts about the script's protection."""
    import torch

    state: dict[str, str] = {}
    for name, item in recorder.handed.items():
        state.update(leaves(name, item.state_dict()))
    if recorder.variables is not None:
        from outlast.trainer.vars import values_of

        state.update(leaves("run.vars", values_of(recorder.variables)))
    handed = set(_parts(recorder.handed.values()))
    named = dict(_named_objects(recorder.frames))
    names = {id(value): name for name, value in reversed(named.items())}
    unhanded: dict[str, str] = {}
    seen = set(handed)
    modules = [item for item in gc.get_objects() if isinstance(item, torch.nn.Module) and id(item) in names]
    for module in [*recorder.optimizers, *modules]:
        if id(module) in seen:
            continue
        seen.update(_parts([module]))
        name = f"{names.get(id(module), 'an object')} ({type(module).__name__})"
        unhanded.update(leaves(name, module.state_dict()))
    for name, value in named.items():
        if id(value) not in seen and not hasattr(value, "state_dict") and _holds_tensors(value):
            unhanded.update(leaves(f"{name} ({type(value).__name__})", getattr(value, "__dict__", value)))
    scalars = {name: repr(value) for name, value in named.items() if type(value) in (int, float, bool)}
    return {
        "state": state,
        "unhanded": unhanded,
        "variables": scalars,
        "facts": {
            "runs": recorder.runs,
            "safe_points": recorder.safe_points,
            "bare_enumerate": recorder.bare,
            "optimizers": [
                f"{names.get(id(item), 'an optimizer')} ({type(item).__name__})"
                for item in recorder.optimizers
                if id(item) not in handed
            ],
        },
    }


def _parts(objects: Iterable[Any]) -> Iterator[int]:
    """Ids of the objects and, of modules, all inside them."""
    import torch

    for item in objects:
        yield id(item)
        if isinstance(item, torch.nn.Module):
            yield from (id(part) for part in item.modules())


def _named_objects(frames: list[FrameType]) -> Iterator[tuple[str, Any]]:
    """Return the variables of the script's frames, and the attributes of its objects, by the names it uses."""
    for frame in frames:
        place = frame.f_code.co_filename
        for name, value in list(frame.f_locals.items()):
            if name.startswith("__"):
                continue
            yield name, value
            # Objects of classes that the script's own file defines: `self.ema`, `trainer.best`.
            home = getattr(type(value), "__init__", None)
            if getattr(getattr(home, "__code__", None), "co_filename", None) == place:
                yield from ((f"{name}.{key}", item) for key, item in list(vars(value).items()))


def _holds_tensors(value: Any) -> bool:
    """Whether it is a dict or an object with tensors inside: an average of weights that somebody wrote by hand."""
    import torch

    inside = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if not isinstance(inside, dict) or isinstance(value, type):
        return False
    for item in inside.values():
        parts = item.values() if isinstance(item, dict) else [item]
        if any(isinstance(part, torch.Tensor) and not isinstance(part, torch.nn.Parameter) for part in parts):
            return True
    return False


def _bytes(tensor: Any) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: bytes = flat.view(torch.uint8).numpy().tobytes()
    return data

"""Tensors and torch's small values as leaves of a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.nn.parameter import is_lazy

from outlast._errors import UnsupportedValue
from outlast._types import Json
from outlast.state.bits import DTYPES, copy_bits, dtype_name, empty_bits, is_dense
from outlast.state.table import TensorTable

Tensors: TypeAlias = Mapping[str, torch.Tensor]
Made: TypeAlias = dict[tuple[Any, ...], torch.Tensor]
"""What one decode has made already, so that one name becomes one memory."""


def encode_tensor(tensor: torch.Tensor, path: str, table: TensorTable) -> Json:
    """Add a tensor to the table and return the reference to it.

    Strided: `{"tensor": [name, is a parameter, requires_grad, device, strides or None if contiguous]}`. Sparse COO:
    `{"coo": [indices, values, size, coalesced]}`.

    Raises:
        UnsupportedValue: a tensor whose bytes alone do not say what it holds, or that is part of a graph.
    """
    check_tensor(tensor, path)
    if tensor.layout is torch.sparse_coo:
        indices, values = tensor._indices(), tensor._values()  # noqa: SLF001 - indices() refuses what is not coalesced
        parts = [
            encode_tensor(part.detach(), f"{path}/{n}", table)
            for n, part in (("indices", indices), ("values", values))
        ]
        return {"coo": [*parts, list(tensor.shape), tensor.is_coalesced()]}
    strides = (
        None
        if tensor.is_contiguous() or not is_dense(tensor.shape, tensor.stride())
        else list(tensor.stride())
    )
    name = table.add(path, tensor)
    return {
        "tensor": [
            name,
            type(tensor) is torch.nn.Parameter,
            tensor.requires_grad,
            device_name(tensor),
            strides,
        ]
    }


def check_tensor(tensor: torch.Tensor, path: str) -> None:
    """Raise UnsupportedValue, naming the path, if a tensor cannot be stored exactly."""
    why, advice = _obstacle(tensor)
    if why:
        raise UnsupportedValue(refusal(path, tensor, why, advice))


def _obstacle(tensor: torch.Tensor) -> tuple[str, str]:
    if is_lazy(tensor):
        return "is not initialised yet", "run one forward pass first"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return "is a subclass of Tensor", "store its plain tensors"
    if tensor.device.type == "meta":
        return "is on the meta device and has no data", "materialise it first (to_empty, then initialise)"
    if tensor.grad_fn is not None:
        return "is part of an autograd graph, which cannot be stored", "store x.detach()"
    if tensor.layout is torch.sparse_coo and tensor.requires_grad:
        return "is sparse and requires grad", "store it dense"
    if tensor.layout not in (torch.strided, torch.sparse_coo) or tensor.is_nested:
        return f"has layout {tensor.layout}", "store its dense parts"
    if dtype_name(tensor.dtype) not in DTYPES:
        return f"has dtype {tensor.dtype}", "store its integer representation and its scale"
    return "", ""


def refusal(path: str, value: object, why: str, advice: str) -> str:
    """Word an UnsupportedValue: path, what was found, what to do."""
    kind = type(value)
    found = f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__qualname__
    advice = (
        advice
        or "keep it out of the state (rebuild it in the script), or turn it into plain values and tensors"
    )
    return f"{path}: a {found} cannot be stored exactly: it {why}. What to do: {advice}."


def encode_torch(value: Any) -> Json:
    """Encode dtype, device and Size; None for anything else."""
    if type(value) is torch.dtype:
        return {"dtype": dtype_name(value)}
    if type(value) is torch.device:
        return {"device": str(value)}
    if type(value) is torch.Size:
        return {"Size": list(value)}
    return None


def device_name(tensor: torch.Tensor) -> str:
    """Name a tensor's device; the process's current one goes without its index, which differs from rank to rank."""
    device = tensor.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return str(device)
    return device.type


def live_device(name: str) -> torch.device:
    """Find the device of that name here, the current one of its type, or the CPU, in this order."""
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if ":" not in name or device.index >= torch.cuda.device_count():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _decode_tensor(payload: Json, tensors: Tensors, made: Made) -> torch.Tensor:
    name, is_parameter, requires_grad, device, strides = payload
    source = tensors[name]
    if strides is not None and not is_dense(source.shape, strides):
        msg = f"strides {strides} do not fit the shape {tuple(source.shape)}"
        raise ValueError(msg)
    target = live_device(device)
    memory = made.get((name,))
    if memory is None:
        memory = made[name,] = empty_bits(source.shape, strides, source.dtype, target)
        copy_bits(memory, source)
    key = (name, bool(is_parameter), bool(requires_grad))
    if key not in made:
        made[key] = (
            torch.nn.Parameter(memory, requires_grad=bool(requires_grad))
            if is_parameter
            else memory.detach().requires_grad_(bool(requires_grad))
        )
    return made[key]


def _decode_coo(payload: Json, tensors: Tensors, made: Made) -> torch.Tensor:
    *references, size, coalesced = payload
    indices, values = (_decode_tensor(reference["tensor"], tensors, made) for reference in references)
    return torch.sparse_coo_tensor(indices, values, size, is_coalesced=coalesced, check_invariants=True)


def _decode_device(payload: Json, _tensors: Tensors, _made: Made) -> torch.device:
    return torch.device(payload)


READERS: dict[str, Callable[[Json, Tensors, Made], Any]] = {
    "tensor": _decode_tensor,
    "coo": _decode_coo,
    "dtype": lambda payload, _tensors, _made: _dtype(payload),
    "device": _decode_device,
    "Size": lambda payload, _tensors, _made: torch.Size(payload),
}


def _dtype(name: str) -> torch.dtype:
    dtype = vars(torch)[name]  # getattr would import submodules by name
    if not isinstance(dtype, torch.dtype):
        msg = f"{name} is not a dtype"
        raise TypeError(msg)
    return dtype

"""Tensors as bits: their dtype names, exact copies and exact comparison.

Every copy goes through an integer type of the same width, so that no nan payload, no sign of zero and no padding is
changed on the way, whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_NAMES = (
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 bfloat16 float16 float32 float64 complex32 complex64 "
    "complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
)
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name)
}
"""The dtypes that can be stored, by name. Quantized and sub-byte types are not: their bytes alone do not say what
they hold."""

_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_INTEGER_OF_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_name(dtype: torch.dtype) -> str:
    """Return e.g. `bfloat16` for `torch.bfloat16`."""
    return _NAME_OF.get(dtype) or str(dtype).removeprefix("torch.")


def as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """Look at a strided tensor's memory as integers of the same width, sharing it (complex128: two per element)."""
    tensor = tensor.detach()
    if tensor.dtype is torch.complex128:
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGER_OF_BYTES[tensor.element_size()])


def copy_bits(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy `source` into `target` (same shape and dtype; any strides and devices), bit for bit."""
    with torch.no_grad():
        as_integers(target).copy_(as_integers(plain(source)))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits: nan equals the same nan, 0.0 does not equal -0.0."""
    if left.dtype is not right.dtype or left.shape != right.shape:
        return False
    here, there = as_integers(plain(left)), as_integers(plain(right))
    return torch.equal(here, there.to(here.device))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Resolve lazy conjugation and negation, so that the memory is what the tensor says."""
    return tensor.detach().resolve_conj().resolve_neg()


def empty_bits(
    shape: Sequence[int], strides: Sequence[int] | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Allocate a tensor (row-major if `strides` is None) without the warnings that some dtypes give."""
    strides = row_major(shape) if strides is None else strides
    if dtype is torch.complex128:
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=device)
    integer = _INTEGER_OF_BYTES[dtype.itemsize]
    return torch.empty_strided(tuple(shape), tuple(strides), dtype=integer, device=device).view(dtype)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor."""
    strides = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the strides are a permutation of a contiguous layout: no gaps, no element twice."""
    step = 1
    for stride, length in sorted(zip(strides, shape, strict=True)):
        if length == 1:
            continue
        if stride != step:
            return False
        step *= length
    return True

"""Arithmetic of boxes: rectangular parts of a tensor, given by offset and shape per dimension, in row-major order.

A saved slice and a wanted slice are both boxes of the same tensor, and so any saved division (N ranks) can be read
as any other (M ranks). Offsets and shapes are in elements; `in_bytes` adds the bytes of an element as a last
dimension, and from there on everything counts in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

Dims: TypeAlias = tuple[int, ...]

DTYPE_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}
"""Bytes per element of each torch dtype that can be stored, by its name without `torch.`."""


def in_bytes(offset: Dims, shape: Dims, dtype: str) -> tuple[Dims, Dims]:
    """Return the box with one more dimension, the bytes of an element."""
    return (*offset, 0), (*shape, DTYPE_BYTES[dtype])


def is_inside(offset: Dims, shape: Dims, whole: Dims) -> bool:
    """Whether a box lies in a tensor of shape `whole`; False also for dimensions that do not match."""
    return len(offset) == len(shape) == len(whole) and all(
        o >= 0 and n >= 0 and o + n <= size for o, n, size in zip(offset, shape, whole, strict=True)
    )


def intersect(a_offset: Dims, a_shape: Dims, b_offset: Dims, b_shape: Dims) -> tuple[Dims, Dims] | None:
    """Return offset and shape of what two boxes share; None if that is no element."""
    start = tuple(map(max, a_offset, b_offset))
    shape = tuple(
        min(ao + an, bo + bn) - s
        for ao, an, bo, bn, s in zip(a_offset, a_shape, b_offset, b_shape, start, strict=True)
    )
    return (start, shape) if all(n > 0 for n in shape) else None


def flat_start(offset: Dims, shape: Dims, outer_offset: Dims, outer_shape: Dims) -> int | None:
    """Where a box starts in the row-major order of an outer box, if it is one consecutive run there; else None."""
    start, stride, consecutive = 0, 1, True
    for o, n, outer_o, outer_n in zip(
        reversed(offset), reversed(shape), reversed(outer_offset), reversed(outer_shape), strict=True
    ):
        if not consecutive and n != 1:
            return None
        consecutive = consecutive and n == outer_n
        start += (o - outer_o) * stride
        stride *= outer_n
    return start


def split_range(shape: Dims, start: int, stop: int) -> Iterator[tuple[Dims, Dims]]:
    """Cut elements `start` to `stop` of the row-major order into boxes, in order: at most `2 * len(shape) - 1`."""
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner  # rows first..last-1 are whole
    if first > last:
        yield from _in_row(last, shape, start, stop)
        return
    if start % inner:
        yield from _in_row(first - 1, shape, start, first * inner)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if stop % inner:
        yield from _in_row(last, shape, last * inner, stop)


def _in_row(row: int, shape: Dims, start: int, stop: int) -> Iterator[tuple[Dims, Dims]]:
    base = row * math.prod(shape[1:])
    for offset, size in split_range(shape[1:], start - base, stop - base):
        yield (row, *offset), (1, *size)

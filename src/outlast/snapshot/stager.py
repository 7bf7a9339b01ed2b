"""Copy tensors into an arena, and look at the tensors in one.

The bytes of each tensor lie in row-major order where `layout` or `wants` placed them, whatever its strides were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from outlast._errors import ObjectDamaged
from outlast.agent.protocol import Placed, Want
from outlast.checkpoint.manifest import TensorRecord
from outlast.snapshot.arena import Arena, place
from outlast.state.bits import DTYPES, copy_bits, dtype_name
from outlast.state.leaves import check_tensor


@dataclass(frozen=True)
class Layout:
    """Where each tensor goes, and how large an arena that takes."""

    placed: tuple[Placed, ...]
    size_bytes: int


def layout(entries: Mapping[str, torch.Tensor]) -> Layout:
    """Place whole tensors one behind the other, in the order given.

    Raises:
        UnsupportedValue: a tensor that is not strided, or whose dtype cannot be stored.
    """
    placed = []
    end = 0
    for name, tensor in entries.items():
        check_tensor(tensor.detach(), name)
        shape = tuple(tensor.shape)
        nbytes = tensor.numel() * tensor.element_size()
        at = place(end, nbytes)
        end = at + nbytes
        device = tensor.device.type
        placed.append(
            Placed(name, dtype_name(tensor.dtype), shape, device, (0,) * len(shape), shape, at, nbytes)
        )
    return Layout(tuple(placed), end)


def stage(entries: Mapping[str, torch.Tensor], layout: Layout, arena: Arena) -> None:
    """Copy every tensor to its place, bit for bit; returns when all bytes are there.

    Runs under no autograd and draws no random numbers. Large tensors are copied by torch's threads; copies from a
    GPU wait for the work queued on its current stream.

    Args:
        entries: name -> tensor of any strides, on CPU or CUDA; the ones that `layout` was made of.
        layout: of the same names, shapes and dtypes.
        arena: at least `layout.size_bytes` large; nothing may be reading it.
    """
    memory = _bytes_of(arena)
    for box in layout.placed:
        tensor = entries[box.name]
        copy_bits(_look(memory, box.at, box.nbytes, tensor.dtype, tensor.shape), tensor)


def wants(records: Sequence[TensorRecord]) -> tuple[tuple[Want, ...], int]:
    """Ask for all tensors, whole; returns the boxes and the arena's size in bytes.

    Raises:
        ObjectDamaged: a record has a dtype that this torch does not know.
    """
    boxes = []
    end = 0
    for record in records:
        nbytes = math.prod(record.shape) * _dtype(record).itemsize
        at = place(end, nbytes)
        end = at + nbytes
        boxes.append(Want(record.name, (0,) * len(record.shape), record.shape, at, nbytes))
    return tuple(boxes), end


def views(arena: Arena, records: Sequence[TensorRecord], wants: Sequence[Want]) -> dict[str, torch.Tensor]:
    """Return a typed look at each wanted tensor in the arena, without a copy.

    They are for reading, and hold the arena's memory as long as they live.
    """
    memory = _bytes_of(arena)
    dtypes = {record.name: _dtype(record) for record in records}
    return {
        want.tensor: _look(memory, want.at, want.nbytes, dtypes[want.tensor], want.shape) for want in wants
    }


def _bytes_of(arena: Arena) -> torch.Tensor:
    # Through numpy: its array keeps the mapping alive. torch.frombuffer would look at unmapped memory after close().
    return torch.from_numpy(np.frombuffer(arena.view, dtype=np.uint8))


def _look(
    memory: torch.Tensor, at: int, nbytes: int, dtype: torch.dtype, shape: Sequence[int]
) -> torch.Tensor:
    return memory[at : at + nbytes].view(dtype).view(tuple(shape))


def _dtype(record: TensorRecord) -> torch.dtype:
    dtype = DTYPES.get(record.dtype)
    if dtype is None:
        msg = (
            f"{record.name}: saved as {record.dtype}, which torch {torch.__version__} does not have or Outlast does "
            "not store. Install the torch that the run was saved with."
        )
        raise ObjectDamaged(msg)
    return dtype

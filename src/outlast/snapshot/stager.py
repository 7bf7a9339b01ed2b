"""Copy tensors into an arena.

The bytes of each tensor lie in row-major order where `layout` placed them, whatever its strides were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch

from outlast.agent.protocol import UNCOPIED, Placed
from outlast.snapshot.arena import Arena, page_ceil, place
from outlast.snapshot.moves import Move
from outlast.snapshot.pinned import DeviceCopier
from outlast.state.bits import DTYPES, as_integers, dtype_name, plain
from outlast.state.leaves import check_tensor

_SMALL_BYTES = 64 << 10
"""Up to here a copy costs less than the call that makes it (a microsecond for 10 to 20 KB)."""
_DEVICES = DeviceCopier()


@dataclass(frozen=True)
class Layout:
    """Where each tensor goes, and how large an arena that takes.

    Attributes:
        placed: a box for each tensor; one whose `at` is `UNCOPIED` is left where it is.
        size_bytes: of an arena that holds them all.
        lasting_at: where the part begins that need not be copied each time; the end where there is none.
    """

    placed: tuple[Placed, ...]
    size_bytes: int
    lasting_at: int


def layout(entries: Mapping[str, torch.Tensor], lasting: AbstractSet[str] = frozenset()) -> Layout:
    """Place whole tensors one behind the other, in the order given.

    Args:
        entries: name -> tensor.
        lasting: names of those that seldom change; they lie behind the others, from a page on.

    Raises:
        UnsupportedValue: a tensor that is not strided, or whose dtype cannot be stored.
    """
    placed: list[Placed] = []
    end = _place((item for item in entries.items() if item[0] not in lasting), placed, 0)
    lasting_at = page_ceil(end) if lasting else end
    end = _place((item for item in entries.items() if item[0] in lasting), placed, lasting_at)
    return Layout(tuple(placed), end, lasting_at)


def fits(layout: Layout, entries: Mapping[str, torch.Tensor], lasting: AbstractSet[str]) -> bool:
    """Whether a layout that was made earlier is the one that `layout` would make of these tensors now."""
    if len(layout.placed) != len(entries):
        return False
    for box in layout.placed:
        tensor = entries.get(box.name)
        if (
            tensor is None
            or tensor.shape != box.shape
            or DTYPES.get(box.dtype) is not tensor.dtype
            or tensor.device.type != box.device
            or (box.at >= layout.lasting_at) is not (box.name in lasting)
        ):
            return False
    return True


def looks(layout: Layout, arena: Arena) -> list[torch.Tensor]:
    """Return a look at each box of a layout in the arena, as integers of the width of its elements.

    They hold the arena's memory as long as they live.
    """
    memory = _bytes_of(arena)
    return [
        as_integers(_look(memory, box.at, box.nbytes, DTYPES[box.dtype], box.shape)) for box in layout.placed
    ]


def stage(
    entries: Mapping[str, torch.Tensor],
    layout: Layout,
    targets: Sequence[torch.Tensor] | Arena,
    *,
    but: AbstractSet[str] = frozenset(),
) -> None:
    """Copy every tensor to its place, bit for bit; returns when all bytes are there.

    Runs under no autograd and draws no random numbers. Large tensors are copied by torch's threads, small ones many at
    a time; copies from GPUs go on meanwhile, and wait for the work queued on their current streams.

    Args:
        entries: name -> tensor of any strides, on CPU or CUDA; the ones that `layout` was made of.
        layout: of the same names, shapes and dtypes; boxes that are `UNCOPIED` are passed over.
        targets: the arena, at least `layout.size_bytes` large, or what `looks` made of it; nothing may be reading it.
        but: names of those that are passed over.
    """
    if isinstance(targets, Arena):
        targets = looks(layout, targets)
    on_devices = {box.name for box in layout.placed if box.device != "cpu"}
    devices = _DEVICES.begin(moves(entries, layout, targets, on_devices - but) if on_devices else ())
    small: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    with torch.no_grad():
        for box, target in zip(layout.placed, targets, strict=True):
            if box.at == UNCOPIED or box.name in but or box.name in on_devices:
                continue
            source = _integers(entries[box.name], target.dtype)
            if box.nbytes <= _SMALL_BYTES:
                into, of = small.setdefault(target.dtype, ([], []))
                into.append(target)
                of.append(source)
            else:
                target.copy_(source)
        for into, of in small.values():
            torch._foreach_copy_(into, of)
    devices.wait()


def moves(
    entries: Mapping[str, torch.Tensor],
    layout: Layout,
    targets: Sequence[torch.Tensor],
    names: AbstractSet[str],
) -> list[Move]:
    """Return the copies that `stage` would make of these names, to be made by somebody else."""
    with torch.no_grad():
        return [
            Move(box.name, _integers(entries[box.name], target.dtype), target)
            for box, target in zip(layout.placed, targets, strict=True)
            if box.name in names and box.at != UNCOPIED
        ]


def _integers(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`as_integers(plain(tensor))` in the fewest calls: a state may have ten thousand tensors."""
    if tensor.is_conj() or tensor.is_neg() or tensor.dtype is torch.complex128:
        return as_integers(plain(tensor))
    return tensor.view(dtype)


def _place(items: Iterable[tuple[str, torch.Tensor]], placed: list[Placed], end: int) -> int:
    for name, tensor in items:
        check_tensor(tensor.detach(), name)
        shape = tuple(tensor.shape)
        nbytes = tensor.numel() * tensor.element_size()
        at = place(end, nbytes)
        end = at + nbytes
        device = tensor.device.type
        placed.append(
            Placed(name, dtype_name(tensor.dtype), shape, device, (0,) * len(shape), shape, at, nbytes)
        )
    return end


def _bytes_of(arena: Arena) -> torch.Tensor:
    # Through numpy: its array keeps the mapping alive. torch.frombuffer would look at unmapped memory after close().
    return torch.from_numpy(np.frombuffer(arena.view, dtype=np.uint8))


def _look(
    memory: torch.Tensor, at: int, nbytes: int, dtype: torch.dtype, shape: Sequence[int]
) -> torch.Tensor:
    return memory[at : at + nbytes].view(dtype).view(tuple(shape))

"""Where each saved tensor goes: into the script's own memory where that is possible, else into memory that becomes its own.

So a restore holds nothing twice. What is filled here is what a save of this state would read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from outlast._errors import ObjectDamaged
from outlast._types import Json
from outlast.checkpoint.manifest import TensorRecord
from outlast.state.bits import DTYPES, empty_bits, is_dense
from outlast.state.leaves import live_device
from outlast.state.module import own_memory

_PACKED = {"bytes": None, "bytearray": None, "array": 3, "scalar": 1}
"""Tags of what may lie beside the tensors as bytes, and where in their payload the name is."""


class Homes:
    """Memory for the tensors of a checkpoint.

    Attributes:
        tensors: name -> where its bits go, of the saved shape and dtype, any strides.
        live: names of those that are the script's own memory.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], live: Iterable[str]) -> None:
        self.tensors = tensors
        self.live = frozenset(live)
        self._given = set(self.live)

    def give(self, tree: Json) -> dict[str, torch.Tensor]:
        """Hand out the memory of those tensors in a tree that nobody has yet: it is the caller's from here on."""
        names = dict.fromkeys(name for name, _ in references(tree))
        given = {name: self.tensors[name] for name in names if name not in self._given}
        self._given |= given.keys()
        return given


def make_homes(states: Mapping[str, object], tree: Json, records: Sequence[TensorRecord]) -> Homes:
    """Choose memory for every tensor; nothing is written yet.

    Args:
        states: the live objects; `check_fit` has passed.
        tree: what was saved, with the states under "states"; it says which strides and devices tensors had.
        records: the tensors to be read.

    Raises:
        ObjectDamaged: the tree refers to what is not there, or a dtype is none that this torch has.
    """
    by_name = {record.name: record for record in records}
    live = _live(states, tree["states"], by_name)
    tensors = dict(live)
    layouts: dict[str, Json] = {}
    for name, payload in references(tree):
        if name in by_name and payload is not None:
            layouts.setdefault(name, payload)
    for name, record in by_name.items():
        if name not in tensors:
            tensors[name] = _allocate(record, layouts.get(name))
    return Homes(tensors, live)


def references(tree: Json) -> Iterator[tuple[str, Json]]:
    """Go through the names of tensors in a tree, each with its reference; None for bytes that lie beside the tensors."""
    left = [tree]
    while left:
        node = left.pop()
        if type(node) is list:
            left += node
        elif type(node) is dict:
            payload = node.get("tensor")
            if type(payload) is list and len(payload) == 5 and type(payload[0]) is str:
                yield payload[0], payload
                continue
            if len(node) == 1:
                ((tag, packed),) = node.items()
                index = _PACKED.get(tag, -1)
                if index is not None and index >= 0 and type(packed) is list and len(packed) > index:
                    packed = packed[index]
                if tag in _PACKED and type(packed) is list and len(packed) == 1 and type(packed[0]) is str:
                    yield packed[0], None
                    continue
            left += node.values()


def _live(
    states: Mapping[str, object], tree: Json, records: Mapping[str, TensorRecord]
) -> dict[str, torch.Tensor]:
    """Memory of modules that is as it was saved; no two names get memory that overlaps."""
    found: dict[str, torch.Tensor] = {}
    taken: dict[int, list[tuple[int, int]]] = {}
    for state_name, state in states.items():
        if not isinstance(state, nn.Module):
            continue
        own = own_memory(state)
        for key, value in (*tree[state_name]["entries"], *tree[state_name]["buffers"]):
            tensor = own.get(key)
            if tensor is None or type(value) is not dict or "tensor" not in value:
                continue
            name = value["tensor"][0]
            record = records.get(name)
            if (
                record is None
                or name in found
                or tuple(tensor.shape) != record.shape
                or tensor.dtype is not DTYPES.get(record.dtype)
                or not tensor.numel()
                or tensor.is_conj()
                or tensor.is_neg()
            ):
                continue
            start, stop = _extent(tensor)
            others = taken.setdefault(tensor.untyped_storage().data_ptr(), [])
            if all(stop <= begin or start >= end for begin, end in others):
                others.append((start, stop))
                found[name] = tensor.detach()
    return found


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last address of a tensor's memory."""
    elements = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


def _allocate(record: TensorRecord, payload: Json) -> torch.Tensor:
    dtype = DTYPES.get(record.dtype)
    if dtype is None:
        msg = (
            f"{record.name}: saved as {record.dtype}, which torch {torch.__version__} does not have or Outlast does "
            "not store. Install the torch that the run was saved with."
        )
        raise ObjectDamaged(msg)
    device, strides = (payload[3], payload[4]) if payload is not None else ("cpu", None)
    try:
        if strides is not None and not is_dense(record.shape, strides):
            strides = None  # whoever reads the tree says what is wrong with it
        return empty_bits(record.shape, strides, dtype, live_device(device))
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{record.name}: the saved tree holds {payload!r}, which this Outlast does not write ({error})"
        raise ObjectDamaged(msg) from error

"""The tensors of one capture, by name, each memory once."""

from __future__ import annotations

import torch


class TensorTable:
    """Collect tensors under names; two looks at the same memory get one name.

    Tied weights are stored once that way, and come back tied. The table keeps every tensor alive, so that no address
    is used again while it stands.

    Attributes:
        entries: name -> tensor, in the order they were added.
    """

    def __init__(self) -> None:
        self.entries: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[object, ...], str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> str:
        """Add a strided tensor and return the name it is stored under.

        That is the earlier one where the same memory (address, shape, strides, dtype, device) was added before;
        `name` with a number where another tensor already took it.
        """
        memory = _memory(tensor)
        known = self._names.get(memory) if memory else None
        if known is not None:
            return known
        unique = name
        number = 2
        while unique in self.entries:
            unique = f"{name}#{number}"
            number += 1
        self.entries[unique] = tensor.detach()
        if memory:
            self._names[memory] = unique
        return unique


def _memory(tensor: torch.Tensor) -> tuple[object, ...] | None:
    if not tensor.numel():
        return None
    return (
        tensor.data_ptr(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.is_conj(),
        tensor.is_neg(),
    )

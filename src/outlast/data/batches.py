"""What can be told of a batch, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash

_LEAVES = 64
_LEAF_BYTES = 4096
"""How much of a batch is looked at: enough to tell two of them apart, at 5 us a tensor."""


def fingerprint(batch: Any) -> str:
    """Digest the shapes and the first bytes of a batch, to tell whether a replay gave the same one again."""
    digest = xxhash.xxh3_64()
    for count, leaf in enumerate(_leaves(batch)):
        if count == _LEAVES:
            break
        digest.update(_summary(leaf))
    return digest.hexdigest()


def samples_in(batch: Any, batch_size: int | None) -> int:
    """Count a batch's samples by the first dimension of its first array; 1 where it is not batched."""
    if batch_size is None:
        return 1
    for leaf in _leaves(batch):
        if isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim:
            return int(leaf.shape[0])
    return batch_size


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield str(key)
            yield from _leaves(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch


def _summary(leaf: Any) -> bytes:
    if isinstance(leaf, torch.Tensor):
        head = f"{leaf.dtype}{tuple(leaf.shape)}".encode()
        if leaf.device.type != "cpu" or leaf.layout is not torch.strided or leaf.is_quantized:
            return head
        first = leaf.detach().reshape(-1)[: _LEAF_BYTES // max(leaf.element_size(), 1)]
        return head + first.contiguous().view(torch.uint8).numpy().tobytes() if first.numel() else head
    if isinstance(leaf, np.ndarray):
        head = f"{leaf.dtype}{leaf.shape}".encode()
        return (
            head
            if leaf.dtype.hasobject
            else head + leaf.reshape(-1)[: _LEAF_BYTES // leaf.itemsize].tobytes()
        )
    if isinstance(leaf, (str, bytes, bool, int, float, complex)) or leaf is None:
        return repr(leaf)[:_LEAF_BYTES].encode()
    return type(leaf).__qualname__.encode()

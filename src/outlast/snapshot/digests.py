"""Digests of live tensors, by the chunks that a save cuts them into."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from outlast.checkpoint.manifest import CHUNK_BYTES, digest
from outlast.state.bits import as_integers, plain

_POOLED_BYTES = 256 << 10
"""From here on a chunk is worth handing to another thread (10 us; a digest of this takes as long)."""


def chunk_digests(tensors: Sequence[torch.Tensor]) -> list[tuple[str, ...]]:
    """XXH3-128 of each chunk of each tensor's bytes in row-major order, with torch's number of threads.

    xxhash lets go of the interpreter lock, so threads help. A tensor that does not lie in row-major order, or not on
    the CPU, is copied for it.

    Args:
        tensors: strided, of any dtype that can be stored; not changed by anybody until this returns.

    Returns:
        For each tensor one hex digest per started `CHUNK_BYTES`; none for an empty one.
    """
    with torch.no_grad():
        looks = [_bytes_of(tensor) for tensor in tensors]
    found = [
        tuple(
            digest(look[at : at + CHUNK_BYTES]) if len(look) < _POOLED_BYTES else ""
            for at in range(0, len(look), CHUNK_BYTES)
        )
        for look in looks
    ]
    large = [index for index, look in enumerate(looks) if len(look) >= _POOLED_BYTES]
    if large:
        pieces = [
            looks[index][at : at + CHUNK_BYTES]
            for index in large
            for at in range(0, len(looks[index]), CHUNK_BYTES)
        ]
        with ThreadPoolExecutor(torch.get_num_threads(), "outlast-digest") as pool:
            digests = pool.map(digest, pieces)
            for index in large:
                found[index] = tuple(next(digests) for _ in found[index])
    return found


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    dense = as_integers(plain(tensor)).cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # one element may stand there with any stride
    return flat.view(torch.uint8).numpy().data

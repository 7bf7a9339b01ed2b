"""Fingerprints of chunks: every 32-bit word counts, and where it stands; on the CPU, without torch.

The fingerprint of a chunk is the sum over its words of `word[i] * odd[i]` modulo 2**64: a multilinear hash, which a GPU
computes as fast as it reads. A change of one word is always seen, since an odd number has an inverse; for anything
else to go unseen its differences must cancel out against numbers that know nothing of them. Words are of 32 bits and
signed: with 64, the changes of two top bits (the signs of two float64) would always cancel out.

It finds mistakes, of this library and of a script that changes what is being copied. It is no digest: what is on the
store is guarded by XXH3-128.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Print: TypeAlias = tuple[int, ...]
"""Fingerprints of a tensor's chunks, in order; each a signed 64-bit number."""

WORD_BYTES = 4
BLOCK_WORDS = 1 << 16
"""Words that one table serves: half a megabyte of factors, which stays in a processor's cache."""
CHUNK_BLOCKS = 64
CHUNK_BYTES = CHUNK_BLOCKS * BLOCK_WORDS * WORD_BYTES
"""16 MiB: what a fingerprint speaks of, and the most that a GPU works on at a time."""


def factors() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the odd factors of a block's words, and those of a chunk's blocks: `odd[i]` is the product of its two."""
    odd = _splitmix64(np.arange(BLOCK_WORDS + CHUNK_BLOCKS, dtype=np.uint64)) | np.uint64(1)
    signed = odd.view(np.int64)
    return signed[:BLOCK_WORDS], signed[BLOCK_WORDS:]


def fingerprint(data: NDArray[np.uint8]) -> Print:
    """Fingerprint bytes (one-dimensional), chunk by chunk; the last word is filled up with zeros."""
    return tuple(_chunk(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))


def _chunk(data: NDArray[np.uint8]) -> int:
    with np.errstate(over="ignore"):
        sums = np.fromiter(_block_sums(data), dtype=np.int64)
        return int(np.sum(sums * _BLOCKS[: len(sums)], dtype=np.int64))


def _block_sums(data: NDArray[np.uint8]) -> Iterator[np.int64]:
    """Sum up each block; einsum casts and multiplies as it reads, without a copy (6 GB/s on one core)."""
    words = _words(data)
    for at in range(0, len(words), BLOCK_WORDS):
        block = words[at : at + BLOCK_WORDS]
        yield np.einsum("i,i->", block, _WORDS[: len(block)], dtype=np.int64, casting="safe")


def _words(data: NDArray[np.uint8]) -> NDArray[np.int32]:
    if len(data) % WORD_BYTES:
        data = np.pad(data, (0, -len(data) % WORD_BYTES))
    return data.view("<i4")


def _splitmix64(index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: element `index` of seed 0."""
    with np.errstate(over="ignore"):
        z = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


_WORDS, _BLOCKS = factors()

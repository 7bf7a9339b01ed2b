"""What the machine itself can do: the bounds that a save runs into."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

PIECE_BYTES = 16 << 20
"""Written at a time: the size of Outlast's chunks."""
SAMPLE_BYTES = 1 << 30


def measure(folder: Path, nbytes: int) -> dict[str, float]:
    """Rates in bytes per s: copying with all cores, one core's digests, and direct writes + fsync (one or two threads)."""
    sample_bytes = min(SAMPLE_BYTES, max(nbytes, PIECE_BYTES))
    source = np.random.default_rng(0).integers(0, 255, sample_bytes, dtype=np.uint8)
    target = np.ones_like(source)
    cores = os.cpu_count() or 1
    parts = list(zip(np.array_split(source, cores), np.array_split(target, cores), strict=True))

    def copy() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))

    def digest() -> None:
        for at in range(0, sample_bytes, PIECE_BYTES):
            xxhash.xxh3_128_digest(source[at : at + PIECE_BYTES])

    writes = {threads: direct_write_s(folder, nbytes, threads) for threads in (1, 2)}
    return {
        "memcpy_bytes_per_s": sample_bytes / least(copy, 3),
        "digest_bytes_per_s": sample_bytes / least(digest, 3),
        "write_bytes_per_s": nbytes / min(writes.values()),
    }


def direct_write_s(folder: Path, nbytes: int, threads: int) -> float:
    """Seconds to write and fsync `nbytes` by direct I/O, a file for each thread."""
    piece = mmap.mmap(-1, PIECE_BYTES)
    piece.write(np.random.default_rng(1).bytes(PIECE_BYTES))
    paths = [folder / f"limit-{number}" for number in range(threads)]
    pieces = max(1, round(nbytes / threads / PIECE_BYTES))

    def write(path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            file = os.open(path, flags | os.O_DIRECT)
        except OSError:  # a filesystem without it
            file = os.open(path, flags)
        for _ in range(pieces):
            os.write(file, piece)
        os.fsync(file)
        os.close(file)

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, paths))
    took = time.perf_counter() - started
    for path in paths:
        path.unlink()
    return took * nbytes / (pieces * threads * PIECE_BYTES)


def least(do: Callable[[], None], times: int) -> float:
    """Seconds of the fastest of some calls."""
    return min(_seconds(do) for _ in range(times))


def _seconds(do: Callable[[], None]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started

"""The order of an epoch: which sample stands at which position.

A pure function of (seed, epoch, length), so that a run resumes at position 1,000,000 as cheaply as at 0, and every
rank and every worker can compute its own part without being told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from outlast.data.seeds import Use, derive, mix_array

_SORTED_UP_TO = 1 << 16
"""Up to this length (512 KiB of indices) the order is a sort by random keys: exactly uniform, where a Feistel
network over so few bits would not be."""

_ROUNDS = 8
"""Feistel rounds. Luby and Rackoff (1988) need 4 for a proof on wide halves; on halves of 8 bits and more, tests of
uniformity no longer see a difference from 6 on."""

_SEARCHED = 512
"""Rectangles tried; with so many the best exceeds the length by a few samples, and walking is rare."""


@dataclass(frozen=True)
class Order:
    """Map positions of an epoch to indices of the data set, in O(1) memory.

    With `shuffle` it is a permutation keyed by (seed, epoch): a sort by random keys for short data sets, else a
    generalised Feistel network over a rectangle that hardly exceeds the length, applied again where it leads outside
    (cycle-walking). Both are of Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, sections 3 and
    4. Without it, position p holds index p.

    Attributes:
        seed: the run's seed, any integer.
        epoch: number of the epoch, from 0.
        length: samples in the data set.
        shuffle: whether the order is random.
    """

    seed: int
    epoch: int
    length: int
    shuffle: bool = True

    def indices(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the indices at positions start to stop - 1, in their order.

        Raises:
            IndexError: the positions are not within the epoch.
        """
        if not 0 <= start <= stop <= self.length:
            msg = f"positions {start} to {stop} are not within an epoch of {self.length} samples"
            raise IndexError(msg)
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        if self.length <= _SORTED_UP_TO:
            return self._sorted[start:stop].copy()
        return self._walk(np.arange(start, stop, dtype=np.uint64)).astype(np.int64)

    @cached_property
    def _sorted(self) -> npt.NDArray[np.int64]:
        base = np.uint64(derive(Use.ORDER, self.seed, self.epoch, self.length))
        keys = mix_array(mix_array(np.arange(self.length, dtype=np.uint64) + base))
        return np.argsort(keys, kind="stable").astype(np.int64)

    @cached_property
    def _keys(self) -> list[np.uint64]:
        return [
            np.uint64(derive(Use.ORDER, self.seed, self.epoch, self.length, number))
            for number in range(_ROUNDS)
        ]

    @cached_property
    def _sides(self) -> tuple[np.uint64, np.uint64]:
        """Two numbers near the root of the length whose product is hardly larger than it."""
        rows = np.arange(_SEARCHED, dtype=np.uint64) + np.uint64(math.isqrt(self.length))
        columns = -(-self.length // rows.astype(object))
        excess = [int(row) * column - self.length for row, column in zip(rows, columns, strict=True)]
        best = min(range(_SEARCHED), key=excess.__getitem__)
        return rows[best], np.uint64(columns[best])

    def _walk(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        x = self._feistel(x)
        outside = np.flatnonzero(x >= self.length)
        while outside.size:
            x[outside] = self._feistel(x[outside])
            outside = outside[x[outside] >= self.length]
        return x

    def _feistel(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        rows, columns = self._sides
        row, column = np.divmod(x, columns)
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                _shift(row, _hash(column, key), rows)
            else:
                _shift(column, _hash(row, key), columns)
        return row * columns + column


def _hash(half: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """Hash each element with the key; the upper 32 bits are well mixed (the multipliers are MurmurHash3's)."""
    x = half + key
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x >>= np.uint64(32)
    return x


def _shift(half: npt.NDArray[np.uint64], by: npt.NDArray[np.uint64], size: np.uint64) -> None:
    """Add `by` of [0, 2**32), scaled to [0, size), modulo size, in place."""
    by *= size
    by >>= np.uint64(32)
    half += by
    # Below `size` the subtraction wraps to a huge number.
    np.minimum(half, half - size, out=half)
